//! Guest memory as the daemon sees it: where event-queue entries are written.
//!
//! The VMM shares its memory by SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG; the inner vhost-user daemon maps it. A table is
//! published here only after every region of it has been checked and tied to the dirty log, so a writer never sees
//! a region whose writes would go unmarked. Regions are mapped whole and never populated.
//!
//! Published by the inner vhost-user thread, cleared by the thread that owns [`super::Standard`], written through by
//! whoever holds a [`GuestRam`].

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use nix::libc;
use nix::sys::stat::fstat;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::dirty_log::{DirtyLog, LOG_PAGE, LogBitmap};
use crate::memory::foreign;

/// A memory table with dirty logging.
pub(super) type Table = GuestMemoryMmap<LogBitmap>;

/// Memory slots offered by GET_MAX_MEM_SLOTS; the crate answers the number but does not hold anybody to it.
pub(super) const MAX_SLOTS: usize = 509;

/// A handle on guest memory. Cheap to clone; every clone follows the table as the VMM changes it.
#[derive(Clone, Debug)]
pub struct GuestRam {
    published: GuestMemoryAtomic<Table>,
}

impl GuestRam {
    pub(super) fn new() -> Self {
        Self {
            published: GuestMemoryAtomic::new(Table::new()),
        }
    }

    /// Writes the event-queue entry `entry` (the number as the guest reads it) at the guest physical address `gpa`, in
    /// big-endian order, as one store, and marks the page in the dirty log. False, with nothing written: no memory
    /// there, or `gpa` is not a multiple of 4.
    #[must_use]
    pub fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        #[cfg(feature = "crash-points")]
        papr_intc_protocol::layout::probe::write_to_ram(gpa);
        // Release: pairs with the guest's load of the entry, as a queue producer's store does on hardware: whatever was
        // written before the event is visible to whoever finds the entry.
        let memory = self.published.memory();
        let gpa = GuestAddress(gpa);
        memory.store(entry.to_be(), gpa, Ordering::Release).is_ok()
            && !memory
                .get_host_address(gpa)
                .is_ok_and(|address| foreign::is_lost(address.addr()))
    }

    /// Marks the page of `gpa` in the dirty log, without writing.
    pub fn mark_written(&self, gpa: u64) {
        let memory = self.published.memory();
        if let Some((region, at)) = memory.to_region_addr(GuestAddress(gpa)) {
            region.bitmap().mark_dirty(at.raw_value() as usize, 1);
        }
    }

    /// The entry at `gpa`, or None as for [`Self::write_queue_entry`]. Also the way to fault a page in before a lock is
    /// taken.
    #[must_use]
    pub fn read_queue_entry(&self, gpa: u64) -> Option<u32> {
        // Relaxed: only this process's own stores to a queue matter to it, and those it reads in program order.
        let stored = self
            .published
            .memory()
            .load::<u32>(GuestAddress(gpa), Ordering::Relaxed);
        stored.ok().map(u32::from_be)
    }

    /// All of `[gpa, gpa + len)` is guest memory, be it in several adjacent regions. False for an empty range and for one
    /// that wraps.
    #[must_use]
    pub fn is_backed(&self, gpa: u64, len: u64) -> bool {
        if gpa.checked_add(len).is_none() {
            return false;
        }
        let Ok(len) = usize::try_from(len) else {
            return false;
        };
        len > 0
            && GuestMemoryBackend::check_range(&*self.published.memory(), GuestAddress(gpa), len)
    }

    /// Regions mapped at present.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.published.memory().num_regions()
    }

    /// Publishes the table the inner daemon has just made, or puts the inner daemon back to the published one.
    ///
    /// # Errors
    /// A region that cannot be accepted, named; nothing has changed for the writers.
    pub(super) fn publish(
        &self,
        made: &GuestMemoryAtomic<Table>,
        log: &Arc<DirtyLog>,
    ) -> io::Result<()> {
        let table = made.memory().clone();
        match accept(&table, log) {
            Ok(()) => {
                // Files that are cut short cost their regions, those that go until they are gone.
                let regions = host_ranges(&table, log);
                foreign::guard(&regions);
                replace(&self.published, Table::clone(&table));
                foreign::guard_only(&regions);
                Ok(())
            }
            Err(error) => {
                replace(made, Table::clone(&self.published.memory()));
                Err(error)
            }
        }
    }

    /// There is another log: its file, too, may be cut short.
    pub(super) fn guard_log(&self, log: &DirtyLog) {
        let regions = host_ranges(&self.published.memory(), log);
        foreign::guard(&regions);
        foreign::guard_only(&regions);
    }

    /// Unmaps everything: the VMM has gone.
    pub(super) fn clear(&self) {
        replace(&self.published, Table::new());
    }
}

/// Where the regions are mapped, and their log.
fn host_ranges(table: &Table, log: &DirtyLog) -> Vec<Range<usize>> {
    let host = |region: &GuestRegionMmap<LogBitmap>| {
        let start = region.as_ptr().addr();
        start..start + region.size()
    };
    let ends = table.iter().map(|r| r.start_addr().0 + r.len());
    let log = log.mapping(ends.max().unwrap_or(0));
    table.iter().map(host).chain(log).collect()
}

fn replace(memory: &GuestMemoryAtomic<Table>, table: Table) {
    memory
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .replace(table);
}

/// Checks what the crate does not check, then ties the regions to the log.
fn accept(table: &Table, log: &Arc<DirtyLog>) -> io::Result<()> {
    let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if table.num_regions() > MAX_SLOTS {
        return refuse(format!("more than {MAX_SLOTS} memory regions"));
    }
    for region in table.iter() {
        let (start, len) = (region.start_addr().0, region.len());
        if start % LOG_PAGE != 0 || len % LOG_PAGE != 0 {
            return refuse(format!(
                "region {start:#x}+{len:#x} is not made of whole 4 KiB pages"
            ));
        }
        if let Some(file) = region.file_offset()
            && !reaches(file.file(), file.start(), len)?
        {
            return refuse(format!(
                "region {start:#x}+{len:#x} is longer than its file"
            ));
        }
        region.bitmap().attach(region, log)?;
    }
    Ok(())
}

/// A regular file holds `[start, start + len)`: touching a mapped page beyond the end would be a SIGBUS. Says yes to
/// what has no length of its own, such as a device.
pub(super) fn reaches(file: impl AsFd, start: u64, len: u64) -> io::Result<bool> {
    let stat = fstat(file)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(true);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Ok(start.checked_add(len).is_some_and(|end| end <= size))
}

impl crate::memory::QueueMemory for GuestRam {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        self.write_queue_entry(gpa, entry)
    }
    fn mark_written(&self, gpa: u64) {
        self.mark_written(gpa);
    }
    fn is_backed(&self, gpa: u64, len: u64) -> bool {
        self.is_backed(gpa, len)
    }
}
