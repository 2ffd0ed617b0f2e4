//! The daemon dies at each of its stores, and its successor at each of its own; a third one finishes.
//! What is in memory and what the caller is told must be as if nobody had died.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word};
use papr_intc_protocol::layout::words::eas;
use papr_intc_protocol::layout::{Compat, IcMode, Machine, Storage};
use papr_intc_protocol::plane::xics::Routing;
use papr_intc_protocol::plane::xive::config::QueueConfig;
use papr_intc_protocol::plane::{Controller, LevelInput};

use super::*;
use dirty::Moment;

mod dirty;

const TICKET: Ticket = Ticket { channel: 1, seq: 9 };
const QUEUE: u64 = 0x1_0000;
const OS: u64 = 0x2_0000;
const MSI: u32 = 20;
const OTHER: u32 = 21;
const LSI: u32 = 30;
const IRQFD: IrqfdItem = IrqfdItem {
    lisn: MSI,
    kind: 0,
    input: 0,
    zero: 0,
};

/// Stores that the daemon may still make. A dead one goes on, but nothing of it is seen.
type Life = Rc<Cell<u32>>;

fn alive(life: &Life) -> bool {
    let left = life.get();
    life.set(left.saturating_sub(1));
    left > 0
}

/// A word that takes the stores of a living daemon only.
struct CutWord {
    value: Cell<u64>,
    life: Option<Life>,
}

impl From<u64> for CutWord {
    fn from(value: u64) -> Self {
        Self {
            value: Cell::new(value),
            life: None,
        }
    }
}

impl CutWord {
    fn change(&self, f: impl FnOnce(u64) -> u64) -> u64 {
        let old = self.value.get();
        if self.life.as_ref().is_none_or(alive) {
            self.value.set(f(old));
        }
        old
    }
}

impl AtomicWord for CutWord {
    fn load(&self, _: Ordering) -> u64 {
        self.value.get()
    }
    fn store(&self, value: u64, _: Ordering) {
        self.change(|_| value);
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        _: Ordering,
        _: Ordering,
    ) -> Result<u64, u64> {
        match self.value.get() {
            found if found == current => Ok(self.change(|_| new)),
            found => Err(found),
        }
    }
    fn swap(&self, value: u64, _: Ordering) -> u64 {
        self.change(|_| value)
    }
    fn fetch_or(&self, bits: u64, _: Ordering) -> u64 {
        self.change(|w| w | bits)
    }
    fn fetch_and(&self, bits: u64, _: Ordering) -> u64 {
        self.change(|w| w & bits)
    }
    fn fetch_add(&self, value: u64, _: Ordering) -> u64 {
        self.change(|w| w.wrapping_add(value))
    }
    fn fetch_sub(&self, value: u64, _: Ordering) -> u64 {
        self.change(|w| w.wrapping_sub(value))
    }
}

/// What outlives a daemon: the memfd, guest RAM, one eventfd.
struct World {
    geometry: Geometry,
    tables: Vec<CutWord>,
    pages: Vec<CutWord>,
    ram: RefCell<BTreeMap<u64, u32>>,
    log: dirty::Log,
    count: Cell<u64>,
    life: Life,
}

#[derive(Clone)]
struct Shared(Rc<World>);

impl Storage for Shared {
    type Word = CutWord;
    fn page(&self, at: Page) -> &CutWord {
        &self.0.pages
            [((self.0.geometry.page_offset(at) - first_page(&self.0.geometry)) / 8) as usize]
    }
    fn table(&self, at: Table, order: Ordering) -> u64 {
        self.table_word(at).load(order)
    }
    fn fence(&self) {}
    fn fence_everywhere(&self) -> bool {
        true
    }
    fn relax(&self, _: u32) {}
}

impl TableStorage for Shared {
    fn table_word(&self, at: Table) -> &CutWord {
        &self.0.tables[(self.0.geometry.table_offset(at) / 8) as usize]
    }
}

impl QueueMemory for Shared {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        self.0.take_at(Moment::BeforeEntry);
        if alive(&self.0.life) {
            self.0.ram.borrow_mut().insert(gpa, entry);
        }
        self.0.take_at(Moment::BeforeMark);
        self.mark_written(gpa);
        true
    }
    fn mark_written(&self, gpa: u64) {
        if alive(&self.0.life) {
            self.0.log.mark(gpa);
        }
    }
    fn is_backed(&self, _: u64, _: u64) -> bool {
        true
    }
}

type TestPlane = Plane<Staged<Shared>, DaemonHost<Shared, Shared>>;
type Before = fn(&Ctl<'_>);
type Operation = fn(&Ctl<'_>) -> u64;
type Call = (&'static str, Before, Operation);
type Ctl<'a> = Controller<'a, Staged<Shared>, DaemonHost<Shared, Shared>>;

/// One operation on one state.
struct Case {
    name: &'static str,
    mode: Mode,
    compat: Compat,
    before: Before,
    /// None: the irqfd of [`MSI`] is readable.
    operation: Option<Operation>,
}

/// What can be seen after it: pages, tables behind the journal, RAM, the answer.
type Seen = (Vec<u64>, Vec<u64>, BTreeMap<u64, u32>, Option<u64>);

impl Case {
    fn machine(&self) -> Machine {
        Machine {
            sources: 64,
            xics_base: 16,
            ..Machine::pseries(IcMode::Dual, self.compat, 2)
        }
    }

    fn daemon(&self, world: &Shared, generation: u64) -> TestPlane {
        let host = DaemonHost::new(world.clone(), world.clone(), generation);
        Plane::new(Staged::new(world.clone()), host, self.machine()).unwrap()
    }

    /// A world in the state of `image`.
    fn copy(&self, image: &Shared) -> Shared {
        let life = Life::new(Cell::new(u32::MAX));
        let zone = |words: &[CutWord]| {
            let copy = |w: &CutWord| CutWord {
                value: w.value.clone(),
                life: Some(life.clone()),
            };
            words.iter().map(copy).collect()
        };
        let (tables, pages) = (zone(&image.0.tables), zone(&image.0.pages));
        Shared(Rc::new(World {
            geometry: image.0.geometry,
            tables,
            pages,
            ram: image.0.ram.clone(),
            log: dirty::Log::sent(&image.0.ram.borrow()),
            count: image.0.count.clone(),
            life,
        }))
    }

    /// Two vCPUs, MSIs 20 and 21 and LSI 30 routed to vCPU 0 at 5, 3 and 6, and `before`.
    fn world(&self) -> Shared {
        let geometry = self.machine().geometry().unwrap();
        let life = Life::new(Cell::new(u32::MAX));
        let zone = |bytes: u64| {
            let word = |_| CutWord {
                value: Cell::new(0),
                life: Some(life.clone()),
            };
            (0..bytes / 8).map(word).collect()
        };
        let world = Shared(Rc::new(World {
            geometry,
            tables: zone(geometry.tables_size()),
            pages: zone(geometry.pages_size() - first_page(&geometry)),
            ram: RefCell::default(),
            log: dirty::Log::default(),
            count: Cell::new(u64::from(self.operation.is_none())),
            life,
        }));
        let state = State {
            mode: self.mode,
            gate: Gate::Open,
            executor: Executor::Daemon,
            cas_xive: self.mode == Mode::Xive,
        };
        let header = world.table_word(Table::Header(word::STATE));
        header.store(state.to_word(), Ordering::Release);
        let plane = self.daemon(&world, 1);
        let c = plane.controller();
        c.xics.create();
        (0..64).for_each(|lisn| c.xive.reset_source(lisn));
        (0..geometry.ends()).for_each(|end| c.xive.reset_end(end));
        for server in 0..2 {
            c.xics.connect(server);
            c.xics.set_cppr(server, 0xff);
            c.xive.connect(server);
            c.xive.set_cppr(server, 0xff);
        }
        for (irq, priority) in [(MSI, 5), (OTHER, 3), (LSI, 6)] {
            c.xics.claim(irq, irq == LSI);
            let saved = priority;
            let to = Routing {
                server: 0,
                priority,
                saved,
            };
            c.xics.write(irq, to).unwrap();
            c.xive.claim(irq, irq == LSI);
            let address = QUEUE + u64::from(priority) * 0x1000;
            let queue = QueueConfig {
                address,
                size: 12,
                always_notify: true,
            };
            c.xive.set_queue_config(0, priority, Some(queue)).unwrap();
            let assigned = eas::new(u32::from(priority), irq, false);
            c.xive.set_source_config(irq, assigned).unwrap();
            c.xive.esb_load(esb(irq) + 0xc00, 8);
        }
        (self.before)(&c);
        world
    }

    /// A daemon comes, recovers, serves the request or the irqfd; its answer.
    fn live(&self, world: &Shared, life: u32, generation: u64) -> Option<u64> {
        world.0.life.set(life);
        let plane = self.daemon(world, generation);
        let exact = Exact::new(&plane);
        plane.host().mark_last_page();
        exact.recover();
        if exact.in_doubt(&IRQFD) {
            if alive(&world.0.life) {
                world.0.count.update(|c| c + 1);
            }
            exact.doubt_over();
        }
        let c = plane.controller();
        let Some(operation) = self.operation else {
            if world.0.count.get() > 0 {
                exact.intend(&IRQFD);
                if alive(&world.0.life) {
                    world.0.count.set(0);
                }
                exact.begin();
                c.trigger(MSI);
                exact.commit(None);
                exact.doubt_over();
            }
            return None;
        };
        let answer = Journal(world).replay(TICKET).unwrap_or_else(|| {
            exact.begin();
            let answer = operation(&c).to_ne_bytes();
            exact.commit(Some((TICKET, &answer)));
            answer.to_vec()
        });
        Some(u64::from_ne_bytes(answer.try_into().unwrap()))
    }

    fn seen(&self, world: &Shared, answer: Option<u64>) -> Seen {
        let values = |w: &[CutWord]| w.iter().map(|w| w.value.get()).collect();
        let behind = world.0.geometry.table_offset(Table::Eas(0)) / 8;
        (
            values(&world.0.pages),
            values(&world.0.tables[behind as usize..]),
            world.0.ram.borrow().clone(),
            answer,
        )
    }

    /// What happens if nobody dies, and in how many stores.
    fn uncut(&self) -> (Seen, u32) {
        let world = self.world();
        let answer = self.live(&world, 100_000, 2);
        let stores = 100_000 - world.0.life.get();
        (self.seen(&world, answer), stores)
    }
}

/// Where the words behind the VMM's run-time words and epochs start.
fn first_page(geometry: &Geometry) -> u64 {
    geometry.page_offset(Page::Tima(0))
}

fn esb(lisn: u32) -> u64 {
    u64::from(lisn) * 0x2_0000 + 0x1_0000
}

fn nothing(_: &Ctl<'_>) {}

fn raise(c: &Ctl<'_>) {
    c.set_level(LSI, LevelInput::Vmm, true);
}

/// Two events of [`MSI`]: presented, and one more queued.
fn twice(c: &Ctl<'_>) {
    c.trigger(MSI);
    c.trigger(MSI);
}

/// Both MSIs: the second displaced the first.
fn both(c: &Ctl<'_>) {
    c.trigger(MSI);
    c.trigger(OTHER);
}

fn serving(c: &Ctl<'_>) {
    both(c);
    c.xics.accept(0);
}

const XICS: &[Call] = &[
    ("H_XIRR", both, |c| c.xics.accept(0).into()),
    ("H_XIRR of nothing", nothing, |c| c.xics.accept(0).into()),
    ("trigger", nothing, |c| (c.trigger(MSI), 0).1),
    ("trigger that displaces", twice, |c| (c.trigger(OTHER), 0).1),
    ("trigger that is refused", serving, |c| {
        (c.trigger(MSI), 0).1
    }),
    ("H_EOI with a pass", serving, |c| {
        (c.xics.eoi(0, 0xff00_0000 | OTHER), 0).1
    }),
    ("H_CPPR that rejects", both, |c| {
        (c.xics.set_cppr(0, 1), 0).1
    }),
    ("H_IPI that displaces", both, |c| {
        c.xics.set_mfrr(0, 1).into()
    }),
    ("level", nothing, |c| (raise(c), 0).1),
    ("H_EOI of a level", raise, |c| {
        let xirr = c.xics.accept(0);
        (c.xics.eoi(0, xirr), u64::from(xirr)).1
    }),
    ("ibm,set-xive", serving, |c| {
        let (server, priority, saved) = (1, 2, 2);
        let to = Routing {
            server,
            priority,
            saved,
        };
        c.xics.write(MSI, to).is_ok().into()
    }),
    ("vCPU reset", both, |c| (c.xics.vcpu_reset(0), 0).1),
];

const XIVE: &[Call] = &[
    ("acknowledge", both, |c| c.xive.tima_load(0, OS + 0x810, 2)),
    ("CPPR", both, |c| (c.xive.set_cppr(0, 4), 0).1),
    ("trigger", nothing, |c| (c.trigger(MSI), 0).1),
    ("trigger of a pending source", twice, |c| {
        (c.trigger(MSI), 0).1
    }),
    ("SET_PQ load", twice, |c| {
        c.xive.esb_load(esb(MSI) + 0xc00, 8)
    }),
    ("EOI load that forwards", twice, |c| {
        c.xive.esb_load(esb(MSI), 8)
    }),
    ("EOI of a level", raise, |c| c.xive.esb_load(esb(LSI), 8)),
    ("level", nothing, |c| (raise(c), 0).1),
    (
        "replay",
        |c| c.xive.latch_trigger(MSI),
        |c| (c.replay(MSI), 0).1,
    ),
    ("H_INT_SET_QUEUE_CONFIG", both, |c| {
        c.xive.set_queue_config(0, 5, None).is_ok().into()
    }),
    ("H_INT_SET_SOURCE_CONFIG", both, |c| {
        let to = eas::new(3, 77, false);
        c.xive.set_source_config(MSI, to).is_ok().into()
    }),
];

fn cases() -> impl Iterator<Item = Case> {
    let lists = [(Mode::Xics, XICS), (Mode::Xive, XIVE)];
    let of = |compat, mode, list: &'static [Call]| {
        let irqfd: [(_, Before); 3] = [
            ("irqfd", nothing),
            ("irqfd, pending", twice),
            ("irqfd, displaced", both),
        ];
        let irqfds = irqfd.map(|(name, before)| (name, before, None));
        let calls = list.iter().map(|(n, b, o)| (*n, *b, Some(*o)));
        calls
            .chain(irqfds)
            .map(move |(name, before, operation)| Case {
                name,
                mode,
                compat,
                before,
                operation,
            })
    };
    [Compat::Papr1, Compat::Qemu72]
        .into_iter()
        .flat_map(move |compat| lists.into_iter().flat_map(move |(m, l)| of(compat, m, l)))
}

#[test]
fn an_operation_cut_at_any_store_happens_once_with_one_answer() {
    let mut runs = 0;
    for case in cases() {
        let (expected, stores) = case.uncut();
        assert!(stores > 0, "{}", case.name);
        let image = case.world();
        for first in 0..stores {
            // A third of the pairs; which, differs from cut to cut.
            for second in (first % 3..stores + 4).step_by(3) {
                let world = case.copy(&image);
                case.live(&world, first, 2);
                case.live(&world, second, 3);
                let answer = case.live(&world, 100_000, 4);
                let seen = case.seen(&world, answer);
                let Case { name, mode, .. } = case;
                assert!(seen == expected, "{mode:?} {name} cut at {first}, {second}");
                runs += 1;
            }
        }
    }
    println!("{runs} runs");
    assert!(runs > 3_000, "{runs} runs");
}

#[test]
fn without_the_commit_the_same_cuts_are_noticed() {
    let spoiled = cases().filter(|case| {
        let Some(operation) = case.operation else {
            return false;
        };
        let (expected, _) = case.uncut();
        (0..10).any(|cut| {
            let world = case.world();
            world.0.life.set(cut);
            operation(&case.daemon(&world, 2).controller());
            let answer = case.live(&world, 100_000, 3);
            case.seen(&world, answer) != expected
        })
    });
    let spoiled: Vec<_> = spoiled.map(|c| c.name).collect();
    for name in ["H_XIRR", "acknowledge", "SET_PQ load", "trigger"] {
        assert!(spoiled.contains(&name), "{name}");
    }
}

#[test]
fn every_word_that_an_operation_changes_has_its_name_in_records() {
    let geometry = Geometry::new(64, 16, 2).unwrap();
    for at in [
        At::Page(Page::Tima(1)),
        At::Page(Page::Icp(1)),
        At::Page(Page::PendingRoot(1)),
        At::Page(Page::CommonRoot),
        At::Page(Page::PendingMid(0)),
        At::Page(Page::PendingLeaf(0)),
        At::Page(Page::EndCursor(15)),
        At::Page(Page::Source(63)),
        At::Page(Page::IcsSource(47)),
        At::Table(Table::Eas(63)),
        At::Table(Table::EndConfig(15, 1, 0)),
    ] {
        assert_eq!(decode(encode(at).unwrap(), &geometry), Some(at));
    }
    assert_eq!(encode(At::Table(Table::Header(6))), None);
    let far = encode(At::Page(Page::Source(u32::MAX))).unwrap();
    assert_eq!(decode(far, &geometry), None);
}
