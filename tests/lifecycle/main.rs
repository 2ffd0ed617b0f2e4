//! The front-end with the real daemon: starting, serving, dying, serving on.
//!
//! What each test promises is its name; all of it goes through the public API of papr-intc-frontend.

#![allow(clippy::unwrap_used)] // tests and their bench say what they mean with unwrap

mod bench;
mod hang;
mod levels;
mod modes;
mod restart;
mod serving;
