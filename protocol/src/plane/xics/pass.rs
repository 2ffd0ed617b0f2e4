//! The pass: what a vCPU does after it made its CPPR less favoured, to find the sources that wait for
//! it. SPEC.md chapter 3, "pass".
//!
//! Sources are met in ascending order, each at most once; a bit set behind the position waits for the
//! next pass. A source that would be refused again is left untouched.

use std::sync::atomic::Ordering::{AcqRel, SeqCst};

use super::icp::presentable;
use super::ics::pending;
use super::index::Walk;
use super::{MASKED, Source, Work, Xics};
use crate::layout::header::{Executor, State};
use crate::layout::words::ics::{REJECTED, priority, server};
use crate::layout::{AtomicWord, Storage};
use crate::plane::{Host, LockOwner};

impl<S: Storage, H: Host> Xics<'_, S, H> {
    /// The pass of a vCPU whose ICP was just swapped.
    #[inline]
    pub(super) fn pass(&self, server: u32) {
        if let Some(walk) = self.walk(server) {
            self.pass_along(walk);
        }
    }

    fn pass_along(self, mut walk: Walk) {
        while let Some(n) = self.next_source(&mut walk) {
            let work = self.meet(n, &mut walk);
            self.settle(work);
        }
    }

    /// What the pass does with one source.
    fn meet(&self, n: Source, walk: &mut Walk) -> Work {
        let source = self.source_word(n);
        for _ in 0..self.attempts() {
            // SeqCst: last load of the opener's half of the look-again pair.
            let word = source.load(SeqCst);
            if !pending(word) {
                return self.forget_stale(n);
            }
            if priority(word) == MASKED {
                // QEMU's loss of a refused MSI that was masked since. AcqRel: any source swap.
                if !self.rules.drop_masked || Self::swap(source, word, word & !REJECTED, AcqRel) {
                    return Work::Done;
                }
                continue;
            }
            if !self.rules.common_root && server(word) != walk.server {
                return Work::Done;
            }
            if presentable(self.icp_now(server(word)), priority(word)) {
                return Work::Take(n);
            }
            self.keep(walk, n);
            return Work::Done;
        }
        Work::Done
    }

    /// Clears a stale bit, and makes up for a source that became pending while it was being cleared:
    /// another pass may have come by in that moment.
    ///
    /// Not in a daemon beside running VMM threads: if it died between the two looks, nobody would
    /// have the second.
    fn forget_stale(&self, n: Source) -> Work {
        let alone = || State::read(self.storage).executor == Executor::Daemon;
        if self.host.lock_owner() != LockOwner::FrontEnd && !alone() {
            return Work::Done;
        }
        self.clear_stale(n);
        // SeqCst: after the clearing, see `clear_stale`.
        let word = self.source_word(n).load(SeqCst);
        self.park(n, word, false)
    }
}
