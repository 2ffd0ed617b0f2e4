//! Shared words of loom: the shipped transitions under the C11 memory model, every execution up to a
//! bound of preemptions. Used by `loom_xive.rs` and its XICS sibling.
//!
//! ```ignore
//! let executions = executions("trigger against EOI", || {
//!     let storage = LoomStorage::new(&[(Key::Page(Page::Source(1)), 3), (Key::User(0), 0)]);
//!     let other = storage.clone();                    // an Arc inside
//!     let thread = loom::thread::spawn(move || …);
//!     …
//! });
//! ```
//!
//! * A word exists if `new` names it; a `tables` word that it does not name is the constant 0, or what
//!   `with_constant` says. Few words, few accesses: executions grow quickly.
//! * Epochs that `new` does not name are 0: nobody uses them.
//! * `weakened()` turns every ordering into Relaxed: a test shows by it that it can fail
//!   ([`refuted`]).
#![allow(dead_code)] // every test binary uses a part of it

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::sync::atomic::{AtomicU64, Ordering};
use papr_intc_protocol::layout::storage::{AtomicWord, Page, Storage, Table, TableStorage};

/// A word that threads share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Page(Page),
    Table(Table),
    /// Guest memory by address.
    Ram(u64),
    /// A word of the test's own.
    User(u32),
}

/// One word.
#[derive(Debug)]
pub struct Word {
    /// `None`: nobody uses this word, it is 0.
    atomic: Option<AtomicU64>,
    weak: bool,
}

impl Word {
    fn order(&self, order: Ordering) -> Ordering {
        if self.weak { Ordering::Relaxed } else { order }
    }
    fn atomic(&self) -> &AtomicU64 {
        self.atomic.as_ref().expect("nobody changes an unused word")
    }
}

impl AtomicWord for Word {
    fn load(&self, order: Ordering) -> u64 {
        let atomic = self.atomic.as_ref();
        atomic.map_or(0, |a| a.load(self.order(order)))
    }
    fn store(&self, value: u64, order: Ordering) {
        self.atomic().store(value, self.order(order));
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.atomic()
            .compare_exchange(current, new, self.order(success), self.order(failure))
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.atomic().swap(value, self.order(order))
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.atomic().fetch_or(bits, self.order(order))
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.atomic().fetch_and(bits, self.order(order))
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.atomic().fetch_add(value, self.order(order))
    }
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.atomic().fetch_sub(value, self.order(order))
    }
}

/// The words of one execution.
#[derive(Clone, Debug)]
pub struct LoomStorage {
    words: Arc<Vec<(Key, Word)>>,
    constants: Vec<(Table, u64)>,
    idle: Arc<Word>,
    fenced: bool,
}

impl LoomStorage {
    /// These words, with the shipped orderings.
    pub fn new(words: &[(Key, u64)]) -> Self {
        Self::build(words, false)
    }
    /// These words, with every ordering Relaxed if `weak`.
    pub fn build(words: &[(Key, u64)], weak: bool) -> Self {
        let word = |v| Word {
            atomic: Some(AtomicU64::new(v)),
            weak,
        };
        let idle = Word { atomic: None, weak };
        Self {
            words: Arc::new(words.iter().map(|(k, v)| (*k, word(*v))).collect()),
            constants: Vec::new(),
            idle: Arc::new(idle),
            fenced: !weak,
        }
    }
    /// The orderings stay, the explicit fences go.
    pub fn without_fences(mut self) -> Self {
        self.fenced = false;
        self
    }
    /// A `tables` word that no thread writes.
    pub fn with_constant(mut self, at: Table, value: u64) -> Self {
        self.constants.push((at, value));
        self
    }
    /// The word exists as one that threads change.
    pub fn has(&self, key: Key) -> bool {
        self.words.iter().any(|(k, _)| *k == key)
    }
    /// A word by its key.
    pub fn word(&self, key: Key) -> &Word {
        let found = self.words.iter().find(|(k, _)| *k == key);
        &found.unwrap_or_else(|| panic!("no word {key:?}")).1
    }
}

impl Storage for LoomStorage {
    type Word = Word;
    fn page(&self, at: Page) -> &Word {
        match at {
            Page::Epoch(_) | Page::Delivered(_) if !self.has(Key::Page(at)) => &self.idle,
            _ => self.word(Key::Page(at)),
        }
    }
    fn table(&self, at: Table, order: Ordering) -> u64 {
        if self.has(Key::Table(at)) {
            return self.word(Key::Table(at)).load(order);
        }
        let constant = self.constants.iter().find(|(t, _)| *t == at);
        constant.map_or(0, |(_, v)| *v)
    }
    fn fence(&self) {
        if self.fenced {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }
    fn fence_everywhere(&self) -> bool {
        self.fence();
        true
    }
    fn relax(&self, _: u32) {
        loom::thread::yield_now();
    }
}

impl TableStorage for LoomStorage {
    fn table_word(&self, at: Table) -> &Word {
        self.word(Key::Table(at))
    }
}

/// Runs the executions of `model`, first without a bound of preemptions, then with up to three, which
/// makes loom try other orders. Returns how many there were.
pub fn executions(name: &str, model: impl Fn() + Sync + Send + 'static) -> usize {
    let model = Arc::new(model);
    let mut total = 0;
    for preemptions in [None, Some(3)] {
        let count = Arc::new(AtomicUsize::new(0));
        let (counted, model) = (Arc::clone(&count), Arc::clone(&model));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
        let executions = count.load(Ordering::Relaxed);
        println!("{name}: executions={executions} preemptions={preemptions:?}");
        total += executions;
    }
    total
}

/// Expects an execution that fails.
pub fn refuted(name: &str, model: impl Fn() + Sync + Send + 'static) {
    let outcome = catch_unwind(AssertUnwindSafe(|| executions(name, model)));
    assert!(outcome.is_err(), "{name}: no execution fails");
    println!("{name}: refuted");
}
