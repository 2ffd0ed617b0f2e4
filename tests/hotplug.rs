//! vCPUs and memory that come and go while devices interrupt: nothing is lost (SPEC.md 0x1011, [P-11]).
//!
//! The device is a thread of its own: on the mapped pages where the front-end executes, by messages on
//! another vCPU's channel where the daemon does. This thread is the VMM and the guest.

#![allow(clippy::unwrap_used, reason = "a test says what it means with unwrap")]

#[path = "harness/mod.rs"]
mod harness;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use harness::Daemon;
use harness::client::errno;
use harness::guest::*;
use nix::libc;
use papr_intc_protocol::papr::codes::{RtasCall, opcode};
use papr_intc_protocol::plane::{Host, Plane};
use papr_intc_protocol::wire::handshake::executor;
use papr_intc_protocol::wire::source::{Sync, Trigger};
use papr_intc_protocol::wire::vcpu::{VcpuConnect, VcpuDisconnect, VcpuLine};
use vhost::vhost_user::message::FrontendReq;

const LISN: u32 = 0x1300;
const SOURCES: usize = 8;
/// The vCPU that comes and goes.
const GONE: u32 = 2;
const ROUNDS: usize = 100;
/// Enough to say that a source has gone silent.
const MOST_ROUNDS: usize = 100_000;
/// Interrupts taken in all, so that the device has had its turns too.
const ENOUGH: usize = 300;
/// Interrupts taken at a time.
const AT_ONCE: usize = 3 * SOURCES;
const QUEUE: u64 = 0x10_0000;

/// Device threads of the VMM kick nobody: this test looks at lines.
struct Quiet;

impl Host for Quiet {
    fn write_queue_entry(&self, _: u64, _: u32) -> bool {
        false
    }
    fn kick(&self, _: u32) {}
}

/// One event of source LISN + n.
type Fire = Box<dyn Fn(usize) + Send>;

fn by_message(guest: &Guest) -> Fire {
    let channel = guest.channel(1);
    Box::new(move |n| {
        let lisn = LISN + n as u32;
        channel.call(&Trigger { lisn, zero: 0 }).unwrap();
    })
}

fn on_the_pages(guest: &Guest) -> Fire {
    let plane = Plane::new(guest.map(), Quiet, guest.machine).unwrap();
    // An epoch slot that no vCPU has.
    let epoch = plane.geometry().epochs() - 1;
    Box::new(move |n| {
        let _ = plane.thread(epoch).trigger(LISN + n as u32);
    })
}

fn unplug(guest: &Guest) {
    let (server, zero) = (GONE, 0);
    guest.main.call(&VcpuDisconnect { server, zero }).unwrap();
}

fn plug(guest: &Guest) {
    let servers = vec![GONE];
    guest.main.call(&VcpuConnect { servers }).unwrap();
}

/// The vCPU takes its interrupts, at most so many. Each source's events so far are seen then.
fn take(guest: &Guest, most: usize, fired: &[AtomicU64], seen: &[AtomicU64]) -> usize {
    for taken in 0..most {
        let xirr = guest.must(GONE, opcode::H_XIRR, &[]);
        if xirr & 0xff_ffff == 0 {
            return taken;
        }
        let n = (xirr as u32 & 0xff_ffff) - LISN;
        // Relaxed: counted before the event, which came here by the daemon's words.
        let events = fired[n as usize].load(Ordering::Relaxed);
        seen[n as usize].store(events, Ordering::Relaxed);
        guest.must(GONE, opcode::H_EOI, &[xirr]);
    }
    most
}

fn comes_and_goes(executor: u32, device: fn(&Guest) -> Fire) {
    let (_daemon, socket) = Daemon::connected(&[]);
    let guest = Guest::boot_as(socket, machine(), executor);
    for n in 0..SOURCES as u32 {
        guest.claim_msi(LISN + n);
        assert_eq!(guest.rtas(RtasCall::SetXive, &[LISN + n, GONE, 5]), 0);
    }
    let fire = device(&guest);
    let fired: Vec<AtomicU64> = (0..SOURCES).map(|_| AtomicU64::new(0)).collect();
    let seen: Vec<AtomicU64> = (0..SOURCES).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    let mut taken = 0;
    let (counts, done, stop) = (&fired, &seen, &over);
    thread::scope(|scope| {
        scope.spawn(move || {
            // Relaxed: a flag.
            while !stop.load(Ordering::Relaxed) {
                for (n, count) in counts.iter().enumerate() {
                    // One event at a time: a lost one is not made up for by the next. Relaxed: one
                    // writer each.
                    if done[n].load(Ordering::Relaxed) == count.load(Ordering::Relaxed) {
                        count.fetch_add(1, Ordering::Relaxed);
                        fire(n);
                    }
                }
                thread::yield_now();
            }
        });
        let mut rounds = 0;
        while rounds < ROUNDS || taken < ENOUGH && rounds < MOST_ROUNDS {
            rounds += 1;
            guest.must(GONE, opcode::H_CPPR, &[0xff]);
            taken += take(&guest, AT_ONCE, &fired, &seen);
            // Whatever is presented now, and not accepted, goes back to its source.
            unplug(&guest);
            let absent = guest.main.call(&hcall(GONE, opcode::H_XIRR, &[]));
            assert_eq!(errno(absent), libc::ENOENT);
            plug(&guest);
        }
        over.store(true, Ordering::Relaxed);
    });
    guest.must(GONE, opcode::H_CPPR, &[0xff]);
    take(&guest, usize::MAX, &fired, &seen);
    let now = |counts: &[AtomicU64]| -> Vec<u64> {
        counts.iter().map(|n| n.load(Ordering::Relaxed)).collect()
    };
    assert_eq!(now(&seen), now(&fired), "events taken and fired");
}

#[test]
fn a_vcpu_comes_and_goes_under_load_and_no_interrupt_is_lost_remote() {
    comes_and_goes(executor::DAEMON, by_message);
}

#[test]
fn a_vcpu_comes_and_goes_under_load_and_no_interrupt_is_lost_mapped() {
    comes_and_goes(executor::FRONT_END, on_the_pages);
}

#[test]
fn events_for_an_unplugged_vcpu_wait_in_its_xive_queue() {
    let (_daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_queue(GONE, 6, QUEUE);
    guest.set_source(LISN, GONE, 6, 0x77);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    unplug(&guest);
    let fire = by_message(&guest);
    fire(0);
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077, "queued");
    plug(&guest);
    guest.open(GONE);
    // The queue and the routing stayed; its next event notifies.
    guest.mmio(esb_load(LISN, 1, 0));
    fire(0);
    assert_eq!(guest.ram_word(QUEUE + 4), 0x8000_0077);
    let (server, zero) = (GONE, 0);
    let line = guest.main.call(&VcpuLine { server, zero }).unwrap();
    assert_eq!(line.level, 1);
}

/// ADD_MEM_REG or REM_MEM_REG of all guest RAM.
fn region(guest: &Guest, request: FrontendReq) {
    use std::os::fd::AsFd;
    let mut body = 0u64.to_ne_bytes().to_vec();
    for field in [0, RAM, 0x7000_0000_0000, 0] {
        body.extend(field.to_ne_bytes());
    }
    let fds = match request {
        FrontendReq::ADD_MEM_REG => vec![guest.ram.as_fd()],
        _ => Vec::new(),
    };
    assert_eq!(guest.main.standard(request.into(), &body, &fds), 0);
}

#[test]
fn a_region_with_a_live_queue_may_go_and_come_back() {
    let (_daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_queue(1, 6, QUEUE);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    guest.open(1);
    let fire = by_message(&guest);
    for _ in 0..50 {
        region(&guest, FrontendReq::REM_MEM_REG);
        guest.mmio(esb_load(LISN, 1, 0));
        fire(0);
        let all = Sync {
            lisn: LISN,
            zero: 0,
        };
        guest.main.call(&all).unwrap();
        assert_eq!(guest.ram_word(QUEUE), 0, "no write to what is gone");
        region(&guest, FrontendReq::ADD_MEM_REG);
    }
    let index = || {
        guest
            .hcall_reply(0, opcode::H_INT_GET_QUEUE_CONFIG, &[1, 1, 6])
            .args[3]
    };
    let at = index();
    guest.mmio(esb_load(LISN, 1, 0));
    fire(0);
    assert_eq!(index(), at + 1);
    assert_eq!(guest.ram_word(QUEUE + 4 * at), 0x8000_0077, "queued again");
}
