//! The XIVE data plane: source → router → presenter, on shared words.
//!
//! Follows SPEC.md chapter 3 (the steps and orderings of the checked protocol). Each file is one stage:
//!
//! | file | words | who may run it |
//! |---|---|---|
//! | [`source`] | source words: PQ, levels, count of running forwards | the executor |
//! | [`router`] | END cursors, under the END lock; queue entries through the host | the executor |
//! | [`presenter`] | TIMA words | the executor |
//! | [`config`] | EAS, END configuration, LSI bitmap | the daemon alone (`TableStorage`), reads: anyone |
//!
//! The state word (is XIVE active, is the gate open) and the epoch are the caller's business: these
//! transitions run inside both. LISNs, END indices and server numbers handed in are below the
//! geometry's counts, except where a function says that it checks. What is read from a shared word
//! is checked here.
//!
//! Not here: what a daemon that died while it *routed* leaves. One that executes alone leaves nothing
//! (it works on copies, SPEC.md chapter 3, "Commit"); one that routes for an executing front-end may
//! leave an entry written and not passed, and a count of forwards that nobody takes back. Nor parking of a forward whose END lock a stopped daemon holds (the waiter spins and yields), nor
//! resamplefds.

use crate::layout::{AtomicWord, Compat, Geometry, Machine, Storage};
use std::sync::atomic::Ordering;

pub mod config;
pub mod presenter;
pub mod router;
pub mod source;

pub use config::EndView;

/// How often a daemon looks at an END lock (or at a count of forwards) before it gives up.
///
/// A holder keeps the lock for tens of nanoseconds; after the first looks each one yields, so this
/// is long enough for a holder that lost its core, and an end for a VMM that scribbled on the word.
pub const PATIENCE: u32 = 10_000;

/// A lock or a running forward outlasted [`PATIENCE`]. Nothing has changed; the request may be tried
/// again (H_BUSY to a guest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an END lock or a running forward did not go away in time")]
pub struct Busy;

/// The XIVE of one machine, as one executor sees it.
#[derive(Debug)]
pub struct Xive<'a, S, H> {
    storage: &'a S,
    host: &'a H,
    machine: &'a Machine,
    geometry: &'a Geometry,
}

// Not derived: a derive would ask for `S: Copy`.
impl<S, H> Clone for Xive<'_, S, H> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S, H> Copy for Xive<'_, S, H> {}

impl<'a, S, H> Xive<'a, S, H> {
    /// `geometry` is that of `machine`, and `storage` was made for it.
    #[inline]
    pub fn new(storage: &'a S, host: &'a H, machine: &'a Machine, geometry: &'a Geometry) -> Self {
        Self {
            storage,
            host,
            machine,
            geometry,
        }
    }

    /// The machine.
    pub fn machine(&self) -> &'a Machine {
        self.machine
    }

    /// Its sizes.
    pub fn geometry(&self) -> &'a Geometry {
        self.geometry
    }

    /// The machine behaves as QEMU 7.2 to the letter.
    fn as_qemu(&self) -> bool {
        self.machine.compat == Compat::Qemu72
    }
}

impl<S: Storage, H> Xive<'_, S, H> {
    /// Replaces a word by a function of it and returns the old and the new value.
    ///
    /// Writes even what changes nothing: the write is what orders this event before the transition
    /// that consumes the bit that was set already (data-plane N17). AcqRel pairs with itself on the
    /// same word: source words (trigger with EOI) and TIMA words (present with acknowledge).
    #[inline]
    fn update(word: &S::Word, f: impl Fn(u64) -> u64) -> (u64, u64) {
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let new = f(old);
            match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return (old, new),
                Err(found) => old = found,
            }
        }
    }
}

impl<S: Storage, H> Xive<'_, S, H> {
    /// One pause of a wait for another thread; `spins` grows from 0.
    pub fn wait(&self, spins: u32) {
        self.storage.relax(spins);
    }
}

/// The value of a load that reaches nothing: all ones in the width of the access.
#[inline]
fn all_ones(size: u8) -> u64 {
    match size {
        1..=7 => (1 << (u32::from(size) * 8)) - 1,
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests;
