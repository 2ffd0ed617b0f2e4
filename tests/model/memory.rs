//! Guest memory of the model: sparse, with a list of the queue entries written.

use std::collections::HashMap;

const PAGE: u64 = 4096;

/// RAM from address 0 up to a size; pages come into being when written.
pub struct Memory {
    pages: HashMap<u64, Vec<u8>>,
    size: u64,
    /// Queue entries written: address and value, in order.
    pub entries: Vec<(u64, u32)>,
}

impl Memory {
    /// RAM of `size` bytes, all zero.
    pub fn new(size: u64) -> Memory {
        Memory {
            pages: HashMap::new(),
            size,
            entries: Vec::new(),
        }
    }

    /// RAM above `size` is gone, or back again as it was.
    pub fn resize(&mut self, size: u64) {
        self.size = size;
    }

    /// Whether the whole range is RAM.
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        gpa.checked_add(len).is_some_and(|end| end <= self.size)
    }

    /// Reads bytes; outside RAM they are zero.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) {
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let from = (at % PAGE) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(PAGE as usize - from));
            match self.pages.get(&(at / PAGE)) {
                Some(page) => now.copy_from_slice(&page[from..from + now.len()]),
                None => now.fill(0),
            }
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
    }

    /// Writes bytes; what lies outside RAM is dropped.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        for (i, b) in bytes.iter().enumerate() {
            let a = gpa.wrapping_add(i as u64);
            if a < self.size {
                self.pages
                    .entry(a / PAGE)
                    .or_insert_with(|| vec![0; PAGE as usize])[(a % PAGE) as usize] = *b;
            }
        }
    }

    /// Writes one event queue entry, big-endian. False: not RAM, nothing written.
    pub fn write_entry(&mut self, gpa: u64, entry: u32) -> bool {
        if !self.contains(gpa, 4) {
            return false;
        }
        self.write(gpa, &entry.to_be_bytes());
        self.entries.push((gpa, entry));
        true
    }
}
