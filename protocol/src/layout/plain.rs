//! Shared words over ordinary memory: for tests, models and tools that look at a copy.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::geometry::Geometry;
use super::storage::{Contiguous, Page, Storage, Table, TableStorage, relax_thread};

/// A machine's words in two vectors.
#[derive(Debug)]
pub struct PlainStorage {
    geometry: Geometry,
    tables: Vec<AtomicU64>,
    pages: Vec<AtomicU64>,
}

impl PlainStorage {
    /// All words zero, as in a fresh memfd.
    pub fn new(geometry: Geometry) -> Self {
        let zone = |bytes: u64| (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        Self {
            geometry,
            tables: zone(geometry.tables_size()),
            pages: zone(geometry.pages_size()),
        }
    }
    /// A copy of a whole memfd; what is missing at the end is zero.
    pub fn copy_of(geometry: Geometry, memfd: &[u8]) -> Self {
        let copy = Self::new(geometry);
        let words = copy.tables.iter().chain(&copy.pages);
        for (word, bytes) in words.zip(memfd.as_chunks::<8>().0) {
            // Relaxed: nobody else has the copy yet.
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        copy
    }
    /// The machine's offsets.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}

impl Storage for PlainStorage {
    type Word = AtomicU64;
    #[inline]
    fn page(&self, at: Page) -> &AtomicU64 {
        &self.pages[self.geometry.page_place(at) as usize]
    }
    #[inline]
    fn table(&self, at: Table, order: Ordering) -> u64 {
        self.table_word(at).load(order)
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
    fn fence_everywhere(&self) -> bool {
        // Its threads all have fences of their own.
        self.fence();
        true
    }
    fn relax(&self, spins: u32) {
        relax_thread(spins);
    }
}

impl TableStorage for PlainStorage {
    #[inline]
    fn table_word(&self, at: Table) -> &AtomicU64 {
        &self.tables[self.geometry.table_place(at) as usize]
    }
}

impl Contiguous for PlainStorage {
    #[inline]
    fn pages(&self, from: Page, count: u32) -> &[AtomicU64] {
        let at = self.geometry.page_place(from) as usize;
        &self.pages[at..at + count as usize]
    }
    #[inline]
    fn tables(&self, from: Table, count: u32) -> &[AtomicU64] {
        let at = self.geometry.table_place(from) as usize;
        &self.tables[at..at + count as usize]
    }
}
