//! The explorer's memory with one step of the protocol left out, to show that the checks can fail.
//!
//! The shipped transitions run unchanged; what is missing is taken from them at the accesses.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::storage::{AtomicWord, Page, Storage, Table};

use crate::explorer::{Key, Memory, Word, word};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    None,
    /// Configuration does not move the tag of the old server's ICP.
    NoTag,
    /// After the index is written, the ICP is taken for closed.
    NoLookAgain,
    /// After a leaf bit was cleared, the source is taken for idle.
    NoSecondLook,
    /// An ICP word is compared, then stored.
    TornSwap,
}

/// What the last access was, within one operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Other,
    Root,
    LeafCleared,
}

thread_local! {
    static WORDS: RefCell<HashMap<(Page, Fault), &'static FaultyWord>> = RefCell::default();
    static LAST: Cell<Last> = const { Cell::new(Last::Other) };
}

/// The storage of one operation.
#[derive(Debug)]
pub struct Faulty(Fault);

impl Faulty {
    pub fn new(fault: Fault) -> Self {
        LAST.set(Last::Other);
        Self(fault)
    }
}

#[derive(Debug)]
pub struct FaultyWord {
    page: Page,
    fault: Fault,
}

impl Storage for Faulty {
    type Word = FaultyWord;

    fn page(&self, at: Page) -> &FaultyWord {
        WORDS.with_borrow_mut(|words| {
            *words.entry((at, self.0)).or_insert_with(|| {
                // Leaked: `Storage` hands out references, and a test has a few dozen words.
                Box::leak(Box::new(FaultyWord {
                    page: at,
                    fault: self.0,
                }))
            })
        })
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

impl FaultyWord {
    fn word(&self) -> &'static Word {
        word(Key::Page(self.page))
    }
    /// Notes the access, and says what the one before it was.
    fn note(&self) -> Last {
        let now = match self.page {
            Page::CommonRoot | Page::PendingRoot(_) => Last::Root,
            _ => Last::Other,
        };
        LAST.replace(now)
    }
}

impl AtomicWord for FaultyWord {
    fn load(&self, order: Ordering) -> u64 {
        let is = |page: fn(&Page) -> bool| page(&self.page);
        match (self.fault, self.note()) {
            (Fault::NoLookAgain, Last::Root) if is(|p| matches!(p, Page::Icp(_))) => 0,
            (Fault::NoSecondLook, Last::LeafCleared) if is(|p| matches!(p, Page::IcsSource(_))) => {
                0
            }
            _ => self.word().load(order),
        }
    }
    fn store(&self, value: u64, order: Ordering) {
        self.note();
        self.word().store(value, order);
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.note();
        if self.fault == Fault::TornSwap && matches!(self.page, Page::Icp(_)) {
            let found = self.word().load(success);
            if found != current {
                return Err(found);
            }
            self.word().store(new, success);
            return Ok(found);
        }
        self.word().compare_exchange(current, new, success, failure)
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.note();
        self.word().swap(value, order)
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.note();
        self.word().fetch_or(bits, order)
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.note();
        if matches!(self.page, Page::PendingLeaf(_)) {
            LAST.set(Last::LeafCleared);
        }
        self.word().fetch_and(bits, order)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.note();
        if self.fault == Fault::NoTag {
            return 0;
        }
        self.word().fetch_add(value, order)
    }
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.note();
        self.word().fetch_sub(value, order)
    }
}
