//! The XIVE plane on one thread: xive.md's conformance vectors and the two compat levels; in
//! [`robust`] shared words that somebody scribbled on and locks that do not move. Interleavings are in `tests/explore_xive*.rs`.
#![allow(clippy::unwrap_used)]

mod robust;

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering::Relaxed;

use super::Xive;
use super::config::{EndView, QueueConfig};
use crate::layout::plain::PlainStorage;
use crate::layout::words::{cursor, eas, end_config, source, tima};
use crate::layout::{Compat, Geometry, IcMode, Machine, Page, Storage};
use crate::plane::{Host, LevelInput, LockOwner};

const QUEUE: u64 = 0x10000;
const END: u32 = 6;
const OS: u64 = 0x20000;

/// RAM from `QUEUE` on, and what was kicked.
struct TestHost {
    entries: RefCell<Vec<(u64, u32)>>,
    kicks: Cell<u32>,
    owner: Cell<LockOwner>,
    dead: Cell<u16>,
}

impl Host for TestHost {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        let ram = (QUEUE..QUEUE + 0x1_0000).contains(&gpa);
        if ram {
            self.entries.borrow_mut().push((gpa, entry));
        }
        ram
    }
    fn kick(&self, _: u32) {
        self.kicks.set(self.kicks.get() + 1);
    }
    fn lock_owner(&self) -> LockOwner {
        self.owner.get()
    }
    fn is_dead(&self, generation: u16) -> bool {
        generation <= self.dead.get()
    }
}

struct Rig {
    machine: Machine,
    geometry: Geometry,
    storage: PlainStorage,
    host: TestHost,
}

impl Rig {
    /// Two servers, server 0 connected and reset; MSIs 0 to 15, LSI 16, all off and masked.
    fn new(compat: Compat) -> Self {
        let machine = Machine {
            sources: 64,
            xics_base: 16,
            ..Machine::pseries(IcMode::Xive, compat, 2)
        };
        let geometry = machine.geometry().unwrap();
        let rig = Self {
            machine,
            geometry,
            storage: PlainStorage::new(geometry),
            host: TestHost {
                entries: RefCell::default(),
                kicks: Cell::new(0),
                owner: Cell::new(LockOwner::FrontEnd),
                dead: Cell::new(0),
            },
        };
        let x = rig.xive();
        (0..geometry.sources()).for_each(|lisn| x.reset_source(lisn));
        (0..geometry.ends()).for_each(|end| x.reset_end(end));
        (0..=16).for_each(|lisn| x.claim(lisn, lisn == 16));
        x.connect(0);
        rig
    }

    /// As `new`, with a queue at priority 6, sources 0, 1 and 16 ready on it with EISN 0x10 + LISN, CPPR ff.
    fn ready(compat: Compat) -> Self {
        let rig = Self::new(compat);
        let x = rig.xive();
        x.tima_store(0, OS + 0x11, 1, 0xff);
        rig.queue(true);
        for lisn in [0, 1, 16] {
            x.set_source_config(lisn, eas::new(END, 0x10 + lisn, false))
                .unwrap();
            x.esb_load(page(lisn) + 0xc00, 8);
        }
        rig
    }

    fn xive(&self) -> Xive<'_, PlainStorage, TestHost> {
        Xive::new(&self.storage, &self.host, &self.machine, &self.geometry)
    }

    fn queue(&self, always_notify: bool) {
        let queue = QueueConfig {
            address: QUEUE,
            size: 12,
            always_notify,
        };
        self.xive().set_queue_config(0, 6, Some(queue)).unwrap();
    }

    fn pq(&self, lisn: u32) -> u64 {
        self.xive().esb_load(page(lisn) + 0x800, 8)
    }
    fn ring(&self) -> u64 {
        self.xive().tima_load(0, OS + 0x10, 8)
    }
    fn acknowledge(&self) -> u64 {
        self.xive().tima_load(0, OS + 0x810, 2)
    }
    fn cppr(&self, value: u64) {
        self.xive().tima_store(0, OS + 0x11, 1, value);
    }
    fn word(&self, at: Page) -> u64 {
        self.storage.page(at).load(Relaxed)
    }
    /// The entries written since the last look.
    fn entries(&self) -> Vec<(u64, u32)> {
        self.host.entries.take()
    }
}

/// Offset of a source's management page.
fn page(lisn: u32) -> u64 {
    u64::from(lisn) << 17 | 0x10000
}

const BOTH: [Compat; 2] = [Compat::Papr1, Compat::Qemu72];

#[test]
fn the_conformance_vectors_of_the_reference_hold() {
    for compat in BOTH {
        let rig = Rig::new(compat);
        let x = rig.xive();
        assert_eq!((rig.ring(), rig.pq(0)), (0x0000_00ff_ff00_00ff, 1));
        rig.cppr(0xff);
        assert_eq!(rig.ring(), 0x00ff_00ff_ff00_00ff);
        rig.queue(true);
        x.set_source_config(0, eas::new(END, 0x10, false)).unwrap();
        assert_eq!(x.esb_load(page(0) + 0xc00, 8), 1);

        x.esb_store(0, 8, 0);
        assert_eq!((rig.pq(0), rig.entries()), (2, vec![(QUEUE, 0x8000_0010)]));
        assert_eq!((rig.ring(), x.line(0)), (0x80ff_02ff_ff00_0006, true));
        x.esb_store(0, 8, 0);
        assert_eq!((rig.pq(0), rig.entries()), (3, vec![]));
        assert_eq!(rig.acknowledge(), 0x8006);
        assert_eq!((rig.ring(), x.line(0)), (0x0006_00ff_ff00_00ff, false));
        assert_eq!(rig.acknowledge(), 0x0006);

        assert_eq!(x.esb_load(page(0), 8), 1);
        assert_eq!(
            (rig.pq(0), rig.entries()),
            (2, vec![(QUEUE + 4, 0x8000_0010)])
        );
        assert_eq!((rig.ring(), x.line(0)), (0x0006_02ff_ff00_0006, false));
        rig.cppr(0xff);
        assert_eq!((rig.ring(), x.line(0)), (0x80ff_02ff_ff00_0006, true));
        rig.cppr(0);
        assert_eq!((rig.ring(), x.line(0)), (0x8000_02ff_ff00_0006, true));
        assert_eq!(rig.acknowledge(), 0x8006);
        assert_eq!(rig.ring(), 0x0006_00ff_ff00_00ff);
        rig.cppr(0xff);
        assert_eq!((x.esb_load(page(0), 8), rig.pq(0)), (0, 0));

        for (value, stored) in [(0, 0), (1, 1), (6, 6), (7, 7), (8, 0xff), (0x80, 0xff)] {
            rig.cppr(value);
            assert_eq!(rig.ring() >> 48 & 0xff, stored);
        }
        rig.cppr(0xff);
        for priority in [3, 5, 1] {
            x.tima_store(0, OS + 0x812, 1, priority);
        }
        assert_eq!(rig.ring(), 0x80ff_54ff_ff00_0001);
        assert_eq!(rig.acknowledge(), 0x8001);
        assert_eq!(rig.ring(), 0x0001_14ff_ff00_0003);
        assert_eq!(rig.acknowledge(), 0x0001);
        rig.cppr(4);
        assert_eq!(rig.acknowledge(), 0x8003);
        assert_eq!(rig.ring(), 0x0003_04ff_ff00_0005);
        for none in [8, 0xff] {
            x.tima_store(0, OS + 0x812, 1, none);
            assert_eq!(rig.ring(), 0x0003_04ff_ff00_0005);
        }
    }
}

#[test]
fn the_management_page_sets_and_gets_pq_anywhere_in_its_ranges() {
    for compat in BOTH {
        let rig = Rig::new(compat);
        let x = rig.xive();
        for (at, to) in [(0xc00, 0), (0xdf8, 1), (0xe40, 2), (0xff8, 3)] {
            let before = rig.pq(5);
            // Every 4 KiB of the page is the same.
            assert_eq!(x.esb_load(page(5) + 0x3000 + at, 8), before);
            assert_eq!(rig.pq(5), to);
            x.esb_store(page(5) + 0xc00, 8, 0);
            x.esb_store(page(5) + at, 8, u64::MAX);
            assert_eq!(rig.pq(5), to);
        }
    }
}

#[test]
fn the_trigger_page_reads_as_ones_and_changes_nothing() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff), (8, u64::MAX)] {
        assert_eq!(x.esb_load(0x8, size), ones);
    }
    assert_eq!((rig.pq(0), rig.entries()), (0, vec![]));
}

#[test]
fn access_sizes_other_than_eight_are_dead_at_qemu_and_alive_at_papr() {
    for (compat, alive) in [(Compat::Papr1, true), (Compat::Qemu72, false)] {
        for size in [1, 2, 4] {
            let rig = Rig::ready(compat);
            rig.xive().esb_store(0, size, 0);
            assert_eq!(rig.entries().len(), usize::from(alive));
            let got = rig.xive().esb_load(page(0) + 0x800, size);
            assert_eq!(got, if alive { 2 } else { 0 });
        }
    }
    assert_eq!(Rig::ready(Compat::Papr1).xive().esb_load(0, 3), 0);
}

#[test]
fn accesses_beyond_the_last_source_do_nothing() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    for offset in [page(64), page(64) - 0x10000, u64::MAX, 1 << 49] {
        x.esb_store(offset, 8, 0);
        assert_eq!(x.esb_load(offset, 8), 0);
    }
    assert_eq!(rig.entries(), vec![]);
}

#[test]
fn a_store_at_0x800_injects_at_qemu_only() {
    for (compat, entries) in [(Compat::Papr1, 0), (Compat::Qemu72, 1)] {
        let rig = Rig::ready(compat);
        rig.xive().esb_load(page(0) + 0xd00, 8);
        rig.xive().esb_store(page(0) + 0x800, 8, 0);
        assert_eq!((rig.entries().len(), rig.pq(0)), (entries, 1));
    }
}

#[test]
fn store_eoi_ends_an_interrupt_if_the_machine_offers_it() {
    for (offered, pq) in [(true, 2), (false, 3)] {
        let mut rig = Rig::ready(Compat::Papr1);
        rig.machine.store_eoi = offered;
        rig.xive().trigger(0);
        rig.xive().trigger(0);
        rig.xive().esb_store(page(0) + 0x400, 8, 0);
        assert_eq!(rig.pq(0), pq);
        assert_eq!(rig.entries().len(), if offered { 2 } else { 1 });
    }
}

#[test]
fn a_level_that_stays_high_is_sent_again_by_the_eoi() {
    for compat in BOTH {
        let rig = Rig::ready(compat);
        let x = rig.xive();
        x.set_level(16, LevelInput::Vmm, true);
        assert_eq!((rig.pq(16), rig.entries().len()), (2, 1));
        assert_eq!((x.esb_load(page(16), 8), rig.pq(16)), (1, 2));
        assert_eq!(rig.entries().len(), 1);
        x.set_level(16, LevelInput::Vmm, false);
        assert_eq!((x.esb_load(page(16), 8), rig.pq(16)), (0, 0));
    }
}

#[test]
fn a_shared_lsi_is_asserted_while_one_input_is() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    x.set_level(16, LevelInput::Vmm, true);
    x.set_level(16, LevelInput::Irqfd, true);
    // An end lowers the level of irqfds, and leaves the VMM's.
    assert_eq!(x.esb_load(page(16), 8), 1);
    assert!(rig.word(Page::Source(16)) & source::RESAMPLE_DUE != 0);
    x.resampled(16);
    assert!(rig.word(Page::Source(16)) & source::RESAMPLE_DUE == 0);
    // A device that still has a reason raises it again.
    x.set_level(16, LevelInput::Irqfd, true);
    x.set_level(16, LevelInput::Vmm, false);
    assert_eq!(x.esb_load(page(16), 8), 0);
    assert!(
        rig.word(Page::Source(16)) & (source::LEVEL_IRQFD | source::RESAMPLE_DUE)
            == source::RESAMPLE_DUE
    );
}

#[test]
fn an_asserted_lsi_with_q_or_unmasked_is_sent_at_papr_and_forgotten_at_qemu() {
    for (compat, sent) in [(Compat::Papr1, 1), (Compat::Qemu72, 0)] {
        let rig = Rig::ready(compat);
        let x = rig.xive();
        x.set_level(16, LevelInput::Vmm, true);
        x.esb_store(16 << 17, 8, 0); // a guest's trigger sets Q
        assert_eq!((rig.pq(16), rig.entries().len()), (3, 1));
        assert_eq!(x.esb_load(page(16), 8), sent);
        assert_eq!((rig.pq(16), rig.entries().len() as u64), (2, sent));

        let rig = Rig::ready(compat);
        let x = rig.xive();
        x.esb_load(page(16) + 0xd00, 8);
        x.set_level(16, LevelInput::Vmm, true);
        assert_eq!(x.esb_load(page(16) + 0xc00, 8), 1, "the old PQ");
        assert_eq!((rig.pq(16), rig.entries().len() as u64), (2 * sent, sent));
    }
}

#[test]
fn an_msi_is_triggered_by_the_rising_line_only() {
    let rig = Rig::ready(Compat::Papr1);
    rig.xive().set_level(0, LevelInput::Vmm, false);
    assert_eq!(rig.entries(), vec![]);
    rig.xive().pulse(0, LevelInput::Vmm);
    assert_eq!((rig.entries().len(), rig.pq(0)), (1, 2));
    assert_eq!(rig.word(Page::Source(0)) & source::ASSERTED, 0);
}

#[test]
fn a_queue_wraps_and_flips_its_generation() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    for i in 0..1024 {
        x.route(0).unwrap();
        assert_eq!(rig.entries(), vec![(QUEUE + 4 * i, 0x8000_0010)]);
    }
    let view = x.end(END);
    assert_eq!((view.index, view.generation), (0, false));
    x.route(0).unwrap();
    assert_eq!(rig.entries(), vec![(QUEUE, 0x10)]);
}

#[test]
fn a_queue_without_always_notify_tells_once_and_writes_on() {
    let rig = Rig::ready(Compat::Papr1);
    rig.queue(false);
    for (esn, ipb) in [(2, 0x02), (3, 0), (3, 0)] {
        rig.xive().route(0).unwrap();
        assert_eq!(rig.xive().end(END).esn, esn);
        assert_eq!(u64::from(tima::ipb(rig.ring())), ipb);
        rig.acknowledge();
    }
    assert_eq!(rig.entries().len(), 3);
}

#[test]
fn an_entry_that_cannot_be_written_leaves_the_index_and_notifies() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    let nowhere = QueueConfig {
        address: 1 << 40,
        size: 16,
        always_notify: true,
    };
    x.set_queue_config(0, 6, Some(nowhere)).unwrap();
    x.trigger(0);
    assert_eq!((x.end(END).index, x.end(END).generation), (0, true));
    assert!(x.line(0));
}

#[test]
fn events_that_lead_nowhere_are_dropped_and_stay_pending() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    let cases = [
        eas::new(END, 0x10, true),                // masked
        eas::new(END, 0x10, false) & !eas::VALID, // not claimed
        eas::new(5, 0x10, false),                 // END never configured
        eas::new(16, 0x10, false),                // END out of range
        eas::new(0xff_ffff, 0x10, false),
    ];
    for eas in cases {
        x.set_source_config(0, eas).unwrap();
        x.esb_store(page(0) + 0xc00, 8, 0);
        x.trigger(0);
        assert_eq!((rig.pq(0), rig.entries().len()), (2, 0), "{eas:#x}");
        assert!(x.sync(0) && !x.line(0));
    }
}

#[test]
fn an_event_for_a_vcpu_that_is_gone_is_queued_and_not_told() {
    let rig = Rig::ready(Compat::Papr1);
    rig.xive().disconnect(0);
    rig.xive().trigger(0);
    assert_eq!(rig.entries().len(), 1);
    assert_eq!(rig.word(Page::Tima(0)), tima::RESET);
    assert_eq!(rig.xive().tima_load(0, OS + 0x10, 8), u64::MAX);
}

#[test]
fn the_os_page_answers_as_the_reference_says() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    x.present(0, 6);
    let loads = [
        (0x10, 4, 0x80ff_02ff),
        (0x14, 4, 0xff00_0006),
        (0x7d0, 4, 0x80ff_02ff),  // every 0x40 below 0x800
        (0x1010, 4, 0x80ff_02ff), // every 4 KiB
        (0x18, 4, 0xffff_ffff),
        (0x00, 8, u64::MAX),
        (0x20, 8, u64::MAX),
        (0x11, 1, 0xff),
        (0x10, 2, 0xffff),
        (0x810, 1, 0xff),
        (0x810, 4, 0xffff_ffff),
        (0x810, 8, u64::MAX),
        (0xc10, 2, 0xffff),
    ];
    for (offset, size, value) in loads {
        assert_eq!(x.tima_load(0, OS + offset, size), value, "{offset:#x}");
    }
    assert_eq!(
        rig.ring(),
        0x80ff_02ff_ff00_0006,
        "nothing of that acknowledged"
    );
    // The other pages, a size that no access has, and servers that are not there.
    for (server, offset, size) in [
        (0, 0x10, 8),
        (0, 0x10010, 8),
        (0, 0x30010, 8),
        (0, 1 << 40, 8),
    ]
    .into_iter()
    .chain([(0, OS + 0x10, 3), (1, OS + 0x10, 8), (2, OS + 0x10, 8)])
    {
        x.tima_store(server, offset, size, u64::MAX);
        let ones = if size == 8 { u64::MAX } else { 0xff_ffff };
        assert_eq!(x.tima_load(server, offset, size), ones);
    }
}

#[test]
fn a_wide_store_over_cppr_is_raw() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    x.tima_store(0, OS + 0x10, 4, 0x0102_0304);
    assert_eq!(rig.ring(), 0x0002_00ff_ff00_00ff);
    x.present(0, 6);
    x.tima_store(0, OS + 0x10, 4, 0x00aa_0000);
    assert_eq!((rig.ring(), x.line(0)), (0x00aa_02ff_ff00_0006, false));
    x.tima_store(0, OS + 0x10, 8, 0x00ff << 48);
    assert!(!x.line(0));
    x.tima_store(0, OS + 0x91, 1, 0xff); // not a port of CPPR in 7.2
    assert!(!x.line(0));
    rig.cppr(0xff);
    assert!(x.line(0));
}

#[test]
fn a_queue_reset_is_the_reset_value() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    x.route(0).unwrap();
    x.set_queue_config(0, 6, None).unwrap();
    let off = EndView {
        esn: 1,
        ..EndView::default()
    };
    assert_eq!(x.end(END), off);
    rig.entries();
    x.route(0).unwrap();
    assert_eq!(rig.entries(), vec![]);
}

#[test]
fn what_is_latched_is_replayed_once() {
    for lsi in [false, true] {
        let rig = Rig::ready(Compat::Papr1);
        let (x, lisn) = (rig.xive(), if lsi { 16 } else { 0 });
        for _ in 0..3 {
            x.latch_level(lisn, LevelInput::Vmm, true);
        }
        assert_eq!(rig.entries(), vec![]);
        x.replay(lisn);
        x.replay(lisn);
        assert_eq!((rig.entries().len(), rig.pq(lisn)), (1, 2), "lsi {lsi}");
        x.latch_level(lisn, LevelInput::Vmm, false);
        assert_eq!(x.esb_load(page(lisn), 8), 0);
    }
}

#[test]
fn a_claim_masks_and_keeps_what_the_number_was_before() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    x.trigger(0);
    x.free(0).unwrap();
    assert_eq!((x.source_config(0), rig.pq(0)), (None, 2));
    x.claim(0, true);
    assert_eq!(x.source_config(0), Some(eas::new(END, 0x10, true)));
    assert!(x.is_lsi(0) && !x.is_lsi(1));
    for beyond in [64, 1 << 32, u64::MAX] {
        assert_eq!(x.source_config(beyond), None);
    }
}

#[test]
fn a_vcpu_reset_lowers_the_line_and_keeps_the_vcpu() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    x.present(0, 1);
    let kicks = rig.host.kicks.get();
    x.vcpu_reset(0);
    assert!(!x.line(0) && x.is_connected(0) && rig.host.kicks.get() > kicks);
    x.vcpu_reset(1);
    assert!(!x.is_connected(1));
}
