//! What a replayer needs of an interrupt controller under test: one trait, and the shape of the machine.
//!
//! The calls are those of a VMM, not of the wire: the implementations are the daemon through the front-end
//! library (mapped, remote, alternating) and the slow model of `tests/model`.

use std::fmt;

/// Something the controller under test could not do at all. It ends the replay of the file.
#[derive(Debug)]
pub struct GuestError(pub String);

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GuestError {}

/// Result of a call on the controller under test.
pub type Outcome<T> = Result<T, GuestError>;

/// Which controllers the machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcMode {
    /// XICS only.
    Xics,
    /// XIVE only.
    Xive,
    /// Both; CAS chooses.
    Dual,
}

/// The machine a recording was made on. Nothing is claimed yet; the replayer claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Which controllers.
    pub ic_mode: IcMode,
    /// Number of server numbers.
    pub servers: u32,
    /// The vCPUs' server numbers, boot vCPU first.
    pub vcpus: Vec<u32>,
    /// Bytes of RAM, from address 0.
    pub ram: u64,
}

impl Shape {
    /// Number of interrupt numbers, 0 up to this.
    pub const LISNS: u32 = 0x2000;
    /// First number that XICS has.
    pub const XICS_BASE: u32 = 0x1000;
    /// First number of the MSI allocator.
    pub const MSI_BASE: u32 = 0x1300;
    /// Guest address of the source pages.
    pub const ESB_BASE: u64 = 0x6_0100_0000_0000;
    /// Guest address of the END pages.
    pub const END_BASE: u64 = 0x6_0100_4000_0000;
    /// Guest address of the first TIMA page.
    pub const TIMA_BASE: u64 = 0x6_0302_0318_0000;
}

/// Return code of a hypercall and r4 to r12 after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// r3.
    pub ret: i64,
    /// r4 up.
    pub args: [u64; 9],
}

/// The four RTAS calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RtasCall {
    /// ibm,set-xive
    SetXive,
    /// ibm,get-xive
    GetXive,
    /// ibm,int-on
    IntOn,
    /// ibm,int-off
    IntOff,
}

impl RtasCall {
    /// By name, with or without the `ibm,`.
    pub fn parse(name: &str) -> Option<RtasCall> {
        Some(match name.trim_start_matches("ibm,") {
            "set-xive" => RtasCall::SetXive,
            "get-xive" => RtasCall::GetXive,
            "int-on" => RtasCall::IntOn,
            "int-off" => RtasCall::IntOff,
            _ => return None,
        })
    }
}

/// Which memory-mapped window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Source pages; offset = LISN * 20000, trigger page first.
    Esb,
    /// Thread context; offset 20000 is the OS page.
    Tima,
}

/// Answer to CAS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CasReply {
    /// r3 of H_CAS.
    pub ret: i64,
    /// Byte 23 of the negotiated option vector 5.
    pub byte23: u8,
    /// Whether XIVE is active from now on.
    pub xive: bool,
}

/// XICS presentation state of a vCPU, for recordings that show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcpState {
    /// CPPR and XISR.
    pub xirr: u32,
    /// Priority of what XISR holds.
    pub pending: u8,
    /// IPI request.
    pub mfrr: u8,
}

/// XICS state of a source, for recordings that show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcsState {
    /// Priority in force.
    pub prio: u8,
    /// 1 ASSERTED, 2 SENT, 4 REJECTED, 8 MASKED_PENDING.
    pub status: u8,
}

/// A machine with the controller under test. Every call is over, with all its effects, when it returns.
pub trait Guest {
    /// A hypercall by a vCPU. H_XIRR_X gets time base 0.
    fn hcall(&mut self, server: u32, opcode: u64, args: [u64; 9]) -> Outcome<Reply>;
    /// An RTAS call: the result cells that were written, status first.
    fn rtas(&mut self, server: u32, call: RtasCall, args: &[u32], nret: u32) -> Outcome<Vec<u32>>;
    /// A guest load of 1, 2, 4 or 8 bytes, as a big-endian number.
    fn load(&mut self, server: u32, space: Space, offset: u64, size: u8) -> Outcome<u64>;
    /// A guest store of 1, 2, 4 or 8 bytes.
    fn store(
        &mut self,
        server: u32,
        space: Space,
        offset: u64,
        size: u8,
        value: u64,
    ) -> Outcome<()>;
    /// A device's message.
    fn pulse(&mut self, lisn: u32) -> Outcome<()>;
    /// A device's line.
    fn set_level(&mut self, lisn: u32, level: bool) -> Outcome<()>;
    /// Claims a number for a device. False: somebody has it.
    fn claim(&mut self, lisn: u32, lsi: bool) -> Outcome<bool>;
    /// Takes a number back.
    fn free(&mut self, lisn: u32) -> Outcome<()>;
    /// CAS with a raw option vector 5: a length byte, then the vector from byte 1 on.
    fn cas(&mut self, server: u32, ov5: &[u8]) -> Outcome<CasReply>;
    /// Machine reset: both controllers, all vCPUs, the mode. Claims stay.
    fn machine_reset(&mut self) -> Outcome<()>;
    /// Reset of one vCPU's presenters.
    fn vcpu_reset(&mut self, server: u32) -> Outcome<()>;
    /// A vCPU's external interrupt line.
    fn line(&mut self, server: u32) -> Outcome<bool>;
    /// A vCPU's XICS registers, without changing them.
    fn icp(&mut self, server: u32) -> Outcome<IcpState>;
    /// A source's XICS state, without changing it.
    fn ics(&mut self, lisn: u32) -> Outcome<IcsState>;
    /// Reads guest memory.
    fn mem_read(&mut self, gpa: u64, bytes: &mut [u8]) -> Outcome<()>;
    /// Writes guest memory, as the guest would.
    fn mem_write(&mut self, gpa: u64, bytes: &[u8]) -> Outcome<()>;
    /// How often the data plane changed hands.
    fn switches(&self) -> u64 {
        0
    }
}

/// Builds a machine of a given shape at compat level `qemu-7.2`.
pub type Start<'a> = dyn FnMut(&Shape) -> Outcome<Box<dyn Guest>> + 'a;
