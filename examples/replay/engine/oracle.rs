//! Oracle traces: `[@SERVER] OP ARGS => RESULT [; NAME] [odd:REASON]`.
//!
//! The header gives the machine's shape. Arguments and results are hexadecimal, but for return codes and
//! counts. What the machine does without its interrupt controllers (start, stop, plain memory) is done
//! here, so that a trace can be followed from its first line to its last.

use std::collections::BTreeSet;

use super::bench::Bench;
use super::explain::{Models, explain};
use super::guest::{Guest, IcMode, Outcome, RtasCall, Shape, Space, Start};
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

/// An hcall's number; recordings write it as a number or by name.
fn opcode(word: &str, no: usize) -> Result<u64, ReplayError> {
    const NAMES: [(&str, u64); 17] = [
        ("H_EOI", 0x64),
        ("H_CPPR", 0x68),
        ("H_IPI", 0x6c),
        ("H_IPOLL", 0x70),
        ("H_XIRR", 0x74),
        ("H_XIRR_X", H_XIRR_X),
        ("H_INT_GET_SOURCE_INFO", 0x3a8),
        ("H_INT_SET_SOURCE_CONFIG", 0x3ac),
        ("H_INT_GET_SOURCE_CONFIG", 0x3b0),
        ("H_INT_GET_QUEUE_INFO", 0x3b4),
        ("H_INT_SET_QUEUE_CONFIG", 0x3b8),
        ("H_INT_GET_QUEUE_CONFIG", 0x3bc),
        ("H_INT_SET_OS_REPORTING_LINE", 0x3c0),
        ("H_INT_GET_OS_REPORTING_LINE", 0x3c4),
        ("H_INT_ESB", H_INT_ESB),
        ("H_INT_SYNC", 0x3cc),
        ("H_INT_RESET", 0x3d0),
    ];
    match NAMES.iter().find(|(name, _)| *name == word) {
        Some(&(_, number)) => Ok(number),
        None => hex(word, no),
    }
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

    /// A size that a guest's access can have.
    fn access(&self, size: u64) -> Result<u8, ReplayError> {
        match size {
            1 | 2 | 4 | 8 => Ok(size as u8),
            _ => Err(syntax(self.no, format!("no access has {size:x} bytes"))),
        }
    }

    fn nums(&self, from: usize) -> Result<Vec<u64>, ReplayError> {
        (from..self.words.len()).map(|i| self.num(i)).collect()
    }
}

/// The machine while a trace runs.
struct Run {
    bench: Bench,
    boot: u32,
    online: BTreeSet<u32>,
}

/// Replays one trace.
pub fn replay(
    name: &str,
    text: &str,
    strict: bool,
    start: &mut Start<'_>,
    models: &mut Models<'_>,
) -> Result<Report, ReplayError> {
    let header = header(text)?;
    let mut report = Report::default();
    let mut run = Run::new(&header, start(&header.shape).at(1)?)?;
    let mut verdicts = run.all(text)?;
    report.switches = run.bench.guest.switches();
    explain(&mut verdicts, &mut |rows| {
        Run::new(&header, models(&header.shape, rows).at(1)?)?.all(text)
    })?;
    for (step, verdict) in steps(text, run.boot).zip(verdicts) {
        let Step { no, left, .. } = step?;
        report.count(format_args!("{name}:{no}"), left, verdict, strict);
    }
    Ok(report)
}

/// A line of a trace, taken apart.
struct Step<'a> {
    no: usize,
    /// All before the result.
    left: &'a str,
    server: u32,
    words: Vec<&'a str>,
    want: &'a str,
    /// The recorder's mark.
    odd: Option<&'a str>,
}

/// The operations of a trace, up to `end`.
fn steps(text: &str, boot: u32) -> impl Iterator<Item = Result<Step<'_>, ReplayError>> {
    numbered(text)
        .filter(|(_, l)| !l.starts_with('#') && !l.trim().is_empty())
        .map(move |(no, line)| step(no, line, boot))
        .take_while(|s| !matches!(s, Ok(step) if step.words.first() == Some(&"end")))
}

fn step(no: usize, line: &str, boot: u32) -> Result<Step<'_>, ReplayError> {
    let (body, note) = line.split_once(" ;").unwrap_or((line, ""));
    // An operation without a result would go uncompared.
    let (left, want) = body
        .split_once(" =>")
        .ok_or_else(|| syntax(no, "an operation without a result"))?;
    let mut words: Vec<&str> = left.split_whitespace().collect();
    let server = match words.first().and_then(|w| w.strip_prefix('@')) {
        Some(server) => {
            words.remove(0);
            hex(server, no)? as u32
        }
        None => boot,
    };
    let odd = note.split_whitespace().find_map(|w| w.strip_prefix("odd:"));
    Ok(Step {
        no,
        left,
        server,
        words,
        want: want.trim(),
        odd,
    })
}

impl Run {
    /// A new machine with the header's sources.
    fn new(header: &Header, guest: Box<dyn Guest>) -> Result<Run, ReplayError> {
        let shape = &header.shape;
        let boot = shape.vcpus[0];
        let mut bench = Bench::new(guest, shape.clone());
        if shape.ic_mode != IcMode::Xics {
            for server in 0..shape.servers {
                bench.claim(server, false).at(1)?;
            }
        }
        for &(lisn, lsi) in &header.sources {
            bench.claim(lisn, lsi).at(1)?;
        }
        Ok(Run {
            bench,
            boot,
            online: BTreeSet::from([boot]),
        })
    }

    /// Does all operations and says what came of each.
    fn all(&mut self, text: &str) -> Result<Vec<Verdict>, ReplayError> {
        steps(text, self.boot)
            .map(|step| {
                let step = step?;
                let (&name, words) = step
                    .words
                    .split_first()
                    .ok_or_else(|| syntax(step.no, "no operation"))?;
                let mut verdict = self.perform(&Op {
                    no: step.no,
                    server: step.server,
                    name,
                    words,
                    want: step.want,
                })?;
                verdict.odd = step.odd.map(str::to_owned);
                Ok(verdict)
            })
            .collect()
    }

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
                self.online = BTreeSet::from([self.boot]);
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
        let opcode = opcode(op.word(0)?, op.no)?;
        let mut args = [0; 9];
        for (cell, value) in args.iter_mut().zip(op.nums(1)?) {
            *cell = value;
        }
        let mut reply = self.bench.guest.hcall(op.server, opcode, args).at(op.no)?;
        if opcode == H_XIRR_X {
            reply.args[1] = 0; // a time stamp; the recorder writes 0, whatever the call returned
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
        let size = op.access(size)?;
        let value = self.bench.load(op.server, space, offset, size).at(op.no)?;
        Ok(format!("{value:0width$x}", width = 2 * usize::from(size)))
    }

    fn store(
        &mut self,
        op: &Op<'_>,
        space: Space,
        offset: u64,
        size: u64,
        value: u64,
    ) -> Result<String, ReplayError> {
        let size = op.access(size)?;
        ok(self.bench.store(op.server, space, offset, size, value)).at(op.no)
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
                let len = op.num(1)?;
                if len > RAM {
                    return Err(syntax(op.no, "more than there is RAM"));
                }
                ok(guest.mem_write(gpa, &vec![op.num(2)? as u8; len as usize])).at(op.no)
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
