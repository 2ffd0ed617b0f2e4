//! The daemon's end of the Unix socket.
//!
//! * [`event_loop`]: the one thread that serves.
//! * [`socket`]: moves whole messages, with their descriptors, in and out of a stream socket.
//! * [`standard`]: answers the standard vhost-user requests by an inner
//!   `vhost_user_backend::VhostUserDaemon`.
//! * [`endpoint`]: an inherited descriptor.
//! * [`identity`]: which daemon this is, before a single PAPR message.
//!
//! PAPR requests (codes from 0x1000 up) are executed by [`crate::control`]; nothing here looks into
//! their payloads.

pub mod endpoint;
pub mod event_loop;
pub mod identity;
mod irqfds;
pub mod monitor;
pub mod socket;
pub mod standard;
mod token;
