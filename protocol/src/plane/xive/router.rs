//! XIVE router: EAS → END → queue entry → presenter, under the lock of the END (data-plane-xive §4.2).
//!
//! The cursor word holds lock, index, generation, configuration selector and ESn, so that "advance"
//! and "unlock" are one store. The EAS counts only as it is read under the lock: SET_SOURCE_CONFIG
//! stores it while holding the lock of the old END (counterexamples N7, N8).
//!
//! Nobody takes a lock from a thread of the VMM. A daemon's lock is taken over only when the host
//! says that its generation is dead (N4, N5). In mapped mode a dead daemon can only have held it for a
//! configuration step (section 6), which leaves nothing to roll forward.

use std::sync::atomic::Ordering;

use super::{Busy, PATIENCE, Xive, source::pq};
use crate::layout::words::{cursor, eas, end_config};
use crate::layout::{AtomicWord, Page, Storage, Table};
use crate::plane::{Host, LockOwner};

/// How often the router follows an EAS that moves under it. Each time costs the daemon a whole
/// configuration step; no guest gets near it.
const CHASES: u32 = 1000;

/// The lock of one END. Unlocking is explicit: it stores the next cursor.
#[must_use = "the END stays locked until `unlock`"]
pub(super) struct EndLock<'a, W> {
    word: &'a W,
    /// The cursor when it was locked, without the lock bits.
    pub(super) cursor: u64,
}

impl<W: AtomicWord> EndLock<'_, W> {
    /// Publishes `cursor` and gives the lock back.
    #[inline]
    pub(super) fn unlock(self, cursor: u64) {
        // Release pairs with the next lock's Acquire: entry, EAS and configuration before the index.
        self.word.store(cursor & !cursor::LOCK, Ordering::Release);
    }
}

/// A queue in force, as read under its lock and checked.
struct Queue {
    address: u64,
    entries: u64,
    always_notify: bool,
}

/// Log2 sizes of queues (H_INT_SET_QUEUE_CONFIG).
pub(crate) const fn is_queue_size(size: u64) -> bool {
    matches!(size, 12 | 16 | 21 | 24)
}

/// The bits that name a lock and its owner.
#[inline]
fn lock_bits(owner: LockOwner) -> u64 {
    match owner {
        LockOwner::FrontEnd => cursor::LOCKED,
        LockOwner::Daemon { generation, worker } => {
            cursor::LOCKED
                | u64::from(generation) << cursor::DGEN_SHIFT
                | u64::from(worker) << cursor::WORKER_SHIFT
        }
    }
}

/// The cursor after one entry: the next slot, the generation flipped on the wrap.
#[inline]
fn advance(cursor: u64, entries: u64) -> u64 {
    let next = (cursor & cursor::INDEX) + 1;
    if next >= entries {
        cursor & !cursor::INDEX ^ cursor::GENERATION
    } else {
        cursor & !cursor::INDEX | next
    }
}

impl<S: Storage, H: Host> Xive<'_, S, H> {
    /// Routes one event of `lisn` (below the geometry's count): queue entry, then presenter.
    ///
    /// An event of an invalid or masked EAS, or of an END that is not configured, is dropped: the
    /// source stays pending until its EOI (xive.md §3.3). [`Busy`] only if this host is a daemon and a
    /// lock holder does not move; then nothing was queued.
    #[inline(always)]
    pub fn route(&self, lisn: u32) -> Result<(), Busy> {
        for _ in 0..CHASES {
            let Some(end) = self.target_end(self.eas(lisn)) else {
                return Ok(());
            };
            let lock = self.lock_end(end)?;
            let eas = self.eas(lisn);
            if self.target_end(eas) == Some(end) {
                let (notify, stored) = self.enqueue(end, eas::eisn(eas), lock);
                if notify {
                    self.present(end >> 3, (end & 7) as u8);
                }
                if let Some(gpa) = stored {
                    match notify {
                        // The presenter has swapped the ring.
                        true => self.storage.fence_after_rmw(),
                        false => self.storage.fence(),
                    }
                    self.host.entry_stored(gpa);
                }
                return Ok(());
            }
            let unchanged = lock.cursor;
            lock.unlock(unchanged);
        }
        Ok(())
    }

    /// Writes an entry, advances and unlocks. Returns whether the presenter is to be told, and where the entry is.
    #[inline(always)]
    fn enqueue(&self, end: u32, eisn: u32, lock: EndLock<'_, S::Word>) -> (bool, Option<u64>) {
        let mut cursor = lock.cursor;
        let Some(queue) = self.queue(end, cursor) else {
            lock.unlock(cursor);
            return (false, None);
        };
        // The index is a shared word's: reduced to the queue, whatever somebody wrote there.
        let index = cursor & cursor::INDEX & (queue.entries - 1);
        let generation = u32::from(cursor & cursor::GENERATION != 0);
        let entry = generation << 31 | eisn;
        let gpa = queue.address + 4 * index;
        // A failed write leaves the index and notifies all the same (xive.md §3.4).
        let stored = self.host.write_queue_entry(gpa, entry);
        if stored {
            cursor = advance(cursor & !cursor::INDEX | index, queue.entries);
        }
        let mut notify = true;
        if !queue.always_notify {
            let (esn, due) = pq::trigger(cursor >> cursor::ESN_SHIFT);
            cursor = cursor & !cursor::ESN | esn << cursor::ESN_SHIFT;
            notify = due;
        }
        lock.unlock(cursor);
        (notify, stored.then_some(gpa))
    }

    /// Takes the lock of an END. A thread of the VMM waits as long as it takes (a holder waits for
    /// nobody); a daemon gives up after [`PATIENCE`].
    #[inline(always)]
    pub(super) fn lock_end(&self, end: u32) -> Result<EndLock<'_, S::Word>, Busy> {
        let owner = self.host.lock_owner();
        let bits = lock_bits(owner);
        let word = self.storage.page(Page::EndCursor(end));
        let mut spins = 0;
        loop {
            let found = word.load(Ordering::Relaxed);
            let free = found & cursor::LOCKED == 0 || self.is_dead_lock(found);
            let unlocked = found & !cursor::LOCK;
            // Acquire pairs with the previous unlock's Release. A dead owner published nothing: what
            // it stored under the lock is read by nobody until a later commit.
            if free
                && word
                    .compare_exchange(found, unlocked | bits, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Ok(EndLock {
                    word,
                    cursor: unlocked,
                });
            }
            if spins >= PATIENCE && owner != LockOwner::FrontEnd {
                return Err(Busy);
            }
            self.storage.relax(spins);
            spins = spins.saturating_add(1);
        }
    }

    /// The lock in a cursor belongs to a daemon that is known to be dead.
    fn is_dead_lock(&self, cursor: u64) -> bool {
        let generation = ((cursor & cursor::DGEN) >> cursor::DGEN_SHIFT) as u16;
        generation != 0 && self.host.is_dead(generation)
    }
}

impl<S: Storage, H> Xive<'_, S, H> {
    /// The EAS of a LISN.
    #[inline]
    pub(super) fn eas(&self, lisn: u32) -> u64 {
        // Relaxed: under the lock of its END it is exact, without it a hint.
        self.storage.table(Table::Eas(lisn), Ordering::Relaxed)
    }

    /// Where an EAS sends events: an END that exists, or nowhere.
    #[inline]
    pub(super) fn target_end(&self, eas: u64) -> Option<u32> {
        let end = eas::end(eas);
        let on = eas & (eas::VALID | eas::MASKED) == eas::VALID;
        (on && end < self.geometry.ends()).then_some(end)
    }

    /// The configuration that `cursor` selects; `None` if it is not valid.
    #[inline]
    fn queue(&self, end: u32, cursor: u64) -> Option<Queue> {
        let (address, config) = self.end_config(end, cursor);
        let size = u64::from(end_config::size(config));
        if config & end_config::VALID == 0 || !is_queue_size(size) {
            return None;
        }
        // An address that the daemon never accepts: as none.
        address.checked_add(1 << size)?;
        Some(Queue {
            address,
            entries: 1 << (size - 2),
            always_notify: config & end_config::ALWAYS_NOTIFY != 0,
        })
    }

    /// Address and flags of the slot that `cursor` selects.
    #[inline]
    pub(super) fn end_config(&self, end: u32, cursor: u64) -> (u64, u64) {
        let slot = u32::from(cursor & cursor::SEL != 0);
        // Relaxed: only the slot not selected is ever written, and the selector's store, which the
        // caller's load of the cursor acquired, published this one.
        let word = |i| {
            self.storage
                .table(Table::EndConfig(end, slot, i), Ordering::Relaxed)
        };
        (word(0), word(1))
    }
}
