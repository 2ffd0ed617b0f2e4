//! The ground truth: one cell per source, in a memfd that the device process maps too.
//!
//! Before each trigger a device stores its next number in the cell; the guest's handler reads the
//! cell when it runs. Nothing of the controller under test touches these words.
//!
//! | word | written by | meaning |
//! |---|---|---|
//! | sent | the source's one device | its last number; stored before the trigger |
//! | seen | the guest's handler | the last number that a handler read |
//! | stamp | the device | when it sent `sent`, nanoseconds of CLOCK_MONOTONIC |
//!
//! `sent` is stored with Release and loaded with Acquire so that a stamp belongs to its number. That
//! does not order it against the trigger that follows: the promise that a handler finds what the
//! device stored before its trigger is the controller's, and it is what is being tested.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Bytes per cell: a cache line, so that sources don't disturb one another.
const CELL: usize = 64;

/// The cells of all sources.
#[derive(Debug)]
pub struct Cells {
    region: MmapRegion<()>,
    count: usize,
}

impl Cells {
    /// New cells, all zero, and the memfd that holds them.
    pub fn create(count: usize) -> io::Result<(Self, File)> {
        let fd: OwnedFd = memfd_create(c"mock-cells", MFdFlags::MFD_CLOEXEC)?;
        let file = File::from(fd);
        file.set_len((count * CELL) as u64)?;
        Ok((Self::open(file.try_clone()?, count)?, file))
    }

    /// The cells in `file`.
    pub fn open(file: File, count: usize) -> io::Result<Self> {
        let region = MmapRegion::from_file(FileOffset::new(file, 0), count * CELL)
            .map_err(io::Error::other)?;
        Ok(Self { region, count })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    fn word(&self, source: usize, word: usize) -> &AtomicU64 {
        self.region
            .get_atomic_ref(source * CELL + word * 8)
            .expect("sources are numbered below the count that the region was made for")
    }

    /// The device's last number.
    pub fn sent(&self, source: usize) -> u64 {
        self.word(source, 0).load(Ordering::Acquire)
    }

    /// The handler's last number.
    pub fn seen(&self, source: usize) -> u64 {
        self.word(source, 1).load(Ordering::Acquire)
    }

    /// When the last number was sent.
    pub fn stamp(&self, source: usize) -> u64 {
        self.word(source, 2).load(Ordering::Relaxed)
    }

    /// The handler has not read the last number yet.
    pub fn outstanding(&self, source: usize) -> bool {
        self.seen(source) < self.sent(source)
    }

    /// The device's next number; its one writer calls this before the trigger.
    pub fn post(&self, source: usize) {
        let next = self.word(source, 0).load(Ordering::Relaxed) + 1;
        self.word(source, 2).store(now(), Ordering::Relaxed);
        self.word(source, 0).store(next, Ordering::Release);
    }

    /// The handler has read `number`.
    pub fn saw(&self, source: usize, number: u64) {
        // Release: a device that finds its number acknowledged may post the next.
        self.word(source, 1).store(number, Ordering::Release);
    }
}

/// Nanoseconds of the monotonic clock, the same in both processes.
pub fn now() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(|t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
        .unwrap_or(0)
}
