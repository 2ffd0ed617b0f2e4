//! XIVE presenter: the OS ring of a vCPU and the guest's TIMA pages (xive.md §4).
//!
//! NSR..PIPR are one word; each step is one compare-and-swap of it. The vCPU's line is bit NSR.EO of
//! the word: after a step that can have moved it the host is told to look again.
//!
//! Only the OS page is alive. USER is dead in QEMU too; HW and HV, which QEMU's TCG exposes by
//! accident, are dead at both compat levels.

use std::sync::atomic::Ordering;

use super::{Xive, all_ones};
use crate::layout::words::tima;
use crate::layout::{AtomicWord, Page, Storage};
use crate::plane::Host;

/// Offset of the OS page in the TIMA.
pub const OS_PAGE: u64 = 0x2_0000;

/// Pure functions on an OS ring (xive.md §4.3), without the host's part.
pub mod ring {
    use crate::layout::words::tima::{
        CPPR_SHIFT, IPB_SHIFT, NSR_EO, NSR_SHIFT, cppr, ipb, nsr, pipr,
    };

    /// The IPB bit of a priority; none for a number above 7.
    pub const fn ipb_bit(priority: u8) -> u8 {
        if priority > 7 { 0 } else { 0x80 >> priority }
    }

    /// A ring with PIPR computed from IPB.
    fn with_pipr(ring: u64) -> u64 {
        let pipr = match ipb(ring) {
            0 => 0xff,
            ipb => ipb.leading_zeros() as u8,
        };
        ring & !0xff | u64::from(pipr)
    }

    /// A ring with CPPR replaced, without looking at what is pending.
    pub fn with_cppr(ring: u64, cppr: u8) -> u64 {
        ring & !(0xff << CPPR_SHIFT) | u64::from(cppr) << CPPR_SHIFT
    }

    /// Sets the exception if something more favoured than CPPR is pending. Never clears it.
    fn notify(ring: u64) -> u64 {
        if pipr(ring) < cppr(ring) {
            ring | NSR_EO
        } else {
            ring
        }
    }

    /// An interrupt of `priority` is pending; above 7: only looks again.
    pub fn pend(ring: u64, priority: u8) -> u64 {
        notify(with_pipr(ring | u64::from(ipb_bit(priority)) << IPB_SHIFT))
    }

    /// The CPPR byte store: what is above 7 becomes ff.
    pub fn set_cppr(ring: u64, cppr: u8) -> u64 {
        notify(with_cppr(ring, if cppr > 7 { 0xff } else { cppr }))
    }

    /// The acknowledge: the next ring, and the value that the load returns.
    pub fn acknowledge(ring: u64) -> (u64, u16) {
        let old_nsr = nsr(ring);
        let mut next = ring;
        if ring & NSR_EO != 0 {
            let taken = pipr(ring);
            let pending = u64::from(ipb_bit(taken)) << IPB_SHIFT;
            next = with_pipr(with_cppr(ring, taken) & !pending) & !(0x80 << NSR_SHIFT);
        }
        (next, u16::from(old_nsr) << 8 | u16::from(cppr(next)))
    }
}

impl<S: Storage, H: Host> Xive<'_, S, H> {
    /// An event for `server` (below the geometry's count) at `priority` 0 to 7. Dropped if there is no
    /// such vCPU.
    #[inline]
    pub fn present(&self, server: u32, priority: u8) {
        self.ring_step(server, |r| {
            if r & tima::CONNECTED == 0 {
                r
            } else {
                ring::pend(r, priority)
            }
        });
    }

    /// "Set OS pending" of the TIMA: as an event; above 7 only looks again.
    #[inline]
    pub fn set_pending(&self, server: u32, priority: u8) {
        self.present(server, priority);
    }

    /// The CPPR byte store.
    #[inline]
    pub fn set_cppr(&self, server: u32, cppr: u8) {
        self.ring_step(server, |r| ring::set_cppr(r, cppr));
    }

    /// The acknowledge load: NSR as it was in the upper byte, CPPR as it is now in the lower.
    #[inline]
    pub fn acknowledge(&self, server: u32) -> u16 {
        let word = self.storage.page(Page::Tima(server));
        let (old, _) = Self::update(word, |r| ring::acknowledge(r).0);
        // Always: the line has to be low when the load completes, also if a thread that raised it for
        // an event now taken has not yet looked again (xive.md §13.5).
        self.host.kick(server);
        ring::acknowledge(old).1
    }

    /// The level of a vCPU's line.
    #[inline]
    pub fn line(&self, server: u32) -> bool {
        // Acquire pairs with present: who sees the line sees the entry.
        let ring = self
            .storage
            .page(Page::Tima(server))
            .load(Ordering::Acquire);
        ring & tima::NSR_EO != 0
    }

    /// A load by vCPU `server` from the TIMA; `offset` counts from its base (four 64 KiB pages), `size`
    /// is 1, 2, 4 or 8. Checks both. What is not there reads as all ones (xive.md §4.4).
    #[inline]
    pub fn tima_load(&self, server: u32, offset: u64, size: u8) -> u64 {
        if !self.os_page(server, offset, size) {
            return all_ones(size);
        }
        match (offset & 0xfff, size) {
            (0x810, 2) => u64::from(self.acknowledge(server)),
            (o, _) if o & 0x800 != 0 => all_ones(size),
            (o, 8) if o & 0x3f == 0x10 => self.ring_bytes(server),
            (o, 4) if o & 0x3f == 0x10 => self.ring_bytes(server) >> 32,
            (o, 4) if o & 0x3f == 0x14 => self.ring_bytes(server) & 0xffff_ffff,
            _ => all_ones(size),
        }
    }

    /// A store by vCPU `server` to the TIMA, as [`Self::tima_load`]. What is not there is ignored.
    ///
    /// A store of 4 or 8 bytes over CPPR sets the byte as it is: nothing is clamped, nothing presented.
    #[inline]
    pub fn tima_store(&self, server: u32, offset: u64, size: u8, value: u64) {
        if !self.os_page(server, offset, size) {
            return;
        }
        let raw = match (offset & 0xfff, size) {
            (0x812, 1) => return self.set_pending(server, value as u8),
            (0x011, 1) => return self.set_cppr(server, value as u8),
            (o, _) if o & 0x800 != 0 => return,
            (o, 8) if o & 0x3f == 0x10 => value >> 48,
            (o, 4) if o & 0x3f == 0x10 => value >> 16,
            _ => return,
        };
        let word = self.storage.page(Page::Tima(server));
        Self::update(word, |r| ring::with_cppr(r, raw as u8));
    }

    /// The access reaches the OS page of a vCPU that exists.
    #[inline]
    fn os_page(&self, server: u32, offset: u64, size: u8) -> bool {
        offset & !0xffff == OS_PAGE
            && matches!(size, 1 | 2 | 4 | 8)
            && server < self.geometry.servers()
            && self.is_connected(server)
    }

    /// The ring as the guest reads it: AGE is 0.
    fn ring_bytes(&self, server: u32) -> u64 {
        // Acquire: as `line`.
        self.storage
            .page(Page::Tima(server))
            .load(Ordering::Acquire)
            & !tima::AGE
    }

    /// One step of a ring that can raise the line. The host looks if the exception is set afterwards,
    /// not only if this step set it: the thread that did may be dead or stopped before its kick (N12).
    #[inline]
    fn ring_step(&self, server: u32, rule: impl Fn(u64) -> u64) {
        let (_, new) = Self::update(self.storage.page(Page::Tima(server)), rule);
        if new & tima::NSR_EO != 0 {
            self.host.kick(server);
        }
    }
}

impl<S: Storage, H> Xive<'_, S, H> {
    /// The vCPU exists. `server` is below the geometry's count.
    #[inline]
    pub fn is_connected(&self, server: u32) -> bool {
        // Relaxed: connect and disconnect are ordered by the calls that ask for them.
        let ring = self
            .storage
            .page(Page::Tima(server))
            .load(Ordering::Relaxed);
        ring & tima::CONNECTED != 0
    }
}
