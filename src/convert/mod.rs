//! Interrupt-controller state of others, from and to the neutral model.
//!
//! * [`qemu`]: sections of a QEMU migration stream.

pub mod qemu;
