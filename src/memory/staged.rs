//! Words of which a daemon that executes alone changes a copy first (SPEC.md chapter 3, "Commit").
//!
//! Between [`Staged::begin`] and [`Staged::end`] every page word that a transition touches, and every
//! table word that it may change, is a copy of ours: nothing reaches the shared memory, which stays as
//! it was if we die. What has changed is then committed through the journal (`control::exact`).
//!
//! Only while nobody else changes these words: the executor is the daemon. One thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::{AtomicWord, Page, Storage, Table, TableStorage};

/// Words that one transition may touch. Further ones are changed in place: not crash-exact, but only
/// a call that resets or looks through whole tables gets there.
const SLOTS: usize = 1024;

/// A word of either zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Of `pages`.
    Page(Page),
    /// Of `tables`.
    Table(Table),
}

/// The copies: which words, and what they held.
#[derive(Default)]
struct Copies {
    words: Vec<(At, u64)>,
    index: HashMap<At, usize, BuildHasherDefault<Quick>>,
}

/// A multiplication for each part of a key: a transition looks at some twenty words. Keys are of words that exist, and
/// at most [`SLOTS`] of them are kept, whoever chooses them.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }
    fn write_u32(&mut self, part: u32) {
        self.write_u64(part.into());
    }
    fn write_isize(&mut self, part: isize) {
        self.write_u64(part as u64);
    }
    fn write_u64(&mut self, part: u64) {
        // An odd constant without a pattern; the rotation lets the next part meet the high bits of this one.
        self.0 = (self.0 ^ part)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Shared words with a stage before them.
pub struct Staged<S: Storage> {
    inner: S,
    slots: Box<[S::Word]>,
    copies: RefCell<Copies>,
    active: Cell<bool>,
}

impl<S: TableStorage> Staged<S>
where
    S::Word: From<u64>,
{
    /// The words of `inner`.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            slots: (0..SLOTS).map(|_| S::Word::from(0)).collect(),
            copies: RefCell::default(),
            active: Cell::new(false),
        }
    }

    /// The shared words themselves.
    pub fn shared(&self) -> &S {
        &self.inner
    }

    /// A shared word itself.
    pub fn direct(&self, at: At) -> &S::Word {
        match at {
            At::Page(page) => self.inner.page(page),
            At::Table(table) => self.inner.table_word(table),
        }
    }

    /// From now on changes go to copies.
    pub fn begin(&self) {
        self.active.set(true);
    }

    /// Changes go to copies.
    pub fn is_active(&self) -> bool {
        self.active.get()
    }

    /// From now on changes go to the shared words again. Returns what the copies changed, in the order
    /// in which the words were touched first; nothing of it has been stored.
    pub fn end(&self) -> Vec<(At, u64)> {
        self.active.set(false);
        let mut copies = self.copies.borrow_mut();
        copies.index.clear();
        // Relaxed: copies are our own thread's.
        let now = |i: usize| self.slots[i].load(Ordering::Relaxed);
        let mut changes = Vec::with_capacity(copies.words.len());
        let words = copies.words.drain(..).enumerate();
        let changed = words.filter(|(i, (_, was))| now(*i) != *was);
        changes.extend(changed.map(|(i, (at, _))| (at, now(i))));
        changes
    }

    /// The word to work on.
    fn word(&self, at: At) -> &S::Word {
        if !self.active.get() {
            return self.direct(at);
        }
        let mut copies = self.copies.borrow_mut();
        if let Some(i) = copies.index.get(&at) {
            return &self.slots[*i];
        }
        let (i, direct) = (copies.words.len(), self.direct(at));
        let Some(slot) = self.slots.get(i) else {
            return direct;
        };
        // Acquire: uniform; nobody else changes the words meanwhile. Relaxed: our own copy.
        let value = direct.load(Ordering::Acquire);
        slot.store(value, Ordering::Relaxed);
        copies.words.push((at, value));
        copies.index.insert(at, i);
        slot
    }
}

impl<S: TableStorage> Storage for Staged<S>
where
    S::Word: From<u64>,
{
    type Word = S::Word;

    fn page(&self, at: Page) -> &S::Word {
        self.word(At::Page(at))
    }

    fn table(&self, at: Table, order: Ordering) -> u64 {
        if self.active.get()
            && let Some(i) = self.copies.borrow().index.get(&At::Table(at))
        {
            return self.slots[*i].load(order);
        }
        self.inner.table(at, order)
    }

    fn fence(&self) {
        self.inner.fence();
    }

    fn fence_everywhere(&self) -> bool {
        self.inner.fence_everywhere()
    }

    fn relax(&self, spins: u32) {
        self.inner.relax(spins);
    }
}

impl<S: TableStorage> TableStorage for Staged<S>
where
    S::Word: From<u64>,
{
    fn table_word(&self, at: Table) -> &S::Word {
        self.word(At::Table(at))
    }
}

#[cfg(test)]
mod tests {
    use papr_intc_protocol::layout::Geometry;
    use papr_intc_protocol::layout::plain::PlainStorage;

    use super::*;

    const SOURCE: Page = Page::Source(20);

    fn staged() -> Staged<PlainStorage> {
        Staged::new(PlainStorage::new(Geometry::new(64, 16, 2).unwrap()))
    }

    fn shared(s: &Staged<PlainStorage>, at: Page) -> u64 {
        s.shared().page(at).load(Ordering::Relaxed)
    }

    #[test]
    fn nothing_reaches_the_shared_words_before_the_end() {
        let s = staged();
        s.begin();
        s.page(SOURCE).store(5, Ordering::Relaxed);
        s.table_word(Table::Eas(3)).store(7, Ordering::Relaxed);
        s.page(Page::Icp(1)).load(Ordering::Relaxed);
        assert_eq!(s.page(SOURCE).fetch_add(1, Ordering::Relaxed), 5);
        assert_eq!(s.table(Table::Eas(3), Ordering::Relaxed), 7);
        assert_eq!(shared(&s, SOURCE), 0);
        let changed = [(At::Page(SOURCE), 6), (At::Table(Table::Eas(3)), 7)];
        assert_eq!(s.end(), changed);
        assert_eq!(shared(&s, SOURCE), 0);
    }

    #[test]
    fn outside_of_a_stage_words_are_the_shared_ones() {
        let s = staged();
        s.begin();
        s.page(SOURCE).store(5, Ordering::Relaxed);
        s.end();
        s.page(SOURCE).store(9, Ordering::Relaxed);
        assert_eq!(shared(&s, SOURCE), 9);
        s.begin();
        assert_eq!(s.page(SOURCE).load(Ordering::Relaxed), 9);
        assert_eq!(s.end(), []);
    }
}
