//! How long it takes from one thread's word to the other's notice of it. Two threads send to each other in turns;
//! the clock runs from just before the sending to the moment at which the other one has seen it. What a receiver
//! then has to do (accept, end) is not on the way, and is not measured.

use std::time::Instant;

use crate::rig::pin;
use crate::timing::{Budget, Pairs, clock_cost};

/// One of the two threads.
pub trait Side: Send {
    /// Sends to the other.
    fn send(&mut self);
    /// Returns when the other's is here.
    fn wait(&mut self);
    /// Makes ready for the next.
    fn clean(&mut self) {}
}

/// Both of them.
pub type Sides = [Box<dyn Side>; 2];

/// Nanoseconds since some moment.
pub fn now() -> u64 {
    static BASE: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BASE.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Hops of `ours` and of `limit`, in turns of `turn`.
pub fn pairs(budget: Budget, turn: usize, cpus: [usize; 2], ours: Sides, limit: Sides) -> Pairs {
    let (mut ours, mut limit) = (ours, limit);
    let mut pairs = Pairs::in_turns(2 * turn);
    let begun = Instant::now();
    while begun.elapsed() < budget.time || pairs.ours.len() < turn {
        pairs.ours.extend(hops(turn, cpus, &mut ours));
        pairs.limit.extend(hops(turn, cpus, &mut limit));
    }
    pairs
}

/// So many hops each way; those of both ways.
fn hops(count: usize, cpus: [usize; 2], sides: &mut Sides) -> Vec<f64> {
    let [a, b] = sides;
    let (a, b) = std::thread::scope(|scope| {
        let b = scope.spawn(|| run(count, b.as_mut(), cpus[1], false));
        let a = scope.spawn(|| run(count, a.as_mut(), cpus[0], true));
        let joined = "a thread of the bench";
        (a.join().expect(joined), b.join().expect(joined))
    });
    let took = |(sent, seen): (u64, u64)| (seen as f64 - sent as f64 - clock_cost()).max(1.0);
    let there = a.sent.into_iter().zip(b.seen);
    let back = b.sent.into_iter().zip(a.seen);
    there.chain(back).map(took).collect()
}

/// What one side saw of the clock. Kept apart from the other's, so that no line but the path's goes between them.
struct Log {
    sent: Vec<u64>,
    seen: Vec<u64>,
}

fn run(count: usize, side: &mut dyn Side, cpu: usize, first: bool) -> Log {
    pin(cpu);
    let mut log = Log {
        sent: Vec::with_capacity(count),
        seen: Vec::with_capacity(count),
    };
    for _ in 0..count {
        if first {
            log.sent.push(now());
            side.send();
        }
        side.wait();
        log.seen.push(now());
        side.clean();
        if !first {
            log.sent.push(now());
            side.send();
        }
    }
    log
}
