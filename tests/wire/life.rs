//! Interrupts from a device to a vCPU through the daemon, in remote mode.

use papr_intc_protocol::papr::codes::{RtasCall, opcode};
use papr_intc_protocol::wire::source::{SetLevel, Trigger};
use papr_intc_protocol::wire::vcpu::VcpuLine;

use crate::harness::guest::*;

const QUEUE: u64 = 0x10_0000;
const LISN: u32 = 0x1300;

fn trigger(guest: &Guest, lisn: u32) {
    guest.main.call(&Trigger { lisn, zero: 0 }).unwrap();
}

fn level(guest: &Guest, lisn: u32, level: u32) {
    guest.main.call(&SetLevel { lisn, level }).unwrap();
}

fn line(guest: &Guest, server: u32) -> bool {
    let reply = guest.main.call(&VcpuLine { server, zero: 0 }).unwrap();
    reply.level == 1
}

/// A XIVE machine with one source routed to server 1, priority 6.
fn xive() -> (crate::harness::Daemon, Guest) {
    let (daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_queue(1, 6, QUEUE);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.open(1);
    // PQ 01 to 00: the guest unmasks.
    guest.mmio(esb_load(LISN, 1, 0xc00));
    was_kicked(&guest.kicks[1]);
    (daemon, guest)
}

#[test]
fn an_event_goes_from_source_to_queue_to_line_and_is_acknowledged() {
    let (_daemon, guest) = xive();
    trigger(&guest, LISN);
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077, "generation 1, EISN 77");
    assert!(was_kicked(&guest.kicks[1]) && line(&guest, 1) && !line(&guest, 0));

    let acknowledged = guest.mmio(tima_load(1, 0x2_0810, 2));
    assert_eq!((acknowledged.value, acknowledged.line.level), (0x8006, 0));
    assert!(!line(&guest, 1));
    guest.open(1);

    // Two more before the EOI: one entry at the EOI, by PQ.
    trigger(&guest, LISN);
    trigger(&guest, LISN);
    assert_eq!(guest.ram_word(QUEUE + 4), 0);
    guest.mmio(esb_load(LISN, 1, 0));
    assert_eq!(guest.ram_word(QUEUE + 4), 0x8000_0077);
    assert_eq!(guest.ram_word(QUEUE + 8), 0);
}

#[test]
fn a_guest_triggers_by_its_own_store() {
    let (_daemon, guest) = xive();
    let reply = guest.mmio(esb_store(LISN, 0, 0));
    assert_eq!(reply.line.level, 0, "the line of server 0");
    assert!(line(&guest, 1));
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077);
}

#[test]
fn an_xics_interrupt_is_presented_accepted_and_ended() {
    let (_daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    assert_eq!(guest.rtas(RtasCall::SetXive, &[LISN, 2, 5]), 0);
    guest.must(2, opcode::H_CPPR, &[0xff]);
    was_kicked(&guest.kicks[2]);

    trigger(&guest, LISN);
    assert!(was_kicked(&guest.kicks[2]) && line(&guest, 2) && !line(&guest, 0));
    let reply = guest.hcall_reply(2, opcode::H_XIRR_X, &[]);
    assert_eq!(reply.ret, 0);
    assert_eq!(
        reply.args[..2],
        [0xff00_0000 | u64::from(LISN), 0x1234_5678]
    );
    assert_eq!(reply.line.level, 0);
    guest.must(2, opcode::H_EOI, &[reply.args[0]]);
    assert_eq!(guest.must(2, opcode::H_XIRR, &[]), 0xff00_0000);
}

#[test]
fn a_level_interrupts_again_until_it_falls() {
    let (_daemon, guest) = Guest::new(machine());
    guest.claim_lsi(LISN);
    assert_eq!(guest.rtas(RtasCall::SetXive, &[LISN, 0, 5]), 0);
    guest.must(0, opcode::H_CPPR, &[0xff]);
    level(&guest, LISN, 1);
    for _ in 0..3 {
        let xirr = guest.must(0, opcode::H_XIRR, &[]);
        assert_eq!(xirr & 0xff_ffff, u64::from(LISN));
        guest.must(0, opcode::H_EOI, &[xirr]);
    }
    let xirr = guest.must(0, opcode::H_XIRR, &[]);
    level(&guest, LISN, 0);
    guest.must(0, opcode::H_EOI, &[xirr]);
    assert!(!line(&guest, 0));
}

#[test]
fn an_ipi_reaches_another_vcpu_in_both_controllers() {
    let (_daemon, guest) = Guest::new(machine());
    guest.must(3, opcode::H_CPPR, &[0xff]);
    guest.must(0, opcode::H_IPI, &[3, 4]);
    assert!(was_kicked(&guest.kicks[3]));
    assert_eq!(guest.must(3, opcode::H_XIRR, &[]), 0xff00_0002);

    guest.choose_xive();
    guest.set_queue(3, 4, QUEUE);
    guest.set_source(3, 3, 4, 3);
    guest.open(3);
    guest.mmio(esb_load(3, 1, 0xc00));
    guest.mmio(esb_store(3, 0, 0));
    assert!(line(&guest, 3));
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0003);
}

#[test]
fn an_irqfd_triggers_its_source_without_a_message() {
    use papr_intc_protocol::wire::source::{ClearIrqfds, IrqfdItem, SetIrqfds, irqfd_kind};
    let (_daemon, guest) = xive();
    let irqfd = eventfd();
    let items = vec![IrqfdItem {
        lisn: LISN,
        kind: irqfd_kind::EDGE,
        input: 0,
        zero: 0,
    }];
    let fds = crate::harness::client::borrow(std::slice::from_ref(&irqfd));
    let set = SetIrqfds {
        items: items.clone(),
    };
    guest.main.call_fds(&set, &fds).unwrap();
    irqfd.write(1).unwrap();
    let until = std::time::Instant::now() + crate::harness::LONG;
    let readable = nix::poll::PollFlags::POLLIN;
    crate::harness::wait_for(&guest.kicks[1], readable, until, "the irqfd's interrupt");
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077);
    assert!(irqfd.read().is_err(), "the daemon took the count");

    guest.main.call(&ClearIrqfds { items }).unwrap();
    irqfd.write(1).unwrap();
    guest.main.ping();
    assert_eq!(irqfd.read().unwrap(), 1, "nobody reads it any more");
}

#[test]
fn irqfds_are_read_by_the_executor_only_and_recorded_while_quiesced() {
    use papr_intc_protocol::wire::handshake::executor;
    use papr_intc_protocol::wire::machine::{Quiesce, Resume};
    use papr_intc_protocol::wire::source::{IrqfdItem, SetIrqfds, irqfd_kind};
    let (daemon, guest) = xive();
    let irqfd = eventfd();
    let items = vec![IrqfdItem {
        lisn: LISN,
        kind: irqfd_kind::EDGE,
        input: 0,
        zero: 0,
    }];
    let fds = crate::harness::client::borrow(std::slice::from_ref(&irqfd));
    guest.main.call_fds(&SetIrqfds { items }, &fds).unwrap();
    let watched = daemon.watched();
    let quiesce = || {
        let request = Quiesce {
            deadline_ms: 1000,
            zero: 0,
        };
        guest.main.call(&request).unwrap();
    };
    // The reply comes first, then the daemon looks at what follows from it.
    let resume = |executor| {
        guest.main.call(&Resume { executor, zero: 0 }).unwrap();
        guest.main.ping();
    };
    quiesce();
    irqfd.write(1).unwrap();
    guest.main.ping();
    guest.main.ping();
    assert!(irqfd.read().is_err(), "the daemon took the count");
    assert_eq!(guest.ram_word(QUEUE), 0, "recorded");
    resume(executor::FRONT_END);
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077);
    assert_eq!(daemon.watched(), watched - 1);
    irqfd.write(1).unwrap();
    guest.main.ping();
    assert_eq!(irqfd.read().unwrap(), 1, "the front-end's to read");

    guest.mmio(esb_load(LISN, 1, 0));
    irqfd.write(1).unwrap();
    quiesce();
    resume(executor::DAEMON);
    assert_eq!(daemon.watched(), watched);
    guest.main.ping();
    guest.main.ping();
    assert_eq!(
        guest.ram_word(QUEUE + 4),
        0x8000_0077,
        "what was left in it"
    );
}
