//! What a move costs: bytes, saving and loading, beside the least that any save can cost on the same machine
//! in the same run: a copy of the encoded bytes and their CRC. And the time in which the guest stands still,
//! from QUIESCE of the source to RESUME of the destination, between two real daemons on one machine.
//!
//! Medians of alternating pairs, and ratios. Takes half a minute; `-- --quick` takes less.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use papr_intc_frontend::protocol::layout::plain::PlainStorage;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::protocol::state::model::*;
use papr_intc_frontend::protocol::state::words::Words;
use papr_intc_frontend::{Executor, GuestRam, Intc, Launcher, Options};

/// The first MSI.
const FIRST: u32 = 0x1300;
const LONG: Duration = Duration::from_secs(60);

fn main() {
    let quick = std::env::args().any(|a| a == "--quick" || a == "--test");
    println!(
        "{:<22}{:>12}{:>11}{:>11}{:>9}{:>11}{:>11}{:>9}",
        "state", "bytes", "save", "copy+CRC", "ratio", "load", "copy+CRC", "ratio"
    );
    for (sources, servers) in [(8_192, 8), (1 << 20, 256)] {
        for used in [false, true] {
            row(sources, servers, used, if quick { 5 } else { 31 });
        }
    }
    println!(
        "\n{:<22}{:>12}{:>12}{:>12}{:>12}",
        "guest stands still", "median", "longest", "of it save", "load"
    );
    for (sources, servers) in [(8_192, 8), (1 << 20, 256)] {
        for used in [false, true] {
            stop_phase(sources, servers, used, if quick { 2 } else { 9 });
        }
    }
}

fn name(sources: u32, used: bool) -> String {
    format!("{sources} {}", if used { "used" } else { "idle" })
}

/// A dual machine that runs XIVE; if used, every source is routed in both controllers, each queue configured,
/// every eighth event pending.
fn state(sources: u32, servers: u32, used: bool) -> State {
    let machine = Machine {
        sources,
        ..Machine::pseries(IcMode::Dual, Compat::Papr1, servers)
    };
    let mut head = Head::new("bench", machine);
    head.servers = (0..servers).collect();
    let mut state = State::reset(head);
    if !used {
        return state;
    }
    let count = sources - FIRST;
    state.claims.push(Claims {
        first: FIRST,
        count,
        kind: Kind::Msi,
    });
    state.xics.sources = (FIRST..sources)
        .map(|irq| XicsSource {
            server: (irq % servers) as u16,
            priority: 5,
            saved: 5,
            rejected: irq % 8 == 0,
            ..XicsSource::reset(irq)
        })
        .collect();
    state.xive.sources = (FIRST..sources)
        .map(|lisn| XiveSource {
            lisn,
            pq: if lisn % 8 == 0 { 2 } else { 0 },
            masked: false,
            end: lisn % servers * 8 + 6,
            eisn: lisn,
        })
        .collect();
    for server in 0..servers {
        state.xics.icps.push(Icp {
            cppr: 0xff,
            ..Icp::reset(server)
        });
        state.xive.rings.push(Ring {
            server,
            bytes: Ring::RESET | 0xff << 48,
        });
        state.xive.ends.push(End {
            end: server * 8 + 6,
            address: 0,
            size: 16,
            always_notify: true,
            generation: true,
            index: server,
            esn: 0,
        });
    }
    state
}

fn timed<T>(f: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let value = f();
    (begun.elapsed(), value)
}

fn median(samples: &mut [Duration]) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn copy_and_crc(bytes: &[u8]) -> u32 {
    let copy = bytes.to_vec();
    crc32fast::hash(black_box(&copy))
}

/// In this process: capture and encode, decode and apply.
fn row(sources: u32, servers: u32, used: bool, samples: usize) {
    let state = state(sources, servers, used);
    let machine = state.head.machine;
    let geometry = machine.geometry().expect("a machine of the bench");
    let storage = PlainStorage::new(geometry);
    let words = Words::new(&storage, &machine, &geometry);
    words.apply(&state);
    connect(&storage, servers);
    let save = || words.save("bench").expect("a valid state");
    let bytes = save();
    let load = || words.apply(&State::decode(&bytes).expect("what was saved"));
    let mut columns: [Vec<Duration>; 4] = Default::default();
    for _ in 0..samples {
        let (time, saved) = timed(save);
        columns[0].push(time);
        columns[1].push(timed(|| black_box(copy_and_crc(&saved))).0);
        columns[2].push(timed(load).0);
        columns[3].push(timed(|| black_box(copy_and_crc(&bytes))).0);
    }
    let [save, save_limit, load, load_limit] = columns.map(|mut c| median(&mut c));
    let ratio = |ours: Duration, limit: Duration| ours.as_secs_f64() / limit.as_secs_f64();
    println!(
        "{:<22}{:>12}{:>11.1?}{:>11.1?}{:>8.1}x{:>11.1?}{:>11.1?}{:>8.1}x",
        name(sources, used),
        bytes.len(),
        save,
        save_limit,
        ratio(save, save_limit),
        load,
        load_limit,
        ratio(load, load_limit),
    );
}

/// The vCPUs exist, as VCPU_CONNECT leaves it.
fn connect(storage: &PlainStorage, servers: u32) {
    use papr_intc_frontend::protocol::layout::words::{icp, tima};
    use papr_intc_frontend::protocol::layout::{Page, Storage};
    use std::sync::atomic::Ordering::Relaxed; // one thread
    for server in 0..servers {
        storage
            .page(Page::Icp(server))
            .fetch_or(icp::CONNECTED, Relaxed);
        storage
            .page(Page::Tima(server))
            .fetch_or(tima::CONNECTED, Relaxed);
    }
}

fn start(machine: Machine, ram: &Arc<GuestRam>) -> Intc {
    let options = Options {
        executor: Executor::FrontEnd,
        ..Options::new(machine)
    };
    let launcher = Launcher::spawn(env!("CARGO_BIN_EXE_papr-intc"), Vec::new());
    let intc = Intc::start(options, launcher, Arc::clone(ram), Arc::new(|_| ()));
    intc.expect("a daemon starts")
}

/// Between two daemons: from the stop of the source to the go of the destination.
fn stop_phase(sources: u32, servers: u32, used: bool, samples: usize) {
    let state = state(sources, servers, used);
    let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).expect("RAM"));
    let with_vcpus = || {
        let intc = start(state.head.machine, &ram);
        let vcpus: Vec<_> = (0..servers)
            .map(|s| intc.connect_vcpu(s).expect("a vCPU"))
            .collect();
        (intc, vcpus)
    };
    let first = state.encode().expect("a valid state");
    let mut source = with_vcpus();
    source.0.quiesce(LONG).expect("quiet");
    source.0.state_load(&first).expect("loaded");
    source.0.resume(None).expect("running");
    let mut columns: [Vec<Duration>; 3] = Default::default();
    for _ in 0..samples {
        let there = with_vcpus();
        there.0.quiesce(LONG).expect("quiet");
        let begun = Instant::now();
        source.0.quiesce(LONG).expect("quiet");
        let (save, stream) = timed(|| source.0.state_save().expect("saved"));
        let (load, ()) = timed(|| there.0.state_load(&stream).expect("loaded"));
        there.0.resume(None).expect("running");
        columns[0].push(begun.elapsed());
        columns[1].push(save);
        columns[2].push(load);
        source = there;
    }
    let longest = columns[0].iter().max().copied().unwrap_or_default();
    let [still, save, load] = columns.map(|mut c| median(&mut c));
    println!(
        "{:<22}{:>12.1?}{:>12.1?}{:>12.1?}{:>12.1?}",
        name(sources, used),
        still,
        longest,
        save,
        load
    );
}
