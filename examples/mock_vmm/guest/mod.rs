//! The guest: a kernel that uses its interrupt controller as Linux does.
//!
//! Written from the facts of xive.md §9 and xics.md §9. It sees the machine through
//! [`crate::board`] and its devices through [`Devices`]; what a kernel keeps in its own memory (which
//! vCPUs are on, where an interrupt is routed, messages between vCPUs) is here, what a vCPU does is in
//! [`cpu`], and the two interrupt controllers are driven by [`xive`] and [`xics`].
//!
//! Lock order: topology, then one interrupt, then its device.

pub mod boot;
pub mod chip;
pub mod cpu;
pub mod hotplug;
pub mod xics;
pub mod xive;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use papr_intc_protocol::layout::machine::Compat;
use papr_intc_protocol::papr::codes::{opcode, ret};

use crate::board::{Board, Cpu, Step};
use crate::cells::now;
use crate::devices::Devices;
use crate::halt::Halt;
use crate::rng::Rng;
use crate::tally::{Found, Latencies, Tally};
use cpu::Role;

/// Which controller the guest chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Legacy.
    Xics,
    /// Exploitation.
    Xive,
}

/// Where a source's ESB pages are, relative to the ESB space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Esb {
    /// LISN.
    pub lisn: u32,
    /// Management page.
    pub management: u64,
    /// Trigger page.
    pub trigger: u64,
    /// Accesses go through H_INT_ESB.
    pub by_hcall: bool,
    /// End of interrupt is a store.
    pub store_eoi: bool,
}

/// What the kernel keeps of one interrupt, under its lock.
#[derive(Debug, Default)]
pub struct IrqState {
    /// The vCPU that it is routed to.
    pub target: u32,
    /// A driver has requested it.
    pub started: bool,
    /// The driver has disabled it; it is masked only when it comes.
    pub disabled: bool,
    /// It came while disabled.
    pub came: bool,
    /// Masked on purpose, for a moment.
    pub masked: bool,
    /// P was set when it was masked.
    pub saved_p: bool,
}

/// One interrupt.
#[derive(Debug, Default)]
pub struct Irq {
    /// Which source of [`Devices`].
    pub index: usize,
    /// Its number.
    pub lisn: u32,
    /// Level-sensitive.
    pub lsi: bool,
    /// Its pages (XIVE).
    pub esb: OnceLock<Esb>,
    state: Mutex<IrqState>,
}

impl Irq {
    /// Takes its lock if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, IrqState>> {
        self.state.try_lock().ok()
    }

    /// Takes its lock.
    pub fn lock(&self) -> MutexGuard<'_, IrqState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages to one vCPU, and the ground truth of its IPIs.
#[derive(Debug, Default)]
pub struct Mailbox {
    sent: AtomicU64,
    seen: AtomicU64,
    stamp: AtomicU64,
    credit: AtomicU64,
    /// "Take yourself off."
    pub go_off: AtomicBool,
    /// "Another kernel takes over: stop."
    pub stop: AtomicBool,
}

impl Mailbox {
    /// An empty one. An IPI to the kernel before this one may still come, once.
    fn new() -> Self {
        let mailbox = Self::default();
        mailbox.credit.store(1, Ordering::Relaxed);
        mailbox
    }

    /// Before the IPI is sent. Several vCPUs may do so at once.
    pub fn post(&self) {
        self.stamp.store(now(), Ordering::Relaxed);
        self.sent.fetch_add(1, Ordering::AcqRel);
    }

    /// The IPI's handler. Only the vCPU itself calls this.
    pub fn read(&self) -> Found {
        let seen = self.seen.load(Ordering::Relaxed);
        let sent = self.sent.load(Ordering::Acquire);
        let credit = self.credit.load(Ordering::Relaxed);
        if sent > seen {
            self.credit
                .store(credit + sent - seen - 1, Ordering::Relaxed);
            self.seen.store(sent, Ordering::Release);
            Found::New(now().saturating_sub(self.stamp.load(Ordering::Relaxed)))
        } else if credit > 0 {
            self.credit.store(credit - 1, Ordering::Relaxed);
            Found::Repeat
        } else {
            Found::Nothing
        }
    }

    /// The order to go off, once.
    pub fn take_go_off(&self) -> bool {
        self.go_off.swap(false, Ordering::AcqRel)
    }

    /// The order to stop, once.
    pub fn take_stop(&self) -> bool {
        self.stop.swap(false, Ordering::AcqRel)
    }

    /// How many have been sent that the handler has not read.
    pub fn outstanding(&self) -> u64 {
        let seen = self.seen.load(Ordering::Acquire);
        self.sent.load(Ordering::Acquire).saturating_sub(seen)
    }
}

/// Which vCPUs are on.
#[derive(Clone, Debug)]
pub struct Topology {
    /// By index.
    pub on: Vec<bool>,
}

impl Topology {
    /// A vCPU that is on, other than `not` if there is one.
    pub fn pick(&self, rng: &mut Rng, not: Option<u32>) -> Option<u32> {
        let on: Vec<u32> = (0..self.on.len() as u32)
            .filter(|&i| self.on[i as usize] && Some(i) != not)
            .collect();
        (!on.is_empty()).then(|| on[rng.below(on.len() as u64) as usize])
    }

    /// How many are on.
    pub fn count(&self) -> usize {
        self.on.iter().filter(|on| **on).count()
    }
}

/// What survives a kernel: the machine, its devices, its vCPUs.
pub struct Platform {
    /// Way to the controller.
    pub board: Arc<dyn Board>,
    /// All devices.
    pub devices: Arc<Devices>,
    /// Counters.
    pub tally: Arc<Tally>,
    /// One sleeping place per vCPU.
    pub halts: Arc<Vec<Halt<Role>>>,
    /// Distance of server numbers.
    pub stride: u32,
    /// The vCPUs' ways to the controller, by index.
    pub cpus: Vec<Arc<dyn Cpu>>,
    /// The kernel that runs now.
    pub current: Mutex<Option<Arc<Kernel>>>,
    /// Trigger → handler, by vCPU.
    pub latencies: Vec<Mutex<Latencies>>,
    /// Why the run cannot go on.
    pub failure: Mutex<Option<String>>,
}

impl Platform {
    /// The kernel that runs now.
    pub fn kernel(&self) -> Option<Arc<Kernel>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// The run cannot go on; the first reason counts.
    pub fn fail(&self, why: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(why);
    }

    /// Why the run cannot go on, if it cannot.
    pub fn failed(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }

    /// Another kernel runs from now on.
    pub fn install(&self, kernel: &Arc<Kernel>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(kernel.clone());
    }
}

/// One kernel, from boot to reset or kexec.
pub struct Kernel {
    /// The machine.
    pub platform: Arc<Platform>,
    /// Counts kernels of the run.
    pub number: u64,
    /// The controller it uses.
    pub choice: Choice,
    /// All its interrupts; index 0 is the VMM's event source.
    pub irqs: Vec<Irq>,
    /// Number → index.
    pub by_lisn: HashMap<u32, usize>,
    /// Which vCPUs are on.
    pub topology: RwLock<Topology>,
    /// By vCPU.
    pub mail: Vec<Mailbox>,
    /// IPI sources of the vCPUs (XIVE), set before a vCPU is started.
    pub ipis: Vec<Mutex<Esb>>,
    /// The next kernel is about to take over: no vCPU comes or goes any more.
    pub ending: AtomicBool,
    /// vCPUs that have stopped for it.
    pub stopped: Mutex<usize>,
    /// One more has.
    pub one_stopped: Condvar,
    /// Queues of vCPUs that were taken off: filled with a pattern (XIVE).
    pub freed_queues: Vec<AtomicBool>,
    /// The kernel has booted and its devices may run.
    pub ready: AtomicBool,
}

impl Kernel {
    /// A kernel for this machine as it is now.
    pub fn new(platform: &Arc<Platform>, number: u64, choice: Choice) -> Self {
        let sources = platform.devices.sources.iter().enumerate();
        let irqs: Vec<Irq> = sources
            .map(|(index, source)| Irq {
                index,
                lisn: source.lisn(),
                lsi: source.kind == crate::tally::Kind::Lsi,
                ..Irq::default()
            })
            .collect();
        let vcpus = platform.cpus.len();
        Self {
            platform: platform.clone(),
            number,
            choice,
            by_lisn: irqs.iter().map(|irq| (irq.lisn, irq.index)).collect(),
            irqs,
            topology: RwLock::new(Topology {
                on: vec![false; vcpus],
            }),
            mail: (0..vcpus).map(|_| Mailbox::new()).collect(),
            ipis: (0..vcpus).map(|_| Mutex::default()).collect(),
            freed_queues: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            ending: AtomicBool::new(false),
            stopped: Mutex::new(0),
            one_stopped: Condvar::new(),
            ready: AtomicBool::new(false),
        }
    }

    /// Server number of a vCPU.
    pub fn server(&self, vcpu: u32) -> u32 {
        vcpu * self.platform.stride
    }

    /// Counters.
    pub fn tally(&self) -> &Tally {
        &self.platform.tally
    }

    /// Which vCPUs are on, while the guard is held.
    pub fn online(&self) -> RwLockReadGuard<'_, Topology> {
        self.topology.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has booted.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// QEMU 7.2 forgets a rejected MSI that is masked before its resend (xics.md §0.10): a driver
    /// then has to ask its device.
    pub fn drops_masked(&self) -> bool {
        self.platform.board.machine().compat == Compat::Qemu72
    }

    /// IPIs that were sent and not seen, of vCPUs that are on.
    pub fn lost_ipis(&self) -> Vec<(u32, u64)> {
        let topology = self.online();
        let mail = self.mail.iter().enumerate();
        mail.filter(|(i, _)| topology.on[*i])
            .map(|(i, m)| (i as u32, m.outstanding()))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    /// The queue of a vCPU: its address and log2 size. Every second one is a single 4 KiB page, so
    /// that queues wrap.
    pub fn queue_of(&self, vcpu: u32) -> (u64, u32) {
        let order = if (u64::from(vcpu) + self.number) % 2 == 1 {
            16
        } else {
            12
        };
        (QUEUES + u64::from(vcpu) * 0x1_0000, order)
    }
}

/// Where event queues are in guest RAM, 64 KiB for each vCPU.
pub const QUEUES: u64 = 0x10_0000;

/// A hypercall that configures, repeated while it is busy, as Linux does.
pub fn configure(cpu: &dyn Cpu, tally: &Tally, op: u64, args: [u64; 9]) -> Step<(i64, [u64; 9])> {
    Tally::one(&tally.configured);
    loop {
        let mut out = args;
        let code = cpu.hcall(op, &mut out)?;
        if code != ret::H_BUSY {
            return Ok((code, out));
        }
        Tally::one(&tally.busy);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The same, for a call that must succeed.
pub fn must(cpu: &dyn Cpu, tally: &Tally, op: u64, args: &[u64]) -> Step<[u64; 9]> {
    let mut all = [0; 9];
    all[..args.len()].copy_from_slice(args);
    let (code, out) = configure(cpu, tally, op, all)?;
    if code != ret::H_SUCCESS {
        tally.wrong(format!("hcall {op:#x} {args:x?} answered {code}"));
    }
    Ok(out)
}

/// A call that is answered without the daemon; it must succeed.
pub fn call(cpu: &dyn Cpu, tally: &Tally, op: u64, args: &[u64]) -> Step<[u64; 9]> {
    let mut all = [0; 9];
    all[..args.len()].copy_from_slice(args);
    let code = cpu.hcall(op, &mut all)?;
    let known_busy = code == ret::H_BUSY && op >= opcode::H_INT_GET_SOURCE_INFO;
    if known_busy {
        std::thread::sleep(Duration::from_micros(50));
        return call(cpu, tally, op, args);
    }
    if code != ret::H_SUCCESS {
        tally.wrong(format!("hcall {op:#x} {args:x?} answered {code}"));
    }
    Ok(all)
}
