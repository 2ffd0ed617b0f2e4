//! The daemon of papr-intc: an sPAPR interrupt controller in a process of its own.
//!
//! Data flows one way: [`server`] reads messages, [`control`] executes them on the shared memory of
//! [`memory`], [`papr`] knows what firmware and guest see of the choice between the controllers.
//! The data plane is in the crate `papr-intc-protocol`, where VMMs find it too.
//!
//! [`cli`] is the command line; [`daemon`] puts the parts together, for `main.rs` and for any other binary
//! with versions of its own.

// A panic on outside input is a defect of ours; an invariant is stated by `expect`.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod cli;
pub mod control;
pub mod convert;
pub mod daemon;
pub mod log_limit;
pub mod memory;
pub mod monitor;
pub mod papr;
pub mod server;

/// Name and version, for people.
pub const BUILD: &str = concat!("papr-intc ", env!("CARGO_PKG_VERSION"));
