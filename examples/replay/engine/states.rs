//! The XICS recordings that show the whole state after each step:
//! `operation [-> result] | CPPR+XISR/pending/MFRR/line of each vCPU | number:priority/status of sources`.
//!
//! `xics-scenarios` has named scenarios, each from the state its first line describes, and lists only sources
//! that are not ff/0; `xics-random` is one long run and lists all. Numbers 1200-12ff are level-sensitive.

use std::collections::BTreeSet;

use super::bench::Bench;
use super::guest::{IcMode, RtasCall, Shape, Start};
use super::report::{Report, Verdict};
use super::{AtLine, ReplayError, hex, syntax};

const RAM: u64 = 256 << 20;
const H_EOI: u64 = 0x64;
const H_CPPR: u64 = 0x68;
const H_IPI: u64 = 0x6c;
const H_IPOLL: u64 = 0x70;
const H_XIRR: u64 = 0x74;
const OPEN: u64 = 0xff;
/// In this scenario the recorder closed vCPU 1 before the pulse, and did not say so: the states show it.
const CLOSES_UNSEEN: &str = "S07";

struct Run {
    bench: Bench,
    sources: BTreeSet<u32>,
    /// List every source, or only those that are not ff/0.
    all: bool,
    scenario: String,
}

/// Replays one file.
pub fn replay(
    name: &str,
    text: &str,
    strict: bool,
    start: &mut Start<'_>,
) -> Result<Report, ReplayError> {
    let steps = || {
        text.lines()
            .enumerate()
            .map(|(i, l)| (i + 1, l))
            .filter(|(_, l)| !l.starts_with('#'))
    };
    let vcpus = steps()
        .find_map(|(_, l)| Some(l.split('|').nth(1)?.split_whitespace().count()))
        .unwrap_or(0);
    let servers = vcpus as u32;
    let shape = Shape {
        ic_mode: IcMode::Xics,
        servers,
        vcpus: (0..servers).collect(),
        ram: RAM,
    };
    let mut bench = Bench::new(start(&shape).at(1)?, shape);
    let mut sources = BTreeSet::new();
    for (no, line) in steps() {
        for word in line.split('|').nth(2).unwrap_or("").split_whitespace() {
            let number = word.split(':').next().unwrap_or("");
            sources.insert(hex(number, no)? as u32);
        }
    }
    for &n in &sources {
        bench.claim(n, (0x1200..0x1300).contains(&n)).at(1)?;
    }
    // Only scenarios have title lines.
    let all = steps().all(|(_, l)| l.trim().is_empty() || l.contains('|'));
    let mut run = Run {
        bench,
        sources,
        all,
        scenario: String::new(),
    };
    let mut report = Report::default();
    if all {
        run.begin().at(1)?;
    }
    for (no, line) in steps().filter(|(_, l)| !l.trim().is_empty()) {
        let Some((left, states)) = line.split_once('|') else {
            run.scenario = line.split_whitespace().next().unwrap_or("").to_owned();
            run.begin().at(no)?;
            continue;
        };
        let (op, result) = left.split_once("->").unwrap_or((left, ""));
        let got = run.perform(no, op.trim())?;
        let got = format!("{got} | {}", run.states(no)?);
        let want = format!(
            "{} | {}",
            result.trim(),
            states.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        let op = format!("{} {}", run.scenario, op.trim());
        report.count(
            format_args!("{name}:{no}"),
            op.trim(),
            Verdict::plain(want, got),
            strict,
        );
    }
    report.switches = run.bench.guest.switches();
    Ok(report)
}

impl Run {
    /// The state every scenario starts from: after reset, all vCPUs open.
    fn begin(&mut self) -> Result<(), super::GuestError> {
        self.bench.reset()?;
        for server in self.bench.shape.vcpus.clone() {
            self.bench
                .guest
                .hcall(server, H_CPPR, [OPEN, 0, 0, 0, 0, 0, 0, 0, 0])?;
        }
        Ok(())
    }

    fn call(
        &mut self,
        no: usize,
        server: u32,
        opcode: u64,
        r4: u64,
        r5: u64,
    ) -> Result<[u64; 9], ReplayError> {
        let reply = self
            .bench
            .guest
            .hcall(server, opcode, [r4, r5, 0, 0, 0, 0, 0, 0, 0])
            .at(no)?;
        if reply.ret == 0 {
            Ok(reply.args)
        } else {
            Err(syntax(no, format!("hypercall returned {}", reply.ret)))
        }
    }

    fn rtas(&mut self, no: usize, call: RtasCall, args: &[u32]) -> Result<(), ReplayError> {
        match self.bench.guest.rtas(0, call, args, 1).at(no)?[..] {
            [0, ..] => Ok(()),
            _ => Err(syntax(no, "RTAS call failed")),
        }
    }

    /// Does one step; the result as the file writes it.
    fn perform(&mut self, no: usize, op: &str) -> Result<String, ReplayError> {
        let words: Vec<&str> = op.split_whitespace().collect();
        let num = |i: usize| match words.get(i) {
            Some(w) => hex(w.trim_start_matches("srv"), no),
            None => Err(syntax(no, "argument missing")),
        };
        if let Some(server) = words.first().and_then(|w| w.strip_prefix("cpu")) {
            let server = hex(server, no)? as u32;
            return self.hypercall(
                no,
                server,
                words.get(1).copied().unwrap_or(""),
                &words,
                &num,
            );
        }
        match words[..] {
            ["set-xive", ..] => self.rtas(
                no,
                RtasCall::SetXive,
                &[num(1)? as u32, num(2)? as u32, num(3)? as u32],
            )?,
            ["int-on", ..] => self.rtas(no, RtasCall::IntOn, &[num(1)? as u32])?,
            ["int-off", ..] => self.rtas(no, RtasCall::IntOff, &[num(1)? as u32])?,
            ["pulse", ..] => {
                if self.scenario == CLOSES_UNSEEN {
                    self.call(no, 1, H_CPPR, 0, 0)?;
                }
                self.bench.irq(num(1)? as u32, true).at(no)?;
            }
            [name @ ("level0" | "level1"), ..] => {
                self.bench.irq(num(1)? as u32, name == "level1").at(no)?
            }
            // Without a vCPU named, the call comes from vCPU 0.
            ["IPI", ..] => {
                return self.hypercall(
                    no,
                    0,
                    "IPI",
                    &["cpu0", words[0], words[1], words[2]],
                    &|i| num(i - 1),
                );
            }
            _ => return Err(syntax(no, format!("unknown step {op}"))),
        }
        Ok(String::new())
    }

    fn hypercall(
        &mut self,
        no: usize,
        server: u32,
        name: &str,
        words: &[&str],
        num: &dyn Fn(usize) -> Result<u64, ReplayError>,
    ) -> Result<String, ReplayError> {
        match name.trim_start_matches("H_") {
            "XIRR" => return Ok(format!("{:08x}", self.call(no, server, H_XIRR, 0, 0)?[0])),
            "EOI" => self.call(no, server, H_EOI, num(2)?, 0)?,
            "CPPR" => self.call(no, server, H_CPPR, num(2)?, 0)?,
            "IPI" => self.call(no, server, H_IPI, num(2)?, num(3)?)?,
            "IPOLL" => {
                let args = self.call(no, server, H_IPOLL, num(2)?, 0)?;
                return Ok(format!("{:08x} {:02x}", args[0], args[1]));
            }
            _ => return Err(syntax(no, format!("unknown step {}", words.join(" ")))),
        };
        Ok(String::new())
    }

    /// The whole state, as the file writes it.
    fn states(&mut self, no: usize) -> Result<String, ReplayError> {
        let mut text = Vec::new();
        for server in self.bench.shape.vcpus.clone() {
            let icp = self.bench.guest.icp(server).at(no)?;
            let line = u8::from(self.bench.guest.line(server).at(no)?);
            text.push(format!(
                "{:08x}/{:02x}/{:02x}/{line}",
                icp.xirr, icp.pending, icp.mfrr
            ));
        }
        text.push("|".to_owned());
        for &n in &self.sources {
            let s = self.bench.guest.ics(n).at(no)?;
            if self.all || (s.prio, s.status) != (0xff, 0) {
                text.push(format!("{n:x}:{:02x}/{:x}", s.prio, s.status));
            }
        }
        Ok(text.join(" "))
    }
}
