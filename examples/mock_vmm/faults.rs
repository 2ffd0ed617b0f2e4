//! `--break`: faults put around the controller, to show that the ground truth notices them.
//!
//! Everything here wraps [`crate::board`]'s traits or the kick; the code under test is not touched.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::layout::machine::ESB_SHIFT;
use papr_intc_protocol::papr::codes::{RtasCall, opcode};
use vmm_sys_util::eventfd::EventFd;

use crate::board::{Board, CasAnswer, Cpu, Numbers, Step};
use crate::cli::Fault;
use crate::moves::{GoesOn, Moved, Phase};
use crate::rng::Rng;

/// Decides when a fault strikes.
#[derive(Debug)]
pub struct Faults {
    fault: Option<Fault>,
    rng: Mutex<Rng>,
    struck: AtomicU64,
    /// By vCPU: so many of its next kicks are dropped.
    deaf: Vec<AtomicU64>,
}

/// Kicks that a vCPU does not hear in a row. One would be made up for by the next interrupt; a wake-up
/// is lost for good only when everything that could wake the vCPU has tried.
const DEAF_FOR: u64 = 200;

impl Faults {
    /// Strikes with `fault` now and then.
    pub fn new(fault: Option<Fault>, seed: u64, vcpus: u32) -> Arc<Self> {
        Arc::new(Self {
            fault,
            rng: Mutex::new(Rng::new(seed, 0xbad)),
            struck: AtomicU64::new(0),
            deaf: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// It is time for `fault`, once in `n` times.
    pub fn strikes(&self, fault: Fault, n: u64) -> bool {
        if self.fault != Some(fault) {
            return false;
        }
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let yes = rng.one_in(n);
        self.struck.fetch_add(u64::from(yes), Ordering::Relaxed);
        yes
    }

    /// The kick of this vCPU gets lost.
    pub fn drops_kick(&self, server: u32) -> bool {
        let Some(deaf) = self.deaf.get(server as usize) else {
            return false;
        };
        let left = deaf.load(Ordering::Relaxed);
        if left > 0 {
            deaf.store(left - 1, Ordering::Relaxed);
        } else if self.strikes(Fault::Kick, 500) {
            deaf.store(DEAF_FOR, Ordering::Relaxed);
        } else {
            return false;
        }
        true
    }

    /// How often it struck.
    pub fn struck(&self) -> u64 {
        self.struck.load(Ordering::Relaxed)
    }
}

/// A board with faults.
pub struct BrokenBoard {
    /// The sound one.
    pub board: Arc<dyn Board>,
    /// When.
    pub faults: Arc<Faults>,
    /// Forgets what waits to be sent again on a server, in the controller's own memory (XICS).
    pub forget_resend: Arc<dyn Fn(u32) + Send + Sync>,
    /// The guest is between two daemons.
    pub moving: AtomicBool,
}

impl Board for BrokenBoard {
    fn machine(&self) -> Machine {
        self.board.machine()
    }
    fn connect(&self, server: u32) -> Step<Arc<dyn Cpu>> {
        Ok(Arc::new(BrokenCpu {
            cpu: self.board.connect(server)?,
            server,
            faults: self.faults.clone(),
            forget_resend: self.forget_resend.clone(),
            queued: AtomicU64::new(u64::MAX),
        }))
    }
    fn trigger(&self, lisn: u32) -> Step {
        let moving = self.moving.load(Ordering::Relaxed);
        if self.faults.strikes(Fault::Forward, 500) || moving && self.faults.strikes(Fault::Move, 1)
        {
            return Ok(());
        }
        self.board.trigger(lisn)
    }
    fn set_level(&self, lisn: u32, level: bool) -> Step {
        self.board.set_level(lisn, level)
    }
    fn add_irqfd(&self, lisn: u32, event: &EventFd) -> Step {
        self.board.add_irqfd(lisn, event)
    }
    fn remove_irqfd(&self, lisn: u32) -> Step {
        self.board.remove_irqfd(lisn)
    }
    fn claim(&self, numbers: Numbers) -> Step<u32> {
        self.board.claim(numbers)
    }
    fn machine_reset(&self) -> Step {
        self.board.machine_reset()
    }
    fn ram_read(&self, gpa: u64) -> u32 {
        let entry = self.board.ram_read(gpa);
        if entry != 0 && self.faults.strikes(Fault::Generation, 2000) {
            self.board.ram_write(gpa, entry ^ 1 << 31);
        }
        self.board.ram_read(gpa)
    }
    fn ram_write(&self, gpa: u64, value: u32) {
        self.board.ram_write(gpa, value);
    }
    fn ram_fill(&self, gpa: u64, len: u64, value: u32) {
        self.board.ram_fill(gpa, len, value);
    }
    fn ram_is_filled(&self, gpa: u64, len: u64, value: u32) -> bool {
        self.board.ram_is_filled(gpa, len, value)
    }
    fn daemons(&self) -> Vec<u32> {
        self.board.daemons()
    }
    fn ask(&self) -> Step {
        self.board.ask()
    }
    fn upgrade(&self) -> Step {
        self.board.upgrade()
    }
    fn switch(&self) -> Step {
        self.board.switch()
    }
    fn plug(&self) -> Step {
        self.board.plug()
    }
    fn migrate(&self, goes_on: &GoesOn) -> Step<Moved> {
        let moved = self.board.migrate(&|phase| {
            self.moving
                .store(phase >= Phase::Quiesced, Ordering::Relaxed);
            goes_on(phase)
        });
        self.moving.store(false, Ordering::Relaxed);
        moved
    }
    fn picture(&self) -> String {
        self.board.picture()
    }
}

/// A vCPU's way with faults.
struct BrokenCpu {
    cpu: Arc<dyn Cpu>,
    server: u32,
    faults: Arc<Faults>,
    forget_resend: Arc<dyn Fn(u32) + Send + Sync>,
    /// The source whose Q the guest has just taken and is about to send again.
    queued: AtomicU64,
}

impl Cpu for BrokenCpu {
    fn hcall(&self, op: u64, args: &mut [u64; 9]) -> Step<i64> {
        if op == opcode::H_EOI && self.faults.strikes(Fault::Resend, 50) {
            (self.forget_resend)(self.server);
        }
        self.cpu.hcall(op, args)
    }
    fn rtas(&self, call: RtasCall, args: &[u32], nret: u32) -> Step<Vec<u32>> {
        self.cpu.rtas(call, args, nret)
    }
    fn cas(&self, ov5: &[u8]) -> Step<CasAnswer> {
        self.cpu.cas(ov5)
    }
    fn esb_load(&self, offset: u64) -> Step<u64> {
        let value = self.cpu.esb_load(offset)?;
        if offset & 0xf00 == 0xc00 && value & 1 == 1 {
            self.queued.store(offset >> ESB_SHIFT, Ordering::Relaxed);
        }
        Ok(value)
    }
    fn esb_store(&self, offset: u64, value: u64) -> Step {
        let queued = self.queued.swap(u64::MAX, Ordering::Relaxed);
        if queued == offset >> ESB_SHIFT && self.faults.strikes(Fault::Resend, 100) {
            return Ok(());
        }
        self.cpu.esb_store(offset, value)
    }
    fn tima_load(&self, offset: u64, size: u8) -> Step<u64> {
        self.cpu.tima_load(offset, size)
    }
    fn tima_store(&self, offset: u64, size: u8, value: u64) -> Step {
        self.cpu.tima_store(offset, size, value)
    }
    fn pending(&self) -> bool {
        self.cpu.pending()
    }
}
