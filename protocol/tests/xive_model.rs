//! Random operations on the shipped XIVE plane against a slow, obvious model (xive.md §2-§5).
//!
//! The model has objects and no words: no locks, cursors, slots or counts. After each operation the
//! result, every queue entry, and all that a guest can read must be equal. One thread; interleavings
//! are in `explore_xive*.rs`.
#![allow(clippy::unwrap_used)]

mod xive_slow;

use std::cell::RefCell;

use papr_intc_protocol::layout::plain::PlainStorage;
use papr_intc_protocol::layout::words::eas;
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine};
use papr_intc_protocol::plane::xive::Xive;
use papr_intc_protocol::plane::xive::config::{EndView, QueueConfig};
use papr_intc_protocol::plane::{Host, LevelInput};
use proptest::prelude::*;
use xive_slow::{FIRST_LSI, Model, Op, RAM, SERVERS, SOURCES};

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
