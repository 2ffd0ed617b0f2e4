//! The daemon's end of the Unix socket.
//!
//! * [`event_loop`]: the one thread that serves.
//! * `connection`: a socket, message by message. `serving`: from a message to its reply. `held`: what
//!   waits for a barrier, and the barrier itself.
//! * [`socket`]: moves whole messages, with their descriptors, in and out of a stream socket. `plain`: in from a
//!   channel that carries no descriptors.
//! * [`standard`]: answers the standard vhost-user requests by an inner
//!   `vhost_user_backend::VhostUserDaemon`.
//! * `transfer`: device state over a descriptor of the front-end.
//! * [`endpoint`]: an inherited descriptor.
//! * [`identity`]: which daemon this is, before a single PAPR message.
//!
//! PAPR requests (codes from 0x1000 up) are executed by [`crate::control`]; nothing here looks into
//! their payloads.

mod connection;
pub mod endpoint;
pub mod event_loop;
mod held;
pub mod identity;
mod irqfds;
pub mod monitor;
mod plain;
mod serving;
pub mod socket;
pub mod standard;
mod token;
mod transfer;
