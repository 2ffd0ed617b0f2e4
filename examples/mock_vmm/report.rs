//! What a person reads: a progress bar while it runs, a summary afterwards, one line for scripts.

use std::io::IsTerminal;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::chaos::{Outage, WHATS, What};
use crate::cli::Options;
use crate::conductor::Loss;
use crate::moves::{Moved, PHASES};
use crate::tally::{KINDS, Latencies, Tally};

/// Shows progress until `over`: a bar on a terminal, a line every two seconds elsewhere.
pub fn progress(tally: &Tally, start: Instant, duration: Duration, over: &AtomicBool) {
    let terminal = std::io::stderr().is_terminal();
    let total = duration.as_millis() as u64;
    let bar = if terminal {
        ProgressBar::new(total)
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg}") {
        bar.set_style(style);
    }
    let mut next_line = Duration::from_secs(2);
    while !over.load(Ordering::Relaxed) {
        let elapsed = start.elapsed();
        let delivered = tally.all_delivered();
        let text = format!(
            "{:.0} s of {:.0}, {} interrupts",
            elapsed.as_secs_f64(),
            duration.as_secs_f64(),
            grouped(delivered)
        );
        bar.set_position((elapsed.as_millis() as u64).min(total));
        bar.set_message(text.clone());
        if !terminal && elapsed >= next_line {
            eprintln!("{text}");
            next_line = elapsed + Duration::from_secs(2);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bar.finish_and_clear();
}

/// Everything that the summary tells.
pub struct Summary<'a> {
    /// Command line.
    pub options: &'a Options,
    /// Counters.
    pub tally: &'a Tally,
    /// Trigger → handler.
    pub latencies: &'a Latencies,
    /// How long the guest ran.
    pub ran: Duration,
    /// Kills of the daemon.
    pub outages: &'a [Outage],
    /// Moves to another daemon.
    pub moves: &'a [Moved],
    /// What never arrived.
    pub lost: &'a [Loss],
    /// Faults put in on purpose.
    pub faults: u64,
}

impl Summary<'_> {
    /// Prints it.
    pub fn print(&self) {
        self.print_interrupts();
        self.print_changes();
        self.print_outages();
        self.print_moves();
        self.print_faults();
        let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
        println!(
            "lost={} spurious={} delivered={} kills={} migrations={} aborted={} stops={} hangs={} \
             upgrades={} switches={} plugs={}",
            self.lost.len(),
            count(&self.tally.spurious),
            self.tally.all_delivered(),
            self.happened(What::Kill),
            self.migrations(),
            self.moves.len() - self.migrations(),
            self.happened(What::Stop),
            self.happened(What::Hang),
            self.happened(What::Upgrade),
            self.happened(What::Switch),
            self.happened(What::Plug),
        );
    }

    fn print_interrupts(&self) {
        let o = self.options;
        let how = match (o.remote, o.forward_all) {
            (true, _) => "remote",
            (false, true) => "mapped, every call forwarded",
            (false, false) => "mapped",
        };
        println!(
            "\n{:?} machine, {} vCPUs, {} sources, {how}, seed {}, {:.1} s\n",
            o.mode,
            o.vcpus,
            o.sources,
            o.seed,
            self.ran.as_secs_f64()
        );
        println!(
            "{:<28}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}",
            "interrupts", "delivered", "per s", "p50", "p99", "p99.9", "max"
        );
        for kind in KINDS {
            let delivered = self.tally.delivered[kind as usize].load(Ordering::Relaxed);
            let latency = &self.latencies.0[kind as usize];
            let at = |q: f64| time(latency.value_at_quantile(q));
            println!(
                "{:<28}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}",
                kind.name(),
                grouped(delivered),
                grouped((delivered as f64 / self.ran.as_secs_f64()) as u64),
                at(0.5),
                at(0.99),
                at(0.999),
                time(latency.max()),
            );
        }
        let t = self.tally;
        let all = t.all_delivered();
        let count = |c: &AtomicU64| grouped(c.load(Ordering::Relaxed));
        println!(
            "{:<28}{:>12}{:>11}",
            "together",
            grouped(all),
            grouped((all as f64 / self.ran.as_secs_f64()) as u64)
        );
        println!(
            "\nhandlers without news: {} second events of a burst, {} unaccounted for (spurious)\n\
             entries without an interrupt: {}; of freed interrupts: {}",
            count(&t.repeats),
            count(&t.spurious),
            count(&t.empty),
            count(&t.strays)
        );
    }

    fn print_changes(&self) {
        let t = self.tally;
        let count = |c: &AtomicU64| grouped(c.load(Ordering::Relaxed));
        println!(
            "configuration calls: {} ({} times busy)\n\
             affinity moves {}, masked and unmasked {}, freed and requested {}\n\
             vCPUs off {}, on {}; CAS {}, kexec {}, machine resets {}, drained {} times",
            count(&t.configured),
            count(&t.busy),
            count(&t.moves),
            count(&t.masks),
            count(&t.restarts),
            count(&t.cpu_off),
            count(&t.cpu_on),
            count(&t.cas),
            count(&t.kexecs),
            count(&t.resets),
            count(&t.drains),
        );
    }

    fn print_outages(&self) {
        if self.outages.is_empty() {
            println!("the daemon was not killed");
        }
        for (what, name) in WHATS {
            let of: Vec<&Outage> = self.outages.iter().filter(|o| o.what == what).collect();
            let mut each: Vec<Duration> = of.iter().map(|o| o.lasted).collect();
            each.sort();
            let Some(longest) = each.last() else {
                continue;
            };
            let name = if what == What::Kill { "kill -9" } else { name };
            let of_what = if what == What::Plug {
                "a vCPU"
            } else {
                "the daemon"
            };
            println!(
                "{name} of {of_what}: {}; to the next answer: median {}, longest {}; \
                 {} interrupts delivered meanwhile",
                each.len(),
                time(each[each.len() / 2].as_nanos() as u64),
                time(longest.as_nanos() as u64),
                grouped(of.iter().map(|o| o.delivered).sum())
            );
        }
    }

    fn print_moves(&self) {
        if self.moves.is_empty() {
            return;
        }
        let moves = |phase| self.moves.iter().filter(move |m| m.aborted == phase);
        let given_up =
            PHASES.map(|(phase, name)| format!("{} after the {name}", moves(Some(phase)).count()));
        let mut stops: Vec<_> = moves(None).map(|m| m.stopped).collect();
        stops.sort();
        let at = |i: usize| time(stops.get(i).map_or(0, |stop| stop.as_nanos() as u64));
        println!(
            "moved to another daemon: {}; vCPUs stopped: median {}, longest {}; at most {} bytes\n\
             moves given up: {}; moves in which a daemon was killed: {}",
            stops.len(),
            at(stops.len() / 2),
            at(stops.len().saturating_sub(1)),
            grouped(moves(None).map(|m| m.bytes as u64).max().unwrap_or(0)),
            given_up.join(", "),
            self.killed_in_moves(),
        );
    }

    /// Moves that were not given up.
    fn migrations(&self) -> usize {
        self.moves.iter().filter(|m| m.aborted.is_none()).count()
    }

    fn killed_in_moves(&self) -> usize {
        self.moves.iter().filter(|m| m.killed).count()
    }

    fn happened(&self, what: What) -> usize {
        self.outages.iter().filter(|o| o.what == what).count()
    }

    /// A daemon that executes may present once more what it had under way when it died: at most one event a
    /// source each time. In mapped mode there is nothing to excuse.
    pub fn spurious_is_excused(&self) -> bool {
        let o = self.options;
        let executes = o.remote || o.forward_all;
        let deaths = self.outages.iter();
        let deaths = deaths.filter(|o| !matches!(o.what, What::Switch | What::Plug));
        let deaths = deaths.count() + self.killed_in_moves();
        let excused = deaths as u64 * u64::from(o.sources + o.vcpus);
        let own_plane =
            !executes && self.happened(What::Upgrade) + self.happened(What::Switch) == 0;
        self.tally.spurious.load(Ordering::Relaxed) <= if own_plane { 0 } else { excused }
    }

    fn print_faults(&self) {
        if let Some(fault) = self.options.fault {
            println!(
                "broken on purpose ({fault:?}): {} times",
                grouped(self.faults)
            );
        }
        let wrong = self
            .tally
            .wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !wrong.is_empty() {
            let all = self.tally.wrongs.load(Ordering::Relaxed);
            println!("\nWRONG ANSWERS: {all}, the first of them:");
            wrong.iter().for_each(|what| println!("  {what}"));
        }
        if !self.lost.is_empty() {
            println!("\nLOST:");
            self.lost
                .iter()
                .take(20)
                .for_each(|loss| println!("  {}", loss.0));
        }
        println!();
    }
}

/// 1,234,567
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Nanoseconds with a unit.
fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{:.1} µs", ns as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}
