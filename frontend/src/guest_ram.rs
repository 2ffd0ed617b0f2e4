//! Guest RAM as the front-end sees it: where queue entries are written, and what the daemon is
//! handed to map (SET_MEM_TABLE).
//!
//! Every write marks its page in a dirty bitmap. There is no way to write without: a VMM that
//! forgot it would lose interrupts only after a migration (architecture §2).

use std::io;
use std::sync::atomic::Ordering;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress,
};

use crate::error::Error;

/// Guest memory with a dirty bitmap per region.
pub type Memory = GuestMemoryMmap<AtomicBitmap>;

type GuestRegion = GuestRegionMmap<AtomicBitmap>;

/// A region as SET_MEM_TABLE describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedRegion<'a> {
    pub gpa: u64,
    pub len: u64,
    /// Where the VMM has it mapped: what vhost-user's ring addresses would mean.
    pub user: u64,
    /// Its start in `file`.
    pub offset: u64,
    pub file: &'a std::fs::File,
}

/// The guest's RAM.
#[derive(Debug)]
pub struct GuestRam {
    memory: Memory,
}

impl GuestRam {
    /// Allocates regions (guest physical address, bytes), each on a memfd of its own. Pages are
    /// populated when they are touched.
    ///
    /// # Errors
    /// Regions that overlap, are empty or unaligned; no memory; no descriptors.
    pub fn new(regions: &[(u64, u64)]) -> io::Result<Self> {
        let mut ranges = Vec::new();
        for (gpa, len) in regions {
            let memfd = memfd_create(c"guest-ram", MFdFlags::MFD_CLOEXEC)?;
            let file = std::fs::File::from(memfd);
            file.set_len(*len)?;
            let offset = FileOffset::new(file, 0);
            ranges.push((GuestAddress(*gpa), *len as usize, Some(offset)));
        }
        Memory::from_ranges_with_files(ranges)
            .map(Self::from_memory)
            .map_err(io::Error::other)
    }

    /// The RAM that a VMM has mapped already. Regions without a file cannot be shared with the
    /// daemon, see [`Machine::ram_shared`](papr_intc_protocol::layout::Machine::ram_shared).
    pub fn from_memory(memory: Memory) -> Self {
        Self { memory }
    }

    /// The mapping.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Stores a big-endian u32 at `gpa` (a multiple of 4) in one access and marks the page dirty.
    /// `false`: there is no RAM, nothing was written.
    ///
    /// The store is relaxed: the data plane publishes it (data-plane-xive §3).
    #[inline]
    pub fn write_u32_be(&self, gpa: u64, value: u32) -> bool {
        let at = GuestAddress(gpa);
        self.memory
            .store(value.to_be(), at, Ordering::Relaxed)
            .is_ok()
    }

    /// Loads a big-endian u32 at `gpa` (a multiple of 4) in one access; `None` without RAM there.
    #[inline]
    pub fn read_u32_be(&self, gpa: u64) -> Option<u32> {
        // Acquire: what the guest reads after a queue entry is not older than the entry. Pairs with
        // the unlock of the END that follows the entry's store.
        let raw: u32 = self
            .memory
            .load(GuestAddress(gpa), Ordering::Acquire)
            .ok()?;
        Some(u32::from_be(raw))
    }

    /// Reads bytes; `false` if some have no RAM.
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> bool {
        self.memory.read_slice(into, GuestAddress(gpa)).is_ok()
    }

    /// Writes bytes and marks their pages; `false` if some have no RAM.
    pub fn write(&self, gpa: u64, from: &[u8]) -> bool {
        self.memory.write_slice(from, GuestAddress(gpa)).is_ok()
    }

    /// The page of `gpa` was written since its region was mapped.
    pub fn is_dirty(&self, gpa: u64) -> bool {
        let found = self.memory.to_region_addr(GuestAddress(gpa));
        found.is_some_and(|(region, MemoryRegionAddress(at))| region.bitmap().dirty_at(at as usize))
    }

    /// What SET_MEM_TABLE says; an error if a region has no file.
    pub(crate) fn regions(&self) -> Result<Vec<SharedRegion<'_>>, Error> {
        fn shared(region: &GuestRegion) -> Result<SharedRegion<'_>, Error> {
            let at = region.start_addr().0;
            let file = region.file_offset().ok_or_else(|| {
                Error::Invalid(format!("the RAM at {at:#x} has no file to share it by"))
            })?;
            Ok(SharedRegion {
                gpa: at,
                len: region.len(),
                user: region.as_ptr() as u64,
                offset: file.start(),
                file: file.file(),
            })
        }
        self.memory.iter().map(shared).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_regions() -> GuestRam {
        GuestRam::new(&[(0, 0x10000), (0x100000, 0x10000)]).unwrap()
    }

    #[test]
    fn a_queue_entry_is_big_endian_and_marks_its_page_alone() {
        let ram = two_regions();
        assert!(ram.write_u32_be(0x101004, 0x8000_1234));
        let mut bytes = [0; 4];
        assert!(ram.read(0x101004, &mut bytes));
        assert_eq!(bytes, [0x80, 0, 0x12, 0x34]);
        assert_eq!(ram.read_u32_be(0x101004), Some(0x8000_1234));
        assert!(ram.is_dirty(0x101000) && !ram.is_dirty(0x100000) && !ram.is_dirty(0x102000));
    }

    #[test]
    fn outside_of_ram_nothing_is_written() {
        let ram = two_regions();
        for gpa in [0x10000, 0xffffc, 0x110000, u64::MAX - 3] {
            assert!(!ram.write_u32_be(gpa, 1), "{gpa:#x}");
            assert_eq!(ram.read_u32_be(gpa), None);
        }
    }

    #[test]
    fn an_unaligned_entry_is_refused() {
        assert!(!two_regions().write_u32_be(2, 1));
    }

    #[test]
    fn the_memory_table_names_every_region_with_its_file() {
        let ram = two_regions();
        let shape: Vec<_> = ram
            .regions()
            .unwrap()
            .iter()
            .map(|r| (r.gpa, r.len))
            .collect();
        assert_eq!(shape, [(0, 0x10000), (0x100000, 0x10000)]);
    }

    #[test]
    fn ram_without_a_file_cannot_be_shared() {
        let memory = Memory::from_ranges(&[(GuestAddress(0x4000), 0x1000)]).unwrap();
        let error = GuestRam::from_memory(memory).regions().unwrap_err();
        assert!(error.to_string().contains("0x4000"));
    }
}
