//! What a kill of the daemon costs the guest: from SIGKILL to the first hypercall answered by the next daemon,
//! beside a kill, a spawn of a process that does nothing, and one round trip to it over a socket pair.
//!
//! The hypercall configures (ibm,set-xive), so that it needs the daemon; it is made by one vCPU, and all the others
//! have channels that the handshake opens again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::protocol::papr::codes::RtasCall;
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};
use papr_intc_frontend::{Executor, GuestRam, Intc, Options, Vcpu};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::channel::Echo;
use crate::rig::{launcher, no_kick, unpin};
use crate::table::Row;
use crate::timing::{Pairs, Sense};

/// vCPUs, irqfds, pairs, pairs if it is to be quick.
const SIZES: [(u32, u32, usize, usize); 2] = [(8, 64, 40, 9), (256, 4_096, 15, 3)];
/// Descriptors for the last of them, and for 4,096 vCPUs elsewhere.
const ENOUGH: u64 = 20_000;
/// The first MSI.
const FIRST: u32 = 0x1300;

/// The rows; each is given to `add` as soon as it is measured.
pub fn measure(quick: bool, mut add: impl FnMut(Row)) {
    let limit = raise_limit();
    unpin();
    for (vcpus, irqfds, full, short) in SIZES {
        let pairs = if quick { short } else { full };
        // Two for each vCPU (channel and kick) and each source (the VMM's and the front-end's duplicate).
        let room = limit.saturating_sub(2 * u64::from(vcpus) + 256) / 2;
        let irqfds = u64::from(irqfds).min(room) as u32;
        if pairs == 0 || irqfds == 0 {
            continue;
        }
        for (executor, how) in [(Executor::FrontEnd, "mapped"), (Executor::Daemon, "remote")] {
            let name = format!("kill -9 to first hcall, {vcpus} vCPUs, {irqfds} irqfds, {how}");
            match Machinery::start(vcpus, irqfds, executor) {
                Ok(rig) => add(row(&name, &rig, pairs)),
                Err(what) => println!("{name}: skipped: {what}"),
            }
        }
    }
}

fn row(name: &str, rig: &Machinery, count: usize) -> Row {
    let mut pairs = Pairs::default();
    for _ in 0..count {
        // In turns, so that what else the machine does meets both.
        pairs.limit.push(spawn_and_ask());
        pairs.ours.push(rig.kill_and_ask());
    }
    Row::new(name, pairs, Sense::Max, 2.0)
}

/// The soft limit of descriptors, raised as far as it goes; daemons inherit it.
pub fn raise_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    // Beyond the hard limit only with privilege.
    let tried = [ENOUGH, hard]
        .into_iter()
        .find(|&limit| setrlimit(Resource::RLIMIT_NOFILE, limit, limit.max(hard)).is_ok());
    tried.unwrap_or(soft)
}

/// A machine with everything connected.
struct Machinery {
    intc: Intc,
    vcpus: Vec<Vcpu>,
    _events: Vec<EventFd>,
}

impl Machinery {
    fn start(vcpus: u32, irqfds: u32, executor: Executor) -> Result<Self, String> {
        let mut machine = Machine::pseries(IcMode::Xics, Compat::Papr1, vcpus);
        machine.sources = machine.sources.max(FIRST + irqfds);
        let ram = GuestRam::new(&[(0, 16 << 20)]).map_err(|e| e.to_string())?;
        let options = Options {
            executor,
            ..Options::new(machine)
        };
        let intc = Intc::start(options, launcher(), Arc::new(ram), no_kick())
            .map_err(|e| e.to_string())?;
        let claim = Claim {
            first: FIRST,
            count: irqfds,
            align: 1,
            flags: claim_flag::MSI,
            low: 0,
            high: 0,
        };
        intc.claim(&claim).map_err(|e| e.to_string())?;
        let vcpus = (0..vcpus).map(|server| intc.connect_vcpu(server));
        let vcpus = vcpus.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let mut events = Vec::new();
        for lisn in FIRST..FIRST + irqfds {
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|e| e.to_string())?;
            intc.add_irqfd(lisn, &event).map_err(|e| e.to_string())?;
            events.push(event);
        }
        Ok(Self {
            intc,
            vcpus,
            _events: events,
        })
    }

    /// ibm,set-xive on vCPU 0.
    fn ask(&self) {
        let rets = self.vcpus[0].rtas(RtasCall::SetXive, &[FIRST, 0, 5], 1);
        assert_eq!(rets.ok(), Some(vec![0]), "ibm,set-xive");
    }

    fn kill_and_ask(&self) -> f64 {
        // The daemon serves, and has for a while: a kill right after a start is answered by a pause.
        self.ask();
        std::thread::sleep(Duration::from_millis(120));
        let pid = self.intc.daemon_pid().expect("it has just answered");
        let begun = Instant::now();
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the pid of a child");
        self.ask();
        let took = begun.elapsed();
        assert_ne!(self.intc.daemon_pid(), Some(pid), "another one answered");
        took.as_nanos() as f64
    }
}

/// Kill of a process, spawn of one that does nothing but answer a byte, and one byte there and back.
fn spawn_and_ask() -> f64 {
    let mut first = Echo::start([1, 1]);
    first.round_trip();
    std::thread::sleep(Duration::from_millis(20));
    let begun = Instant::now();
    first.kill();
    let mut second = Echo::start([1, 1]);
    second.round_trip();
    begun.elapsed().as_nanos() as f64
}
