//! Oracle traces: `[@SERVER] OP ARGS => RESULT [; NAME] [odd:REASON]`.
//!
//! The header gives the machine's shape. Arguments and results are hexadecimal, but for return codes and
//! counts. What the machine does without its interrupt controllers (start, stop, plain memory) is done
//! here, so that a trace can be followed from its first line to its last.

use std::collections::BTreeSet;

use super::bench::Bench;
use super::guest::{IcMode, Outcome, RtasCall, Shape, Space, Start};
use super::report::{Report, Verdict};
use super::{AtLine, H_INT_ESB, H_XIRR_X, ReplayError, hex, rows, syntax};

const RAM: u64 = 256 << 20;
/// What the recorder's guest leaves in result cells nobody wrote.
const NOT_WRITTEN: u32 = 0xdead_beef;
/// H_CAS while other vCPUs run; the VMM's answer.
const H_MULTI_THREADS_ACTIVE: i64 = -9005;

/// What the header says.
struct Header {
    shape: Shape,
    sources: Vec<(u32, bool)>,
}

fn header(text: &str) -> Result<Header, ReplayError> {
    let mut shape = Shape {
        ic_mode: IcMode::Dual,
        servers: 0,
        vcpus: Vec::new(),
        ram: RAM,
    };
    let mut sources = Vec::new();
    for (no, line) in numbered(text).filter(|(_, l)| l.starts_with("# ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.get(1..).unwrap_or_default() {
            ["settings", mode, ..] => {
                shape.ic_mode = match *mode {
                    "ic-mode=xics" => IcMode::Xics,
                    "ic-mode=xive" => IcMode::Xive,
                    "ic-mode=dual" => IcMode::Dual,
                    _ => return Err(syntax(no, format!("unknown {mode}"))),
                }
            }
            ["vcpus", list @ ..] => {
                shape.vcpus = list
                    .iter()
                    .map(|w| Ok(hex(w, no)? as u32))
                    .collect::<Result<_, _>>()?;
            }
            ["interrupt-server-ranges" | "xive-lisn-ranges", _, count, ..] => {
                shape.servers = hex(count, no)? as u32
            }
            ["source", lisn, kind, ..] => sources.push((hex(lisn, no)? as u32, *kind == "lsi")),
            _ => {}
        }
    }
    if shape.vcpus.is_empty() || shape.servers == 0 {
        return Err(syntax(1, "the header names no vCPUs"));
    }
    Ok(Header { shape, sources })
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, l)| (i + 1, l))
}

/// One operation of a trace.
struct Op<'a> {
    no: usize,
    server: u32,
    name: &'a str,
    words: &'a [&'a str],
    want: &'a str,
}

impl Op<'_> {
    fn word(&self, i: usize) -> Result<&str, ReplayError> {
        self.words
            .get(i)
            .copied()
            .ok_or_else(|| syntax(self.no, format!("{} lacks an argument", self.name)))
    }

    fn num(&self, i: usize) -> Result<u64, ReplayError> {
        hex(self.word(i)?, self.no)
    }

    fn num_or(&self, i: usize, default: u64) -> Result<u64, ReplayError> {
        if i < self.words.len() {
            self.num(i)
        } else {
            Ok(default)
        }
    }

    fn nums(&self, from: usize) -> Result<Vec<u64>, ReplayError> {
        (from..self.words.len()).map(|i| self.num(i)).collect()
    }
}

/// The machine while a trace runs.
struct Run {
    bench: Bench,
    online: BTreeSet<u32>,
}

/// Replays one trace.
pub fn replay(
    name: &str,
    text: &str,
    strict: bool,
    start: &mut Start<'_>,
) -> Result<Report, ReplayError> {
    let header = header(text)?;
    let boot = header.shape.vcpus[0];
    let mut bench = Bench::new(start(&header.shape).at(1)?, header.shape.clone());
    if header.shape.ic_mode != IcMode::Xics {
        for server in 0..header.shape.servers {
            bench.claim(server, false).at(1)?;
        }
    }
    for (lisn, lsi) in header.sources {
        bench.claim(lisn, lsi).at(1)?;
    }
    let mut run = Run {
        bench,
        online: BTreeSet::from([boot]),
    };
    let mut report = Report::default();
    for (no, line) in numbered(text).filter(|(_, l)| !l.starts_with('#') && l.contains(" => ")) {
        let (body, note) = line.split_once(" ;").unwrap_or((line, ""));
        let (left, want) = body
            .split_once(" => ")
            .ok_or_else(|| syntax(no, "no result"))?;
        let words: Vec<&str> = left.split_whitespace().collect();
        let (server, words) = match words.split_first() {
            Some((first, rest)) if first.starts_with('@') => (hex(&first[1..], no)? as u32, rest),
            _ => (boot, &words[..]),
        };
        let (&op, words) = words
            .split_first()
            .ok_or_else(|| syntax(no, "no operation"))?;
        let mut verdict = run.perform(&Op {
            no,
            server,
            name: op,
            words,
            want: want.trim(),
        })?;
        verdict.odd = note
            .split_whitespace()
            .find_map(|w| w.strip_prefix("odd:"))
            .map(str::to_owned);
        report.count(format_args!("{name}:{no}"), left, verdict, strict);
    }
    Ok(report)
}

impl Run {
    /// Does one operation and says what came of it.
    fn perform(&mut self, op: &Op<'_>) -> Result<Verdict, ReplayError> {
        if op.name == "hcall" {
            return self.hcall(op);
        }
        let got = match op.name {
            "rtas" => self.rtas(op)?,
            "esbload" | "esbstore" | "timaload" | "timastore" | "load" | "store" | "burst" => {
                self.mmio(op)?
            }
            "memread" | "memwrite" | "memfill" => self.memory(op)?,
            "irqcheck" => u8::from(self.bench.guest.line(op.server).at(op.no)?).to_string(),
            "pulse" => ok(self.bench.irq(op.num(0)? as u32, true)).at(op.no)?,
            "line" => ok(self.bench.irq(op.num(0)? as u32, op.num(1)? != 0)).at(op.no)?,
            "msion" => format!("1 {:x}", self.bench.msi_on(op.num(0)?).at(op.no)?),
            "msioff" => match self.bench.msi_off(op.num(0)?).at(op.no)? {
                Some(lisn) => format!("0 {lisn:x}"),
                None => return Err(syntax(op.no, "msioff of a device without an MSI")),
            },
            "start" => {
                self.online.insert(op.num(0)? as u32);
                "0".to_owned()
            }
            "stop" => {
                self.online.remove(&(op.num(0)? as u32));
                "0".to_owned()
            }
            "cas" => self.cas(op)?,
            "reboot" => {
                self.online = BTreeSet::from([self.bench.shape.vcpus[0]]);
                ok(self.bench.reset()).at(op.no)?
            }
            other => {
                return Err(syntax(
                    op.no,
                    format!("operation {other} cannot be replayed"),
                ));
            }
        };
        Ok(Verdict::plain(op.want, got))
    }

    fn hcall(&mut self, op: &Op<'_>) -> Result<Verdict, ReplayError> {
        let opcode = op.num(0)?;
        let mut args = [0; 9];
        for (cell, value) in args.iter_mut().zip(op.nums(1)?) {
            *cell = value;
        }
        let mut reply = self.bench.guest.hcall(op.server, opcode, args).at(op.no)?;
        if opcode == H_XIRR_X && reply.ret == 0 {
            reply.args[1] = 0; // a time stamp, recorded as 0
        }
        let mut got = reply.ret.to_string();
        for value in &reply.args[..5] {
            got += &format!(" {value:x}");
        }
        let mut verdict = Verdict::plain(op.want, got);
        if opcode == H_INT_ESB {
            let mut words: Vec<String> = op.want.split_whitespace().map(str::to_owned).collect();
            if let [ret, r4, ..] = &mut words[..] {
                let (value, row) =
                    rows::h_int_esb(opcode, args[0], ret.parse().unwrap_or(-1), hex(r4, op.no)?);
                *r4 = format!("{value:x}");
                verdict.row = row;
            }
            verdict.want = words.join(" ");
        }
        Ok(verdict)
    }

    fn rtas(&mut self, op: &Op<'_>) -> Result<String, ReplayError> {
        let name = op.word(0)?;
        let call =
            RtasCall::parse(name).ok_or_else(|| syntax(op.no, format!("unknown call {name}")))?;
        let nret = op.num(1)? as u32;
        let args: Vec<u32> = op.nums(2)?.into_iter().map(|v| v as u32).collect();
        let mut cells = self
            .bench
            .guest
            .rtas(op.server, call, &args, nret)
            .at(op.no)?;
        cells.resize((nret as usize).max(1), NOT_WRITTEN);
        let mut got = (cells[0] as i32).to_string();
        for cell in &cells[1..] {
            got += &format!(" {cell:x}");
        }
        Ok(got)
    }

    fn mmio(&mut self, op: &Op<'_>) -> Result<String, ReplayError> {
        let esb = |lisn: u64, page: u64, offset: u64| (lisn << 17) + (page << 16) + offset;
        match op.name {
            "esbload" => self.load(
                op,
                Space::Esb,
                esb(op.num(0)?, op.num(1)?, op.num(2)?),
                op.num_or(3, 8)?,
            ),
            "timaload" => self.load(
                op,
                Space::Tima,
                (op.num_or(2, 2)? << 16) + op.num(0)?,
                op.num(1)?,
            ),
            "esbstore" => {
                let at = esb(op.num(0)?, op.num(1)?, op.num(2)?);
                self.store(op, Space::Esb, at, op.num_or(4, 8)?, op.num(3)?)
            }
            "timastore" => {
                let at = (op.num_or(3, 2)? << 16) + op.num(0)?;
                self.store(op, Space::Tima, at, op.num(1)?, op.num(2)?)
            }
            "burst" => {
                let (trigger, eoi) = (esb(op.num(0)?, 0, 0), esb(op.num(0)?, 1, 0));
                for _ in 0..op.num(1)? {
                    self.store(op, Space::Esb, trigger, 8, 0)?;
                    self.load(op, Space::Esb, eoi, 8)?;
                }
                Ok("ok".to_owned())
            }
            _ => self.raw(op),
        }
    }

    /// `load` and `store` by guest address.
    fn raw(&mut self, op: &Op<'_>) -> Result<String, ReplayError> {
        let (address, size) = (op.num(0)?, op.num(1)?);
        let window = [
            (Space::Tima, Shape::TIMA_BASE, 0x40000),
            (Space::Esb, Shape::ESB_BASE, 0x4000_0000),
        ]
        .into_iter()
        .find(|(_, base, len)| (*base..base + len).contains(&address));
        match (window, op.name) {
            (Some((space, base, _)), "load") => self.load(op, space, address - base, size),
            (Some((space, base, _)), _) => self.store(op, space, address - base, size, op.num(2)?),
            (None, _) => Err(syntax(
                op.no,
                "raw access outside ESB and TIMA cannot be replayed",
            )),
        }
    }

    fn load(
        &mut self,
        op: &Op<'_>,
        space: Space,
        offset: u64,
        size: u64,
    ) -> Result<String, ReplayError> {
        let value = self
            .bench
            .guest
            .load(op.server, space, offset, size as u8)
            .at(op.no)?;
        Ok(format!("{value:0width$x}", width = 2 * size as usize))
    }

    fn store(
        &mut self,
        op: &Op<'_>,
        space: Space,
        offset: u64,
        size: u64,
        value: u64,
    ) -> Result<String, ReplayError> {
        ok(self
            .bench
            .guest
            .store(op.server, space, offset, size as u8, value))
        .at(op.no)
    }

    fn memory(&mut self, op: &Op<'_>) -> Result<String, ReplayError> {
        let gpa = op.num(0)?;
        let guest = &mut self.bench.guest;
        match op.name {
            "memread" => {
                let mut bytes = vec![0; op.num(1)?.min(4096) as usize];
                guest.mem_read(gpa, &mut bytes).at(op.no)?;
                Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
            }
            "memfill" => {
                ok(guest.mem_write(gpa, &vec![op.num(2)? as u8; op.num(1)? as usize])).at(op.no)
            }
            _ => {
                let digits = op.word(1)?;
                let byte =
                    |i: usize| hex(digits.get(i..i + 2).unwrap_or("?"), op.no).map(|v| v as u8);
                let bytes: Vec<u8> = (0..digits.len())
                    .step_by(2)
                    .map(byte)
                    .collect::<Result<_, _>>()?;
                ok(guest.mem_write(gpa, &bytes)).at(op.no)
            }
        }
    }

    /// Status, mode and byte 23 are the controllers'; the vector's other bytes are the machine's and are
    /// taken from the recording.
    fn cas(&mut self, op: &Op<'_>) -> Result<String, ReplayError> {
        let byte23 = match op.word(0)? {
            "xics" => 0,
            "xive" => 0x40,
            other => hex(other, op.no)? as u8,
        };
        if self.online.len() > 1 {
            let rest = op.want.split_once(' ').map_or("", |(_, rest)| rest);
            return Ok(format!("{H_MULTI_THREADS_ACTIVE} {rest}")
                .trim_end()
                .to_owned());
        }
        let reply = self.bench.cas(op.server, byte23).at(op.no)?;
        let recorded = op.want.split_once("ov5=").map_or("", |(_, v)| v);
        let ov5 = match (recorded.get(..46), recorded.get(48..)) {
            (Some(before), Some(after)) => format!("{before}{:02x}{after}", reply.byte23),
            _ => recorded.to_owned(),
        };
        Ok(format!(
            "{} {} ov5={ov5}",
            reply.ret,
            if reply.xive { "xive" } else { "xics" }
        ))
    }
}

fn ok(done: Outcome<()>) -> Outcome<String> {
    done.map(|()| "ok".to_owned())
}
