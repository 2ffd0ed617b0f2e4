//! What the guest and its devices see of the machine: two traits, so that the same guest runs on the
//! daemon ([`crate::real`]), on a plain model ([`crate::model`]) and with faults ([`crate::faults`]).

use std::sync::Arc;

use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::papr::codes::RtasCall;
use vmm_sys_util::eventfd::EventFd;

use crate::moves::{GoesOn, Moved};

/// The controller is gone for good; the text says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Gone(pub String);

/// What can fail only with the controller as a whole.
pub type Step<T = ()> = Result<T, Gone>;

/// A vCPU's way to its interrupt controller. Called by the vCPU's thread; `pending` by anyone.
pub trait Cpu: Send + Sync {
    /// A hypercall: r3 back, r4 to r12 in place.
    fn hcall(&self, opcode: u64, args: &mut [u64; 9]) -> Step<i64>;
    /// An RTAS call: what it wrote of its results, the status first.
    fn rtas(&self, call: RtasCall, args: &[u32], nret: u32) -> Step<Vec<u32>>;
    /// client-architecture-support with this option vector 5 (its length byte first).
    fn cas(&self, ov5: &[u8]) -> Step<CasAnswer>;
    /// An 8-byte load in the ESB space.
    fn esb_load(&self, offset: u64) -> Step<u64>;
    /// An 8-byte store in the ESB space.
    fn esb_store(&self, offset: u64, value: u64) -> Step;
    /// A load of `size` bytes in the TIMA space.
    fn tima_load(&self, offset: u64, size: u8) -> Step<u64>;
    /// A store of `size` bytes in the TIMA space.
    fn tima_store(&self, offset: u64, size: u8, value: u64) -> Step;
    /// The external-interrupt line, now.
    fn pending(&self) -> bool;
}

/// What CAS answered.
#[derive(Clone, Debug)]
pub struct CasAnswer {
    /// r3.
    pub ret: i64,
    /// Byte 23 of the negotiated vector.
    pub byte_23: u32,
    /// The device tree of the mode.
    pub fdt: Vec<u8>,
}

/// A request for numbers.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// This one, an LSI or not; it survives a reset.
    Fixed(u32, bool),
    /// So many MSIs, aligned to their count, anywhere in the range; a reset releases them.
    Msis(u32, std::ops::Range<u32>),
}

/// The machine around the vCPUs.
pub trait Board: Send + Sync {
    /// Its fixed properties.
    fn machine(&self) -> Machine;
    /// The way of one vCPU.
    fn connect(&self, server: u32) -> Step<Arc<dyn Cpu>>;
    /// One event of an MSI.
    fn trigger(&self, lisn: u32) -> Step;
    /// The level of an LSI.
    fn set_level(&self, lisn: u32, level: bool) -> Step;
    /// Every count of `event` is an event of the MSI.
    fn add_irqfd(&self, lisn: u32, event: &EventFd) -> Step;
    /// No longer.
    fn remove_irqfd(&self, lisn: u32) -> Step;
    /// Claims numbers; the first.
    fn claim(&self, numbers: Numbers) -> Step<u32>;
    /// Resets both controllers; MSIs are released.
    fn machine_reset(&self) -> Step;
    /// A guest word, big-endian. 0 where there is no RAM.
    fn ram_read(&self, gpa: u64) -> u32;
    /// Writes a guest word, big-endian.
    fn ram_write(&self, gpa: u64, value: u32);
    /// Writes the same word so many bytes long.
    fn ram_fill(&self, gpa: u64, len: u64, value: u32);
    /// That word is still everywhere there.
    fn ram_is_filled(&self, gpa: u64, len: u64, value: u32) -> bool;
    /// The process in charge, if there is one; during a move the next one as well.
    fn daemons(&self) -> Vec<u32>;
    /// Asks the daemons anything; returns when they have answered, restarted ones if need be.
    fn ask(&self) -> Step;
    /// Puts another release's daemon in the place of the one that serves, if there are daemons.
    fn upgrade(&self) -> Step {
        Ok(())
    }
    /// Changes who runs the data plane, if there is a choice.
    fn switch(&self) -> Step {
        Ok(())
    }
    /// Plugs another vCPU in and takes it out again, if there is room for one.
    fn plug(&self) -> Step {
        Ok(())
    }
    /// Moves the running guest to another daemon, or as far as `goes_on`.
    fn migrate(&self, _goes_on: &GoesOn) -> Step<Moved> {
        Err(Gone("there is nothing to move".into()))
    }
    /// What the controller holds, as a monitor shows it; a line per source begins with its number.
    fn picture(&self) -> String {
        String::new()
    }
}
