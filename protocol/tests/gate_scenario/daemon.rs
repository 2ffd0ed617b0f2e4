//! The daemon's side of a barrier and of START, as operations of a thread.
//!
//! The steps are those of the daemon's package, in their order: `src/control/barrier.rs` (`begin`,
//! `poll_barrier`, `at_the_gate`) and `src/control/lifecycle.rs` (`start`, `recover`, `resignal`). Keep
//! them in step. Left out is what no thread of the VMM reads: OV5_BYTE_23, reply records, kicks.

use std::cell::RefCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word as header};
use papr_intc_protocol::layout::storage::{AtomicWord, Table, TableStorage};
use papr_intc_protocol::plane::Controller;
use papr_intc_protocol::plane::epoch::GracePeriod;

use super::words::{COPYING, FAULT, GateWord, LOOKED};
use super::{ALONE, DAEMON, Fault, MESSAGES, MSI, REPLAYING, Who, Words, plane};
use crate::explorer::{Cx, Key, Then, Thread, word};

/// What is done at the latched gate.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    Cas(Mode),
    Reset,
    Quiesce,
    Resume(Option<Executor>),
}

type At<'a> = Controller<'a, Words, Who>;

fn table(w: u32) -> &'static GateWord {
    GateWord::of(Key::Table(Table::Header(w)))
}

fn set_state(state: State) {
    table(header::STATE).store(state.to_word(), Release);
}

fn set_gate(gate: Gate) {
    set_state(State {
        gate,
        ..State::read(&Words)
    });
}

fn depth() -> u64 {
    table(header::QUIESCE_DEPTH).load(Acquire)
}

fn claimed(table: fn(u32) -> Table) -> impl Iterator<Item = u32> {
    let bits = Words.table_word(table(0)).load(Relaxed);
    (0..64).filter(move |lisn| bits >> lisn & 1 == 1)
}

/// Waits for a grace period, as `poll_barrier` does when it is called again and again.
fn grace(cx: &Cx, who: Who) {
    let period = RefCell::new(GracePeriod::begin(&Words, plane(who).geometry()));
    cx.wait(|| period.borrow_mut().poll(&Words));
}

fn switch(c: &At<'_>, to: Mode, cas_xive: bool) {
    let state = State::read(&Words);
    if state.mode != to {
        for lisn in claimed(Table::Lsi) {
            LOOKED.set(None);
            COPYING.set(FAULT.get() == Fault::CopyOnce);
            c.copy_levels(lisn, state.mode, to);
            COPYING.set(false);
        }
    }
    set_state(State {
        mode: to,
        cas_xive,
        ..state
    });
}

fn reset(who: Who, c: &At<'_>) {
    switch(c, Mode::Xics, false);
    let plane = plane(who);
    let c = plane.controller();
    c.xics.reset();
    (0..c.geometry.sources()).for_each(|lisn| c.xive.reset_source(lisn));
    (0..c.geometry.ends()).for_each(|end| c.xive.reset_end(end));
    (0..c.geometry.servers()).for_each(|server| c.xive.vcpu_reset(server));
}

fn at_the_gate(who: Who, work: Work) {
    let plane = plane(who);
    match work {
        Work::Cas(mode) => switch(&plane.controller(), mode, mode == Mode::Xive),
        Work::Reset => reset(who, &plane.controller()),
        Work::Quiesce => table(header::QUIESCE_DEPTH).store(depth() + 1, Release),
        Work::Resume(executor) => {
            let depth = depth().saturating_sub(1);
            table(header::QUIESCE_DEPTH).store(depth, Release);
            if let (0, Some(executor)) = (depth, executor) {
                set_state(State {
                    executor,
                    ..State::read(&Words)
                });
            }
        }
    }
}

/// A daemon's thread, and how many operations it has.
pub struct Daemon {
    pub thread: Thread,
    who: Who,
    operations: u16,
}

impl Daemon {
    pub fn new(who: Who) -> Self {
        let name = if matches!(who, Who::Daemon(1)) {
            "daemon"
        } else {
            "successor"
        };
        Self {
            thread: Thread::new(name),
            who,
            operations: 0,
        }
    }

    pub fn op(mut self, name: &'static str, f: impl Fn(&Cx, Who) -> Then + 'static) -> Self {
        let who = self.who;
        self.thread = self.thread.op(name, move |cx| f(cx, who));
        self.operations += 1;
        self
    }

    /// Latches the gate, and waits for the transitions under way.
    pub fn latch(self) -> Self {
        self.op("latch", |cx, who| {
            set_gate(Gate::Latch);
            if FAULT.get() != Fault::WorkEarly {
                grace(cx, who);
            }
            Then::Next
        })
    }

    /// The work of a barrier alone.
    pub fn work(self, work: Work) -> Self {
        self.op("work", move |_, who| {
            at_the_gate(who, work);
            Then::Next
        })
    }

    /// A barrier whose deadline passes at once: the gate as it was, and the replay when nobody latches
    /// any more (`give_up`, `reopen`, `poll_reopening`).
    pub fn given_up(self) -> Self {
        let after = self.operations + 2;
        self.op("latch, give up", move |cx, who| {
            set_gate(Gate::Latch);
            if depth() != 0 {
                return Then::Goto(after);
            }
            set_gate(Gate::Open);
            grace(cx, who);
            Then::Next
        })
        .op("replay", |cx, who| {
            cx.ghost(|g| g[REPLAYING] = 1);
            replay_all(&plane(who).controller());
            Then::Next
        })
    }

    /// A barrier that answers before everybody who latched has left; the next one follows.
    pub fn hurried(self, work: Work) -> Self {
        self.latch()
            .op("work", move |cx, who| {
                cx.ghost(|g| g[ALONE] = 1);
                at_the_gate(who, work);
                Then::Next
            })
            .op("open", |_, _| {
                set_gate(Gate::Open);
                Then::Next
            })
    }

    /// One barrier: four operations.
    pub fn barrier(self, work: Work) -> Self {
        let after = self.operations + 4;
        self.latch()
            .op("work", move |cx, who| {
                cx.ghost(|g| g[ALONE] = 1);
                at_the_gate(who, work);
                Then::Next
            })
            .op("open", move |cx, who| {
                if depth() != 0 {
                    return Then::Goto(after);
                }
                set_gate(Gate::Open);
                if FAULT.get() != Fault::ReplayEarly {
                    grace(cx, who);
                }
                Then::Next
            })
            .op("replay", |cx, who| {
                cx.ghost(|g| g[REPLAYING] = 1);
                let plane = plane(who);
                let c = plane.controller();
                replay_all(&c);
                Then::Next
            })
    }

    /// The front-end sends RESUME again, if the header says that it was not executed.
    pub fn resumed_again(self) -> Self {
        self.op("asked again", |_, _| match depth() {
            0 => Then::Finish,
            _ => Then::Next,
        })
        .barrier(Work::Resume(None))
    }

    /// The guest unmasks a source in the controller that is active then.
    pub fn unmasking(self, lisn: u32) -> Self {
        self.op("unmask", move |_, who| {
            let plane = plane(who);
            let c = plane.controller();
            match c.state.mode {
                Mode::Xics => c.xics.int_on(lisn).unwrap(),
                Mode::Xive => {
                    // SET_PQ_00 in the management page.
                    c.xive.esb_load(u64::from(lisn) << 17 | 0x10c00, 8);
                }
            }
            Then::Next
        })
    }

    /// Serves TRIGGER messages for ever.
    pub fn serving(self) -> Self {
        let here = self.operations;
        self.op("serve", move |cx, who| {
            cx.wait(|| word(MESSAGES).load(Relaxed) != 0);
            word(MESSAGES).fetch_sub(1, Relaxed);
            plane(who).controller().trigger(MSI);
            Then::Goto(here)
        })
    }

    /// START of a daemon that follows thread [`DAEMON`], once that has stopped.
    pub fn start(self, executor: Executor) -> Self {
        let after = self.operations + 4;
        self.op("fence", |cx, _| {
            cx.wait(|| word(Key::Stopped(DAEMON)).load(Relaxed) != 0);
            Then::Next
        })
        .op("recover", move |_, who| {
            let plane = plane(who);
            let c = plane.controller();
            if FAULT.get() != Fault::ForwardLeft {
                claimed(Table::Claimed).for_each(|lisn| {
                    c.xive.redo_forward(lisn);
                });
            }
            if depth() == 0 && c.state.mode == Mode::Xics {
                c.xics.recover();
            } else {
                c.xics.take_back();
            }
            Then::Next
        })
        .op("open", move |cx, who| {
            let gate = if depth() == 0 {
                Gate::Open
            } else {
                Gate::Latch
            };
            set_state(State {
                gate,
                executor,
                ..State::read(&Words)
            });
            if gate == Gate::Latch {
                return Then::Goto(after);
            }
            if FAULT.get() != Fault::StartAtOnce {
                grace(cx, who);
            }
            Then::Next
        })
        .op("replay", |_, who| {
            replay_all(&plane(who).controller());
            Then::Next
        })
    }
}

fn replay_all(c: &At<'_>) {
    for lisn in claimed(Table::Claimed) {
        match (FAULT.get(), c.state.mode) {
            (Fault::OneModeReplayed, Mode::Xics) => c.xics.replay(lisn),
            (Fault::OneModeReplayed, Mode::Xive) => c.xive.replay(lisn),
            _ => c.replay(lisn),
        }
    }
}
