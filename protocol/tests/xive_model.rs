//! Random operations on the shipped XIVE plane against a slow, obvious model (xive.md §2-§5).
//!
//! The model has objects and no words: no locks, cursors, slots or counts. After each operation the
//! result, every queue entry, and all that a guest can read must be equal. One thread; interleavings
//! are in `explore_xive*.rs`.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use papr_intc_protocol::layout::plain::PlainStorage;
use papr_intc_protocol::layout::words::eas;
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine};
use papr_intc_protocol::plane::xive::Xive;
use papr_intc_protocol::plane::xive::config::{EndView, QueueConfig};
use papr_intc_protocol::plane::{Host, LevelInput};
use proptest::prelude::*;

const SOURCES: u32 = 20;
const SERVERS: u32 = 3;
/// LSIs are numbered from here.
const FIRST_LSI: u32 = 14;
/// Queues may be anywhere below; entries above are refused.
const RAM: u64 = 0x8_0000;

/// An operation. Numbers are reduced to what exists, or a little beyond where that is checked.
#[derive(Clone, Debug)]
enum Op {
    Trigger(u32),
    Level(u32, bool, bool),
    Pulse(u32),
    Latch(u32, bool),
    Replay(u32),
    EsbLoad(u64, u8),
    EsbStore(u64, u8),
    TimaLoad(u32, u64, u8),
    TimaStore(u32, u64, u8, u64),
    SourceConfig(u32, u32, u32, bool),
    QueueConfig(u32, u8, Option<(u64, u32, bool)>),
    Claim(u32),
    Free(u32),
    Connect(u32),
    Disconnect(u32),
    VcpuReset(u32),
}

#[derive(Clone, Default)]
struct Source {
    claimed: bool,
    /// Given by the claim, and never taken away again by `free`.
    lsi: bool,
    masked: bool,
    server: u32,
    priority: u8,
    eisn: u32,
    p: bool,
    q: bool,
    vmm: bool,
    irqfd: bool,
    latched: bool,
}

#[derive(Clone, Default)]
struct Queue {
    address: u64,
    entries: u64,
    size: u32,
    always_notify: bool,
    index: u64,
    generation: bool,
    /// Events of a queue without `always_notify` so far; the first one tells.
    events: u32,
}

#[derive(Clone, Default)]
struct Vcpu {
    exists: bool,
    told: bool,
    cppr: u8,
    pending: [bool; 8],
}

impl Vcpu {
    fn most_favoured(&self) -> u8 {
        self.pending
            .iter()
            .position(|p| *p)
            .map_or(0xff, |p| p as u8)
    }
    fn look(&mut self) {
        self.told |= self.most_favoured() < self.cppr;
    }
    fn ring(&self) -> [u8; 8] {
        let nsr = if self.told { 0x80 } else { 0 };
        let ipb = (0..8).fold(0, |ipb, p| ipb | u8::from(self.pending[p]) << (7 - p));
        [nsr, self.cppr, ipb, 0xff, 0xff, 0, 0, self.most_favoured()]
    }
    fn acknowledge(&mut self) -> u64 {
        let nsr = if self.told { 0x80 } else { 0 };
        if self.told {
            self.cppr = self.most_favoured();
            self.pending[usize::from(self.cppr)] = false;
            self.told = false;
        }
        nsr << 8 | u64::from(self.cppr)
    }
    fn pend(&mut self, priority: u64) {
        if let Some(p) = self.pending.get_mut(priority as usize) {
            *p = true;
        }
        self.look();
    }
}

/// The machine, as a book would tell it.
struct Model {
    qemu: bool,
    store_eoi: bool,
    sources: Vec<Source>,
    queues: Vec<Option<Queue>>,
    vcpus: Vec<Vcpu>,
    written: Vec<(u64, u32)>,
}

impl Model {
    fn new(qemu: bool, store_eoi: bool) -> Self {
        let off = Source {
            q: true,
            ..Source::default()
        };
        Self {
            qemu,
            store_eoi,
            sources: vec![off; SOURCES as usize],
            queues: vec![None; SERVERS as usize * 8],
            vcpus: vec![Vcpu::default(); SERVERS as usize],
            written: Vec::new(),
        }
    }

    fn source(&mut self, lisn: u32) -> &mut Source {
        &mut self.sources[lisn as usize]
    }

    fn trigger(&mut self, lisn: u32) {
        let s = self.source(lisn);
        match (s.p, s.q) {
            (false, false) => {
                s.p = true;
                self.route(lisn);
            }
            (true, _) => s.q = true,
            (false, true) => (),
        }
    }

    /// The level is high: a source that is ready becomes pending.
    fn assert(&mut self, lisn: u32) -> bool {
        let s = self.source(lisn);
        let due = !s.p && !s.q;
        if due {
            s.p = true;
            self.route(lisn);
        }
        due
    }

    fn level(&mut self, lisn: u32, irqfd: bool, level: bool) {
        if !self.source(lisn).lsi {
            if level {
                self.trigger(lisn);
            }
            return;
        }
        let s = self.source(lisn);
        *(if irqfd { &mut s.irqfd } else { &mut s.vmm }) = level;
        if level {
            self.assert(lisn);
        }
    }

    fn eoi(&mut self, lisn: u32) -> bool {
        let s = self.source(lisn);
        let queued = s.p && s.q;
        let high = s.vmm || s.irqfd;
        if s.p {
            (s.p, s.q) = (queued, false);
        }
        if !high {
            if queued {
                self.route(lisn);
            }
            return queued;
        }
        if queued {
            // Pending again already: QEMU looks at the level only, and finds nothing to do.
            if !self.qemu {
                self.route(lisn);
            }
            return !self.qemu;
        }
        self.assert(lisn)
    }

    fn route(&mut self, lisn: u32) {
        let s = self.source(lisn).clone();
        if !s.claimed || s.masked {
            return;
        }
        let end = s.server as usize * 8 + usize::from(s.priority);
        let Some(queue) = self.queues.get_mut(end).and_then(|q| q.as_mut()) else {
            return;
        };
        let at = queue.address + 4 * queue.index;
        if at < RAM {
            self.written
                .push((at, s.eisn | u32::from(queue.generation) << 31));
            queue.index += 1;
            if queue.index == queue.entries {
                queue.index = 0;
                queue.generation = !queue.generation;
            }
        }
        queue.events += 1;
        let tells = queue.always_notify || queue.events == 1;
        let vcpu = &mut self.vcpus[s.server as usize];
        if tells && vcpu.exists {
            vcpu.pend(s.priority.into());
        }
    }

    fn esb(&mut self, offset: u64, size: u8, store: bool) -> u64 {
        let lisn = offset / 0x20000;
        let size_ok = if self.qemu { size == 8 } else { size != 3 };
        if lisn >= u64::from(SOURCES) || !size_ok {
            return 0;
        }
        let lisn = lisn as u32;
        if offset & 0x10000 == 0 {
            if store {
                self.trigger(lisn);
                return 0;
            }
            return u64::MAX >> (64 - 8 * u32::from(size));
        }
        match (offset & 0xfff, store) {
            (0..0x400, true) => self.trigger(lisn),
            (0..0x800, false) => return u64::from(self.eoi(lisn)),
            (0x400..0x800, true) => {
                if self.store_eoi {
                    self.eoi(lisn);
                }
            }
            (0x800..0xc00, true) => {
                if self.qemu {
                    self.route(lisn);
                }
            }
            (0x800..0xc00, false) => {
                let s = self.source(lisn);
                return u64::from(s.p) << 1 | u64::from(s.q);
            }
            (set, _) => {
                let qemu = self.qemu;
                let s = self.source(lisn);
                let old = u64::from(s.p) << 1 | u64::from(s.q);
                (s.p, s.q) = (set & 0x200 != 0, set & 0x100 != 0);
                if !qemu && (s.vmm || s.irqfd) {
                    self.assert(lisn);
                }
                return if store { 0 } else { old };
            }
        }
        0
    }

    fn tima_load(&mut self, server: u32, offset: u64, size: u8) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(size));
        let Some(vcpu) = self.vcpus.get_mut(server as usize) else {
            return ones;
        };
        if !vcpu.exists || offset / 0x10000 != 2 {
            return ones;
        }
        let offset = offset % 0x1000;
        if (offset, size) == (0x810, 2) {
            return vcpu.acknowledge();
        }
        let ring = u64::from_be_bytes(vcpu.ring());
        match (offset < 0x800, offset % 0x40, size) {
            (true, 0x10, 8) => ring,
            (true, 0x10, 4) => ring >> 32,
            (true, 0x14, 4) => ring & 0xffff_ffff,
            _ => ones,
        }
    }

    fn tima_store(&mut self, server: u32, offset: u64, size: u8, value: u64) {
        let Some(vcpu) = self.vcpus.get_mut(server as usize) else {
            return;
        };
        if !vcpu.exists || offset / 0x10000 != 2 {
            return;
        }
        let offset = offset % 0x1000;
        match (offset, size) {
            (0x11, 1) => {
                let value = value as u8;
                vcpu.cppr = if value > 7 { 0xff } else { value };
                vcpu.look();
            }
            (0x812, 1) => vcpu.pend(value & 0xff),
            (0..0x800, 4 | 8) if offset % 0x40 == 0x10 => {
                vcpu.cppr = (value >> (8 * (u32::from(size) - 2))) as u8;
            }
            _ => (),
        }
    }

    fn run(&mut self, op: &Op) -> u64 {
        match *op {
            Op::Trigger(lisn) => self.trigger(lisn),
            Op::Level(lisn, irqfd, level) => self.level(lisn, irqfd, level),
            Op::Pulse(lisn) => {
                self.level(lisn, false, true);
                self.level(lisn, false, false);
            }
            Op::Latch(lisn, level) => {
                let s = self.source(lisn);
                if s.lsi {
                    s.vmm = level;
                } else {
                    s.latched |= level;
                }
            }
            Op::Replay(lisn) => {
                if std::mem::take(&mut self.source(lisn).latched) {
                    self.trigger(lisn);
                }
                let s = self.source(lisn);
                if s.vmm || s.irqfd {
                    self.assert(lisn);
                }
            }
            Op::EsbLoad(offset, size) => return self.esb(offset, size, false),
            Op::EsbStore(offset, size) => return self.esb(offset, size, true),
            Op::TimaLoad(server, offset, size) => return self.tima_load(server, offset, size),
            Op::TimaStore(server, offset, size, value) => {
                self.tima_store(server, offset, size, value);
            }
            Op::SourceConfig(lisn, end, eisn, masked) => {
                let s = self.source(lisn);
                if s.claimed {
                    (s.server, s.priority) = (end / 8, (end % 8) as u8);
                    (s.eisn, s.masked) = (eisn, masked);
                }
            }
            Op::QueueConfig(server, priority, queue) => {
                let at = server as usize * 8 + usize::from(priority);
                self.queues[at] = queue.map(|(address, size, always_notify)| Queue {
                    address,
                    entries: 1 << (size - 2),
                    size,
                    always_notify,
                    generation: true,
                    ..Queue::default()
                });
            }
            Op::Claim(lisn) => {
                let s = self.source(lisn);
                (s.claimed, s.masked, s.lsi) = (true, true, lisn >= FIRST_LSI);
            }
            Op::Free(lisn) => {
                // Its device is gone, and with it the levels.
                let s = self.source(lisn);
                (s.claimed, s.vmm, s.irqfd, s.latched) = (false, false, false, false);
            }
            Op::Connect(server) => {
                self.vcpus[server as usize] = Vcpu {
                    exists: true,
                    ..Vcpu::default()
                };
            }
            Op::Disconnect(server) => self.vcpus[server as usize] = Vcpu::default(),
            Op::VcpuReset(server) => {
                let vcpu = &mut self.vcpus[server as usize];
                *vcpu = Vcpu {
                    exists: vcpu.exists,
                    ..Vcpu::default()
                };
            }
        }
        0
    }
}

/// The shipped plane's host: RAM below a bound, and the kicked servers.
#[derive(Default)]
struct TestHost {
    written: RefCell<Vec<(u64, u32)>>,
    kicked: RefCell<Vec<u32>>,
}

impl Host for TestHost {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        if gpa < RAM {
            self.written.borrow_mut().push((gpa, entry));
        }
        gpa < RAM
    }
    fn kick(&self, server: u32) {
        self.kicked.borrow_mut().push(server);
    }
}

type Plane<'a> = Xive<'a, PlainStorage, TestHost>;

fn run(x: &Plane<'_>, op: &Op) -> u64 {
    let input = |irqfd| {
        if irqfd {
            LevelInput::Irqfd
        } else {
            LevelInput::Vmm
        }
    };
    match *op {
        Op::Trigger(lisn) => x.trigger(lisn),
        Op::Level(lisn, irqfd, level) => x.set_level(lisn, input(irqfd), level),
        Op::Pulse(lisn) => x.pulse(lisn, LevelInput::Vmm),
        Op::Latch(lisn, level) => x.latch_level(lisn, LevelInput::Vmm, level),
        Op::Replay(lisn) => x.replay(lisn),
        Op::EsbLoad(offset, size) => return x.esb_load(offset, size),
        Op::EsbStore(offset, size) => x.esb_store(offset, size, 0),
        Op::TimaLoad(server, offset, size) => return x.tima_load(server, offset, size),
        Op::TimaStore(server, offset, size, value) => x.tima_store(server, offset, size, value),
        Op::SourceConfig(lisn, end, eisn, masked) => {
            if x.source_config(lisn.into()).is_some() {
                x.set_source_config(lisn, eas::new(end, eisn, masked))
                    .unwrap();
            }
        }
        Op::QueueConfig(server, priority, queue) => {
            let queue = queue.map(|(address, size, always_notify)| QueueConfig {
                address,
                size,
                always_notify,
            });
            x.set_queue_config(server, priority, queue).unwrap();
        }
        Op::Claim(lisn) => x.claim(lisn, lisn >= FIRST_LSI),
        Op::Free(lisn) => x.free(lisn).unwrap(),
        Op::Connect(server) => x.connect(server),
        Op::Disconnect(server) => x.disconnect(server),
        Op::VcpuReset(server) => x.vcpu_reset(server),
    }
    0
}

/// Everything that can be read without changing it.
fn compare(x: &Plane<'_>, m: &Model) {
    for (lisn, s) in (0..).zip(&m.sources) {
        let pq = x.esb_load(u64::from(lisn) << 17 | 0x10800, 8);
        assert_eq!(pq, u64::from(s.p) << 1 | u64::from(s.q), "PQ of {lisn}");
        let config = s
            .claimed
            .then(|| eas::new(s.server * 8 + u32::from(s.priority), s.eisn, s.masked));
        assert_eq!(x.source_config(lisn.into()), config, "EAS of {lisn}");
        assert!(x.sync(lisn), "a forward of {lisn} is left");
    }
    for (server, v) in (0..).zip(&m.vcpus) {
        assert_eq!(x.line(server), v.told, "line of {server}");
        if v.exists {
            let ring = x.tima_load(server, 0x20010, 8).to_be_bytes();
            assert_eq!(ring, v.ring(), "ring of {server}");
        }
    }
    for (end, q) in (0..).zip(&m.queues) {
        let view = q.as_ref().map_or(
            EndView {
                esn: 1,
                ..EndView::default()
            },
            |q| EndView {
                valid: true,
                always_notify: q.always_notify,
                address: q.address,
                size: q.size,
                index: q.index as u32,
                generation: q.generation,
                esn: match q.events {
                    _ if q.always_notify => 0,
                    0 => 0,
                    1 => 2,
                    _ => 3,
                },
            },
        );
        assert_eq!(x.end(end), view, "END {end}");
    }
}

fn esb_offset() -> impl Strategy<Value = u64> {
    let page = prop_oneof![1 => Just(0u64), 4 => Just(0x10000)];
    let inside = prop_oneof![
        4 => prop::sample::select(vec![0u64, 0x400, 0x800, 0xc00, 0xd00, 0xe00, 0xe40, 0xf00]),
        1 => (0..0x10000u64 / 8).prop_map(|o| o * 8),
    ];
    (0..u64::from(SOURCES) + 1, page, inside).prop_map(|(lisn, page, o)| lisn << 17 | page | o)
}

fn tima_access() -> impl Strategy<Value = (u32, u64, u8)> {
    let usual = prop::sample::select(vec![
        (0x20011u64, 1u8),
        (0x20810, 2),
        (0x20812, 1),
        (0x20010, 8),
        (0x20010, 4),
        (0x20014, 4),
    ]);
    let any = (0..0x40000u64, prop::sample::select(vec![1u8, 2, 4, 8]))
        .prop_map(|(o, size)| (o & !(u64::from(size) - 1), size));
    (0..SERVERS + 1, prop_oneof![4 => usual, 1 => any]).prop_map(|(s, (o, size))| (s, o, size))
}

fn op() -> impl Strategy<Value = Op> {
    let lisn = || 0..SOURCES;
    let server = || 0..SERVERS;
    let size = || prop_oneof![6 => Just(8u8), 1 => prop::sample::select(vec![1u8, 2, 3, 4])];
    // Ends up to two beyond the last one; priorities that a guest may use.
    let end = prop_oneof![9 => (0..SERVERS, 5..7u32).prop_map(|(s, p)| s * 8 + p), 1 => 0..26u32];
    let queue = (
        0..40u64,
        any::<bool>(),
        prop::sample::select(vec![12u32, 12, 16]),
    )
        .prop_map(|(at, notify, size)| (at << 16, size, notify));
    let cppr = prop_oneof![3 => Just(0xffu64), 1 => any::<u64>(), 2 => 0..9u64];
    prop_oneof![
        8 => lisn().prop_map(Op::Trigger),
        4 => (FIRST_LSI..SOURCES, any::<bool>(), any::<bool>()).prop_map(|(l, i, v)| Op::Level(l, i, v)),
        1 => (lisn(), any::<bool>()).prop_map(|(l, v)| Op::Level(l, false, v)),
        2 => lisn().prop_map(Op::Pulse),
        1 => (lisn(), any::<bool>()).prop_map(|(l, v)| Op::Latch(l, v)),
        1 => lisn().prop_map(Op::Replay),
        16 => (esb_offset(), size()).prop_map(|(o, s)| Op::EsbLoad(o, s)),
        6 => (esb_offset(), size()).prop_map(|(o, s)| Op::EsbStore(o, s)),
        8 => tima_access().prop_map(|(s, o, size)| Op::TimaLoad(s, o, size)),
        4 => (tima_access(), cppr).prop_map(|((s, o, size), v)| Op::TimaStore(s, o, size, v)),
        2 => (server(), prop_oneof![Just(0xffu64), 0..8u64]).prop_map(|(s, v)| Op::TimaStore(s, 0x20011, 1, v)),
        4 => (lisn(), end, 0..0x1000u32, prop::bool::weighted(0.1)).prop_map(|(l, e, d, m)| Op::SourceConfig(l, e, d, m)),
        2 => (server(), 5..7u8, prop::option::weighted(0.9, queue)).prop_map(|(s, p, q)| Op::QueueConfig(s, p, q)),
        1 => lisn().prop_map(Op::Claim),
        1 => lisn().prop_map(Op::Free),
        1 => server().prop_map(Op::Connect),
        1 => server().prop_map(Op::Disconnect),
        1 => server().prop_map(Op::VcpuReset),
    ]
}

/// A machine that a guest has set up: most sources claimed, ready and routed, queues and CPPRs open.
fn set_up() -> Vec<Op> {
    let mut ops = Vec::new();
    for server in 0..SERVERS - 1 {
        ops.push(Op::Connect(server));
        ops.push(Op::TimaStore(server, 0x20011, 1, 0xff));
        for priority in [5, 6] {
            let address = u64::from(server) << 17 | u64::from(priority) << 12;
            ops.push(Op::QueueConfig(server, priority, Some((address, 12, true))));
        }
    }
    for lisn in 0..SOURCES - 2 {
        ops.push(Op::Claim(lisn));
        let end = lisn % (SERVERS - 1) * 8 + 5 + lisn % 2;
        ops.push(Op::SourceConfig(lisn, end, 0x100 + lisn, false));
        ops.push(Op::EsbLoad(u64::from(lisn) << 17 | 0x10c00, 8));
    }
    ops
}

fn check(compat: Compat, store_eoi: bool, ops: &[Op]) {
    let machine = Machine {
        sources: SOURCES,
        xics_base: 16,
        store_eoi,
        ..Machine::pseries(IcMode::Xive, compat, SERVERS)
    };
    let geometry: Geometry = machine.geometry().unwrap();
    let (storage, host) = (PlainStorage::new(geometry), TestHost::default());
    let x = Xive::new(&storage, &host, &machine, &geometry);
    (0..SOURCES).for_each(|lisn| x.reset_source(lisn));
    (0..geometry.ends()).for_each(|end| x.reset_end(end));
    let mut model = Model::new(compat == Compat::Qemu72, store_eoi);
    for op in set_up().iter().chain(ops) {
        let lines: Vec<bool> = (0..SERVERS).map(|s| x.line(s)).collect();
        let got = run(&x, op);
        assert_eq!(got, model.run(op), "{op:x?}");
        let (written, expected) = (host.written.take(), std::mem::take(&mut model.written));
        assert_eq!(written, expected, "{op:x?}");
        compare(&x, &model);
        // A line never moves without a kick.
        let kicked = host.kicked.take();
        for server in 0..SERVERS {
            let moved = x.line(server) != lines[server as usize];
            assert!(!moved || kicked.contains(&server), "{op:x?}: no kick");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plane_does_what_the_model_does_at_papr(store_eoi: bool, ops in prop::collection::vec(op(), 0..200)) {
        check(Compat::Papr1, store_eoi, &ops);
    }

    #[test]
    fn the_plane_does_what_the_model_does_at_qemu(store_eoi: bool, ops in prop::collection::vec(op(), 0..200)) {
        check(Compat::Qemu72, store_eoi, &ops);
    }
}
