//! papr-intc's front-end for VMMs in C and C++: `papr_intc_frontend` behind the header `include/papr_intc.h`,
//! which is made of this crate's sources (cbindgen.toml).
//!
//! Types say what they can: a pointer that may be NULL is an `Option` of a reference, a result is a reference to
//! what is not initialised yet. What they cannot say (strings, arrays, structs of another version's size) is
//! read in [`pointers`]. Every function runs in [`boundary::call`].
//!
//! | module | subject |
//! |---|---|
//! | [`boundary`] | errors, panics, calls from where none may come |
//! | [`pointers`], [`buffer`] | what C hands in, and what it is handed |
//! | [`types`] | structs and constants |
//! | [`callbacks`], [`memory`] | the VMM's functions and its RAM |
//! | [`start`], [`machine`], [`source`], [`vcpu`], [`state`] | the calls |
//! | [`line`](mod@line) | a vCPU's line, given to the VMM |
//! | [`logging`] | where messages go |

#![cfg_attr(not(test), warn(clippy::unwrap_used))]
// The header's comments are for C; they say of all pointers at once what they must be.
#![allow(clippy::missing_safety_doc)]

pub mod callbacks;
pub mod line;
pub mod memory;
pub mod pointers;

// The header has what follows, in this order (and rustfmt orders what is not kept apart).
pub mod types;

pub mod start;

pub mod boundary;

pub mod logging;

pub mod vcpu;

pub mod source;

pub mod machine;

pub mod state;

pub mod buffer;
