//! The orderings of gate, epochs, recording and replay, under loom (SPEC.md §3.8).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p papr-intc-protocol --test loom_gate --release`
//!
//! Each test runs with the shipped orderings, where no execution fails, and without the explicit
//! fences or with every ordering Relaxed, where one does. What needs no weak memory to fail is in
//! `explore_gate.rs`.
#![cfg(loom)]

mod loom_storage;

use std::sync::atomic::Ordering::{Relaxed, Release};

use loom::thread;
use loom_storage::{Key, LoomStorage, executions, refuted};
use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word as header};
use papr_intc_protocol::layout::storage::{AtomicWord, Page, Storage, Table};
use papr_intc_protocol::layout::words::{cursor, eas, end_config, ics, source, tima};
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::plane::epoch::{GracePeriod, Inside};
use papr_intc_protocol::plane::{Host, LevelInput, LockOwner, Outcome, Plane};

const MSI: u32 = 16;
const LSI: u32 = 17;
const END: u32 = 6;
const QUEUE: u64 = 0x10000;
const EPOCH: u32 = 1;

const STATE: Key = Key::Table(Table::Header(header::STATE));
const EPOCH_WORD: Key = Key::Page(Page::Epoch(EPOCH));
const CURSOR: Key = Key::Page(Page::EndCursor(END));
const RING: Key = Key::Page(Page::Tima(0));
const ENTRY: Key = Key::Ram(QUEUE);
/// What the device publishes by its trigger, or a transition by its end.
const DATA: Key = Key::User(0);
/// The work at the gate.
const WORK: Key = Key::User(1);

/// How much of the shipped orderings a run keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    All,
    AllButFences,
    Nothing,
}

/// An executor on loom's words.
#[derive(Clone)]
struct Rig {
    storage: LoomStorage,
    daemon: bool,
}

fn state(mode: Mode, gate: Gate) -> u64 {
    let state = State {
        mode,
        gate,
        executor: Executor::FrontEnd,
        cas_xive: mode == Mode::Xive,
    };
    state.to_word()
}

fn source_word(mode: Mode, lisn: u32) -> Key {
    Key::Page(match mode {
        Mode::Xics => Page::IcsSource(lisn - 16),
        Mode::Xive => Page::Source(lisn),
    })
}

impl Rig {
    fn new(keeps: Keeps, words: &[(Key, u64)]) -> Self {
        let storage = LoomStorage::build(words, keeps == Keeps::Nothing)
            .with_constant(Table::Lsi(0), 1 << LSI)
            .with_constant(Table::Eas(MSI), eas::new(END, MSI, false))
            .with_constant(Table::EndConfig(END, 0, 0), QUEUE)
            .with_constant(Table::EndConfig(END, 0, 1), end_config::new(12, true));
        Self {
            storage: match keeps {
                Keeps::AllButFences => storage.without_fences(),
                _ => storage,
            },
            daemon: false,
        }
    }

    fn daemon(&self) -> Self {
        Self {
            daemon: true,
            ..self.clone()
        }
    }

    fn plane(&self) -> Plane<LoomStorage, Self> {
        let machine = Machine {
            sources: 18,
            xics_base: 16,
            ..Machine::pseries(IcMode::Dual, Compat::Papr1, 1)
        };
        Plane::new(self.storage.clone(), self.clone(), machine).expect("a small machine")
    }

    fn load(&self, key: Key) -> u64 {
        self.storage.word(key).load(Relaxed)
    }

    /// The daemon's: a new state word, then the wait for those who may not have seen it.
    fn set_state_and_wait(&self, state: u64) {
        self.storage.word(STATE).store(state, Release);
        let plane = self.plane();
        let mut grace = GracePeriod::begin(&self.storage, plane.geometry());
        let mut spins = 0;
        while !grace.poll(&self.storage) {
            self.storage.relax(spins);
            spins += 1;
        }
    }
}

impl Host for Rig {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        assert_eq!(self.load(DATA), 1, "an entry before its device's data");
        let at = self.storage.word(Key::Ram(gpa));
        at.store(1 << 32 | u64::from(entry), Relaxed);
        true
    }
    fn kick(&self, _: u32) {}
    fn lock_owner(&self) -> LockOwner {
        if self.daemon {
            LockOwner::Daemon {
                generation: 1,
                worker: 0,
            }
        } else {
            LockOwner::FrontEnd
        }
    }
}

/// A thread that acts inside its epoch if it finds the gate open, against the work at the gate.
fn transition_against_work(keeps: Keeps) {
    let words = [
        (STATE, state(Mode::Xive, Gate::Open)),
        (EPOCH_WORD, 0),
        (DATA, 0),
        (WORK, 0),
    ];
    let rig = Rig::new(keeps, &words);
    let inside = rig.clone();
    let thread = thread::spawn(move || {
        let epoch = Inside::enter(&inside.storage, EPOCH);
        let acts = State::read(&inside.storage).gate == Gate::Open;
        if acts {
            assert_eq!(
                inside.load(WORK),
                0,
                "a transition in the middle of the work"
            );
            inside.storage.word(DATA).store(1, Relaxed);
        }
        drop(epoch);
        acts
    });
    rig.set_state_and_wait(state(Mode::Xive, Gate::Latch));
    let seen = rig.load(DATA);
    rig.storage.word(WORK).store(1, Relaxed);
    let acted = thread.join().expect("the thread inside");
    assert!(!acted || seen == 1, "the work does not see a transition");
}

#[test]
fn a_grace_period_parts_transitions_from_the_work() {
    let model = transition_against_work;
    executions("transition against work", move || model(Keeps::All));
    refuted("transition against work, no fences", move || {
        model(Keeps::AllButFences);
    });
    refuted("transition against work, relaxed", move || {
        model(Keeps::Nothing);
    });
}

/// A device changes a level while it is copied to the other controller.
fn level_against_copy(keeps: Keeps, from: Mode, level: bool) {
    let to = match from {
        Mode::Xics => Mode::Xive,
        Mode::Xive => Mode::Xics,
    };
    let bit = |mode| match mode {
        Mode::Xics => ics::LEVEL_VMM,
        Mode::Xive => source::LEVEL_VMM,
    };
    let lsi = |mode| match mode {
        Mode::Xics => ics::CLAIMED | ics::LSI,
        Mode::Xive => 0,
    };
    let before = if level { 0 } else { bit(from) };
    let words = [
        (STATE, state(from, Gate::Latch)),
        (source_word(from, LSI), lsi(from) | before),
        (source_word(to, LSI), lsi(to)),
    ];
    let rig = Rig::new(keeps, &words);
    let device = rig.clone();
    let thread = thread::spawn(move || {
        let plane = device.plane();
        plane.controller().set_level(LSI, LevelInput::Vmm, level);
    });
    rig.daemon().plane().controller().copy_levels(LSI, from, to);
    thread.join().expect("the device's thread");
    let copied = rig.load(source_word(to, LSI)) & bit(to) != 0;
    assert_eq!(copied, level, "not the level that the device left");
}

#[test]
fn a_copied_level_is_the_devices_last() {
    for from in [Mode::Xics, Mode::Xive] {
        for level in [true, false] {
            let name = format!("level {level} against copy from {from:?}");
            executions(&name, move || level_against_copy(Keeps::All, from, level));
            refuted(&format!("{name}, relaxed"), move || {
                level_against_copy(Keeps::Nothing, from, level);
            });
        }
    }
}

/// A device triggers while the daemon opens the gate, waits and replays. `from`: the mode before; the
/// switch to XIVE comes with the opening then.
fn trigger_against_replay(keeps: Keeps, from: Mode) {
    let words = [
        (STATE, state(from, Gate::Latch)),
        (EPOCH_WORD, 0),
        (source_word(Mode::Xive, MSI), 0),
        (source_word(Mode::Xics, MSI), ics::CLAIMED | ics::RESET),
        (CURSOR, cursor::FRESH),
        (RING, tima::RESET | tima::CONNECTED),
        (ENTRY, 0),
        (DATA, 0),
    ];
    let rig = Rig::new(keeps, &words);
    let device = rig.clone();
    let thread = thread::spawn(move || {
        device.storage.word(DATA).store(1, Relaxed);
        assert_eq!(device.plane().thread(EPOCH).trigger(MSI), Outcome::Done(()));
    });
    let daemon = rig.daemon();
    daemon.set_state_and_wait(state(Mode::Xive, Gate::Open));
    daemon.plane().controller().replay(MSI);
    thread.join().expect("the device's thread");
    let xive = rig.load(source_word(Mode::Xive, MSI));
    let xics = rig.load(source_word(Mode::Xics, MSI));
    assert_eq!(xive, source::P, "the trigger is lost: XICS {xics:#x}");
    assert_eq!(xics & ics::LATCHED, 0, "latched for ever");
    assert_ne!(rig.load(ENTRY), 0, "no entry");
}

#[test]
fn a_recorded_trigger_is_replayed_with_its_data() {
    for from in [Mode::Xive, Mode::Xics] {
        let name = format!("trigger against replay, from {from:?}");
        let model = trigger_against_replay;
        executions(&name, move || model(Keeps::All, from));
        refuted(&format!("{name}, no fences"), move || {
            model(Keeps::AllButFences, from);
        });
        refuted(&format!("{name}, relaxed"), move || {
            model(Keeps::Nothing, from);
        });
    }
}
