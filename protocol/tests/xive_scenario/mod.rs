//! What the XIVE explorations share: a machine, its executors, a device, a guest, and the invariants
//! that are judged throughout (data-plane-xive §9):
//!
//! I1: only the lock's holder changes index, generation and selector. I2: an entry is written before
//! the cursor passes it, and never twice. I3: accepted forwards are entries, or still counted. I4: at
//! rest whoever has work to do is going to be told.
#![allow(dead_code)] // every test binary uses a part of it

use std::sync::atomic::Ordering::Relaxed;

use papr_intc_protocol::layout::storage::{AtomicWord, Page};
use papr_intc_protocol::layout::words::{cursor, eas, source, tima};
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine};
use papr_intc_protocol::plane::xive::Xive;
use papr_intc_protocol::plane::xive::config::QueueConfig;
use papr_intc_protocol::plane::{Host, LockOwner};

use crate::explorer::{Change, Cx, Ghost, Key, Memory, Scenario, Snapshot, Then, Thread, word};

/// Queues of the scenarios: END 6 of server 0, END 14 of server 1, and where a queue moves to.
pub const QUEUE: u64 = 0x10000;
pub const QUEUE_1: u64 = 0x20000;
pub const NEW_QUEUE: u64 = 0x30000;
pub const ENTRIES: u64 = 1024;
pub const PRIO: u8 = 6;
/// Sources.
pub const S: u32 = 1;
pub const R: u32 = 2;
pub const LSI: u32 = 3;

/// Words of the scenarios.
pub const DATA: Key = Key::User(0);
pub const SLOT: Key = Key::User(1);
pub const LINE: Key = Key::User(2);
pub const LINE_LOCK: Key = Key::User(3);
pub const WORK: Key = Key::User(4);

/// Ghosts.
pub const ACCEPTED: usize = 0;
pub const ENTRIES_WRITTEN: usize = 1;
pub const RETURNED: usize = 2;
pub const HANDLED: usize = 3;
/// Thread + 1 that holds the lock, of the END of server 0 and of server 1.
pub const HOLDER: usize = 4;

/// An executor: queue entries are words; a kick follows the word's line if the scenario has one.
pub struct Executor {
    pub owner: LockOwner,
    pub line: Line,
    /// How it knows that a daemon is dead.
    pub dead: Dead,
}

/// What a kick does to the line of server 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The scenario has no line.
    None,
    /// The front-end's: set, look again, repeat, under one lock per vCPU.
    Synced,
    /// Set once, without looking again: a mistake.
    SetOnce,
}

/// Which daemon an executor takes for dead.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dead {
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

pub const VMM: Executor = Executor {
    owner: LockOwner::FrontEnd,
    line: Line::None,
    dead: Dead::None,
};
pub const DAEMON: Executor = Executor {
    owner: LockOwner::Daemon {
        generation: 1,
        worker: 0,
    },
    ..VMM
};

pub fn ring(server: u32) -> u64 {
    word(Key::Page(Page::Tima(server))).load(Relaxed)
}

/// Runs `f` on the XIVE of a machine of 64 sources and 2 servers.
pub fn xive_as<T>(
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

pub fn xive<T>(host: &Executor, f: impl FnOnce(Xive<'_, Memory, Executor>) -> T) -> T {
    xive_as(Compat::Papr1, host, f)
}

pub fn end_of(server: u32) -> u32 {
    server * 8 + u32::from(PRIO)
}

/// Management page of a source.
pub fn management(lisn: u32) -> u64 {
    u64::from(lisn) << 17 | 0x10000
}

pub fn queue(address: u64) -> Option<QueueConfig> {
    Some(QueueConfig {
        address,
        size: 12,
        always_notify: true,
    })
}

/// Both vCPUs connected with CPPR ff, a queue each; every source ready and sent to server 0 with its
/// number as EISN. The cursor of server 0 stands `before_wrap` entries before the end of the queue.
pub fn setup(before_wrap: u64) {
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
pub fn scenario(name: &str, before_wrap: u64) -> Scenario {
    Scenario::new(name)
        .setup(move || setup(before_wrap))
        .observer(watch)
}

/// Counts accepted forwards and entries, and judges I1 and I2.
pub fn watch(g: &mut Ghost, c: Change) {
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

pub fn forwards(word: u64) -> u64 {
    (word & source::FORWARDS) / source::FORWARD
}

/// I3 at rest: nothing is counted, and each accepted forward became an entry.
pub fn forwards_add_up(s: &Snapshot<'_>) -> Result<(), String> {
    for lisn in [S, R, LSI] {
        let running = forwards(s.get(Key::Page(Page::Source(lisn))));
        if running != 0 {
            return Err(format!("{running} forwards of {lisn} left"));
        }
    }
    let (accepted, entries) = (s.ghost[ACCEPTED], s.ghost[ENTRIES_WRITTEN]);
    if accepted != entries {
        return Err(format!("{accepted} forwards, {entries} entries"));
    }
    Ok(())
}

/// A device thread: data, then a trigger.
pub fn device(name: &'static str, lisn: u32) -> Thread {
    device_times(name, lisn, 1)
}

pub fn device_times(name: &'static str, lisn: u32, times: usize) -> Thread {
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
pub enum Eoi {
    /// The EOI load.
    Load,
    /// As Linux does it for MSIs: SET_PQ_00, and a trigger if Q was set.
    Linux,
}

/// A guest: wakes up by its line, acknowledges, drains the queue by the generation bit, handles all
/// the data there is for each entry, ends it, opens its CPPR, sleeps.
pub fn guest(eoi: Eoi) -> Thread {
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
pub fn all_handled(events: u64) -> impl Fn(&Snapshot<'_>) -> Result<(), String> {
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
