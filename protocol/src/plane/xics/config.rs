//! Configuration of XICS, run by the daemon alone, one request at a time: routing, claims, vCPUs,
//! resets. SPEC.md chapter 3, "set-xive" and "Operations".
//!
//! A transition of the VMM may run at any moment beside these, except where "quiesced" is said. When
//! [`write`](Xics::write) or [`free`](Xics::free) has returned, nothing is presented by the old
//! routing any more: every presenter that read it also read the old server's ICP word before its tag
//! moved, and its swap fails.

use std::sync::atomic::Ordering::{AcqRel, Acquire, SeqCst};

use super::ics::takable;
use super::{MASKED, Source, Work, Xics};
use crate::layout::words::icp::{CONNECTED, PARITY, RESET as ICP_RESET, TAG, xisr};
use crate::layout::words::ics::{
    ASSERTED, CLAIMED, LATCHED, LEVEL_IRQFD, LEVEL_VMM, LSI, MASKED_PENDING, REJECTED,
    RESAMPLE_DUE, RESET as SOURCE_RESET, SENT, priority, routing, saved, server,
};
use crate::layout::{AtomicWord, Storage};
use crate::plane::Host;

/// Bits 31:0 of a source word.
const ROUTING: u64 = 0xffff_ffff;

/// Where a source goes: absolute values, to be journalled before they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Server number.
    pub server: u32,
    /// Priority; ff is masked.
    pub priority: u8,
    /// What ibm,int-on restores.
    pub saved: u8,
}

/// The level inputs of an LSI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// The VMM's own devices.
    pub vmm: bool,
    /// irqfds with resamplefds.
    pub irqfd: bool,
}

/// A source, as one load found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceView {
    /// The number is claimed.
    pub claimed: bool,
    /// Level-sensitive.
    pub lsi: bool,
    /// Server, priority, saved priority.
    pub routing: Routing,
    /// QEMU's status: 1 asserted, 2 sent, 4 rejected, 8 masked pending.
    pub status: u8,
    /// Level inputs.
    pub levels: Levels,
    /// Triggered while the gate was latched.
    pub latched: bool,
    /// A resamplefd is still to be written.
    pub resample_due: bool,
}

impl SourceView {
    fn of(word: u64) -> Self {
        let status = [ASSERTED, SENT, REJECTED, MASKED_PENDING];
        let status = (0..).zip(status);
        Self {
            claimed: word & CLAIMED != 0,
            lsi: word & LSI != 0,
            routing: Routing {
                server: server(word),
                priority: priority(word),
                saved: saved(word),
            },
            status: status.fold(0, |bits, (i, bit)| bits | u8::from(word & bit != 0) << i),
            levels: Levels {
                vmm: word & LEVEL_VMM != 0,
                irqfd: word & LEVEL_IRQFD != 0,
            },
            latched: word & LATCHED != 0,
            resample_due: word & RESAMPLE_DUE != 0,
        }
    }
}

/// Why a configuration request had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// XICS does not serve the number.
    #[error("interrupt {0:#x} is not an XICS source")]
    NoSuchSource(u32),
    /// The server number is out of range.
    #[error("there is no server {0}")]
    NoSuchServer(u32),
    /// The VMM keeps changing the word.
    #[error("the words of interrupt {0:#x} kept changing: the VMM scribbles over its pages")]
    Contended(u32),
}

impl<S: Storage, H: Host> Xics<'_, S, H> {
    /// Routes a source, and delivers what the new routing allows (ibm,set-xive and its kin).
    ///
    /// Writing the same values again changes nothing more: a crashed request is simply repeated.
    pub fn write(&self, irq: u32, to: Routing) -> Result<(), ConfigError> {
        let n = self.source_of(irq).ok_or(ConfigError::NoSuchSource(irq))?;
        if to.server >= self.geometry.servers() {
            return Err(ConfigError::NoSuchServer(to.server));
        }
        let source = self.source_word(n);
        let bits = routing(to.server, to.priority, to.saved);
        for _ in 0..self.attempts() {
            let old = source.load(Acquire);
            let (new, sends) = self.rerouted(old & !ROUTING | bits);
            if sends {
                self.host.journal(irq, 0);
            }
            // AcqRel: before the tag below; pairs with the loads of `deliver`.
            if Self::swap(source, old, new, AcqRel) {
                self.move_tag(server(old));
                let work = if sends { Work::Deliver(n) } else { Work::Done };
                self.settle(work);
                self.close();
                return Ok(());
            }
        }
        self.close();
        Err(ConfigError::Contended(irq))
    }

    /// A word with its new routing: with the token taken out of it, if there is one to deliver.
    fn rerouted(&self, word: u64) -> (u64, bool) {
        if word & CLAIMED == 0 {
            return (word, false);
        }
        if word & LSI != 0 {
            return if takable(word) {
                (word | SENT, true)
            } else {
                (word, false)
            };
        }
        if priority(word) != MASKED {
            let takes = self.rules.write_takes;
            return if word & takes != 0 {
                (word & !takes, true)
            } else {
                (word, false)
            };
        }
        if word & REJECTED != 0 && self.rules.masked_becomes != 0 {
            return (word & !REJECTED | self.rules.masked_becomes, false);
        }
        (word, false)
    }

    /// Moves the tag of a server's ICP: swaps that began before fail.
    fn move_tag(&self, server: u32) {
        if let Some(icp) = self.icp(server) {
            // AcqRel: after the source's swap; pairs with the loads of `deliver`. The tag is the top
            // field: it wraps out of the word.
            icp.fetch_add(TAG, AcqRel);
        }
    }

    /// What ibm,int-off writes: masked, with the priority saved.
    pub fn masked_routing(&self, irq: u32) -> Option<Routing> {
        let now = self.source(irq)?.routing;
        Some(Routing {
            priority: MASKED,
            saved: now.priority,
            ..now
        })
    }

    /// What ibm,int-on writes: the saved priority.
    pub fn unmasked_routing(&self, irq: u32) -> Option<Routing> {
        let now = self.source(irq)?.routing;
        Some(Routing {
            priority: now.saved,
            ..now
        })
    }

    /// ibm,int-off.
    pub fn int_off(&self, irq: u32) -> Result<(), ConfigError> {
        let to = self.masked_routing(irq);
        self.write(irq, to.ok_or(ConfigError::NoSuchSource(irq))?)
    }

    /// ibm,int-on.
    pub fn int_on(&self, irq: u32) -> Result<(), ConfigError> {
        let to = self.unmasked_routing(irq);
        self.write(irq, to.ok_or(ConfigError::NoSuchSource(irq))?)
    }

    /// A source as it is now; `None` for a number that XICS does not serve.
    pub fn source(&self, irq: u32) -> Option<SourceView> {
        let n = self.source_of(irq)?;
        // Acquire: what it shows is there.
        Some(SourceView::of(self.source_word(n).load(Acquire)))
    }

    /// Claims a number. The routing stays as reset or free left it.
    pub fn claim(&self, irq: u32, lsi: bool) {
        if let Some(n) = self.source_of(irq) {
            let kind = if lsi { LSI } else { 0 };
            // AcqRel: as every source swap.
            self.source_word(n).fetch_or(CLAIMED | kind, AcqRel);
        }
    }

    /// Frees a number: what it still had to send is forgotten. One XISR may still show it. Claim it
    /// again only after its device is gone.
    pub fn free(&self, irq: u32) -> Result<(), ConfigError> {
        let n = self.source_of(irq).ok_or(ConfigError::NoSuchSource(irq))?;
        let source = self.source_word(n);
        let free = self.rules.free_priority;
        // AcqRel: as in `write`.
        let old = source.swap(routing(0, free, free), AcqRel);
        self.move_tag(server(old));
        Ok(())
    }

    /// The vCPU exists from now on, with an ICP as after reset.
    pub fn connect(&self, server: u32) {
        if let Some(icp) = self.icp(server) {
            // SeqCst: all swaps of ICP words are.
            icp.fetch_or(CONNECTED, SeqCst);
        }
    }

    /// The vCPU is gone. What it had presented and not accepted goes back to its source, and waits.
    pub fn disconnect(&self, server: u32) {
        self.reset_icp(server, PARITY);
    }

    /// Reset of one vCPU. What it had presented and not accepted goes back to its source.
    pub fn vcpu_reset(&self, server: u32) {
        self.reset_icp(server, PARITY | CONNECTED);
    }

    /// The vCPU exists.
    pub fn is_connected(&self, server: u32) -> bool {
        self.icp_now(server) & CONNECTED != 0
    }

    fn reset_icp(&self, server: u32, kept: u64) {
        let work = self.swap_icp(server, |old| {
            let new = Self::icp_after_reset(old, kept);
            (new, (self.displace(0, old, server, new), xisr(old) != 0))
        });
        if let Some((work, lowered)) = work {
            if lowered {
                self.host.kick(server);
            }
            self.settle(work);
        }
        self.close();
    }

    /// An ICP word after reset, its tag moved.
    fn icp_after_reset(old: u64, kept: u64) -> u64 {
        ICP_RESET | old & kept | (old & !(TAG - 1)).wrapping_add(TAG)
    }

    /// Prepares fresh memory: every source and every ICP as after reset, nothing claimed, no vCPU.
    /// Quiesced.
    pub fn create(&self) {
        for i in 0..self.geometry.ics_sources() {
            // AcqRel: uniform; the gate is shut.
            self.source_word(Source(i)).swap(SOURCE_RESET, AcqRel);
        }
        for server in 0..self.geometry.servers() {
            if let Some(icp) = self.icp(server) {
                icp.swap(ICP_RESET, SeqCst);
            }
        }
        self.clear_index();
    }

    /// Machine reset, quiesced: every ICP and every source as after reset; CLAIMED, LSI, CONNECTED
    /// and the levels stay. Replay latched triggers and levels ([`replay`](Self::replay)) after the
    /// gate has opened.
    pub fn reset(&self) {
        for server in 0..self.geometry.servers() {
            let lowered = self.swap_icp(server, |old| {
                let new = Self::icp_after_reset(old, PARITY | CONNECTED);
                (new, xisr(old) != 0)
            });
            if lowered == Some(true) {
                self.host.kick(server);
            }
        }
        for i in 0..self.geometry.ics_sources() {
            self.reset_source(self.number(Source(i)), None);
        }
        self.clear_index();
    }

    /// Reset of one source, quiesced: routing as after reset, nothing to send. `levels`: what its
    /// inputs are from now on (moved from another controller's words); `None` leaves them.
    ///
    /// CLAIMED and LSI stay, and LATCHED and RESAMPLE_DUE, which the VMM's threads may set meanwhile.
    pub fn reset_source(&self, irq: u32, levels: Option<Levels>) {
        let Some(n) = self.source_of(irq) else { return };
        let source = self.source_word(n);
        for _ in 0..self.attempts() {
            let old = source.load(Acquire);
            let mut new = SOURCE_RESET | old & (CLAIMED | LSI | ASSERTED | LATCHED | RESAMPLE_DUE);
            if let Some(levels) = levels {
                new &= !ASSERTED;
                new |= if levels.vmm { LEVEL_VMM } else { 0 };
                new |= if levels.irqfd { LEVEL_IRQFD } else { 0 };
            }
            // AcqRel: against `latch_trigger` and `latch_level`.
            if Self::swap(source, old, new, AcqRel) {
                return;
            }
        }
        self.host.contended(irq);
    }

    /// After the gate has opened: makes up for what was latched: one trigger of an MSI, an LSI whose
    /// level rose. A source with nothing latched is left as it is.
    pub fn replay(&self, irq: u32) {
        let Some(n) = self.source_of(irq) else { return };
        let source = self.source_word(n);
        for _ in 0..self.attempts() {
            // Acquire: most sources have nothing to replay.
            let old = source.load(Acquire);
            if old & LATCHED == 0 {
                return;
            }
            // The event changes its place in one swap: at no moment is it in no word. (A token in hand
            // would be taken for an earlier event that is presented already, if we died.)
            // Beside one that waits already it is delivered by itself, as QEMU would; if we die it is merged
            // with that one.
            let beside = old & (LSI | REJECTED) == REJECTED;
            let waits = match (old & LSI != 0 || beside, priority(old) == MASKED) {
                (true, _) => 0,
                (false, true) => MASKED_PENDING,
                (false, false) => REJECTED,
            };
            if beside {
                self.host.journal(irq, 0);
            }
            // AcqRel: takes over what the trigger published.
            if Self::swap(source, old, old & !LATCHED | waits, AcqRel) {
                if beside {
                    self.settle(Work::Deliver(n));
                    return self.close();
                }
                return self.look_again(irq);
            }
        }
        self.host.contended(irq);
    }
}
