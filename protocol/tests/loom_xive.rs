//! The orderings of the shipped XIVE transitions, under loom (SPEC.md chapter 3).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p papr-intc-protocol --test loom_xive --release`
//!
//! Each test runs twice: with the shipped orderings no execution fails, and with all of them
//! Relaxed one does. What needs no weak memory to fail is in `explore_xive.rs`.
#![cfg(loom)]

mod loom_storage;

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use loom::sync::{Arc, Mutex};
use loom::thread;
use loom_storage::{Key, LoomStorage, executions, refuted};
use papr_intc_protocol::layout::storage::{AtomicWord, Page, Table};
use papr_intc_protocol::layout::words::{cursor, eas, end_config, source, tima};
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine};
use papr_intc_protocol::plane::Host;
use papr_intc_protocol::plane::xive::Xive;

const S: u32 = 1;
const END: u32 = 6;
const QUEUE: u64 = 0x10000;
/// The ring in the TIMA's OS page.
const OS_RING: u64 = 0x20010;
const NEW_EISN: u32 = 0x55;

const SOURCE: Key = Key::Page(Page::Source(S));
const RING: Key = Key::Page(Page::Tima(0));
const CURSOR: Key = Key::Page(Page::EndCursor(END));
const EAS: Key = Key::Table(Table::Eas(S));
const ENTRY: Key = Key::Ram(QUEUE);
const DATA: Key = Key::User(0);
const RETURNED: Key = Key::User(1);
const LINE: Key = Key::User(2);

/// A ring of a connected vCPU.
fn ring(nsr: u64, cppr: u64, ipb: u64, pipr: u64) -> u64 {
    tima::RESET & !0xff
        | tima::CONNECTED
        | nsr << tima::NSR_SHIFT
        | cppr << tima::CPPR_SHIFT
        | ipb << tima::IPB_SHIFT
        | pipr
}

/// An executor on loom's words.
#[derive(Clone)]
struct Rig {
    storage: LoomStorage,
    line_lock: Option<Arc<Mutex<()>>>,
}

impl Rig {
    fn new(weak: bool, words: &[(Key, u64)]) -> Self {
        let storage = LoomStorage::build(words, weak)
            .with_constant(Table::Eas(S), eas::new(END, S, false))
            .with_constant(Table::EndConfig(END, 0, 0), QUEUE)
            .with_constant(Table::EndConfig(END, 0, 1), end_config::new(12, true));
        Self {
            storage,
            line_lock: None,
        }
    }

    fn run<T>(&self, f: impl FnOnce(Xive<'_, LoomStorage, Self>) -> T) -> T {
        let machine = Machine {
            sources: 64,
            xics_base: 16,
            ..Machine::pseries(IcMode::Xive, Compat::Papr1, 1)
        };
        let geometry: Geometry = machine.geometry().expect("a small machine");
        f(Xive::new(&self.storage, self, &machine, &geometry))
    }

    fn load(&self, key: Key) -> u64 {
        self.storage.word(key).load(Relaxed)
    }
}

impl Host for Rig {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        if gpa == QUEUE {
            self.storage.word(ENTRY).store(entry.into(), Relaxed);
        }
        // The observer of SET_SOURCE_CONFIG: the hcall has returned before this entry is written.
        if self.storage.has(RETURNED) && self.storage.word(RETURNED).load(Acquire) == 1 {
            assert_eq!(entry & 0x7fff_ffff, NEW_EISN, "old EISN after the return");
        }
        true
    }
    fn kick(&self, _: u32) {
        let Some(lock) = &self.line_lock else {
            return;
        };
        // The front-end's: set, look again, repeat, under the vCPU's lock.
        let _held = lock.lock().expect("nobody panics holding it");
        loop {
            let level = self.run(|x| x.line(0));
            self.storage.word(LINE).store(u64::from(level), Relaxed);
            if self.run(|x| x.line(0)) == level {
                break;
            }
        }
    }
}

/// A trigger that finds PQ = 11 must be seen by the EOI that consumes Q (N17).
fn trigger_against_eoi(weak: bool) {
    // Without an EAS forwards are dropped: this is about the source word alone.
    let rig = Rig::new(weak, &[(SOURCE, source::PQ), (DATA, 0), (EAS, 0)]);
    let device = rig.clone();
    let thread = thread::spawn(move || {
        device.storage.word(DATA).store(1, Relaxed);
        device.run(|x| x.trigger(S));
    });
    let mut seen = false;
    let eoi = || rig.run(|x| x.esb_load(u64::from(S) << 17 | 0x10000, 8));
    while eoi() == 1 {
        // A handler runs for each event that an EOI forwarded.
        seen |= rig.load(DATA) == 1;
    }
    thread.join().expect("the device's thread");
    let pending = rig.load(SOURCE) & source::P != 0;
    assert!(seen || pending, "the event is lost");
}

#[test]
fn an_eoi_sees_the_data_of_the_trigger_it_consumes() {
    executions("trigger against EOI", || trigger_against_eoi(false));
    refuted("trigger against EOI, relaxed", || trigger_against_eoi(true));
}

/// An acknowledge that takes a priority pending already must see the entry of a router that found it
/// pending (N16, N17).
fn present_against_acknowledge(weak: bool) {
    let rig = Rig::new(
        weak,
        &[
            (SOURCE, 0),
            (CURSOR, cursor::FRESH),
            (RING, ring(0x80, 0xff, 0x02, 6)),
            (ENTRY, 0),
        ],
    );
    let router = rig.clone();
    let thread = thread::spawn(move || router.run(|x| x.trigger(S)));
    assert_eq!(rig.run(|x| x.acknowledge(0)), 0x8006);
    let seen = rig.load(ENTRY) != 0;
    // CPPR is 6 now: a later present stays pending, and is told when CPPR opens.
    rig.run(|x| x.set_cppr(0, 0xff));
    thread.join().expect("the router's thread");
    let told = rig.run(|x| x.line(0));
    assert!(seen || told, "an entry that nobody is told of");
}

#[test]
fn an_acknowledge_sees_the_entries_it_stands_for() {
    executions("present against acknowledge", || {
        present_against_acknowledge(false);
    });
    refuted("present against acknowledge, relaxed", || {
        present_against_acknowledge(true);
    });
}

/// Two routers and an acknowledge: the presents form one release sequence, so that an acknowledge that
/// reads the second's word sees the first's entry too (N17).
fn two_presents_against_acknowledge(weak: bool) {
    const OTHER: u32 = 2;
    const SECOND: Key = Key::Ram(QUEUE + 0x1000);
    let rig = Rig::new(
        weak,
        &[(RING, ring(0, 0xff, 0, 0xff)), (ENTRY, 0), (SECOND, 0)],
    );
    // Two queues, by hand: an entry, then its present.
    let router = |key: Key, priority: u8| {
        let rig = rig.clone();
        thread::spawn(move || {
            rig.storage.word(key).store(OTHER.into(), Relaxed);
            rig.run(|x| x.present(0, priority));
        })
    };
    let threads = [router(ENTRY, 6), router(SECOND, 3)];
    let told = rig.run(|x| x.acknowledge(0));
    let key = if told & 0xff == 3 { SECOND } else { ENTRY };
    assert!(
        told >> 8 == 0 || rig.load(key) != 0,
        "no entry behind {told:#x}"
    );
    if tima::ipb(rig.run(|x| x.tima_load(0, OS_RING, 8))) == 0x02 {
        // Priority 6 was pending beside the one taken: its entry is there as well.
        assert_ne!(rig.load(ENTRY), 0, "no entry behind the IPB");
    }
    for thread in threads {
        thread.join().expect("a router's thread");
    }
}

#[test]
fn an_acknowledge_sees_the_entries_of_every_router_before_it() {
    executions("two presents against acknowledge", || {
        two_presents_against_acknowledge(false);
    });
    refuted("two presents against acknowledge, relaxed", || {
        two_presents_against_acknowledge(true);
    });
}

/// SET_SOURCE_CONFIG against a router: after the return no entry carries the old EISN.
fn eas_against_end_lock(weak: bool) {
    let rig = Rig::new(
        weak,
        &[
            (SOURCE, 0),
            (CURSOR, cursor::FRESH),
            (RING, ring(0, 0xff, 0, 0xff)),
            (ENTRY, 0),
            (EAS, eas::new(END, S, false)),
            (RETURNED, 0),
        ],
    );
    let router = rig.clone();
    let thread = thread::spawn(move || router.run(|x| x.trigger(S)));
    let new = eas::new(END, NEW_EISN, false);
    assert_eq!(rig.run(|x| x.set_source_config(S, new)), Ok(()));
    rig.storage.word(RETURNED).store(1, Release);
    thread.join().expect("the router's thread");
    assert_eq!(rig.load(CURSOR), cursor::FRESH + 1);
}

#[test]
fn after_set_source_config_no_router_has_the_old_eisn() {
    executions("EAS against END lock", || eas_against_end_lock(false));
    refuted("EAS against END lock, relaxed", || {
        eas_against_end_lock(true)
    });
}

/// A queue that moves: who sees the new selector sees the new slot, and SYNC the entry.
fn queue_config_against_router(weak: bool) {
    const NEW_QUEUE: u64 = 0x20000;
    let slot = |i| Key::Table(Table::EndConfig(END, 1, i));
    let rig = Rig::new(
        weak,
        &[
            (SOURCE, 0),
            (CURSOR, cursor::FRESH),
            (RING, ring(0, 0xff, 0, 0xff)),
            (ENTRY, 0),
            (slot(0), 0),
            (slot(1), 0),
        ],
    );
    let router = rig.clone();
    let thread = thread::spawn(move || router.run(|x| x.trigger(S)));
    let queue = papr_intc_protocol::plane::xive::config::QueueConfig {
        address: NEW_QUEUE,
        size: 12,
        always_notify: true,
    };
    assert_eq!(rig.run(|x| x.set_queue_config(0, 6, Some(queue))), Ok(()));
    thread.join().expect("the router's thread");
    // A router that took the new selector for the old, empty slot would have dropped its event.
    let old = rig.load(ENTRY) != 0;
    let new = rig.load(CURSOR) & cursor::INDEX == 1;
    assert!(old != new, "old {old}, new {new}");
}

#[test]
fn who_sees_the_selector_sees_the_queue() {
    executions("queue configuration against router", || {
        queue_config_against_router(false);
    });
    refuted("queue configuration against router, relaxed", || {
        queue_config_against_router(true);
    });
}

/// SYNC: count 0 means that the entries of forwards accepted before are visible.
fn sync_against_trigger(weak: bool) {
    let rig = Rig::new(
        weak,
        &[
            (SOURCE, 0),
            (CURSOR, cursor::FRESH),
            (RING, ring(0, 0xff, 0, 0xff)),
            (ENTRY, 0),
        ],
    );
    let router = rig.clone();
    let thread = thread::spawn(move || router.run(|x| x.trigger(S)));
    // Whichever trigger came first was forwarded; the other one is queued behind it.
    rig.run(|x| x.trigger(S));
    if rig.run(|x| x.sync(S)) {
        assert_ne!(rig.load(ENTRY), 0, "SYNC returned before the entry");
    }
    thread.join().expect("the router's thread");
}

#[test]
fn sync_makes_the_entries_visible() {
    executions("SYNC against trigger", || sync_against_trigger(false));
    refuted("SYNC against trigger, relaxed", || {
        sync_against_trigger(true)
    });
}

/// Present, CPPR, acknowledge and the line: at rest the line is what the ring says.
fn line_against_ring(weak: bool) {
    let mut rig = Rig::new(weak, &[(RING, ring(0, 0, 0, 0xff)), (LINE, 0)]);
    rig.line_lock = Some(Arc::new(Mutex::new(())));
    let router = rig.clone();
    let thread = thread::spawn(move || router.run(|x| x.present(0, 6)));
    rig.run(|x| x.set_cppr(0, 0xff));
    rig.run(|x| x.acknowledge(0));
    thread.join().expect("the router's thread");
    let told = rig.run(|x| x.line(0));
    assert_eq!(
        rig.load(LINE) == 1,
        told,
        "the line is not what the ring says"
    );
    let now = rig.load(RING);
    assert!(
        told || tima::pipr(now) >= tima::cppr(now),
        "pending and not told"
    );
}

#[test]
fn the_line_ends_as_the_ring_says() {
    // The vCPU's lock orders the line: here the ring's own orderings matter to nobody but the queue.
    executions("present against CPPR, acknowledge and line", || {
        line_against_ring(false);
    });
}
