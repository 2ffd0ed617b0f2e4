//! What a kill of the daemon costs the guest: from SIGKILL to the first hypercall answered by the next
//! daemon, beside the least that any restart can cost on the same machine in the same run: kill, spawn of a
//! process that does nothing, one round trip over a socket pair. Prints the ratio. Takes seconds;
//! `-- --quick` takes less.
//!
//! The hypercall configures (H_INT_SET_SOURCE_CONFIG, or ibm,set-xive), so that it needs the daemon; it is
//! made in mapped mode by one vCPU, and `connected` of them have channels that the handshake opens again.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::protocol::papr::codes::RtasCall;
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};
use papr_intc_frontend::{Executor, GuestRam, Intc, Launcher, Options, Vcpu};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// vCPUs and irqfds.
const SIZES: [(u32, u32); 3] = [(8, 64), (256, 4_096), (4_096, 65_536)];
/// Descriptors for the last of them.
const ENOUGH: u64 = 140_000;
/// The first MSI.
const FIRST: u32 = 0x1300;
/// Names this program as the process that does nothing.
const ECHO: &str = "--echo";

fn main() {
    if std::env::args().any(|a| a == ECHO) {
        return echo();
    }
    let quick = std::env::args().any(|a| a == "--quick" || a == "--test");
    let limit = raise_limit();
    println!("descriptors: {limit}\n");
    println!(
        "{:<34}{:>10}{:>10}{:>12}{:>12}{:>10}",
        "kill to first hcall answered", "median", "worst", "spawn med.", "spawn worst", "ratio"
    );
    for (vcpus, irqfds) in SIZES {
        let samples = match (quick, vcpus) {
            (true, ..=8) => 20,
            (true, _) => 5,
            (false, 4_096..) => 15,
            (false, _) => 100,
        };
        for executor in [Executor::FrontEnd, Executor::Daemon] {
            row(vcpus, irqfds, executor, samples, limit);
        }
    }
}

fn row(vcpus: u32, irqfds: u32, executor: Executor, samples: usize, limit: u64) {
    let how = match executor {
        Executor::FrontEnd => "mapped",
        Executor::Daemon => "remote",
    };
    // Two for each vCPU (channel and kick) and each source (the VMM's and the front-end's duplicate).
    let room = limit.saturating_sub(2 * u64::from(vcpus) + 64) / 2;
    if room == 0 {
        return println!("{vcpus} vCPUs, {how}: skipped, {limit} descriptors do not do");
    }
    let fitting = u64::from(irqfds).min(room) as u32;
    if fitting < irqfds {
        println!("{irqfds} irqfds skipped: {limit} descriptors leave room for {fitting}");
    }
    let name = format!("{vcpus} vCPUs, {fitting} irqfds, {how}");
    let rig = match Rig::start(vcpus, fitting, executor) {
        Ok(rig) => rig,
        Err(what) => return println!("{name:<34}skipped: {what}"),
    };
    let (mut restarts, mut spawns) = (Vec::new(), Vec::new());
    for _ in 0..samples {
        // In turns, so that what else the machine does meets both.
        spawns.push(spawn_and_ask());
        restarts.push(rig.kill_and_ask());
    }
    let (median, worst) = median_and_worst(restarts);
    let (spawn, spawn_worst) = median_and_worst(spawns);
    println!(
        "{name:<34}{:>7.1} ms{:>7.1} ms{:>9.2} ms{:>9.2} ms{:>10.1}",
        ms(median),
        ms(worst),
        ms(spawn),
        ms(spawn_worst),
        ms(median) / ms(spawn)
    );
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median_and_worst(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

/// The soft limit of descriptors, raised as far as it goes; daemons inherit it.
fn raise_limit() -> u64 {
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
struct Rig {
    intc: Intc,
    vcpus: Vec<Vcpu>,
    _events: Vec<EventFd>,
}

impl Rig {
    fn start(vcpus: u32, irqfds: u32, executor: Executor) -> Result<Self, String> {
        let mut machine = Machine::pseries(IcMode::Xics, Compat::Papr1, vcpus);
        machine.sources = machine.sources.max(FIRST + irqfds);
        let ram = GuestRam::new(&[(0, 16 << 20)]).map_err(|e| e.to_string())?;
        let options = Options {
            executor,
            ..Options::new(machine)
        };
        let quiet = vec!["--log-level".into(), "error".into()];
        let launcher = Launcher::spawn(env!("CARGO_BIN_EXE_papr-intc"), quiet);
        let intc = Intc::start(options, launcher, Arc::new(ram), Arc::new(|_| ()))
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

    fn kill_and_ask(&self) -> Duration {
        // The daemon serves, and has for a while: a kill right after a start is answered by a pause.
        self.ask();
        std::thread::sleep(Duration::from_millis(120));
        let pid = self.intc.daemon_pid().expect("it has just answered");
        let begun = Instant::now();
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the pid of a child");
        self.ask();
        let took = begun.elapsed();
        assert_ne!(self.intc.daemon_pid(), Some(pid), "another one answered");
        took
    }
}

/// Kill of a process, spawn of one that does nothing but answer a byte, and one byte there and back.
fn spawn_and_ask() -> Duration {
    let (mut first, _) = spawn_echo();
    let begun = Instant::now();
    let _ = first.kill();
    let _ = first.wait();
    let (mut second, mut stream) = spawn_echo();
    stream.write_all(&[1]).expect("a byte there");
    stream.read_exact(&mut [0]).expect("a byte back");
    let took = begun.elapsed();
    drop(stream);
    let _ = second.wait();
    took
}

fn spawn_echo() -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let own = std::env::current_exe().expect("this program has a path");
    let child = Command::new(own)
        .arg(ECHO)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("this program can be started");
    (child, ours)
}

/// The process that does nothing.
fn echo() {
    use std::os::fd::AsFd;
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let mut stream = UnixStream::from(socket.expect("descriptor 0"));
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|n| n == 1) {
        let _ = stream.write_all(&byte);
    }
}
