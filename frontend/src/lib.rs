//! What a VMM links to run its guest's interrupts on papr-intc.

pub mod channel;
pub mod connection;
pub mod epoch;
mod error;
mod event;
#[cfg(test)]
mod fake_peer;
mod guest_ram;
mod host;
mod io_thread;
mod process;
mod sync;

pub use error::Error;
pub use guest_ram::{GuestRam, Memory};
pub use host::{FrontHost, Kick};
pub use process::Launcher;
