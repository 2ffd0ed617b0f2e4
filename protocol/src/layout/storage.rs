//! The seam between the data plane and what holds its words.
//!
//! The transitions in [`crate::plane`] are written once, over [`Storage`]. A memory mapping, plain
//! memory, loom's atomics and the explicit-state explorer of `tests/` implement it.
//!
//! Indices are typed by [`Page`] and [`Table`]. They are *validated* values: a caller that took a
//! number from a guest, a message or a shared word has compared it with the
//! [`Geometry`] before it builds one. An index out of range panics (a defect of
//! ours, never memory corruption).

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::geometry::Geometry;

/// One atomic u64, as `std::sync::atomic::AtomicU64` offers it.
pub trait AtomicWord {
    /// Reads the word.
    fn load(&self, order: Ordering) -> u64;
    /// Writes the word.
    fn store(&self, value: u64, order: Ordering);
    /// Replaces `current` by `new`; `Err` holds what was found instead.
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;
    /// Writes the word and returns what it held.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// Sets bits and returns what the word held.
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64;
    /// Keeps bits and returns what the word held.
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64;
    /// Adds (wrapping) and returns what the word held.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// Subtracts (wrapping) and returns what the word held.
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64;
}

/// A word of the zone `pages`: written by the executor, and by the daemon in configuration steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Page {
    /// Run-time words of the VMM, see [`super::words::run`].
    Run(u32),
    /// Epoch of one executing thread: odd while it is inside a transition.
    Epoch(u32),
    /// Interrupts that vCPUs have accepted in the transitions of one executing thread; beside its epoch.
    Delivered(u32),
    /// OS ring of a vCPU, by server number.
    Tima(u32),
    /// ICP of a vCPU, by server number.
    Icp(u32),
    /// Root of the pending index of one vCPU (level `papr-1`).
    PendingRoot(u32),
    /// The common root of the pending index (level `qemu-7.2`).
    CommonRoot,
    /// Word of the middle level of the pending index: one bit per leaf.
    PendingMid(u32),
    /// Leaf of the pending index: one bit per XICS source.
    PendingLeaf(u32),
    /// Cursor of an END, by END index.
    EndCursor(u32),
    /// XIVE source, by LISN.
    Source(u32),
    /// XICS source, by number minus the XICS base.
    IcsSource(u32),
}

/// A word of the zone `tables`: written by the daemon alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Header word, see [`super::header`].
    Header(u32),
    /// Journal word, see [`super::words::journal`].
    Journal(u32),
    /// Word `1` of the reply record of channel `0` (channel 0 is the main socket, server + 1 a vCPU's).
    Reply(u32, u32),
    /// Event assignment of a LISN.
    Eas(u32),
    /// END configuration: END index, slot 0 or 1, word 0 (address) or 1 (everything else).
    EndConfig(u32, u32, u32),
    /// 64 LISNs a word: claimed by the machine.
    Claimed(u32),
    /// 64 LISNs a word: level-sensitive.
    Lsi(u32),
    /// 64 LISNs a word: claimed as an MSI, released by a machine reset.
    Msi(u32),
}

/// Words to run transitions on.
pub trait Storage {
    /// The word type of this storage.
    type Word: AtomicWord;

    /// A word of `pages`.
    fn page(&self, at: Page) -> &Self::Word;

    /// Reads a word of `tables`.
    fn table(&self, at: Table, order: Ordering) -> u64;

    /// `fence(SeqCst)`: the two halves of a store-buffer pattern (Dekker) each have one.
    fn fence(&self);

    /// The fence of a thread that has made its epoch odd and is about to read the state word. May leave the work to
    /// [`fence_everywhere`](Self::fence_everywhere).
    #[inline]
    fn fence_inside(&self) {
        self.fence();
    }

    /// A fence here and of every thread that relies on it in [`fence_inside`](Self::fence_inside), in this process or
    /// another. `false`: it could not be had; to be tried again.
    #[must_use]
    fn fence_everywhere(&self) -> bool;

    /// A fence whose own side has written nothing since its last read-modify-write, which is a fence already on some
    /// machines. It orders what came before that with what comes after.
    #[inline]
    fn fence_after_rmw(&self) {
        self.fence();
    }

    /// Called with a growing count while a transition waits for another thread. Spins, then yields.
    fn relax(&self, spins: u32);
}

/// Words of which `tables` can be written too: what the daemon has.
pub trait TableStorage: Storage {
    /// A word of `tables`.
    fn table_word(&self, at: Table) -> &Self::Word;
}

impl AtomicWord for std::sync::atomic::AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.compare_exchange(current, new, success, failure)
    }
    #[inline]
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.swap(value, order)
    }
    #[inline]
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_or(bits, order)
    }
    #[inline]
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_and(bits, order)
    }
    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
    #[inline]
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_sub(value, order)
    }
}

/// The relax step of every storage that runs on real threads: spin briefly, then give the core away.
#[inline]
pub fn relax_thread(spins: u32) {
    if spins < 64 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

impl<S: Storage> Storage for std::sync::Arc<S> {
    type Word = S::Word;
    #[inline]
    fn page(&self, at: Page) -> &S::Word {
        (**self).page(at)
    }
    #[inline]
    fn table(&self, at: Table, order: Ordering) -> u64 {
        (**self).table(at, order)
    }
    #[inline]
    fn fence(&self) {
        (**self).fence();
    }
    #[inline]
    fn fence_inside(&self) {
        (**self).fence_inside();
    }
    fn fence_everywhere(&self) -> bool {
        (**self).fence_everywhere()
    }
    #[inline]
    fn fence_after_rmw(&self) {
        (**self).fence_after_rmw();
    }
    #[inline]
    fn relax(&self, spins: u32) {
        (**self).relax(spins);
    }
}

impl<S: TableStorage> TableStorage for std::sync::Arc<S> {
    #[inline]
    fn table_word(&self, at: Table) -> &S::Word {
        (**self).table_word(at)
    }
}

/// Words that lie next to each other, for who goes through all of them.
pub trait Contiguous: TableStorage {
    /// So many words of `pages`, of a kind that has a word each: XICS sources, leaves. Of XIVE sources see
    /// [`sources`](Self::sources).
    fn pages(&self, from: Page, count: u32) -> &[Self::Word];
    /// So many words of `tables`, of a kind that has a word each: EAS, bitmaps.
    fn tables(&self, from: Table, count: u32) -> &[Self::Word];

    /// The words of XIVE sources: from a number on, so many that none is beyond a multiple of 4,096.
    #[inline]
    fn sources<'a>(
        &'a self,
        geometry: &'a Geometry,
        numbers: Range<u32>,
    ) -> impl Iterator<Item = &'a Self::Word>
    where
        Self::Word: 'a,
    {
        let block = geometry.block_of(numbers.start);
        let words = self.pages(Page::Source(block.start), block.end - block.start);
        numbers.map(|lisn| &words[geometry.place_in_block(lisn)])
    }
}

impl<S: Contiguous> Contiguous for std::sync::Arc<S> {
    #[inline]
    fn pages(&self, from: Page, count: u32) -> &[S::Word] {
        (**self).pages(from, count)
    }
    #[inline]
    fn tables(&self, from: Table, count: u32) -> &[S::Word] {
        (**self).tables(from, count)
    }
}
