//! The daemon dies; the guest's interrupts do not.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::protocol::papr::codes::RtasCall;
use papr_intc_frontend::protocol::wire::source::{ANY, Claim, claim_flag};
use papr_intc_frontend::{Error, GuestRam, Intc, Launcher, Options};

use crate::bench::{Bench, FIRST, How};

/// Trigger, line, accept, EOI, `times` times.
fn deliver(bench: &Bench, lisn: u32, times: u32) {
    for _ in 0..times {
        bench.trigger(lisn);
        bench.wait_for_line(0, true);
        assert_eq!(bench.accept(0), lisn);
        bench.eoi(0, lisn);
    }
}

#[test]
fn interrupts_flow_while_the_daemon_is_stopped_in_mapped_mode() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    bench.signal(Signal::SIGSTOP);
    deliver(&bench, FIRST, 1000);
    bench.signal(Signal::SIGCONT);
}

#[test]
fn a_killed_daemon_is_replaced_and_knows_everything() {
    for how in How::all(IcMode::Xics) {
        let bench = Bench::start(&how);
        bench.open(0);
        bench.xics_source(FIRST, false, 0);
        bench.trigger(FIRST);
        bench.wait_for_line(0, true);
        let first = bench.intc.daemon_pid();
        bench.kill_and_wait();
        assert_ne!(bench.intc.daemon_pid(), first);
        // The line survives, or is signalled again.
        bench.wait_for_line(0, true);
        assert_eq!(bench.accept(0), FIRST);
        bench.eoi(0, FIRST);
        deliver(&bench, FIRST, 10);
        let routed = bench.vcpus[1].rtas(RtasCall::GetXive, &[FIRST], 3).unwrap();
        assert_eq!(routed, [0, 0, 5]);
        bench.claim(FIRST + 1, false);
    }
}

#[test]
fn a_call_that_meets_the_death_is_answered_by_the_next_daemon() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.xics_source(FIRST, false, 0);
    // Stopped: the request is sent but not served, until the kill.
    bench.signal(Signal::SIGSTOP);
    thread::scope(|scope| {
        let caller = scope.spawn(|| bench.vcpus[0].rtas(RtasCall::SetXive, &[FIRST, 1, 3], 1));
        bench.signal(Signal::SIGKILL);
        assert_eq!(caller.join().unwrap().unwrap(), [0]);
    });
    let routed = bench.vcpus[1].rtas(RtasCall::GetXive, &[FIRST], 3).unwrap();
    assert_eq!(routed, [0, 1, 3]);
}

#[test]
fn claims_under_fire_happen_exactly_once() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    let done = AtomicBool::new(false);
    let claimed = AtomicUsize::new(0);
    // So many to each kill, that the numbers do not run out while a slow machine restarts the daemon.
    let allowed = AtomicUsize::new(100);
    thread::scope(|scope| {
        let claimer = scope.spawn(|| {
            let mut got = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if got.len() == allowed.load(Ordering::Relaxed) {
                    thread::yield_now();
                    continue;
                }
                let claim = Claim {
                    first: ANY,
                    count: 1,
                    align: 1,
                    flags: claim_flag::MSI,
                    low: FIRST,
                    high: 0x2000,
                };
                got.push(bench.intc.claim(&claim).unwrap());
                claimed.store(got.len(), Ordering::Relaxed);
            }
            got
        });
        for _ in 0..30 {
            let before = claimed.load(Ordering::Relaxed);
            bench.kill_and_wait();
            allowed.fetch_add(100, Ordering::Relaxed);
            // The next kill finds a claim under way, or just over.
            while claimed.load(Ordering::Relaxed) == before {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        let got = claimer.join().unwrap();
        // Taken in order, without a gap: none ran twice, none was lost.
        let expected: Vec<u32> = (FIRST..).take(got.len()).collect();
        assert_eq!(got, expected);
    });
    assert_eq!(bench.intc.restarts(), 30);
}

#[test]
fn interrupts_under_fire_are_all_delivered_in_mapped_mode() {
    interrupts_under_fire(&How::mapped(IcMode::Xics));
}

#[test]
fn interrupts_under_fire_are_all_delivered_when_the_daemon_runs_them() {
    let [_, remote, forwarded] = How::all(IcMode::Xics);
    interrupts_under_fire(&remote);
    interrupts_under_fire(&forwarded);
}

fn interrupts_under_fire(how: &How) {
    let bench = Bench::start(how);
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    let done = AtomicBool::new(false);
    let delivered = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                deliver(&bench, FIRST, 1);
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..20 {
            let before = delivered.load(Ordering::Relaxed);
            bench.kill_and_wait();
            while delivered.load(Ordering::Relaxed) == before {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn kicks_of_a_new_daemon_reach_the_vmm() {
    let bench = Bench::start(&How::remote(IcMode::Xics));
    bench.open(0);
    bench.open(1);
    bench.kill_and_wait();
    bench.xics_source(FIRST, false, 1);
    // The new daemon writes the eventfd that its handshake was given.
    bench.trigger(FIRST);
    bench.wait_for_line(1, true);
    assert_eq!(bench.accept(1), FIRST);
}

#[test]
fn sigterm_is_followed_by_another_daemon() {
    let bench = Bench::start(&How::mapped(IcMode::Dual));
    bench.signal(Signal::SIGTERM);
    bench.claim(FIRST, false);
    while bench.intc.restarts() == 0 {
        thread::yield_now();
    }
}

#[test]
fn a_stopped_daemon_does_not_keep_the_vmm_from_quitting() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.signal(Signal::SIGSTOP);
    thread::scope(|scope| {
        let caller = scope.spawn(|| bench.vcpus[1].rtas(RtasCall::IntOff, &[FIRST], 1));
        let other = scope.spawn(|| bench.intc.free(FIRST, 1));
        let begun = Instant::now();
        bench.intc.shutdown();
        // Generous: the promise is a second on an idle machine; a hang is what must not be.
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert!(matches!(caller.join().unwrap(), Err(Error::ShutDown)));
        assert!(matches!(other.join().unwrap(), Err(Error::ShutDown)));
    });
}

#[test]
fn what_cannot_be_started_is_an_error_and_not_a_hang() {
    let ram = std::sync::Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap());
    let options = Options::new(Machine::pseries(IcMode::Xics, Compat::Papr1, 1));
    let launcher = Launcher::spawn("/bin/false", vec![]);
    let started = Intc::start(options, launcher, ram, std::sync::Arc::new(|_| ()));
    assert!(matches!(
        started.err(),
        Some(Error::Lost | Error::Os { .. })
    ));
}
