//! What concerns the whole machine: CAS, reset, quiesce and resume; and the wait for threads of the VMM
//! that are inside a transition, played here by an epoch held odd.

use std::time::Instant;

use nix::libc;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use papr_intc_protocol::layout::header::{Executor, Gate, State};
use papr_intc_protocol::layout::mapped::MappedStorage;
use papr_intc_protocol::layout::words::ics;
use papr_intc_protocol::layout::{Compat, IcMode, Machine, Page, Storage};
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret};
use papr_intc_protocol::plane::epoch::Inside;
use papr_intc_protocol::wire::Rest;
use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::handshake::{Ping, executor};
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::{VcpuLine, WATCH};
use std::sync::atomic::Ordering;

use crate::harness::client::errno;
use crate::harness::guest::*;
use crate::harness::{Daemon, LONG, wait_for};

const LISN: u32 = 0x1300;

fn quiesce(deadline_ms: u32) -> Quiesce {
    Quiesce {
        deadline_ms,
        zero: 0,
    }
}

fn resume(executor: u32) -> Resume {
    Resume { executor, zero: 0 }
}

fn trigger(guest: &Guest, lisn: u32) {
    guest.main.call(&Trigger { lisn, zero: 0 }).unwrap();
}

fn line(guest: &Guest, server: u32) -> bool {
    let reply = guest.main.call(&VcpuLine { server, zero: 0 }).unwrap();
    reply.level == 1
}

/// A machine in mapped mode whose source [`LISN`] goes to an open server 2 by XICS.
fn mapped() -> (Daemon, Guest, MappedStorage) {
    let (daemon, socket) = Daemon::connected(&[]);
    let guest = Guest::boot_as(socket, machine(), executor::FRONT_END);
    guest.claim_msi(LISN);
    assert_eq!(guest.rtas(RtasCall::SetXive, &[LISN, 2, 5]), 0);
    guest.must(2, opcode::H_CPPR, &[0xff]);
    was_kicked(&guest.kicks[2]);
    let view = guest.map();
    (daemon, guest, view)
}

#[test]
fn a_guest_changes_its_mind_at_cas_as_often_as_it_likes() {
    let (_daemon, guest) = Guest::new(machine());
    guest.claim_lsi(LISN);
    guest
        .main
        .call(&SetLevel {
            lisn: LISN,
            level: 1,
        })
        .unwrap();
    for round in 0..3 {
        let chosen = guest.cas(0x40);
        assert_eq!(
            (chosen.ret, chosen.byte_23, chosen.mode),
            (0, 0x40, mode::XIVE)
        );
        guest.set_queue(1, 6, 0x10_0000);
        guest.set_source(LISN, 1, 6, 0x77);
        guest.open(1);
        // Unmask by an EOI with the level high: pending at once.
        let args = [0, LISN.into(), 0xc00, 0];
        guest.must(0, opcode::H_INT_ESB, &args);
        guest.must(0, opcode::H_INT_ESB, &[0, LISN.into(), 0, 0]);
        assert!(line(&guest, 1), "round {round}: the level came along");
        assert_eq!(guest.hcall(1, opcode::H_XIRR, &[]).0, ret::H_HARDWARE);

        let chosen = guest.cas(0);
        assert_eq!(
            (chosen.ret, chosen.byte_23, chosen.mode),
            (0, 0, mode::XICS)
        );
        assert_eq!(guest.hcall(0, opcode::H_INT_RESET, &[]).0, ret::H_FUNCTION);
        assert_eq!(guest.rtas(RtasCall::SetXive, &[LISN, 0, 5]), 0);
        guest.must(0, opcode::H_CPPR, &[0xff]);
        let xirr = guest.must(0, opcode::H_XIRR, &[]);
        assert_eq!(xirr & 0xff_ffff, u64::from(LISN), "round {round}");
        guest.must(0, opcode::H_EOI, &[xirr]);
    }
}

#[test]
fn an_impossible_choice_changes_nothing() {
    let only = Machine::pseries(IcMode::Xics, Compat::Papr1, 4);
    let (_daemon, guest) = Guest::new(only);
    let before = guest.words();
    let refused = guest.cas(0x40);
    assert_eq!((refused.ret, refused.mode), (ret::H_PARAMETER, mode::XICS));
    let (_daemon, dual) = Guest::new(machine());
    let untouched = dual.words();
    for ov5 in [vec![], vec![25, 0, 0], vec![255; 256]] {
        let request = Cas {
            server: 0,
            zero: 0,
            ov5: Rest(ov5),
        };
        assert_eq!(dual.main.call(&request).unwrap().ret, ret::H_PARAMETER);
    }
    for byte in [0x80, 0xc0] {
        assert_eq!(dual.cas(byte).ret, ret::H_PARAMETER);
    }
    assert!(guest.words() == before && dual.words() == untouched);
}

#[test]
fn quiesce_nests_and_what_devices_did_meanwhile_is_made_up_for() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    guest.claim_msi(LISN);
    guest.claim_lsi(LISN + 1);
    for lisn in [LISN, LISN + 1] {
        assert_eq!(guest.rtas(RtasCall::SetXive, &[lisn, 2, 5]), 0);
    }
    guest.must(2, opcode::H_CPPR, &[0xff]);
    assert_eq!(errno(main.call(&resume(0))), libc::EINVAL);
    assert_eq!(main.call(&quiesce(1000)).unwrap().depth, 1);
    assert_eq!(main.call(&quiesce(1000)).unwrap().depth, 2);

    was_kicked(&guest.kicks[2]);
    (0..3).for_each(|_| trigger(&guest, LISN));
    main.call(&SetLevel {
        lisn: LISN + 1,
        level: 1,
    })
    .unwrap();
    assert!(!line(&guest, 2) && !was_kicked(&guest.kicks[2]));
    let refused = [
        errno(main.call(&hcall(2, opcode::H_XIRR, &[]))),
        errno(main.call(&rtas(RtasCall::IntOff as u32, &[LISN], 1))),
        errno(main.call(&tima_load(2, 0x2_0010, 8))),
    ];
    assert_eq!(refused, [libc::EBUSY; 3]);

    assert_eq!(errno(main.call(&resume(3))), libc::EINVAL);
    assert_eq!(main.call(&resume(executor::KEEP)).unwrap().depth, 1);
    assert!(!line(&guest, 2));
    assert_eq!(main.call(&resume(executor::FRONT_END)).unwrap().depth, 0);
    assert!(was_kicked(&guest.kicks[2]));
    let state = State::read(&guest.map());
    assert_eq!(
        (state.executor, state.gate),
        (Executor::FrontEnd, Gate::Open)
    );
    for lisn in [LISN, LISN + 1] {
        let xirr = guest.must(2, opcode::H_XIRR, &[]);
        assert_eq!(xirr & 0xff_ffff, u64::from(lisn));
        if lisn == LISN + 1 {
            main.call(&SetLevel { lisn, level: 0 }).unwrap();
        }
        guest.must(2, opcode::H_EOI, &[xirr]);
    }
    assert!(!line(&guest, 2), "three latched triggers are one");
}

#[test]
fn what_was_recorded_for_one_controller_reaches_the_other() {
    let (_daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_queue(1, 6, 0x10_0000);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    guest.open(1);
    guest.cas(0);
    guest.main.call(&quiesce(1000)).unwrap();
    trigger(&guest, LISN);
    guest.choose_xive();
    guest.main.call(&resume(0)).unwrap();
    assert_eq!(guest.ram_word(0x10_0000), 0x8000_0077);
    assert!(line(&guest, 1));
}

#[test]
fn a_barrier_that_failed_in_a_quiesced_machine_starts_nothing() {
    let (_daemon, guest, view) = mapped();
    guest.main.call(&quiesce(1000)).unwrap();
    trigger(&guest, LISN);
    let inside = Inside::enter(&view, 3);
    let reset = MachineReset { flags: 0, zero: 0 };
    assert_eq!(errno(guest.main.call(&reset)), libc::ETIMEDOUT);
    drop(inside);
    // Waits for the end of the late one.
    assert_eq!(guest.main.call(&quiesce(60_000)).unwrap().depth, 2);
    assert!(!line(&guest, 2));
    guest.main.call(&resume(0)).unwrap();
    assert!(!line(&guest, 2));
    guest.main.call(&resume(0)).unwrap();
    assert!(line(&guest, 2));
}

#[test]
fn a_reset_in_a_quiesced_machine_leaves_it_quiesced() {
    let (_daemon, guest) = Guest::new(machine());
    let reset = MachineReset { flags: 0, zero: 0 };
    guest.main.call(&quiesce(1000)).unwrap();
    guest.choose_xive();
    guest.main.call(&reset).unwrap();
    assert_eq!(State::read(&guest.map()).gate, Gate::Latch);
    assert_eq!(guest.main.call(&resume(0)).unwrap().depth, 0);
    assert_eq!(State::read(&guest.map()).gate, Gate::Open);
    guest.must(0, opcode::H_XIRR, &[]);
}

#[test]
fn a_machine_reset_keeps_claims_levels_and_vcpus_and_frees_msis_if_asked() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    let reset = |flags| main.call(&MachineReset { flags, zero: 0 });
    main.call(&claim(LISN - 1, 1, 0)).unwrap();
    guest.claim_msi(LISN);
    guest.claim_lsi(LISN + 1);
    main.call(&SetLevel {
        lisn: LISN + 1,
        level: 1,
    })
    .unwrap();
    guest.must(1, opcode::H_CPPR, &[0xff]);
    guest.choose_xive();
    assert_eq!(errno(reset(2)), libc::EINVAL);
    assert!(State::read(&guest.map()).cas_xive);

    reset(0).unwrap();
    assert_eq!(guest.must(1, opcode::H_XIRR, &[]), 0, "XICS again, CPPR 0");
    assert_eq!(errno(guest.claim(LISN, 0)), libc::EBUSY);
    assert_eq!(guest.rtas(RtasCall::SetXive, &[LISN + 1, 1, 5]), 0);
    guest.must(1, opcode::H_CPPR, &[0xff]);
    assert!(line(&guest, 1), "the level is the device's");
    reset(reset_flag::FREE_MSIS).unwrap();
    assert!(!line(&guest, 1));
    guest.claim_msi(LISN);
    for lisn in [LISN - 1, LISN + 1] {
        assert_eq!(errno(guest.claim(lisn, 0)), libc::EBUSY);
    }
}

#[test]
fn a_barrier_comes_after_what_was_readable_on_any_channel() {
    let (daemon, guest) = Guest::new(machine());
    let channels = [guest.channel(0), guest.channel(1)];
    for _ in 0..20 {
        daemon.hold();
        // The main socket is readable first; reset would undo what the channels ask for.
        let reset = MachineReset { flags: 0, zero: 0 };
        let barrier = guest.main.post(&reset);
        let opened = [0, 1].map(|server| {
            let request = hcall(server, opcode::H_CPPR, &[0xff]);
            channels[server as usize].post(&request)
        });
        daemon.go_on();
        guest.main.take::<MachineReset>(barrier).unwrap();
        for (channel, seq) in channels.iter().zip(opened) {
            assert_eq!(channel.take::<Hcall>(seq).unwrap().0.ret, 0);
        }
        for server in [0, 1] {
            assert_eq!(
                guest.must(server, opcode::H_XIRR, &[]),
                0,
                "not after the reset"
            );
        }
    }
}

#[test]
fn a_barrier_waits_for_the_thread_that_is_inside() {
    let (_daemon, guest, view) = mapped();
    let inside = Inside::enter(&view, 3);
    let seq = guest.main.post(&quiesce(60_000));
    drop(inside);
    assert_eq!(guest.main.take::<Quiesce>(seq).unwrap().0.depth, 1);
}

#[test]
fn a_thread_that_stays_inside_costs_the_barrier_and_nobody_else() {
    let (_daemon, guest, view) = mapped();
    let channel = guest.channel(2);
    let inside = Inside::enter(&view, 3);
    let refused = guest.main.call(&quiesce(10)).unwrap_err();
    assert_eq!(refused.errno, libc::ETIMEDOUT, "{}", refused.text);
    assert_eq!(
        State::read(&view).gate,
        Gate::Open,
        "still running as before"
    );
    guest.main.ping();
    channel.ping();
    guest.must(2, opcode::H_CPPR, &[0xfe]);
    // The next ones do not hang either, and have no effect.
    let refused = guest.main.call(&cas(0, 0x40)).unwrap_err();
    assert_eq!(refused.errno, libc::ETIMEDOUT);
    assert_eq!(errno(guest.main.call(&quiesce(10))), libc::ETIMEDOUT);
    let state = State::read(&view);
    assert_eq!((state.gate, state.cas_xive), (Gate::Open, false));
    trigger(&guest, LISN);
    assert!(line(&guest, 2));

    let seq = guest.main.post(&quiesce(60_000));
    drop(inside);
    assert_eq!(guest.main.take::<Quiesce>(seq).unwrap().0.depth, 1);
    guest.main.call(&resume(0)).unwrap();
}

#[test]
fn what_a_late_thread_recorded_is_made_up_for() {
    let (_daemon, guest, view) = mapped();
    let inside = Inside::enter(&view, 3);
    assert_eq!(errno(guest.main.call(&quiesce(10))), libc::ETIMEDOUT);
    // It read the state word while the gate was latched, and only now gets to record its trigger.
    let index = LISN - guest.machine.xics_base;
    view.page(Page::IcsSource(index))
        .fetch_or(ics::LATCHED, Ordering::AcqRel);
    drop(inside);
    let until = Instant::now() + LONG;
    wait_for(
        &guest.kicks[2],
        PollFlags::POLLIN,
        until,
        "the recorded trigger",
    );
    assert_eq!(
        guest.must(2, opcode::H_XIRR, &[]),
        0xff00_0000 | u64::from(LISN)
    );
}

#[test]
fn a_waiting_barrier_does_not_outlive_its_front_end() {
    let (daemon, guest, view) = mapped();
    let inside = Inside::enter(&view, 3);
    guest.main.post(&quiesce(60_000));
    drop(guest);
    daemon.ends_well();
    drop(inside);
}

#[test]
fn a_waiting_barrier_does_not_keep_a_signal_waiting() {
    let (daemon, guest, view) = mapped();
    let inside = Inside::enter(&view, 3);
    guest.main.post(&quiesce(60_000));
    // Nothing tells that it has begun to wait; ending well is right before and after.
    daemon.signal(Signal::SIGTERM);
    daemon.ends_well();
    drop((inside, guest));
}

#[test]
fn the_watch_is_answered_while_a_barrier_waits() {
    let (_daemon, guest, view) = mapped();
    let watch = guest.channel(WATCH);
    let inside = Inside::enter(&view, 3);
    let asked = guest.main.post(&quiesce(60_000));
    for _ in 0..10 {
        watch.ping();
    }
    let refused = watch.call(&VcpuLine { server: 1, zero: 0 });
    assert_eq!(errno(refused), libc::EINVAL);
    assert_eq!(
        State::read(&view).gate,
        Gate::Latch,
        "the barrier has not ended"
    );
    drop(inside);
    assert_eq!(guest.main.take::<Quiesce>(asked).unwrap().0.depth, 1);
}

#[test]
fn the_other_channels_wait_in_order_while_a_barrier_is_under_way() {
    let (_daemon, guest, view) = mapped();
    let (watch, channel) = (guest.channel(WATCH), guest.channel(1));
    let inside = Inside::enter(&view, 3);
    let asked = guest.main.post(&quiesce(60_000));
    while State::read(&view).gate != Gate::Latch {
        watch.ping();
    }
    let served = || watch.call(&Ping { cookie: 1 }).unwrap().served;
    let before = served();
    let ask = VcpuLine { server: 1, zero: 0 };
    let (first, second) = (channel.post(&ask), channel.post(&ask));
    for looked in 1..=10 {
        assert_eq!(served(), before + looked, "nothing else is served");
    }
    drop(inside);
    assert_eq!(guest.main.take::<Quiesce>(asked).unwrap().0.depth, 1);
    let (first, _) = channel.take::<VcpuLine>(first).unwrap();
    let (second, _) = channel.take::<VcpuLine>(second).unwrap();
    assert!(first.seq < second.seq);
}
