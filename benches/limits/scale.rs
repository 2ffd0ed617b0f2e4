//! The hot paths do not depend on the size of the machine: one hot source on the largest machine beside the same on
//! the smallest; and sources at random, beside raw swaps at random on words of the same footprint.

use std::hint::black_box;
use std::sync::atomic::Ordering;

use papr_intc_frontend::protocol::layout::{IcMode, Page};
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::{Executor, Source};

use crate::cycle::Bare;
use crate::rig::{Rig, machine, management, no_kick, pin, swap};
use crate::table::Row;
use crate::timing::{Budget, Dice, Pairs, Sense, timed};

/// Sources and servers.
const SIZES: [(u32, u32); 3] = [(64, 1), (8_192, 64), (1 << 20, 4_096)];
/// Operations of a sample.
const BATCH: u32 = 512;
/// H_EOI of an interrupt at the least favoured CPPR.
const OPEN: u64 = 0xff00_0000;

/// The rows; each is given to `add` as soon as it is measured.
pub fn measure(budget: Budget, mut add: impl FnMut(Row)) {
    pin(0);
    for ic_mode in [IcMode::Xive, IcMode::Xics] {
        let name = match ic_mode {
            IcMode::Xive => "XIVE trigger",
            _ => "XICS H_EOI",
        };
        let start = |(sources, servers)| {
            Rig::start(
                machine(ic_mode, sources, servers),
                Executor::FrontEnd,
                no_kick(),
            )
        };
        let small = match start(SIZES[0]) {
            Ok(small) => small,
            Err(what) => return println!("{name}: skipped: {what}"),
        };
        for size in SIZES {
            let (sources, servers) = size;
            let rig = match start(size) {
                Ok(rig) => rig,
                Err(what) => {
                    println!("{name}, {sources} sources: skipped: {what}");
                    continue;
                }
            };
            let at = format!("{sources} sources, {servers} servers");
            if size != SIZES[0] {
                let hot = Pairs::take(budget, || hot(&rig), || hot(&small));
                let path = format!("{name}, hot: {at} / 64, 1");
                add(Row::new(&path, hot, Sense::Max, 1.3).gate());
            }
            let random = random(&rig, budget);
            let path = format!("{name}, random: {at} / raw swaps");
            add(Row::new(&path, random, Sense::Max, 2.0).gate());
        }
    }
}

/// One source, the last, again and again.
fn hot(rig: &Rig) -> f64 {
    let lisn = rig.machine.sources - 1;
    let vcpu = &rig.vcpus[(lisn % rig.machine.servers) as usize];
    let rounds = |f: &mut dyn FnMut()| timed(|| (0..BATCH).for_each(|_| f())) / f64::from(BATCH);
    if rig.machine.ic_mode == IcMode::Xive {
        let source = rig.source(lisn);
        rounds(&mut || {
            // 00 again by the guest, or the next trigger would be merged.
            _ = source.trigger();
            _ = vcpu.esb_load(management(lisn) + 0xc00, 8);
        })
    } else {
        let mut args = [OPEN | u64::from(lisn), 0, 0, 0, 0, 0, 0, 0, 0];
        rounds(&mut || _ = vcpu.hcall(opcode::H_EOI, &mut args))
    }
}

/// Sources in an order that nobody can foresee, each once.
fn shuffled(rig: &Rig) -> Vec<u32> {
    let mut all: Vec<u32> = (rig.first()..rig.machine.sources).collect();
    let mut dice = Dice(7);
    for i in (1..all.len()).rev() {
        all.swap(i, dice.below(i + 1));
    }
    all
}

fn random(rig: &Rig, budget: Budget) -> Pairs {
    let order = shuffled(rig);
    let count = (BATCH as usize).min(order.len());
    let at = std::cell::Cell::new(0);
    // Ours and the limit's take the same sources, in turns, never one that the caches have just seen.
    let next = || {
        let from = if at.get() + count > order.len() {
            0
        } else {
            at.get()
        };
        at.set(from + count);
        &order[from..from + count]
    };
    let per_op = |time: f64| time / count as f64;
    match rig.machine.ic_mode {
        IcMode::Xive => Pairs::take(
            budget,
            || {
                let sources: Vec<Source> = next().iter().map(|l| rig.source(*l)).collect();
                let time = timed(|| sources.iter().for_each(|s| _ = s.trigger()));
                for source in &sources {
                    _ = rig.vcpus[0].esb_load(management(source.lisn()) + 0xc00, 8);
                }
                per_op(time)
            },
            || {
                let bare: Vec<Bare<'_>> = next().iter().map(|l| Bare::of(rig, *l)).collect();
                per_op(timed(|| bare.iter().for_each(Bare::event)))
            },
        ),
        _ => Pairs::take(
            budget,
            || {
                let sources = next();
                per_op(timed(|| {
                    for lisn in sources {
                        let vcpu = &rig.vcpus[(lisn % rig.machine.servers) as usize];
                        let mut args = [OPEN | u64::from(*lisn), 0, 0, 0, 0, 0, 0, 0, 0];
                        _ = vcpu.hcall(opcode::H_EOI, &mut args);
                    }
                }))
            },
            || {
                let sources = next();
                per_op(timed(|| {
                    for lisn in sources {
                        let source = rig.word(Page::IcsSource(lisn - rig.first()));
                        swap(rig.word(Page::Icp(lisn % rig.machine.servers)), 1);
                        black_box(source.load(Ordering::Acquire));
                    }
                }))
            },
        ),
    }
}
