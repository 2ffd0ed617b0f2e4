//! A real daemon, spawned and driven through the front-end library, as a controller under test.
//!
//! Mapped: the front-end runs the data plane on shared pages. Remote: every call is a message. Alternate:
//! the executor changes every [`TURN`] operations, by quiesce and resume.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
pub use papr_intc_frontend::protocol::layout::Compat;
use papr_intc_frontend::protocol::layout::{self, Machine};
use papr_intc_frontend::protocol::papr::codes;
use papr_intc_frontend::protocol::wire::guest::mode;
use papr_intc_frontend::protocol::wire::handshake::query;
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};
use papr_intc_frontend::{Error, Executor, GuestRam, Intc, Launcher, Options, Vcpu};

use super::engine::guest::{
    CasReply, Guest, GuestError, IcMode, IcpState, IcsState, Outcome, Reply, RtasCall, Shape, Space,
};

/// Operations between two changes of the executor.
const TURN: u32 = 50;
/// How long the transitions of a quiesce may take, and the news of a line from the daemon.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who runs the data plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The front-end.
    Mapped,
    /// The daemon.
    Remote,
    /// Both in turn.
    Alternate,
}

/// A machine whose interrupt controllers are in another process.
pub struct DaemonGuest {
    intc: Intc,
    ram: Arc<GuestRam>,
    vcpus: BTreeMap<u32, Vcpu>,
    servers: u32,
    way: Way,
    executor: Executor,
    operations: u32,
    switches: u64,
    /// The daemon's picture of its state, until the next operation.
    pic: Option<String>,
}

impl From<Error> for GuestError {
    fn from(e: Error) -> GuestError {
        GuestError(e.to_string())
    }
}

impl DaemonGuest {
    /// Spawns `daemon` and builds a machine of this shape and compat level.
    pub fn start(
        shape: &Shape,
        compat: Compat,
        way: Way,
        daemon: &PathBuf,
    ) -> Outcome<Box<dyn Guest>> {
        let ic_mode = match shape.ic_mode {
            IcMode::Xics => layout::IcMode::Xics,
            IcMode::Xive => layout::IcMode::Xive,
            IcMode::Dual => layout::IcMode::Dual,
        };
        let mut machine = Machine::pseries(ic_mode, compat, shape.servers);
        (machine.sources, machine.xics_base) = (Shape::LISNS, Shape::XICS_BASE);
        (machine.esb_base, machine.end_base) = (Shape::ESB_BASE, Shape::END_BASE);
        machine.tima_base = Shape::TIMA_BASE;
        let executor = if way == Way::Remote {
            Executor::Daemon
        } else {
            Executor::FrontEnd
        };
        let options = Options {
            executor,
            name: "replay".to_owned(),
            ..Options::new(machine)
        };
        let ram =
            GuestRam::new(&[(0, shape.ram)]).map_err(|e| GuestError(format!("guest RAM: {e}")))?;
        let ram = Arc::new(ram);
        let launcher = Launcher::spawn(daemon, ["--log-level", "error"].map(Into::into).to_vec());
        let intc = Intc::start(options, launcher, Arc::clone(&ram), Arc::new(|_server| {}))?;
        let mut vcpus = BTreeMap::new();
        for &server in &shape.vcpus {
            let vcpu = intc.connect_vcpu(server)?;
            vcpu.set_time_base(|| 0);
            vcpus.insert(server, vcpu);
        }
        let servers = shape.servers;
        Ok(Box::new(DaemonGuest {
            intc,
            ram,
            vcpus,
            servers,
            way,
            executor,
            operations: 0,
            switches: 0,
            pic: None,
        }))
    }

    fn vcpu(&self, server: u32) -> Outcome<&Vcpu> {
        self.vcpus
            .get(&server)
            .ok_or_else(|| GuestError(format!("there is no vCPU {server}")))
    }

    /// Before an operation: what was seen is old, and it may be the other side's turn.
    fn operation(&mut self) -> Outcome<()> {
        self.pic = None;
        self.operations += 1;
        if self.way == Way::Alternate && self.operations.is_multiple_of(TURN) {
            self.executor = match self.executor {
                Executor::FrontEnd => Executor::Daemon,
                Executor::Daemon => Executor::FrontEnd,
            };
            self.intc.quiesce(PATIENCE)?;
            self.intc.resume(Some(self.executor))?;
            self.switches += 1;
        }
        Ok(())
    }

    /// The line of a monitor's picture that starts with `words`, as words.
    fn seen(&mut self, words: &[&str]) -> Outcome<Vec<String>> {
        if self.pic.is_none() {
            self.pic = Some(self.intc.query(query::PIC, 0)?);
        }
        let pic = self.pic.as_deref().unwrap_or_default();
        pic.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|line| line.starts_with(words))
            .map(|line| line.into_iter().map(str::to_owned).collect())
            .ok_or_else(|| GuestError(format!("the daemon shows no {}", words.join(" "))))
    }
}

/// The hexadecimal number of a `name=number` word, or of the word after `name`.
fn field(words: &[String], name: &str) -> Outcome<u32> {
    let inline = words
        .iter()
        .find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
    let next = words
        .iter()
        .position(|w| w == name)
        .and_then(|i| words.get(i + 1));
    inline
        .or(next.map(String::as_str))
        .and_then(|w| u32::from_str_radix(w, 16).ok())
        .ok_or_else(|| GuestError(format!("the daemon shows no {name}")))
}

impl Guest for DaemonGuest {
    fn hcall(&mut self, server: u32, opcode: u64, mut args: [u64; 9]) -> Outcome<Reply> {
        self.operation()?;
        let ret = self.vcpu(server)?.hcall(opcode, &mut args)?;
        Ok(Reply { ret, args })
    }

    fn rtas(&mut self, server: u32, call: RtasCall, args: &[u32], nret: u32) -> Outcome<Vec<u32>> {
        self.operation()?;
        let call = match call {
            RtasCall::SetXive => codes::RtasCall::SetXive,
            RtasCall::GetXive => codes::RtasCall::GetXive,
            RtasCall::IntOn => codes::RtasCall::IntOn,
            RtasCall::IntOff => codes::RtasCall::IntOff,
        };
        Ok(self.vcpu(server)?.rtas(call, args, nret)?)
    }

    fn load(&mut self, server: u32, space: Space, offset: u64, size: u8) -> Outcome<u64> {
        self.operation()?;
        let vcpu = self.vcpu(server)?;
        Ok(match space {
            Space::Esb => vcpu.esb_load(offset, size)?,
            Space::Tima => vcpu.tima_load(offset, size)?,
        })
    }

    fn store(
        &mut self,
        server: u32,
        space: Space,
        offset: u64,
        size: u8,
        value: u64,
    ) -> Outcome<()> {
        self.operation()?;
        let vcpu = self.vcpu(server)?;
        match space {
            Space::Esb => vcpu.esb_store(offset, size, value)?,
            Space::Tima => vcpu.tima_store(offset, size, value)?,
        }
        Ok(())
    }

    fn pulse(&mut self, lisn: u32) -> Outcome<()> {
        self.operation()?;
        Ok(self.intc.source(lisn)?.trigger()?)
    }

    fn set_level(&mut self, lisn: u32, level: bool) -> Outcome<()> {
        self.operation()?;
        Ok(self.intc.source(lisn)?.set_level(level)?)
    }

    fn claim(&mut self, lisn: u32, lsi: bool) -> Outcome<bool> {
        self.operation()?;
        // The machine's own IPI numbers are claimed by the daemon, for as long as the machine lives.
        if lisn < Shape::XICS_BASE {
            return Ok(lisn < self.servers);
        }
        let flags = match (lsi, lisn >= Shape::MSI_BASE) {
            (true, _) => claim_flag::LSI,
            (false, true) => claim_flag::MSI,
            (false, false) => 0,
        };
        match self.intc.claim(&Claim {
            first: lisn,
            count: 1,
            align: 1,
            flags,
            low: 0,
            high: 0,
        }) {
            Ok(_) => Ok(true),
            Err(Error::Refused { errno, .. }) if errno == Errno::EBUSY as i32 => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn free(&mut self, lisn: u32) -> Outcome<()> {
        self.operation()?;
        Ok(self.intc.free(lisn, 1)?)
    }

    fn cas(&mut self, server: u32, ov5: &[u8]) -> Outcome<CasReply> {
        self.operation()?;
        let reply = self.vcpu(server)?.cas(ov5)?;
        Ok(CasReply {
            ret: reply.ret,
            byte23: reply.byte_23 as u8,
            xive: reply.mode == mode::XIVE,
        })
    }

    fn machine_reset(&mut self) -> Outcome<()> {
        self.operation()?;
        Ok(self.intc.machine_reset(false)?)
    }

    fn vcpu_reset(&mut self, server: u32) -> Outcome<()> {
        self.operation()?;
        Ok(self.vcpu(server)?.reset()?)
    }

    /// The level is the daemon's, and the front-end must come to the same.
    fn line(&mut self, server: u32) -> Outcome<bool> {
        let vcpu = self.vcpu(server)?;
        if self.way != Way::Remote {
            return Ok(vcpu.pending());
        }
        // In remote mode news of a line travels by an eventfd, so it may come a little later.
        let answer = self.intc.query(query::VCPU, server.into())?;
        let level = answer.contains("\"line\":true");
        let begun = Instant::now();
        while vcpu.pending() != level {
            if begun.elapsed() > PATIENCE {
                return Err(GuestError(format!(
                    "the front-end never saw vCPU {server}'s line at {level}"
                )));
            }
            std::thread::yield_now();
        }
        Ok(level)
    }

    fn icp(&mut self, server: u32) -> Outcome<IcpState> {
        let words = self.seen(&["CPU", &server.to_string()])?;
        Ok(IcpState {
            xirr: field(&words, "XIRR")?,
            pending: field(&words, "PP")? as u8,
            mfrr: field(&words, "MFRR")? as u8,
        })
    }

    fn ics(&mut self, lisn: u32) -> Outcome<IcsState> {
        let words = self.seen(&[&format!("{lisn:x}")])?;
        Ok(IcsState {
            prio: field(&words, "priority")? as u8,
            status: field(&words, "status")? as u8,
        })
    }

    fn mem_read(&mut self, gpa: u64, bytes: &mut [u8]) -> Outcome<()> {
        if self.ram.read(gpa, bytes) {
            Ok(())
        } else {
            Err(GuestError(format!("no RAM at {gpa:#x}")))
        }
    }

    fn mem_write(&mut self, gpa: u64, bytes: &[u8]) -> Outcome<()> {
        if self.ram.write(gpa, bytes) {
            Ok(())
        } else {
            Err(GuestError(format!("no RAM at {gpa:#x}")))
        }
    }

    fn switches(&self) -> u64 {
        self.switches
    }
}
