//! `papr-intc status` and `papr-intc query`: what somebody finds out from outside, at 3 a.m.
//!
//! * [`command`]: the two command lines and their exit codes (docs/operating.md).
//! * [`ask`]: QUERY over the monitor socket.
//! * [`find`]: the memfd of a VMM and the process of its daemon, through /proc; works while the daemon is
//!   dead or hung.
//! * [`decode`]: from shared words to a JSON object; the daemon's own QUERY STATUS uses it too.
//! * [`report`]: that object for people.
//!
//! Nothing here writes anything but to stdout and stderr.

pub mod ask;
pub mod command;
pub mod decode;
pub mod find;
pub mod report;
