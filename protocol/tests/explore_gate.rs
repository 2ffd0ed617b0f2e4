//! Every interleaving of the machine-wide operations with devices and vCPUs: gate, epochs, grace
//! periods, levels, replay (SPEC.md §3.8, §3.9).
#![allow(clippy::unwrap_used)]

mod explorer;
mod gate_scenario;

use std::sync::atomic::Ordering::Relaxed;

use explorer::{Key, Scenario, Then, Thread, word};
use gate_scenario::daemon::{Daemon, Work};
use gate_scenario::*;
use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State};
use papr_intc_protocol::layout::storage::{AtomicWord, Page, Table};
use papr_intc_protocol::layout::words::{cursor, icp, ics, source, tima};
use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::plane::epoch::Inside;
use papr_intc_protocol::plane::{LevelInput, Outcome, Plane};

const MODES: [Mode; 2] = [Mode::Xics, Mode::Xive];

fn other(mode: Mode) -> Mode {
    MODES[usize::from(mode == Mode::Xics)]
}

fn quiesced_trigger(mode: Mode, fault: Fault) -> explorer::Scenario {
    let daemon = Daemon::new(Who::Daemon(1))
        .barrier(Work::Quiesce)
        .barrier(Work::Resume(None));
    Start::of(mode, &[MSI])
        .scenario(
            format!("trigger against QUIESCE and RESUME, {mode:?}"),
            fault,
        )
        .thread(daemon.thread)
        .thread(triggers("device", 1, 1))
        .thread(triggers("device 2", 2, 1))
        .at_rest(msi_served)
}

#[test]
fn a_trigger_is_not_lost_to_quiesce_and_resume() {
    for mode in MODES {
        quiesced_trigger(mode, Fault::None).explore();
        let why = quiesced_trigger(mode, Fault::ReplayEarly).refute();
        assert!(why.contains("latched for ever"), "{why}");
    }
}

fn switched_level(mode: Mode, steps: &'static [bool], fault: Fault) -> explorer::Scenario {
    let daemon = Daemon::new(Who::Daemon(1)).barrier(Work::Cas(other(mode)));
    Start::of(mode, &[LSI])
        .scenario(format!("level {steps:?} against CAS from {mode:?}"), fault)
        .thread(daemon.thread)
        .thread(levels("device", 1, LevelInput::Vmm, steps))
        .at_rest(levels_are(*steps.last().unwrap(), false, false))
}

#[test]
fn a_level_follows_a_change_of_mode() {
    for mode in MODES {
        for steps in [&[true][..], &[true, false], &[true, false, true]] {
            switched_level(mode, steps, Fault::None).explore();
        }
        let why = switched_level(mode, &[true, false], Fault::CopyOnce).refute();
        assert!(why.contains("level"), "{why}");
    }
}

/// In a quiesced machine: what matters is the copy, and devices only record.
fn two_inputs(mode: Mode, vmm: &'static [bool]) -> Scenario {
    let daemon = Daemon::new(Who::Daemon(1)).work(Work::Cas(other(mode)));
    let start = Start {
        depth: 1,
        high: !vmm[0],
        ..Start::of(mode, &[LSI])
    };
    let wanted = [*vmm.last().unwrap(), true];
    start
        .scenario(
            format!("inputs {vmm:?} and [true] against CAS from {mode:?}"),
            Fault::None,
        )
        .thread(daemon.thread)
        .thread(levels("vmm", 1, LevelInput::Vmm, vmm))
        .thread(levels("irqfd", 2, LevelInput::Irqfd, &[true]))
        .at_rest(move |s| {
            let found = s.get(source_word(other(mode), LSI));
            match level_bits(other(mode)).map(|bit| found & bit != 0) {
                levels if levels == wanted => Ok(()),
                levels => Err(format!("{levels:?} for {wanted:?}")),
            }
        })
        .limit(5_000_000)
}

#[test]
fn two_inputs_follow_a_change_of_mode() {
    two_inputs(Mode::Xive, &[false]).explore();
}

#[test]
#[ignore = "a million states: a minute in a release build"]
fn two_inputs_follow_a_change_of_mode_longer() {
    two_inputs(Mode::Xics, &[false]).explore();
    for mode in MODES {
        two_inputs(mode, &[true, false]).explore();
    }
}

/// The LSI is masked in both controllers until the guest unmasks it after CAS.
#[test]
fn a_level_that_rose_at_a_masked_source_is_sent_when_it_is_unmasked() {
    for mode in MODES {
        let daemon = Daemon::new(Who::Daemon(1))
            .barrier(Work::Cas(other(mode)))
            .unmasking(LSI);
        let start = Start {
            masked: true,
            ..Start::of(mode, &[LSI])
        };
        start
            .scenario(
                format!("masked level against CAS from {mode:?}"),
                Fault::None,
            )
            .thread(daemon.thread)
            .thread(levels("device", 1, LevelInput::Vmm, &[false, true]))
            .at_rest(levels_are(true, false, false))
            .explore();
    }
}

fn switched_trigger(mode: Mode, fault: Fault) -> Scenario {
    let daemon = Daemon::new(Who::Daemon(1)).barrier(Work::Cas(other(mode)));
    Start::of(mode, &[MSI])
        .scenario(format!("trigger against CAS from {mode:?}"), fault)
        .thread(daemon.thread)
        .thread(triggers("device", 1, 2))
        .at_rest(msi_served)
}

#[test]
fn a_trigger_is_not_lost_to_a_change_of_mode_and_not_delivered_by_the_old_one() {
    for mode in MODES {
        switched_trigger(mode, Fault::None).explore();
        let why = switched_trigger(mode, Fault::WorkEarly).refute();
        assert!(why.contains("at the gate"), "{why}");
    }
}

fn quiesced_switch(mode: Mode, fault: Fault) -> Scenario {
    let daemon = Daemon::new(Who::Daemon(1))
        .barrier(Work::Cas(other(mode)))
        .barrier(Work::Resume(None));
    let start = Start {
        depth: 1,
        ..Start::of(mode, &[MSI])
    };
    start
        .scenario(
            format!("trigger against CAS from {mode:?}, quiesced"),
            fault,
        )
        .thread(daemon.thread)
        .thread(triggers("device", 1, 2))
        .at_rest(msi_served)
}

#[test]
fn what_is_recorded_in_a_quiesced_machine_outlives_a_change_of_mode() {
    for mode in MODES {
        let why = quiesced_switch(mode, Fault::OneModeReplayed).refute();
        assert!(why.contains("latched for ever"), "{why}");
        quiesced_switch(mode, Fault::None).explore();
    }
}

#[test]
fn a_trigger_is_not_lost_to_barriers_that_are_given_up_or_follow_one_another() {
    for mode in MODES {
        let scenario = |name: &str, daemon: Daemon| {
            Start::of(mode, &[MSI])
                .scenario(format!("trigger against {name}, {mode:?}"), Fault::None)
                .thread(daemon.thread)
                .thread(triggers("device", 1, 2))
                .at_rest(msi_served)
                .explore();
        };
        let daemon = || Daemon::new(Who::Daemon(1));
        scenario("a barrier given up", daemon().given_up());
        let two = daemon()
            .hurried(Work::Cas(other(mode)))
            .barrier(Work::Cas(mode));
        scenario("two barriers without a pause", two);
    }
}

/// What a vCPU does in the scenarios of reset.
type Call = fn(&Plane<Words, Who>) -> bool;

fn done<T>(outcome: &Outcome<T>) -> bool {
    matches!(outcome, Outcome::Done(_))
}

fn hcall(plane: &Plane<Words, Who>, opcode: u64, args: [u64; 2]) -> bool {
    let mut cells = [0; 9];
    cells[..2].copy_from_slice(&args);
    done(&plane.thread(0).hcall(0, opcode, &mut cells, 0))
}

const XICS_CALLS: [(&str, Call); 3] = [
    ("H_CPPR", |p| hcall(p, opcode::H_CPPR, [5, 0])),
    ("H_IPI", |p| hcall(p, opcode::H_IPI, [0, 4])),
    ("H_XIRR", |p| hcall(p, opcode::H_XIRR, [0, 0])),
];
const XIVE_CALLS: [(&str, Call); 3] = [
    ("CPPR", |p| done(&p.thread(0).tima_store(0, 0x2_0011, 1, 5))),
    ("acknowledge", |p| {
        done(&p.thread(0).tima_load(0, 0x2_0810, 2))
    }),
    ("ESB", |p| {
        done(&p.thread(0).esb_load(u64::from(MSI) << 17 | 0x1_0c00, 8))
    }),
];

/// The words that a reset is about, as it leaves them; the tag of an ICP is free.
fn is_reset(get: impl Fn(Key) -> u64) -> Result<(), String> {
    let expected = [
        (RING, tima::RESET | tima::CONNECTED),
        (CURSOR, 1 << cursor::ESN_SHIFT),
        (ICP, icp::RESET | icp::CONNECTED),
        (source_word(Mode::Xics, MSI), ics::RESET | ics::CLAIMED),
        (source_word(Mode::Xive, MSI), source::RESET),
    ];
    for (key, value) in expected {
        let found = get(key);
        let same = if key == ICP { icp::TAG - 1 } else { u64::MAX };
        // What a trigger leaves that was recorded meanwhile.
        let recorded = [ics::MASKED_PENDING, 0][usize::from(key != source_word(Mode::Xics, MSI))];
        if (found ^ value) & same & !recorded != 0 {
            return Err(format!(
                "{key:?} is {found:#x} after the reset, not {value:#x}"
            ));
        }
    }
    Ok(())
}

/// MACHINE_RESET from `mode`; tables that it changes are variables.
fn resetting(name: &str, mode: Mode, fault: Fault) -> Scenario {
    let daemon = Daemon::new(Who::Daemon(1)).barrier(Work::Reset);
    let mut scenario = Start::of(mode, &[MSI])
        .scenario(format!("{name} against MACHINE_RESET in {mode:?}"), fault)
        .var(Key::Table(Table::Eas(MSI)))
        .var(Key::Table(Table::EndConfig(END, 1, 0)))
        .var(Key::Table(Table::EndConfig(END, 1, 1)));
    for end in (0..8).filter(|e| *e != END) {
        scenario = scenario.fix(Key::Page(Page::EndCursor(end)));
    }
    scenario.thread(daemon.thread)
}

fn reset_against_call(mode: Mode, (name, call): (&'static str, Call), fault: Fault) -> Scenario {
    resetting(name, mode, fault)
        .thread(Thread::new("vCPU").op(name, move |_| {
            call(&vmm());
            Then::Next
        }))
        .at_rest(move |s| {
            quiet(s)?;
            // A call that began after the reset acts on the words that it left.
            let acted_later = mode == Mode::Xics && s.ghost[ENTERED_BEFORE] == 0;
            if acted_later {
                return Ok(());
            }
            is_reset(|key| s.get(key))
        })
}

#[test]
fn no_call_from_before_a_reset_acts_after_it() {
    for call in XICS_CALLS {
        reset_against_call(Mode::Xics, call, Fault::None).explore();
    }
    for call in XIVE_CALLS {
        reset_against_call(Mode::Xive, call, Fault::None).explore();
    }
    for (mode, call) in [(Mode::Xics, XICS_CALLS[0]), (Mode::Xive, XIVE_CALLS[0])] {
        let why = reset_against_call(mode, call, Fault::WorkEarly).refute();
        assert!(why.contains("after the reset"), "{why}");
    }
}

#[test]
fn a_reset_finds_no_router_in_an_end() {
    let scenario = |fault| {
        resetting("a router", Mode::Xive, fault)
            .thread(triggers("device", 1, 1))
            .at_rest(|s| {
                msi_served(s)?;
                is_reset(|key| s.get(key))
            })
    };
    scenario(Fault::None).explore();
    let why = scenario(Fault::WorkEarly).refute();
    assert!(why.contains("forward"), "{why}");
}

/// A thread that is inside twice; in between it marks that it acts on an open gate.
fn insider(name: &'static str, epoch: u32) -> Thread {
    (0..2).fold(Thread::new(name), |thread, _| {
        thread.op("inside", move |_| {
            let inside = Inside::enter(&Words, epoch);
            if State::read(&Words).gate == Gate::Open {
                word(Key::User(epoch)).store(1, Relaxed);
                word(Key::User(epoch)).store(0, Relaxed);
            }
            drop(inside);
            Then::Next
        })
    })
}

#[test]
fn after_a_grace_period_nobody_acts_on_the_old_state() {
    let scenario = |fault| {
        let looks = Daemon::new(Who::Daemon(1)).latch().op("look", |_, _| {
            for epoch in [1, 2] {
                assert_eq!(
                    word(Key::User(epoch)).load(Relaxed),
                    0,
                    "somebody is inside"
                );
            }
            Then::Next
        });
        Start::of(Mode::Xive, &[])
            .scenario("grace period", fault)
            .thread(looks.thread)
            .thread(insider("first", 1))
            .thread(insider("second", 2))
    };
    scenario(Fault::None).explore();
    let why = scenario(Fault::WorkEarly).refute();
    assert!(why.contains("somebody is inside"), "{why}");
}

/// RESUME that changes the executor, in a quiesced machine.
fn handing_over(mode: Mode, from: Executor, to: Executor) -> Scenario {
    let daemon = Daemon::new(Who::Daemon(1))
        .barrier(Work::Resume(Some(to)))
        .serving();
    let start = Start {
        depth: 1,
        executor: from,
        ..Start::of(mode, &[MSI])
    };
    let on = |key: Key| {
        matches!(
            key,
            Key::Page(Page::Source(_) | Page::IcsSource(_)) | ICP | RING | CURSOR
        )
    };
    start
        .scenario(
            format!("RESUME from {from:?} to {to:?} in {mode:?}"),
            Fault::None,
        )
        .thread(daemon.thread.background())
        .thread(triggers("device", 1, 2))
        .observer(move |g, c| {
            let handed = State::from_word(g[STATE_NOW]).executor == Executor::Daemon;
            if to == Executor::Daemon && handed && c.thread != 0 && on(c.key) {
                // Who read the state word before may still record, until replay begins.
                let latched = matches!(c.old ^ c.new, ics::LATCHED | source::LATCHED);
                assert!(
                    latched && g[REPLAYING] == 0,
                    "a transition by the front-end"
                );
            }
            watch(start, g, c);
        })
        .at_rest(|s| match s.get(MESSAGES) {
            0 => msi_served(s),
            left => Err(format!("{left} messages left")),
        })
}

#[test]
fn after_a_change_of_executor_the_other_side_runs_nothing() {
    for mode in MODES {
        handing_over(mode, Executor::FrontEnd, Executor::Daemon).explore();
        handing_over(mode, Executor::Daemon, Executor::FrontEnd).explore();
    }
}

/// A barrier whose daemon may die anywhere, and the START of the next one, in mapped mode.
fn dying(mode: Mode, work: Work, claimed: &'static [u32], fault: Fault) -> Scenario {
    let daemon = Daemon::new(Who::Daemon(1)).barrier(work);
    let successor = Daemon::new(Who::Daemon(2))
        .start(Executor::FrontEnd)
        .resumed_again();
    let start = Start {
        daemons: 2,
        depth: matches!(work, Work::Resume(_)).into(),
        ..Start::of(mode, claimed)
    };
    let scenario = start
        .scenario(format!("death in {work:?} in {mode:?}"), fault)
        .thread(daemon.thread.may_stop())
        .thread(successor.thread.background());
    with_journal(scenario)
}

#[test]
fn a_successor_loses_no_trigger_of_a_barrier_that_was_cut() {
    for mode in MODES {
        for work in [Work::Cas(other(mode)), Work::Cas(mode), Work::Resume(None)] {
            let scenario = |fault| {
                dying(mode, work, &[MSI], fault)
                    .thread(triggers("device", 1, 1))
                    .at_rest(msi_served)
            };
            scenario(Fault::None).explore();
        }
        let faulty = |fault| {
            dying(mode, Work::Cas(Mode::Xive), &[MSI], fault)
                .thread(triggers("device", 1, 1))
                .at_rest(msi_served)
                .refute()
        };
        let why = faulty(Fault::StartAtOnce);
        assert!(why.contains("latched for ever"), "{why}");
        let why = faulty(Fault::ForwardLeft);
        assert!(why.contains("a forward"), "{why}");
    }
}

#[test]
fn a_successor_loses_no_level_of_a_barrier_that_was_cut() {
    for mode in MODES {
        dying(mode, Work::Cas(other(mode)), &[LSI], Fault::None)
            .thread(levels("device", 1, LevelInput::Vmm, &[true]))
            .at_rest(levels_are(true, false, false))
            .explore();
    }
}
