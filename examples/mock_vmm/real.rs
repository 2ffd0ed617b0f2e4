//! The machine on a real daemon, through the front-end crate. This is what embedding papr-intc takes:
//! start it with guest RAM and a kick callback, connect the vCPUs, pass the guest's calls on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use papr_intc_frontend::{Error, Executor, GuestRam, Intc, Kick, Launcher, Options, Vcpu};
use papr_intc_protocol::layout::{Machine, Page, Storage};
use papr_intc_protocol::papr::codes::RtasCall;
use papr_intc_protocol::wire::handshake::query;
use papr_intc_protocol::wire::source::{ANY, Claim, claim_flag};
use std::sync::atomic::{AtomicUsize, Ordering};
use vmm_sys_util::eventfd::EventFd;

use crate::board::{Board, CasAnswer, Cpu, Gone, Numbers, Step};

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// Longer than any transition takes.
const SWITCH_LIMIT: Duration = Duration::from_secs(10);

/// How the machine is run.
pub struct Setup {
    /// The machine.
    pub machine: Machine,
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// The daemon runs the data plane.
    pub remote: bool,
    /// Every call goes to the daemon.
    pub forward_all: bool,
    /// The daemon's binary.
    pub daemon: PathBuf,
    /// The next release's, if there is one.
    pub next: Option<PathBuf>,
}

/// A guest's machine, its interrupts in the hands of papr-intc.
pub struct Real {
    intc: Intc,
    ram: Arc<GuestRam>,
    /// Releases to take turns, and whose turn it was.
    releases: [Launcher; 2],
    release: AtomicUsize,
    /// Who executes, if that was changed.
    switched: Mutex<Executor>,
}

impl Real {
    /// Starts the daemon. `kick(server)`: look again at that vCPU's line.
    pub fn start(setup: Setup, kick: Kick) -> Step<Self> {
        let ram = setup.ram;
        let options = Options {
            executor: if setup.remote {
                Executor::Daemon
            } else {
                Executor::FrontEnd
            },
            forward_all: setup.forward_all,
            name: "mock_vmm".into(),
            ..Options::new(setup.machine)
        };
        let quiet: [OsString; 2] = ["--log-level".into(), "error".into()];
        let launcher = |binary: &Path| Launcher::spawn(binary, quiet.to_vec());
        let this = launcher(&setup.daemon);
        let next = setup.next.as_deref().map_or(this.clone(), launcher);
        let executor = options.executor;
        let intc = Intc::start(options, this.clone(), ram.clone(), kick)
            .map_err(|e| Gone(format!("{}: {e}", setup.daemon.display())))?;
        Ok(Self {
            intc,
            ram,
            releases: [this, next],
            release: AtomicUsize::new(0),
            switched: Mutex::new(executor),
        })
    }

    /// Makes the controller forget which sources wait to be sent again on a vCPU: a fault, on purpose.
    pub fn forget_resend(&self, server: u32) {
        if let Some(storage) = self.intc.storage() {
            // Relaxed: this is meant to be wrong.
            storage
                .page(Page::PendingRoot(server))
                .swap(0, Ordering::Relaxed);
        }
    }
}

impl Board for Real {
    fn machine(&self) -> Machine {
        *self.intc.machine()
    }
    fn connect(&self, server: u32) -> Step<Arc<dyn Cpu>> {
        Ok(Arc::new(RealCpu(self.intc.connect_vcpu(server)?)))
    }
    fn trigger(&self, lisn: u32) -> Step {
        Ok(self.intc.source(lisn)?.trigger()?)
    }
    fn set_level(&self, lisn: u32, level: bool) -> Step {
        Ok(self.intc.source(lisn)?.set_level(level)?)
    }
    fn add_irqfd(&self, lisn: u32, event: &EventFd) -> Step {
        Ok(self.intc.add_irqfd(lisn, event)?)
    }
    fn remove_irqfd(&self, lisn: u32) -> Step {
        Ok(self.intc.remove_irqfd(lisn)?)
    }
    fn claim(&self, numbers: Numbers) -> Step<u32> {
        let claim = match numbers {
            Numbers::Fixed(first, lsi) => Claim {
                first,
                count: 1,
                align: 1,
                flags: if lsi { claim_flag::LSI } else { 0 },
                low: 0,
                high: 0,
            },
            Numbers::Msis(count, range) => Claim {
                first: ANY,
                count,
                align: count,
                flags: claim_flag::MSI,
                low: range.start,
                high: range.end,
            },
        };
        Ok(self.intc.claim(&claim)?)
    }
    fn machine_reset(&self) -> Step {
        Ok(self.intc.machine_reset(true)?)
    }
    fn ram_read(&self, gpa: u64) -> u32 {
        self.ram.read_u32_be(gpa).unwrap_or(0)
    }
    fn ram_write(&self, gpa: u64, value: u32) {
        self.ram.write_u32_be(gpa, value);
    }
    fn ram_fill(&self, gpa: u64, len: u64, value: u32) {
        let bytes = value.to_be_bytes().repeat(len as usize / 4);
        self.ram.write(gpa, &bytes);
    }
    fn ram_is_filled(&self, gpa: u64, len: u64, value: u32) -> bool {
        let mut bytes = vec![0; len as usize];
        self.ram.read(gpa, &mut bytes) && bytes == value.to_be_bytes().repeat(len as usize / 4)
    }
    fn daemon(&self) -> Option<u32> {
        self.intc.daemon_pid()
    }
    fn ask(&self) -> Step {
        self.intc.query(query::STATUS, 0)?;
        Ok(())
    }
    fn upgrade(&self) -> Step {
        let turn = self.release.fetch_add(1, Ordering::Relaxed) + 1;
        let release = self.releases[turn % 2].clone();
        self.intc.upgrade(release)?;
        Ok(())
    }
    fn switch(&self) -> Step {
        let mut switched = self.switched.lock().unwrap_or_else(PoisonError::into_inner);
        let to = match *switched {
            Executor::FrontEnd => Executor::Daemon,
            Executor::Daemon => Executor::FrontEnd,
        };
        self.intc.quiesce(SWITCH_LIMIT)?;
        self.intc.resume(Some(to))?;
        *switched = to;
        Ok(())
    }
    fn plug(&self) -> Step {
        // The last server number is nobody's: the guest does not start that vCPU.
        let vcpu = self.intc.connect_vcpu(self.machine().servers - 1)?;
        let line = vcpu.pending();
        vcpu.disconnect()?;
        match line {
            false => Ok(()),
            true => Err(Gone(
                "the line of a vCPU that was just plugged in is high".into(),
            )),
        }
    }
    fn picture(&self) -> String {
        let picture = self.intc.query(query::PIC, 0);
        picture.unwrap_or_else(|e| e.to_string())
    }
}

struct RealCpu(Vcpu);

impl Cpu for RealCpu {
    fn hcall(&self, opcode: u64, args: &mut [u64; 9]) -> Step<i64> {
        Ok(self.0.hcall(opcode, args)?)
    }
    fn rtas(&self, call: RtasCall, args: &[u32], nret: u32) -> Step<Vec<u32>> {
        Ok(self.0.rtas(call, args, nret)?)
    }
    fn cas(&self, ov5: &[u8]) -> Step<CasAnswer> {
        let reply = self.0.cas(ov5)?;
        Ok(CasAnswer {
            ret: reply.ret,
            byte_23: reply.byte_23,
            fdt: reply.fdt.0,
        })
    }
    fn esb_load(&self, offset: u64) -> Step<u64> {
        Ok(self.0.esb_load(offset, 8)?)
    }
    fn esb_store(&self, offset: u64, value: u64) -> Step {
        Ok(self.0.esb_store(offset, 8, value)?)
    }
    fn tima_load(&self, offset: u64, size: u8) -> Step<u64> {
        Ok(self.0.tima_load(offset, size)?)
    }
    fn tima_store(&self, offset: u64, size: u8, value: u64) -> Step {
        Ok(self.0.tima_store(offset, size, value)?)
    }
    fn pending(&self) -> bool {
        self.0.pending()
    }
}
