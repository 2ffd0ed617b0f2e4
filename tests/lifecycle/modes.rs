//! Mapped and remote mode change at run time; irqfds go with the executor and lose no count.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::IcMode;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bench::{Bench, FIRST, How};

const LONG: Duration = Duration::from_secs(10);

fn switch(bench: &Bench, to: Executor) {
    bench.intc.quiesce(LONG).unwrap();
    bench.intc.resume(Some(to)).unwrap();
}

fn take(bench: &Bench, lisn: u32) {
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), lisn);
    bench.eoi(0, lisn);
}

/// A source with an irqfd, routed to vCPU 0.
fn with_irqfd(bench: &Bench, lisn: u32) -> EventFd {
    bench.open(0);
    bench.xics_source(lisn, false, 0);
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    bench.intc.add_irqfd(lisn, &irqfd).unwrap();
    irqfd
}

#[test]
fn an_irqfd_triggers_its_source_in_every_way_to_run_the_machine() {
    for how in How::all(IcMode::Xics) {
        let bench = Bench::start(&how);
        let irqfd = with_irqfd(&bench, FIRST + 3);
        for _ in 0..100 {
            irqfd.write(1).unwrap();
            take(&bench, FIRST + 3);
        }
        bench.intc.remove_irqfd(FIRST + 3).unwrap();
        irqfd.write(1).unwrap();
        assert_eq!(irqfd.read().unwrap(), 1, "somebody still reads it");
    }
}

#[test]
fn the_executor_changes_back_and_forth_and_every_interrupt_arrives() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = Bench::start(&how);
        let irqfd = with_irqfd(&bench, FIRST + 3);
        bench.xics_source(FIRST + 4, false, 0);
        for round in 0..10 {
            let to = if round % 2 == 0 {
                Executor::Daemon
            } else {
                Executor::FrontEnd
            };
            switch(&bench, to);
            irqfd.write(1).unwrap();
            take(&bench, FIRST + 3);
            bench.trigger(FIRST + 4);
            take(&bench, FIRST + 4);
        }
    }
}

#[test]
fn what_comes_while_quiesced_is_delivered_by_the_next_executor() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    let irqfd = with_irqfd(&bench, FIRST + 3);
    bench.xics_source(FIRST + 4, false, 0);
    for to in [Executor::Daemon, Executor::FrontEnd, Executor::FrontEnd] {
        bench.intc.quiesce(LONG).unwrap();
        irqfd.write(1).unwrap();
        bench.trigger(FIRST + 4);
        assert!(!bench.vcpus[0].pending());
        bench.intc.resume(Some(to)).unwrap();
        let mut got = [0, 0].map(|_| {
            bench.wait_for_line(0, true);
            let xisr = bench.accept(0);
            bench.eoi(0, xisr);
            xisr
        });
        got.sort_unstable();
        assert_eq!(got, [FIRST + 3, FIRST + 4]);
    }
}

#[test]
fn a_daemon_that_dies_while_quiesced_leaves_the_machine_quiesced() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = Bench::start(&how);
        let irqfd = with_irqfd(&bench, FIRST + 3);
        bench.intc.quiesce(LONG).unwrap();
        irqfd.write(1).unwrap();
        bench.kill_and_wait();
        assert!(!bench.vcpus[0].pending());
        bench.intc.resume(None).unwrap();
        take(&bench, FIRST + 3);
        assert!(bench.intc.resume(None).is_err(), "resumed twice");
    }
}

#[test]
fn the_executor_changes_under_fire() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    let irqfd = with_irqfd(&bench, FIRST + 3);
    bench.xics_source(FIRST + 4, false, 0);
    let done = AtomicBool::new(false);
    let steps = AtomicUsize::new(0);
    let step = || steps.fetch_add(1, Ordering::Relaxed);
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0;
            while !done.load(Ordering::Relaxed) {
                let before = steps.load(Ordering::Relaxed);
                bench.kill_and_wait();
                kills += 1;
                // At most one kill a step: with more it is chance whether a step ever ends.
                while steps.load(Ordering::Relaxed) == before && !done.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
            kills
        });
        for _ in 0..30 {
            // A daemon that dies with the count of an irqfd, or with an accepted interrupt, takes it
            // along (see `restart`); a trigger is sent again, and may run twice.
            switch(&bench, Executor::Daemon);
            step();
            bench.trigger(FIRST + 4);
            step();
            switch(&bench, Executor::FrontEnd);
            step();
            irqfd.write(1).unwrap();
            let mut missing = vec![FIRST + 3, FIRST + 4];
            while !missing.is_empty() {
                bench.wait_for_line(0, true);
                let xisr = bench.accept(0);
                bench.eoi(0, xisr);
                missing.retain(|m| *m != xisr);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(killer.join().unwrap() > 0);
    });
}
