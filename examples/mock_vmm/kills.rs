//! kill -9 of the daemon at chosen moments, and how long the guest had to do without it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::board::Board;
use crate::cli::Options;
use crate::rng::Rng;
use crate::tally::Tally;

/// One kill.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// From the signal to the first answer of the next daemon.
    pub lasted: Duration,
    /// Interrupts delivered meanwhile.
    pub delivered: u64,
}

/// The moments, from the start of the run, in order.
pub fn moments(options: &Options) -> Vec<Duration> {
    if options.no_kill {
        return Vec::new();
    }
    if let Some(at) = options.kill_at {
        return vec![at];
    }
    let mut rng = Rng::new(options.seed, 0x9);
    let mut moments: Vec<Duration> = (0..options.seeded_kills())
        .map(|_| {
            options
                .duration
                .mul_f64((10 + rng.below(75)) as f64 / 100.0)
        })
        .collect();
    moments.sort();
    moments
}

/// Kills at every moment until `over`; each outage.
pub fn kill_all(
    board: &dyn Board,
    tally: &Tally,
    start: Instant,
    moments: &[Duration],
    over: &AtomicBool,
) -> Vec<Outage> {
    let mut outages = Vec::new();
    for moment in moments {
        while start.elapsed() < *moment {
            if over.load(Ordering::Relaxed) {
                return outages;
            }
            let left = moment.saturating_sub(start.elapsed());
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        let Some(pid) = board.daemon().and_then(|pid| i32::try_from(pid).ok()) else {
            continue;
        };
        let (killed, before) = (Instant::now(), tally.all_delivered());
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() || board.ask().is_err() {
            break;
        }
        outages.push(Outage {
            lasted: killed.elapsed(),
            delivered: tally.all_delivered() - before,
        });
    }
    outages
}
