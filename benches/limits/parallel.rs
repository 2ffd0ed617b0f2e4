//! Two threads at once: interrupts of different vCPUs, from trigger to EOI. How much each is slowed down by the other
//! beside how much the same bare atomics are; with source words in lines of their own, and in one line.

use std::sync::atomic::{AtomicUsize, Ordering};

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::IcMode;

use crate::cycle::{Bare, end};
use crate::rig::{Rig, cpus, machine, no_kick, pin};
use crate::table::Row;
use crate::timing::{Budget, Pairs, Sense, timed};

const BATCH: u32 = 5000;
/// Source words of one line of 64 bytes.
const LINE: u32 = 8;

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
    // A whole line's start; even numbers belong to vCPU 0, odd ones to vCPU 1.
    let first = next.first().next_multiple_of(LINE);
    let (apart, near) = ([first, first + 4 * LINE + 1], [first, first + 1]);

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
    let pairs = Pairs::take(budget, || both(near, true), || both(near, false));
    add(Row::new(
        "two threads, source words in one line / raw",
        pairs,
        Sense::Max,
        2.0,
    ));
    let pairs = Pairs::take(budget, || both(near, true), || both(apart, true));
    add(Row::new(
        "two threads, source words in one line / apart",
        pairs,
        Sense::Max,
        2.0,
    ));
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
