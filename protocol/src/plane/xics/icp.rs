//! The presentation controller of a vCPU (LoPAR, ICP): its word as pure functions, and the
//! operations on it. SPEC.md chapter 3, "ICP word" and "Operations".
//!
//! XISR is 0 exactly when the pending priority is ff. The line is never stored: it is XISR ≠ 0.

use std::sync::atomic::Ordering::{Acquire, SeqCst};

use super::{Source, Work, Xics};
use crate::layout::words::icp::{
    CONNECTED, CPPR_SHIFT, IPI, MFRR_SHIFT, PARITY, PP_SHIFT, XISR, cppr, mfrr, pp, xisr,
};
use crate::layout::words::ics;
use crate::layout::{AtomicWord, Storage};
use crate::plane::Host;

const BYTE: u64 = 0xff;

/// Bits 31:0.
pub(super) fn xirr(icp: u64) -> u32 {
    icp as u32
}

#[inline]
fn with_byte(icp: u64, shift: u32, byte: u8) -> u64 {
    icp & !(BYTE << shift) | u64::from(byte) << shift
}

/// XISR and its priority.
#[inline]
pub(super) fn with_presented(icp: u64, number: u32, priority: u8) -> u64 {
    with_byte(icp, PP_SHIFT, priority) & !XISR | u64::from(number) & XISR
}

/// XISR emptied.
#[inline]
fn withdrawn(icp: u64) -> u64 {
    with_presented(icp, 0, super::MASKED)
}

/// An interrupt of this priority displaces what XISR holds, if anything. On a tie the first stays.
fn beats_presented(icp: u64, priority: u8) -> bool {
    xisr(icp) == 0 || priority < pp(icp)
}

/// An interrupt of this priority would be presented.
pub(super) fn presentable(icp: u64, priority: u8) -> bool {
    icp & CONNECTED != 0 && priority < cppr(icp) && beats_presented(icp, priority)
}

/// The word after a look at MFRR: presents the IPI if it is favoured enough.
#[inline]
fn with_ipi(icp: u64) -> u64 {
    let mfrr = mfrr(icp);
    if mfrr < cppr(icp) && beats_presented(icp, mfrr) {
        with_presented(icp, IPI, mfrr)
    } else {
        icp
    }
}

impl<S: Storage, H: Host> Xics<'_, S, H> {
    /// Changes an existing vCPU's ICP word in one swap. `step` maps the word to a new one and what to
    /// do after the swap, and may run several times.
    ///
    /// `None`: no such vCPU, or a daemon met too many failed swaps.
    #[inline]
    pub(super) fn swap_icp<T>(
        &self,
        server: u32,
        mut step: impl FnMut(u64) -> (u64, T),
    ) -> Option<T> {
        let word = self.icp(server)?;
        for _ in 0..self.attempts() {
            // Acquire pairs with every swap of this word: a presenter's source is visible.
            let old = word.load(Acquire);
            if old & CONNECTED == 0 {
                return None;
            }
            let (new, after) = step(old);
            // SeqCst: the opener's half of the look-again pair (`pass`, `park`), and the presenter's
            // release of what the device wrote before its trigger.
            if Self::swap(word, old, new, SeqCst) {
                return Some(after);
            }
        }
        None
    }

    /// What follows a swap that takes `old`'s XISR out of the ICP of `server`, leaving `new`: a
    /// displaced source gets its token back. Journals it, so call it right before the swap.
    #[inline]
    pub(super) fn displace(&self, token: u32, old: u64, server: u32, new: u64) -> Work {
        let Some(victim) = self.presented(old) else {
            if token != 0 {
                self.host.journal(token, 0);
            }
            return Work::Done;
        };
        let was_open = !self.rules.retry_moved && self.open_after(victim, server, new);
        self.host.journal(token, self.number(victim));
        Work::GiveBack {
            source: victim,
            was_open,
        }
    }

    /// The source could be presented where it is routed now, given that the ICP of `server` becomes
    /// `new`.
    fn open_after(&self, n: Source, server: u32, new: u64) -> bool {
        // Acquire: a routing that is seen comes with the tag of its old server.
        let word = self.source_word(n).load(Acquire);
        let icp = if ics::server(word) == server {
            new
        } else {
            self.icp_now(ics::server(word))
        };
        presentable(icp, ics::priority(word))
    }

    /// The ICP word of a server; of one that does not exist, a word that refuses everything.
    #[inline]
    pub(super) fn icp_now(&self, server: u32) -> u64 {
        // SeqCst: the giver's half of the look-again pair; `park` has a fence before it.
        self.icp(server).map_or(0, |word| word.load(SeqCst))
    }

    /// A pass must follow a change of CPPR from `old` to `cppr`.
    #[inline]
    fn pass_after(&self, old: u64, cppr_after: u8) -> bool {
        if self.rules.pass_on_open {
            cppr_after > cppr(old)
        } else {
            xisr(old) == 0
        }
    }

    /// H_XIRR: accepts what is presented. The XIRR before; CPPR becomes the accepted priority. 0 for
    /// a vCPU that does not exist.
    #[inline]
    pub fn accept(&self, server: u32) -> u32 {
        self.accept_in(server, 0, |_| ())
    }

    /// H_XIRR as the daemon runs it: `record` gets, before each attempt, the PARITY after the accept
    /// and the XIRR that it will return. When the ICP's [`parity`](Self::parity) equals the last
    /// one recorded, the accept happened. At most one such call per vCPU may be open.
    pub fn accept_recorded(&self, server: u32, mut record: impl FnMut(bool, u32)) -> u32 {
        self.accept_in(server, PARITY, |old| {
            record(old & PARITY == 0, xirr(old));
        })
    }

    /// PARITY of a server's ICP.
    pub fn parity(&self, server: u32) -> bool {
        self.icp_now(server) & PARITY != 0
    }

    #[inline]
    fn accept_in(&self, server: u32, flip: u64, mut before: impl FnMut(u64)) -> u32 {
        let accepted = self.swap_icp(server, |old| {
            let mut new = with_byte(withdrawn(old), CPPR_SHIFT, pp(old)) ^ flip;
            let mut opened = false;
            if self.rules.pass_on_open {
                new = with_ipi(new);
                opened = self.pass_after(old, pp(old));
            }
            before(old);
            (new, (xirr(old), opened))
        });
        let Some((xirr, opened)) = accepted else {
            return 0;
        };
        if opened {
            self.pass(server);
            self.close();
        }
        xirr
    }

    /// H_CPPR. Tightening rejects what no longer passes; opening lets waiting sources in.
    #[inline]
    pub fn set_cppr(&self, server: u32, cppr_new: u8) {
        let swapped = self.swap_icp(server, |old| {
            let mut new = with_byte(old, CPPR_SHIFT, cppr_new);
            if cppr_new >= cppr(old) {
                if xisr(old) == 0 {
                    new = with_ipi(new);
                }
                return (new, (Work::Done, self.pass_after(old, cppr_new)));
            }
            let mut work = Work::Done;
            if xisr(old) != 0 && cppr_new <= pp(old) {
                new = withdrawn(new);
                if self.rules.pass_on_open {
                    new = with_ipi(new);
                }
                work = self.displace(0, old, server, new);
            }
            (new, (work, false))
        });
        self.finish(server, swapped);
    }

    /// H_EOI: CPPR back to the XIRR's top byte (never rejects), then the end of its source.
    #[inline]
    pub fn eoi(&self, server: u32, xirr: u32) {
        let cppr_new = (xirr >> CPPR_SHIFT) as u8;
        let ended = self.source_of(xirr & XISR as u32);
        let swapped = self.swap_icp(server, |old| {
            let mut new = with_byte(old, CPPR_SHIFT, cppr_new);
            if xisr(old) == 0 {
                new = with_ipi(new);
            }
            (new, self.pass_after(old, cppr_new))
        });
        let swapped = swapped.map(|pass| (ended.map_or(Work::Done, |n| self.end(n)), pass));
        self.finish(server, swapped);
    }

    #[inline]
    fn finish(&self, server: u32, swapped: Option<(Work, bool)>) {
        let Some((work, pass)) = swapped else { return };
        self.settle(work);
        if pass {
            self.pass(server);
        }
        self.close();
    }

    /// H_IPI: MFRR of `target`. `false`: no such vCPU. A less favoured MFRR withdraws nothing.
    #[inline]
    pub fn set_mfrr(&self, target: u32, mfrr: u8) -> bool {
        let swapped = self.swap_icp(target, |old| {
            let new = with_ipi(with_byte(old, MFRR_SHIFT, mfrr));
            let presented = xisr(new) != xisr(old);
            let work = if presented {
                self.displace(0, old, target, new)
            } else {
                Work::Done
            };
            (new, (work, presented && xisr(old) == 0))
        });
        let Some((work, kick)) = swapped else {
            return false;
        };
        if kick {
            self.host.kick(target);
        }
        self.settle(work);
        self.close();
        true
    }

    /// H_IPOLL: XIRR and MFRR of a vCPU; `None`: no such vCPU.
    pub fn poll(&self, server: u32) -> Option<(u32, u8)> {
        let icp = self.icp_now(server);
        (icp & CONNECTED != 0).then(|| (xirr(icp), mfrr(icp)))
    }

    /// The external-interrupt line of a vCPU.
    ///
    /// For its own thread: clear the kick flag, *then* ask. The load pairs with the presenter's swap,
    /// which comes before its kick: a kick that is overwritten has its XISR seen.
    #[inline]
    pub fn line(&self, server: u32) -> bool {
        xisr(self.icp_now(server)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::words::icp::RESET;

    fn open(cppr: u8) -> u64 {
        with_byte(RESET | CONNECTED, CPPR_SHIFT, cppr)
    }

    #[test]
    fn a_tie_leaves_the_first_presented() {
        let icp = with_presented(open(0xff), 0x1300, 5);
        assert!(!presentable(icp, 5));
        assert!(presentable(icp, 4));
        assert_eq!(
            with_ipi(with_byte(icp, MFRR_SHIFT, 5)),
            with_byte(icp, MFRR_SHIFT, 5)
        );
        assert_eq!(xisr(with_ipi(with_byte(icp, MFRR_SHIFT, 4))), IPI);
    }

    #[test]
    fn only_strictly_more_favoured_than_cppr_is_presentable() {
        assert!(!presentable(open(5), 5));
        assert!(presentable(open(5), 4));
        assert!(!presentable(open(0), 0));
    }

    #[test]
    fn the_masked_priority_is_never_presentable() {
        assert!(!presentable(open(0xff), 0xff));
    }

    #[test]
    fn a_vcpu_that_does_not_exist_refuses_everything() {
        assert!(!presentable(open(0xff) & !CONNECTED, 0));
        assert!(!presentable(0, 0));
    }

    #[test]
    fn bits_of_one_field_never_touch_another() {
        let icp = with_presented(open(0xff), 0xffff_ffff, 0) | PARITY;
        assert_eq!(
            (xisr(icp), cppr(icp), pp(icp), mfrr(icp)),
            (0xff_ffff, 0xff, 0, 0xff)
        );
        assert_eq!(withdrawn(icp), open(0xff) | PARITY);
    }
}
