//! What happens to the daemon at seeded moments, and how long the guest had to do without it.
//!
//! | what | how | ends |
//! |---|---|---|
//! | kill | SIGKILL | with the next daemon's first answer |
//! | stop | SIGSTOP, SIGCONT some milliseconds later; now and then too late | as above, or by itself |
//! | hang | SIGSTOP | the front-end finds out |
//! | upgrade | [`Board::upgrade`]: this release and the next in turns | with the new daemon's first answer |
//! | switch | [`Board::switch`]: mapped and remote mode in turns | at once |
//! | plug | [`Board::plug`]: a vCPU more for a moment; the daemon lives | at once |
//!
//! While the guest moves ([`crate::moves`]) there are two daemons, and a signal hits either.
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::board::{Board, Step};
use crate::cli::Options;
use crate::rng::Rng;
use crate::tally::Tally;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// SIGKILL.
    Kill,
    /// SIGSTOP for a while.
    Stop,
    /// SIGSTOP.
    Hang,
    /// Another binary.
    Upgrade,
    /// Another executor.
    Switch,
    /// A vCPU plugged in and unplugged.
    Plug,
}

/// All of them, with the names of the command line.
pub const WHATS: [(What, &str); 6] = [
    (What::Kill, "kill"),
    (What::Stop, "stop"),
    (What::Hang, "hang"),
    (What::Upgrade, "upgrade"),
    (What::Switch, "switch"),
    (What::Plug, "plug"),
];

/// `kill=5,stop=2`: how often a second.
#[derive(Clone, Debug, Default)]
pub struct Rates(Vec<(What, f64)>);

impl FromStr for Rates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = |word: &str| {
            let (name, hz) = word.split_once('=').ok_or("NAME=HZ is expected")?;
            let known = WHATS.iter().find(|(_, n)| *n == name);
            let (what, _) = known.ok_or(format!("{name:?} is none of the names"))?;
            let hz: f64 = hz.parse().map_err(|e| format!("{hz:?}: {e}"))?;
            if (0.0..=10_000.0).contains(&hz) {
                Ok((*what, hz))
            } else {
                Err(format!("{hz} is not between 0 and 10000"))
            }
        };
        text.split(',')
            .map(rate)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Rates {
    /// This is one of them.
    pub fn has(&self, what: What) -> bool {
        self.0.iter().any(|(w, hz)| *w == what && *hz > 0.0)
    }
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// What.
    pub what: What,
    /// From it to the next answer of a daemon.
    pub lasted: Duration,
    /// Interrupts delivered meanwhile.
    pub delivered: u64,
}

/// What happens when, from the start of the run, in order.
pub fn plan(options: &Options) -> Vec<(Duration, What)> {
    let mut rng = Rng::new(options.seed, 0x9);
    let mut moment = |from: f64, to: f64| {
        let part = from + (to - from) * rng.below(1_000_000) as f64 / 1e6;
        options.duration.mul_f64(part)
    };
    let mut plan = Vec::new();
    match (&options.chaos, options.kill_at) {
        _ if options.no_kill => {}
        (Some(Rates(rates)), _) => {
            for (what, hz) in rates {
                let times = (hz * options.duration.as_secs_f64()).round() as u32;
                plan.extend((0..times).map(|_| (moment(0.02, 0.98), *what)));
            }
        }
        (None, Some(at)) => plan.push((at, What::Kill)),
        (None, None) => {
            let kills = 0..options.seeded_kills();
            plan.extend(kills.map(|_| (moment(0.1, 0.85), What::Kill)));
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// Makes everything of the plan happen until `over`; each outage.
pub fn carry_out(
    board: &dyn Board,
    tally: &Tally,
    start: Instant,
    plan: &[(Duration, What)],
    seed: u64,
    over: &AtomicBool,
) -> Vec<Outage> {
    let mut rng = Rng::new(seed, 0x10);
    let mut outages = Vec::new();
    for (moment, what) in plan {
        while start.elapsed() < *moment {
            if over.load(Ordering::Relaxed) {
                return outages;
            }
            let left = moment.saturating_sub(start.elapsed());
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        if over.load(Ordering::Relaxed) {
            return outages;
        }
        let (begun, before) = (Instant::now(), tally.all_delivered());
        match happen(board, *what, &mut rng).and_then(|happened| {
            board.ask()?;
            Ok(happened)
        }) {
            Ok(false) => {}
            Ok(true) => outages.push(Outage {
                what: *what,
                lasted: begun.elapsed(),
                delivered: tally.all_delivered() - before,
            }),
            Err(gone) => {
                if !over.load(Ordering::Relaxed) {
                    tally.wrong(format!("{what:?}: {gone}"));
                }
                return outages;
            }
        }
    }
    outages
}

/// Sends a signal; `false` if there is no such process.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid);
    pid.is_ok_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
}

/// `false`: there was no daemon that it could happen to.
fn happen(board: &dyn Board, what: What, rng: &mut Rng) -> Step<bool> {
    let pids = board.daemons();
    let pid = pids.get(rng.below(pids.len() as u64) as usize);
    let signal = |s| pid.is_some_and(|pid| signal(*pid, s));
    Ok(match what {
        What::Kill => signal(Signal::SIGKILL),
        What::Hang => signal(Signal::SIGSTOP),
        What::Stop => {
            let stopped = signal(Signal::SIGSTOP);
            // One in sixteen is stopped for so long that it is fenced, if anybody needs it.
            let longest = if rng.one_in(16) { 800 } else { 40 };
            std::thread::sleep(Duration::from_millis(rng.below(longest)));
            // It may be gone by now; its pid is not used again so soon.
            let _ = signal(Signal::SIGCONT);
            stopped
        }
        What::Upgrade => {
            board.upgrade()?;
            true
        }
        What::Switch => {
            board.switch()?;
            true
        }
        What::Plug => {
            board.plug()?;
            true
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_nonsense_is_refused() {
        let rates: Rates = "kill=5,stop=0.5".parse().unwrap();
        assert_eq!(rates.0, [(What::Kill, 5.0), (What::Stop, 0.5)]);
        for bad in [
            "", "kill", "kill=", "kill=x", "kill=-1", "kill=NaN", "murder=1",
        ] {
            assert!(bad.parse::<Rates>().is_err(), "{bad}");
        }
    }
}
