//! Words whose accesses are scheduling points, and the run that is under way on them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::panic::resume_unwind;
use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::storage::{AtomicWord, Page, Storage, Table, TableStorage};

/// A word that threads share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Page(Page),
    Table(Table),
    /// Guest memory by address.
    Ram(u64),
    /// A word of the scenario's own.
    User(u32),
    /// 1 after the thread of this number has stopped.
    Stopped(u32),
}

pub const GHOSTS: usize = 16;
pub const LOCALS: usize = 4;
/// Counters of a check.
pub type Ghost = [u64; GHOSTS];

/// What follows an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next one; after the last the thread has finished.
    Next,
    /// The same again.
    Repeat,
    /// The one with this number.
    Goto(u16),
    /// The thread has finished.
    Finish,
}

/// One shared word; see [`word`].
#[derive(Debug)]
pub struct Word {
    pub(super) cell: usize,
    key: Key,
}

/// An access that changed a word.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub thread: usize,
    pub key: Key,
    pub old: u64,
    pub new: u64,
}

/// The storage that the transitions run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory;

/// What an operation gets.
#[derive(Clone, Copy, Debug)]
pub struct Cx;

/// Why a step ended before the operation did.
pub(super) enum Stop {
    /// At the access after the one that the step made.
    Access,
    /// It looked, and goes on waiting.
    Again,
}

/// What is under way on this (real) thread.
#[derive(Default)]
pub(super) struct Run {
    /// `None` while accesses are plain ones (setup).
    pub(super) stepping: bool,
    pub(super) thread: usize,
    pub(super) cells: HashMap<Key, &'static Word>,
    pub(super) keys: Vec<Key>,
    pub(super) constant: Vec<bool>,
    pub(super) memory: Vec<u64>,
    pub(super) history: Vec<u64>,
    pub(super) at: usize,
    pub(super) start: usize,
    /// The step's access: whether it changed anything.
    pub(super) fresh: Option<bool>,
    /// Where in the history the wait under way began its round, and whether it changed memory since.
    pub(super) mark: usize,
    pub(super) dirty: bool,
    pub(super) pauses: u32,
    pub(super) ghost: Ghost,
    pub(super) locals: [u64; LOCALS],
    pub(super) changes: Vec<Change>,
    pub(super) log: Option<String>,
    pub(super) constants: Vec<Key>,
    pub(super) variables: Vec<Key>,
}

thread_local! {
    pub(super) static RUN: RefCell<Run> = RefCell::default();
}

/// The word of a key. Also outside an exploration's steps, in its setup.
pub fn word(key: Key) -> &'static Word {
    RUN.with_borrow_mut(|run| {
        if let Some(known) = run.cells.get(&key) {
            return *known;
        }
        // Leaked: `Storage` hands out references, and a test has a few dozen words.
        let word: &'static Word = Box::leak(Box::new(Word {
            cell: run.keys.len(),
            key,
        }));
        run.cells.insert(key, word);
        run.keys.push(key);
        let table = matches!(key, Key::Table(_));
        let constant = if table {
            !run.variables.contains(&key)
        } else {
            run.constants.contains(&key)
        };
        run.constant.push(constant);
        word
    })
}

impl Run {
    fn cell(&mut self, cell: usize) -> &mut u64 {
        if self.memory.len() <= cell {
            self.memory.resize(cell + 1, 0);
        }
        &mut self.memory[cell]
    }
}

impl Word {
    /// One access: `change` maps the value to a new one, or only reads. Returns the value before.
    fn access(&self, what: &str, change: impl FnOnce(u64) -> Option<u64>) -> u64 {
        if std::thread::panicking() {
            return 0;
        }
        let result = RUN.with_borrow_mut(|run| {
            if !run.stepping {
                let value = *run.cell(self.cell);
                if let Some(new) = change(value) {
                    *run.cell(self.cell) = new;
                }
                return Ok(value);
            }
            if run.constant[self.cell] {
                let value = *run.cell(self.cell);
                if change(value).is_some_and(|new| new != value) {
                    return Err(Some(format!("a store to the constant {:?}", self.key)));
                }
                return Ok(value);
            }
            if run.at < run.history.len() {
                run.at += 1;
                return Ok(run.history[run.at - 1]);
            }
            if run.fresh.is_some() {
                return Err(None);
            }
            let old = *run.cell(self.cell);
            let new = change(old).unwrap_or(old);
            *run.cell(self.cell) = new;
            run.history.push(old);
            run.at += 1;
            run.fresh = Some(new != old);
            run.dirty |= new != old;
            if new != old {
                run.changes.push(Change {
                    thread: run.thread,
                    key: self.key,
                    old,
                    new,
                });
            }
            if let Some(log) = &mut run.log {
                let _ = if new == old {
                    write!(log, "{what} {:?} = {old:#x}", self.key)
                } else {
                    write!(log, "{what} {:?}: {old:#x} -> {new:#x}", self.key)
                };
            }
            Ok(old)
        });
        match result {
            Ok(value) => value,
            Err(None) => resume_unwind(Box::new(Stop::Access)),
            Err(Some(wrong)) => resume_unwind(Box::new(wrong)),
        }
    }
}

impl AtomicWord for Word {
    fn load(&self, _: Ordering) -> u64 {
        self.access("load", |_| None)
    }
    fn store(&self, value: u64, _: Ordering) {
        self.access("store", |_| Some(value));
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        _: Ordering,
        _: Ordering,
    ) -> Result<u64, u64> {
        let old = self.access("cas", |v| (v == current).then_some(new));
        if old == current { Ok(old) } else { Err(old) }
    }
    fn swap(&self, value: u64, _: Ordering) -> u64 {
        self.access("swap", |_| Some(value))
    }
    fn fetch_or(&self, bits: u64, _: Ordering) -> u64 {
        self.access("or", |v| Some(v | bits))
    }
    fn fetch_and(&self, bits: u64, _: Ordering) -> u64 {
        self.access("and", |v| Some(v & bits))
    }
    fn fetch_add(&self, value: u64, _: Ordering) -> u64 {
        self.access("add", |v| Some(v.wrapping_add(value)))
    }
    fn fetch_sub(&self, value: u64, _: Ordering) -> u64 {
        self.access("sub", |v| Some(v.wrapping_sub(value)))
    }
}

impl Storage for Memory {
    type Word = Word;
    fn page(&self, at: Page) -> &Word {
        word(Key::Page(at))
    }
    fn table(&self, at: Table, order: Ordering) -> u64 {
        word(Key::Table(at)).load(order)
    }
    fn fence(&self) {}
    fn fence_everywhere(&self) -> bool {
        true
    }
    /// `spins` is 0 in the first round of a wait, as the plane counts.
    fn relax(&self, spins: u32) {
        let again = RUN.with_borrow_mut(|run| {
            run.pauses += 1;
            assert!(run.pauses < 10_000, "a wait that looks at no variable");
            if !run.stepping || run.fresh.is_none() {
                return false; // setup, or a replay of a round that counted
            }
            if spins == 0 || run.dirty {
                run.mark = run.at;
                run.dirty = false;
                return false;
            }
            true
        });
        if again {
            // A round that only looked is as if it had not been: back to where it began.
            resume_unwind(Box::new(Stop::Again));
        }
    }
}

impl TableStorage for Memory {
    fn table_word(&self, at: Table) -> &Word {
        word(Key::Table(at))
    }
}

impl Cx {
    /// A value that an earlier operation of this thread left.
    pub fn local(&self, i: usize) -> u64 {
        RUN.with_borrow(|run| run.locals[i])
    }
    /// Leaves a value to the operations that follow (kept when this one ends).
    pub fn set_local(&self, i: usize, value: u64) {
        RUN.with_borrow_mut(|run| run.locals[i] = value);
    }
    /// Changes the check's counters, once.
    pub fn ghost(&self, change: impl FnOnce(&mut Ghost)) {
        RUN.with_borrow_mut(|run| {
            if run.fresh.is_some() || run.start == 0 {
                change(&mut run.ghost);
            }
        });
    }
    /// Waits until `done` holds; it makes one access or more.
    pub fn wait(&self, done: impl Fn() -> bool) {
        let mut spins = 0;
        while !done() {
            Memory.relax(spins);
            spins += 1;
        }
    }
}
