//! The state of a guest's interrupt controllers, as it moves between daemons, hosts and versions
//! (SPEC.md chapter 6).
//!
//! | module | what |
//! |---|---|
//! | [`model`] | what the state holds, as plain values; nothing of any memory layout |
//! | [`validate`] | which values make sense together |
//! | [`caps`] | compat levels and capabilities: who may take whose state |
//! | `columns`, `sources`, [`stream`] | how it is written: framed sections with a checksum, by `state.proto` |
//! | [`incoming`] | how it is read, and checked as a whole |
//! | `blocks` | 64 sources at a time: what is fast where there are a million |
//! | [`words`] | from and to the shared words of a machine at a latched gate |
//!
//! Derived state is not here: lines, the pending index, which ICP holds a source. It is made anew when
//! a state is loaded.

mod blocks;
pub mod caps;
mod columns;
pub mod incoming;
pub mod model;
#[cfg(test)]
pub(crate) mod random;
mod sources;
pub mod stream;
pub mod validate;
pub mod words;

pub use caps::Mismatch;
pub use incoming::Incoming;
pub use model::State;
pub use prost::bytes::Bytes;
pub use stream::StreamError;
