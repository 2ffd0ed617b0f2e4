//! The real daemon by hand: every PAPR message once with good arguments, what it does, and the errors
//! that SPEC.md chapter 1 promises for it.
//!
//! * [`life`]: interrupts from source to vCPU, both controllers, in remote mode.
//! * [`messages`], [`sources`]: each message and its errors. [`hello`]: its versions.
//! * [`channels`]: which channel may carry what. [`barriers`]: CAS, reset, quiesce, disconnect.
//! * [`process`]: command line, signals, front-ends that come and go.

#![allow(clippy::unwrap_used)] // helpers of tests say what they mean with it

#[path = "wire/barriers.rs"]
mod barriers;
#[path = "wire/channels.rs"]
mod channels;
#[path = "harness/mod.rs"]
mod harness;
#[path = "wire/hello.rs"]
mod hello;
#[path = "wire/life.rs"]
mod life;
#[path = "wire/messages.rs"]
mod messages;
#[path = "wire/process.rs"]
mod process;
#[path = "wire/sources.rs"]
mod sources;
