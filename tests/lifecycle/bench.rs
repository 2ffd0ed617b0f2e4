//! A machine on the test bench: the daemon of this build, RAM, and what a guest would do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Arc, Condvar, Mutex};

use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};
use papr_intc_frontend::{Executor, GuestRam, Intc, Launcher, Options, Vcpu};

/// Where the first XICS source is.
pub const FIRST: u32 = 0x1000;
/// Option vector 5 that asks for XIVE.
pub const OV5_XIVE: [u8; 26] = {
    let mut v = [0; 26];
    v[0] = 24;
    v[23] = 0x40;
    v
};

/// Counts kicks, so that a test can wait for one.
#[derive(Default)]
pub struct Kicks {
    counts: Mutex<BTreeMap<u32, u64>>,
    changed: Condvar,
}

impl Kicks {
    fn kick(&self, server: u32) {
        *self.counts.lock().unwrap().entry(server).or_default() += 1;
        self.changed.notify_all();
    }

    /// Waits until `server` was kicked more often than `seen`; the count then.
    pub fn beyond(&self, server: u32, seen: u64) -> u64 {
        let mut counts = self.counts.lock().unwrap();
        loop {
            let now = counts.get(&server).copied().unwrap_or(0);
            if now > seen {
                return now;
            }
            counts = self.changed.wait(counts).unwrap();
        }
    }
}

/// A machine with two vCPUs.
pub struct Bench {
    pub intc: Intc,
    pub ram: Arc<GuestRam>,
    pub kicks: Arc<Kicks>,
    pub vcpus: Vec<Vcpu>,
    forwards: bool,
}

pub struct How {
    pub ic_mode: IcMode,
    pub executor: Executor,
    pub forward_all: bool,
}

impl How {
    pub fn mapped(ic_mode: IcMode) -> Self {
        Self {
            ic_mode,
            executor: Executor::FrontEnd,
            forward_all: false,
        }
    }
    pub fn remote(ic_mode: IcMode) -> Self {
        Self {
            executor: Executor::Daemon,
            ..Self::mapped(ic_mode)
        }
    }
    /// Every way to run a machine.
    pub fn all(ic_mode: IcMode) -> [Self; 3] {
        let forwarded = Self {
            forward_all: true,
            ..Self::mapped(ic_mode)
        };
        [Self::mapped(ic_mode), Self::remote(ic_mode), forwarded]
    }
}

pub fn launcher() -> Launcher {
    let binary = std::env::var_os("PAPR_INTC")
        .unwrap_or_else(|| OsString::from(env!("CARGO_BIN_EXE_papr-intc")));
    let level = std::env::var("PAPR_INTC_LOG").unwrap_or_else(|_| "error".to_owned());
    Launcher::spawn(binary, vec!["--log-level".into(), level.into()])
}

impl Bench {
    pub fn start(how: &How) -> Self {
        Self::start_with(how, |_| ())
    }

    /// With other options.
    pub fn start_with(how: &How, change: impl FnOnce(&mut Options)) -> Self {
        Self::start_by(how, launcher(), change)
    }

    /// With another daemon.
    pub fn start_by(how: &How, launcher: Launcher, change: impl FnOnce(&mut Options)) -> Self {
        let ram = Arc::new(GuestRam::new(&[(0, 16 << 20)]).unwrap());
        Self::start_on(how, launcher, ram, change)
    }

    /// With RAM that another machine has used: what a VMM has after the guest's RAM has moved.
    pub fn start_on(
        how: &How,
        launcher: Launcher,
        ram: Arc<GuestRam>,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let machine = Machine::pseries(how.ic_mode, Compat::Papr1, 4);
        let kicks = Arc::new(Kicks::default());
        let mut options = Options {
            executor: how.executor,
            forward_all: how.forward_all,
            ..Options::new(machine)
        };
        change(&mut options);
        let sink = Arc::clone(&kicks);
        let kick = Arc::new(move |server| sink.kick(server));
        let intc = Intc::start(options, launcher, Arc::clone(&ram), kick).unwrap();
        let vcpus = [0, 1].map(|s| intc.connect_vcpu(s).unwrap()).into();
        Self {
            intc,
            ram,
            kicks,
            vcpus,
            forwards: how.forward_all,
        }
    }

    /// Every call goes to the daemon.
    pub fn forwards(&self) -> bool {
        self.forwards
    }

    /// Claims one MSI (or LSI) and routes it to `server` by ibm,set-xive.
    pub fn xics_source(&self, lisn: u32, lsi: bool, server: u32) {
        self.claim(lisn, lsi);
        let rets = self.vcpus[0].rtas(RtasCall::SetXive, &[lisn, server, 5], 1);
        assert_eq!(rets.unwrap(), [0]);
    }

    pub fn claim(&self, lisn: u32, lsi: bool) {
        let claim = Claim {
            first: lisn,
            count: 1,
            align: 1,
            flags: if lsi {
                claim_flag::LSI
            } else {
                claim_flag::MSI
            },
            low: 0,
            high: 0,
        };
        assert_eq!(self.intc.claim(&claim).unwrap(), lisn);
    }

    pub fn trigger(&self, lisn: u32) {
        self.intc.source(lisn).unwrap().trigger().unwrap();
    }

    /// Waits for the line of a vCPU, as its halted thread would: look, sleep until kicked, look.
    pub fn wait_for_line(&self, server: u32, level: bool) {
        let mut seen = 0;
        while self.vcpus[server as usize].pending() != level {
            seen = self.kicks.beyond(server, seen);
        }
    }

    /// H_XIRR: what was accepted.
    pub fn accept(&self, server: u32) -> u32 {
        let (ret, args) = self.hcall(server, opcode::H_XIRR, &[]);
        assert_eq!(ret, 0);
        args[0] as u32 & 0xff_ffff
    }

    /// H_EOI back to the lowest priority.
    pub fn eoi(&self, server: u32, xisr: u32) {
        let xirr = 0xff00_0000 | u64::from(xisr);
        assert_eq!(self.hcall(server, opcode::H_EOI, &[xirr]).0, 0);
    }

    /// H_CPPR: everything may come.
    pub fn open(&self, server: u32) {
        assert_eq!(self.hcall(server, opcode::H_CPPR, &[0xff]).0, 0);
    }

    pub fn hcall(&self, server: u32, opcode: u64, inputs: &[u64]) -> (i64, [u64; 9]) {
        let mut args = [0; 9];
        args[..inputs.len()].copy_from_slice(inputs);
        let vcpu = &self.vcpus[server as usize];
        let ret = vcpu.hcall(opcode, &mut args).unwrap();
        (ret, args)
    }

    /// kill -9, and wait until the front-end has noticed and replaced the daemon.
    pub fn kill_and_wait(&self) {
        let restarts = self.intc.restarts();
        self.signal(nix::sys::signal::Signal::SIGKILL);
        while self.intc.restarts() == restarts {
            std::thread::yield_now();
        }
    }

    /// Returns when `count` daemons have come back, no more: it is counted after the first answers.
    pub fn await_restarts(&self, count: u64) {
        while self.intc.restarts() < count {
            std::thread::yield_now();
        }
        assert_eq!(self.intc.restarts(), count);
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.intc.daemon_pid().expect("there is no daemon");
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}
