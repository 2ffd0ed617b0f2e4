//! What the guest did: hcalls, RTAS, CAS, MMIO (SPEC.md §1.7). The guest's return code is payload.

use super::bytes::{Rest, wire_structs};
use super::vcpu::Line;

/// Address spaces of MMIO.
pub mod space {
    /// Offset from the machine's `esb_base`.
    pub const ESB: u32 = 0;
    /// Offset from the machine's `tima_base`.
    pub const TIMA: u32 = 1;
}

/// Modes in replies.
pub mod mode {
    /// GET_FDT: the active one.
    pub const ACTIVE: u32 = 0;
    /// XICS.
    pub const XICS: u32 = 1;
    /// XIVE.
    pub const XIVE: u32 = 2;
}

/// Registers r4 to r12.
pub type HcallArgs = [u64; 9];

wire_structs! {
    /// 0x1030: a hypercall.
    pub struct Hcall {
        /// Calling vCPU.
        pub server: u32,
        /// Zero.
        pub zero: u32,
        /// r3.
        pub opcode: u64,
        /// r4 to r12.
        pub args: HcallArgs,
        /// The guest's time base, for H_XIRR_X.
        pub time_base: u64,
    }

    /// Registers after the call.
    pub struct HcallReply {
        /// r3.
        pub ret: i64,
        /// r4 to r12; what the call does not set comes back unchanged.
        pub args: HcallArgs,
        /// The caller's line after the call.
        pub line: Line,
    }

    /// 0x1031: one of the four RTAS calls of XICS.
    pub struct Rtas {
        /// Calling vCPU.
        pub server: u32,
        /// [`RtasCall`](crate::papr::codes::RtasCall).
        pub call: u32,
        /// Cells of arguments, at most 16.
        pub nargs: u32,
        /// Cells of results, at most 16.
        pub nret: u32,
        /// Arguments.
        pub args: [u32; 16],
    }

    /// Results.
    pub struct RtasReply {
        /// How many of `rets` the call wrote; write no more to the guest.
        pub written: u32,
        /// Zero.
        pub zero: u32,
        /// Results; the first is the status.
        pub rets: [u32; 16],
        /// The caller's line after the call.
        pub line: Line,
    }

    /// 0x1032: client-architecture-support (barrier). The VMM has checked that no other vCPU runs.
    pub struct Cas {
        /// Calling vCPU.
        pub server: u32,
        /// Zero.
        pub zero: u32,
        /// Option vector 5 as in the guest's table: its length byte, then that many bytes + 1. At
        /// most 256. Empty: the guest gave none.
        pub ov5: Rest,
    }

    /// The choice.
    pub struct CasReply {
        /// H_SUCCESS, or H_PARAMETER for a mode that the machine does not have; then nothing changed.
        pub ret: i64,
        /// Byte 23 of the negotiated vector.
        pub byte_23: u32,
        /// [`mode`] now.
        pub mode: u32,
        /// Device tree of the mode, as a flattened blob.
        pub fdt: Rest,
    }

    /// 0x1033: a load or store of the guest in the ESB or TIMA space.
    pub struct Mmio {
        /// Accessing vCPU.
        pub server: u32,
        /// [`space`].
        pub space: u32,
        /// Offset in the space.
        pub offset: u64,
        /// 1, 2, 4 or 8.
        pub size: u32,
        /// 1 for a store.
        pub store: u32,
        /// What is stored.
        pub value: u64,
    }

    /// Done.
    pub struct MmioReply {
        /// What was loaded, in the low bytes.
        pub value: u64,
        /// The accessor's line after the access.
        pub line: Line,
    }

    /// 0x1034: the device tree of a mode.
    pub struct GetFdt {
        /// [`mode`].
        pub mode: u32,
        /// Zero.
        pub zero: u32,
    }

    /// As in [`CasReply`].
    pub struct FdtReply {
        /// Flattened blob.
        pub fdt: Rest,
    }
}
