//! The H_INT_* calls that write `tables`: run by the daemon alone (xive.md §5.2, §5.5, §5.11).
//!
//! As in [`super::xive`], the gate is the caller's, and registers change on H_SUCCESS only. A lock
//! whose holder does not move gives H_BUSY, with nothing changed.

use super::codes::opcode::*;
use super::codes::ret::*;
use super::xive::{Args, PRIORITY_MASKED, check_flags, claimed, priority, queue, status, target};
use crate::layout::words::eas;
use crate::layout::{Compat, TableStorage};
use crate::plane::Host;
use crate::plane::xive::config::QueueConfig;
use crate::plane::xive::{Busy, Xive};

/// Runs a call. `None`: it is not one of these. Otherwise the status for r3.
///
/// `ram(address, bytes)` says whether a range is guest RAM as a whole.
pub fn config<S: TableStorage, H: Host>(
    xive: &Xive<'_, S, H>,
    opcode: u64,
    args: &mut Args,
    ram: &dyn Fn(u64, u64) -> bool,
) -> Option<i64> {
    let done = match opcode {
        H_INT_SET_SOURCE_CONFIG => set_source_config(xive, args),
        H_INT_SET_QUEUE_CONFIG => set_queue_config(xive, args, ram),
        H_INT_RESET => reset(xive, args),
        _ => return None,
    };
    Some(status(done))
}

fn busy(Busy: Busy) -> i64 {
    H_BUSY
}

fn set_source_config<S: TableStorage, H: Host>(
    xive: &Xive<'_, S, H>,
    args: &Args,
) -> Result<(), i64> {
    const MASK: u64 = 0x1;
    const SET_EISN: u64 = 0x2;
    check_flags(args[0], MASK | SET_EISN)?;
    let (lisn, old) = claimed(xive, args[1])?;
    // All 64 bits here, the low byte below: as in QEMU.
    let new = if args[3] == PRIORITY_MASKED {
        eas::new(0, 0, true)
    } else {
        let priority = priority(xive, args[3]).ok_or(H_P4)?;
        let server = target(xive, args[2]).ok_or(H_P3)?;
        let eisn = if args[0] & SET_EISN != 0 {
            (args[4] & 0x7fff_ffff) as u32
        } else {
            eas::eisn(old)
        };
        let end = server * 8 + u32::from(priority);
        eas::new(end, eisn, args[0] & MASK != 0)
    };
    xive.set_source_config(lisn, new).map_err(busy)
}

fn set_queue_config<S: TableStorage, H: Host>(
    xive: &Xive<'_, S, H>,
    args: &Args,
    ram: &dyn Fn(u64, u64) -> bool,
) -> Result<(), i64> {
    const ALWAYS_NOTIFY: u64 = 0x1;
    check_flags(args[0], ALWAYS_NOTIFY)?;
    let (server, priority) = queue(xive, args)?;
    let address = args[3];
    let queue = match args[4] {
        0 => None,
        size @ (12 | 16 | 21 | 24) => {
            let bytes = 1 << size;
            if address & (bytes - 1) != 0 || !ram(address, bytes) {
                return Err(H_P4);
            }
            Some(QueueConfig {
                address,
                size: size as u32,
                always_notify: args[0] & ALWAYS_NOTIFY != 0,
            })
        }
        _ => return Err(H_P5),
    };
    xive.set_queue_config(server, priority, queue).map_err(busy)
}

/// All that SET_SOURCE_CONFIG and SET_QUEUE_CONFIG did is undone; rings and levels stay. QEMU 7.2
/// answers success and does nothing.
///
/// H_BUSY may leave part of it done; Linux repeats the call, and repeating is harmless.
fn reset<S: TableStorage, H: Host>(xive: &Xive<'_, S, H>, args: &Args) -> Result<(), i64> {
    check_flags(args[0], 0)?;
    if xive.machine().compat == Compat::Qemu72 {
        return Ok(());
    }
    for lisn in 0..xive.geometry().sources() {
        if xive.source_config(u64::from(lisn)).is_some() {
            xive.turn_off(lisn);
            xive.set_source_config(lisn, eas::new(0, 0, true))
                .map_err(busy)?;
        }
    }
    for end in 0..xive.geometry().ends() {
        xive.set_queue_config(end >> 3, (end & 7) as u8, None)
            .map_err(busy)?;
    }
    Ok(())
}
