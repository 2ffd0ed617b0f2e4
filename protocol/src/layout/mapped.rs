//! Shared words over a mapping of the memfd: the one module of this crate that owns memory.
//!
//! [`MappedStorage`] is the VMM's view, with `tables` mapped read-only (a guard against stray
//! stores). [`OwnedStorage`] is the daemon's, with both zones writable.
#![allow(unsafe_code)] // a mapping is seen as a slice of atomics; two blocks, argued below

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence, fence};

use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionError};

use super::geometry::Geometry;
use super::membarrier;
use super::storage::{AtomicWord, Contiguous, Page, Storage, Table, TableStorage, relax_thread};

const PROT_READ: i32 = 1;
const PROT_WRITE: i32 = 2;
const MAP_SHARED: i32 = 1;
const MAP_NORESERVE: i32 = 0x4000;

/// A zone of the memfd.
#[derive(Debug)]
struct Zone {
    /// What `_region` maps; lent out no longer than `self` lives.
    words: &'static [AtomicU64],
    _region: MmapRegion,
}

impl Zone {
    fn map(file: &File, offset: u64, size: u64, prot: i32) -> Result<Self, MmapRegionError> {
        let file = file.try_clone().map_err(MmapRegionError::Mmap)?;
        let at = FileOffset::new(file, offset);
        let flags = MAP_SHARED | MAP_NORESERVE;
        let region = MmapRegion::build(Some(at), size as usize, prot, flags)?;
        // SAFETY: the region is mapped until it is dropped, which is with `self`, whose methods lend the slice for
        // a borrow of `self`; it is not unmapped or moved before. mmap returns page-aligned memory, so every word is
        // aligned, and the length rounds down to whole words. All bit patterns are valid. Other processes write
        // the same memory, which is why the elements are atomics; nothing here or elsewhere forms a plain
        // reference into it. The memfd is sealed against shrinking by its creator and both openers check the
        // seal, so that the pages exist. In a zone mapped read-only only `Storage::table` reads, it never stores.
        let words =
            unsafe { std::slice::from_raw_parts(region.as_ptr().cast(), region.size() / 8) };
        Ok(Self {
            words,
            _region: region,
        })
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        self.words
    }

    #[inline]
    fn owned(&self) -> &[OwnedWord] {
        let words = self.words();
        // SAFETY: `OwnedWord` is a transparent wrapper of the element type; same length, same lifetime.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
    }
}

/// The VMM's view: `tables` read-only, `pages` writable.
#[derive(Debug)]
pub struct MappedStorage {
    geometry: Geometry,
    tables: Zone,
    pages: Zone,
    /// The daemon fences this process when it has to: see [`membarrier`].
    fenced_by_daemon: AtomicBool,
}

impl MappedStorage {
    /// Maps both zones of `memfd`. The caller has checked its seals and that it holds
    /// [`Geometry::size`] bytes.
    pub fn map(memfd: &File, geometry: Geometry) -> Result<Self, MmapRegionError> {
        Self::with(memfd, geometry, PROT_READ)
    }

    fn with(memfd: &File, geometry: Geometry, tables_prot: i32) -> Result<Self, MmapRegionError> {
        let tables = Zone::map(memfd, 0, geometry.tables_size(), tables_prot)?;
        let pages = Zone::map(
            memfd,
            geometry.tables_size(),
            geometry.pages_size(),
            PROT_READ | PROT_WRITE,
        )?;
        Ok(Self {
            geometry,
            tables,
            pages,
            fenced_by_daemon: AtomicBool::new(false),
        })
    }

    /// The machine's offsets.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether transitions leave the fence of [P-3] to the daemon: this process has registered, and the daemon that
    /// waits for its transitions knows.
    ///
    /// Who takes it back waits for a fence everywhere and then for the transitions under way
    /// ([`GracePeriod`](crate::plane::epoch::GracePeriod)) before it lets a daemon that does not know begin.
    pub fn set_fenced_by_daemon(&self, by_daemon: bool) {
        // Relaxed: a thread that reads the old value has stored its epoch before, see `fence_inside`.
        self.fenced_by_daemon.store(by_daemon, Ordering::Relaxed);
    }

    /// As set.
    pub fn is_fenced_by_daemon(&self) -> bool {
        self.fenced_by_daemon.load(Ordering::Relaxed)
    }
}

impl Storage for MappedStorage {
    type Word = AtomicU64;
    #[inline]
    fn page(&self, at: Page) -> &AtomicU64 {
        &self.pages.words()[self.geometry.page_place(at) as usize]
    }
    #[inline]
    fn table(&self, at: Table, order: Ordering) -> u64 {
        self.tables.words()[self.geometry.table_place(at) as usize].load(order)
    }
    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
    #[inline]
    fn fence_inside(&self) {
        // The epoch's store, the look at the flag, the state word's load stay in this order in the program, which is
        // all that `membarrier` asks of this side.
        compiler_fence(Ordering::SeqCst);
        if !self.fenced_by_daemon.load(Ordering::Relaxed) {
            fence(Ordering::SeqCst);
        }
        compiler_fence(Ordering::SeqCst);
    }
    fn fence_everywhere(&self) -> bool {
        fence(Ordering::SeqCst);
        // Where it is not to be had nobody was told to rely on it.
        !membarrier::is_available() || membarrier::everywhere()
    }
    #[inline]
    fn fence_after_rmw(&self) {
        if cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
            // A locked instruction orders all that came before it, stores too, with all that comes after.
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }
    #[inline]
    fn relax(&self, spins: u32) {
        relax_thread(spins);
    }
}

/// A word of the daemon's view. The same as an `AtomicU64`, but in builds with the feature `crash-points`
/// every write to a mapping is announced first (`layout::probe`).
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct OwnedWord(AtomicU64);

impl OwnedWord {
    #[inline]
    fn announced(&self) -> &AtomicU64 {
        #[cfg(feature = "crash-points")]
        super::probe::write(std::ptr::from_ref(self).addr());
        &self.0
    }
}

impl From<u64> for OwnedWord {
    fn from(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }
}

impl AtomicWord for OwnedWord {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.announced().store(value, order);
    }
    #[inline]
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let word = self.announced();
        word.compare_exchange(current, new, success, failure)
    }
    #[inline]
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.announced().swap(value, order)
    }
    #[inline]
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.announced().fetch_or(bits, order)
    }
    #[inline]
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.announced().fetch_and(bits, order)
    }
    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.announced().fetch_add(value, order)
    }
    #[inline]
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.announced().fetch_sub(value, order)
    }
}

/// The daemon's view: both zones writable.
#[derive(Debug)]
pub struct OwnedStorage(MappedStorage);

impl OwnedStorage {
    /// As [`MappedStorage::map`].
    pub fn map(memfd: &File, geometry: Geometry) -> Result<Self, MmapRegionError> {
        let mapped = MappedStorage::with(memfd, geometry, PROT_READ | PROT_WRITE)?;
        #[cfg(feature = "crash-points")]
        for zone in [&mapped.tables, &mapped.pages] {
            let words = zone.words().as_ptr_range();
            super::probe::mapped(words.start.addr()..words.end.addr());
        }
        Ok(Self(mapped))
    }
    /// The machine's offsets.
    pub fn geometry(&self) -> &Geometry {
        self.0.geometry()
    }
}

impl Storage for OwnedStorage {
    type Word = OwnedWord;
    #[inline]
    fn page(&self, at: Page) -> &OwnedWord {
        &self.0.pages.owned()[self.0.geometry.page_place(at) as usize]
    }
    #[inline]
    fn table(&self, at: Table, order: Ordering) -> u64 {
        self.0.table(at, order)
    }
    #[inline]
    fn fence(&self) {
        self.0.fence();
    }
    fn fence_everywhere(&self) -> bool {
        self.0.fence_everywhere()
    }
    #[inline]
    fn fence_after_rmw(&self) {
        self.0.fence_after_rmw();
    }
    #[inline]
    fn relax(&self, spins: u32) {
        self.0.relax(spins);
    }
}

impl TableStorage for OwnedStorage {
    #[inline]
    fn table_word(&self, at: Table) -> &OwnedWord {
        &self.0.tables.owned()[self.0.geometry.table_place(at) as usize]
    }
}

impl Contiguous for OwnedStorage {
    #[inline]
    fn pages(&self, from: Page, count: u32) -> &[OwnedWord] {
        let at = self.0.geometry.page_place(from) as usize;
        &self.0.pages.owned()[at..at + count as usize]
    }
    #[inline]
    fn tables(&self, from: Table, count: u32) -> &[OwnedWord] {
        let at = self.0.geometry.table_place(from) as usize;
        &self.0.tables.owned()[at..at + count as usize]
    }
}
