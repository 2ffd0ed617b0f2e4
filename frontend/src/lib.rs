//! What a VMM links to run its guest's interrupts on papr-intc.

pub mod channel;
pub mod connection;
pub mod epoch;
mod error;
#[cfg(test)]
mod fake_peer;
mod guest_ram;
mod sync;

pub use error::Error;
pub use guest_ram::{GuestRam, Memory};
