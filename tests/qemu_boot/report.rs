//! What a person reads: progress while a boot runs, a line as it ends, its last words if it failed, a table.

use std::fs;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::boot::Over;
use crate::lines::Served;
use crate::machine::Folder;
use crate::matrix::{Boot, CPUS, IC_MODES, VCPUS, Way};

/// Lines of a failed boot's console that are shown.
const LAST_LINES: usize = 25;
/// Between two lines of progress where there is no terminal.
const STILL: Duration = Duration::from_secs(30);

/// Progress of one boot: a bar with the guest's last line on a terminal, a line now and then elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    start: Instant,
    next: Duration,
}

impl Progress {
    pub fn of(name: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {elapsed} {prefix}  {wide_msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(name.clone());
            bar
        });
        Self {
            bar,
            name,
            start: Instant::now(),
            next: STILL,
        }
    }

    pub fn tell(&mut self, last: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(last.to_owned());
            bar.tick();
            return;
        }
        let elapsed = self.start.elapsed();
        if elapsed >= self.next {
            self.next = elapsed + STILL;
            eprintln!(
                "  {} after {:.0} s: {last}",
                self.name,
                elapsed.as_secs_f64()
            );
        }
    }

    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Titles of the columns of [`row`].
pub fn titles() -> String {
    columns([
        "",
        "boot",
        "seconds",
        "up",
        "interrupts",
        "hcalls",
        "mmio",
        "kills",
        "upgr.",
        "restarts",
    ])
}

/// A boot in one line; with a second one if it had to go wrong, and did.
pub fn row(over: &Over) -> String {
    let record = &over.record;
    let served = record.served();
    let of_rig = |count: fn(&Served) -> u64| {
        served
            .as_ref()
            .map_or("-".to_owned(), |s| grouped(count(s)))
    };
    let seconds = |time: Duration| format!("{:.1}", time.as_secs_f64());
    let verdict = match (over.is_good(), over.noticed.is_none()) {
        (true, true) => "ok",
        (true, false) => "caught",
        (false, _) => "FAILED",
    };
    let row = columns([
        verdict,
        &over.boot.to_string(),
        &seconds(record.took),
        &record.up.map_or("-".to_owned(), seconds),
        &record.interrupts().map_or("-".to_owned(), grouped),
        &of_rig(|s| s.hcalls),
        &of_rig(|s| s.loads + s.stores),
        &record.kills.to_string(),
        &record.upgrades.to_string(),
        &of_rig(|s| s.restarts),
    ]);
    match &over.noticed {
        Some(noticed) => format!("{row}\n       {noticed}"),
        None => row,
    }
}

fn columns(cells: [&str; 10]) -> String {
    let [
        verdict,
        boot,
        seconds,
        up,
        interrupts,
        hcalls,
        mmio,
        kills,
        upgrades,
        restarts,
    ] = cells;
    format!(
        "{verdict:<6} {boot:<24} {seconds:>8} {up:>6} {interrupts:>11} {hcalls:>9} {mmio:>9} {kills:>6} {upgrades:>6} {restarts:>8}"
    )
}

/// Good boots of all, by what was done to the daemon and by the values of the other axes.
pub fn table(verdicts: &[(Boot, bool)]) -> String {
    let modes = IC_MODES.map(|m| (0, m.name().to_owned()));
    let vcpus = VCPUS.map(|n| (1, format!("{n} vCPU")));
    let cpus = CPUS.map(|c| (2, c.name().to_owned()));
    let values: Vec<(usize, String)> = modes.into_iter().chain(vcpus).chain(cpus).collect();
    let mut ways: Vec<Way> = verdicts.iter().map(|(boot, _)| boot.way).collect();
    ways.dedup();
    let mut text = format!("{:<14}", "good/all");
    for (_, value) in &values {
        text += &format!("{value:>9}");
    }
    for way in ways {
        text += &format!("\n{:<14}", way.name());
        for (axis, value) in &values {
            let here = |b: &Boot| b.way == way && axes(b)[*axis] == *value;
            let cell: Vec<bool> = verdicts
                .iter()
                .filter(|(boot, _)| here(boot))
                .map(|(_, good)| *good)
                .collect();
            let good = cell.iter().filter(|good| **good).count();
            let cell = if cell.is_empty() {
                "-".to_owned()
            } else {
                format!("{good}/{}", cell.len())
            };
            text += &format!("{cell:>9}");
        }
    }
    text + "\n"
}

/// Its values on the axes of the table.
fn axes(boot: &Boot) -> [String; 3] {
    [
        boot.ic_mode.name().to_owned(),
        format!("{} vCPU", boot.vcpus),
        boot.cpu.name().to_owned(),
    ]
}

/// Why a boot failed, its last lines, and where all of them are.
pub fn failure(over: &Over) -> String {
    let mut text = String::new();
    for complaint in &over.complaints {
        text += &format!("       {complaint}\n");
    }
    let log = fs::read(over.folder.log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let of = |who: &str| {
        let of_who = |l: &&str| l.trim_start().split(' ').nth(1) == Some(who);
        let lines: Vec<&str> = log.lines().filter(of_who).collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    };
    for (who, title) in [
        ("console:", "console"),
        ("errors:", "QEMU, rig and daemon"),
        ("run:", "this program"),
    ] {
        text += &format!("    -- the last of {title}\n{}\n", of(who));
    }
    text + &format!("    -- everything: {}", place(&over.folder))
}

/// Where the log of a boot is.
fn place(folder: &Folder) -> String {
    let log = folder.log();
    fs::canonicalize(&log).unwrap_or(log).display().to_string()
}

/// With commas between thousands.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::gating;

    #[test]
    fn the_table_has_a_row_for_each_way_and_counts_what_failed() {
        let mut verdicts: Vec<(Boot, bool)> = gating().into_iter().map(|b| (b, true)).collect();
        verdicts[0].1 = false;
        let table = table(&verdicts);
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 5, "{table}");
        assert!(rows[1].starts_with("plain"), "{table}");
        assert_eq!(rows[1].matches("0/1").count(), 2, "{table}");
        assert_eq!(rows[1].matches("1/2").count(), 1, "{table}");
        assert_eq!(rows[2].matches("1/1").count(), 7, "{table}");
    }

    #[test]
    fn thousands_are_grouped() {
        let grouped: Vec<String> = [0, 999, 1_000, 1_234_567].map(grouped).to_vec();
        assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
    }
}
