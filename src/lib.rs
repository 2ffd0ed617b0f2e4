//! The daemon: see README.md

pub mod memory;
pub mod papr;
