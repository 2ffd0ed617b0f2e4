//! The search itself: steps, the visited set, traces, livelocks.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::BuildHasherDefault;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::memory::{Cx, GHOSTS, Key, LOCALS, RUN, Run, Stop, Then, word};
use super::state::{Already, At, Snapshot, State};
use super::{Scenario, Thread};

/// What an exploration found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Distinct states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// States where no thread can go on.
    pub rests: usize,
}

enum Stepped {
    To(State),
    Blocked,
    Violation(String),
}

pub(super) struct Violation {
    pub(super) why: String,
    pub(super) trace: String,
}

impl Scenario {
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
            mark: 0,
            dirty: false,
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
            run.mark = at.mark;
            run.dirty = at.dirty;
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
                    (thread.mark, thread.dirty) = (0, false);
                    thread.locals = run.locals;
                    Stepped::To(next)
                }
                Err(payload) => match payload.downcast_ref::<Stop>() {
                    Some(Stop::Access) => {
                        thread.history.clone_from(&run.history);
                        (thread.mark, thread.dirty) = (run.mark, run.dirty);
                        Stepped::To(next)
                    }
                    Some(Stop::Again) => {
                        thread.history.truncate(run.mark);
                        if *thread == state.threads[t] && next.ghost == state.ghost {
                            Stepped::Blocked
                        } else {
                            Stepped::To(next)
                        }
                    }
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
            mark: 0,
            dirty: false,
            locals: [0; LOCALS],
        };
        let cell = word(Key::Stopped(t as u32)).cell;
        if next.memory.len() <= cell {
            next.memory.resize(cell + 1, 0);
        }
        next.memory[cell] = 1;
        Some(next)
    }

    pub(super) fn search(&self) -> Result<Report, Violation> {
        type Set = HashMap<u128, u32, BuildHasherDefault<Already>>;
        let mut visited: Set = HashMap::default();
        let mut parents: Vec<(u32, u8)> = vec![(u32::MAX, 0)];
        let mut edges: Vec<(u32, u32)> = Vec::new();
        let mut rests: Vec<u32> = Vec::new();
        let mut steps = 0;
        let first = self.initial();
        visited.insert(first.key(), 0);
        let mut open = VecDeque::from([(0u32, first)]);
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
