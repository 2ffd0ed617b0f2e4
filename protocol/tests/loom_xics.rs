//! The XICS transitions under a weak memory model: the orderings that SPEC.md chapter 3 lists for
//! XICS, each pair in a test of its own. The explorer's scenarios have all interleavings, but only
//! of sequentially consistent memory.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p papr-intc-protocol --test loom_xics`
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

mod loom_storage;

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use loom_storage::{Key, LoomStorage, executions, refuted};
use papr_intc_protocol::layout::storage::{AtomicWord, Page};
use papr_intc_protocol::layout::words::{icp, ics};
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine};
use papr_intc_protocol::plane::xics::{Routing, Xics};
use papr_intc_protocol::plane::{Host, LevelInput};
use std::sync::Arc as StdArc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

const BASE: u32 = 16;
const LEVELS: [Compat; 2] = [Compat::Papr1, Compat::Qemu72];

/// One execution: the words, and what the threads share beside them.
struct Bench {
    storage: LoomStorage,
    machine: Machine,
    geometry: Geometry,
    host: Flags,
    /// What a device writes before it signals.
    data: AtomicU64,
    /// What a test keeps to the end.
    note: AtomicU64,
}

/// A kick flag per vCPU.
struct Flags([AtomicU64; 2]);
impl Host for Flags {
    fn write_queue_entry(&self, _: u64, _: u32) -> bool {
        unreachable!("XICS has no event queues")
    }
    fn kick(&self, server: u32) {
        // Release pairs with the evaluation's swap. A swap where a store would do: loom does not order
        // a store and a swap of different threads, and may end with the older of the two.
        self.0[server as usize].swap(1, Release);
    }
}

fn cppr(cppr: u8) -> u64 {
    icp::RESET | icp::CONNECTED | u64::from(cppr) << icp::CPPR_SHIFT
}
fn msi(server: u32, priority: u8) -> u64 {
    ics::routing(server, priority, priority) | ics::CLAIMED
}

impl Bench {
    /// Two vCPUs and two sources; `index`: leaf 0 and every root.
    fn words(level: Compat, icps: [u64; 2], sources: [u64; 2], index: [u64; 2]) -> Self {
        Self::build(level, icps, sources, index, false)
    }
    /// The same; `weak`: every ordering Relaxed, no fence.
    fn build(
        level: Compat,
        icps: [u64; 2],
        sources: [u64; 2],
        index: [u64; 2],
        weak: bool,
    ) -> Self {
        let page = |(at, value)| (Key::Page(at), value);
        let words = [
            (Page::Icp(0), icps[0]),
            (Page::Icp(1), icps[1]),
            (Page::IcsSource(0), sources[0]),
            (Page::IcsSource(1), sources[1]),
            (Page::PendingLeaf(0), index[0]),
            (Page::PendingRoot(0), index[1]),
            (Page::PendingRoot(1), index[1]),
            (Page::CommonRoot, index[1]),
        ]
        .map(page);
        let machine = Machine {
            sources: BASE + 64,
            xics_base: BASE,
            ..Machine::pseries(IcMode::Xics, level, 2)
        };
        Self {
            storage: LoomStorage::build(&words, weak),
            geometry: machine.geometry().unwrap(),
            machine,
            host: Flags([AtomicU64::new(0), AtomicU64::new(0)]),
            data: AtomicU64::new(0),
            note: AtomicU64::new(0),
        }
    }
    fn xics(&self) -> Xics<'_, LoomStorage, Flags> {
        Xics::new(&self.storage, &self.host, &self.machine, &self.geometry)
    }
    /// A device: its data, then its MSI.
    fn signal(&self, n: u32) {
        self.data.store(1, Relaxed);
        self.xics().trigger(BASE + n);
    }
    fn xisr(&self, server: u32) -> u32 {
        // A read-modify-write never reads an old value.
        let icp = self.storage.word(Key::Page(Page::Icp(server)));
        icp::xisr(icp.fetch_or(0, AcqRel))
    }
    /// Accepts, and judges that it is source `n` with its data.
    fn expect(&self, server: u32, n: u32) {
        let xisr = self.xics().accept(server) & icp::XISR as u32;
        assert_eq!(xisr, BASE + n, "source {n} waits for ever");
        assert_eq!(self.data.load(Relaxed), 1, "accepted without its data");
    }
}

/// As [`executions`], for tests too large to be run without a bound of preemptions.
fn bounded(name: &str, preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let count = StdArc::new(AtomicUsize::new(0));
    let counted = StdArc::clone(&count);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    let executions = count.load(Relaxed);
    println!("{name}: executions={executions} preemptions=Some({preemptions})");
}

/// Runs `left` and `right` beside each other, then `judge`.
fn race(
    bench: Bench,
    left: impl FnOnce(&Bench) + 'static,
    right: impl FnOnce(&Bench) + 'static,
    judge: impl FnOnce(&Bench),
) {
    let bench = Arc::new(bench);
    let other = Arc::clone(&bench);
    let left = thread::spawn(move || left(&other));
    right(&bench);
    left.join().unwrap();
    judge(&bench);
}

#[test]
fn a_refusal_meets_an_opening_cppr() {
    for level in LEVELS {
        executions(&format!("give-back against H_CPPR, {level:?}"), move || {
            race(
                Bench::words(level, [cppr(0); 2], [msi(0, 5), 0], [0; 2]),
                |b| b.signal(0),
                |b| b.xics().set_cppr(0, 0xff),
                |b| b.expect(0, 0),
            );
        });
    }
}

#[test]
fn a_refusal_meets_an_eoi() {
    for level in LEVELS {
        executions(&format!("give-back against H_EOI, {level:?}"), move || {
            race(
                Bench::words(level, [cppr(5); 2], [msi(0, 5), 0], [1; 2]),
                |b| b.signal(0),
                |b| b.xics().eoi(0, 0xff00_0000 | BASE),
                |b| b.expect(0, 0),
            );
        });
    }
}

#[test]
fn with_relaxed_orderings_a_refusal_is_lost() {
    refuted("give-back against H_CPPR, all Relaxed", || {
        race(
            Bench::build(Compat::Papr1, [cppr(0); 2], [msi(0, 5), 0], [0; 2], true),
            |b| b.signal(0),
            |b| b.xics().set_cppr(0, 0xff),
            |b| b.expect(0, 0),
        );
    });
}

#[test]
fn with_relaxed_orderings_an_old_routing_presents() {
    refuted("deliver against set-xive, all Relaxed", || {
        set_xive_race(Compat::Papr1, true)
    });
}

/// A delivery against set-xive to server 1.
fn set_xive_race(level: Compat, weak: bool) {
    race(
        Bench::build(level, [cppr(0xff); 2], [msi(0, 5), 0], [0; 2], weak),
        |b| b.signal(0),
        |b| {
            let to = Routing {
                server: 1,
                priority: 5,
                saved: 5,
            };
            b.xics().write(BASE, to).unwrap();
            // What was presented to the old server before the call returned may stay.
            b.note.store(u64::from(b.xisr(0) == 0), Relaxed);
        },
        |b| {
            let at = u32::from(b.xisr(0) == 0);
            let returned_without = b.note.load(Relaxed) == 1;
            assert!(
                !(returned_without && at == 0),
                "presented to the old server after set-xive returned"
            );
            b.expect(at, 0);
        },
    );
}

#[test]
fn a_delivery_meets_set_xive() {
    for level in LEVELS {
        executions(&format!("deliver against set-xive, {level:?}"), move || {
            set_xive_race(level, false);
        });
    }
}

#[test]
fn two_passes_and_a_refusal_share_a_slice() {
    for level in LEVELS {
        bounded(
            &format!("two passes and a refusal, {level:?}"),
            4,
            move || {
                // Bit 1 of the leaf is stale, and source 1 is being refused.
                let bench = Bench::words(level, [cppr(0); 2], [0, msi(1, 5)], [2, 1]);
                let bench = Arc::new(bench);
                let [a, b] = [Arc::clone(&bench), Arc::clone(&bench)];
                let device = thread::spawn(move || a.signal(1));
                let foreign = thread::spawn(move || b.xics().set_cppr(0, 0xff));
                bench.xics().set_cppr(1, 0xff);
                device.join().unwrap();
                foreign.join().unwrap();
                bench.expect(1, 1);
            },
        );
    }
}

/// H_CPPR opens, closes and opens one vCPU beside a refusal; `index` as it is at the start.
fn passes_of_one_vcpu(level: Compat, index: [u64; 2]) {
    race(
        Bench::words(level, [cppr(0); 2], [msi(0, 5), 0], index),
        |b| b.signal(0),
        |b| {
            b.xics().set_cppr(0, 6);
            b.xics().set_cppr(0, 0);
            b.xics().set_cppr(0, 0xff);
        },
        |b| b.expect(0, 0),
    );
}

#[test]
fn one_vcpus_passes_follow_each_other_beside_a_refusal() {
    for level in LEVELS {
        let name = format!("two passes of one vCPU, a stale leaf bit, {level:?}");
        bounded(&name, 6, move || passes_of_one_vcpu(level, [1, 1]));
        let name = format!("two passes of one vCPU, a stale root bit, {level:?}");
        bounded(&name, 6, move || passes_of_one_vcpu(level, [0, 1]));
    }
}

#[test]
fn a_kick_meets_an_evaluation() {
    executions("kick against evaluation", || {
        race(
            Bench::words(Compat::Papr1, [cppr(0xff); 2], [msi(0, 5), 0], [0; 2]),
            |b| b.signal(0),
            |b| {
                // AcqRel: a kick that is overwritten here has its XISR seen below.
                b.host.0[0].swap(0, AcqRel);
                b.note.store(u64::from(b.xics().line(0)), Relaxed);
            },
            |b| {
                let kicked = b.host.0[0].swap(0, AcqRel) == 1;
                assert!(kicked || b.note.load(Relaxed) == 1, "asleep with XISR set");
                b.expect(0, 0);
            },
        );
    });
}

#[test]
fn a_level_meets_the_eoi_of_its_source() {
    for level in LEVELS {
        executions(&format!("LSI level against H_EOI, {level:?}"), move || {
            let in_service = msi(0, 5) | ics::LSI | ics::SENT;
            race(
                Bench::words(level, [cppr(5); 2], [in_service, 0], [0; 2]),
                |b| {
                    b.data.store(1, Relaxed);
                    b.xics().set_level(BASE, LevelInput::Vmm, true);
                },
                |b| b.xics().eoi(0, 0xff00_0000 | BASE),
                |b| b.expect(0, 0),
            );
        });
    }
}

#[test]
fn a_trigger_meets_a_mask() {
    for level in LEVELS {
        executions(
            &format!("trigger against int-off, int-on, {level:?}"),
            move || {
                race(
                    Bench::words(level, [cppr(0xff); 2], [msi(0, 5), 0], [0; 2]),
                    |b| b.signal(0),
                    |b| {
                        b.xics().int_off(BASE).unwrap();
                        b.xics().int_on(BASE).unwrap();
                    },
                    |b| b.expect(0, 0),
                );
            },
        );
    }
}

#[test]
fn a_displaced_msi_meets_an_opening_cppr() {
    for level in LEVELS {
        executions(
            &format!("displacement against accept, {level:?}"),
            move || {
                let shown = icp::CONNECTED
                    | 0xff << icp::MFRR_SHIFT
                    | 5 << icp::PP_SHIFT
                    | 0xff << icp::CPPR_SHIFT
                    | u64::from(BASE);
                race(
                    Bench::words(level, [shown, cppr(0)], [msi(0, 5), msi(0, 3)], [0; 2]),
                    |b| b.signal(1),
                    |b| {
                        let xirr = b.xics().accept(0);
                        b.xics().eoi(0, xirr);
                    },
                    |b| {
                        // One was accepted, the other is shown now, whichever it is.
                        assert_ne!(b.xisr(0), 0, "an interrupt waits for ever");
                    },
                );
            },
        );
    }
}
