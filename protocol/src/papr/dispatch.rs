//! From an opcode or an access to the controller that answers it: the rules of xics.md §3.3 and
//! xive.md §5 on which calls exist in which mode.

use super::codes::{RtasCall, opcode, ret, rtas};
use super::xics::RtasReply;
use super::{xics, xive};
use crate::layout::header::Mode;
use crate::layout::words::icp;
use crate::layout::{Compat, Storage};
use crate::plane::Host;
use crate::plane::controller::Controller;

/// Who answers an hcall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// XICS.
    Xics,
    /// XIVE.
    Xive,
    /// Nobody: this is the return code.
    Nobody(i64),
}

/// The opcode belongs to one of the two controllers.
pub fn is_ours(op: u64) -> bool {
    is_xics(op) || is_xive(op)
}

#[inline]
fn is_xics(op: u64) -> bool {
    use opcode::*;
    matches!(op, H_EOI | H_CPPR | H_IPI | H_IPOLL | H_XIRR | H_XIRR_X)
}

#[inline]
fn is_xive(op: u64) -> bool {
    (opcode::H_INT_GET_SOURCE_INFO..=opcode::H_INT_RESET).contains(&op) && op.is_multiple_of(4)
}

/// Who answers `op` in the controller's state, by the rules of the two fact sheets.
#[inline]
pub fn answerer<S: Storage, H: Host>(c: &Controller<'_, S, H>, op: u64) -> Answerer {
    if is_xics(op) {
        match (c.machine.ic_mode.has_xics(), c.state.mode) {
            (false, _) => Answerer::Nobody(ret::H_FUNCTION),
            (true, Mode::Xics) => Answerer::Xics,
            (true, Mode::Xive) => Answerer::Nobody(ret::H_HARDWARE),
        }
    } else if is_xive(op) && c.machine.ic_mode.has_xive() && c.state.cas_xive {
        Answerer::Xive
    } else {
        Answerer::Nobody(ret::H_FUNCTION)
    }
}

/// Runs an hcall that any executor can run; `None` if it configures and is the daemon's.
#[inline]
pub fn local_hcall<S: Storage, H: Host>(
    c: &Controller<'_, S, H>,
    server: u32,
    op: u64,
    args: &mut [u64; 9],
    time_base: u64,
) -> Option<i64> {
    if server >= c.geometry.servers() {
        return Some(ret::H_PARAMETER);
    }
    match answerer(c, op) {
        Answerer::Xics => xics::local(&c.xics, server, op, args, time_base),
        Answerer::Xive => xive::local(&c.xive, op, args),
        Answerer::Nobody(code) => {
            // fidelity: F-XIRR-WRONG-MODE
            let accepts = matches!(op, opcode::H_XIRR | opcode::H_XIRR_X);
            if code == ret::H_HARDWARE && accepts && c.machine.compat == Compat::Qemu72 {
                c.xics.accept(server);
            }
            Some(code)
        }
    }
}

/// This hcall, answered so, made its vCPU accept an interrupt.
#[inline]
pub fn hcall_accepted(op: u64, r3: i64, args: &[u64; 9]) -> bool {
    matches!(op, opcode::H_XIRR | opcode::H_XIRR_X)
        && r3 == ret::H_SUCCESS
        && args[0] & icp::XISR != 0
}

/// This load in the TIMA space, answered so, made its vCPU accept an interrupt: the acknowledge, with the
/// exception bit in the NSR that it returned.
#[inline]
pub fn load_accepted(offset: u64, size: u8, value: u64) -> bool {
    // All ones: no acknowledge, but a load of what is not there.
    offset & 0xfff == 0x810 && size == 2 && value & 0x8000 != 0 && value != 0xffff
}

/// The status of an RTAS call that the mode forbids, if it does.
pub fn rtas_forbidden<S: Storage, H: Host>(c: &Controller<'_, S, H>) -> Option<RtasReply> {
    match (c.machine.ic_mode.has_xics(), c.state.mode) {
        (false, _) => Some(RtasReply::status(rtas::PARAMETER)),
        (true, Mode::Xive) => Some(RtasReply::status(rtas::HARDWARE)),
        (true, Mode::Xics) => None,
    }
}

/// Runs an RTAS call that any executor can run; `None` if it configures and is the daemon's.
pub fn local_rtas<S: Storage, H: Host>(
    c: &Controller<'_, S, H>,
    call: RtasCall,
    args: &[u32],
    nret: u32,
) -> Option<RtasReply> {
    rtas_forbidden(c)
        .or_else(|| (call == RtasCall::GetXive).then(|| xics::rtas_get_xive(&c.xics, args, nret)))
}

/// A load in the ESB space: 0 while XICS is active, as from a disabled window.
#[inline]
pub fn esb_load<S: Storage, H: Host>(c: &Controller<'_, S, H>, offset: u64, size: u8) -> u64 {
    match c.state.mode {
        Mode::Xive => { c.xive }.esb_load(offset, size),
        Mode::Xics => 0,
    }
}

/// A store in the ESB space.
#[inline]
pub fn esb_store<S: Storage, H: Host>(c: &Controller<'_, S, H>, offset: u64, size: u8, value: u64) {
    if c.state.mode == Mode::Xive {
        { c.xive }.esb_store(offset, size, value);
    }
}

/// A load of vCPU `server` in the TIMA space: 0 while XICS is active.
#[inline]
pub fn tima_load<S: Storage, H: Host>(
    c: &Controller<'_, S, H>,
    server: u32,
    offset: u64,
    size: u8,
) -> u64 {
    match c.state.mode {
        Mode::Xive if server < c.geometry.servers() => c.xive.tima_load(server, offset, size),
        _ => 0,
    }
}

/// A store of vCPU `server` in the TIMA space.
#[inline]
pub fn tima_store<S: Storage, H: Host>(
    c: &Controller<'_, S, H>,
    server: u32,
    offset: u64,
    size: u8,
    value: u64,
) {
    if c.state.mode == Mode::Xive && server < c.geometry.servers() {
        c.xive.tima_store(server, offset, size, value);
    }
}
