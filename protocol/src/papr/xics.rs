//! The hcalls and RTAS calls of XICS (LoPAR, interrupt presentation and interrupt source calls).
//!
//! Takes register and argument values, gives back what goes into registers and return cells. The
//! mode check (H_FUNCTION, H_HARDWARE, RTAS -1) is the caller's, before anything here runs. RTAS
//! argument blocks in guest memory are the VMM's.

use super::codes::{RtasCall, opcode, ret, rtas as status};
use crate::layout::Storage;
use crate::plane::Host;
use crate::plane::xics::{Routing, Xics};

/// Return cells of an RTAS call that are in use at most.
pub const MAX_RETS: usize = 16;

/// The return cells of an RTAS call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtasReply {
    /// Status, then results.
    pub rets: [u32; MAX_RETS],
    /// How many cells are to be written. On an error only the status is.
    pub count: u32,
}

impl RtasReply {
    /// A status alone.
    pub fn status(code: i32) -> Self {
        Self::of(&[code as u32])
    }

    fn of(cells: &[u32]) -> Self {
        let mut rets = [0; MAX_RETS];
        rets[..cells.len()].copy_from_slice(cells);
        Self {
            rets,
            count: cells.len() as u32,
        }
    }

    /// The cells to be written.
    pub fn cells(&self) -> &[u32] {
        &self.rets[..(self.count as usize).min(MAX_RETS)]
    }
}

/// What an RTAS call comes to after its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtasPlan {
    /// Nothing is to be written: the reply.
    Reply(RtasReply),
    /// This routing is to be written with [`Xics::write`]; absolute, so a daemon journals it first.
    Write {
        /// The source.
        irq: u32,
        /// Its routing.
        to: Routing,
    },
}

/// Runs one of the six hcalls for vCPU `server`; `None`: not one of them.
///
/// `args` are r4..r12; results are written over them, and they stay as they are on an error. Any
/// vCPU of the partition may be the target of H_IPI and H_IPOLL, the others act on `server`.
/// `time_base` is what H_XIRR_X reports. (xics.md §3.2)
pub fn local<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    server: u32,
    opcode: u64,
    args: &mut [u64; 9],
    time_base: u64,
) -> Option<i64> {
    match opcode {
        opcode::H_EOI => xics.eoi(server, args[0] as u32),
        opcode::H_CPPR => xics.set_cppr(server, args[0] as u8),
        opcode::H_IPI => {
            if !xics.set_mfrr(args[0] as u32, args[1] as u8) {
                return Some(ret::H_PARAMETER);
            }
        }
        opcode::H_IPOLL => {
            let Some((xirr, mfrr)) = xics.poll(args[0] as u32) else {
                return Some(ret::H_PARAMETER);
            };
            args[0] = u64::from(xirr);
            args[1] = u64::from(mfrr);
        }
        opcode::H_XIRR => args[0] = u64::from(xics.accept(server)),
        opcode::H_XIRR_X => {
            args[0] = u64::from(xics.accept(server));
            args[1] = time_base;
        }
        _ => return None,
    }
    Some(ret::H_SUCCESS)
}

/// ibm,get-xive: reads only, so any executor may run it.
pub fn rtas_get_xive<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    args: &[u32],
    nret: u32,
) -> RtasReply {
    let (&[irq], 3) = (args, nret) else {
        return RtasReply::status(status::PARAMETER);
    };
    match xics.source(irq) {
        None => RtasReply::status(status::PARAMETER),
        Some(source) => RtasReply::of(&[
            status::SUCCESS as u32,
            source.routing.server,
            u32::from(source.routing.priority),
        ]),
    }
}

/// The checks of an RTAS call, in their order: counts, number, server, priority.
pub fn rtas_plan<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    call: RtasCall,
    args: &[u32],
    nret: u32,
) -> RtasPlan {
    let routing = match (call, args, nret) {
        (RtasCall::GetXive, ..) => return RtasPlan::Reply(rtas_get_xive(xics, args, nret)),
        (RtasCall::SetXive, &[irq, server, priority], 1) => {
            set_xive_routing(xics, irq, server, priority).map(|to| (irq, to))
        }
        (RtasCall::IntOff, &[irq], 1) => xics.masked_routing(irq).map(|to| (irq, to)),
        (RtasCall::IntOn, &[irq], 1) => xics.unmasked_routing(irq).map(|to| (irq, to)),
        _ => None,
    };
    match routing {
        Some((irq, to)) => RtasPlan::Write { irq, to },
        None => RtasPlan::Reply(RtasReply::status(status::PARAMETER)),
    }
}

fn set_xive_routing<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    irq: u32,
    server: u32,
    priority: u32,
) -> Option<Routing> {
    xics.source(irq)?;
    let priority = u8::try_from(priority).ok()?;
    xics.is_connected(server).then_some(Routing {
        server,
        priority,
        saved: priority,
    })
}

/// Runs one of the four RTAS calls. The daemon's: three of them write routing. `args` has exactly
/// the guest's nargs cells.
pub fn rtas<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    call: RtasCall,
    args: &[u32],
    nret: u32,
) -> RtasReply {
    match rtas_plan(xics, call, args, nret) {
        RtasPlan::Reply(reply) => reply,
        RtasPlan::Write { irq, to } => match xics.write(irq, to) {
            Ok(()) => RtasReply::status(status::SUCCESS),
            Err(_) => RtasReply::status(status::HARDWARE),
        },
    }
}
