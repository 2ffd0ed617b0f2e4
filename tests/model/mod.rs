//! A slow, obvious model of the two sPAPR interrupt controllers and of the machine around them.
//!
//! It is the other opinion in every test that compares: written from the rules alone (what QEMU 7.2 does,
//! as `docs/fidelity.md` and SPEC.md state it), with plain vectors, scanning everything, one thread, and
//! sharing no code with `protocol/`. Nothing here is fast or clever, on purpose.
//!
//! - [`rules`]: the named points in which the compat levels differ, one switch each.
//! - [`xics`], [`xive`]: the controllers. [`esb`]: XIVE's memory-mapped pages. [`hint`]: the H_INT_* calls.
//! - [`machine`]: ic-mode, CAS, claims, LSI levels, reset, guest memory: what a VMM sees of the daemon.
//!
//! It does not model concurrency, crashes, waiting, eventfds or migration: a call is over when it returns.

pub mod esb;
pub mod hint;
pub mod machine;
pub mod memory;
pub mod rules;
pub mod xics;
pub mod xive;

/// PAPR return codes, as the guest reads them in r3.
pub mod ret {
    /// The call succeeded.
    pub const SUCCESS: i64 = 0;
    /// The hardware, or here the mode, does not let the call work.
    pub const HARDWARE: i64 = -1;
    /// The machine has no such call, or CAS has not enabled it.
    pub const FUNCTION: i64 = -2;
    /// The first parameter (or flags) is wrong.
    pub const PARAMETER: i64 = -4;
    /// The second parameter is wrong.
    pub const P2: i64 = -55;
    /// The third parameter is wrong.
    pub const P3: i64 = -56;
    /// The fourth parameter is wrong.
    pub const P4: i64 = -57;
    /// The fifth parameter is wrong.
    pub const P5: i64 = -58;
}
