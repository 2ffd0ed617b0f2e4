//! The machine on a real daemon, through the front-end crate. This is what embedding papr-intc takes:
//! start it with guest RAM and a kick callback, connect the vCPUs, pass the guest's calls on.
//!
//! The guest can be moved to another daemon while it runs ([`migrate`]). Three locks stand for what a VMM
//! does in other ways: it stops its vCPUs ([`Seat`]), stops its devices ([`Real::place`]), and changes
//! nothing else meanwhile ([`Wiring`]). They are taken in the order wiring, seats, place.

mod migrate;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use papr_intc_frontend::{Error, Executor, GuestRam, Intc, Kick, Launcher, Options, Vcpu};
use papr_intc_protocol::layout::{Machine, Page, Storage};
use papr_intc_protocol::papr::codes::RtasCall;
use papr_intc_protocol::wire::handshake::query;
use papr_intc_protocol::wire::source::{ANY, Claim, claim_flag};
use vmm_sys_util::eventfd::EventFd;

use crate::board::{Board, CasAnswer, Cpu, Gone, Numbers, Step};
use crate::moves::{GoesOn, Moved};

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// Longer than any transition takes.
const QUIESCE_LIMIT: Duration = Duration::from_secs(10);

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
    ram: Arc<GuestRam>,
    kick: Kick,
    options: Options,
    /// Releases to take turns, and whose turn it was.
    releases: [Launcher; 2],
    release: AtomicUsize,
    /// Where the guest's interrupts are; a device holds it while it sends one.
    place: RwLock<Intc>,
    /// The same, and during a move the one that they go to: what a kill can hit.
    alive: Mutex<Vec<Intc>>,
    wiring: Mutex<Wiring>,
}

/// What the VMM has told the controller and would have to tell another one. Whoever changes the
/// configuration of the machine holds it.
struct Wiring {
    seats: Vec<Arc<Seat>>,
    /// Fixed numbers; whether each is an LSI.
    fixed: Vec<(u32, bool)>,
    irqfds: BTreeMap<u32, EventFd>,
    executor: Executor,
}

/// The place of one vCPU, which holds it during each of its operations: who holds it for writing has
/// stopped the vCPU between two of them.
struct Seat {
    server: u32,
    vcpu: RwLock<Vcpu>,
}

impl Real {
    /// Starts the daemon. `kick(server)`: look again at that vCPU's line.
    pub fn start(setup: Setup, kick: Kick) -> Step<Self> {
        let ram = setup.ram;
        let executor = match setup.remote {
            true => Executor::Daemon,
            false => Executor::FrontEnd,
        };
        let options = Options {
            executor,
            forward_all: setup.forward_all,
            name: "mock_vmm".into(),
            ..Options::new(setup.machine)
        };
        let quiet: [OsString; 2] = ["--log-level".into(), "error".into()];
        let launcher = |binary: &Path| Launcher::spawn(binary, quiet.to_vec());
        let this = launcher(&setup.daemon);
        let next = setup.next.as_deref().map_or(this.clone(), launcher);
        let intc = Intc::start(options.clone(), this.clone(), ram.clone(), kick.clone())
            .map_err(|e| Gone(format!("{}: {e}", setup.daemon.display())))?;
        Ok(Self {
            ram,
            kick,
            options,
            releases: [this, next],
            release: AtomicUsize::new(0),
            alive: Mutex::new(vec![intc.clone()]),
            place: RwLock::new(intc),
            wiring: Mutex::new(Wiring {
                seats: Vec::new(),
                fixed: Vec::new(),
                irqfds: BTreeMap::new(),
                executor,
            }),
        })
    }

    fn intc(&self) -> RwLockReadGuard<'_, Intc> {
        read(&self.place)
    }

    /// Makes the controller forget which sources wait to be sent again on a vCPU: a fault, on purpose.
    pub fn forget_resend(&self, server: u32) {
        if let Some(storage) = self.intc().storage() {
            // Relaxed: this is meant to be wrong.
            storage
                .page(Page::PendingRoot(server))
                .swap(0, Ordering::Relaxed);
        }
    }
}

impl Board for Real {
    fn machine(&self) -> Machine {
        self.options.machine
    }
    fn connect(&self, server: u32) -> Step<Arc<dyn Cpu>> {
        let mut wiring = lock(&self.wiring);
        let vcpu = RwLock::new(self.intc().connect_vcpu(server)?);
        let seat = Arc::new(Seat { server, vcpu });
        wiring.seats.push(seat.clone());
        Ok(seat)
    }
    fn trigger(&self, lisn: u32) -> Step {
        Ok(self.intc().source(lisn)?.trigger()?)
    }
    fn set_level(&self, lisn: u32, level: bool) -> Step {
        Ok(self.intc().source(lisn)?.set_level(level)?)
    }
    fn add_irqfd(&self, lisn: u32, event: &EventFd) -> Step {
        let mut wiring = lock(&self.wiring);
        self.intc().add_irqfd(lisn, event)?;
        let event = event.try_clone().map_err(|e| Gone(e.to_string()))?;
        wiring.irqfds.insert(lisn, event);
        Ok(())
    }
    fn remove_irqfd(&self, lisn: u32) -> Step {
        let mut wiring = lock(&self.wiring);
        self.intc().remove_irqfd(lisn)?;
        wiring.irqfds.remove(&lisn);
        Ok(())
    }
    fn claim(&self, numbers: Numbers) -> Step<u32> {
        let mut wiring = lock(&self.wiring);
        let claim = match numbers {
            Numbers::Fixed(lisn, lsi) => {
                wiring.fixed.push((lisn, lsi));
                fixed(lisn, lsi)
            }
            Numbers::Msis(count, range) => Claim {
                first: ANY,
                count,
                align: count,
                flags: claim_flag::MSI,
                low: range.start,
                high: range.end,
            },
        };
        Ok(self.intc().claim(&claim)?)
    }
    fn machine_reset(&self) -> Step {
        let _still = lock(&self.wiring);
        Ok(self.intc().machine_reset(true)?)
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
    fn daemons(&self) -> Vec<u32> {
        let alive = lock(&self.alive);
        alive.iter().filter_map(Intc::daemon_pid).collect()
    }
    fn ask(&self) -> Step {
        let alive = lock(&self.alive).clone();
        for intc in alive {
            match intc.query(query::STATUS, 0) {
                // The guest has moved away from it meanwhile, or has not gone there.
                Ok(_) | Err(Error::ShutDown) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
    fn upgrade(&self) -> Step {
        let _still = lock(&self.wiring);
        let turn = self.release.fetch_add(1, Ordering::Relaxed) + 1;
        self.intc().upgrade(self.releases[turn % 2].clone())?;
        Ok(())
    }
    fn switch(&self) -> Step {
        let mut wiring = lock(&self.wiring);
        let to = match wiring.executor {
            Executor::FrontEnd => Executor::Daemon,
            Executor::Daemon => Executor::FrontEnd,
        };
        let intc = self.intc();
        intc.quiesce(QUIESCE_LIMIT)?;
        intc.resume(Some(to))?;
        wiring.executor = to;
        Ok(())
    }
    fn plug(&self) -> Step {
        let _still = lock(&self.wiring);
        // The last server number is nobody's: the guest does not start that vCPU.
        let vcpu = self.intc().connect_vcpu(self.machine().servers - 1)?;
        let line = vcpu.pending();
        vcpu.disconnect()?;
        match line {
            false => Ok(()),
            true => Err(Gone(
                "the line of a vCPU that was just plugged in is high".into(),
            )),
        }
    }
    fn migrate(&self, goes_on: &GoesOn) -> Step<Moved> {
        Real::migrate(self, goes_on)
    }
    fn picture(&self) -> String {
        let picture = self.intc().query(query::PIC, 0);
        picture.unwrap_or_else(|e| e.to_string())
    }
}

/// The claim of a fixed number.
fn fixed(first: u32, lsi: bool) -> Claim {
    Claim {
        first,
        count: 1,
        align: 1,
        flags: if lsi { claim_flag::LSI } else { 0 },
        low: 0,
        high: 0,
    }
}

impl Seat {
    fn vcpu(&self) -> RwLockReadGuard<'_, Vcpu> {
        read(&self.vcpu)
    }
}

impl Cpu for Seat {
    fn hcall(&self, opcode: u64, args: &mut [u64; 9]) -> Step<i64> {
        Ok(self.vcpu().hcall(opcode, args)?)
    }
    fn rtas(&self, call: RtasCall, args: &[u32], nret: u32) -> Step<Vec<u32>> {
        Ok(self.vcpu().rtas(call, args, nret)?)
    }
    fn cas(&self, ov5: &[u8]) -> Step<CasAnswer> {
        let reply = self.vcpu().cas(ov5)?;
        Ok(CasAnswer {
            ret: reply.ret,
            byte_23: reply.byte_23,
            fdt: reply.fdt.0,
        })
    }
    fn esb_load(&self, offset: u64) -> Step<u64> {
        Ok(self.vcpu().esb_load(offset, 8)?)
    }
    fn esb_store(&self, offset: u64, value: u64) -> Step {
        Ok(self.vcpu().esb_store(offset, 8, value)?)
    }
    fn tima_load(&self, offset: u64, size: u8) -> Step<u64> {
        Ok(self.vcpu().tima_load(offset, size)?)
    }
    fn tima_store(&self, offset: u64, size: u8, value: u64) -> Step {
        Ok(self.vcpu().tima_store(offset, size, value)?)
    }
    fn pending(&self) -> bool {
        self.vcpu().pending()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
