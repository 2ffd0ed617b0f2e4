//! Dirty logging, against a memory diff: guests with XIVE queues on real daemons, in every way to run them, while
//! everything changes that can: who executes, where queues are, whether pages are logged, which daemon lives.
//! What differs from the last copy of RAM must be in the set of dirty pages that was taken.
//!
//! * [`walk`]: random steps, one after the other, with an exact check at each look.
//! * [`precopy`]: a migration's loop beside threads that do all of it at once.
//! * [`moved`]: a whole move, to RAM of its own.
//! * [`queues`]: the guest, and the copy of its RAM.

#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

#[path = "lifecycle/bench.rs"]
#[allow(dead_code)] // the lifecycle tests use all of it
mod bench;

#[path = "dirty_log/moved.rs"]
mod moved;
#[path = "dirty_log/precopy.rs"]
mod precopy;
#[path = "dirty_log/queues.rs"]
mod queues;
#[path = "dirty_log/walk.rs"]
mod walk;
