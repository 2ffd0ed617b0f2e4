//! Recordings of an operating system booting: one operation a line, its effects and its result below it.
//!
//! Compared after every operation: the result, which vCPUs' lines changed, and which words of the event
//! queues were written. The queues are found in guest memory: every page the guest has given to
//! H_INT_SET_QUEUE_CONFIG is kept in copy, so a write nobody recorded shows as well.
//!
//! Not in the recordings, and done here: CAS on a machine with XIVE only (before the first H_INT_* call that
//! succeeded). On a machine with both controllers the recorder wrote claims, frees and vCPU resets once for
//! each; they are done and counted once.

use std::collections::{BTreeMap, BTreeSet};

use super::bench::Bench;
use super::guest::{IcMode, RtasCall, Shape, Space, Start};
use super::report::{Report, Verdict};
use super::{AtLine, H_INT_ESB, H_INT_SET_QUEUE_CONFIG, H_XIRR_X, ReplayError, hex, rows, syntax};

const RAM: u64 = 512 << 20;
const H_FUNCTION: i64 = -2;
/// Largest queue whose pages are watched; Linux uses 16 (64 KiB).
const WATCHED: u64 = 24;
/// Bytes of a queue compared at once.
const BLOCK: usize = 512;

/// One operation with what is indented below it.
struct Op<'a> {
    no: usize,
    line: &'a str,
    words: Vec<&'a str>,
    /// Level of each vCPU's line after its last recorded change.
    lines: BTreeMap<u32, bool>,
    /// Queue entries: address and value.
    dma: Vec<(u64, u32)>,
    /// Words of the result.
    ret: Vec<&'a str>,
}

impl Op<'_> {
    fn word(&self, i: usize) -> Result<&str, ReplayError> {
        self.words
            .get(i)
            .copied()
            .ok_or_else(|| syntax(self.no, "a word is missing"))
    }

    fn num(&self, i: usize) -> Result<u64, ReplayError> {
        hex(self.word(i)?, self.no)
    }

    fn dec(&self, i: usize) -> Result<u32, ReplayError> {
        decimal(self.word(i)?, self.no)
    }

    fn ret(&self, i: usize) -> Result<u64, ReplayError> {
        hex(self.ret.get(i).copied().unwrap_or("?"), self.no)
    }
}

fn decimal(word: &str, no: usize) -> Result<u32, ReplayError> {
    word.parse()
        .map_err(|_| syntax(no, format!("not a number: {word}")))
}

fn parse(text: &str) -> Result<Vec<Op<'_>>, ReplayError> {
    let mut ops: Vec<Op<'_>> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let no = i + 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with('#') || words.is_empty() {
            continue;
        }
        if !line.starts_with(' ') {
            ops.push(Op {
                no,
                line,
                words,
                lines: BTreeMap::new(),
                dma: Vec::new(),
                ret: Vec::new(),
            });
            continue;
        }
        let op = ops
            .last_mut()
            .ok_or_else(|| syntax(no, "an effect before any operation"))?;
        match words[..] {
            ["line", server, level] => {
                op.lines.insert(decimal(server, no)?, level != "0");
            }
            ["dma", address, value] => op.dma.push((hex(address, no)?, hex(value, no)? as u32)),
            ["ret", ref rest @ ..] => op.ret = rest.to_vec(),
            ["+", ..] => {} // inside the controller that was recorded
            _ => return Err(syntax(no, format!("unknown effect {line}"))),
        }
    }
    Ok(ops)
}

fn shape(ops: &[Op<'_>]) -> Result<Shape, ReplayError> {
    let has = |kind| {
        ops.iter()
            .any(|o| o.words.first() == Some(&"claim") && o.words.get(1) == Some(&kind))
    };
    let ic_mode = match (has("xics"), has("xive")) {
        (true, true) => IcMode::Dual,
        (false, true) => IcMode::Xive,
        _ => IcMode::Xics,
    };
    let (mut vcpus, mut servers) = (Vec::new(), 0);
    for op in ops {
        match op.words.first() {
            Some(&"cpu-reset") => {
                let server = op.dec(2)?;
                servers = servers.max(server + 1);
                if !vcpus.contains(&server) {
                    vcpus.push(server);
                }
            }
            Some(&"activate") => servers = servers.max(op.dec(2)?),
            _ => {}
        }
    }
    Ok(Shape {
        ic_mode,
        servers,
        vcpus,
        ram: RAM,
    })
}

struct Run {
    bench: Bench,
    lines: Vec<bool>,
    /// Pages given to queues, by address, as last seen.
    queues: BTreeMap<u64, Vec<u8>>,
    /// Where a queue is read to be compared.
    now: Vec<u8>,
    /// Number and controllers that hold it.
    claims: BTreeMap<u32, BTreeSet<String>>,
    xive: bool,
    cas_done: bool,
}

/// Replays one recording.
pub fn replay(
    name: &str,
    text: &str,
    strict: bool,
    start: &mut Start<'_>,
) -> Result<Report, ReplayError> {
    let ops = parse(text)?;
    let shape = shape(&ops)?;
    let mut run = Run {
        lines: vec![false; shape.vcpus.len()],
        xive: shape.ic_mode == IcMode::Xive,
        bench: Bench::new(start(&shape).at(1)?, shape),
        queues: BTreeMap::new(),
        now: Vec::new(),
        claims: BTreeMap::new(),
        cas_done: false,
    };
    let mut report = Report::default();
    for op in &ops {
        let Some(mut verdict) = run.perform(op)? else {
            continue;
        };
        verdict.want += &run.recorded_effects(op);
        verdict.got += &run.observed_effects(op.no)?;
        report.count(format_args!("{name}:{}", op.no), op.line, verdict, strict);
    }
    report.switches = run.bench.guest.switches();
    Ok(report)
}

impl Run {
    /// Does one operation. None: the second half of one that was done already.
    fn perform(&mut self, op: &Op<'_>) -> Result<Option<Verdict>, ReplayError> {
        let verdict = match op.word(0)? {
            "hcall" => self.hcall(op)?,
            "rtas" => self.rtas(op)?,
            "load" => {
                let size = op.num(4)? as u8;
                let value = self
                    .bench
                    .guest
                    .load(op.dec(1)?, space(op)?, op.num(3)?, size)
                    .at(op.no)?;
                Verdict::plain(format!("{:x}", op.ret(0)?), format!("{value:x}"))
            }
            "store" => {
                let (size, value) = (op.num(4)? as u8, op.num(5)?);
                self.bench
                    .guest
                    .store(op.dec(1)?, space(op)?, op.num(3)?, size, value)
                    .at(op.no)?;
                Verdict::plain("", "")
            }
            "irq" => {
                self.bench
                    .irq(op.num(2)? as u32, op.num(3)? != 0)
                    .at(op.no)?;
                Verdict::plain("", "")
            }
            "claim" | "free" => return self.claim_or_free(op),
            "cpu-reset" => {
                if self.second_half(op)? {
                    return Ok(None);
                }
                self.bench.guest.vcpu_reset(op.dec(2)?).at(op.no)?;
                Verdict::plain("", "")
            }
            "reset" => {
                self.bench.reset().at(op.no)?;
                self.xive = self.bench.shape.ic_mode == IcMode::Xive;
                self.cas_done = false;
                Verdict::plain("", "")
            }
            "activate" => return self.activate(op),
            "deactivate" => return Ok(None),
            other => return Err(syntax(op.no, format!("unknown operation {other}"))),
        };
        Ok(Some(verdict))
    }

    /// On a machine with both controllers, is this the line for the second one?
    fn second_half(&self, op: &Op<'_>) -> Result<bool, ReplayError> {
        Ok(self.bench.shape.ic_mode == IcMode::Dual && op.word(1)? == "xive")
    }

    fn claim_or_free(&mut self, op: &Op<'_>) -> Result<Option<Verdict>, ReplayError> {
        let (kind, lisn) = (op.word(1)?.to_owned(), op.num(2)? as u32);
        let held = self.claims.entry(lisn).or_default();
        if op.word(0)? == "free" {
            let last = held.remove(&kind) && held.is_empty();
            if last {
                self.bench.guest.free(lisn).at(op.no)?;
            }
            return Ok(last.then(|| Verdict::plain("", "")));
        }
        let want = op.words.last().copied().unwrap_or("");
        if !held.is_empty() && !held.contains(&kind) {
            held.insert(kind);
            return Ok(None);
        }
        let done = self.bench.claim(lisn, op.num(3)? != 0).at(op.no)?;
        if done {
            held.insert(kind);
        }
        Ok(Some(Verdict::plain(want, if done { "0" } else { "-16" })))
    }

    /// The machine switches controllers: at CAS, or by itself at power-on and reset.
    fn activate(&mut self, op: &Op<'_>) -> Result<Option<Verdict>, ReplayError> {
        let xive = op.word(1)? == "xive";
        if xive == self.xive {
            return Ok(None);
        }
        self.xive = xive;
        self.cas(op, xive).map(Some)
    }

    fn cas(&mut self, op: &Op<'_>, xive: bool) -> Result<Verdict, ReplayError> {
        self.cas_done = true;
        let boot = self.bench.shape.vcpus.first().copied().unwrap_or(0);
        let reply = self.bench.cas_for(boot, xive).at(op.no)?;
        Ok(Verdict::plain(
            format!("0 {xive}"),
            format!("{} {}", reply.ret, reply.xive),
        ))
    }

    fn hcall(&mut self, op: &Op<'_>) -> Result<Verdict, ReplayError> {
        let (server, opcode) = (op.dec(1)?, op.num(2)?);
        let mut args = [0; 9];
        for i in 3..op.words.len().min(12) {
            args[i - 3] = op.num(i)?;
        }
        let mut want: Vec<u64> = (0..op.ret.len())
            .map(|i| op.ret(i))
            .collect::<Result<_, _>>()?;
        let ret = want.first().copied().unwrap_or(0) as i64;
        let xive_call = (0x3a8..=0x3d0).contains(&opcode);
        if xive_call
            && self.bench.shape.ic_mode == IcMode::Xive
            && !self.cas_done
            && ret != H_FUNCTION
        {
            self.cas(op, true)?;
        }
        let reply = self.bench.guest.hcall(server, opcode, args).at(op.no)?;
        if opcode == H_INT_SET_QUEUE_CONFIG && reply.ret == 0 {
            self.watch(op.no, args[3], args[4])?;
        }
        let mut got = vec![reply.ret as u64];
        got.extend(&reply.args[..want.len().saturating_sub(1).min(9)]);
        if opcode == H_XIRR_X && want.len() > 2 {
            (want[2], got[2]) = (0, 0); // a time stamp
        }
        let mut row = None;
        if opcode == H_INT_ESB && want.len() > 1 {
            (want[1], row) = rows::h_int_esb(opcode, args[0], ret, want[1]);
        }
        let text = |v: &[u64]| {
            v.iter()
                .map(|x| format!("{x:x}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        Ok(Verdict {
            row,
            ..Verdict::plain(text(&want), text(&got))
        })
    }

    fn rtas(&mut self, op: &Op<'_>) -> Result<Verdict, ReplayError> {
        let name = op.word(2)?;
        let call =
            RtasCall::parse(name).ok_or_else(|| syntax(op.no, format!("unknown call {name}")))?;
        let nret = if call == RtasCall::GetXive { 3 } else { 1 };
        let args: Vec<u32> = (0..op.num(3)? as usize)
            .map(|i| Ok(op.num(4 + i)? as u32))
            .collect::<Result<_, _>>()?;
        let cells = self
            .bench
            .guest
            .rtas(op.dec(1)?, call, &args, nret)
            .at(op.no)?;
        // Beyond the results that are meant the recording shows what the registers held.
        let meant = if op.ret(0)? == 0 { nret as usize } else { 1 };
        let want = (0..meant)
            .map(|i| Ok(format!("{:x}", op.ret(i)? as u32)))
            .collect::<Result<Vec<_>, ReplayError>>()?;
        let got: Vec<String> = cells.iter().map(|c| format!("{c:x}")).collect();
        Ok(Verdict::plain(want.join(" "), got.join(" ")))
    }

    fn watch(&mut self, no: usize, page: u64, size: u64) -> Result<(), ReplayError> {
        if (12..=WATCHED).contains(&size) {
            let mut copy = vec![0; 1 << size];
            self.bench.guest.mem_read(page, &mut copy).at(no)?;
            self.queues.insert(page, copy);
        }
        Ok(())
    }

    fn recorded_effects(&self, op: &Op<'_>) -> String {
        let mut text = String::new();
        for (i, server) in self.bench.shape.vcpus.iter().enumerate() {
            if let Some(&level) = op.lines.get(server).filter(|l| **l != self.lines[i]) {
                text += &format!(" line {server} {}", u8::from(level));
            }
        }
        let mut dma = op.dma.clone();
        dma.sort_unstable();
        for (address, value) in dma {
            text += &format!(" dma {address:x} {value:08x}");
        }
        text
    }

    fn observed_effects(&mut self, no: usize) -> Result<String, ReplayError> {
        let mut text = String::new();
        let lines = self.bench.lines().at(no)?;
        for (i, server) in self.bench.shape.vcpus.iter().enumerate() {
            if lines[i] != self.lines[i] {
                text += &format!(" line {server} {}", u8::from(lines[i]));
            }
        }
        self.lines = lines;
        for (&page, seen) in &mut self.queues {
            self.now.resize(seen.len(), 0);
            self.bench.guest.mem_read(page, &mut self.now).at(no)?;
            // Block by block first: nearly all of a queue is as it was.
            let blocks = self.now.chunks(BLOCK).zip(seen.chunks(BLOCK)).enumerate();
            for (b, (new, old)) in blocks.filter(|(_, (new, old))| new != old) {
                for (i, (new, _)) in entries(new)
                    .zip(entries(old))
                    .enumerate()
                    .filter(|(_, (new, old))| new != old)
                {
                    let address = page + (BLOCK * b + 4 * i) as u64;
                    text += &format!(" dma {address:x} {new:08x}");
                }
            }
            seen.copy_from_slice(&self.now);
        }
        Ok(text)
    }
}

/// The big-endian words of some bytes.
fn entries(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes
        .chunks(4)
        .map(|word| word.iter().fold(0, |v, b| v << 8 | u32::from(*b)))
}

fn space(op: &Op<'_>) -> Result<Space, ReplayError> {
    match op.word(2)? {
        "esb" => Ok(Space::Esb),
        "tima" => Ok(Space::Tima),
        other => Err(syntax(op.no, format!("unknown window {other}"))),
    }
}
