//! Words and hosts of the gate's explorations, and what a refutation breaks.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::atomic::Ordering::Relaxed;

use papr_intc_protocol::layout::storage::{AtomicWord, Page, Storage, Table, TableStorage};
use papr_intc_protocol::plane::{Host, LockOwner};

use super::{DAEMON, EPOCHS, JOURNAL};
use crate::explorer::{Key, Memory, Word, word};

/// What is wrong with the daemon of a refutation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It works at the gate without waiting for the transitions under way.
    WorkEarly,
    /// It replays without waiting for those who still record.
    ReplayEarly,
    /// `copy_levels` takes its first look for the second.
    CopyOnce,
    /// It replays what was recorded in the words of the active controller.
    OneModeReplayed,
    /// START does not look for the forward of the dead daemon.
    ForwardLeft,
    /// START opens the gate and replays at once.
    StartAtOnce,
}

thread_local! {
    pub(super) static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
    pub(super) static JOURNALS: Cell<bool> = const { Cell::new(false) };
    /// `copy_levels` is under way with [`Fault::CopyOnce`], and the word that it loaded.
    pub(super) static COPYING: Cell<bool> = const { Cell::new(false) };
    pub(super) static LOOKED: Cell<Option<u64>> = const { Cell::new(None) };
    static WORDS: RefCell<HashMap<Key, &'static GateWord>> = RefCell::default();
}

/// The explorer's memory, with the unused epochs as constants that cost nothing.
#[derive(Clone, Copy, Debug)]
pub struct Words;

#[derive(Debug)]
pub enum GateWord {
    Shared(Key),
    Idle,
}

impl GateWord {
    pub(super) fn of(key: Key) -> &'static Self {
        WORDS.with_borrow_mut(|words| {
            // Leaked: `Storage` hands out references, and a test has a few dozen words.
            let new = || Box::leak(Box::new(Self::Shared(key))) as &_;
            *words.entry(key).or_insert_with(new)
        })
    }
    fn word(&self) -> &'static Word {
        match self {
            Self::Shared(key) => word(*key),
            Self::Idle => unreachable!("nobody changes an unused epoch"),
        }
    }
}

impl AtomicWord for GateWord {
    fn load(&self, order: Ordering) -> u64 {
        if matches!(self, Self::Idle) {
            return 0;
        }
        if !COPYING.get() {
            return self.word().load(order);
        }
        let seen = LOOKED.get().unwrap_or_else(|| self.word().load(order));
        LOOKED.set(Some(seen));
        seen
    }
    fn store(&self, value: u64, order: Ordering) {
        self.word().store(value, order);
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.word().compare_exchange(current, new, success, failure)
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.word().swap(value, order)
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.word().fetch_or(bits, order)
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.word().fetch_and(bits, order)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.word().fetch_add(value, order)
    }
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.word().fetch_sub(value, order)
    }
}

impl Storage for Words {
    type Word = GateWord;
    fn page(&self, at: Page) -> &GateWord {
        match at {
            // For people only: counting would make every state a new one.
            Page::Epoch(EPOCHS..) | Page::Delivered(_) => &GateWord::Idle,
            _ => GateWord::of(Key::Page(at)),
        }
    }
    fn table(&self, at: Table, order: Ordering) -> u64 {
        Memory.table(at, order)
    }
    fn fence(&self) {}
    fn fence_everywhere(&self) -> bool {
        true
    }
    fn relax(&self, spins: u32) {
        Memory.relax(spins);
    }
}

impl TableStorage for Words {
    fn table_word(&self, at: Table) -> &GateWord {
        GateWord::of(Key::Table(at))
    }
}

/// An executor: the VMM, or the daemon of a generation.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    Vmm,
    Daemon(u16),
}

impl Host for Who {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        word(Key::Ram(gpa)).store(1 << 32 | u64::from(entry), Relaxed);
        true
    }
    fn kick(&self, _: u32) {}
    fn lock_owner(&self) -> LockOwner {
        match *self {
            Self::Vmm => LockOwner::FrontEnd,
            Self::Daemon(generation) => LockOwner::Daemon {
                generation,
                worker: 0,
            },
        }
    }
    fn is_dead(&self, generation: u16) -> bool {
        match *self {
            // DEAD_GENERATION, which the front-end raises once it has fenced the daemon.
            Self::Vmm => generation == 1 && word(Key::Stopped(DAEMON)).load(Relaxed) != 0,
            Self::Daemon(own) => generation != own,
        }
    }
    fn journal(&self, token: u32, victim: u32) {
        if JOURNALS.get() && matches!(self, Self::Daemon(_)) {
            let line = u64::from(token) | u64::from(victim) << 24;
            word(JOURNAL).store(line, Relaxed);
        }
    }
}
