//! A daemon that is stopped, not dead: the front-end finds it silent, fences it, and goes on.
//!
//! The promise to operators is a second on a machine with time to spare: 200 ms of patience, 250 ms for the
//! answer to a PING, and a restart. The times are printed (`--nocapture`); what is asserted is far more, so that a
//! busy machine fails nothing.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode, ret};
use papr_intc_frontend::{Absence, Change, Error, Executor, Reason};

use crate::bench::{Bench, FIRST, How, OV5_XIVE};

/// Far beyond the promise, far below a hang.
const GENEROUS: Duration = Duration::from_secs(10);

/// What `f` gives, without a hang; the time is printed.
fn promptly<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let value = f();
    let took = begun.elapsed();
    println!("{what}: {took:?}");
    assert!(took < GENEROUS, "{what} took {took:?}");
    value
}

#[test]
fn whatever_a_stopped_daemon_is_asked_is_answered_by_the_next_one() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = Bench::start(&how);
        bench.xics_source(FIRST, false, 0);
        let calls: [(&str, &dyn Fn()); 5] = [
            ("claim", &|| bench.claim(FIRST + 1, false)),
            ("ibm,set-xive", &|| {
                let rets = bench.vcpus[1].rtas(RtasCall::SetXive, &[FIRST, 1, 7], 1);
                assert_eq!(rets.unwrap(), [0]);
            }),
            ("pause", &|| bench.intc.quiesce(GENEROUS).unwrap()),
            ("go on", &|| bench.intc.resume(None).unwrap()),
            ("quit", &|| bench.intc.shutdown()),
        ];
        for (n, (what, call)) in calls.into_iter().enumerate() {
            bench.signal(Signal::SIGSTOP);
            promptly(what, call);
            if what != "quit" {
                bench.await_restarts(n as u64 + 1);
            }
            if what == "go on" {
                // Not two hangs in a row: the limit has doubled by now.
                let routed = bench.vcpus[1].rtas(RtasCall::GetXive, &[FIRST], 3).unwrap();
                assert_eq!(routed, [0, 1, 7]);
            }
        }
    }
}

#[test]
fn a_daemon_that_executes_is_found_hung_though_nobody_asks_it_anything() {
    let changes = std::sync::Mutex::new(Vec::new());
    let changes = std::sync::Arc::new(changes);
    let hears = std::sync::Arc::clone(&changes);
    let bench = Bench::start_with(&How::remote(IcMode::Xics), |options| {
        options.watch.idle = Some(Duration::from_millis(20));
        options.on_change = papr_intc_frontend::OnChange::call(move |change| {
            hears.lock().unwrap().push(change.clone());
        });
    });
    bench.signal(Signal::SIGSTOP);
    while bench.intc.restarts() == 0 {
        thread::yield_now();
    }
    let told = loop {
        let told = changes.lock().unwrap().clone();
        if told.len() >= 2 {
            break told;
        }
        thread::yield_now();
    };
    assert!(
        matches!(
            &told[..],
            [
                Change::Absent { reason: Reason::Silent(_), how },
                Change::Present { generation: 2, .. }
            ] if how.contains("SIGKILL")
        ),
        "{told:?}"
    );
}

#[test]
fn interrupts_flow_in_mapped_mode_while_the_daemon_is_stopped() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    bench.signal(Signal::SIGSTOP);
    for _ in 0..1000 {
        bench.trigger(FIRST);
        assert_eq!(bench.accept(0), FIRST);
        bench.eoi(0, FIRST);
    }
    assert_eq!(bench.intc.restarts(), 0, "nobody had a reason to doubt");
}

#[test]
fn a_guest_may_be_told_to_call_again_and_its_call_runs_once() {
    let bench = Bench::start_with(&How::mapped(IcMode::Dual), |options| {
        options.absence = Absence::Busy(Duration::from_millis(1));
        options.watch.patience = Duration::from_millis(5);
        options.watch.answer = Duration::from_millis(500);
    });
    bench.claim(FIRST, false);
    bench.vcpus[0].cas(&OV5_XIVE).unwrap();
    bench.signal(Signal::SIGSTOP);
    let queue = [0, 0, 6, 0x10_0000, 16];
    let mut busy = 0;
    loop {
        match bench.hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &queue).0 {
            ret::H_BUSY => busy += 1,
            done => {
                assert_eq!(done, ret::H_SUCCESS);
                break;
            }
        }
    }
    assert!(busy > 0);
    bench.await_restarts(1);
    let (done, args) = bench.hcall(0, opcode::H_INT_GET_QUEUE_CONFIG, &[0, 0, 6]);
    assert_eq!((done, args[1], args[2]), (ret::H_SUCCESS, 0x10_0000, 16));
}

#[test]
fn a_daemon_that_was_mapped_before_is_asked_too() {
    let bench = Bench::start_with(&How::mapped(IcMode::Xics), |options| {
        options.watch.idle = Some(Duration::from_millis(20));
    });
    bench.intc.demote().unwrap();
    bench.signal(Signal::SIGSTOP);
    bench.await_restarts(1);
}

#[test]
fn a_cancelled_call_goes_on_where_it_stopped() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = Bench::start_with(&how, |options| {
            // The wait ends by the cancelling, not by the fence.
            options.watch.answer = Duration::from_secs(60);
            options.watch.patience = Duration::from_millis(5);
            options.watch.idle = None;
        });
        bench.xics_source(FIRST, false, 0);
        bench.signal(Signal::SIGSTOP);
        let vcpu = &bench.vcpus[1];
        vcpu.set_cancelled(true);
        let set = || vcpu.rtas(RtasCall::SetXive, &[FIRST, 1, 7], 1);
        assert!(matches!(set(), Err(Error::Cancelled)));
        bench.signal(Signal::SIGCONT);
        vcpu.set_cancelled(false);
        assert_eq!(set().unwrap(), [0]);
        assert_eq!(
            vcpu.rtas(RtasCall::GetXive, &[FIRST], 3).unwrap(),
            [0, 1, 7]
        );
        assert_eq!(bench.intc.restarts(), 0);
    }
}

#[test]
fn a_daemon_that_is_stopped_in_a_machine_wide_operation_does_not_hold_the_guest() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = Bench::start(&how);
        bench.open(0);
        bench.xics_source(FIRST, false, 0);
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    bench.intc.quiesce(GENEROUS).unwrap();
                    bench.intc.resume(None).unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let mut stops = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                bench.trigger(FIRST);
                bench.wait_for_line(0, true);
                assert_eq!(bench.accept(0), FIRST);
                bench.eoi(0, FIRST);
                if stops < 3 {
                    stops += 1;
                    let restarts = bench.intc.restarts();
                    bench.signal(Signal::SIGSTOP);
                    // Whoever is the next to need it finds out.
                    while bench.intc.restarts() == restarts
                        && !done.load(std::sync::atomic::Ordering::Relaxed)
                    {
                        thread::yield_now();
                    }
                }
            }
        });
    }
}

#[test]
fn the_executor_of_a_stopped_daemon_is_taken_over() {
    let bench = Bench::start(&How::remote(IcMode::Xics));
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    bench.trigger(FIRST);
    bench.signal(Signal::SIGSTOP);
    promptly("pause", || bench.intc.quiesce(GENEROUS).unwrap());
    bench.intc.resume(Some(Executor::FrontEnd)).unwrap();
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), FIRST);
}
