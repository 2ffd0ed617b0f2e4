//! What a move costs: saving and loading a state in this process, beside a copy of the encoded bytes and their CRC.
//! And, without a limit, the time in which the guest stands still between two real daemons on one machine.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed; // one thread
use std::time::{Duration, Instant};

use papr_intc_frontend::protocol::layout::plain::PlainStorage;
use papr_intc_frontend::protocol::layout::words::{icp, tima};
use papr_intc_frontend::protocol::layout::{IcMode, Page, Storage};
use papr_intc_frontend::protocol::state::model::{Head, State};
use papr_intc_frontend::protocol::state::words::Words;
use papr_intc_frontend::protocol::state::{Bytes, Incoming};
use papr_intc_frontend::{GuestRam, Intc, Options};

use crate::rig::{launcher, machine, no_kick, patient, pin, routed, unpin};
use crate::table::Row;
use crate::timing::{Budget, Pairs, Sense, timed};

/// Sources and servers.
const SIZES: [(u32, u32); 2] = [(8_192, 8), (1 << 20, 256)];
const LONG: Duration = Duration::from_secs(60);

/// The rows; each is given to `add` as soon as it is measured.
pub fn measure(budget: Budget, mut add: impl FnMut(Row)) {
    pin(0);
    for (sources, servers) in SIZES {
        let state = used(sources, servers);
        let machine = state.head.machine;
        let geometry = machine.geometry().expect("a machine of the bench");
        let storage = PlainStorage::new(geometry);
        let words = Words::new(&storage, &machine, &geometry);
        words.apply(&state);
        connect(&storage, servers);
        let save = || words.save("bench").expect("a valid state");
        let bytes = Bytes::from(save());
        // In turns, so that there is something to store.
        let mut streams = [
            bytes.clone(),
            Bytes::from(elsewhere(state).encode().expect("valid")),
        ];
        let mut load = || {
            streams.swap(0, 1);
            words.load(&Incoming::read(streams[0].clone()).expect("a valid stream"));
        };
        let limit = || timed(|| _ = black_box(copy_and_crc(&bytes)));
        let name = |what| format!("{what} of a state, {sources} sources, all used");
        let pairs = Pairs::take(budget, || timed(|| _ = black_box(save())), limit);
        add(Row::new(&name("save"), pairs, Sense::Max, 4.0).gate());
        let pairs = Pairs::take(budget, || timed(&mut load), limit);
        add(Row::new(&name("load"), pairs, Sense::Max, 4.0).gate());
    }
}

/// A dual machine that nobody has used.
fn idle(sources: u32, servers: u32) -> State {
    let mut head = Head::new("bench", machine(IcMode::Dual, sources, servers));
    head.servers = (0..servers).collect();
    State::reset(head)
}

/// A dual machine on which everything is routed, and every eighth event pending.
fn used(sources: u32, servers: u32) -> State {
    let mut state = routed(machine(IcMode::Dual, sources, servers));
    for source in &mut state.xics.sources {
        source.rejected = source.irq % 8 == 0;
    }
    for source in &mut state.xive.sources {
        source.pq = if source.lisn % 8 == 0 { 2 } else { 0 };
    }
    state
}

/// The same with other routing: no word of a source stays.
fn elsewhere(mut state: State) -> State {
    for source in &mut state.xics.sources {
        source.priority ^= 1;
        source.saved ^= 1;
    }
    for source in &mut state.xive.sources {
        source.pq ^= 1;
        source.eisn ^= 1;
    }
    state
}

fn copy_and_crc(bytes: &[u8]) -> u32 {
    let copy = bytes.to_vec();
    crc32fast::hash(black_box(&copy))
}

/// The vCPUs exist, as VCPU_CONNECT leaves it.
fn connect(storage: &PlainStorage, servers: u32) {
    for server in 0..servers {
        storage
            .page(Page::Icp(server))
            .fetch_or(icp::CONNECTED, Relaxed);
        storage
            .page(Page::Tima(server))
            .fetch_or(tima::CONNECTED, Relaxed);
    }
}

/// From the stop of the source to the go of the destination, of a guest that was never booted and of one that uses
/// everything: prints the state's size, what copying it would cost, and times (medians, and the longest stop).
pub fn stand_still(quick: bool) {
    unpin();
    println!(
        "\n{:<26}{:>12}{:>11}{:>13}{:>10}{:>14}{:>10}",
        "a move", "bytes", "copy+CRC", "stands still", "longest", "of it saving", "loading"
    );
    let sizes = if quick { &SIZES[..1] } else { &SIZES[..] };
    for &(sources, servers) in sizes {
        for (how, state) in [
            ("idle", idle(sources, servers)),
            ("all used", used(sources, servers)),
        ] {
            line(&format!("{sources} sources, {how}"), &state, quick);
        }
    }
}

fn line(name: &str, state: &State, quick: bool) {
    let bytes = state.encode().expect("a valid state");
    let mut columns: [Vec<Duration>; 4] = Default::default();
    let count = if quick { 2 } else { 7 };
    moves(state, count, &mut columns);
    for _ in 0..count {
        let begun = Instant::now();
        _ = black_box(copy_and_crc(&bytes));
        columns[3].push(begun.elapsed());
    }
    let longest = columns[0].iter().max().copied().unwrap_or_default();
    let [still, save, load, copy] = columns.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    println!(
        "{name:<26}{:>12}{copy:>11.1?}{still:>13.1?}{longest:>10.1?}{save:>14.1?}{load:>10.1?}",
        bytes.len()
    );
}

fn moves(state: &State, count: usize, columns: &mut [Vec<Duration>; 4]) {
    let ram = Arc::new(GuestRam::new(&[(0, 4 << 20)]).expect("RAM"));
    let machine = state.head.machine;
    let with_vcpus = || {
        let options = Options {
            watch: patient(),
            ..Options::new(machine)
        };
        let intc = Intc::start(options, launcher(), Arc::clone(&ram), no_kick());
        let intc = intc.expect("a daemon starts");
        let connect = |server| intc.connect_vcpu(server).expect("a vCPU");
        let vcpus: Vec<_> = (0..machine.servers).map(connect).collect();
        (intc, vcpus)
    };
    let first = state.encode().expect("a valid state");
    let mut source = with_vcpus();
    source.0.quiesce(LONG).expect("quiet");
    source.0.state_load(&first).expect("loaded");
    source.0.resume(None).expect("running");
    for _ in 0..count {
        let there = with_vcpus();
        there.0.quiesce(LONG).expect("quiet");
        let begun = Instant::now();
        source.0.quiesce(LONG).expect("quiet");
        let quiet = Instant::now();
        let stream = source.0.state_save().expect("saved");
        let saved = Instant::now();
        there.0.state_load(&stream).expect("loaded");
        columns[1].push(saved - quiet);
        columns[2].push(saved.elapsed());
        there.0.resume(None).expect("running");
        columns[0].push(begun.elapsed());
        source = there;
    }
}
