//! Whether a boot was good: what was heard and done during it, against what its way demands.

use std::time::Duration;

use crate::lines::{How, Said, Served, Stream, parse};
use crate::matrix::{Boot, IcMode, Way};

/// Status of a QEMU whose rig refused it.
pub const REFUSED: i32 = 77;

/// How a boot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// QEMU ended by itself, with this status.
    Exited(i32),
    /// QEMU died of this signal.
    Signal(i32),
    /// Nothing was said for so long.
    Silent(Duration),
    /// It was still talking after so long.
    TooLong(Duration),
    /// Enough was heard to fail it; nobody waited for more.
    Settled,
    /// The guest restarts more often than it was told to.
    Loops,
    /// It could not be started or watched.
    Broken(String),
}

/// What a boot has to show.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    pub boot: Boot,
    /// How often the guest was to start again.
    pub reboots: u32,
}

/// Everything that was heard and done during a boot.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub said: Vec<Said>,
    /// From QEMU's start to the guest's first userland.
    pub up: Option<Duration>,
    pub took: Duration,
    /// Who executed the data plane when userland was reached, if anybody asked.
    pub executor: Option<String>,
    pub kills: u64,
    pub upgrades: u64,
    /// Orders that could not be carried out: the guest's, ours.
    pub problems: Vec<String>,
    pub end: Option<End>,
}

impl Record {
    /// Takes note of a line; what it said, if it matters.
    pub fn hear(&mut self, at: Duration, stream: Stream, line: &str) -> Option<&Said> {
        let said = parse(stream, line)?;
        if matches!(said, Said::Up { .. }) {
            self.up.get_or_insert(at);
        }
        self.said.push(said);
        self.said.last()
    }

    /// How often userland was reached.
    pub fn ups(&self) -> u32 {
        let up = |s: &&Said| matches!(s, Said::Up { .. });
        self.said.iter().filter(up).count() as u32
    }

    /// The rig's summary.
    pub fn served(&self) -> Option<Served> {
        self.said.iter().rev().find_map(|s| match s {
            Said::Served(served) => Some(*served),
            _ => None,
        })
    }

    /// How many interrupts the guest counted in all its boots, those between CPUs included.
    pub fn interrupts(&self) -> Option<u64> {
        let counts = self.said.iter().filter_map(|s| match s {
            Said::Interrupts(count) => Some(count),
            _ => None,
        });
        counts.copied().reduce(|a, b| a + b)
    }

    /// What is wrong with it; nothing if the boot is good.
    pub fn complaints(&self, demands: Demands) -> Vec<String> {
        let mut wrong = Vec::new();
        self.judge_end(&mut wrong);
        self.judge_guest(demands, &mut wrong);
        wrong.extend(self.differences());
        self.judge_rig(demands.boot.way, &mut wrong);
        self.judge_executor(demands.boot.way, &mut wrong);
        wrong.extend(self.problems.iter().cloned());
        wrong
    }

    /// That shadow mode found any, and the first of them.
    pub fn differences(&self) -> Option<String> {
        let mut said = self.said.iter().filter_map(|s| match s {
            Said::Difference(what) => Some(what.as_str()),
            _ => None,
        });
        let first = said.next();
        let counted = self.served().map_or(0, |s| s.differences);
        // The rig stops telling them before it stops counting.
        let count = counted.max(said.count() as u64 + u64::from(first.is_some()));
        let first = first.unwrap_or("nobody says which");
        (count > 0).then(|| format!("{count} differences from QEMU: {first}"))
    }

    fn judge_end(&self, wrong: &mut Vec<String>) {
        let refused = self.said.iter().find_map(|s| match s {
            Said::Refused(why) => Some(why.as_str()),
            _ => None,
        });
        match (&self.end, refused) {
            (Some(End::Exited(0)), None) => {}
            (Some(End::Exited(REFUSED)), why) => {
                let why = why.unwrap_or("without saying why");
                wrong.push(format!("the rig refused this QEMU: {why}"));
            }
            (_, Some(why)) => wrong.push(format!("the rig refused, and QEMU went on: {why}")),
            (Some(End::Exited(status)), _) => {
                wrong.push(format!("QEMU exited with status {status}"))
            }
            (Some(End::Signal(signal)), _) => wrong.push(format!("QEMU died of signal {signal}")),
            (Some(End::Silent(time)), _) => wrong.push(format!("silent for {} s", time.as_secs())),
            (Some(End::TooLong(time)), _) => {
                wrong.push(format!("not over after {} s", time.as_secs()));
            }
            (Some(End::Settled), _) => {}
            (Some(End::Loops), _) => wrong.push("restarts again and again".to_owned()),
            (Some(End::Broken(why)), _) => wrong.push(why.clone()),
            (None, _) => wrong.push("never ended".to_owned()),
        }
    }

    fn judge_guest(&self, demands: Demands, wrong: &mut Vec<String>) {
        let mut steps = 0;
        let mut done = None;
        for said in &self.said {
            match said {
                Said::Step { how: How::Ok, .. } => steps += 1,
                Said::Step { name, how, details } => match how {
                    // One CPU sends no interrupts to another.
                    How::Skipped if demands.boot.vcpus == 1 => {}
                    How::Skipped => wrong.push(format!("step {name} was {details}")),
                    _ => wrong.push(format!("step {name} failed: {details}")),
                },
                Said::Done { failed } => done = Some(*failed),
                Said::Panic(line) | Said::Trouble(line) => wrong.push(format!("kernel: {line}")),
                Said::Garbled(line) => wrong.push(format!("cannot be read: {line}")),
                Said::Up { interrupts, cpus } => judge_up(demands.boot, interrupts, *cpus, wrong),
                Said::Figure { .. }
                | Said::Want(_)
                | Said::Interrupts(_)
                | Said::DaemonLost(_)
                | Said::Difference(_)
                | Said::Refused(_)
                | Said::Served(_) => {}
            }
        }
        match done {
            None => wrong.push(format!(
                "the guest never said DONE, after {}",
                self.last_word()
            )),
            Some(0) if steps == 0 => wrong.push("the guest is done and did nothing".to_owned()),
            Some(0) => {}
            Some(failed) => wrong.push(format!("the guest counts {failed} failed")),
        }
        let (ups, expected) = (self.ups(), demands.reboots + 1);
        if done.is_some() && ups != expected {
            wrong.push(format!("userland was reached {ups} times, not {expected}"));
        }
    }

    /// The last thing the guest did, for people who look for what stopped it.
    fn last_word(&self) -> String {
        let word = self.said.iter().rev().find_map(|s| match s {
            Said::Step { name, .. } => Some(format!("step {name}")),
            Said::Want(order) => Some(format!("it wanted {order}")),
            Said::Up { .. } => Some("userland was reached".to_owned()),
            _ => None,
        });
        word.unwrap_or_else(|| "nothing".to_owned())
    }

    fn judge_executor(&self, way: Way, wrong: &mut Vec<String>) {
        let expected = match way {
            Way::Plain => "front-end",
            Way::Remote => "daemon",
            _ => return,
        };
        if let Some(executor) = self.executor.as_ref().filter(|e| *e != expected) {
            wrong.push(format!("the {executor} executes, not the {expected}"));
        }
    }

    fn judge_restarts(&self, unasked: u64, wrong: &mut Vec<String>) {
        if unasked > 0 {
            let why = self.said.iter().find_map(|s| match s {
                Said::DaemonLost(why) => Some(why.as_str()),
                _ => None,
            });
            let why = why.unwrap_or("nobody says why");
            wrong.push(format!(
                "{unasked} daemons replaced that nobody killed: {why}"
            ));
        }
    }

    fn judge_rig(&self, way: Way, wrong: &mut Vec<String>) {
        if way == Way::Stock {
            return;
        }
        let Some(served) = self.served() else {
            // A QEMU that was killed or died has no chance to say it, and its end is told already.
            if self.end == Some(End::Exited(0)) {
                wrong.push("no summary of the rig's: did it serve at all?".to_owned());
            }
            return;
        };
        if served.hcalls == 0 {
            wrong.push("the rig served no hypercall".to_owned());
        }
        match way {
            Way::Killed => {
                if self.kills == 0 {
                    wrong.push("the daemon was never killed".to_owned());
                }
                if served.restarts == 0 {
                    wrong.push("no daemon was restarted".to_owned());
                }
            }
            Way::Upgraded => {
                if self.upgrades == 0 {
                    wrong.push("no daemon was upgraded".to_owned());
                }
                self.judge_restarts(served.restarts.saturating_sub(self.upgrades), wrong);
            }
            _ => self.judge_restarts(served.restarts, wrong),
        }
    }
}

/// The guest must have chosen the controller and found the CPUs that the boot is about.
fn judge_up(boot: Boot, interrupts: &str, cpus: u32, wrong: &mut Vec<String>) {
    let expected = match boot.ic_mode {
        IcMode::Xics => "xics",
        // Linux takes XIVE where it may choose.
        IcMode::Xive | IcMode::Dual => "xive",
    };
    if interrupts != expected {
        wrong.push(format!("the guest uses {interrupts}, not {expected}"));
    }
    if cpus != boot.vcpus {
        wrong.push(format!("the guest has {cpus} CPUs, not {}", boot.vcpus));
    }
}

#[cfg(test)]
mod tests;
