//! Upgrades while somebody kills daemons at random moments: the old one, the new one, in the probe, after
//! GOODBYE, in the handshake. In mapped mode no interrupt is lost or doubled, and each claim runs once.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::wire::source::{ANY, Claim, claim_flag};

use super::next;
use crate::bench::{Bench, FIRST, How, launcher};
use crate::failures::{children_running, copy_of};
use papr_intc_frontend::Launcher;

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

/// One trigger, one interrupt, until `done`.
fn deliver_on(bench: &Bench, lisn: u32, done: &AtomicBool, delivered: &AtomicUsize) {
    while !done.load(Ordering::Relaxed) {
        bench.trigger(lisn);
        bench.wait_for_line(0, true);
        assert_eq!(bench.accept(0), lisn);
        assert!(!bench.vcpus[0].pending(), "it came twice");
        bench.eoi(0, lisn);
        delivered.fetch_add(1, Ordering::Relaxed);
    }
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
fn kills_at_any_moment_of_an_upgrade_lose_and_double_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = directory.path().join("daemon");
    copy_of(env!("CARGO_BIN_EXE_papr-intc").as_ref(), &daemon);
    let daemon = fs::canonicalize(daemon).unwrap();
    let launcher = || Launcher::spawn(&daemon, vec!["--log-level".into(), "off".into()]);
    let bench = Bench::start_by(&How::mapped(IcMode::Xics), launcher(), |_| ());
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    let (done, delivered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut went_well, mut kills) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| deliver_on(&bench, FIRST, &done, &delivered));
        let claimer = scope.spawn(|| claim_on(&bench, &done));
        let killer = scope.spawn(|| {
            let mut kills = 0;
            for moment in (0u64..).take_while(|_| !done.load(Ordering::Relaxed)) {
                // An upgrade takes some milliseconds; the steps of the pause have nothing in common with it.
                thread::sleep(Duration::from_micros(moment * 617 % 7000));
                let running = children_running(&daemon);
                if let Some(pid) = running.get(moment as usize % running.len().max(1)) {
                    // An error: it has ended in this moment.
                    kills += usize::from(kill(*pid, Signal::SIGKILL).is_ok());
                }
            }
            kills
        });
        for _ in 0..60 {
            went_well += usize::from(bench.intc.upgrade(launcher()).is_ok());
        }
        done.store(true, Ordering::Relaxed);
        kills += killer.join().unwrap();
        check_claims(&claimer.join().unwrap());
    });
    println!(
        "upgrades=60 went_well={went_well} kills={kills} delivered={} lost=0 spurious=0",
        delivered.into_inner()
    );
    assert!(kills > 0);
    bench.intc.upgrade(launcher()).unwrap();
}
