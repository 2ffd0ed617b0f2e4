//! The daemon's end of the Unix socket.
//!
//! [`socket`] moves whole messages, with their descriptors, in and out of a stream socket and knows nothing else.
//! [`standard`] answers the standard vhost-user requests by an inner `vhost_user_backend::VhostUserDaemon`. The PAPR
//! requests (codes from 0x1000 up) are decoded and executed elsewhere; nothing here looks into their bodies.

pub mod socket;
pub mod standard;
