//! What the guest and its devices did, as messages: remote mode, configuring calls, and calls that a
//! front-end chose to send.

use papr_intc_protocol::layout::header::{Gate, word};
use papr_intc_protocol::layout::words::cursor;
use papr_intc_protocol::layout::{AtomicWord, Page, Storage};
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret, rtas};
use papr_intc_protocol::papr::dispatch::{self, Answerer};
use papr_intc_protocol::papr::xics::{RtasPlan, RtasReply as Rets, rtas_plan};
use papr_intc_protocol::papr::xive_config;
use papr_intc_protocol::plane::xics::ConfigError;
use papr_intc_protocol::plane::{Controller, LevelInput};
use papr_intc_protocol::wire::Wire;
use papr_intc_protocol::wire::guest::{
    Hcall, HcallArgs, HcallReply, Mmio, MmioReply, Rtas, RtasReply, space,
};
use papr_intc_protocol::wire::source::{SetLevel, Trigger};
use papr_intc_protocol::wire::vcpu::Line;
use std::sync::atomic::Ordering;

use super::host::DaemonHost;
use super::journal::{Operation, Ticket};
use super::{Control, Core, Refused, Words};
use crate::memory::QueueMemory;

impl<M: QueueMemory> Core<M> {
    /// Both controllers, for a call of a connected vCPU at an open gate.
    fn for_guest(&self, server: u32) -> Result<Controller<'_, Words, DaemonHost<M>>, Refused> {
        self.check_connected(server)?;
        let c = self.controller();
        if c.state.gate == Gate::Open {
            Ok(c)
        } else {
            Err(Refused::Quiesced)
        }
    }

    fn hcall(&self, call: &Hcall, args: &mut HcallArgs, ticket: Ticket) -> Result<i64, Refused> {
        let c = self.for_guest(call.server)?;
        if let Some(done) =
            dispatch::local_hcall(&c, call.server, call.opcode, args, call.time_base)
        {
            if dispatch::hcall_accepted(call.opcode, done, args) {
                self.count_delivered();
            }
            return Ok(done);
        }
        if dispatch::answerer(&c, call.opcode) != Answerer::Xive {
            return Ok(ret::H_FUNCTION);
        }
        // Alone, the call is committed as a whole.
        let announced = call.opcode == opcode::H_INT_SET_QUEUE_CONFIG && !self.is_alone();
        if announced {
            self.announce_queue(&c, args, ticket);
        }
        let ram = |gpa, len| self.plane.host().ram().is_backed(gpa, len);
        let done = xive_config::config(&c.xive, call.opcode, args, &ram);
        let done = done.unwrap_or(ret::H_FUNCTION);
        if announced && done != ret::H_SUCCESS {
            self.journal().abandon();
        }
        Ok(done)
    }

    /// H_INT_SET_QUEUE_CONFIG must not run twice: its commit resets the queue's index.
    fn announce_queue(
        &self,
        c: &Controller<'_, Words, DaemonHost<M>>,
        args: &HcallArgs,
        ticket: Ticket,
    ) {
        let end = u64::from(args[1] as u32) * 8 + (args[2] & 7);
        let Some(end) = u32::try_from(end).ok().filter(|e| *e < c.geometry.ends()) else {
            return;
        };
        // Acquire: uniform; we are the only one who changes the selector.
        let now = self
            .plane
            .storage()
            .page(Page::EndCursor(end))
            .load(Ordering::Acquire);
        let selector = now & cursor::SEL == 0;
        let line = Line {
            level: 0,
            zero: 0,
            seq: 0,
        };
        let reply = HcallReply {
            ret: ret::H_SUCCESS,
            args: *args,
            line,
        };
        self.journal().begin(
            ticket,
            Operation::Queue { end, selector },
            &reply.to_bytes(),
        );
    }

    /// Counts an interrupt that a vCPU accepted. Written at once, before the call is committed: a crash in
    /// between counts it twice or not at all, which nobody relies on.
    fn count_delivered(&self) {
        let so_far = self.memory.header(word::DELIVERED);
        self.memory
            .set_header(word::DELIVERED, so_far.wrapping_add(1));
    }

    fn rtas(&self, request: &Rtas, ticket: Ticket) -> Result<Rets, Refused> {
        let call = RtasCall::from_id(request.call)
            .ok_or_else(|| Refused::Value(format!("RTAS call {} is not known", request.call)))?;
        let args = request
            .args
            .get(..request.nargs as usize)
            .filter(|_| request.nret as usize <= request.args.len())
            .ok_or_else(|| Refused::Value("more than 16 RTAS cells".into()))?;
        let c = self.for_guest(request.server)?;
        if let Some(forbidden) = dispatch::rtas_forbidden(&c) {
            return Ok(forbidden);
        }
        match rtas_plan(&c.xics, call, args, request.nret) {
            RtasPlan::Reply(rets) => Ok(rets),
            RtasPlan::Write { irq, to } if self.is_alone() => Ok(written(c.xics.write(irq, to))),
            RtasPlan::Write { irq, to } => {
                let rets = Rets::status(0);
                let line = Line {
                    level: 0,
                    zero: 0,
                    seq: 0,
                };
                let reply = wire_rets(&rets, line);
                self.journal()
                    .begin(ticket, Operation::Route { irq, to }, &reply.to_bytes());
                let done = c.xics.write(irq, to);
                match done {
                    Ok(()) => self.journal().finish(ticket),
                    Err(_) => self.journal().abandon(),
                }
                Ok(written(done))
            }
        }
    }

    fn mmio(&self, access: &Mmio) -> Result<u64, Refused> {
        let c = self.for_guest(access.server)?;
        let size = match access.size {
            size @ (1 | 2 | 4 | 8) => size as u8,
            other => return Err(Refused::Value(format!("an access of {other} bytes"))),
        };
        let Mmio {
            server,
            offset,
            value,
            ..
        } = *access;
        match (access.space, access.store) {
            (space::ESB, 0) => Ok(dispatch::esb_load(&c, offset, size)),
            (space::TIMA, 0) => {
                let value = dispatch::tima_load(&c, server, offset, size);
                if dispatch::load_accepted(offset, size, value) {
                    self.count_delivered();
                }
                Ok(value)
            }
            (space::ESB, 1) => {
                dispatch::esb_store(&c, offset, size, value);
                Ok(0)
            }
            (space::TIMA, 1) => {
                dispatch::tima_store(&c, server, offset, size, value);
                Ok(0)
            }
            _ => Err(Refused::Value("an access to no space".into())),
        }
    }
}

/// What a call that routes an XICS source answers.
fn written(done: Result<(), ConfigError>) -> Rets {
    match done {
        Ok(()) => Rets::status(0),
        Err(e) => {
            log::warn!("routing: {e}");
            Rets::status(rtas::HARDWARE)
        }
    }
}

fn wire_rets(rets: &Rets, line: Line) -> RtasReply {
    RtasReply {
        written: rets.count,
        zero: 0,
        rets: rets.rets,
        line,
    }
}

impl<M: QueueMemory + Clone> Control<M> {
    pub(super) fn hcall(&mut self, call: &Hcall, ticket: Ticket) -> Result<HcallReply, Refused> {
        let mut args = call.args;
        let ret = self.core()?.hcall(call, &mut args, ticket)?;
        Ok(HcallReply {
            ret,
            args,
            line: self.line(call.server),
        })
    }

    pub(super) fn rtas(&mut self, request: &Rtas, ticket: Ticket) -> Result<RtasReply, Refused> {
        let rets = self.core()?.rtas(request, ticket)?;
        let reply = wire_rets(&rets, self.line(request.server));
        // A guest that has no room for a status gets none.
        let written = reply.written.min(request.nret);
        Ok(RtasReply { written, ..reply })
    }

    pub(super) fn mmio(&mut self, access: &Mmio) -> Result<MmioReply, Refused> {
        let value = self.core()?.mmio(access)?;
        Ok(MmioReply {
            value,
            line: self.line(access.server),
        })
    }

    pub(super) fn set_level(&mut self, set: &SetLevel) -> Result<(), Refused> {
        let core = self.memory_core()?;
        if !core.claims().is_claimed(set.lisn) {
            return Err(Refused::NotClaimed(set.lisn));
        }
        if !core.claims().is_lsi(set.lisn) {
            return Err(Refused::NotLevel(set.lisn));
        }
        if set.level > 1 {
            return Err(Refused::Value(format!(
                "level {} is neither 0 nor 1",
                set.level
            )));
        }
        core.controller()
            .set_level(set.lisn, LevelInput::Vmm, set.level == 1);
        Ok(())
    }

    pub(super) fn trigger(&mut self, trigger: &Trigger) -> Result<(), Refused> {
        let core = self.memory_core()?;
        if !core.claims().is_claimed(trigger.lisn) {
            return Err(Refused::NotClaimed(trigger.lisn));
        }
        core.controller().trigger(trigger.lisn);
        Ok(())
    }
}
