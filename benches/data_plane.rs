//! What a transition costs, beside the raw limit measured in the same run: one uncontended atomic
//! read-modify-write on shared memory.
//!
//! `cargo bench --bench data_plane` prints medians, ratios to that limit, and how the cost of one hot
//! source changes with the number of sources (it must not). `-- --quick` only shows that it runs.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use papr_intc::memory::SharedMemory;
use papr_intc_frontend::GuestRam;
use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word};
use papr_intc_protocol::layout::mapped::OwnedStorage;
use papr_intc_protocol::layout::words::eas;
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::plane::xics::Routing;
use papr_intc_protocol::plane::xive::config::QueueConfig;
use papr_intc_protocol::plane::{Host, Outcome, Plane};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZES: [u32; 3] = [64, 4096, 1 << 20];
/// First XICS number of the bench machines: as low as a machine allows.
const BASE: u32 = 16;

/// A queue of 64 KiB at guest address 0, without a dirty bitmap: what marks cost is a line of its own.
struct Ram(Vec<AtomicU32>);

impl Host for Ram {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        let slot = self.0.get((gpa / 4) as usize);
        slot.map(|s| s.store(entry.to_be(), Ordering::Relaxed))
            .is_some()
    }
    fn kick(&self, server: u32) {
        black_box(server);
    }
}

type Bench = Plane<std::sync::Arc<OwnedStorage>, Ram>;

struct Rig {
    _memory: SharedMemory,
    plane: Bench,
    hot: u32,
}

fn rig(sources: u32, mode: Mode, compat: Compat) -> Rig {
    let machine = Machine {
        sources: BASE + sources,
        xics_base: BASE,
        ..Machine::pseries(IcMode::Dual, compat, 1)
    };
    let machine = Machine {
        sources: machine.sources.min(1 << 20),
        ..machine
    };
    let memory = SharedMemory::create(machine, &papr_intc_protocol::Versions::current("bench"))
        .expect("a memfd");
    let ram = Ram((0..0x4000).map(|_| AtomicU32::new(0)).collect());
    let plane = Plane::new(memory.storage.clone(), ram, machine).expect("a machine");
    let state = State {
        mode,
        gate: Gate::Open,
        executor: Executor::FrontEnd,
        cas_xive: mode == Mode::Xive,
    };
    memory.set_header(word::STATE, state.to_word());
    // The highest number: the far end of every index.
    let hot = machine.sources - 1;
    let c = plane.controller();
    c.xics.create();
    for lisn in 0..machine.sources {
        c.xive.reset_source(lisn);
    }
    c.xics.connect(0);
    c.xive.connect(0);
    c.xics.claim(hot, false);
    c.xive.claim(hot, false);
    c.xics.set_cppr(0, 0xff);
    c.xive.set_cppr(0, 0xff);
    c.xics
        .write(
            hot,
            Routing {
                server: 0,
                priority: 5,
                saved: 5,
            },
        )
        .expect("a source");
    let queue = QueueConfig {
        address: 0,
        size: 16,
        always_notify: true,
    };
    c.xive
        .set_queue_config(0, 6, Some(queue))
        .expect("nobody holds the lock");
    c.xive
        .set_source_config(hot, eas::new(6, 0x10, false))
        .expect("nobody holds the lock");
    c.xive.esb_load(mgmt(hot) + 0xc00, 8);
    Rig {
        _memory: memory,
        plane,
        hot,
    }
}

fn mgmt(lisn: u32) -> u64 {
    (u64::from(lisn) << 17) + 0x1_0000
}

fn must<T>(outcome: Outcome<T>) -> T {
    match outcome {
        Outcome::Done(value) => value,
        _ => unreachable!("the bench machine is open and mapped"),
    }
}

/// Median nanoseconds of one `f`, over `samples` batches.
fn median(samples: usize, batch: u32, mut f: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..samples)
        .map(|_| {
            let start = Instant::now();
            (0..batch).for_each(|_| f());
            start.elapsed().as_nanos() as f64 / f64::from(batch)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[samples / 2]
}

fn main() {
    let quick = std::env::args().any(|a| a == "--quick" || a == "--test");
    let (samples, batch) = if quick { (5, 1_000) } else { (101, 20_000) };
    let limit_word = AtomicU64::new(0);
    let limit = median(samples, batch, || {
        black_box(&limit_word).fetch_add(1, Ordering::AcqRel);
    });
    println!("raw limit: one uncontended atomic read-modify-write: {limit:.1} ns (median)\n");
    println!(
        "{:<52}{:>10}{:>10}{:>12}{:>12}",
        "", "64", "4,096", "1,048,576", "x limit"
    );
    let row = |name: &str, mode: Mode, f: &dyn Fn(&Rig)| {
        let times = SIZES.map(|sources| {
            let rig = rig(sources, mode, Compat::Papr1);
            median(samples, batch, || f(&rig))
        });
        let [a, b, c] = times;
        println!(
            "{name:<52}{a:>7.1} ns{b:>7.1} ns{c:>9.1} ns{:>12.1}   largest/smallest {:.2}",
            c / limit,
            c / a
        );
    };
    row(
        "XIVE: trigger to presented, acknowledge, EOI, CPPR",
        Mode::Xive,
        &|r| {
            must(r.plane.trigger(0, r.hot));
            must(r.plane.tima_load(0, 0, 0x2_0810, 2));
            must(r.plane.esb_load(0, mgmt(r.hot) + 0xc00, 8));
            must(r.plane.tima_store(0, 0, 0x2_0011, 1, 0xff));
        },
    );
    row(
        "XIVE: trigger of a pending source (coalesced)",
        Mode::Xive,
        &|r| {
            must(r.plane.trigger(0, r.hot));
        },
    );
    row(
        "XICS: trigger to presented, H_XIRR, H_EOI",
        Mode::Xics,
        &|r| {
            must(r.plane.trigger(0, r.hot));
            let mut args = [0; 9];
            must(r.plane.hcall(0, 0, 0x74, &mut args, 0));
            must(r.plane.hcall(0, 0, 0x64, &mut args, 0));
        },
    );
    row("XICS: H_EOI with nothing waiting", Mode::Xics, &|r| {
        must(
            r.plane
                .hcall(0, 0, 0x64, &mut [0xff00_0002, 0, 0, 0, 0, 0, 0, 0, 0], 0),
        );
    });
    row(
        "XICS: H_EOI that presents the one that waits",
        Mode::Xics,
        &|r| {
            let mut args = [0; 9];
            must(r.plane.trigger(0, r.hot));
            must(r.plane.hcall(0, 0, 0x74, &mut args, 0));
            must(r.plane.trigger(0, r.hot));
            must(r.plane.hcall(0, 0, 0x64, &mut args, 0));
            must(r.plane.hcall(0, 0, 0x74, &mut args, 0));
            must(r.plane.hcall(0, 0, 0x64, &mut args, 0));
        },
    );
    let bare = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("memory");
    let marked = GuestRam::new(&[(0, 0x1_0000)]).expect("memory");
    let bare = median(samples, batch, || {
        let at = GuestAddress(black_box(0x104));
        let stored = bare.store(0u32, at, Ordering::Relaxed);
        stored.expect("there is memory");
    });
    let marked = median(samples, batch, || {
        assert!(marked.write_u32_be(black_box(0x104), 0));
    });
    println!(
        "\nof the XIVE trigger: its queue entry in guest RAM {bare:.1} ns, with the page marked dirty {marked:.1} ns"
    );
}
