//! The data plane: transitions on shared words, written once for every executor and storage.
//!
//! * [`xive`]: source → router → presenter.
//! * [`xics`]: sources (ICS) and presentation controllers (ICP).
//! * [`controller`]: both behind one door, with mode and gate.
//! * [`thread`]: what a thread of the VMM runs, each call inside its epoch.
//! * [`epoch`]: how machine-wide operations wait for transitions under way.
//! * [`host`]: what a transition needs from outside.
//!
//! Deterministic and free of I/O: what they do depends on the words and on the host's answers only.
//! The steps, orderings and waits are those of SPEC.md chapter 3.

pub mod controller;
pub mod epoch;
pub mod host;
pub mod thread;
pub mod xics;
pub mod xive;

pub use controller::{Controller, Outcome, Plane};
pub use host::{Host, LockOwner};

/// An input of a level-sensitive source. The source is asserted while any of its inputs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LevelInput {
    /// The VMM's own devices.
    Vmm,
    /// An irqfd with a resamplefd.
    Irqfd,
}
