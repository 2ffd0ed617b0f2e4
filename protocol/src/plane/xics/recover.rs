//! What a new daemon does with the words of a dead one, before it serves any request; and the same
//! steps for loaded state. SPEC.md chapter 3, "Recovery".
//!
//! The front-end has made sure that the old daemon is dead. The VMM's threads keep running all the
//! while. Any step may be cut by another crash and is then done again from the start.

use std::sync::atomic::Ordering::{AcqRel, Acquire};

use super::icp::presentable;
use super::ics::{pending, takable};
use super::{MASKED, Source, Work, Xics};
use crate::layout::words::icp::{TAG, XISR, xisr};
use crate::layout::words::ics::{CLAIMED, LSI, MASKED_PENDING, REJECTED, SENT, priority, server};
use crate::layout::words::journal;
use crate::layout::{AtomicWord, Storage, Table};
use crate::plane::Host;

impl<S: Storage, H: Host> Xics<'_, S, H> {
    /// Recovers the data plane: voids what the dead daemon had begun, makes sure that the sources it
    /// held in hand are recorded, evaluates every source, and kicks every vCPU with something
    /// presented. At most one interrupt is presented twice for each source it held.
    ///
    /// Left to the caller: finishing the configuration request in the journal.
    pub fn recover(&self) {
        self.take_back();
        self.evaluate();
        self.rekick();
    }

    /// The part of [`recover`](Self::recover) that presents nothing: all there is to do where XICS
    /// delivers nothing at the moment, because the machine is quiesced or XIVE is active.
    pub fn take_back(&self) {
        for server in 0..self.geometry.servers() {
            if let Some(icp) = self.icp(server) {
                // AcqRel: as in `write`; a VMM thread must not present by the routing from before a
                // request that is about to be repeated.
                icp.fetch_add(TAG, AcqRel);
            }
        }
        // Acquire: the journal of a dead process is all there; nobody writes it beside us.
        let word = self.storage.table(Table::Journal(journal::XICS), Acquire);
        let (token, victim) = (word & XISR, word >> 24 & XISR);
        for (i, irq) in [token, victim].into_iter().enumerate() {
            let twice = i == 1 && victim == token;
            if let Some(n) = self.source_of(irq as u32).filter(|_| !twice) {
                self.restore_token(n);
            }
        }
    }

    /// Looks at every source: what waits is made findable, and presented if its vCPU is open.
    pub fn evaluate(&self) {
        for i in 0..self.geometry.ics_sources() {
            self.look_at(Source(i));
        }
        self.close();
    }

    /// Looks at one source: if it waits, it is made findable, and presented if its vCPU is open.
    pub fn look_again(&self, irq: u32) {
        if let Some(n) = self.source_of(irq) {
            self.look_at(n);
            self.close();
        }
    }

    fn look_at(&self, n: Source) {
        let word = self.source_word(n).load(Acquire);
        if pending(word) {
            self.settle(self.park(n, word, false));
        }
    }

    /// Kicks every vCPU whose line is up: makes up for kicks that a dead daemon owed.
    pub fn rekick(&self) {
        for server in 0..self.geometry.servers() {
            if self.line(server) {
                self.host.kick(server);
            }
        }
    }

    /// What waits at a source with this word can be presented now.
    pub fn is_due(&self, word: u64) -> bool {
        takable(word) && presentable(self.icp_now(server(word)), priority(word))
    }

    /// The dead daemon may have held the token of `n`: if the event is in no word, records it.
    fn restore_token(&self, n: Source) {
        let number = self.number(n);
        let presented = |server| {
            self.icp(server)
                .is_some_and(|i| xisr(i.load(Acquire)) == number)
        };
        if (0..self.geometry.servers()).any(presented) {
            return;
        }
        let source = self.source_word(n);
        for _ in 0..self.attempts() {
            let old = source.load(Acquire);
            if old & CLAIMED == 0 {
                return;
            }
            let new = if old & LSI != 0 {
                old & !SENT
            } else if old & (REJECTED | MASKED_PENDING) != 0 {
                return;
            } else if priority(old) == MASKED {
                old | MASKED_PENDING
            } else {
                old | REJECTED
            };
            // AcqRel: as every source swap; `evaluate` indexes it.
            if new == old || Self::swap(source, old, new, AcqRel) {
                return;
            }
        }
        self.abandon(Work::Deliver(n));
    }
}
