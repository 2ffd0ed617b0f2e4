//! What the large checks in `protocol/tests` don't reach: hostile words, contention, recovery, reset,
//! latched triggers, resampling.

use std::cell::{Cell, RefCell};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{self, Relaxed};

use proptest::prelude::*;

use super::*;
use crate::layout::plain::PlainStorage;
use crate::layout::words::journal;
use crate::layout::{IcMode, Table, TableStorage};
use crate::plane::LevelInput;

const BASE: u32 = 16;
const MSI: u32 = 17;
const OTHER: u32 = 90;
const LSI: u32 = 18;

/// An executor that writes down what it is told.
#[derive(Default)]
struct Recorder {
    daemon: bool,
    kicks: RefCell<Vec<u32>>,
    resampled: RefCell<Vec<u32>>,
    contended: RefCell<Vec<u32>>,
    journal: Cell<(u32, u32)>,
}

impl Host for Recorder {
    fn write_queue_entry(&self, _: u64, _: u32) -> bool {
        unreachable!("XICS has no event queues")
    }
    fn kick(&self, server: u32) {
        self.kicks.borrow_mut().push(server);
    }
    fn lock_owner(&self) -> LockOwner {
        if self.daemon {
            LockOwner::Daemon {
                generation: 1,
                worker: 0,
            }
        } else {
            LockOwner::FrontEnd
        }
    }
    fn journal(&self, token: u32, victim: u32) {
        self.journal.set((token, victim));
    }
    fn contended(&self, irq: u32) {
        self.contended.borrow_mut().push(irq);
    }
    fn resample(&self, irq: u32) {
        self.resampled.borrow_mut().push(irq);
    }
}

struct Bench {
    storage: PlainStorage,
    host: Recorder,
    machine: Machine,
}

impl Bench {
    /// Two vCPUs with CPPR ff; MSI, OTHER and LSI routed to server 0 at priority 5.
    fn new(compat: Compat) -> Self {
        let machine = Machine {
            sources: BASE + 200,
            xics_base: BASE,
            ..Machine::pseries(IcMode::Xics, compat, 2)
        };
        let bench = Self {
            storage: PlainStorage::new(machine.geometry().unwrap()),
            host: Recorder {
                daemon: true,
                ..Recorder::default()
            },
            machine,
        };
        let xics = bench.xics();
        xics.create();
        for server in 0..2 {
            xics.connect(server);
            xics.set_cppr(server, 0xff);
        }
        for irq in [MSI, OTHER, LSI] {
            xics.claim(irq, irq == LSI);
            xics.write(irq, to(0, 5)).unwrap();
        }
        bench
    }
    fn xics(&self) -> Xics<'_, PlainStorage, Recorder> {
        let geometry = self.storage.geometry();
        Xics::new(&self.storage, &self.host, &self.machine, geometry)
    }
    fn status(&self, irq: u32) -> u8 {
        self.xics().source(irq).unwrap().status
    }
    fn xisr(&self, server: u32) -> u32 {
        self.xics().poll(server).unwrap().0 & 0xff_ffff
    }
}

fn to(server: u32, priority: u8) -> Routing {
    Routing {
        server,
        priority,
        saved: priority,
    }
}

#[test]
fn recovery_records_what_the_dead_daemon_held() {
    let bench = Bench::new(Compat::Papr1);
    let word = bench.storage.table_word(Table::Journal(journal::XICS));
    word.store(u64::from(MSI) | u64::from(OTHER) << 24, Relaxed);
    bench.host.kicks.borrow_mut().clear();
    bench.xics().recover();
    // Both were restored; the first is presented, on a tie the second waits.
    assert_eq!(bench.xisr(0), MSI);
    assert_eq!(bench.status(OTHER), 4);
    assert!(bench.host.kicks.borrow().contains(&0));
    assert_eq!(bench.host.journal.get(), (0, 0));
    bench.xics().accept(0);
    bench.xics().eoi(0, 0xff00_0000 | MSI);
    assert_eq!(bench.xisr(0), OTHER);
}

#[test]
fn recovery_adds_nothing_to_what_is_recorded() {
    let bench = Bench::new(Compat::Papr1);
    bench.xics().trigger(MSI);
    let word = bench.storage.table_word(Table::Journal(journal::XICS));
    word.store(u64::from(MSI) | u64::from(MSI) << 24, Relaxed);
    bench.xics().recover();
    assert_eq!((bench.xisr(0), bench.status(MSI)), (MSI, 0));
}

#[test]
fn recovery_masks_what_is_masked_and_clears_sent_of_an_lsi() {
    let bench = Bench::new(Compat::Papr1);
    bench.xics().write(MSI, to(0, 0xff)).unwrap();
    bench.xics().set_level(LSI, LevelInput::Vmm, true);
    bench.xics().accept(0);
    bench.xics().eoi(0, 0);
    assert_eq!(bench.status(LSI), 3);
    let word = bench.storage.table_word(Table::Journal(journal::XICS));
    word.store(u64::from(MSI) | u64::from(LSI) << 24, Relaxed);
    bench.xics().recover();
    assert_eq!((bench.status(MSI), bench.status(LSI)), (8, 1));
    bench.xics().set_cppr(0, 0xff);
    assert_eq!(bench.xisr(0), LSI);
}

#[test]
fn a_recorded_accept_flips_parity() {
    let bench = Bench::new(Compat::Papr1);
    bench.xics().trigger(MSI);
    let before = bench.xics().parity(0);
    let mut recorded = None;
    let xirr = bench
        .xics()
        .accept_recorded(0, |parity, xirr| recorded = Some((parity, xirr)));
    assert_eq!(xirr, 0xff00_0000 | MSI);
    assert_eq!(recorded, Some((!before, xirr)));
    assert_eq!(bench.xics().parity(0), !before);
}

#[test]
fn the_eoi_of_an_irqfd_level_drops_it_and_resamples() {
    let bench = Bench::new(Compat::Papr1);
    bench.xics().set_level(LSI, LevelInput::Irqfd, true);
    let xirr = bench.xics().accept(0);
    bench.xics().eoi(0, xirr);
    assert_eq!(*bench.host.resampled.borrow(), [LSI]);
    let source = bench.xics().source(LSI).unwrap();
    assert!(source.resample_due && !source.levels.irqfd);
    assert_eq!((source.status, bench.xisr(0)), (0, 0));
    bench.xics().resampled(LSI);
    assert!(!bench.xics().source(LSI).unwrap().resample_due);
}

#[test]
fn an_eoi_keeps_the_level_of_another_input() {
    let bench = Bench::new(Compat::Papr1);
    for input in [LevelInput::Irqfd, LevelInput::Vmm] {
        bench.xics().set_level(LSI, input, true);
    }
    let xirr = bench.xics().accept(0);
    bench.xics().eoi(0, xirr);
    assert_eq!(bench.xisr(0), LSI);
    bench.xics().set_level(LSI, LevelInput::Vmm, false);
    let xirr = bench.xics().accept(0);
    bench.xics().eoi(0, xirr);
    assert_eq!(bench.xisr(0), 0);
}

#[test]
fn what_was_latched_is_replayed_once() {
    let bench = Bench::new(Compat::Papr1);
    bench.xics().latch_trigger(MSI);
    bench.xics().latch_level(LSI, LevelInput::Irqfd, true);
    assert_eq!(bench.xisr(0), 0);
    bench.xics().replay(MSI);
    bench.xics().replay(MSI);
    assert_eq!((bench.xisr(0), bench.status(MSI)), (MSI, 0));
    bench.xics().replay(LSI);
    assert_eq!(bench.status(LSI), 1);
    let xirr = bench.xics().accept(0);
    bench.xics().eoi(0, xirr);
    assert_eq!(bench.xisr(0), LSI);
}

#[test]
fn a_machine_reset_keeps_claims_levels_and_latches_only() {
    let bench = Bench::new(Compat::Papr1);
    bench.xics().set_level(LSI, LevelInput::Vmm, true);
    bench.xics().trigger(MSI);
    bench.xics().set_mfrr(1, 3);
    bench.xics().latch_trigger(OTHER);
    bench.xics().reset();
    for server in 0..2 {
        assert_eq!(bench.xics().poll(server), Some((0, 0xff)));
        assert!(!bench.xics().line(server));
    }
    for irq in [MSI, OTHER, LSI] {
        let source = bench.xics().source(irq).unwrap();
        assert_eq!(source.routing, to(0, 0xff));
        assert_eq!((source.claimed, source.lsi), (true, irq == LSI));
        assert_eq!(source.latched, irq == OTHER);
        assert_eq!(source.status, u8::from(irq == LSI));
    }
    // Levels that move in from the other controller.
    let levels = Levels {
        vmm: false,
        irqfd: true,
    };
    bench.xics().reset_source(LSI, Some(levels));
    assert_eq!(bench.xics().source(LSI).unwrap().levels, levels);
    bench.xics().replay(OTHER);
    assert_eq!(bench.status(OTHER), 8);
}

#[test]
fn a_rebuilt_index_finds_what_waits() {
    for compat in [Compat::Papr1, Compat::Qemu72] {
        let bench = Bench::new(compat);
        bench.xics().set_cppr(0, 0);
        bench.xics().trigger(OTHER);
        bench.xics().clear_index();
        bench.xics().rebuild_index();
        bench.xics().set_cppr(0, 0xff);
        assert_eq!(bench.xisr(0), OTHER);
    }
}

#[test]
fn numbers_and_servers_that_do_not_exist_are_ignored() {
    let bench = Bench::new(Compat::Papr1);
    let xics = bench.xics();
    for irq in [0, 2, BASE - 1, BASE + 200, u32::MAX] {
        xics.trigger(irq);
        xics.set_level(irq, LevelInput::Vmm, true);
        xics.latch_trigger(irq);
        xics.replay(irq);
        xics.claim(irq, true);
        xics.eoi(0, 0xff00_0000 | irq);
        assert_eq!(
            xics.write(irq, to(0, 5)),
            Err(ConfigError::NoSuchSource(irq))
        );
        assert_eq!(xics.free(irq), Err(ConfigError::NoSuchSource(irq)));
        assert_eq!(xics.source(irq), None);
    }
    for server in [2, 4096, u32::MAX] {
        assert_eq!(
            xics.write(MSI, to(server, 5)),
            Err(ConfigError::NoSuchServer(server))
        );
        assert_eq!((xics.accept(server), xics.poll(server)), (0, None));
        assert!(!xics.set_mfrr(server, 0) && !xics.line(server));
        xics.set_cppr(server, 0xff);
        xics.connect(server);
        xics.disconnect(server);
    }
    assert_eq!(bench.xisr(0), 0);
}

proptest! {
    /// Whatever a hostile VMM left in the words, every operation ends, and none panics.
    #[test]
    fn hostile_words_stop_nothing(
        words in prop::collection::vec((any::<u64>(), any::<bool>()), 64),
        papr in any::<bool>(),
        daemon in any::<bool>(),
    ) {
        let mut bench = Bench::new(if papr { Compat::Papr1 } else { Compat::Qemu72 });
        bench.host.daemon = daemon;
        let mut next = words.iter().cycle().map(|(w, plausible)| {
            // Half of the words near what honest ones look like, so that blocks go further.
            if *plausible { w & 0x0003_000f_03ff_0007 | ics_word::CLAIMED | 0x9000_0001_0000 } else { *w }
        });
        let geometry = *bench.storage.geometry();
        let pages = (0..200).map(Page::IcsSource)
            .chain((0..2).flat_map(|k| [Page::Icp(k), Page::PendingRoot(k)]))
            .chain((0..geometry.leaves()).map(Page::PendingLeaf))
            .chain([Page::CommonRoot, Page::PendingMid(0)]);
        for at in pages {
            bench.storage.page(at).store(next.next().unwrap(), Relaxed);
        }
        let xics = bench.xics();
        for irq in [MSI, OTHER, LSI, BASE + 199] {
            xics.trigger(irq);
            xics.set_level(irq, LevelInput::Irqfd, true);
            let _ = xics.int_off(irq);
            let _ = xics.int_on(irq);
            xics.replay(irq);
        }
        for server in 0..2 {
            xics.set_cppr(server, 0xff);
            let xirr = xics.accept(server);
            xics.eoi(server, xirr);
            xics.set_mfrr(server, 1);
            xics.vcpu_reset(server);
        }
        xics.recover();
        xics.reset();
        xics.disconnect(0);
        prop_assert!(bench.host.contended.borrow().is_empty());
    }
}

/// A storage on which no swap ever succeeds: a VMM that scribbles all the time.
struct Scribbled<'a>(&'a PlainStorage);
#[derive(Debug, Default)]
struct Restless(AtomicU64);

thread_local! {
    static WORDS: &'static [Restless] = Box::leak(Box::new([
        Restless(AtomicU64::new(0)), // leaf, roots, everything else
        Restless(AtomicU64::new(
            ics_word::CLAIMED | 5 << ics_word::PRIORITY_SHIFT | 5 << ics_word::SAVED_SHIFT,
        )),
        Restless(AtomicU64::new(
            icp_word::RESET | icp_word::CONNECTED | 0xff << icp_word::CPPR_SHIFT,
        )),
    ]));
}

impl Storage for Scribbled<'_> {
    type Word = Restless;
    fn page(&self, at: Page) -> &Restless {
        let which = match at {
            Page::IcsSource(_) => 1,
            Page::Icp(_) => 2,
            _ => 0,
        };
        WORDS.with(|w| &w[which])
    }
    fn table(&self, at: Table, order: Ordering) -> u64 {
        self.0.table(at, order)
    }
    fn fence(&self) {}
    fn fence_everywhere(&self) -> bool {
        true
    }
    fn relax(&self, _: u32) {}
}

impl AtomicWord for Restless {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }
    fn compare_exchange(&self, _: u64, _: u64, _: Ordering, order: Ordering) -> Result<u64, u64> {
        Err(self.0.load(order))
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.0.swap(value, order)
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.0.fetch_or(bits, order)
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.0.fetch_and(bits, order)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(value, order)
    }
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_sub(value, order)
    }
}

#[test]
fn a_daemon_gives_up_on_words_that_never_hold_still() {
    let bench = Bench::new(Compat::Papr1);
    let storage = Scribbled(&bench.storage);
    let geometry = bench.storage.geometry();
    let xics = Xics::new(&storage, &bench.host, &bench.machine, geometry);
    xics.trigger(MSI);
    assert_eq!(*bench.host.contended.borrow(), [MSI]);
    let word = storage.page(Page::IcsSource(1)).load(Relaxed);
    assert!(
        word & ics_word::REJECTED != 0,
        "the event is recorded all the same"
    );
    assert_eq!(xics.write(MSI, to(0, 5)), Err(ConfigError::Contended(MSI)));
    assert_eq!(xics.accept(0), 0);
    assert!(!xics.set_mfrr(0, 3));
    xics.set_cppr(0, 3);
    xics.eoi(0, 0xff00_0000 | MSI);
    xics.disconnect(0);
    xics.recover();
}
