//! Every interleaving of the shipped XIVE transitions, in small scenarios (data-plane-xive §9).
//!
//! Invariants judged throughout: only the lock's holder changes index, generation and selector (I1);
//! an entry is written before the cursor passes it, and never twice (I2); accepted forwards are
//! entries, drops, or still counted (I3); at rest whoever has work to do is going to be told (I4).

#![allow(clippy::unwrap_used)]

mod explorer;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::Ordering::{self, Relaxed};

use explorer::{Change, Cx, Ghost, Key, Memory, Scenario, Snapshot, Then, Thread, word};
use papr_intc_protocol::layout::storage::{AtomicWord, Page, Storage, Table};
use papr_intc_protocol::layout::words::{cursor, eas, source, tima};
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine};
use papr_intc_protocol::plane::xive::Xive;
use papr_intc_protocol::plane::xive::config::QueueConfig;
use papr_intc_protocol::plane::{Host, LevelInput, LockOwner};

/// Queues of the scenarios: END 6 of server 0, END 14 of server 1, and where a queue moves to.
const QUEUE: u64 = 0x10000;
const QUEUE_1: u64 = 0x20000;
const NEW_QUEUE: u64 = 0x30000;
const ENTRIES: u64 = 1024;
const PRIO: u8 = 6;
/// Sources.
const S: u32 = 1;
const R: u32 = 2;
const LSI: u32 = 3;

/// Words of the scenarios.
const DATA: Key = Key::User(0);
const SLOT: Key = Key::User(1);
const LINE: Key = Key::User(2);
const LINE_LOCK: Key = Key::User(3);
const WORK: Key = Key::User(4);

/// Ghosts.
const ACCEPTED: usize = 0;
const ENTRIES_WRITTEN: usize = 1;
const RETURNED: usize = 2;
const OLD_WRITES: usize = 3;
const HANDLED: usize = 4;
const DROPS: usize = 5;
/// Thread + 1 that holds the lock, of the END of server 0 and of server 1.
const HOLDER: usize = 6;

/// An executor: queue entries are words; a kick follows the word's line if the scenario has one.
struct Executor {
    owner: LockOwner,
    line: Line,
    /// How it knows that a daemon is dead.
    dead: Dead,
}

/// What a kick does to the line of server 0.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// The scenario has no line.
    None,
    /// The front-end's: set, look again, repeat, under one lock per vCPU.
    Synced,
    /// Set once, without looking again: a mistake.
    SetOnce,
}

/// Which daemon an executor takes for dead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dead {
    None,
    /// The thread of this number, once it has stopped.
    Stopped(u32),
    /// Any, on suspicion: a mistake.
    Suspected,
}

impl Host for Executor {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        // Bit 32: written. A slot starts as 0, as the guest's zeroed page.
        word(Key::Ram(gpa)).store(1 << 32 | u64::from(entry), Relaxed);
        true
    }
    fn kick(&self, server: u32) {
        let high = || ring(server) & tima::NSR_EO != 0;
        match self.line {
            Line::None => (),
            Line::SetOnce => word(LINE).store(u64::from(high()), Relaxed),
            Line::Synced => {
                Cx.wait(|| word(LINE_LOCK).swap(1, Relaxed) == 0);
                loop {
                    let level = high();
                    word(LINE).store(u64::from(level), Relaxed);
                    if high() == level {
                        break;
                    }
                }
                word(LINE_LOCK).store(0, Relaxed);
            }
        }
    }
    fn is_dead(&self, _: u16) -> bool {
        match self.dead {
            Dead::None => false,
            Dead::Stopped(thread) => word(Key::Stopped(thread)).load(Relaxed) != 0,
            Dead::Suspected => true,
        }
    }
    fn lock_owner(&self) -> LockOwner {
        self.owner
    }
}

const VMM: Executor = Executor {
    owner: LockOwner::FrontEnd,
    line: Line::None,
    dead: Dead::None,
};
const DAEMON: Executor = Executor {
    owner: LockOwner::Daemon {
        generation: 1,
        worker: 0,
    },
    ..VMM
};

fn ring(server: u32) -> u64 {
    word(Key::Page(Page::Tima(server))).load(Relaxed)
}

/// Runs `f` on the XIVE of a machine of 64 sources and 2 servers.
fn xive_as<T>(
    compat: Compat,
    host: &Executor,
    f: impl FnOnce(Xive<'_, Memory, Executor>) -> T,
) -> T {
    thread_local! {
        static MACHINES: [(Machine, Geometry); 2] = [Compat::Papr1, Compat::Qemu72].map(|compat| {
            let machine = Machine {
                sources: 64,
                xics_base: 16,
                ..Machine::pseries(IcMode::Xive, compat, 2)
            };
            (machine, machine.geometry().unwrap())
        });
    }
    MACHINES.with(|m| {
        let (machine, geometry) = &m[usize::from(compat == Compat::Qemu72)];
        f(Xive::new(&Memory, host, machine, geometry))
    })
}

fn xive<T>(host: &Executor, f: impl FnOnce(Xive<'_, Memory, Executor>) -> T) -> T {
    xive_as(Compat::Papr1, host, f)
}

fn end_of(server: u32) -> u32 {
    server * 8 + u32::from(PRIO)
}

/// Management page of a source.
fn management(lisn: u32) -> u64 {
    u64::from(lisn) << 17 | 0x10000
}

fn queue(address: u64) -> Option<QueueConfig> {
    Some(QueueConfig {
        address,
        size: 12,
        always_notify: true,
    })
}

/// Both vCPUs connected with CPPR ff, a queue each; every source ready and sent to server 0 with its
/// number as EISN. The cursor of server 0 stands `before_wrap` entries before the end of the queue.
fn setup(before_wrap: u64) {
    xive(&DAEMON, |x| {
        for server in [0, 1] {
            x.connect(server);
            x.set_cppr(server, 0xff);
            x.reset_end(end_of(server));
        }
        x.set_queue_config(0, PRIO, queue(QUEUE)).unwrap();
        x.set_queue_config(1, PRIO, queue(QUEUE_1)).unwrap();
        for lisn in [S, R, LSI] {
            x.reset_source(lisn);
            x.claim(lisn, lisn == LSI);
            x.set_source_config(lisn, eas::new(end_of(0), lisn, false))
                .unwrap();
            x.esb_store(management(lisn) + 0xc00, 8, 0);
        }
    });
    let at = word(Key::Page(Page::EndCursor(end_of(0))));
    if before_wrap != 0 {
        let index = ENTRIES - before_wrap;
        at.store((at.load(Relaxed) & !cursor::INDEX) | index, Relaxed);
        word(SLOT).store(index, Relaxed);
    }
}

/// The plain case: sources, servers and their tables are constants.
fn scenario(name: &str, before_wrap: u64) -> Scenario {
    Scenario::new(name)
        .setup(move || setup(before_wrap))
        .observer(watch)
}

/// Counts accepted forwards and entries, and judges I1 and I2.
fn watch(g: &mut Ghost, c: Change) {
    match c.key {
        Key::Page(Page::Source(_)) if forwards(c.new) > forwards(c.old) => g[ACCEPTED] += 1,
        Key::Page(Page::EndCursor(end)) => {
            let holder = c.thread as u64 + 1;
            let held_by = &mut g[HOLDER + end as usize / 8];
            if c.new & cursor::LOCKED != 0 {
                let free = c.old & cursor::LOCKED == 0;
                assert!(free || c.old & cursor::DGEN != 0, "taken from the VMM");
                let kept = (c.old ^ c.new) & !cursor::LOCK == 0;
                assert!(kept, "I1: locking changed the rest");
                *held_by = holder;
            } else {
                assert_eq!(*held_by, holder, "I1: changed without the lock");
                *held_by = 0;
            }
        }
        Key::Ram(at) => {
            g[ENTRIES_WRITTEN] += 1;
            let server = usize::from((QUEUE_1..NEW_QUEUE).contains(&at));
            let holder = g[HOLDER + server];
            assert_eq!(holder, c.thread as u64 + 1, "I1: entry without the lock");
            assert!(c.old & 1 << 32 == 0, "I2: slot {at:#x} written twice");
        }
        _ => (),
    }
}

fn forwards(word: u64) -> u64 {
    (word & source::FORWARDS) / source::FORWARD
}

/// I3 at rest: nothing is counted, and each accepted forward became an entry or was dropped.
fn forwards_add_up(s: &Snapshot<'_>) -> Result<(), String> {
    for lisn in [S, R, LSI] {
        let running = forwards(s.get(Key::Page(Page::Source(lisn))));
        if running != 0 {
            return Err(format!("{running} forwards of {lisn} left"));
        }
    }
    let (accepted, entries) = (s.ghost[ACCEPTED], s.ghost[ENTRIES_WRITTEN] + s.ghost[DROPS]);
    if accepted != entries {
        return Err(format!("{accepted} forwards, {entries} entries"));
    }
    Ok(())
}

/// A device thread: data, then a trigger.
fn device(name: &'static str, lisn: u32) -> Thread {
    device_times(name, lisn, 1)
}

fn device_times(name: &'static str, lisn: u32, times: usize) -> Thread {
    let mut thread = Thread::new(name);
    for _ in 0..times {
        thread = thread.op("trigger", move |_| {
            word(DATA).fetch_add(1, Relaxed);
            xive(&VMM, |x| x.trigger(lisn));
            Then::Next
        });
    }
    thread
}

/// How a guest ends an interrupt.
#[derive(Clone, Copy)]
enum Eoi {
    /// The EOI load.
    Load,
    /// As Linux does it for MSIs: SET_PQ_00, and a trigger if Q was set.
    Linux,
}

/// A guest: wakes up by its line, acknowledges, drains the queue by the generation bit, handles all
/// the data there is for each entry, ends it, opens its CPPR, sleeps.
fn guest(eoi: Eoi) -> Thread {
    Thread::new("guest")
        .background()
        .op("sleep", |cx| {
            cx.wait(|| xive(&VMM, |x| x.line(0)));
            Then::Next
        })
        .op("acknowledge", |_| {
            let value = xive(&VMM, |x| x.acknowledge(0));
            assert!(
                value >> 8 == 0 || value == 0x8000 | u16::from(PRIO),
                "{value:#x}"
            );
            Then::Next
        })
        .op("entry", |cx| {
            let slot = word(SLOT).load(Relaxed);
            let generation = 1 ^ ((slot / ENTRIES) & 1);
            let entry = word(Key::Ram(QUEUE + 4 * (slot % ENTRIES))).load(Relaxed);
            if entry & 1 << 32 == 0 || entry >> 31 & 1 != generation {
                return Then::Goto(4);
            }
            word(SLOT).store(slot + 1, Relaxed);
            cx.set_local(0, entry & 0x7fff_ffff);
            Then::Next
        })
        .op("handle", move |cx| {
            let handled = word(DATA).swap(0, Relaxed);
            cx.ghost(|g| g[HANDLED] += handled);
            let page = management(cx.local(0) as u32);
            xive(&VMM, |x| match eoi {
                Eoi::Load => {
                    x.esb_load(page, 8);
                }
                Eoi::Linux => {
                    if x.esb_load(page + 0xc00, 8) & source::Q != 0 {
                        x.trigger(cx.local(0) as u32);
                    }
                }
            });
            Then::Goto(2)
        })
        .op("open", |_| {
            xive(&VMM, |x| x.set_cppr(0, 0xff));
            Then::Goto(0)
        })
}

/// I4: nothing is left to do, and the guest's place in the queue is the cursor's.
fn all_handled(events: u64) -> impl Fn(&Snapshot<'_>) -> Result<(), String> {
    move |s| {
        forwards_add_up(s)?;
        if s.ghost[HANDLED] != events {
            return Err(format!("{} of {events} events handled", s.ghost[HANDLED]));
        }
        if s.get(Key::Page(Page::Tima(0))) & tima::NSR_EO != 0 {
            return Err("asleep with NSR set".into());
        }
        let at = s.get(Key::Page(Page::EndCursor(end_of(0))));
        if at & cursor::INDEX != s.get(SLOT) % ENTRIES {
            return Err(format!("cursor {at:#x}, guest at {}", s.get(SLOT)));
        }
        for lisn in [S, R] {
            let pq = s.get(Key::Page(Page::Source(lisn))) & source::PQ;
            if pq != 0 {
                return Err(format!("source {lisn} left with PQ {pq:02b}"));
            }
        }
        Ok(())
    }
}

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

/// The daemon moves S to server 1 with EISN 0x55; after the hcall nothing old may be written.
fn moves_source() -> Thread {
    Thread::new("daemon").op("set source config", |cx| {
        let done = xive(&DAEMON, |x| {
            x.set_source_config(S, eas::new(end_of(1), 0x55, false))
        });
        assert_eq!(done, Ok(()));
        cx.ghost(|g| g[RETURNED] = 1);
        Then::Next
    })
}

/// P3: after the hcall returned, nothing is written for the old EISN of S, nor to an old queue.
fn nothing_old(g: &mut Ghost, c: Change) {
    watch(g, c);
    if let Key::Ram(at) = c.key {
        let old = c.new & 0x7fff_ffff == u64::from(S) && (QUEUE..QUEUE + 0x1000).contains(&at);
        g[OLD_WRITES] += u64::from(old);
        assert!(!(old && g[RETURNED] == 1), "P3: old entry after the return");
        assert!(
            c.new & 0x7fff_ffff != 0x55 || at >= QUEUE_1,
            "new EISN in the old queue"
        );
    }
}

#[test]
fn after_set_source_config_nothing_old_is_written() {
    let report = scenario("SET_SOURCE_CONFIG against two triggers", 1)
        .var(Key::Table(Table::Eas(S)))
        .thread(device("device 1", S))
        .thread(Thread::new("device 2").op("reset and trigger", |_| {
            xive(&VMM, |x| {
                x.esb_store(management(S) + 0xc00, 8, 0);
                x.trigger(S);
            });
            Then::Next
        }))
        .thread(moves_source())
        .observer(nothing_old)
        .at_rest(forwards_add_up)
        .explore();
    assert!(report.states > 1000);
}

#[test]
fn after_set_queue_config_the_old_page_is_not_written() {
    scenario("SET_QUEUE_CONFIG against two triggers", 1)
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 1)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 1)))
        .thread(device("device 1", S))
        .thread(device("device 2", R))
        .thread(Thread::new("daemon").op("set queue config", |cx| {
            let done = xive(&DAEMON, |x| x.set_queue_config(0, PRIO, queue(NEW_QUEUE)));
            assert_eq!(done, Ok(()));
            cx.ghost(|g| g[RETURNED] = 1);
            Then::Next
        }))
        .observer(|g, c| {
            watch(g, c);
            if let Key::Ram(at) = c.key {
                assert!(
                    at >= NEW_QUEUE || g[RETURNED] == 0,
                    "P3: old page after the return"
                );
                let first = at == NEW_QUEUE || at == QUEUE + 4 * (ENTRIES - 1) || at == QUEUE;
                assert!(first || at == NEW_QUEUE + 4, "P4: a hole before {at:#x}");
            }
        })
        .at_rest(|s| {
            forwards_add_up(s)?;
            let at = s.get(Key::Page(Page::EndCursor(end_of(0))));
            let new = (0..2)
                .filter(|i| s.get(Key::Ram(NEW_QUEUE + 4 * i)) != 0)
                .count() as u64;
            // Generation 1 from slot 0; the entries of the old page are the guest's to look for.
            if at & (cursor::INDEX | cursor::GENERATION | cursor::LOCK) != new | cursor::GENERATION
            {
                return Err(format!("cursor {at:#x} with {new} entries"));
            }
            Ok(())
        })
        .explore();
}

#[test]
fn a_queue_reset_ends_writing_to_its_page() {
    scenario("SET_QUEUE_CONFIG size 0 against two triggers", 2)
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 1)))
        .thread(device("device 1", S))
        .thread(device("device 2", R))
        .thread(Thread::new("daemon").op("reset queue", |cx| {
            assert_eq!(xive(&DAEMON, |x| x.set_queue_config(0, PRIO, None)), Ok(()));
            cx.ghost(|g| g[RETURNED] = 1);
            Then::Next
        }))
        .observer(|g, c| {
            watch(g, c);
            let late = matches!(c.key, Key::Ram(_)) && g[RETURNED] == 1;
            assert!(!late, "P3: entry after the return");
        })
        .at_rest(|s| {
            // Whoever came late was dropped: its source waits for an EOI.
            let entries = s.ghost[ENTRIES_WRITTEN];
            if s.ghost[ACCEPTED] != 2 || entries > 2 {
                return Err(format!("{} forwards, {entries} entries", s.ghost[ACCEPTED]));
            }
            Ok(())
        })
        .explore();
}

#[test]
fn after_free_and_sync_no_event_of_the_number_comes() {
    scenario("free against two triggers", 2)
        .var(Key::Table(Table::Eas(S)))
        .thread(device("device 1", S))
        .thread(Thread::new("device 2").op("reset and trigger", |_| {
            xive(&VMM, |x| {
                x.esb_store(management(S) + 0xc00, 8, 0);
                x.trigger(S);
            });
            Then::Next
        }))
        .thread(
            Thread::new("daemon")
                .op("free", |cx| {
                    assert_eq!(xive(&DAEMON, |x| x.free(S)), Ok(()));
                    cx.ghost(|g| g[RETURNED] = 1);
                    Then::Next
                })
                .op("sync, claim again", |cx| {
                    cx.wait(|| xive(&DAEMON, |x| x.sync(S)));
                    xive(&DAEMON, |x| x.claim(S, false));
                    Then::Next
                }),
        )
        .observer(|g, c| {
            watch(g, c);
            let late = matches!(c.key, Key::Ram(_)) && g[RETURNED] == 1;
            assert!(!late, "P3: entry after free");
        })
        .at_rest(|s| {
            let word = s.get(Key::Page(Page::Source(S)));
            if forwards(word) != 0 {
                return Err(format!("source {word:#x}"));
            }
            Ok(())
        })
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

/// A storage that reads each EAS once per transition: the router without its second look.
struct ReadOnce(RefCell<HashMap<u32, u64>>);

impl Storage for ReadOnce {
    type Word = explorer::Word;
    fn page(&self, at: Page) -> &Self::Word {
        word(Key::Page(at))
    }
    fn table(&self, at: Table, order: Ordering) -> u64 {
        let Table::Eas(lisn) = at else {
            return Memory.table(at, order);
        };
        let known = self.0.borrow().get(&lisn).copied();
        known.unwrap_or_else(|| {
            let eas = Memory.table(at, order);
            self.0.borrow_mut().insert(lisn, eas);
            eas
        })
    }
    fn fence(&self) {}
    fn relax(&self, spins: u32) {
        Memory.relax(spins);
    }
}

#[test]
fn a_router_that_reads_the_eas_once_is_refuted() {
    let why = scenario("EAS read before the lock only", 1)
        .var(Key::Table(Table::Eas(S)))
        .thread(Thread::new("device").op("trigger", |_| {
            let storage = ReadOnce(RefCell::default());
            let machine = Machine {
                sources: 64,
                xics_base: 16,
                ..Machine::pseries(IcMode::Xive, Compat::Papr1, 2)
            };
            let geometry = machine.geometry().unwrap();
            Xive::new(&storage, &VMM, &machine, &geometry).trigger(S);
            Then::Next
        }))
        .thread(moves_source())
        .observer(nothing_old)
        .breadth_first()
        .refute();
    assert_eq!(why, "P3: old entry after the return");
}

/// The daemon (thread 0) works on queue and source of the END that two devices use, and may die.
fn dying_daemon(name: &str, dead: Dead, dies: bool) -> Scenario {
    let host = move || Executor { dead, ..VMM };
    let mut daemon = Thread::new("daemon")
        .op("set queue config", |_| {
            let _ = xive(&DAEMON, |x| x.set_queue_config(0, PRIO, queue(NEW_QUEUE)));
            Then::Next
        })
        .op("set source config", |_| {
            let _ = xive(&DAEMON, |x| {
                x.set_source_config(S, eas::new(end_of(1), 0x55, false))
            });
            Then::Next
        });
    if dies {
        daemon = daemon.may_stop();
    }
    let device = |name, lisn| {
        Thread::new(name).op("trigger", move |_| {
            xive(&host(), |x| x.trigger(lisn));
            Then::Next
        })
    };
    scenario(name, 1)
        .var(Key::Table(Table::Eas(S)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 1)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 1)))
        .thread(daemon)
        .thread(device("device 1", S))
        .thread(device("device 2", R))
        .at_rest(forwards_add_up)
}

#[test]
fn events_flow_past_the_lock_of_a_dead_daemon_and_of_no_other() {
    dying_daemon("the daemon dies at any step", Dead::Stopped(0), true).explore();
    let why = dying_daemon("nobody breaks its lock", Dead::None, true).refute();
    assert!(why.starts_with("deadlock: device"), "{why}");
    // N5: a lock taken on suspicion has two owners.
    let why = dying_daemon("taken on suspicion", Dead::Suspected, false).refute();
    assert!(why.contains("I1"), "{why}");
}
