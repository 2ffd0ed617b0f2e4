//! The H_INT_* calls that any executor can run: they read `tables` and touch `pages` only (xive.md §5).
//!
//! The caller has passed the gate (problem state, the state word, XIVE selected by CAS) and runs in an
//! epoch. Orders of checks are those of QEMU 7.2, which guests can tell. On any status but H_SUCCESS
//! the registers keep what they held. What writes `tables` is in [`super::xive_config`].

use super::codes::opcode::*;
use super::codes::ret::*;
use crate::layout::machine::ESB_SHIFT;
use crate::layout::words::eas;
use crate::layout::{Compat, Storage};
use crate::plane::Host;
use crate::plane::xive::{PATIENCE, Xive};

/// Registers of an hcall: `args[0]` is r4.
pub type Args = [u64; 9];

/// "No such page" in H_INT_GET_SOURCE_INFO.
const NO_PAGE: u64 = u64::MAX;
/// Log2 of a page of the ESB.
const PAGE_SHIFT: u64 = ESB_SHIFT as u64 - 1;
/// Source flag: StoreEOI is supported.
const SRC_STORE_EOI: u64 = 0x1;
/// Source flag: level-sensitive.
const SRC_LSI: u64 = 0x4;
/// Source flag: use H_INT_ESB instead of the pages.
const SRC_H_INT_ESB: u64 = 0x8;
/// The priority that stands for "masked".
pub(super) const PRIORITY_MASKED: u64 = 0xff;
/// The target of an END that was never configured: vCPU id 0 minus QEMU's NVT base, in 32 bits.
const TARGET_UNSET: u64 = 0xffff_fc00;
/// H_INT_GET_QUEUE_CONFIG: every event notifies.
const EQ_ALWAYS_NOTIFY: u64 = 0x1;

/// Runs a call. `None`: it is not one of these. Otherwise the status for r3.
pub fn local<S: Storage, H: Host>(
    xive: &Xive<'_, S, H>,
    opcode: u64,
    args: &mut Args,
) -> Option<i64> {
    let done = match opcode {
        H_INT_GET_SOURCE_INFO => source_info(xive, args),
        H_INT_GET_SOURCE_CONFIG => source_config(xive, args),
        H_INT_GET_QUEUE_INFO => queue_info(xive, args),
        H_INT_GET_QUEUE_CONFIG => queue_config(xive, args),
        H_INT_ESB => esb(xive, args),
        H_INT_SYNC => sync(xive, args),
        H_INT_SET_OS_REPORTING_LINE | H_INT_GET_OS_REPORTING_LINE => Err(H_FUNCTION),
        _ => return None,
    };
    Some(status(done))
}

pub(super) fn status(done: Result<(), i64>) -> i64 {
    done.err().unwrap_or(H_SUCCESS)
}

/// The call's flags: none outside `allowed`.
pub(super) fn check_flags(flags: u64, allowed: u64) -> Result<(), i64> {
    if flags & !allowed == 0 {
        Ok(())
    } else {
        Err(H_PARAMETER)
    }
}

/// A claimed LISN and its EAS.
pub(super) fn claimed<S: Storage, H>(xive: &Xive<'_, S, H>, lisn: u64) -> Result<(u32, u64), i64> {
    // `source_config` has compared the whole register with the number of sources.
    xive.source_config(lisn)
        .map(|eas| (lisn as u32, eas))
        .ok_or(H_P2)
}

/// A priority that the guest may use: its low byte counts, as in QEMU.
pub(super) fn priority<S, H>(xive: &Xive<'_, S, H>, register: u64) -> Option<u8> {
    let priority = register as u8;
    (priority < xive.machine().hv_prio).then_some(priority)
}

/// A vCPU that exists: the low 32 bits of the register count, as in QEMU.
pub(super) fn target<S: Storage, H>(xive: &Xive<'_, S, H>, register: u64) -> Option<u32> {
    let server = register as u32;
    (server < xive.geometry().servers() && xive.is_connected(server)).then_some(server)
}

/// The END of target r5 and priority r6; the priority is checked first.
pub(super) fn queue<S: Storage, H>(xive: &Xive<'_, S, H>, args: &Args) -> Result<(u32, u8), i64> {
    let priority = priority(xive, args[2]).ok_or(H_P3)?;
    let server = target(xive, args[1]).ok_or(H_P2)?;
    Ok((server, priority))
}

fn end_index(server: u32, priority: u8) -> u32 {
    server * 8 + u32::from(priority)
}

fn source_info<S: Storage, H: Host>(xive: &Xive<'_, S, H>, args: &mut Args) -> Result<(), i64> {
    check_flags(args[0], 0)?;
    let (lisn, _) = claimed(xive, args[1])?;
    let store_eoi = if xive.machine().store_eoi {
        SRC_STORE_EOI
    } else {
        0
    };
    let trigger = xive
        .machine()
        .esb_base
        .wrapping_add(u64::from(lisn) << ESB_SHIFT);
    let management = trigger.wrapping_add(1 << PAGE_SHIFT);
    let (flags, management, trigger) = if xive.is_lsi(lisn) {
        (SRC_H_INT_ESB | SRC_LSI, NO_PAGE, NO_PAGE)
    } else {
        (0, management, trigger)
    };
    args[..4].copy_from_slice(&[flags | store_eoi, management, trigger, PAGE_SHIFT]);
    Ok(())
}

/// Target and priority come from the END, as in QEMU: one that is not configured has neither.
fn source_config<S: Storage, H: Host>(xive: &Xive<'_, S, H>, args: &mut Args) -> Result<(), i64> {
    check_flags(args[0], 0)?;
    let (_, eas) = claimed(xive, args[1])?;
    let end = eas::end(eas);
    let configured = end < xive.geometry().ends() && xive.end(end).valid;
    let (target, priority) = if configured {
        (u64::from(end >> 3), u64::from(end & 7))
    } else {
        (TARGET_UNSET, 0)
    };
    let priority = if eas & eas::MASKED != 0 {
        PRIORITY_MASKED
    } else {
        priority
    };
    args[..3].copy_from_slice(&[target, priority, u64::from(eas::eisn(eas))]);
    Ok(())
}

fn queue_info<S: Storage, H: Host>(xive: &Xive<'_, S, H>, args: &mut Args) -> Result<(), i64> {
    check_flags(args[0], 0)?;
    let (server, priority) = queue(xive, args)?;
    let end = end_index(server, priority);
    args[0] = xive
        .machine()
        .end_base
        .wrapping_add(u64::from(end) << ESB_SHIFT);
    // The size of the queue where the page size of the END's ESB belongs: as in QEMU, both levels.
    args[1] = u64::from(xive.end(end).size);
    Ok(())
}

fn queue_config<S: Storage, H: Host>(xive: &Xive<'_, S, H>, args: &mut Args) -> Result<(), i64> {
    const DEBUG: u64 = 0x1;
    let debug = args[0] & DEBUG != 0;
    check_flags(args[0], DEBUG)?;
    let (server, priority) = queue(xive, args)?;
    let end = xive.end(end_index(server, priority));
    // PAPR counts the bit from the left; QEMU 7.2 from the right (xive.md §0, item 3).
    let generation_bit = match xive.machine().compat {
        Compat::Papr1 => 0x2,
        Compat::Qemu72 => 1 << 62,
    };
    let mut flags = 0;
    if end.always_notify {
        flags |= EQ_ALWAYS_NOTIFY;
    }
    if debug && end.generation {
        flags |= generation_bit;
    }
    let index = if debug { u64::from(end.index) } else { 0 };
    args[..4].copy_from_slice(&[flags, end.address, u64::from(end.size), index]);
    Ok(())
}

fn esb<S: Storage, H: Host>(xive: &Xive<'_, S, H>, args: &mut Args) -> Result<(), i64> {
    const STORE: u64 = 0x1;
    check_flags(args[0], STORE)?;
    let (lisn, _) = claimed(xive, args[1])?;
    // fidelity: F-ESB-BOUND. QEMU 7.2 lets the offset reach into the next source; no level does.
    if args[2] >= 1 << PAGE_SHIFT {
        return Err(H_P3);
    }
    if args[2] & 7 != 0 {
        return Err(H_HARDWARE);
    }
    let offset = (u64::from(lisn) << ESB_SHIFT) + (1 << PAGE_SHIFT) + args[2];
    args[0] = if args[0] & STORE != 0 {
        xive.esb_store(offset, 8, args[3]);
        u64::MAX
    } else {
        xive.esb_load(offset, 8)
    };
    Ok(())
}

/// A wait for the forwards that run now. A guest that triggers the source without pause gets H_BUSY.
fn sync<S: Storage, H: Host>(xive: &Xive<'_, S, H>, args: &Args) -> Result<(), i64> {
    check_flags(args[0], 0)?;
    let (lisn, _) = claimed(xive, args[1])?;
    let mut spins = 0;
    while !xive.sync(lisn) {
        if spins >= PATIENCE {
            return Err(H_BUSY);
        }
        xive.wait(spins);
        spins += 1;
    }
    Ok(())
}
