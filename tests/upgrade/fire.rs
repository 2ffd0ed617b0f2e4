//! Upgrades while somebody kills daemons at random moments: the old one, the new one, in the probe, after
//! GOODBYE, in the handshake. In mapped mode no interrupt is lost or doubled, and each claim runs once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use papr_intc_frontend::Launcher;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::wire::source::{ANY, Claim, claim_flag};

use super::{next, next_daemon};
use crate::bench::{Bench, FIRST, How, launcher};
use crate::failures::{children_running, copy_of};

/// Claims one number after the other until `done`; all of them.
fn claim_on(bench: &Bench, done: &AtomicBool) -> Vec<u32> {
    let mut got = Vec::new();
    while !done.load(Ordering::Relaxed) && got.len() < 0xf00 {
        let claim = Claim {
            first: ANY,
            count: 1,
            align: 1,
            flags: claim_flag::MSI,
            low: FIRST + 0x10,
            high: 0x2000,
        };
        got.push(bench.intc.claim(&claim).unwrap());
    }
    got
}

/// Taken in order, without a gap: none ran twice, none was lost.
fn check_claims(got: &[u32]) {
    let expected: Vec<u32> = (FIRST + 0x10..).take(got.len()).collect();
    assert_eq!(got, expected);
}

/// One trigger, one interrupt, until `done`; (delivered, come once more).
fn deliver_on(bench: &Bench, lisn: u32, done: &AtomicBool) -> (usize, usize) {
    let (mut delivered, mut again) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        bench.trigger(lisn);
        bench.wait_for_line(0, true);
        assert_eq!(bench.accept(0), lisn);
        bench.eoi(0, lisn);
        delivered += 1;
        while bench.vcpus[0].pending() {
            // 0: the line was up for nothing.
            let xisr = bench.accept(0);
            if xisr != 0 {
                assert_eq!(xisr, lisn);
                bench.eoi(0, xisr);
                again += 1;
            }
        }
    }
    (delivered, again)
}

/// Kills daemons of these binaries until `done`; how many.
fn kill_on(binaries: &[PathBuf], done: &AtomicBool) -> usize {
    let mut kills = 0;
    for moment in (0u64..).take_while(|_| !done.load(Ordering::Relaxed)) {
        // An upgrade takes some milliseconds; the steps of the pause have nothing in common with it.
        thread::sleep(Duration::from_micros(moment * 617 % 7000));
        let mut running = Vec::new();
        binaries
            .iter()
            .for_each(|b| running.extend(children_running(b)));
        if let Some(pid) = running.get(moment as usize % running.len().max(1)) {
            // An error: it has ended in this moment.
            kills += usize::from(kill(*pid, Signal::SIGKILL).is_ok());
        }
    }
    kills
}

/// Upgrades from each to the next of `programs` while they are killed; (kills, come once more).
fn upgrades_under_fire(programs: &[&Path]) -> (usize, usize) {
    let directory = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(directory.path()).unwrap();
    let copy = |(i, program): (usize, &&Path)| {
        let to = root.join(i.to_string());
        copy_of(program, &to);
        to
    };
    let binaries: Vec<PathBuf> = programs.iter().enumerate().map(copy).collect();
    let launcher = |round: usize| {
        let binary = &binaries[round % binaries.len()];
        Launcher::spawn(binary, vec!["--log-level".into(), "off".into()])
    };
    let bench = Bench::start_by(&How::mapped(IcMode::Xics), launcher(0), |_| ());
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    let done = AtomicBool::new(false);
    let (kills, again) = thread::scope(|scope| {
        let vcpu = scope.spawn(|| deliver_on(&bench, FIRST, &done));
        let claimer = scope.spawn(|| claim_on(&bench, &done));
        let killer = scope.spawn(|| kill_on(&binaries, &done));
        let went_well = (1..=60).filter(|round| bench.intc.upgrade(launcher(*round)).is_ok());
        let went_well = went_well.count();
        done.store(true, Ordering::Relaxed);
        check_claims(&claimer.join().unwrap());
        let (kills, (delivered, again)) = (killer.join().unwrap(), vcpu.join().unwrap());
        println!(
            "upgrades=60 went_well={went_well} kills={kills} delivered={delivered} lost=0 spurious={again}"
        );
        (kills, again)
    });
    assert!(kills > 0);
    bench.intc.upgrade(launcher(0)).unwrap();
    (kills, again)
}

#[test]
fn claims_run_once_though_daemons_of_two_versions_take_turns() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let claimer = scope.spawn(|| claim_on(&bench, &done));
        for _ in 0..10 {
            bench.intc.upgrade(next(&[])).unwrap();
            bench.intc.upgrade(launcher()).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        check_claims(&claimer.join().unwrap());
    });
}

#[test]
fn kills_at_any_moment_of_an_upgrade_lose_and_double_nothing_in_mapped_mode() {
    let (_, again) = upgrades_under_fire(&[env!("CARGO_BIN_EXE_papr-intc").as_ref()]);
    assert_eq!(again, 0);
}

#[test]
fn kills_at_any_moment_of_an_upgrade_there_and_back_lose_nothing() {
    let now = env!("CARGO_BIN_EXE_papr-intc").as_ref();
    let (kills, again) = upgrades_under_fire(&[now, &next_daemon()]);
    // What a daemon of either version had in hand while the front-end was the executor: at most that.
    assert!(again <= kills, "{again} came twice after {kills} kills");
}
