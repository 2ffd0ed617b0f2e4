//! What a transition needs from outside: the one trait between the data plane and its executor.
//!
//! Implemented by the front-end (its RAM mapping, its kick callbacks), by the daemon (its RAM
//! mapping, the vCPU eventfds, its journal) and by tests. No method may call back into the plane.

/// Who holds an END lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOwner {
    /// A thread of the VMM. Nobody ever takes a lock from one.
    FrontEnd,
    /// A daemon: its generation (never 0) and journal slot. When it is dead, its locks are broken.
    Daemon {
        /// Low 16 bits of the header's generation, 1 and up.
        generation: u16,
        /// Journal slot.
        worker: u8,
    },
}

/// An executor of transitions.
pub trait Host {
    /// Writes one event queue entry, big-endian, at guest physical address `gpa` (a multiple of 4)
    /// and marks the page dirty, unless [`entry_stored`](Self::entry_stored) does. `false`: no RAM there, nothing written.
    ///
    /// Called under an END lock: it must not block, fault in a way that waits, or call out. The store
    /// may be relaxed; the plane's own orderings publish it.
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool;

    /// The entry written at `gpa` lies behind a full fence: a mark of its page that is seen now need not be made again.
    /// Called in the same transition, with no lock held.
    fn entry_stored(&self, gpa: u64) {
        let _ = gpa;
    }

    /// "Look again at the line of `server`." Called after its word changed, with no lock held.
    fn kick(&self, server: u32);

    /// Who takes END locks here.
    fn lock_owner(&self) -> LockOwner {
        LockOwner::FrontEnd
    }

    /// A daemon generation is known to be dead: its END locks may be broken.
    fn is_dead(&self, generation: u16) -> bool {
        let _ = generation;
        false
    }

    /// A daemon records what it is about to hold: a source's token and a victim's (XICS numbers, 0
    /// none; data-plane-xics §7). The VMM cannot die alone and records nothing.
    fn journal(&self, token: u32, victim: u32) {
        let _ = (token, victim);
    }

    /// A daemon gave up on a source of XICS after too many failed swaps: a VMM scribbles over its
    /// pages. Look at it again from a timer (`Xics::look_again`).
    fn contended(&self, irq: u32) {
        let _ = irq;
    }

    /// The EOI of a source cleared LEVEL_IRQFD and set RESAMPLE_DUE: write its resamplefds, then
    /// clear RESAMPLE_DUE.
    fn resample(&self, lisn: u32) {
        let _ = lisn;
    }
}

impl<H: Host + ?Sized> Host for &H {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        (**self).write_queue_entry(gpa, entry)
    }
    fn entry_stored(&self, gpa: u64) {
        (**self).entry_stored(gpa);
    }
    fn kick(&self, server: u32) {
        (**self).kick(server);
    }
    fn lock_owner(&self) -> LockOwner {
        (**self).lock_owner()
    }
    fn is_dead(&self, generation: u16) -> bool {
        (**self).is_dead(generation)
    }
    fn journal(&self, token: u32, victim: u32) {
        (**self).journal(token, victim);
    }
    fn contended(&self, irq: u32) {
        (**self).contended(irq);
    }
    fn resample(&self, lisn: u32) {
        (**self).resample(lisn);
    }
}
