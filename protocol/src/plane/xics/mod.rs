//! XICS on shared words: sources (ICS), presentation controllers (ICP) and what finds a waiting
//! source again. Follows SPEC.md chapter 3 (XICS); the rules of PAPR's state machine are those of
//! LoPAR's interrupt chapter, the differences of QEMU 7.2 are the data of `Rules`.
//!
//! There is no lock: every transition is one compare-and-swap on one word. What must follow a swap is
//! work that the thread still holds, and `Xics::settle` runs it to the end.
//!
//! | word | who changes it |
//! |---|---|
//! | ICP ([`Page::Icp`]) | its vCPU, whoever presents to it, the daemon's tag; by read-modify-writes only |
//! | source ([`Page::IcsSource`]) | routing, CLAIMED, LSI: the daemon; status and levels: the executor and the daemon |
//! | pending index | who gives a token back sets bits, a pass clears them |
//!
//! A **token** is the right and duty to deliver a source's event. It comes from a trigger or from
//! taking a recorded event, and ends in XISR, in a status bit, or (LSI) with SENT cleared.
//!
//! Not done here: the gate and the epochs of the state word (the executor's entry), the mode check of
//! the hcalls, and eventfds.
//!
//! [`Page::Icp`]: crate::layout::Page::Icp
//! [`Page::IcsSource`]: crate::layout::Page::IcsSource

mod config;
mod icp;
mod ics;
mod index;
mod pass;
mod recover;
#[cfg(test)]
mod tests;

use crate::layout::words::{icp as icp_word, ics as ics_word};
use crate::layout::{AtomicWord, Compat, Geometry, Machine, Page, Storage};
use crate::plane::{Host, LockOwner};

pub use config::{ConfigError, Levels, Routing, SourceView};

/// Priority of a masked source: less favoured than any CPPR lets through.
const MASKED: u8 = 0xff;

/// Blocks or failed swaps after which a daemon stops to retry. Honest threads make a swap fail a few
/// times at most; a VMM that scribbles over its pages must not hold the daemon's thread.
const DAEMON_ATTEMPTS: u32 = 1000;

/// What differs between the compat levels. Each datum is consulted at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rules {
    /// One pending root for all, and a pass looks at every server's sources; else a root per vCPU,
    /// and a pass looks at its own.
    common_root: bool,
    /// A pass follows when CPPR became less favoured; else when XISR was 0. Also lets the IPI check
    /// follow an accept and a rejection.
    pass_on_open: bool,
    /// A source given back is tried again wherever its routing now allows it; else only where the
    /// swap that displaced it made that possible.
    retry_moved: bool,
    /// Status bits of an MSI that a new routing delivers at once.
    write_takes: u64,
    /// What a refused MSI becomes while masked; 0: it stays REJECTED.
    masked_becomes: u64,
    /// A pass forgets REJECTED of a masked MSI.
    drop_masked: bool,
    /// Priority and saved priority of a number after free.
    free_priority: u8,
}

impl Rules {
    const QEMU_7_2: Self = Self {
        common_root: true,
        pass_on_open: false,
        retry_moved: false,
        write_takes: ics_word::MASKED_PENDING,
        masked_becomes: 0,
        drop_masked: true,
        free_priority: 0,
    };
    const PAPR_1: Self = Self {
        common_root: false,
        pass_on_open: true,
        retry_moved: true,
        write_takes: ics_word::MASKED_PENDING | ics_word::REJECTED,
        masked_becomes: ics_word::MASKED_PENDING,
        drop_masked: false,
        free_priority: MASKED,
    };

    #[inline]
    fn of(compat: Compat) -> &'static Self {
        match compat {
            Compat::Qemu72 => &Self::QEMU_7_2,
            Compat::Papr1 => &Self::PAPR_1,
        }
    }
}

/// A source, as its index from the XICS base. Always less than the geometry's `ics_sources`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source(u32);

/// What a swap leaves to do for the thread that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Nothing.
    Done,
    /// The thread holds the source's token: deliver it.
    Deliver(Source),
    /// The thread holds the source's token, and it goes back to the source.
    GiveBack {
        source: Source,
        /// Its server would have presented it even before the swap: leave it to the next pass
        /// (level `qemu-7.2`).
        was_open: bool,
    },
    /// The source has a recorded event that may be presentable: take its token.
    Take(Source),
}

/// The XICS transitions over one machine's words.
///
/// Cheap to make; holds nothing but references. `irq` in its methods is the global interrupt number:
/// one that XICS does not serve is ignored. `server` is a server number; one not below the
/// geometry's `servers` is treated as a vCPU that does not exist.
#[derive(Debug)]
pub struct Xics<'a, S, H> {
    storage: &'a S,
    host: &'a H,
    geometry: &'a Geometry,
    rules: &'static Rules,
}

// Not derived: a derive would ask for `S: Copy`.
impl<S, H> Clone for Xics<'_, S, H> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S, H> Copy for Xics<'_, S, H> {}

impl<'a, S: Storage, H: Host> Xics<'a, S, H> {
    /// The transitions of `machine`; `geometry` must be the machine's.
    #[inline]
    pub fn new(storage: &'a S, host: &'a H, machine: &Machine, geometry: &'a Geometry) -> Self {
        Self {
            storage,
            host,
            geometry,
            rules: Rules::of(machine.compat),
        }
    }

    /// Runs the blocks until no work is left in this thread's hands.
    #[inline]
    fn settle(&self, work: Work) {
        if work != Work::Done {
            self.settle_all(work);
        }
    }

    // By value, as what else is out of line: so the rest of a transition keeps these references in registers.
    fn settle_all(self, mut work: Work) {
        for _ in 0..self.attempts() {
            work = match work {
                Work::Done => return,
                Work::Deliver(n) => self.deliver(n),
                Work::GiveBack { source, was_open } => self.give_back(source, was_open),
                Work::Take(n) => self.take(n),
            };
        }
        self.abandon(work);
    }

    /// Ends an operation: nothing is held any more.
    #[inline]
    fn close(&self) {
        self.host.journal(0, 0);
    }

    /// How often a block may start over here.
    #[inline]
    fn attempts(&self) -> u32 {
        match self.host.lock_owner() {
            LockOwner::FrontEnd => u32::MAX,
            LockOwner::Daemon { .. } => DAEMON_ATTEMPTS,
        }
    }

    /// The source behind a global number.
    #[inline]
    fn source_of(&self, irq: u32) -> Option<Source> {
        let index = irq.checked_sub(self.geometry.xics_base())?;
        (index < self.geometry.ics_sources()).then_some(Source(index))
    }

    /// The global number of a source.
    #[inline]
    fn number(&self, n: Source) -> u32 {
        self.geometry.xics_base() + n.0
    }

    /// The source that XISR of an ICP word names; `None` for nothing, the IPI, and numbers that no
    /// source has.
    #[inline]
    fn presented(&self, icp: u64) -> Option<Source> {
        self.source_of(icp_word::xisr(icp))
    }

    #[inline]
    fn source_word(&self, n: Source) -> &'a S::Word {
        self.storage.page(Page::IcsSource(n.0))
    }

    #[inline]
    fn icp(&self, server: u32) -> Option<&'a S::Word> {
        (server < self.geometry.servers()).then(|| self.storage.page(Page::Icp(server)))
    }

    /// Replaces a word if it is still `current`.
    #[inline]
    fn swap(word: &S::Word, current: u64, new: u64, success: std::sync::atomic::Ordering) -> bool {
        // Acquire on failure: the next attempt starts with a load of its own, which this never
        // weakens.
        word.compare_exchange(current, new, success, std::sync::atomic::Ordering::Acquire)
            .is_ok()
    }
}
