//! XIVE sources: the PQ state machine, levels of LSIs, and the guest's ESB pages (xive.md §2).
//!
//! One compare-and-swap of the source word decides each step; if it says "forward", the same swap
//! counts the forward, the router runs, and the count goes down again. A thread must not wait for
//! anything but an END lock in between: SYNC and free wait for the count.

use std::sync::atomic::Ordering;

use super::{Busy, Xive, all_ones};
use crate::layout::machine::ESB_SHIFT;
use crate::layout::words::source;
use crate::layout::{AtomicWord, Page, Storage, Table};
use crate::plane::{Host, LevelInput, LockOwner};

/// Pure PQ tables (xive.md §2.2, §2.7). Values are the two low bits of a source word.
pub mod pq {
    use crate::layout::words::source::{P, PQ, Q};

    /// 00: ready.
    pub const READY: u64 = 0;
    /// 10: forwarded, not yet ended.
    pub const PENDING: u64 = P;
    /// 11: another event came while pending.
    pub const QUEUED: u64 = PQ;
    /// 01: off.
    pub const OFF: u64 = Q;

    /// A trigger: the next PQ, and whether it is forwarded.
    pub const fn trigger(pq: u64) -> (u64, bool) {
        match pq & PQ {
            READY => (PENDING, true),
            PENDING | QUEUED => (QUEUED, false),
            _ => (OFF, false),
        }
    }

    /// An end of interrupt: the next PQ, and whether the queued event is forwarded.
    pub const fn eoi(pq: u64) -> (u64, bool) {
        match pq & PQ {
            READY | PENDING => (READY, false),
            QUEUED => (PENDING, true),
            _ => (OFF, false),
        }
    }

    /// A level went or is high: the next PQ, and whether that is forwarded. Never sets Q.
    pub const fn assert(pq: u64) -> (u64, bool) {
        match pq & PQ {
            READY => (PENDING, true),
            other => (other, false),
        }
    }

    /// An end of interrupt while the level is high.
    ///
    /// QEMU 7.2 lets the level's verdict replace that of the EOI, and forgets the event that left
    /// Q (`as_qemu`). Otherwise either forwards.
    pub const fn eoi_asserted(pq: u64, as_qemu: bool) -> (u64, bool) {
        let (ended, queued) = eoi(pq);
        let (next, level) = assert(ended);
        (next, level || (queued && !as_qemu))
    }
}

/// What the guest's access to a management page does (xive.md §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Trigger,
    Eoi,
    Get,
    Inject,
    SetPq(u64),
    Nothing,
}

impl Access {
    #[inline]
    fn of_load(offset: u64) -> Self {
        match offset & 0xfff {
            0..0x800 => Self::Eoi,
            0x800..0xc00 => Self::Get,
            set => Self::SetPq(set >> 8 & 3),
        }
    }

    #[inline]
    fn of_store(offset: u64, store_eoi: bool, inject: bool) -> Self {
        match offset & 0xfff {
            0..0x400 => Self::Trigger,
            0x400..0x800 if store_eoi => Self::Eoi,
            0x400..0x800 => Self::Nothing,
            0x800..0xc00 if inject => Self::Inject,
            0x800..0xc00 => Self::Nothing,
            set => Self::SetPq(set >> 8 & 3),
        }
    }
}

/// The word bit of a level input.
fn level_bit(input: LevelInput) -> u64 {
    match input {
        LevelInput::Vmm => source::LEVEL_VMM,
        LevelInput::Irqfd => source::LEVEL_IRQFD,
    }
}

/// A word with PQ replaced, and one more running forward if `forward` is not 0.
#[inline]
fn with(word: u64, pq: u64, forward: u64) -> u64 {
    (word & !source::PQ | pq).wrapping_add(forward)
}

impl<S: Storage, H: Host> Xive<'_, S, H> {
    /// An event of an edge-triggered source (an MSI arrived). `lisn` is below the geometry's count.
    #[inline]
    pub fn trigger(&self, lisn: u32) {
        self.step(lisn, |w| (w, pq::trigger(w)));
    }

    /// A level input of a source changed, or is reported again.
    ///
    /// The source of a level-sensitive number is asserted while any of its inputs is; an MSI is
    /// triggered by `true` (xive.md §2.7).
    pub fn set_level(&self, lisn: u32, input: LevelInput, level: bool) {
        let bit = level_bit(input);
        if !self.is_lsi(lisn) {
            if level {
                self.trigger(lisn);
            }
        } else if level {
            self.step(lisn, |w| (w | bit, pq::assert(w)));
        } else {
            self.step(lisn, |w| (w & !bit, (w & source::PQ, false)));
        }
    }

    /// The resamplefds of an LSI have been written (see [`Host::resample`]).
    pub fn resampled(&self, lisn: u32) {
        // Release: the eventfd writes come before the bit goes.
        let _ = self
            .storage
            .page(Page::Source(lisn))
            .fetch_and(!source::RESAMPLE_DUE, Ordering::Release);
    }

    /// The line of a source goes high and low again: how PCI MSI and VIO signal.
    pub fn pulse(&self, lisn: u32, input: LevelInput) {
        self.set_level(lisn, input, true);
        self.set_level(lisn, input, false);
    }

    /// A trigger while the gate is latched: only recorded, several become one.
    pub fn latch_trigger(&self, lisn: u32) {
        // AcqRel: pairs with `replay`'s swap, which acts for this trigger, as the PQ steps pair.
        let _ = self
            .storage
            .page(Page::Source(lisn))
            .fetch_or(source::LATCHED, Ordering::AcqRel);
    }

    /// A level input while the gate is latched: only recorded; a rise is latched too.
    pub fn latch_level(&self, lisn: u32, input: LevelInput, level: bool) {
        let bit = level_bit(input);
        if !self.is_lsi(lisn) {
            if level {
                self.latch_trigger(lisn);
            }
        } else {
            Self::update(self.storage.page(Page::Source(lisn)), |w| {
                if level {
                    w | bit | source::LATCHED
                } else {
                    w & !bit
                }
            });
        }
    }

    /// Makes up for what was recorded while the gate was latched: one trigger of an MSI, the assert
    /// rule of an LSI whose level is still high. A source with nothing latched is left as it is.
    pub fn replay(&self, lisn: u32) {
        // Relaxed: a hint; the swap below decides. Most sources have nothing to replay.
        let word = self
            .storage
            .page(Page::Source(lisn))
            .load(Ordering::Relaxed);
        if word & source::LATCHED == 0 {
            return;
        }
        let lsi = self.is_lsi(lisn);
        self.step(lisn, |w| {
            let pq = w & source::PQ;
            let next = match (w & source::LATCHED != 0, lsi) {
                (true, false) => pq::trigger(pq),
                (true, true) if w & source::ASSERTED != 0 => pq::assert(pq),
                _ => (pq, false),
            };
            (w & !source::LATCHED, next)
        });
    }

    /// A guest's load from the source ESB region. `offset` counts from its base, `size` is 1, 2, 4 or
    /// 8 bytes. Checks the offset; the result is in the width of the access (xive.md §2.3-2.5).
    ///
    /// Nothing happens beyond the last source, and at QEMU's level for every size but 8: 0.
    #[inline]
    pub fn esb_load(&self, offset: u64, size: u8) -> u64 {
        let Some(lisn) = self.esb_lisn(offset, size) else {
            return 0;
        };
        if is_trigger_page(offset) {
            return all_ones(size);
        }
        self.esb_access(lisn, Access::of_load(offset))
    }

    /// A guest's store to the source ESB region, as [`Self::esb_load`]. The value is never looked at.
    #[inline]
    pub fn esb_store(&self, offset: u64, size: u8, value: u64) {
        let _ = value;
        let Some(lisn) = self.esb_lisn(offset, size) else {
            return;
        };
        let access = if is_trigger_page(offset) {
            Access::Trigger
        } else {
            Access::of_store(offset, self.machine.store_eoi, self.as_qemu())
        };
        self.esb_access(lisn, access);
    }

    /// The source that an ESB access reaches.
    #[inline]
    fn esb_lisn(&self, offset: u64, size: u8) -> Option<u32> {
        let size_ok = size == 8 || !self.as_qemu() && matches!(size, 1 | 2 | 4);
        let lisn = u32::try_from(offset >> ESB_SHIFT).ok()?;
        (size_ok && lisn < self.geometry.sources()).then_some(lisn)
    }

    /// Runs an access; the value that a load returns.
    #[inline]
    fn esb_access(&self, lisn: u32, access: Access) -> u64 {
        let as_qemu = self.as_qemu();
        match access {
            Access::Trigger => {
                self.trigger(lisn);
                0
            }
            Access::Eoi => {
                let (old, forwarded) = self.step(lisn, |w| {
                    // The level from irqfds falls here, in the same step: who still drives it says so
                    // again when its resamplefd is written.
                    let bits = match w & source::LEVEL_IRQFD {
                        0 => w,
                        _ => w & !source::LEVEL_IRQFD | source::RESAMPLE_DUE,
                    };
                    let next = if bits & source::ASSERTED == 0 {
                        pq::eoi(w)
                    } else {
                        pq::eoi_asserted(w, as_qemu)
                    };
                    (bits, next)
                });
                if old & source::LEVEL_IRQFD != 0 {
                    self.host.resample(lisn);
                }
                u64::from(forwarded)
            }
            // Acquire: pairs with the PQ steps; who reads a state sees what led to it.
            Access::Get => {
                self.storage
                    .page(Page::Source(lisn))
                    .load(Ordering::Acquire)
                    & source::PQ
            }
            Access::Inject => {
                self.step(lisn, |w| (w, (w & source::PQ, true)));
                0
            }
            Access::SetPq(to) => {
                let (old, _) = self.step(lisn, |w| {
                    // A level that is still high is not forgotten, except by QEMU (xive.md §2.7).
                    if to == pq::READY && w & source::ASSERTED != 0 && !as_qemu {
                        (w, pq::assert(to))
                    } else {
                        (w, (to, false))
                    }
                });
                old & source::PQ
            }
            Access::Nothing => 0,
        }
    }

    /// One step of a source: `rule` maps the word to its other bits and to (PQ, forward). Forwards if
    /// the rule says so. Returns the old word and the verdict.
    #[inline]
    fn step(&self, lisn: u32, rule: impl Fn(u64) -> (u64, (u64, bool))) -> (u64, bool) {
        let word = self.storage.page(Page::Source(lisn));
        let (old, _) = Self::update(word, |w| {
            let (bits, (pq, forward)) = rule(w);
            with(bits, pq, if forward { self.one_forward() } else { 0 })
        });
        // The rule is pure: what it says of `old` is what was stored.
        let (_, (_, forward)) = rule(old);
        if forward {
            self.forward(lisn);
        }
        (old, forward)
    }

    /// What a forward of this host adds to the word while it runs. A daemon's is marked, so that its
    /// successor finds it. It has one thread, and so one forward at most.
    #[inline]
    fn one_forward(&self) -> u64 {
        match self.host.lock_owner() {
            LockOwner::FrontEnd => source::FORWARD,
            LockOwner::Daemon { .. } => source::FORWARD | source::DAEMON_FORWARD,
        }
    }

    /// The forward that a dead daemon had begun runs again, by its successor; the event may be queued
    /// twice. `false`: there was none. Done before the successor forwards anything of its own.
    pub fn redo_forward(&self, lisn: u32) -> bool {
        let word = self.storage.page(Page::Source(lisn));
        // Acquire pairs with the step that counted it.
        let begun = word.load(Ordering::Acquire) & source::DAEMON_FORWARD != 0;
        if begun {
            self.forward(lisn);
        }
        begun
    }

    /// Routes an event that the word already counts.
    #[inline(always)]
    fn forward(&self, lisn: u32) {
        let word = self.storage.page(Page::Source(lisn));
        if let Err(Busy) = self.route(lisn) {
            // Only a daemon gives up, and only on a lock whose holder does not move. The event stays:
            // as if it had come while the gate was latched, so that `replay` finds it.
            Self::update(word, |w| {
                let pq = match w & source::PQ {
                    pq::OFF => pq::OFF,
                    _ => pq::READY,
                };
                w & !source::PQ | pq | source::LATCHED
            });
        }
        // Release pairs with the Acquire load in `sync`: count 0 means that the entries are visible.
        let _ = word.fetch_sub(self.one_forward(), Ordering::Release);
    }
}

impl<S: Storage, H> Xive<'_, S, H> {
    /// The LISN is level-sensitive.
    pub fn is_lsi(&self, lisn: u32) -> bool {
        // Relaxed: set at claim, before anybody knows the number.
        let bits = self.storage.table(Table::Lsi(lisn / 64), Ordering::Relaxed);
        bits >> (lisn % 64) & 1 == 1
    }
}

/// Each LISN has a trigger page, then a management page, of 64 KiB (xive.md §1.2).
#[inline]
fn is_trigger_page(offset: u64) -> bool {
    offset >> (ESB_SHIFT - 1) & 1 == 0
}
