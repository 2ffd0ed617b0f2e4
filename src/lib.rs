//! The daemon: see README.md

pub mod control;
pub mod memory;
pub mod papr;
