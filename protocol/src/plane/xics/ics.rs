//! Sources (LoPAR, ICS): triggers, levels, and the three blocks through which every token goes:
//! deliver, give back, take. SPEC.md chapter 3, "Building blocks".
//!
//! A failed swap starts its block over; a block ends by naming the next one ([`Work`]).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

use super::icp::{presentable, with_presented};
use super::{MASKED, Source, Work, Xics};
use crate::layout::words::icp;
use crate::layout::words::ics::{
    ASSERTED, CLAIMED, LATCHED, LEVEL_IRQFD, LEVEL_VMM, LSI, MASKED_PENDING, REJECTED,
    RESAMPLE_DUE, SAVED_SHIFT, SENT, priority, server,
};
use crate::layout::{AtomicWord, Storage};
use crate::plane::{Host, LevelInput};

/// What a delivery depends on: if it changed between two looks, the delivery starts over.
const ROUTE: u64 = ((1 << SAVED_SHIFT) - 1) | CLAIMED | LSI;

/// There is an event to be sent, and the source may send it.
pub(super) fn takable(word: u64) -> bool {
    let recorded = if word & LSI != 0 {
        word & ASSERTED != 0 && word & SENT == 0
    } else {
        word & REJECTED != 0
    };
    word & CLAIMED != 0 && priority(word) != MASKED && recorded
}

/// A pass has business with the source: it must be found by the index.
pub(super) fn pending(word: u64) -> bool {
    let refused_msi = word & (CLAIMED | LSI | REJECTED) == CLAIMED | REJECTED;
    takable(word) || refused_msi
}

/// The bit of a level input.
pub(super) fn level_bit(input: LevelInput) -> u64 {
    match input {
        LevelInput::Vmm => LEVEL_VMM,
        LevelInput::Irqfd => LEVEL_IRQFD,
    }
}

fn with_bit(word: u64, bit: u64, on: bool) -> u64 {
    if on { word | bit } else { word & !bit }
}

impl<S: Storage, H: Host> Xics<'_, S, H> {
    /// An MSI: one event of `irq`. Ignored for LSIs and for numbers that XICS does not serve; events
    /// of a number that nobody claimed are dropped.
    #[inline]
    pub fn trigger(&self, irq: u32) {
        let Some(n) = self.source_of(irq) else { return };
        // Relaxed: the kind of a claimed number never changes, and `deliver` looks at the rest.
        if self.source_word(n).load(Relaxed) & LSI == 0 {
            self.settle(self.deliver(n));
        }
        self.close();
    }

    /// The level of one input of an LSI. Ignored for MSIs.
    pub fn set_level(&self, irq: u32, input: LevelInput, level: bool) {
        let Some(n) = self.source_of(irq) else { return };
        let word = self.source_word(n);
        for _ in 0..self.attempts() {
            // Acquire: the routing that goes into the swap below.
            let old = word.load(Acquire);
            if old & LSI == 0 {
                return;
            }
            let asserted = with_bit(old, level_bit(input), level);
            let sends = takable(asserted);
            let new = if sends { asserted | SENT } else { asserted };
            if sends {
                self.host.journal(irq, 0);
            }
            // AcqRel: publishes what the device wrote before it raised the level.
            if Self::swap(word, old, new, AcqRel) {
                if sends {
                    self.settle(Work::Deliver(n));
                    self.close();
                }
                return;
            }
        }
        self.host.contended(irq);
    }

    /// A trigger while the gate is latched: only recorded, [`replay`](Self::replay) makes it up.
    pub fn latch_trigger(&self, irq: u32) {
        if let Some(n) = self.source_of(irq) {
            // AcqRel: publishes what the device wrote before the trigger to who replays it.
            self.source_word(n).fetch_or(LATCHED, AcqRel);
        }
    }

    /// A level while the gate is latched: only stored; a rise is latched too, and
    /// [`replay`](Self::replay) acts on it.
    pub fn latch_level(&self, irq: u32, input: LevelInput, level: bool) {
        let Some(n) = self.source_of(irq) else { return };
        let word = self.source_word(n);
        // Acquire: whether it is an LSI does not change while the gate is latched.
        if word.load(Acquire) & LSI == 0 {
            return;
        }
        // AcqRel: as in `latch_trigger`.
        if level {
            word.fetch_or(level_bit(input) | LATCHED, AcqRel);
        } else {
            word.fetch_and(!level_bit(input), AcqRel);
        }
    }

    /// The resamplefds of an LSI have been written (see [`Host::resample`]).
    pub fn resampled(&self, irq: u32) {
        if let Some(n) = self.source_of(irq) {
            // Release: the eventfd writes come before the bit goes.
            self.source_word(n).fetch_and(!RESAMPLE_DUE, AcqRel);
        }
    }

    /// A token in hand: presents its source, or gives it back.
    #[inline]
    pub(super) fn deliver(&self, n: Source) -> Work {
        let source = self.source_word(n);
        // Acquire, this load and the next two: set-xive swaps the source, then moves the tag of the
        // old server's ICP. An ICP word with the new tag is thus never combined with the old routing.
        let word = source.load(Acquire);
        if word & CLAIMED == 0 {
            return Work::Done;
        }
        if priority(word) == MASKED {
            let new = if word & LSI != 0 {
                word & !SENT
            } else {
                word | MASKED_PENDING
            };
            // AcqRel: the event's data goes with the status bit to who takes it.
            return if Self::swap(source, word, new, AcqRel) {
                Work::Done
            } else {
                Work::Deliver(n)
            };
        }
        let refused = Work::GiveBack {
            source: n,
            was_open: false,
        };
        let target = server(word);
        let Some(icp_word) = self.icp(target) else {
            return refused;
        };
        let old = icp_word.load(Acquire);
        if source.load(Acquire) & ROUTE != word & ROUTE {
            return Work::Deliver(n);
        }
        if !presentable(old, priority(word)) {
            return refused;
        }
        let new = with_presented(old, self.number(n), priority(word));
        let next = self.displace(self.number(n), old, target, new);
        // SeqCst: fails if the tag moved since the load; publishes the event's data to H_XIRR.
        if !Self::swap(icp_word, old, new, SeqCst) {
            return Work::Deliver(n);
        }
        if icp::xisr(old) == 0 {
            self.host.kick(target);
        }
        next
    }

    /// A token goes back to its source, which then waits for a pass, unless the vCPU opened
    /// meanwhile.
    pub(super) fn give_back(&self, n: Source, was_open: bool) -> Work {
        let source = self.source_word(n);
        let word = source.load(Acquire);
        if word & CLAIMED == 0 {
            return Work::Done;
        }
        let new = if word & LSI != 0 {
            word & !SENT
        } else if priority(word) == MASKED && self.rules.masked_becomes != 0 {
            word | self.rules.masked_becomes
        } else {
            word | REJECTED
        };
        // A swap even if nothing changes: it publishes what the device wrote before its trigger.
        // SeqCst: the giver's half of the look-again pair.
        if !Self::swap(source, word, new, SeqCst) {
            return Work::GiveBack {
                source: n,
                was_open,
            };
        }
        self.park(n, new, was_open)
    }

    /// After a swap left `word` in the source: makes it findable, then looks whether its vCPU opened
    /// in the meantime. Who opens an ICP writes it and then searches; we write what it searches and
    /// then read the ICP. One of the two sees the other.
    pub(super) fn park(&self, n: Source, word: u64, was_open: bool) -> Work {
        if !pending(word) {
            return Work::Done;
        }
        self.index(n, server(word));
        if was_open || !takable(word) {
            return Work::Done;
        }
        if presentable(self.icp_now(server(word)), priority(word)) {
            Work::Take(n)
        } else {
            Work::Done
        }
    }

    /// Takes the token of a recorded event, if nobody else did.
    pub(super) fn take(&self, n: Source) -> Work {
        let source = self.source_word(n);
        let word = source.load(Acquire);
        if !takable(word) {
            return Work::Done;
        }
        self.host.journal(self.number(n), 0);
        let new = if word & LSI != 0 {
            word | SENT
        } else {
            word & !REJECTED
        };
        // AcqRel: takes over the event's data from who recorded it.
        if Self::swap(source, word, new, AcqRel) {
            Work::Deliver(n)
        } else {
            Work::Take(n)
        }
    }

    /// The EOI of a source. Of an MSI: nothing. Of an LSI: it may be sent again; a level from irqfds
    /// falls, and their resamplefds are due.
    #[inline]
    pub(super) fn end(&self, n: Source) -> Work {
        let source = self.source_word(n);
        for _ in 0..self.attempts() {
            let word = source.load(Acquire);
            if word & (CLAIMED | LSI) != CLAIMED | LSI {
                return Work::Done;
            }
            let was_open =
                !self.rules.retry_moved && presentable(self.icp_now(server(word)), priority(word));
            self.host.journal(self.number(n), 0);
            let mut new = word & !SENT;
            if word & LEVEL_IRQFD != 0 {
                new = new & !LEVEL_IRQFD | RESAMPLE_DUE;
            }
            // SeqCst: as in `give_back`.
            if Self::swap(source, word, new, SeqCst) {
                if word & LEVEL_IRQFD != 0 {
                    self.host.resample(self.number(n));
                }
                return self.park(n, new, was_open);
            }
        }
        self.host.contended(self.number(n));
        Work::Done
    }

    /// A daemon stops here: the words keep changing under it. The token goes back by operations that
    /// cannot fail, and the daemon looks at the source again from a timer.
    pub(super) fn abandon(&self, work: Work) {
        let (n, held) = match work {
            Work::Done => return,
            Work::Deliver(n) | Work::GiveBack { source: n, .. } => (n, true),
            Work::Take(n) => (n, false),
        };
        let source = self.source_word(n);
        if held {
            let word = source.load(Acquire);
            // SeqCst: as in `give_back`.
            if word & LSI != 0 {
                source.fetch_and(!SENT, SeqCst);
            } else if word & CLAIMED != 0 {
                source.fetch_or(REJECTED, SeqCst);
            }
            self.index(n, server(word));
        }
        self.host.contended(self.number(n));
    }
}
