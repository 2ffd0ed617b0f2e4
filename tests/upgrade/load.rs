//! N → N + 1 → N while interrupts flow: none is lost, none comes twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use papr_intc_frontend::{Executor, Launcher};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Heard, next};
use crate::bench::{Bench, FIRST, How, OV5_XIVE, launcher};

/// Log2 of the ESB space of a LISN; its management page; the OS ring.
const ESB_SHIFT: u32 = 17;
const MANAGEMENT: u64 = 0x1_0000;
const TIMA_OS: u64 = 0x2_0000;
/// Where the guest has its event queue (2^16 bytes).
const QUEUE: u64 = 0x10_0000;

/// A guest that takes what comes: returns the source, after its EOI.
trait Guest: Sync {
    fn take(&self, bench: &Bench) -> u32;
}

struct Xics;

impl Guest for Xics {
    fn take(&self, bench: &Bench) -> u32 {
        bench.wait_for_line(0, true);
        let xisr = bench.accept(0);
        if xisr != 0 {
            bench.eoi(0, xisr);
        }
        xisr
    }
}

/// The queue's next entry and its generation bit.
struct Xive(AtomicU64);

impl Guest for Xive {
    fn take(&self, bench: &Bench) -> u32 {
        const ENTRIES: u64 = 0x4000;
        let vcpu = &bench.vcpus[0];
        let index = self.0.load(Ordering::Relaxed);
        let entry = bench.ram.read_u32_be(QUEUE + index % ENTRIES * 4).unwrap();
        if u64::from(entry >> 31) == (index / ENTRIES + 1) % 2 {
            self.0.store(index + 1, Ordering::Relaxed);
            let lisn = entry & 0x7fff_ffff;
            let management = u64::from(lisn) << ESB_SHIFT | MANAGEMENT;
            vcpu.esb_load(management, 8).unwrap();
            return lisn;
        }
        // Several entries may have come with one notification.
        bench.wait_for_line(0, true);
        vcpu.tima_load(TIMA_OS + 0x810, 2).unwrap();
        vcpu.tima_store(TIMA_OS + 0x11, 1, 0xff).unwrap();
        0
    }
}

fn xive_guest(bench: &Bench) -> Xive {
    bench.vcpus[0].cas(&OV5_XIVE).unwrap();
    // Flag 1: every event notifies.
    let set_queue = [1, 0, 6, QUEUE, 16];
    assert_eq!(
        bench.hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &set_queue).0,
        0
    );
    bench.vcpus[0].tima_store(TIMA_OS + 0x11, 1, 0xff).unwrap();
    Xive(AtomicU64::new(0))
}

fn source(bench: &Bench, lisn: u32, xive: bool) {
    if !xive {
        return bench.xics_source(lisn, false, 0);
    }
    bench.claim(lisn, false);
    let set_source = [2, u64::from(lisn), 0, 6, u64::from(lisn)];
    let set = bench.hcall(0, opcode::H_INT_SET_SOURCE_CONFIG, &set_source);
    assert_eq!(set.0, 0);
    let management = u64::from(lisn) << ESB_SHIFT | MANAGEMENT;
    bench.vcpus[0].esb_load(management + 0xc00, 8).unwrap();
}

/// What a run saw.
struct Seen {
    delivered: u64,
    longest_gap: Duration,
    away: Vec<Duration>,
}

/// Upgrades one after the other while a source is triggered, one has an irqfd, and calls that need the
/// daemon are outstanding. Each interrupt must come before the next one of its source is made.
fn under_load(bench: &Bench, guest: &dyn Guest, xive: bool, launchers: &[Launcher]) -> Seen {
    let (by_call, by_irqfd) = (FIRST + 3, FIRST + 4);
    source(bench, by_call, xive);
    source(bench, by_irqfd, xive);
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    bench.intc.add_irqfd(by_irqfd, &irqfd).unwrap();
    let (done, delivered) = (AtomicBool::new(false), AtomicU64::new(0));
    let running = || !done.load(Ordering::Relaxed);
    let mut away = Vec::new();
    let longest_gap = thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            let mut come = [0, 0];
            for round in 1u64.. {
                bench.trigger(by_call);
                irqfd.write(1).unwrap();
                while come != [round, round] {
                    match guest.take(bench) {
                        lisn if lisn == by_call => come[0] += 1,
                        lisn if lisn == by_irqfd => come[1] += 1,
                        other => assert_eq!(other, 0, "nobody triggered it"),
                    }
                    assert!(come[0].max(come[1]) <= round, "one came twice: {come:?}");
                }
                longest = longest.max(last.elapsed());
                last = Instant::now();
                delivered.fetch_add(2, Ordering::Relaxed);
                if !running() {
                    break;
                }
            }
            longest
        });
        scope.spawn(|| {
            // Calls that only a daemon answers, one outstanding at any time.
            while running() {
                if xive {
                    let info = bench.hcall(1, opcode::H_INT_GET_SOURCE_INFO, &[0, by_call.into()]);
                    assert_eq!(info.0, 0);
                } else {
                    let got = bench.vcpus[1].rtas(RtasCall::GetXive, &[by_call], 3);
                    assert_eq!(got.unwrap(), [0, 0, 5]);
                }
            }
        });
        for launcher in launchers {
            let before = delivered.load(Ordering::Relaxed);
            away.push(bench.intc.upgrade(launcher.clone()).unwrap().away);
            // Under the new one too.
            while delivered.load(Ordering::Relaxed) < before + 20 && !vcpu.is_finished() {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        vcpu.join().unwrap()
    });
    Seen {
        delivered: delivered.into_inner(),
        longest_gap,
        away,
    }
}

fn there_and_back(times: usize) -> Vec<Launcher> {
    let pair = || [next(&[]), launcher()];
    (0..times).flat_map(|_| pair()).collect()
}

fn report(what: &str, mut seen: Seen) {
    seen.away.sort();
    println!(
        "{what}: upgrades={} delivered={} lost=0 longest_gap={:?} daemon_away median={:?} worst={:?}",
        seen.away.len(),
        seen.delivered,
        seen.longest_gap,
        seen.away[seen.away.len() / 2],
        seen.away[seen.away.len() - 1],
    );
}

#[test]
fn there_and_back_under_load_through_remote_mode_with_xics() {
    let heard = Heard::default();
    let bench = Bench::start_by(&How::mapped(IcMode::Xics), launcher(), |o| {
        o.on_change = heard.listen()
    });
    bench.open(0);
    let seen = under_load(&bench, &Xics, false, &there_and_back(5));
    assert_eq!(heard.turns(), (5, 5), "mapped, remote, mapped, ...");
    assert_eq!(bench.intc.executor(), Executor::FrontEnd);
    report("N, N+1, N, XICS", seen);
}

#[test]
fn there_and_back_under_load_through_remote_mode_with_xive() {
    let heard = Heard::default();
    let bench = Bench::start_by(&How::mapped(IcMode::Dual), launcher(), |o| {
        o.on_change = heard.listen()
    });
    let guest = xive_guest(&bench);
    let seen = under_load(&bench, &guest, true, &there_and_back(5));
    assert_eq!(heard.turns(), (5, 5), "mapped, remote, mapped, ...");
    report("N, N+1, N, XIVE", seen);
}

#[test]
fn memory_of_the_layout_of_before_goes_to_this_version_and_back_under_load() {
    let before = || next(&["--layout", "1"]);
    let bench = Bench::start_by(&How::mapped(IcMode::Dual), before(), |_| {});
    let guest = xive_guest(&bench);
    let seen = under_load(&bench, &guest, true, &[launcher(), before(), launcher()]);
    let words = bench.intc.storage().unwrap();
    assert_eq!(words.geometry().layout(), 1);
    report("layout 1, N+1, N, N+1, N, XIVE", seen);
}

#[test]
fn a_remote_machine_stays_remote_and_its_irqfds_go_along() {
    for how in [IcMode::Xics, IcMode::Dual] {
        let heard = Heard::default();
        let bench = Bench::start_by(&How::remote(how), launcher(), |o| {
            o.on_change = heard.listen()
        });
        let launchers = there_and_back(5);
        let seen = if how == IcMode::Xics {
            bench.open(0);
            under_load(&bench, &Xics, false, &launchers)
        } else {
            let guest = xive_guest(&bench);
            under_load(&bench, &guest, true, &launchers)
        };
        assert_eq!(heard.turns(), (0, 0));
        report(&format!("remote, {how:?}"), seen);
    }
}

#[test]
fn in_mapped_mode_an_upgrade_to_the_same_version_stops_no_interrupt() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.open(0);
    let launchers: Vec<_> = (0..10).map(|_| launcher()).collect();
    report(
        "mapped, N to N",
        under_load(&bench, &Xics, false, &launchers),
    );
}

#[test]
fn the_vmm_turns_the_machine_under_load() {
    for xive in [false, true] {
        let how = How::mapped(if xive { IcMode::Dual } else { IcMode::Xics });
        let bench = Bench::start(&how);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    bench.intc.demote().unwrap();
                    assert_eq!(bench.intc.executor(), Executor::Daemon);
                    bench.intc.promote().unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
            // Not to the next version: the VMM cannot promote what that one demoted.
            let same = &[launcher()];
            if xive {
                let guest = xive_guest(&bench);
                under_load(&bench, &guest, true, same);
            } else {
                bench.open(0);
                under_load(&bench, &Xics, false, same);
            }
            while !done.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        });
    }
}

#[test]
fn a_quiesced_machine_may_be_upgraded_and_goes_on_under_its_new_executor() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.open(0);
    source(&bench, FIRST, false);
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    bench.intc.add_irqfd(FIRST, &irqfd).unwrap();
    for (to, executor) in [
        (next(&[]), Executor::Daemon),
        (launcher(), Executor::FrontEnd),
    ] {
        for depth in [1, 2] {
            (0..depth).for_each(|_| bench.intc.quiesce(Duration::from_secs(1)).unwrap());
            irqfd.write(1).unwrap();
            bench.intc.upgrade(to.clone()).unwrap();
            assert!(!bench.vcpus[0].pending(), "it is quiesced");
            (0..depth).for_each(|_| bench.intc.resume(None).unwrap());
            assert_eq!(bench.intc.executor(), executor);
            assert_eq!(Xics.take(&bench), FIRST);
            irqfd.write(1).unwrap();
            assert_eq!(Xics.take(&bench), FIRST);
        }
    }
}
