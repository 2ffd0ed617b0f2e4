//! The real daemon by hand: every PAPR message once with good arguments, what it does, and the errors
//! that SPEC.md chapter 1 promises for it.
//!
//! * [`life`]: interrupts from source to vCPU, both controllers, in remote mode.
//! * [`messages`]: each message and its errors. [`channels`]: which channel may carry what.
//! * [`barriers`]: CAS, reset, quiesce, disconnect. [`process`]: command line, signals, sockets.

#![allow(clippy::unwrap_used)]

#[path = "harness/mod.rs"]
mod harness;

#[path = "wire/barriers.rs"]
mod barriers;
#[path = "wire/channels.rs"]
mod channels;
#[path = "wire/life.rs"]
mod life;
#[path = "wire/messages.rs"]
mod messages;
#[path = "wire/process.rs"]
mod process;
