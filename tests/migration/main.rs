//! A guest moves from one daemon to another: all of its interrupts arrive, or the move is refused and both
//! sides are as they were.
//!
//! What each test promises is its name; all of it goes through the public API of papr-intc-frontend.

#![allow(clippy::unwrap_used)] // tests and their bench say what they mean with unwrap

#[allow(dead_code)] // the bench is shared with tests/lifecycle
#[path = "../lifecycle/bench.rs"]
mod bench;
mod damage;
mod guest;
mod hostile;
mod interrupted;
mod pending;
mod refusals;
