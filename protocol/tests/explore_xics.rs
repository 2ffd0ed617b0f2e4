//! Every interleaving of the shipped XICS transitions, in small scenarios (SPEC.md chapter 3, XICS).
//!
//! Judged in every state: P1 no source is presented to a server that a returned set-xive, int-off or
//! free excludes; P2 an MSI is accepted at most once per trigger and crash; I1 XISR is 0 exactly when
//! the pending priority is ff. Judged at rest: P3 every MSI was accepted after its last trigger began,
//! or is recorded where masked or its vCPU is closed, no IPI is lost, no LSI is asserted and unserved;
//! P4 nothing waits at an open vCPU; P5 no vCPU sleeps with XISR ≠ 0; I2 what waits is in the index.
//! P6 and P7, nobody waits and nothing runs for ever, are the explorer's deadlock and livelock checks.
//!
//! The `_broken` scenarios run the same checks on storages and hosts with a step left out.

#![allow(clippy::unwrap_used)]

mod explorer;
mod xics_scenario;

use std::sync::atomic::Ordering::Relaxed;

use explorer::{Key, Scenario, Then, Thread, word};
use papr_intc_protocol::layout::Compat;
use papr_intc_protocol::layout::storage::{AtomicWord, Table};
use papr_intc_protocol::layout::words::journal;
use papr_intc_protocol::plane::LevelInput;
use xics_scenario::faults::Fault;
use xics_scenario::threads::{
    Cfg, Dev, Evaluate, Own, caller, configure, daemon, device, successor, vcpu, vcpu_evaluating,
};
use xics_scenario::{COUNTER, Machinery, TRIGGERS, UNSERVED, VMM, both, lsi, msi, xics};

// ---- presentation against presentation

#[test]
fn two_msis_are_both_accepted() {
    let m = Machinery::of(&[msi(0, 0, 5), msi(1, 0, 3)]);
    both("two MSIs", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(device(m, &[Dev::Trigger(1)]))
    });
}

#[test]
fn an_msi_triggered_again_is_accepted_again() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("one MSI, two triggers", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(device(m, &[Dev::Trigger(0), Dev::Trigger(0)]))
    });
}

#[test]
fn an_msi_triggered_by_two_devices_is_accepted() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("one MSI, two devices", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(device(m, &[Dev::Trigger(0)]))
    });
}

#[test]
#[ignore = "millions of states"]
fn three_triggers_of_one_msi() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("one MSI, three triggers", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(device(m, &[Dev::Trigger(0), Dev::Trigger(0)]))
            .thread(device(m, &[Dev::Trigger(0)]))
    });
}

#[test]
fn an_ipi_displaces_an_msi_and_neither_is_lost() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("an IPI against an MSI", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(caller(0, 4))
            .thread(device(m, &[Dev::Trigger(0)]))
    });
}

#[test]
fn what_a_tightened_cppr_rejects_comes_when_it_opens() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("H_CPPR against an MSI", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Cppr(0), Own::Cppr(0xff)]))
            .thread(device(m, &[Dev::Trigger(0)]))
    });
    both("H_CPPR against an IPI", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Cppr(0), Own::Cppr(0xff)]))
            .thread(caller(0, 4))
    });
}

#[test]
#[ignore = "millions of states"]
fn a_tightened_cppr_rejects_an_msi_or_an_ipi() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("H_CPPR against an MSI and an IPI", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Cppr(0), Own::Cppr(0xff)]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(caller(0, 4))
    });
}

/// A vCPU that only opens its CPPR, and does not serve.
fn opens(k: u32) -> Thread {
    Thread::new("vcpu").op("H_CPPR", move |_| {
        xics(&VMM, |x| x.set_cppr(k, 0xff));
        Then::Next
    })
}

/// Source 1 goes to vCPU 1; its index bit is set though it does not wait; nobody serves.
fn stale_bit() -> Machinery {
    let mut m = Machinery::of(&[msi(0, 0, 5), msi(1, 1, 5)]);
    m.cppr = [0, 0];
    m.stale = 2;
    m.served = [false; 2];
    m
}

#[test]
fn a_pass_clears_a_stale_bit_beside_a_refusal() {
    let m = stale_bit();
    for k in [0, 1] {
        both(&format!("pass of vCPU {k}, a stale bit"), m, |s| {
            s.thread(opens(k)).thread(device(m, &[Dev::Trigger(1)]))
        });
    }
}

#[test]
#[ignore = "a minute"]
fn two_vcpus_pass_over_one_slice() {
    let m = stale_bit();
    both("two passes, a stale bit", m, |s| {
        s.thread(opens(0))
            .thread(opens(1))
            .thread(device(m, &[Dev::Trigger(1)]))
    });
}

#[test]
#[ignore = "a minute"]
fn two_vcpus_pass_over_one_slice_and_serve() {
    let mut m = Machinery::of(&[msi(0, 0, 5), msi(1, 1, 5)]);
    m.cppr = [0, 0];
    m.stale = 2;
    both("two passes, a stale bit, both serve", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Cppr(0xff)]))
            .thread(vcpu(m, 1, &[Own::Cppr(0xff)]))
            .thread(device(m, &[Dev::Trigger(1)]))
    });
}

#[test]
fn two_vcpus_pass_over_two_slices() {
    let mut m = Machinery::of(&[msi(0, 0, 5), msi(70, 1, 5)]);
    m.cppr = [0, 0];
    both("two passes, two slices, one trigger", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Cppr(0xff)]))
            .thread(vcpu(m, 1, &[Own::Cppr(0xff)]))
            .thread(device(m, &[Dev::Trigger(1)]))
    });
}

#[test]
#[ignore = "millions of states"]
fn two_vcpus_pass_over_two_slices_with_an_msi_each() {
    let mut m = Machinery::of(&[msi(0, 0, 5), msi(70, 1, 5)]);
    m.cppr = [0, 0];
    both("two passes, two slices", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Cppr(0xff)]))
            .thread(vcpu(m, 1, &[Own::Cppr(0xff)]))
            .thread(device(m, &[Dev::Trigger(0), Dev::Trigger(1)]))
    });
}

#[test]
fn an_ipi_pair_is_served_both_ways() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("IPIs both ways", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Ipi(1, 4)]))
            .thread(vcpu(m, 1, &[Own::Ipi(0, 4)]))
    });
}

// ---- configuration

#[test]
fn after_set_xive_nothing_comes_by_the_old_routing() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    both("set-xive against a trigger", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(vcpu(m, 1, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(daemon(m, &[Cfg::Set(0, 1, 5)]))
    });
}

#[test]
fn a_refused_msi_follows_set_xive() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    both("set-xive against a refusal", m, |s| {
        s.thread(vcpu(m, 0, &[Own::Cppr(0)]))
            .thread(vcpu(m, 1, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(daemon(m, &[Cfg::Set(0, 1, 5)]))
    });
}

#[test]
fn set_xive_there_and_back_loses_nothing() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    both("set-xive there and back", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(vcpu(m, 1, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(daemon(m, &[Cfg::Set(0, 1, 5), Cfg::Set(0, 0, 5)]))
    });
}

#[test]
#[ignore = "a minute"]
fn a_refused_and_masked_msi_comes_after_int_on() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    // Not at qemu-7.2, whose pass may forget a refused MSI while it is masked.
    m.scenario("int-off, int-on against a trigger", Compat::Papr1)
        .thread(vcpu(m, 0, &[Own::Cppr(0), Own::Cppr(0xff)]))
        .thread(device(m, &[Dev::Trigger(0)]))
        .thread(daemon(m, &[Cfg::Off(0), Cfg::On(0)]))
        .explore();
}

#[test]
fn a_masked_msi_comes_after_int_on() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    both(
        "int-off, int-on against a trigger to an open vCPU",
        m,
        |s| {
            s.thread(vcpu(m, 0, &[]))
                .thread(device(m, &[Dev::Trigger(0)]))
                .thread(daemon(m, &[Cfg::Off(0), Cfg::On(0)]))
        },
    );
}

#[test]
fn qemu_7_2_forgets_a_refused_msi_that_is_masked() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    let why = m
        .scenario("int-off, int-on against a trigger", Compat::Qemu72)
        .thread(vcpu(m, 0, &[Own::Cppr(0), Own::Cppr(0xff)]))
        .thread(device(m, &[Dev::Trigger(0)]))
        .thread(daemon(m, &[Cfg::Off(0), Cfg::On(0)]))
        .refute();
    assert!(why.contains("lost"), "{why}");
}

#[test]
fn a_freed_number_is_not_presented() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    both("free against a trigger", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(daemon(m, &[Cfg::Free(0)]))
    });
}

#[test]
fn an_unplugged_vcpus_msi_waits_and_then_moves() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    m.served[0] = false;
    both("unplug", m, |s| {
        s.thread(vcpu(m, 1, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(daemon(m, &[Cfg::Disconnect(0), Cfg::Set(0, 1, 5)]))
    });
}

#[test]
fn a_vcpu_unplugged_and_plugged_again_gets_its_msi() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    both("unplug, plug", m, |s| {
        s.thread(device(m, &[Dev::Trigger(0)]))
            .thread(
                daemon(m, &[Cfg::Disconnect(0), Cfg::Connect(0)]).op("plugged", |_| {
                    xics(&VMM, |x| x.set_cppr(0, 0xff));
                    Then::Next
                }),
            )
            .thread(vcpu(m, 0, &[]))
    });
}

// ---- level-sensitive

#[test]
fn an_lsi_is_served_until_its_level_falls() {
    let m = Machinery::of(&[lsi(0, 0, 5)]);
    both("an LSI, twice up", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(device(m, &[Dev::Level(0, true), Dev::Level(0, true)]))
    });
}

#[test]
fn a_displaced_lsi_comes_again() {
    let m = Machinery::of(&[lsi(0, 0, 5), msi(1, 0, 3)]);
    both("an LSI against an MSI", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(device(m, &[Dev::Level(0, true)]))
            .thread(device(m, &[Dev::Trigger(1)]))
    });
}

#[test]
#[ignore = "a minute"]
fn a_foreign_eoi_does_not_lose_an_lsi() {
    let m = Machinery::of(&[lsi(0, 0, 5)]);
    both("an LSI and an EOI of another vCPU", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(vcpu(m, 1, &[Own::Eoi(0)]))
            .thread(device(m, &[Dev::Level(0, true)]))
    });
}

#[test]
fn a_moved_lsi_is_served() {
    let mut m = Machinery::of(&[lsi(0, 0, 5)]);
    m.moves = true;
    both("set-xive against a level", m, |s| {
        s.thread(vcpu(m, 0, &[]))
            .thread(vcpu(m, 1, &[]))
            .thread(device(m, &[Dev::Level(0, true)]))
            .thread(daemon(m, &[Cfg::Set(0, 1, 5)]))
    });
}

// ---- a daemon that dies at any access, and its successor

fn journal_words(s: Scenario) -> Scenario {
    xics_scenario::JOURNALS.set(true);
    s.var(Key::Table(Table::Journal(journal::XICS)))
}

/// A peer that signals an irqfd once, and a daemon that serves it, with a successor.
fn irqfd(m: Machinery, s: Scenario, n: usize) -> Scenario {
    let counted = |t: Thread| {
        t.background().op("poll", |cx| {
            cx.wait(|| word(COUNTER).load(Relaxed) != 0);
            Then::Next
        })
    };
    let peer = Thread::new("peer").op("signal", move |cx| {
        cx.ghost(|g| {
            g[TRIGGERS + n] += 1;
            g[UNSERVED + n] = 1;
        });
        word(COUNTER).store(1, Relaxed);
        Then::Next
    });
    let serve = configure(m, Cfg::Irqfd(n));
    let serve_again = configure(m, Cfg::Irqfd(n));
    s.thread(peer)
        .thread(counted(Thread::new("daemon")).op("irqfd", serve).may_stop())
        .thread(counted(successor(m, 1, &[])).op("irqfd", serve_again))
}

#[test]
fn a_daemon_killed_on_its_irqfd_loses_nothing() {
    let m = Machinery::of(&[msi(0, 0, 3)]);
    both("irqfd, a crash", m, |s| {
        irqfd(m, journal_words(s), 0).thread(vcpu(m, 0, &[]))
    });
}

#[test]
fn a_daemon_killed_while_its_irqfd_displaces_loses_nothing() {
    let mut m = Machinery::of(&[msi(0, 0, 3), lsi(1, 0, 5)]);
    m.served = [false; 2];
    both("irqfd displaces an LSI, a crash", m, |s| {
        let s = s.setup(move || {
            m.set_up();
            xics(&VMM, |x| x.set_level(m.irq(1), LevelInput::Vmm, true));
        });
        irqfd(m, journal_words(s), 0)
    });
}

#[test]
fn without_a_journal_a_crash_loses_an_event() {
    let mut m = Machinery::of(&[msi(0, 0, 3), lsi(1, 0, 5)]);
    m.served = [false; 2];
    let s = m
        .scenario("irqfd displaces an LSI, no journal", Compat::Papr1)
        .setup(move || {
            m.set_up();
            xics(&VMM, |x| x.set_level(m.irq(1), LevelInput::Vmm, true));
        });
    let why = irqfd(m, s, 0).breadth_first().refute();
    assert!(why.contains("P3") || why.contains("P4"), "{why}");
}

#[test]
#[ignore = "a minute"]
fn a_daemon_killed_in_set_xive_does_it_again() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.moves = true;
    both("set-xive, a crash", m, |s| {
        let again = [Cfg::Set(0, 1, 5)];
        journal_words(s)
            .thread(daemon(m, &again).may_stop())
            .thread(successor(m, 0, &again))
            .thread(vcpu(m, 1, &[]))
            .thread(device(m, &[Dev::Trigger(0)]))
            .thread(vcpu(m, 0, &[]))
    });
}

// ---- the checks can fail

fn broken(name: &str, fault: Fault, m: Machinery) -> Scenario {
    let s = m.scenario(&format!("{name} ({fault:?})"), Compat::Papr1);
    xics_scenario::FAULT.set(fault);
    s.breadth_first()
}

#[test]
fn without_the_look_again_an_msi_waits_for_ever() {
    let m = Machinery::of(&[msi(0, 0, 5), msi(1, 0, 3)]);
    let why = broken("two MSIs", Fault::NoLookAgain, m)
        .thread(vcpu(m, 0, &[]))
        .thread(device(m, &[Dev::Trigger(0)]))
        .thread(device(m, &[Dev::Trigger(1)]))
        .refute();
    assert!(why.contains("P4"), "{why}");
}

#[test]
fn without_the_tag_an_old_routing_presents_after_set_xive() {
    let m = Machinery::of(&[msi(0, 0, 5)]);
    let why = broken("set-xive against a trigger", Fault::NoTag, m)
        .thread(device(m, &[Dev::Trigger(0)]))
        .thread(daemon(m, &[Cfg::Set(0, 1, 5)]))
        .refute();
    assert!(why.contains("P1"), "{why}");
}

#[test]
fn a_torn_swap_loses_an_interrupt() {
    let m = Machinery::of(&[msi(0, 0, 5), msi(1, 0, 3)]);
    let why = broken("two MSIs", Fault::TornSwap, m)
        .thread(vcpu(m, 0, &[]))
        .thread(device(m, &[Dev::Trigger(0)]))
        .thread(device(m, &[Dev::Trigger(1)]))
        .refute();
    assert!(why.contains("P"), "{why}");
}

#[test]
fn without_the_second_look_a_stale_bit_swallows_an_msi() {
    let mut m = Machinery::of(&[msi(0, 0, 5)]);
    m.cppr = [0, 0];
    m.stale = 1;
    let why = broken("a stale bit", Fault::NoSecondLook, m)
        .thread(vcpu(m, 0, &[Own::Cppr(5), Own::Cppr(0xff)]))
        .thread(device(m, &[Dev::Trigger(0)]))
        .refute();
    assert!(why.contains("I2") || why.contains("P4"), "{why}");
}

#[test]
fn a_line_read_before_the_kick_flag_is_cleared_stays_down() {
    let m = Machinery::of(&[msi(0, 0, 5), msi(1, 0, 3)]);
    let why = broken("two MSIs, evaluated in the wrong order", Fault::None, m)
        .thread(vcpu_evaluating(m, 0, &[], Evaluate::WordThenFlag))
        .thread(device(m, &[Dev::Trigger(0)]))
        .thread(device(m, &[Dev::Trigger(1)]))
        .refute();
    assert!(why.contains("P5"), "{why}");
}
