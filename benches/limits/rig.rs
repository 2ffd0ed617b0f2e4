//! A machine with everything routed, on a daemon of its own, as a VMM holds it; and beside it memory of the
//! same kind and shape that nobody else uses, for the raw limits.
//!
//! The machine is configured by loading a state, which takes milliseconds where a million hypercalls would take
//! seconds. Every source (IPIs too) goes to priority 5 of server `number % servers`.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use papr_intc_frontend::protocol::layout::mapped::MappedStorage;
use papr_intc_frontend::protocol::layout::{AtomicWord, Compat, IcMode, Machine, Page, Storage};
use papr_intc_frontend::protocol::state::model::*;
use papr_intc_frontend::{
    Executor, GuestRam, Intc, Kick, Launcher, Options, Source, Vcpu, WatchLimits,
};

use crate::cycle::{ACKNOWLEDGE, CPPR};

/// The priority of everything.
pub const PRIORITY: u8 = 5;
/// Log2 of the bytes of a queue.
const QUEUE: u8 = 12;
/// From one queue to the next, as a rule.
const NEXT: u64 = 1 << QUEUE;
/// So far apart that the dirty bits of two queues are in lines of their own.
const APART: u64 = 4 << 20;
/// Bytes of a cache line; of POWER's, half.
const CACHE_LINE: u64 = 64;
const LONG: Duration = Duration::from_secs(60);

/// A machine that runs.
pub struct Rig {
    pub intc: Intc,
    pub vcpus: Vec<Vcpu>,
    pub machine: Machine,
    /// Words as the machine's, which the raw limits work on.
    pub raw: MappedStorage,
}

/// A machine with `sources` device sources; XIVE or XICS alone.
pub fn machine(ic_mode: IcMode, sources: u32, servers: u32) -> Machine {
    // Numbers below are the IPIs'.
    let base = servers.max(16);
    Machine {
        sources: (base + sources).min(1 << 20),
        xics_base: base,
        ..Machine::pseries(ic_mode, Compat::Papr1, servers)
    }
}

/// The state of a machine on which everything is routed and every vCPU is open.
pub fn routed(machine: Machine) -> State {
    routed_to(machine, NEXT)
}

/// The same, with queues so many bytes from each other.
fn routed_to(machine: Machine, stride: u64) -> State {
    let (base, servers) = (machine.xics_base, machine.servers);
    let mut head = Head::new("bench", machine);
    head.cas_xive = machine.ic_mode == IcMode::Xive;
    head.servers = (0..servers).collect();
    let mut state = State::reset(head);
    state.claims.push(Claims {
        first: base,
        count: machine.sources - base,
        kind: Kind::Msi,
    });
    if machine.ic_mode.has_xics() {
        state.xics.sources = (base..machine.sources)
            .map(|irq| XicsSource {
                server: (irq % servers) as u16,
                priority: PRIORITY,
                saved: PRIORITY,
                ..XicsSource::reset(irq)
            })
            .collect();
        let open = |server| Icp {
            cppr: 0xff,
            ..Icp::reset(server)
        };
        state.xics.icps = (0..servers).map(open).collect();
    }
    if machine.ic_mode.has_xive() {
        state.xive.sources = (0..servers)
            .chain(base..machine.sources)
            .map(|lisn| XiveSource {
                lisn,
                pq: 0,
                masked: false,
                end: end_of(lisn % servers),
                eisn: lisn,
            })
            .collect();
        for server in 0..servers {
            state.xive.rings.push(Ring {
                server,
                bytes: Ring::RESET | 0xff << 48,
            });
            state.xive.ends.push(End {
                end: end_of(server),
                address: u64::from(server) * stride,
                size: QUEUE,
                always_notify: true,
                generation: true,
                index: 0,
                esn: 0,
            });
        }
    }
    state
}

/// The END of everything that goes to a server.
pub fn end_of(server: u32) -> u32 {
    server * 8 + u32::from(PRIORITY)
}

/// Offset of the management page of a source.
pub fn management(lisn: u32) -> u64 {
    (u64::from(lisn) << 17) + 0x1_0000
}

/// Offset of the trigger page of a source.
pub fn trigger_page(lisn: u32) -> u64 {
    u64::from(lisn) << 17
}

/// A daemon of this build.
pub fn launcher() -> Launcher {
    let quiet = vec!["--log-level".into(), "error".into()];
    Launcher::spawn(env!("CARGO_BIN_EXE_papr-intc"), quiet)
}

/// A million sources take their time on a machine that does other things as well.
pub fn patient() -> WatchLimits {
    WatchLimits {
        message: LONG,
        answer: LONG,
        ..WatchLimits::default()
    }
}

impl Rig {
    /// Threads of the front-end and the daemon run where the caller runs.
    pub fn start(machine: Machine, executor: Executor, kick: Kick) -> Result<Self, String> {
        Self::start_with(machine, executor, kick, NEXT)
    }

    /// With queues far from each other.
    pub fn start_apart(machine: Machine) -> Result<Self, String> {
        Self::start_with(machine, Executor::FrontEnd, no_kick(), APART)
    }

    fn start_with(
        machine: Machine,
        executor: Executor,
        kick: Kick,
        stride: u64,
    ) -> Result<Self, String> {
        let bytes = u64::from(machine.servers) * stride;
        let ram = GuestRam::new(&[(0, bytes)]).map_err(|e| e.to_string())?;
        let options = Options {
            executor,
            watch: patient(),
            ..Options::new(machine)
        };
        let started = Intc::start(options, launcher(), Arc::new(ram), kick);
        let intc = started.map_err(|e| e.to_string())?;
        let vcpus = (0..machine.servers).map(|server| intc.connect_vcpu(server));
        let vcpus = vcpus.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let state = routed_to(machine, stride)
            .encode()
            .map_err(|e| e.to_string())?;
        intc.quiesce(LONG)
            .and_then(|()| intc.state_load(&state))
            .and_then(|()| intc.resume(None))
            .map_err(|e| e.to_string())?;
        let raw = raw_words(&machine)?;
        let rig = Self {
            intc,
            vcpus,
            machine,
            raw,
        };
        if executor == Executor::FrontEnd && machine.ic_mode == IcMode::Xive {
            rig.touch();
        }
        Ok(rig)
    }

    /// Every page is mapped before anything is measured.
    fn touch(&self) {
        for lisn in self.first()..self.machine.sources {
            _ = self.source(lisn).trigger();
            _ = self.vcpus[0].esb_load(management(lisn) + 0xc00, 8);
        }
        for vcpu in &self.vcpus {
            _ = vcpu.tima_load(ACKNOWLEDGE, 2);
            _ = vcpu.tima_store(CPPR, 1, 0xff);
        }
    }

    /// The first device source.
    pub fn first(&self) -> u32 {
        self.machine.xics_base
    }

    /// A source.
    pub fn source(&self, lisn: u32) -> Source {
        self.intc.source(lisn).expect("a number of this machine")
    }

    /// A raw word of `pages`.
    pub fn word(&self, at: Page) -> &AtomicU64 {
        self.raw.page(at)
    }

    /// The cache line of a word of `pages`.
    pub fn line(&self, at: Page) -> u64 {
        self.raw.geometry().page_offset(at) / CACHE_LINE
    }
}

/// A mapping of a memfd of the machine's size, all of it touched.
fn raw_words(machine: &Machine) -> Result<MappedStorage, String> {
    let geometry = machine.geometry().ok_or("the machine has no geometry")?;
    let memfd = memfd_create(c"limits", MFdFlags::MFD_CLOEXEC).map_err(|e| e.to_string())?;
    let memfd = File::from(memfd);
    memfd.set_len(geometry.size()).map_err(|e| e.to_string())?;
    let raw = MappedStorage::map(&memfd, geometry).map_err(|e| e.to_string())?;
    for lisn in 0..geometry.sources() {
        swap(raw.page(Page::Source(lisn)), 0);
    }
    for irq in 0..geometry.ics_sources() {
        swap(raw.page(Page::IcsSource(irq)), 0);
    }
    for server in 0..geometry.servers() {
        swap(raw.page(Page::Tima(server)), 0);
        swap(raw.page(Page::Delivered(server)), 0);
        swap(raw.page(Page::EndCursor(end_of(server))), 0);
    }
    Ok(raw)
}

/// A swap as the plane makes them: load, compare, swap until it holds.
#[inline]
pub fn swap(word: &AtomicU64, flip: u64) -> u64 {
    let mut old = word.load(Ordering::Relaxed);
    loop {
        let new = old ^ flip;
        let done =
            AtomicWord::compare_exchange(word, old, new, Ordering::AcqRel, Ordering::Relaxed);
        match done {
            Ok(_) => return old,
            Err(found) => old = found,
        }
    }
}

/// A kick that tells nobody.
pub fn no_kick() -> Kick {
    Arc::new(|_| ())
}

/// The calling thread, and what it starts from now on, runs on this CPU alone.
pub fn pin(cpu: usize) {
    pin_task(0, cpu);
}

/// A thread or process runs on this CPU alone; 0 is the calling thread.
pub fn pin_task(id: i32, cpu: usize) {
    let mut set = CpuSet::new();
    // A machine with one CPU measures everything on that one.
    if cpu < cpus() && set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(id), &set);
    }
}

/// The calling thread, and what it starts from now on, runs anywhere.
pub fn unpin() {
    let mut all = CpuSet::new();
    (0..cpus()).for_each(|cpu| _ = all.set(cpu));
    let _ = sched_setaffinity(Pid::from_raw(0), &all);
}

/// How many CPUs there are.
pub fn cpus() -> usize {
    static CPUS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    // Asked before anything is pinned: it counts where the caller may run.
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The thread of the front-end that reads eventfds.
pub fn io_threads() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    tasks
        .flatten()
        .filter(|task| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name.trim() == "papr-intc-io")
        })
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}
