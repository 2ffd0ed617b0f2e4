//! Claiming and freeing numbers in both controllers, and syncing sources.

use papr_intc_protocol::layout::Compat;
use papr_intc_protocol::plane::xive::Busy;
use papr_intc_protocol::wire::Wire;
use papr_intc_protocol::wire::source::{ALL, Claim, ClaimReply, Free, Sync, claim_flag};

use super::journal::{Operation, Ticket};
use super::{Control, Core, Refused};
use crate::memory::QueueMemory;

/// Looks at a source's count of running forwards before SYNC gives up.
const SYNC_LOOKS: u32 = 10_000;

impl<M: QueueMemory> Core<M> {
    /// Claims in both controllers, then in the bitmaps. Done again, it changes nothing.
    pub(super) fn claim_both(&self, first: u32, count: u32, flags: u32) {
        let c = self.controller();
        let lsi = flags & claim_flag::LSI != 0;
        for lisn in (first..first + count).filter(|n| !self.claims().is_claimed(*n)) {
            if c.machine.ic_mode.has_xics() {
                c.xics.claim(lisn, lsi);
            }
            if c.machine.ic_mode.has_xive() {
                // fidelity: F-RECLAIM. QEMU 7.2 leaves a recycled number what its last owner set.
                if c.machine.compat == Compat::Papr1 {
                    c.xive.reset_source(lisn);
                }
                c.xive.claim(lisn, lsi);
            }
        }
        self.claims().mark(first, count, flags);
    }

    /// Frees in both controllers, then in the bitmaps. Done again, it changes nothing.
    pub(super) fn free_both(&self, first: u32, count: u32) -> Result<(), Refused> {
        let c = self.controller();
        for lisn in first..first + count {
            if c.machine.ic_mode.has_xive() {
                c.xive.free(lisn).map_err(|Busy| Refused::Busy(lisn))?;
                self.sync_one(lisn)?;
            }
            if c.machine.ic_mode.has_xics() {
                // The only error is a number without source, which the claim excluded.
                let _ = c.xics.free(lisn);
            }
        }
        self.claims().clear(first, count);
        Ok(())
    }

    /// Nothing stands in the way of freeing these now: no END lock is stuck, no forward is running.
    fn check_free(&self, first: u32, count: u32) -> Result<(), Refused> {
        let xive = self.controller().xive;
        for lisn in first..first + count {
            if let Some(eas) = xive.source_config(lisn.into()) {
                // As it is: this only takes and gives back the END's lock.
                xive.set_source_config(lisn, eas)
                    .map_err(|Busy| Refused::Busy(lisn))?;
            }
            self.sync_one(lisn)?;
        }
        Ok(())
    }

    fn sync_one(&self, lisn: u32) -> Result<(), Refused> {
        let xive = self.controller().xive;
        for spins in 0..SYNC_LOOKS {
            if xive.sync(lisn) {
                return Ok(());
            }
            xive.wait(spins);
        }
        Err(Refused::Busy(lisn))
    }
}

impl<M: QueueMemory + Clone> Control<M> {
    pub(super) fn claim(&mut self, claim: &Claim, ticket: Ticket) -> Result<ClaimReply, Refused> {
        let core = self.core()?;
        let first = core.claims().find(claim)?;
        let reply = ClaimReply { first, zero: 0 };
        let operation = Operation::Claim {
            first,
            count: claim.count,
            flags: claim.flags,
        };
        core.journal().begin(ticket, operation, &reply.to_bytes());
        core.claim_both(first, claim.count, claim.flags);
        core.journal().finish(ticket);
        Ok(reply)
    }

    pub(super) fn free(&mut self, free: &Free, ticket: Ticket) -> Result<(), Refused> {
        let core = self.core()?;
        core.claims().check_claimed(free.first, free.count)?;
        if core.machine().ic_mode.has_xive() {
            core.check_free(free.first, free.count)?;
        }
        let operation = Operation::Free {
            first: free.first,
            count: free.count,
        };
        core.journal().begin(ticket, operation, &[]);
        let done = core.free_both(free.first, free.count);
        match done {
            Ok(()) => core.journal().finish(ticket),
            Err(_) => core.journal().abandon(),
        }
        done
    }

    pub(super) fn sync(&mut self, sync: &Sync) -> Result<(), Refused> {
        let core = self.core()?;
        if sync.lisn == ALL {
            return core
                .claims()
                .claimed()
                .try_for_each(|lisn| core.sync_one(lisn));
        }
        if !core.claims().is_claimed(sync.lisn) {
            return Err(Refused::NotClaimed(sync.lisn));
        }
        core.sync_one(sync.lisn)
    }
}
