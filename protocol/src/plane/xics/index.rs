//! The pending index: bitmaps that over-approximate the sources a pass must look at, so that a pass
//! never scans all of them. SPEC.md chapter 3, "Pending index".
//!
//! * leaf: 64 sources a word, shared by all vCPUs.
//! * mid: one bit per leaf; only used when there are more than 64 leaves; cleared at reset only.
//! * root: 64 slices of the number space; one word per vCPU (`papr-1`) or one for all (`qemu-7.2`).
//!   A slice is one leaf, or as many mid words as make 64 slices cover all.
//!
//! Bits are set from the leaf up: who finds a root bit finds the leaf's.

use std::sync::atomic::Ordering::{Acquire, SeqCst};

use super::ics::pending;
use super::{Source, Xics};
use crate::layout::words::ics::server;
use crate::layout::{AtomicWord, Page, Storage};
use crate::plane::Host;

/// Bits of a word.
const WORD: u32 = u64::BITS;

/// From position `bit` of a word up.
fn from(bit: u32) -> u64 {
    u64::MAX << bit
}

/// Where a pass is: the next source to look at, and the slices it looks through.
#[derive(Debug)]
pub(super) struct Walk {
    /// The vCPU whose pass it is.
    pub(super) server: u32,
    /// Slices taken from the vCPU's own root; not used with the common root.
    taken: u64,
    /// Of those, the slices whose bit was put back.
    kept: u64,
    /// The smallest source index not yet passed.
    next: u32,
}

impl<S: Storage, H: Host> Xics<'_, S, H> {
    /// Mid words a slice covers; 0: there is no mid level.
    #[inline]
    fn mids_per_slice(&self) -> u32 {
        let leaves = self.geometry.leaves();
        if leaves <= WORD {
            0
        } else {
            leaves.div_ceil(WORD).div_ceil(WORD)
        }
    }

    #[inline]
    fn slice_of(&self, leaf: u32) -> u32 {
        match self.mids_per_slice() {
            0 => leaf,
            mids => leaf / WORD / mids,
        }
    }

    #[inline]
    fn first_leaf_of(&self, slice: u32) -> u32 {
        match self.mids_per_slice() {
            0 => slice,
            mids => slice * mids * WORD,
        }
    }

    /// The root in which `server` looks; `None`: no such server.
    #[inline]
    fn root(&self, server: u32) -> Option<&S::Word> {
        if self.rules.common_root {
            Some(self.storage.page(Page::CommonRoot))
        } else if server < self.geometry.servers() {
            Some(self.storage.page(Page::PendingRoot(server)))
        } else {
            None
        }
    }

    /// Sets a bit, and says whether it was clear. Tested first: most often it is set already, and
    /// then the line is not written.
    #[inline]
    fn set_bit(word: &S::Word, bit: u64) -> bool {
        let clear = word.load(SeqCst) & bit == 0;
        if clear {
            word.fetch_or(bit, SeqCst);
        }
        clear
    }

    /// Makes a source findable by the passes of `server`. The caller has swapped the source word
    /// before, and reads the ICP after.
    pub(super) fn index(&self, n: Source, server: u32) {
        let leaf = n.0 / WORD;
        // Pairs with the fence in `clear_stale`: a leaf bit found set is not cleared by somebody who
        // did not see the source word.
        self.storage.fence_after_rmw();
        Self::set_bit(
            self.storage.page(Page::PendingLeaf(leaf)),
            1 << (n.0 % WORD),
        );
        if self.mids_per_slice() != 0 {
            let mid = self.storage.page(Page::PendingMid(leaf / WORD));
            Self::set_bit(mid, 1 << (leaf % WORD));
        }
        // Pairs with the fence after the root was taken in `walk`: a root bit found set is not taken
        // by a pass that misses the leaf. The ICP's load comes after it too, and pairs with the
        // fence at the start of `walk`.
        self.storage.fence_after_rmw();
        if let Some(root) = self.root(server)
            && Self::set_bit(root, 1 << self.slice_of(leaf))
        {
            // The same pair, for the root bit just set.
            self.storage.fence_after_rmw();
        }
    }

    /// Starts a pass of `server`, whose ICP was just swapped; `None`: nothing waits.
    #[inline]
    pub(super) fn walk(&self, server: u32) -> Option<Walk> {
        let root = self.root(server)?;
        // Opener's half of the look-again pair: ICP swap, fence, root, leaf, source. The giver's:
        // source, leaf, root, fence (`index`), ICP.
        self.storage.fence_after_rmw();
        if root.load(SeqCst) == 0 {
            return None;
        }
        let taken = if self.rules.common_root {
            // Only read: another vCPU's pass would miss a bit taken out even for a moment.
            0
        } else {
            let taken = root.swap(0, SeqCst);
            // Pairs with the fence between leaf and root in `index`.
            self.storage.fence_after_rmw();
            taken
        };
        Some(Walk {
            server,
            taken,
            kept: 0,
            next: 0,
        })
    }

    /// The next source whose bit is set. The words are read again each time: what the pass itself
    /// displaces further on belongs to it.
    pub(super) fn next_source(&self, walk: &mut Walk) -> Option<Source> {
        while walk.next < self.geometry.ics_sources() {
            let slices = if self.rules.common_root {
                self.root(walk.server)?.load(SeqCst)
            } else {
                walk.taken
            };
            let mut leaf = walk.next / WORD;
            let ahead = slices & from(self.slice_of(leaf));
            if ahead == 0 {
                return None;
            }
            leaf = leaf.max(self.first_leaf_of(ahead.trailing_zeros()));
            if leaf >= self.geometry.leaves() {
                return None;
            }
            if self.mids_per_slice() != 0 {
                let mid = self
                    .storage
                    .page(Page::PendingMid(leaf / WORD))
                    .load(SeqCst)
                    & from(leaf % WORD);
                if mid == 0 {
                    walk.next = (leaf / WORD + 1) * WORD * WORD;
                    continue;
                }
                leaf = leaf / WORD * WORD + mid.trailing_zeros();
                if leaf >= self.geometry.leaves() {
                    return None;
                }
            }
            walk.next = walk.next.max(leaf * WORD);
            let bits =
                self.storage.page(Page::PendingLeaf(leaf)).load(SeqCst) & from(walk.next % WORD);
            if bits == 0 {
                walk.next = (leaf + 1) * WORD;
                continue;
            }
            let n = leaf * WORD + bits.trailing_zeros();
            walk.next = n + 1;
            return (n < self.geometry.ics_sources()).then_some(Source(n));
        }
        None
    }

    /// The pass leaves a source waiting: its slice must be looked through again.
    pub(super) fn keep(&self, walk: &mut Walk, n: Source) {
        let bit = 1 << self.slice_of(n.0 / WORD);
        if self.rules.common_root || walk.kept & bit != 0 {
            return;
        }
        if let Some(root) = self.root(walk.server) {
            root.fetch_or(bit, SeqCst);
            walk.kept |= bit;
        }
    }

    /// Clears the leaf bit of a source that a pass found not pending. The caller looks at the source
    /// once more after it.
    pub(super) fn clear_stale(&self, n: Source) {
        self.storage
            .page(Page::PendingLeaf(n.0 / WORD))
            .fetch_and(!(1 << (n.0 % WORD)), SeqCst);
        // Pairs with the first fence in `index`.
        self.storage.fence_after_rmw();
    }

    /// Makes the index anew from the sources. Quiesced; [`evaluate`](Self::evaluate) after it if the vCPUs may
    /// be open.
    pub fn rebuild_index(&self) {
        self.clear_index();
        for leaf in 0..self.geometry.leaves() {
            let first = leaf * WORD;
            let mut waiting = 0;
            for bit in 0..WORD.min(self.geometry.ics_sources() - first) {
                let word = self.source_word(Source(first + bit)).load(Acquire);
                if pending(word) {
                    waiting |= 1 << bit;
                    let root = self.root(server(word));
                    root.map(|root| Self::set_bit(root, 1 << self.slice_of(leaf)));
                }
            }
            if waiting != 0 {
                // SeqCst only for uniformity: the gate is shut.
                self.storage
                    .page(Page::PendingLeaf(leaf))
                    .store(waiting, SeqCst);
                if self.mids_per_slice() != 0 {
                    let mid = self.storage.page(Page::PendingMid(leaf / WORD));
                    Self::set_bit(mid, 1 << (leaf % WORD));
                }
            }
        }
    }

    /// Clears the whole index. Only while nothing else runs.
    pub(super) fn clear_index(&self) {
        let leaves = self.geometry.leaves();
        let mids = if self.mids_per_slice() == 0 {
            0
        } else {
            leaves.div_ceil(WORD)
        };
        let words = (0..leaves)
            .map(Page::PendingLeaf)
            .chain((0..mids).map(Page::PendingMid))
            .chain((0..self.geometry.servers()).map(Page::PendingRoot))
            .chain([Page::CommonRoot]);
        for at in words {
            // SeqCst only for uniformity: the gate is shut.
            self.storage.page(at).store(0, SeqCst);
        }
    }
}
