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
//! * Waiting: a loop that waits must call `storage.relax(spins)` in each round, counting from 0, or
//!   `cx.wait`. From the second round on, a round that changed nothing is forgotten; a thread whose
//!   round would end where it began is blocked. A loop that never ends must end its rounds by
//!   `Then::Repeat`, so that the history does not grow.
//! * An unfinished `background` thread may be blocked at rest; any other is a deadlock. A state from
//!   which no rest can be reached is a livelock. Both are violations, like panics and failed checks.
//! * `cx.local(i)`, `cx.set_local(i, v)`: values that outlive an operation. `cx.ghost(|g| …)`: counts
//!   that belong to the check; run once, atomically with the access before (at the start of an
//!   operation: with its first one).
//! * `may_stop(thread)`: that thread may stop for ever at any point, in the middle of an operation;
//!   [`Key::Stopped`] becomes 1.
//! * The search is sequentially consistent: orderings are loom's business (`loom_*.rs`).
#![allow(dead_code, unused_imports)] // every test binary uses a part of it

mod memory;
mod search;
mod state;

pub use memory::{Change, Cx, Ghost, Key, Memory, Then, Word, word};
pub use search::Report; // what `explore` returns
pub use state::Snapshot;

type Operation = Box<dyn Fn(&Cx) -> Then>;
type Observer = Box<dyn Fn(&mut Ghost, Change)>;
type Check = Box<dyn Fn(&Snapshot<'_>) -> Result<(), String>>;

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
}
