//! A VMM on a daemon that somebody else started, small enough to be killed at any moment.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};
use papr_intc_frontend::{
    Error, Executor, GuestRam, Intc, Launcher, Memory, Options, Vcpu, WatchLimits,
};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::harness::LONG;

/// A daemon that is slow on a busy machine is not replaced: there is no other one.
const PATIENT: WatchLimits = WatchLimits {
    patience: LONG,
    answer: LONG,
    idle: None,
    message: LONG,
};

/// The sources that devices trigger; the last one has an irqfd where the daemon reads those.
pub const FIRST: u32 = 0x1000;
pub const SOURCES: u32 = 512;
/// Bytes of guest RAM.
pub const RAM: u64 = 1 << 20;

/// Where devices note what they do: a word for each source.
const NOTES: u64 = 0x1000;
/// The VMM is ready: its devices begin.
const READY: u64 = 0x800;
/// Event queues of the two servers, 2^12 bytes each: more entries than sources.
const QUEUES: [u64; 2] = [0x1_0000, 0x2_0000];
const QUEUE_SHIFT: u64 = 12;

const ESB_SHIFT: u32 = 17;
const MANAGEMENT: u64 = 0x1_0000;
const TIMA_OS: u64 = 0x2_0000;
const OV5_XIVE: [u8; 26] = {
    let mut v = [0; 26];
    v[0] = 24;
    v[23] = 0x40;
    v
};

/// How the machine is run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub ic_mode: IcMode,
    pub executor: Executor,
    /// The VMM has stopped the machine before its devices begin.
    pub quiesced: bool,
}

impl Setup {
    /// Each controller, run by each side.
    pub fn all() -> impl Iterator<Item = Self> {
        let modes = [IcMode::Xics, IcMode::Dual].into_iter();
        modes.flat_map(|ic_mode| {
            [Executor::FrontEnd, Executor::Daemon].map(|executor| Self {
                ic_mode,
                executor,
                quiesced: false,
            })
        })
    }

    fn xive(&self) -> bool {
        self.ic_mode == IcMode::Dual
    }
}

/// What a device noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    Nothing,
    /// About to trigger.
    Asked,
    /// The trigger has returned.
    Done,
}

/// Guest RAM in a file.
pub fn map(path: &Path) -> Arc<GuestRam> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file: File = file.unwrap();
    let range = (
        GuestAddress(0),
        RAM as usize,
        Some(FileOffset::new(file, 0)),
    );
    let memory = Memory::from_ranges_with_files([range]).unwrap();
    Arc::new(GuestRam::from_memory(memory))
}

pub fn note(ram: &GuestRam, source: u32) -> Note {
    match ram.read_u32_be(NOTES + 4 * u64::from(source)).unwrap() {
        0 => Note::Nothing,
        1 => Note::Asked,
        _ => Note::Done,
    }
}

fn take_note(ram: &GuestRam, source: u32, note: Note) {
    assert!(ram.write_u32_be(NOTES + 4 * u64::from(source), note as u32));
}

/// This test binary as a VMM.
pub fn spawn(setup: &Setup, socket: &Path, ram: &Path) -> Child {
    File::options()
        .write(true)
        .open(ram)
        .unwrap()
        .set_len(RAM)
        .unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "vmm::vmm_process"])
        .env("VMM_SOCKET", socket)
        .env("VMM_RAM", ram)
        .env("VMM_XIVE", setup.xive().to_string())
        .env(
            "VMM_REMOTE",
            (setup.executor == Executor::Daemon).to_string(),
        )
        .env("VMM_QUIESCED", setup.quiesced.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// kill -9 when the devices have triggered so often.
pub fn kill_after(mut vmm: Child, ram: &GuestRam, after: u32) {
    let until = Instant::now() + LONG;
    let begun = || ram.read_u32_be(READY) == Some(1);
    while !begun() || after > 0 && note(ram, after - 1) != Note::Done {
        assert!(Instant::now() < until, "the VMM does nothing");
        assert!(
            vmm.try_wait().unwrap().is_none(),
            "the VMM has ended by itself"
        );
        std::hint::spin_loop();
    }
    vmm.kill().unwrap();
    vmm.wait().unwrap();
}

/// Not a test: the body of the VMM that is killed. Does nothing without its environment.
#[test]
fn vmm_process() {
    let is = |name| std::env::var(name).is_ok_and(|v| v == "true");
    let Some(socket) = std::env::var_os("VMM_SOCKET") else {
        return;
    };
    let setup = Setup {
        ic_mode: match is("VMM_XIVE") {
            true => IcMode::Dual,
            false => IcMode::Xics,
        },
        executor: match is("VMM_REMOTE") {
            true => Executor::Daemon,
            false => Executor::FrontEnd,
        },
        quiesced: is("VMM_QUIESCED"),
    };
    let ram = map(Path::new(&std::env::var_os("VMM_RAM").unwrap()));
    let guest = Guest::start(&setup, Launcher::connect(socket), Arc::clone(&ram)).unwrap();
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.intc.add_irqfd(FIRST + SOURCES - 1, &irqfd).unwrap();
    if setup.quiesced {
        guest.intc.quiesce(LONG).unwrap();
    }
    assert!(ram.write_u32_be(READY, 1));
    for source in 0..SOURCES {
        // In mapped mode the count of an irqfd dies with the VMM that was to read it.
        let by_irqfd = source == SOURCES - 1 && setup.executor == Executor::Daemon;
        take_note(&ram, source, Note::Asked);
        if by_irqfd {
            irqfd.write(1).unwrap();
        } else {
            guest.trigger(FIRST + source);
        }
        take_note(&ram, source, Note::Done);
    }
    // Killed here at the latest.
    loop {
        std::thread::park();
    }
}

/// A guest with two vCPUs that take interrupts when they are told to.
pub struct Guest {
    pub intc: Intc,
    ram: Arc<GuestRam>,
    vcpus: Vec<Vcpu>,
    xive: bool,
    /// Entries read from each queue.
    read: [u64; 2],
}

impl Guest {
    /// A VMM's first words to a daemon: a new guest, or one that is there.
    pub fn connect(setup: &Setup, launcher: Launcher, ram: Arc<GuestRam>) -> Result<Self, Error> {
        let machine = Machine::pseries(setup.ic_mode, Compat::Papr1, 4);
        let options = Options {
            executor: setup.executor,
            watch: PATIENT,
            ..Options::new(machine)
        };
        let intc = Intc::start(options, launcher, Arc::clone(&ram), Arc::new(|_| ()))?;
        let vcpus = [0, 1].map(|s| intc.connect_vcpu(s).unwrap()).into();
        Ok(Self {
            intc,
            ram,
            vcpus,
            xive: setup.xive(),
            read: [0; 2],
        })
    }

    /// A new guest, booted so far that its devices may trigger.
    pub fn start(setup: &Setup, launcher: Launcher, ram: Arc<GuestRam>) -> Result<Self, Error> {
        let guest = Self::connect(setup, launcher, ram)?;
        let claim = Claim {
            first: FIRST,
            count: SOURCES,
            align: 1,
            flags: claim_flag::MSI,
            low: 0,
            high: 0,
        };
        guest.intc.claim(&claim).unwrap();
        if guest.xive {
            guest.vcpus[0].cas(&OV5_XIVE).unwrap();
        }
        for server in [0, 1] {
            guest.open(server);
        }
        for source in 0..SOURCES {
            guest.route(FIRST + source, source % 2);
        }
        Ok(guest)
    }

    /// The guest of a VMM that is dead: it has been booted.
    pub fn take_over(setup: &Setup, launcher: Launcher, ram: Arc<GuestRam>) -> Self {
        Self::connect(setup, launcher, ram).unwrap()
    }

    fn hcall(&self, server: u32, opcode: u64, inputs: &[u64]) -> [u64; 9] {
        let mut args = [0; 9];
        args[..inputs.len()].copy_from_slice(inputs);
        let ret = self.vcpus[server as usize]
            .hcall(opcode, &mut args)
            .unwrap();
        assert_eq!(ret, 0);
        args
    }

    fn open(&self, server: u32) {
        if !self.xive {
            self.hcall(server, opcode::H_CPPR, &[0xff]);
            return;
        }
        let queue = QUEUES[server as usize];
        // Flag 1: every event notifies.
        let set = [1, server.into(), 6, queue, QUEUE_SHIFT];
        self.hcall(server, opcode::H_INT_SET_QUEUE_CONFIG, &set);
        self.cppr(server);
    }

    fn cppr(&self, server: u32) {
        let vcpu = &self.vcpus[server as usize];
        vcpu.tima_store(TIMA_OS + 0x11, 1, 0xff).unwrap();
    }

    fn route(&self, lisn: u32, server: u32) {
        if !self.xive {
            let set = self.vcpus[0].rtas(RtasCall::SetXive, &[lisn, server, 5], 1);
            assert_eq!(set.unwrap(), [0]);
            return;
        }
        // Flag 2: with the number that the entry is to carry.
        let set = [2, lisn.into(), server.into(), 6, lisn.into()];
        self.hcall(0, opcode::H_INT_SET_SOURCE_CONFIG, &set);
        let management = u64::from(lisn) << ESB_SHIFT | MANAGEMENT;
        self.vcpus[0].esb_load(management + 0xc00, 8).unwrap();
    }

    pub fn trigger(&self, lisn: u32) {
        self.intc.source(lisn).unwrap().trigger().unwrap();
    }

    /// Takes what is pending until no line is up and at least so many have come: how often each source
    /// came. The lines of a daemon that executes rise when its kick has been seen, a little later.
    pub fn drain(&mut self, at_least: u32) -> Vec<u32> {
        let mut came = vec![0; SOURCES as usize];
        let until = Instant::now() + LONG;
        loop {
            let up = (0..2).find(|s| self.vcpus[*s as usize].pending());
            let Some(server) = up else {
                if came.iter().sum::<u32>() >= at_least {
                    return came;
                }
                assert!(Instant::now() < until, "less than {at_least} have come");
                std::thread::yield_now();
                continue;
            };
            assert!(Instant::now() < until, "a line stays up");
            let mut count = |lisn: u32| came[(lisn - FIRST) as usize] += 1;
            if self.xive {
                self.take_xive(server, &mut count);
            } else {
                let xirr = self.hcall(server, opcode::H_XIRR, &[])[0];
                count(xirr as u32 & 0xff_ffff);
                self.hcall(server, opcode::H_EOI, &[xirr]);
            }
        }
    }

    fn take_xive(&mut self, server: u32, count: &mut dyn FnMut(u32)) {
        const ENTRIES: u64 = 1 << (QUEUE_SHIFT - 2);
        let vcpu = &self.vcpus[server as usize];
        vcpu.tima_load(TIMA_OS + 0x810, 2).unwrap();
        loop {
            let index = &mut self.read[server as usize];
            let at = QUEUES[server as usize] + *index % ENTRIES * 4;
            let entry = self.ram.read_u32_be(at).unwrap();
            if u64::from(entry >> 31) != (*index / ENTRIES + 1) % 2 {
                break;
            }
            *index += 1;
            let lisn = entry & 0x7fff_ffff;
            count(lisn);
            let management = u64::from(lisn) << ESB_SHIFT | MANAGEMENT;
            vcpu.esb_load(management, 8).unwrap();
        }
        self.cppr(server);
    }
}
