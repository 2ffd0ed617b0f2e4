//! Guest RAM as the front-end sees it: where queue entries are written, and what the daemon is
//! handed to map (SET_MEM_TABLE).
//!
//! Every write marks its page in a dirty bitmap, whether or not a migration is under way. There is no way to write
//! without: a VMM that forgot it would lose interrupts only after a migration (architecture §2). The bits
//! are taken by [`GuestRam::take_dirty`], most often as a part of [`Intc::take_dirty`](crate::Intc::take_dirty), which
//! adds what the daemon has written.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion, VolatileMemory,
};

use crate::dirty_log::DirtyPages;
use crate::ram::{Ram, Region};

/// Guest memory with a dirty bitmap per region.
pub type Memory = GuestMemoryMmap<AtomicBitmap>;

type GuestRegion = GuestRegionMmap<AtomicBitmap>;

/// The guest's RAM.
///
/// **Dirty pages.** What this process writes through [`memory`](Self::memory) is marked in its bitmaps, the queue
/// entries of mapped mode among it, after the write and for good: until
/// [`take_dirty`](Self::take_dirty). What the daemon writes (queue entries of remote mode) is not in them but in the log that it is
/// handed. A VMM that migrates its guest asks [`Intc::take_dirty`](crate::Intc::take_dirty), which has both. It must
/// mark by itself only what it writes past this type, and what its guest writes.
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
        let stored = self.store_u32_be(gpa, value);
        if stored {
            fence(Ordering::SeqCst);
            self.mark(gpa);
        }
        stored
    }

    /// The region of an address and where in it. A VMM has few regions, and the queues are in the first as a rule.
    #[inline]
    fn region(&self, gpa: u64) -> Option<(&GuestRegion, usize)> {
        self.memory.iter().find_map(|region| {
            let at = gpa.wrapping_sub(region.start_addr().0);
            (at < region.len()).then_some((region, at as usize))
        })
    }

    #[inline]
    fn store_u32_be(&self, gpa: u64, value: u32) -> bool {
        let Some((region, at)) = self.region(gpa) else {
            return false;
        };
        let Ok(entry) = VolatileMemory::get_atomic_ref::<AtomicU32>(&**region, at) else {
            return false;
        };
        entry.store(value.to_be(), Ordering::Relaxed);
        true
    }

    /// Marks the page of a word that was stored before a full fence.
    #[inline]
    fn mark(&self, gpa: u64) {
        if let Some((region, at)) = self.region(gpa) {
            let bitmap = MmapRegion::bitmap(region);
            // The bits of many queues are in one line: it is not written if the bit is set already. That fence pairs with
            // the one in `take_dirty`: if that has taken the bit that is seen here, its caller sees the word.
            if !bitmap.dirty_at(at) {
                bitmap.mark_dirty(at, size_of::<u32>());
            }
        }
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

    /// The page of `gpa` was written by this process since its region was mapped or its dirty pages were taken.
    pub fn is_dirty(&self, gpa: u64) -> bool {
        let found = self.memory.to_region_addr(GuestAddress(gpa));
        found.is_some_and(|(region, MemoryRegionAddress(at))| region.bitmap().dirty_at(at as usize))
    }

    /// The pages that this process has written since the last call, or since their regions were mapped.
    pub fn take_dirty(&self) -> DirtyPages {
        let mut pages = DirtyPages::default();
        for region in self.memory.iter() {
            let bitmap = MmapRegion::bitmap(region);
            let (start, unit) = (region.start_addr().0, unit(bitmap));
            // vm-memory swaps each word in one total order with the marks, which follow the stores: whoever copies
            // a page of this set sees what was stored before its bit was set.
            for (word, bits) in (0..).zip(bitmap.get_and_reset()) {
                for bit in (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1) {
                    let at = (word * u64::from(u64::BITS) + u64::from(bit)) * unit;
                    pages.add(start + at, unit.min(region.len() - at));
                }
            }
        }
        // And what was stored without a mark, because the bit was still set: see `mark`.
        fence(Ordering::SeqCst);
        pages
    }
}

impl Ram for GuestRam {
    #[inline]
    fn write_u32_be(&self, gpa: u64, value: u32) -> bool {
        self.store_u32_be(gpa, value)
    }

    #[inline]
    fn mark_dirty(&self, gpa: u64) {
        self.mark(gpa);
    }

    fn take_dirty(&self) -> DirtyPages {
        self.take_dirty()
    }

    fn regions(&self) -> Vec<Region<'_>> {
        let region = |region| {
            let at: &GuestRegion = region;
            Region {
                gpa: at.start_addr().0,
                len: at.len(),
                user: at.as_ptr() as u64,
                offset: at.file_offset().map_or(0, FileOffset::start),
                file: at.file_offset().map(|file| file.file().as_fd()),
            }
        };
        self.memory.iter().map(region).collect()
    }
}

/// Bytes for one bit of a bitmap: the host's page, as a rule. The bitmap does not tell, but it has a bit for
/// each begun unit, and units are powers of two.
fn unit(bitmap: &AtomicBitmap) -> u64 {
    let bytes = bitmap.byte_size().div_ceil(bitmap.len().max(1));
    bytes.next_power_of_two() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram;

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
    fn dirty_pages_are_taken_once_and_a_later_write_brings_them_back() {
        let ram = two_regions();
        assert!(ram.take_dirty().is_empty());
        let pages = |ram: &GuestRam| ram.take_dirty().iter().collect::<Vec<_>>();
        assert!(ram.write(0x1ffe, &[1; 4]) && ram.write_u32_be(0x10fffc, 1));
        assert_eq!(pages(&ram), [0x1000, 0x2000, 0x10f000]);
        assert!(ram.take_dirty().is_empty());
        assert!(ram.write_u32_be(0x2000, 1));
        assert_eq!(pages(&ram), [0x2000]);
    }

    #[test]
    fn a_bitmap_of_larger_units_gives_all_pages_of_a_unit() {
        for unit_bytes in [4096usize, 16384, 65536] {
            for bytes in [4096usize, 65536, 0x11000, 0x4f000] {
                let bitmap = AtomicBitmap::new(bytes, unit_bytes.try_into().unwrap());
                // Of a single bit that covers all, the unit does not matter.
                if bitmap.len() > 1 {
                    assert_eq!(unit(&bitmap), unit_bytes as u64, "{bytes:#x}");
                } else {
                    assert!(unit(&bitmap) >= bytes as u64);
                }
            }
        }
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
        let shared = ram::shared(&ram).unwrap();
        let shape: Vec<_> = shared.iter().map(|(r, _)| (r.gpa, r.len)).collect();
        assert_eq!(shape, [(0, 0x10000), (0x100000, 0x10000)]);
    }

    #[test]
    fn ram_without_a_file_cannot_be_shared() {
        let memory = Memory::from_ranges(&[(GuestAddress(0x4000), 0x1000)]).unwrap();
        let ram = GuestRam::from_memory(memory);
        let error = ram::shared(&ram).unwrap_err();
        assert!(error.to_string().contains("0x4000"));
    }
}
