//! Two threads at once: interrupts of different vCPUs, from trigger to EOI. How much each is slowed down by the other
//! beside how much the same bare atomics are; with sources far apart, next to each other, and in one cache line.

use std::sync::atomic::{AtomicUsize, Ordering};

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::{IcMode, Page};

use crate::cycle::{Bare, end};
use crate::rig::{Rig, cpus, machine, no_kick, pin};
use crate::table::Row;
use crate::timing::{Budget, Pairs, Sense, timed};

const BATCH: u32 = 5000;

/// The rows; each is given to `add` as soon as it is measured.
pub fn measure(budget: Budget, mut add: impl FnMut(Row)) {
    if cpus() < 2 {
        return println!("two threads: skipped, there is one CPU");
    }
    let (xive, names) = (
        machine(IcMode::Xive, 1024, 2),
        ["next to each other", "4 MiB apart"],
    );
    let next = Rig::start(xive, Executor::FrontEnd, no_kick()).expect("a machine");
    let far = Rig::start_apart(xive).expect("a machine");
    // Even numbers belong to vCPU 0, odd ones to vCPU 1.
    let first = next.first().next_multiple_of(64);
    let line = |lisn| next.line(Page::Source(lisn));
    let shares = |other: &u32| other % 2 == 1 && line(*other) == line(first);
    let other = (first..1024).find(shares);
    let other = other.expect("a line holds words of several sources");
    let (apart, near, one_line) = ([first, first + 33], [first, first + 1], [first, other]);

    for (rig, queues) in [&next, &far].into_iter().zip(names) {
        let alone = |ours: bool| together(rig, &apart[..1], ours);
        // At two threads; and what ours would take if it were slowed down as the limit is.
        let ours = || together(rig, &apart, true);
        let limit = || together(rig, &apart, false) / alone(false) * alone(true);
        let pairs = Pairs::take(budget, ours, limit);
        let path = format!("two threads, queues {queues} / slowed as the limit");
        add(Row::new(&path, pairs, Sense::Min, 0.9));
    }
    let both = |sources: [u32; 2], ours: bool| together(&far, &sources, ours);
    let ours = |sources: [u32; 2]| move || both(sources, true);
    let mut row = |path: &str, sources, limit: &dyn Fn() -> f64, aim| {
        let pairs = Pairs::take(budget, ours(sources), limit);
        let path = format!("two threads, {path}");
        add(Row::new(&path, pairs, Sense::Max, aim));
    };
    row("neighbouring sources / apart", near, &ours(apart), 1.1);
    row(
        "source words in one line / apart",
        one_line,
        &ours(apart),
        2.0,
    );
    let raw = || both(one_line, false);
    row("source words in one line / raw", one_line, &raw, 2.0);
}

/// Nanoseconds of one interrupt, of as many threads as sources.
fn together(rig: &Rig, sources: &[u32], ours: bool) -> f64 {
    // Spun on: threads that sleep here would not start together.
    let ready = AtomicUsize::new(0);
    let run = |cpu: usize, lisn: u32| {
        pin(cpu);
        let (vcpu, source) = (&rig.vcpus[cpu], rig.source(lisn));
        let bare = Bare::of(rig, lisn);
        let once = || match ours {
            true => {
                _ = source.trigger();
                end(vcpu, lisn);
            }
            false => {
                bare.event();
                bare.end();
            }
        };
        (0..BATCH / 10).for_each(|_| once());
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < sources.len() {
            std::thread::yield_now();
        }
        timed(|| (0..BATCH).for_each(|_| once())) / f64::from(BATCH)
    };
    std::thread::scope(|scope| {
        let (run, threads) = (&run, sources.iter().enumerate());
        let threads = threads.map(|(cpu, lisn)| scope.spawn(move || run(cpu, *lisn)));
        let threads: Vec<_> = threads.collect();
        let times = threads
            .into_iter()
            .map(|t| t.join().expect("a thread of the bench"));
        times.sum::<f64>() / sources.len() as f64
    })
}
