//! XIVE configuration: what the daemon does to EAS, ENDs and rings (data-plane-xive §6), and reads.
//!
//! Run by the daemon's one control thread, while executors may be routing; the `reset_*` functions
//! only while they are held at the gate. The VMM maps `tables` read-only.
//!
//! Not here: journal and replies (the daemon's), which calls are allowed (`papr`), the bitmaps of
//! claims that XICS shares.

use std::sync::atomic::Ordering;

use super::{Busy, Xive, source::pq};
use crate::layout::words::{cursor, eas, end_config, source, tima};
use crate::layout::{AtomicWord, Page, Storage, Table, TableStorage};
use crate::plane::Host;

/// A cursor after reset: index and generation 0, ESn off (xive.md §3.2).
const RESET_CURSOR: u64 = pq::OFF << cursor::ESN_SHIFT;

/// An END, as its guest-visible configuration says. Zeros if it is not valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndView {
    /// Configured.
    pub valid: bool,
    /// Every event notifies.
    pub always_notify: bool,
    /// Guest physical address of the queue.
    pub address: u64,
    /// Log2 of its bytes.
    pub size: u32,
    /// Next slot, in entries.
    pub index: u32,
    /// Generation bit of the next entry.
    pub generation: bool,
    /// PQ of the notification.
    pub esn: u8,
}

/// A queue that H_INT_SET_QUEUE_CONFIG asks for; checked by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Guest physical address, aligned to the size.
    pub address: u64,
    /// Log2 of the bytes: 12, 16, 21 or 24.
    pub size: u32,
    /// Notify on every event.
    pub always_notify: bool,
}

impl<S: Storage, H> Xive<'_, S, H> {
    /// No event of `lisn` is on its way between source and queue: what was accepted before is queued.
    ///
    /// Does not wait. An irqfd that was written and not read is the caller's to look at.
    pub fn sync(&self, lisn: u32) -> bool {
        // Acquire pairs with the Release that takes a forward off the count.
        let word = self
            .storage
            .page(Page::Source(lisn))
            .load(Ordering::Acquire);
        word & source::FORWARDS == 0
    }

    /// The EAS of a claimed LISN; `None` if it is not claimed. Checks the number.
    pub fn source_config(&self, lisn: u64) -> Option<u64> {
        let lisn = u32::try_from(lisn).ok()?;
        let eas = (lisn < self.geometry.sources()).then(|| self.eas(lisn))?;
        (eas & eas::VALID != 0).then_some(eas)
    }

    /// An END, without taking its lock. `end` is below the geometry's count.
    ///
    /// A reader that races with two reconfigurations of this END may see a mixture of them.
    pub fn end(&self, end: u32) -> EndView {
        let word = self.storage.page(Page::EndCursor(end));
        // Acquire pairs with the unlock that committed the configuration slot.
        let mut cursor = word.load(Ordering::Acquire);
        loop {
            let (address, config) = self.end_config(end, cursor);
            let again = word.load(Ordering::Acquire);
            if (cursor ^ again) & cursor::SEL == 0 {
                return view(address, config, again);
            }
            cursor = again;
        }
    }
}

fn view(address: u64, config: u64, cursor: u64) -> EndView {
    let valid = config & end_config::VALID != 0;
    EndView {
        valid,
        always_notify: valid && config & end_config::ALWAYS_NOTIFY != 0,
        address: if valid { address } else { 0 },
        size: if valid { end_config::size(config) } else { 0 },
        index: (cursor & cursor::INDEX) as u32,
        generation: cursor & cursor::GENERATION != 0,
        esn: (cursor >> cursor::ESN_SHIFT & 3) as u8,
    }
}

impl<S: TableStorage, H: Host> Xive<'_, S, H> {
    /// Gives a LISN another EAS. On return no event of it uses the old END or EISN any more.
    pub fn set_source_config(&self, lisn: u32, new_eas: u64) -> Result<(), Busy> {
        let eas = self.storage.table_word(Table::Eas(lisn));
        match self.target_end(self.eas(lisn)) {
            Some(old_end) => {
                // Lock first: a timeout or a death before the store has changed nothing, and after it
                // nothing is owed (N8). Relaxed: the unlock publishes it to every later holder.
                let lock = self.lock_end(old_end)?;
                eas.store(new_eas, Ordering::Relaxed);
                let unchanged = lock.cursor;
                lock.unlock(unchanged);
            }
            // No router goes on with a masked or invalid EAS. Release: pairs with nothing that routing
            // needs; it keeps this store after the queue's configuration.
            None => eas.store(new_eas, Ordering::Release),
        }
        Ok(())
    }

    /// Configures a queue, or resets the END (`None`). On return nothing is written to the old queue any more.
    pub fn set_queue_config(
        &self,
        server: u32,
        priority: u8,
        queue: Option<QueueConfig>,
    ) -> Result<(), Busy> {
        let end = server * 8 + u32::from(priority & 7);
        let lock = self.lock_end(end)?;
        let selector = (lock.cursor & cursor::SEL) ^ cursor::SEL;
        let fresh = match queue {
            Some(q) => {
                let config = end_config::new(q.size, q.always_notify);
                self.write_slot(end, selector, q.address, config);
                cursor::FRESH
            }
            None => {
                self.write_slot(end, selector, 0, 0);
                RESET_CURSOR
            }
        };
        // The commit: slot, index, generation and ESn change in one store.
        lock.unlock(fresh | selector);
        Ok(())
    }

    fn write_slot(&self, end: u32, selector: u64, address: u64, config: u64) {
        let slot = u32::from(selector != 0);
        // Relaxed: nobody reads this slot before the commit publishes it.
        for (i, value) in [(0, address), (1, config)] {
            self.storage
                .table_word(Table::EndConfig(end, slot, i))
                .store(value, Ordering::Relaxed);
        }
    }

    /// The machine claims a LISN that is free: masked, and otherwise as its last owner left it, as in
    /// QEMU (xive.md §6). A source never used has PQ 01.
    pub fn claim(&self, lisn: u32, lsi: bool) {
        let (bits, bit) = (
            self.storage.table_word(Table::Lsi(lisn / 64)),
            1 << (lisn % 64),
        );
        // Relaxed: the EAS's Release publishes it.
        if lsi {
            let _ = bits.fetch_or(bit, Ordering::Relaxed);
        } else {
            let _ = bits.fetch_and(!bit, Ordering::Relaxed);
        }
        let claimed = self.eas(lisn) | eas::VALID | eas::MASKED;
        self.storage
            .table_word(Table::Eas(lisn))
            .store(claimed, Ordering::Release);
    }

    /// The machine frees a LISN: no later event of it is queued. The number may be claimed again when
    /// [`Self::sync`] holds. Its device is gone, and so are the level and what was latched.
    pub fn free(&self, lisn: u32) -> Result<(), Busy> {
        self.set_source_config(lisn, self.eas(lisn) & !eas::VALID)?;
        Self::update(self.storage.page(Page::Source(lisn)), |w| {
            w & !(source::ASSERTED | source::LATCHED)
        });
        Ok(())
    }

    /// A vCPU appears: its ring is reset before anybody can reach it.
    pub fn connect(&self, server: u32) {
        Self::update(self.storage.page(Page::Tima(server)), |_| {
            tima::RESET | tima::CONNECTED
        });
        self.host.kick(server);
    }

    /// A vCPU goes: events for it are dropped from now on. Its queues stay as they are.
    pub fn disconnect(&self, server: u32) {
        Self::update(self.storage.page(Page::Tima(server)), |_| tima::RESET);
        self.host.kick(server);
    }

    /// Resets the ring of a vCPU, connected or not.
    pub fn vcpu_reset(&self, server: u32) {
        Self::update(self.storage.page(Page::Tima(server)), |r| {
            tima::RESET | r & (tima::CONNECTED | tima::TOGGLE)
        });
        self.host.kick(server);
    }

    /// Switches a source off and forgets what was latched; levels and running forwards stay.
    pub fn turn_off(&self, lisn: u32) {
        Self::update(self.storage.page(Page::Source(lisn)), |w| {
            w & !(source::PQ | source::LATCHED) | pq::OFF
        });
    }

    /// Machine reset of a source, at a latched gate: off; its EAS masked if it is claimed, else 0.
    /// Levels belong to the machine and stay, as does what devices latch meanwhile.
    pub fn reset_source(&self, lisn: u32) {
        let eas = match self.eas(lisn) & eas::VALID {
            0 => 0,
            valid => valid | eas::MASKED,
        };
        // Release: executors pass the gate again after its Acquire; these are stores before it.
        self.storage
            .table_word(Table::Eas(lisn))
            .store(eas, Ordering::Release);
        Self::update(self.storage.page(Page::Source(lisn)), |w| {
            source::RESET | w & (source::ASSERTED | source::LATCHED)
        });
    }

    /// Machine reset of an END, at a closed gate.
    pub fn reset_end(&self, end: u32) {
        for selector in [0, cursor::SEL] {
            self.write_slot(end, selector, 0, 0);
        }
        // As an unlock: Release pairs with the next lock.
        self.storage
            .page(Page::EndCursor(end))
            .store(RESET_CURSOR, Ordering::Release);
    }
}
