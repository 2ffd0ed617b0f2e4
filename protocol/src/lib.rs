//! Everything two processes of papr-intc must agree on.
//!
//! | module | what it fixes |
//! |---|---|
//! | [`wire`] | the messages on the socket |
//! | [`layout`] | the words in shared memory and where they are |
//! | [`plane`] | the transitions on those words: XIVE and XICS, run by the VMM's threads or by the daemon |
//! | [`state`] | the state of a guest that moves: what it holds, how it is written, who may take it |
//! | [`versions`] | what builds compare before they work together |
//! | [`papr`] | hcall and RTAS numbers, and the calls that any executor can run |
//!
//! `SPEC.md` beside this crate is the text of the same agreement. No I/O happens here, and nothing
//! but [`layout::mapped`] knows that the words live in a memory mapping.

// A panic on outside input is a defect of ours; an invariant is stated by `expect`.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod layout;
pub mod papr;
pub mod plane;
pub mod state;
pub mod versions;
pub mod wire;

pub use versions::Versions;

/// Version of the messages (SPEC.md chapter 1). Negotiated by HELLO.
pub const PROTOCOL_VERSION: u16 = 1;
/// Version of the shared-memory offsets (SPEC.md chapter 2) that new memory has.
pub const LAYOUT_VERSION: u16 = 2;
/// Lowest layout whose memory is still understood.
pub const LAYOUT_MIN: u16 = 1;
/// Version of the meaning of every shared bit and of the order of transitions (SPEC.md chapter 3).
pub const PLANE_ABI: u16 = 1;
