//! An explicit-state explorer: every interleaving, at single shared accesses, of a few threads that
//! run the shipped transitions.
//!
//! [`Memory`] is a `Storage` in which each atomic access is a scheduling point. A *thread* is a list
//! of *operations*, deterministic closures. One *step* of a thread re-runs its current operation from
//! the start, feeds it the results of the accesses it has made, executes one further access on the
//! real memory, and unwinds at the next. States (memory, histories, locals, ghosts) are kept in a
//! visited set and searched to the end.
//!
//! How to use it (see `explore_xive.rs`):
//!
//! ```ignore
//! Scenario::new("two triggers")
//!     .setup(|| { plane functions on &Memory: plain accesses before the threads start })
//!     .var(Key::Table(Table::Eas(1)))        // a `tables` word that a thread will store to
//!     .thread(Thread::new("vmm").op("trigger", |cx| { xive().trigger(1); Then::Next }))
//!     .thread(Thread::new("guest").background().op("loop", |cx| { …; Then::Repeat }))
//!     .observer(|ghost, change| { … })       // at every access that changed a word
//!     .invariant(|s| Ok(()))                 // in every state
//!     .at_rest(|s| Ok(()))                   // where nobody can go on
//!     .explore();                            // panics with the trace of a violation; or .refute()
//! ```
//!
//! * Words: [`Key::Page`], [`Key::Table`], [`Key::Ram`] (queue entries, written by the test's `Host`
//!   through [`word`]) and [`Key::User`] (whatever else threads share: lines, kicks, device data).
//!   `tables` words are constants, and no scheduling points, unless declared with `var`; a store to a
//!   constant is a violation. `Page`, `Ram` and `User` words are variables unless `fix`ed.
//! * Waiting: `storage.relax()` after an access that changed nothing blocks the thread until that
//!   access would see another value. A loop that waits must call it; a loop that never ends must end
//!   its rounds by `Then::Repeat`, so that the history does not grow.
//! * An unfinished `background` thread may be blocked at rest; any other is a deadlock. A state from
//!   which no rest can be reached is a livelock. Both are violations, like panics and failed checks.
//! * `cx.local(i)`, `cx.set_local(i, v)`: values that outlive an operation. `cx.ghost(|g| …)`: counts
//!   that belong to the check; run once, atomically with the access before (at the start of an
//!   operation: with its first one).
//! * `may_stop(thread)`: that thread may stop for ever at any point, in the middle of an operation;
//!   [`Key::Stopped`] becomes 1.
//! * The search is sequentially consistent: orderings are loom's business (`loom_*.rs`).
#![allow(dead_code)] // every test binary uses a part of it

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
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
    cell: usize,
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
enum Stop {
    /// At the access after the one that the step made.
    Access,
    /// It waits.
    Blocked,
}

type Operation = Box<dyn Fn(&Cx) -> Then>;
type Observer = Box<dyn Fn(&mut Ghost, Change)>;
type Check = Box<dyn Fn(&Snapshot<'_>) -> Result<(), String>>;

/// What is under way on this (real) thread.
#[derive(Default)]
struct Run {
    /// `None` while accesses are plain ones (setup).
    stepping: bool,
    thread: usize,
    cells: HashMap<Key, &'static Word>,
    keys: Vec<Key>,
    constant: Vec<bool>,
    memory: Vec<u64>,
    history: Vec<u64>,
    at: usize,
    start: usize,
    /// The step's access: whether it changed anything.
    fresh: Option<bool>,
    pauses: u32,
    ghost: Ghost,
    locals: [u64; LOCALS],
    changes: Vec<Change>,
    log: Option<String>,
    constants: Vec<Key>,
    variables: Vec<Key>,
}

thread_local! {
    static RUN: RefCell<Run> = RefCell::default();
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
    fn relax(&self, _: u32) {
        let blocked = RUN.with_borrow_mut(|run| {
            run.pauses += 1;
            assert!(run.pauses < 10_000, "a wait that looks at no variable");
            run.stepping && run.fresh == Some(false)
        });
        if blocked {
            resume_unwind(Box::new(Stop::Blocked));
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
        while !done() {
            Memory.relax(0);
        }
    }
}

/// A state, to be judged.
pub struct Snapshot<'a> {
    pub ghost: &'a Ghost,
    state: &'a State,
}

impl Snapshot<'_> {
    /// The value of a word.
    pub fn get(&self, key: Key) -> u64 {
        let cell = word(key).cell;
        self.state.memory.get(cell).copied().unwrap_or(0)
    }
    /// The thread has no operation left.
    pub fn finished(&self, thread: usize) -> bool {
        self.state.threads[thread].op.is_none()
    }
}

/// Where a thread is.
#[derive(Clone, PartialEq, Eq, Hash)]
struct At {
    op: Option<u16>,
    stopped: bool,
    history: Vec<u64>,
    locals: [u64; LOCALS],
}

#[derive(Clone)]
struct State {
    memory: Vec<u64>,
    ghost: Ghost,
    threads: Vec<At>,
}

/// Two independent 64-bit lanes: states are known by 128 bits of hash.
struct Lanes(u64, u64);
impl Hasher for Lanes {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let a = u128::from(self.0 ^ v) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (a >> 64) as u64 ^ a as u64;
        let b = (self.1.rotate_left(23) ^ v.wrapping_mul(0xd6e8_feb8_6659_fd93))
            .wrapping_mul(0xa24b_aed4_963e_e407);
        self.1 = b ^ b >> 29;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// The visited set's keys are hashes already.
#[derive(Default)]
struct Already(u64);
impl Hasher for Already {
    fn write(&mut self, _: &[u8]) {}
    fn write_u128(&mut self, v: u128) {
        self.0 = v as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

impl State {
    fn key(&self) -> u128 {
        let mut lanes = Lanes(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);
        // Words that were never touched are zero, whether or not the vector reaches them.
        let used = self
            .memory
            .iter()
            .rposition(|v| *v != 0)
            .map_or(0, |i| i + 1);
        self.memory[..used].hash(&mut lanes);
        self.ghost.hash(&mut lanes);
        self.threads.hash(&mut lanes);
        u128::from(lanes.0) << 64 | u128::from(lanes.1)
    }
}

/// A thread of a scenario.
pub struct Thread {
    name: &'static str,
    background: bool,
    may_stop: bool,
    operations: Vec<(&'static str, Operation)>,
}

impl Thread {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            background: false,
            may_stop: false,
            operations: Vec::new(),
        }
    }
    /// It may wait for ever once the others are done.
    pub fn background(mut self) -> Self {
        self.background = true;
        self
    }
    /// It may stop for ever at any point.
    pub fn may_stop(mut self) -> Self {
        self.may_stop = true;
        self
    }
    /// Adds an operation.
    pub fn op(mut self, name: &'static str, operation: impl Fn(&Cx) -> Then + 'static) -> Self {
        self.operations.push((name, Box::new(operation)));
        self
    }
}

/// What an exploration found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub states: usize,
    pub steps: usize,
    pub rests: usize,
}

/// A check of some threads against some properties.
pub struct Scenario {
    name: String,
    setup: Box<dyn Fn()>,
    constants: Vec<Key>,
    variables: Vec<Key>,
    threads: Vec<Thread>,
    observer: Observer,
    invariant: Check,
    at_rest: Check,
    breadth_first: bool,
    limit: usize,
}

enum Stepped {
    To(State),
    Blocked,
    Violation(String),
}

struct Violation {
    why: String,
    trace: String,
}

impl Scenario {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            setup: Box::new(|| ()),
            constants: Vec::new(),
            variables: Vec::new(),
            threads: Vec::new(),
            observer: Box::new(|_, _| ()),
            invariant: Box::new(|_| Ok(())),
            at_rest: Box::new(|_| Ok(())),
            breadth_first: false,
            limit: 50_000_000,
        }
    }
    /// Runs before the threads start; its accesses are plain.
    pub fn setup(mut self, setup: impl Fn() + 'static) -> Self {
        self.setup = Box::new(setup);
        self
    }
    /// A word of `tables` that a thread stores to.
    pub fn var(mut self, key: Key) -> Self {
        self.variables.push(key);
        self
    }
    /// A word that no thread changes: its loads are no scheduling points.
    pub fn fix(mut self, key: Key) -> Self {
        self.constants.push(key);
        self
    }
    pub fn thread(mut self, thread: Thread) -> Self {
        self.threads.push(thread);
        self
    }
    /// Called at every access that changed a word, atomically with it.
    pub fn observer(mut self, observer: impl Fn(&mut Ghost, Change) + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }
    /// Must hold in every state.
    pub fn invariant(
        mut self,
        check: impl Fn(&Snapshot<'_>) -> Result<(), String> + 'static,
    ) -> Self {
        self.invariant = Box::new(check);
        self
    }
    /// Must hold where no thread can go on.
    pub fn at_rest(
        mut self,
        check: impl Fn(&Snapshot<'_>) -> Result<(), String> + 'static,
    ) -> Self {
        self.at_rest = Box::new(check);
        self
    }
    /// Shortest traces, at the price of memory.
    pub fn breadth_first(mut self) -> Self {
        self.breadth_first = true;
        self
    }
    /// Most states; more are a failure of the check.
    pub fn limit(mut self, states: usize) -> Self {
        self.limit = states;
        self
    }

    /// Searches to the end. Prints what it did; panics with the trace of a violation.
    pub fn explore(self) -> Report {
        let name = self.name.clone();
        match self.search() {
            Ok(report) => {
                println!(
                    "explored {name}: states={} steps={} rests={}",
                    report.states, report.steps, report.rests
                );
                report
            }
            Err(v) => panic!("{name}: {}\n{}", v.why, v.trace),
        }
    }

    /// Expects a violation, and returns what is wrong.
    pub fn refute(self) -> String {
        let name = self.name.clone();
        match self.search() {
            Ok(report) => panic!("{name}: {} states without a violation", report.states),
            Err(v) => {
                println!("refuted {name}: {}\n{}", v.why, v.trace);
                v.why
            }
        }
    }

    fn initial(&self) -> State {
        RUN.with_borrow_mut(|run| {
            *run = Run {
                constants: self.constants.clone(),
                variables: self.variables.clone(),
                ..Run::default()
            };
        });
        (self.setup)();
        let memory = RUN.with_borrow_mut(|run| {
            run.stepping = true;
            std::mem::take(&mut run.memory)
        });
        let at = |t: &Thread| At {
            op: (!t.operations.is_empty()).then_some(0),
            stopped: false,
            history: Vec::new(),
            locals: [0; LOCALS],
        };
        State {
            memory,
            ghost: [0; GHOSTS],
            threads: self.threads.iter().map(at).collect(),
        }
    }

    /// One step of thread `t`.
    fn step(&self, state: &State, t: usize, log: Option<&mut String>) -> Stepped {
        let at = &state.threads[t];
        let Some(op) = at.op else {
            return Stepped::Blocked;
        };
        let (name, operation) = &self.threads[t].operations[usize::from(op)];
        let logging = log.is_some();
        RUN.with_borrow_mut(|run| {
            run.thread = t;
            run.memory.clone_from(&state.memory);
            run.history.clone_from(&at.history);
            run.at = 0;
            run.start = at.history.len();
            run.fresh = None;
            run.pauses = 0;
            run.ghost = state.ghost;
            run.locals = at.locals;
            run.changes.clear();
            run.log = logging.then(String::new);
        });
        let ended = catch_unwind(AssertUnwindSafe(|| operation(&Cx)));
        RUN.with_borrow_mut(|run| {
            for change in std::mem::take(&mut run.changes) {
                let mut ghost = run.ghost;
                let judged = catch_unwind(AssertUnwindSafe(|| (self.observer)(&mut ghost, change)));
                run.ghost = ghost;
                if let Err(payload) = judged {
                    return Stepped::Violation(message(payload.as_ref()));
                }
            }
            if let (Some(out), Some(text)) = (log, run.log.take()) {
                let _ = writeln!(out, "  {:10} {name}: {text}", self.threads[t].name);
            }
            let mut next = State {
                memory: std::mem::take(&mut run.memory),
                ghost: run.ghost,
                threads: state.threads.clone(),
            };
            let thread = &mut next.threads[t];
            match ended {
                Ok(then) => {
                    let count = self.threads[t].operations.len() as u16;
                    thread.op = match then {
                        Then::Next => (op + 1 < count).then_some(op + 1),
                        Then::Repeat => Some(op),
                        Then::Goto(other) => Some(other),
                        Then::Finish => None,
                    };
                    thread.history = Vec::new();
                    thread.locals = run.locals;
                    Stepped::To(next)
                }
                Err(payload) => match payload.downcast_ref::<Stop>() {
                    Some(Stop::Access) => {
                        thread.history.clone_from(&run.history);
                        Stepped::To(next)
                    }
                    Some(Stop::Blocked) => Stepped::Blocked,
                    None => Stepped::Violation(message(payload.as_ref())),
                },
            }
        })
    }

    /// Thread `t` stops for ever.
    fn stop(&self, state: &State, t: usize) -> Option<State> {
        let at = &state.threads[t];
        if !self.threads[t].may_stop || at.op.is_none() {
            return None;
        }
        let mut next = state.clone();
        next.threads[t] = At {
            op: None,
            stopped: true,
            history: Vec::new(),
            locals: [0; LOCALS],
        };
        let cell = word(Key::Stopped(t as u32)).cell;
        if next.memory.len() <= cell {
            next.memory.resize(cell + 1, 0);
        }
        next.memory[cell] = 1;
        Some(next)
    }

    fn search(&self) -> Result<Report, Violation> {
        type Set = HashMap<u128, u32, BuildHasherDefault<Already>>;
        let mut visited: Set = HashMap::default();
        let mut parents: Vec<(u32, u8)> = vec![(u32::MAX, 0)];
        let mut edges: Vec<(u32, u32)> = Vec::new();
        let mut rests: Vec<u32> = Vec::new();
        let mut steps = 0;
        let first = self.initial();
        visited.insert(first.key(), 0);
        let mut open = std::collections::VecDeque::from([(0u32, first)]);
        while let Some((id, state)) = if self.breadth_first {
            open.pop_front()
        } else {
            open.pop_back()
        } {
            let seen = Snapshot {
                ghost: &state.ghost,
                state: &state,
            };
            if let Err(why) = (self.invariant)(&seen) {
                return Err(self.violation(why, &parents, id, None));
            }
            let mut moved = false;
            for t in 0..self.threads.len() {
                let stepped = match self.step(&state, t, None) {
                    Stepped::To(next) => Some((next, t as u8)),
                    Stepped::Blocked => None,
                    Stepped::Violation(why) => {
                        return Err(self.violation(why, &parents, id, Some(t)));
                    }
                };
                moved |= stepped.is_some();
                let stopped = self.stop(&state, t).map(|next| (next, t as u8 | 0x80));
                for (next, by) in stepped.into_iter().chain(stopped) {
                    steps += 1;
                    let fresh = parents.len() as u32;
                    let to = *visited.entry(next.key()).or_insert(fresh);
                    edges.push((to, id));
                    if to == fresh {
                        parents.push((id, by));
                        open.push_back((fresh, next));
                    }
                }
            }
            if !moved {
                let waits =
                    |t: &usize| state.threads[*t].op.is_some() && !self.threads[*t].background;
                if let Some(t) = (0..self.threads.len()).find(waits) {
                    let why = format!("deadlock: {} waits for ever", self.threads[t].name);
                    return Err(self.violation(why, &parents, id, None));
                }
                if let Err(why) = (self.at_rest)(&seen) {
                    let why = format!("at rest: {why}");
                    return Err(self.violation(why, &parents, id, None));
                }
                rests.push(id);
            }
            if parents.len() > self.limit {
                let why = format!("more than {} states", self.limit);
                return Err(self.violation(why, &parents, id, None));
            }
        }
        let report = Report {
            states: parents.len(),
            steps,
            rests: rests.len(),
        };
        match livelock(edges, &rests, parents.len()) {
            Some(id) => Err(self.violation(
                "livelock: no rest can be reached".into(),
                &parents,
                id,
                None,
            )),
            None => Ok(report),
        }
    }

    /// The way to state `id`, and one more step of `last`.
    fn violation(
        &self,
        why: String,
        parents: &[(u32, u8)],
        id: u32,
        last: Option<usize>,
    ) -> Violation {
        let mut way: Vec<u8> = last.iter().map(|t| *t as u8).collect();
        let mut at = id;
        while parents[at as usize].0 != u32::MAX {
            way.push(parents[at as usize].1);
            at = parents[at as usize].0;
        }
        let mut trace = String::new();
        let mut state = self.initial();
        for by in way.into_iter().rev() {
            let t = usize::from(by & 0x7f);
            if by & 0x80 != 0 {
                let _ = writeln!(trace, "  {:10} stops for ever", self.threads[t].name);
                state = self.stop(&state, t).expect("it stopped before");
            } else {
                match self.step(&state, t, Some(&mut trace)) {
                    Stepped::To(next) => state = next,
                    Stepped::Violation(_) | Stepped::Blocked => break,
                }
            }
        }
        Violation { why, trace }
    }
}

/// A state from which no rest can be reached. Edges are (to, from).
fn livelock(mut edges: Vec<(u32, u32)>, rests: &[u32], states: usize) -> Option<u32> {
    edges.sort_unstable();
    let mut reaches = vec![false; states];
    let mut open: Vec<u32> = rests.to_vec();
    for id in rests {
        reaches[*id as usize] = true;
    }
    while let Some(to) = open.pop() {
        let first = edges.partition_point(|e| e.0 < to);
        for (_, from) in edges[first..].iter().take_while(|e| e.0 == to) {
            if !std::mem::replace(&mut reaches[*from as usize], true) {
                open.push(*from);
            }
        }
    }
    reaches.iter().position(|r| !r).map(|id| id as u32)
}

/// The text of a panic.
fn message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_string()))
        .unwrap_or_else(|| "a panic without text".into())
}
