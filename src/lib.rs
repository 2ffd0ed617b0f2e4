//! (skeleton)
pub mod server;
