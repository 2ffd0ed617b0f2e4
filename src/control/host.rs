//! The daemon as an executor: guest memory by its own mapping, kicks by the vCPUs' eventfds, the
//! journal of XICS tokens, and END locks in its own name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::mapped::OwnedStorage;
use papr_intc_protocol::layout::words::journal;
use papr_intc_protocol::layout::{AtomicWord, Table, TableStorage};
use papr_intc_protocol::plane::{Host, LockOwner};

use super::journal::Journal;
use crate::memory::QueueMemory;

/// The outside of the daemon's transitions. One control thread owns it.
pub struct DaemonHost<M, S = Arc<OwnedStorage>> {
    ram: M,
    storage: S,
    generation: u16,
    kicks: RefCell<BTreeMap<u32, File>>,
    held: RefCell<Option<Outbox>>,
    /// Sources whose resamplefds are due.
    due: RefCell<Vec<u32>>,
}

/// What an operation does outside of the shared words, held back until it is committed.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Queue entries: where in guest memory, and what.
    pub entries: Vec<(u64, u32)>,
    /// vCPUs to be kicked.
    pub kicks: Vec<u32>,
    /// Sources whose resamplefds are due.
    pub resamples: Vec<u32>,
}

impl<M, S> DaemonHost<M, S> {
    /// `generation` is the header's; its low 16 bits, never 0, name our END locks.
    pub fn new(ram: M, storage: S, generation: u64) -> Self {
        let generation = lock_generation(generation);
        Self {
            ram,
            storage,
            generation,
            kicks: RefCell::default(),
            held: RefCell::default(),
            due: RefCell::default(),
        }
    }

    /// From now on entries and kicks are held back. The journal of tokens stays as it is: an operation
    /// that is cut did not happen.
    pub fn hold(&self) {
        self.held.replace(Some(Outbox::default()));
    }

    /// From now on they are not. What was held back is the caller's to do.
    pub fn release(&self) -> Outbox {
        self.held.take().unwrap_or_default()
    }

    /// Sources whose resamplefds are due, each once.
    pub fn take_due(&self) -> Vec<u32> {
        self.due.take()
    }

    /// Guest memory, to ask what is there.
    pub fn ram(&self) -> &M {
        &self.ram
    }

    /// The eventfd of a vCPU, or none from now on.
    pub fn set_kick(&self, server: u32, kick: Option<File>) {
        match kick {
            Some(kick) => self.kicks.borrow_mut().insert(server, kick),
            None => self.kicks.borrow_mut().remove(&server),
        };
    }
}

impl<M: QueueMemory, S: TableStorage> DaemonHost<M, S> {
    /// Writes a queue entry now, held back or not, and marks its page. `false`: no RAM there.
    ///
    /// A kill between the entry and the mark would leave a page that differs and that nobody sends. So the page
    /// is on record first, and a successor marks it ([`Self::mark_last_page`]).
    pub fn write_entry(&self, gpa: u64, entry: u32) -> bool {
        Journal(&self.storage).write_in(gpa);
        self.ram.write_queue_entry(gpa, entry)
    }

    /// Marks the page that a predecessor wrote last, before the first write of ours.
    pub fn mark_last_page(&self) {
        if let Some(page) = Journal(&self.storage).last_page() {
            self.ram.mark_written(page);
        }
    }
}

/// The 16 bits of a header generation that END locks carry: never 0, which is the VMM's.
pub fn lock_generation(generation: u64) -> u16 {
    ((generation.wrapping_sub(1) % 0xffff) + 1) as u16
}

impl<M: QueueMemory, S: TableStorage> Host for DaemonHost<M, S> {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        if let Some(held) = &mut *self.held.borrow_mut() {
            let backed = self.ram.is_backed(gpa, 4);
            if backed {
                held.entries.push((gpa, entry));
            }
            return backed;
        }
        self.write_entry(gpa, entry)
    }

    fn kick(&self, server: u32) {
        if let Some(held) = &mut *self.held.borrow_mut() {
            if !held.kicks.contains(&server) {
                held.kicks.push(server);
            }
            return;
        }
        if let Some(mut kick) = self.kicks.borrow().get(&server) {
            // EAGAIN: the counter is full, so the vCPU has been told already.
            let _ = kick.write(&1u64.to_ne_bytes());
        }
    }

    fn resample(&self, lisn: u32) {
        let mut held = self.held.borrow_mut();
        let mut due = self.due.borrow_mut();
        let list = held.as_mut().map_or(&mut *due, |held| &mut held.resamples);
        if !list.contains(&lisn) {
            list.push(lisn);
        }
    }

    fn lock_owner(&self) -> LockOwner {
        LockOwner::Daemon {
            generation: self.generation,
            worker: 0,
        }
    }

    fn is_dead(&self, generation: u16) -> bool {
        // We hold the memfd's lock: every other daemon that ever held an END lock is dead.
        generation != self.generation
    }

    fn journal(&self, token: u32, victim: u32) {
        if self.held.borrow().is_some() {
            return;
        }
        let line = u64::from(token) | u64::from(victim) << 24;
        // Release: program order is what a kill cuts; the reader learns of our death by the kernel.
        self.storage
            .table_word(Table::Journal(journal::XICS))
            .store(line, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_generations_are_never_the_front_ends() {
        assert_eq!(lock_generation(1), 1);
        assert_eq!(lock_generation(0xffff), 0xffff);
        assert_eq!(lock_generation(0x1_0000), 1);
        assert!((0..200_000).all(|g| lock_generation(g) != 0));
    }
}
