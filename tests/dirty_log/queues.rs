//! A guest whose interrupts go to queues in its RAM, and a copy of that RAM.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::{DirtyPages, Executor, GuestRam, LOG_PAGE};

use crate::bench::{Bench, How, OV5_XIVE};

/// The sources: MSIs from here on.
pub const MSI: u32 = 0x1300;
pub const SOURCES: u32 = 8;
/// Bytes of guest RAM.
pub const RAM: u64 = 16 << 20;
/// Where queues may be; below it the VMM writes, above it nobody.
const FIRST_QUEUE: u64 = 4 << 20;
const AFTER_QUEUES: u64 = 12 << 20;
const PRIORITY: u64 = 6;

/// A small generator: the same walk for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

/// A XIVE guest with two vCPUs, a queue for each, and [`SOURCES`] sources that are on.
pub fn guest(how: &How) -> Bench {
    let bench = Bench::start(how);
    assert_eq!(bench.vcpus[0].cas(&OV5_XIVE).unwrap().ret, 0);
    for server in 0..2 {
        set_queue(&bench, server, FIRST_QUEUE + server * 0x1_0000, 16);
    }
    for lisn in MSI..MSI + SOURCES {
        bench.claim(lisn, false);
        route(&bench, lisn, u64::from(lisn) % 2);
    }
    bench
}

/// Every way to run it, with a name.
pub fn ways() -> [(&'static str, How); 3] {
    let [mapped, remote, forwarded] = How::all(IcMode::Xive);
    [
        ("mapped", mapped),
        ("remote", remote),
        ("forward all", forwarded),
    ]
}

pub fn mapped() -> How {
    How::mapped(IcMode::Xive)
}

pub fn remote() -> How {
    How::remote(IcMode::Xive)
}

fn must(bench: &Bench, opcode: u64, args: &[u64]) {
    let (ret, _) = bench.hcall(0, opcode, args);
    assert_eq!(ret, 0, "hcall {opcode:#x} {args:x?}");
}

fn set_queue(bench: &Bench, server: u64, gpa: u64, size: u64) {
    let args = [1, server, PRIORITY, gpa, size];
    must(bench, opcode::H_INT_SET_QUEUE_CONFIG, &args);
}

/// The queue of a vCPU is somewhere else from now on.
pub fn move_queue(bench: &Bench, dice: &mut Dice) {
    let size = [12, 16][dice.below(2) as usize];
    let places = (AFTER_QUEUES - FIRST_QUEUE) >> size;
    let gpa = FIRST_QUEUE + (dice.below(places) << size);
    set_queue(bench, dice.below(2), gpa, size);
}

/// The source's events go to this vCPU.
pub fn route(bench: &Bench, lisn: u32, server: u64) {
    let args = [2, lisn.into(), server, PRIORITY, lisn.into()];
    must(bench, opcode::H_INT_SET_SOURCE_CONFIG, &args);
}

/// The source's next event reaches a queue, whatever was before: PQ 00.
pub fn ready(bench: &Bench, lisn: u32) {
    let pq_00 = (u64::from(lisn) << 17) + 0x1_0c00;
    bench.vcpus[0].esb_load(pq_00, 8).unwrap();
}

/// One event, which reaches a queue.
pub fn fire(bench: &Bench, lisn: u32) {
    ready(bench, lisn);
    bench.trigger(lisn);
}

/// The events in the queues that a new guest has, by source.
pub fn events(bench: &Bench) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    for gpa in (FIRST_QUEUE..FIRST_QUEUE + 0x2_0000).step_by(4) {
        let entry = bench.ram.read_u32_be(gpa).unwrap();
        if entry != 0 {
            *found.entry(entry & 0x7fff_ffff).or_default() += 1;
        }
    }
    found
}

/// The VMM writes a byte, somewhere below the queues, through the library.
pub fn vmm_writes(bench: &Bench, dice: &mut Dice) {
    let gpa = dice.below(FIRST_QUEUE);
    assert!(bench.ram.write(gpa, &[dice.below(256) as u8]));
}

/// This page may have been written.
pub fn is_written_to(gpa: u64) -> bool {
    gpa < AFTER_QUEUES
}

/// This page is a queue's.
pub fn is_queue(gpa: u64) -> bool {
    (FIRST_QUEUE..AFTER_QUEUES).contains(&gpa)
}

pub fn other(executor: Executor) -> Executor {
    match executor {
        Executor::Daemon => Executor::FrontEnd,
        Executor::FrontEnd => Executor::Daemon,
    }
}

/// RAM on the other side of a migration.
pub struct Copy {
    ram: Arc<GuestRam>,
    bytes: Vec<u8>,
}

impl Copy {
    /// All of it, as it is now.
    pub fn of(bench: &Bench) -> Self {
        let ram = Arc::clone(&bench.ram);
        let mut bytes = vec![0; RAM as usize];
        assert!(ram.read(0, &mut bytes));
        Self { ram, bytes }
    }

    /// What was sent so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// These pages are sent.
    pub fn update(&mut self, pages: &DirtyPages) {
        for gpa in pages.iter() {
            let at = gpa as usize;
            let page = &mut self.bytes[at..at + LOG_PAGE as usize];
            assert!(self.ram.read(gpa, page));
        }
    }

    /// Pages that differ from the guest's.
    pub fn differing(&self) -> BTreeSet<u64> {
        let mut now = vec![0; RAM as usize];
        assert!(self.ram.read(0, &mut now));
        let size = LOG_PAGE as usize;
        let pages = self.bytes.chunks(size).zip(now.chunks(size));
        let differing = (0..).zip(pages).filter(|(_, (was, is))| was != is);
        differing.map(|(page, _)| page * LOG_PAGE).collect()
    }
}
