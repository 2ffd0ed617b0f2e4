//! Daemons that die in the middle of a move, and moves that are given up.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};

use crate::bench::{Bench, FIRST, How};
use crate::guest::*;

const MSI: u32 = FIRST + 0x300;

/// A machine with so much to move that it takes several pieces.
fn loaded(how: &How) -> Bench {
    let big = |bench: &Bench| {
        let all = Claim {
            first: MSI,
            count: 60_000,
            align: 1,
            flags: claim_flag::MSI,
            low: 0,
            high: 0,
        };
        bench.intc.claim(&all).unwrap();
    };
    let bench = Bench::start_with(how, |options| options.machine.sources = 0x1_2000);
    big(&bench);
    for i in (0..60_000).step_by(2) {
        bench.trigger(MSI + i);
    }
    bench
}

fn far(source: &Bench, how: &How) -> Bench {
    let ram = source.ram.clone();
    let bench = Bench::start_on(how, crate::bench::launcher(), ram, |options| {
        options.machine.sources = 0x1_2000;
    });
    bench.intc.quiesce(LONG).unwrap();
    bench
}

#[test]
fn kills_of_both_daemons_while_a_state_moves_cost_repetitions_only() {
    for how in [How::mapped(IcMode::Dual), How::remote(IcMode::Dual)] {
        let source = loaded(&how);
        source.intc.quiesce(LONG).unwrap();
        let state = source.intc.state_save().unwrap();
        assert!(
            state.len() > 100_000,
            "{} bytes are few pieces",
            state.len()
        );
        let there = far(&source, &how);
        let fresh = there.intc.state_save().unwrap();
        // The delay before a kill, so that it meets all steps of a move somewhere.
        for round in 0..6u64 {
            let at = |bench: &Bench, part: u64| {
                let victim = Pid::from_raw(bench.intc.daemon_pid().unwrap().cast_signed());
                let delay = Duration::from_micros(150 * (round * 3 + part));
                thread::spawn(move || {
                    thread::sleep(delay); // when the kill comes, not whether it has come
                    kill(victim, Signal::SIGKILL).unwrap();
                })
            };
            let killer = at(&source, 0);
            assert_eq!(source.intc.state_save().unwrap(), state);
            killer.join().unwrap();
            let killer = at(&there, 1);
            there.intc.state_load(&state).unwrap();
            killer.join().unwrap();
            assert_eq!(there.intc.state_save().unwrap(), state);
            let killer = at(&there, 2);
            there.intc.state_abort().unwrap();
            killer.join().unwrap();
            assert_eq!(there.intc.state_save().unwrap(), fresh);
        }
    }
}

#[test]
fn a_source_whose_move_is_given_up_at_any_phase_goes_on_with_everything() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let source = Bench::start(&how);
        source.xics_source(MSI, false, 0);
        source.open(0);
        let there = destination(&source, &how);
        for phase in 0..5 {
            source.trigger(MSI);
            if phase > 0 {
                there
                    .intc
                    .state_check(&source.intc.state_header().unwrap())
                    .unwrap();
            }
            if phase > 1 {
                source.intc.quiesce(LONG).unwrap();
                source.trigger(MSI);
            }
            if phase > 2 {
                let state = source.intc.state_save().unwrap();
                if phase > 3 {
                    there.intc.state_load(&state).unwrap();
                    there.intc.state_abort().unwrap();
                }
                source.intc.state_abort().unwrap();
            }
            if phase > 1 {
                source.intc.resume(None).unwrap();
            }
            let expected = if phase > 1 { 2 } else { 1 };
            for _ in 0..expected {
                source.wait_for_line(0, true);
                assert_eq!(source.accept(0), MSI);
                source.eoi(0, MSI);
            }
            assert!(!source.vcpus[0].pending(), "phase {phase}: delivered twice");
        }
    }
}
