//! Every interleaving of the shipped XIVE transitions, in small scenarios: events (data-plane-xive §4).
//! Configuration is in `explore_xive_config.rs`.
#![allow(clippy::unwrap_used)]

mod explorer;
mod xive_scenario;

use std::sync::atomic::Ordering::Relaxed;

use explorer::{Key, Scenario, Then, Thread, word};
use papr_intc_protocol::layout::Compat;
use papr_intc_protocol::layout::storage::{AtomicWord, Page};
use papr_intc_protocol::layout::words::{source, tima};
use papr_intc_protocol::plane::LevelInput;
use xive_scenario::*;

#[test]
fn a_trigger_is_not_lost_to_an_eoi() {
    for (name, eoi) in [("EOI by load", Eoi::Load), ("EOI as Linux", Eoi::Linux)] {
        scenario(&format!("trigger against {name}"), 1)
            .thread(device_times("device", S, 3))
            .thread(guest(eoi))
            .at_rest(all_handled(3))
            .explore();
    }
}

#[test]
fn two_devices_on_one_source_lose_nothing() {
    scenario("two devices, one source", 1)
        .thread(device("device 1", S))
        .thread(device("device 2", S))
        .thread(guest(Eoi::Linux))
        .at_rest(all_handled(2))
        .explore();
}

#[test]
#[ignore = "six million states: minutes in a release build"]
fn two_threads_trigger_one_source_three_times() {
    scenario("two devices, one source, three triggers", 1)
        .thread(device_times("device 1", S, 2))
        .thread(device("device 2", S))
        .thread(guest(Eoi::Load))
        .at_rest(all_handled(3))
        .explore();
}

#[test]
fn two_routers_share_an_end_over_its_wrap() {
    scenario("two sources, one END", 1)
        .thread(device("device 1", S))
        .thread(device("device 2", R))
        .thread(guest(Eoi::Load))
        .at_rest(all_handled(2))
        .explore();
}
#[test]
fn sync_waits_for_what_was_accepted() {
    scenario("SYNC against a trigger", 1)
        .thread(
            Thread::new("device")
                .op("trigger", |_| {
                    xive(&VMM, |x| x.trigger(S));
                    Then::Next
                })
                .op("other", |_| Then::Next),
        )
        .thread(Thread::new("vCPU").op("sync", |cx| {
            // Accepted before the call ...
            let accepted = word(Key::Page(Page::Source(S))).load(Relaxed) & source::P != 0;
            cx.wait(|| xive(&VMM, |x| x.sync(S)));
            // ... is in the queue after it.
            let entry = word(Key::Ram(QUEUE + 4 * (ENTRIES - 1))).load(Relaxed);
            assert!(!accepted || entry != 0, "SYNC returned too early");
            Then::Next
        }))
        .at_rest(forwards_add_up)
        .explore();
}

/// A device with a level: `WORK` is what it has to tell, the level is high while there is some.
fn level_device(times: u64) -> Thread {
    let mut thread = Thread::new("device");
    for _ in 0..times {
        thread = thread.op("assert", |cx| {
            // One interrupt at a time: the level rises when the guest has done the work before.
            cx.wait(|| word(WORK).load(Relaxed) == 0);
            word(WORK).store(1, Relaxed);
            xive(&VMM, |x| x.set_level(LSI, LevelInput::Vmm, true));
            Then::Next
        });
    }
    thread
}

fn level_guest(compat: Compat) -> Thread {
    let page = management(LSI);
    Thread::new("guest")
        .background()
        .op("sleep", |cx| {
            cx.wait(|| xive(&VMM, |x| x.line(0)));
            Then::Next
        })
        .op("acknowledge", |_| {
            xive(&VMM, |x| x.acknowledge(0));
            Then::Next
        })
        .op("entry", |_| {
            let slot = word(SLOT).load(Relaxed);
            let generation = 1 ^ ((slot / ENTRIES) & 1);
            let entry = word(Key::Ram(QUEUE + 4 * (slot % ENTRIES))).load(Relaxed);
            if entry & 1 << 32 == 0 || entry >> 31 & 1 != generation {
                return Then::Goto(5);
            }
            word(SLOT).store(slot + 1, Relaxed);
            Then::Next
        })
        .op("handle", |_| {
            // The access to the device lowers its level before it can rise again.
            if word(WORK).load(Relaxed) == 1 {
                xive(&VMM, |x| x.set_level(LSI, LevelInput::Vmm, false));
                word(WORK).store(0, Relaxed);
            }
            Then::Next
        })
        .op("end", move |_| {
            xive_as(compat, &VMM, |x| x.esb_load(page, 8));
            Then::Goto(2)
        })
        .op("open", |_| {
            xive(&VMM, |x| x.set_cppr(0, 0xff));
            Then::Goto(0)
        })
}

#[test]
fn a_level_is_served_as_long_as_it_is_high() {
    for compat in [Compat::Papr1, Compat::Qemu72] {
        scenario(&format!("LSI, three assertions, {compat:?}"), 1)
            .thread(level_device(3))
            .thread(level_guest(compat))
            .at_rest(|s| {
                forwards_add_up(s)?;
                let lsi = s.get(Key::Page(Page::Source(LSI)));
                if s.get(WORK) != 0 || lsi & (source::ASSERTED | source::PQ) != 0 {
                    return Err(format!("work {}, source {lsi:#x}", s.get(WORK)));
                }
                Ok(())
            })
            .explore();
    }
}

/// Two inputs of one LSI, a guest that unmasks it with SET_PQ_00.
fn unmasked_lsi(compat: Compat) -> Scenario {
    let input = |name, input| {
        Thread::new(name).op("assert", move |_| {
            xive(&VMM, |x| x.set_level(LSI, input, true));
            Then::Next
        })
    };
    scenario(&format!("LSI unmasked while asserted, {compat:?}"), 2)
        .thread(input("vmm", LevelInput::Vmm))
        .thread(input("irqfd", LevelInput::Irqfd))
        .thread(Thread::new("guest").op("mask, unmask", move |_| {
            xive_as(compat, &VMM, |x| {
                x.esb_load(management(LSI) + 0xd00, 8);
                x.esb_load(management(LSI) + 0xc00, 8);
            });
            Then::Next
        }))
        .at_rest(|s| {
            forwards_add_up(s)?;
            let lsi = s.get(Key::Page(Page::Source(LSI)));
            match lsi & (source::ASSERTED | source::PQ) {
                w if w == source::ASSERTED | source::P => Ok(()),
                _ => Err(format!("asserted and never sent: {lsi:#x}")),
            }
        })
}

#[test]
fn unmasking_an_asserted_lsi_sends_it_at_papr_and_loses_it_at_qemu() {
    unmasked_lsi(Compat::Papr1).explore();
    // The quirk of xive.md §2.7 is reproduced, and the explorer sees it.
    let why = unmasked_lsi(Compat::Qemu72).refute();
    assert!(why.contains("asserted and never sent"), "{why}");
}

/// Presents at two priorities against a vCPU that acknowledges and opens its CPPR.
fn presenting(line: Line) -> Scenario {
    let host = move || Executor { line, ..VMM };
    let presenter = |name, priority| {
        Thread::new(name).op("present", move |_| {
            xive(&host(), |x| x.present(0, priority));
            Then::Next
        })
    };
    Scenario::new("present against CPPR, acknowledge and line")
        .setup(|| setup(0))
        .thread(presenter("router 1", 6))
        .thread(presenter("router 2", 3))
        .thread(
            Thread::new("vCPU")
                .op("acknowledge", move |_| {
                    let value = xive(&host(), |x| x.acknowledge(0));
                    assert!(
                        matches!(value, 0x80ff | 0x00ff | 0x8006 | 0x8003),
                        "{value:#x}"
                    );
                    Then::Next
                })
                .op("CPPR", move |_| {
                    xive(&host(), |x| x.set_cppr(0, 5));
                    Then::Next
                }),
        )
        .at_rest(|s| {
            let ring = s.get(Key::Page(Page::Tima(0)));
            let nsr = ring & tima::NSR_EO != 0;
            if nsr != (s.get(LINE) == 1) {
                return Err(format!("line {} with ring {ring:#x}", s.get(LINE)));
            }
            // Whatever was not taken is pending, and told if CPPR lets it.
            if tima::pipr(ring) < tima::cppr(ring) && !nsr {
                return Err(format!("pending and not told: {ring:#x}"));
            }
            Ok(())
        })
}

#[test]
fn the_line_is_what_the_ring_says_if_it_is_looked_at_again() {
    presenting(Line::Synced).explore();
    let why = presenting(Line::SetOnce).refute();
    assert!(why.contains("line"), "{why}");
}
