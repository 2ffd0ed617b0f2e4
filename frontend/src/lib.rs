//! What a VMM links to run its guest's interrupts on papr-intc.
//!
//! [`Intc::start`] spawns the daemon and keeps one alive; [`Vcpu`] and [`Source`] are what vCPU and
//! device threads call. In mapped mode those calls run the data plane of `papr-intc-protocol` on shared
//! memory, with the VMM's own threads; what configures, and everything in remote mode, is a message to
//! the daemon, which may be away for a while: the caller waits, and its request runs once.
//!
//! | module | subject |
//! |---|---|
//! | [`connection`] | one stream: framing, descriptors |
//! | [`channel`] | a numbered line of requests over all daemons: waiting, replay |
//! | `handshake`, `standard` | what a daemon is told, first or restarted |
//! | `watch` | what ends a session: death, hang-up, silence |
//! | `supervisor`, `backoff`, `process`, `signals` | fence, restart |
//! | `upgrade` | another binary in the place of the one that serves |
//! | `change` | what the VMM is told |
//! | `core` | what all of these share, and the order of locks |
//! | [`epoch`], `host` | what a transition needs of this process |
//! | `shm`, `ram`, `guest_ram` | memory: the controller's, the guest's |
//! | `dirty_log` | pages written while the guest migrates |
//! | `io_thread`, `irqfds`, `event` | irqfds and kicks |
//! | `intc`, `vcpu`, `source` | the handles |
//! | `state` | moving a guest |

// A panic on outside input is a defect of ours; an invariant is stated by `expect`.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod backoff;
mod change;
pub mod channel;
pub mod connection;
mod core;
mod dirty_log;
pub mod epoch;
mod error;
mod event;
#[cfg(test)]
mod fake_peer;
mod fences;
mod guest_ram;
mod handshake;
mod host;
mod intc;
mod io_thread;
mod irqfds;
mod outage;
mod process;
mod ram;
mod shm;
mod signals;
mod source;
mod standard;
mod state;
mod supervisor;
mod sync;
mod upgrade;
mod vcpu;
mod watch;

pub use crate::core::{Absence, Options, WatchLimits};
pub use change::{Change, OnChange, OnThread, Reason};
pub use dirty_log::{DirtyPages, LOG_PAGE};
pub use error::Error;
pub use guest_ram::{GuestRam, Memory};
pub use host::Kick;
pub use intc::Intc;
pub use papr_intc_protocol as protocol;
pub use papr_intc_protocol::layout::header::Executor;
pub use process::Launcher;
pub use ram::{Ram, Region};
pub use source::Source;
pub use upgrade::Upgraded;
pub use vcpu::{TimeBase, Vcpu};

/// The Rust of the guide for VMM authors is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/integrating.md")]
struct Integrating;
