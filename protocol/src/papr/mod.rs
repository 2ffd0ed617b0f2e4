//! PAPR's numbers, and the calls that any executor can run.
//!
//! * [`codes`]: opcodes and return codes.
//! * [`xive`]: the H_INT_* calls that any executor runs; [`xive_config`]: those of the daemon.

pub mod codes;
pub mod xive;
pub mod xive_config;
