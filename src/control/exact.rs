//! Operations of a daemon that executes alone happen once or not at all (SPEC.md chapter 3, "Commit").
//!
//! | step | a kill before it | a kill after it |
//! |---|---|---|
//! | the operation runs on copies ([`Staged`]), its queue entries and kicks are held back | nothing happened | nothing happened |
//! | records of every change, the prepared reply, then REDO: one store | nothing happened | a successor does the rest |
//! | the changes, the entries, "executed", REDO 0 | done again, with the same values | |
//! | kicks | START signals every line that is up | |
//!
//! Done again means the same: nobody else changes these words, and the guest sees an entry twice in
//! the same place with the same generation, which is once.
//!
//! An irqfd is named in IRQFD before its count is read. If a successor finds it there, and no commit,
//! it adds one to the count: a count that was not read stays one event, one that was read comes back.
//!
//! Not here: the front-end as executor, beside which the daemon changes the shared words in place.

use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::words::journal;
use papr_intc_protocol::layout::{AtomicWord, Geometry, Page, Table, TableStorage};
use papr_intc_protocol::plane::{Host, Plane};
use papr_intc_protocol::wire::source::IrqfdItem;

use super::host::DaemonHost;
use super::journal::{Journal, Ticket};
use crate::memory::QueueMemory;
use crate::memory::staged::{At, Staged};

/// A queue entry in a record, beside the words.
const ENTRY: u64 = 0xff;
const KIND_SHIFT: u32 = 56;
const NUMBER: u64 = (1 << KIND_SHIFT) - 1;
/// IRQFD names one.
const IRQFD_SET: u64 = 1 << 63;

/// The commit of operations on one plane.
pub struct Exact<'a, M, S: TableStorage>
where
    S::Word: From<u64>,
{
    plane: &'a Plane<Staged<S>, DaemonHost<M, S>>,
}

impl<'a, M: QueueMemory, S: TableStorage> Exact<'a, M, S>
where
    S::Word: From<u64>,
{
    /// Of this plane.
    pub fn new(plane: &'a Plane<Staged<S>, DaemonHost<M, S>>) -> Self {
        Self { plane }
    }

    fn shared(&self) -> &S {
        self.plane.storage().shared()
    }
    fn set(&self, word: u32, value: u64) {
        // Release: keeps program order, which is all that a kill can cut.
        let word = self.shared().table_word(Table::Journal(word));
        word.store(value, Ordering::Release);
    }
    fn get(&self, word: u32) -> u64 {
        // Acquire: uniform; the kernel's news of a death orders the rest.
        self.shared().table(Table::Journal(word), Ordering::Acquire)
    }

    /// From here to `commit` or `abort` nothing is visible to anybody.
    pub fn begin(&self) {
        self.plane.storage().begin();
        self.plane.host().hold();
    }

    /// The operation did not happen.
    pub fn abort(&self) {
        self.plane.storage().end();
        self.plane.host().release();
        self.set(journal::IRQFD, 0);
    }

    /// Makes the operation happen, and puts its reply on record.
    pub fn commit(&self, answer: Option<(Ticket, &[u8])>) {
        let changes = self.plane.storage().end();
        let outbox = self.plane.host().release();
        let journal = Journal(self.shared());
        let kept = answer.filter(|(ticket, payload)| journal.prepare(*ticket, payload));
        let ticket = kept.map(|(ticket, _)| ticket);
        let count = changes.len() + outbox.entries.len();
        let words = changes.iter().map(|(at, v)| Some((encode(*at)?, *v)));
        if count > journal::REDO_RECORDS as usize || !words.clone().all(|word| word.is_some()) {
            log::debug!("{count} changes at once: in place");
        } else if count != 0 {
            let entries = outbox.entries.iter();
            let entries = entries.map(|(gpa, e)| (ENTRY << KIND_SHIFT | gpa, u64::from(*e)));
            // Entries first, as a router does: who sees a raised line sees the entry.
            self.log(entries.chain(words.flatten()), ticket);
        }
        for (gpa, entry) in outbox.entries {
            self.plane.host().write_entry(gpa, entry);
        }
        for (at, value) in changes {
            // Release: who sees a line or an index sees the entry.
            let word = self.plane.storage().direct(at);
            word.store(value, Ordering::Release);
        }
        self.finish(ticket);
        let kick = |server| self.plane.host().kick(server);
        outbox.kicks.into_iter().for_each(kick);
        let due = |lisn| self.plane.host().resample(lisn);
        outbox.resamples.into_iter().for_each(due);
    }

    /// Writes the records and commits them.
    fn log(&self, records: impl Iterator<Item = (u64, u64)>, ticket: Option<Ticket>) {
        let mut count = 0;
        for (what, value) in records {
            let at = journal::REDO_FIRST + 2 * count;
            self.set(at, what);
            self.set(at + 1, value);
            count += 1;
        }
        let (channel, seq) = ticket.map_or((0, 0), |t| (t.channel, t.seq));
        self.set(journal::REDO_CHANNEL, u64::from(channel));
        self.set(journal::REDO_SEQUENCE, seq);
        self.set(journal::REDO, count.into());
    }

    fn finish(&self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            Journal(self.shared()).mark_executed(ticket);
        }
        // Before REDO: an irqfd named beside a commit has been served.
        self.set(journal::IRQFD, 0);
        self.set(journal::REDO, 0);
    }

    /// Finishes what a dead predecessor had committed. `true` if there was something.
    pub fn recover(&self) -> bool {
        let count = self.get(journal::REDO).min(journal::REDO_RECORDS.into());
        if count == 0 {
            return false;
        }
        for i in (0..count as u32).map(|i| journal::REDO_FIRST + 2 * i) {
            let (what, value) = (self.get(i), self.get(i + 1));
            if what >> KIND_SHIFT == ENTRY {
                let host = self.plane.host();
                host.write_entry(what & NUMBER, value as u32);
            } else if let Some(at) = decode(what, self.plane.geometry()) {
                // Release: as in `commit`.
                let word = self.plane.storage().direct(at);
                word.store(value, Ordering::Release);
            }
        }
        let ticket = Ticket {
            channel: self.get(journal::REDO_CHANNEL) as u32,
            seq: self.get(journal::REDO_SEQUENCE),
        };
        // The channel comes from shared memory: it may be none of the machine's.
        let exists = ticket.channel <= self.plane.geometry().servers();
        self.finish(Some(ticket).filter(|t| t.seq != 0 && exists));
        true
    }

    /// Forgets what a dead predecessor had committed. `true` if there was something.
    pub fn drop_records(&self) -> bool {
        let found = self.get(journal::REDO) != 0;
        self.set(journal::REDO, 0);
        found
    }

    /// The count of this irqfd is about to be read.
    pub fn intend(&self, item: &IrqfdItem) {
        self.set(journal::IRQFD, irqfd(item));
    }

    /// A predecessor may have read the count of this irqfd without serving it.
    pub fn in_doubt(&self, item: &IrqfdItem) -> bool {
        self.get(journal::REDO) == 0 && self.get(journal::IRQFD) == irqfd(item)
    }

    /// The source of the irqfd whose count a predecessor may have read without serving it.
    pub fn doubtful(&self) -> Option<u32> {
        let irqfd = self.get(journal::IRQFD);
        let open = self.get(journal::REDO) == 0 && irqfd & IRQFD_SET != 0;
        open.then_some(irqfd as u32)
    }

    /// The irqfd in doubt has its count again.
    pub fn doubt_over(&self) {
        self.set(journal::IRQFD, 0);
    }
}

fn irqfd(item: &IrqfdItem) -> u64 {
    IRQFD_SET | u64::from(item.input & 0x7fff_ffff) << 32 | u64::from(item.lisn)
}

/// A word's name in a record; none for words that no operation of this kind changes.
fn encode(at: At) -> Option<u64> {
    let (kind, number) = match at {
        At::Page(Page::Tima(n)) => (1, n),
        At::Page(Page::Icp(n)) => (2, n),
        At::Page(Page::PendingRoot(n)) => (3, n),
        At::Page(Page::CommonRoot) => (4, 0),
        At::Page(Page::PendingMid(n)) => (5, n),
        At::Page(Page::PendingLeaf(n)) => (6, n),
        At::Page(Page::EndCursor(n)) => (7, n),
        At::Page(Page::Source(n)) => (8, n),
        At::Page(Page::IcsSource(n)) => (9, n),
        At::Table(Table::Eas(n)) => (10, n),
        At::Table(Table::EndConfig(end, slot, word)) => (11, end << 2 | slot << 1 | word),
        _ => return None,
    };
    Some(kind << KIND_SHIFT | u64::from(number))
}

fn decode(what: u64, geometry: &Geometry) -> Option<At> {
    let n = u32::try_from(what & NUMBER).ok()?;
    let at = match what >> KIND_SHIFT {
        1 => At::Page(Page::Tima(n)),
        2 => At::Page(Page::Icp(n)),
        3 => At::Page(Page::PendingRoot(n)),
        4 => At::Page(Page::CommonRoot),
        5 => At::Page(Page::PendingMid(n)),
        6 => At::Page(Page::PendingLeaf(n)),
        7 => At::Page(Page::EndCursor(n)),
        8 => At::Page(Page::Source(n)),
        9 => At::Page(Page::IcsSource(n)),
        10 => At::Table(Table::Eas(n)),
        11 => At::Table(Table::EndConfig(n >> 2, n >> 1 & 1, n & 1)),
        _ => return None,
    };
    let exists = match at {
        At::Page(page) => geometry.page_offset(page) < geometry.pages_size(),
        At::Table(table) => geometry.table_offset(table) < geometry.tables_size(),
    };
    exists.then_some(at)
}

#[cfg(test)]
mod tests;
