//! XICS as Linux drives it (xics.md §9.1): six hypercalls and four RTAS calls.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use papr_intc_protocol::papr::codes::{RtasCall, opcode, rtas};

use super::chip::{Chip, Vector};
use super::{Choice, Irq, IrqState, Kernel, Topology, call};
use crate::board::{Cpu, Step};
use crate::rng::Rng;
use crate::tally::Tally;

/// Priority of an IPI.
const IPI_PRIORITY: u8 = 4;
/// Priority of everything else.
const IRQ_PRIORITY: u8 = 5;
/// Everything may come; also: no IPI is asked for.
const OPEN: u8 = 0xff;
/// XISR of an IPI.
const IPI: u32 = 2;

/// One vCPU's XICS.
pub struct Xics {
    kernel: Arc<Kernel>,
    cpu: Arc<dyn Cpu>,
    me: u32,
    /// Priorities in force, the newest last. Never what the controller returned.
    cppr: Vec<u8>,
}

impl Xics {
    /// For vCPU `me`.
    pub fn new(kernel: Arc<Kernel>, cpu: Arc<dyn Cpu>, me: u32) -> Self {
        debug_assert_eq!(kernel.choice, Choice::Xics);
        Self {
            kernel,
            cpu,
            me,
            cppr: vec![OPEN],
        }
    }

    fn tally(&self) -> &Tally {
        self.kernel.tally()
    }

    fn call(&self, op: u64, args: &[u64]) -> Step<[u64; 9]> {
        call(&*self.cpu, self.tally(), op, args)
    }

    fn set_cppr(&self, cppr: u8) -> Step {
        self.call(opcode::H_CPPR, &[u64::from(cppr)])?;
        Ok(())
    }

    fn set_mfrr(&self, vcpu: u32, mfrr: u8) -> Step {
        let server = self.kernel.server(vcpu);
        self.call(opcode::H_IPI, &[u64::from(server), u64::from(mfrr)])?;
        Ok(())
    }

    fn eoi(&self, cppr: u8, xisr: u32) -> Step {
        self.call(opcode::H_EOI, &[u64::from(cppr) << 24 | u64::from(xisr)])?;
        Ok(())
    }

    fn rtas(&self, which: RtasCall, args: &[u32], nret: u32) -> Step<Vec<u32>> {
        Tally::one(&self.tally().configured);
        loop {
            let rets = self.cpu.rtas(which, args, nret)?;
            let status = rets.first().map_or(rtas::HARDWARE, |s| *s as i32);
            match status {
                rtas::SUCCESS => return Ok(rets),
                rtas::BUSY => std::thread::sleep(Duration::from_millis(1)),
                _ => {
                    self.tally()
                        .wrong(format!("{which:?} {args:x?} answered {status}"));
                    return Ok(rets);
                }
            }
        }
    }

    fn set_xive(&self, lisn: u32, vcpu: u32, priority: u8) -> Step {
        let server = self.kernel.server(vcpu);
        self.rtas(RtasCall::SetXive, &[lisn, server, u32::from(priority)], 1)?;
        Ok(())
    }

    /// Server and priority.
    fn get_xive(&self, lisn: u32) -> Step<(u32, u32)> {
        match self.rtas(RtasCall::GetXive, &[lisn], 3)?[..] {
            [_, server, priority] => Ok((server, priority)),
            ref other => {
                self.tally()
                    .wrong(format!("get-xive {lisn:#x} returned {other:x?}"));
                Ok((0, u32::from(OPEN)))
            }
        }
    }
}

impl Chip for Xics {
    fn prepare(&mut self, _vcpu: u32) -> Step {
        Ok(())
    }

    fn open(&mut self) -> Step {
        self.cppr = vec![OPEN];
        self.set_cppr(OPEN)
    }

    fn next(&mut self) -> Step<Option<Vector>> {
        let top = self.cppr.last().copied().unwrap_or(OPEN);
        let xirr = self.call(opcode::H_XIRR, &[u64::from(top)])?[0];
        let xisr = xirr as u32 & 0xff_ffff;
        let (vector, priority) = match xisr {
            0 => return Ok(None),
            IPI => (Vector::Ipi, IPI_PRIORITY),
            n => match self.kernel.by_lisn.get(&n) {
                Some(&i) => (Vector::Irq(i), IRQ_PRIORITY),
                None => {
                    // No kernel of this run has that number. The raw value goes back.
                    self.tally().wrong(format!("XISR {n:#x} is nobody's"));
                    self.call(opcode::H_EOI, &[xirr])?;
                    return Ok(None);
                }
            },
        };
        self.cppr.push(priority);
        Ok(Some(vector))
    }

    fn begin_ipi(&mut self) -> Step {
        self.set_mfrr(self.me, OPEN)
    }

    fn end(&mut self, vector: Vector, _source_too: bool) -> Step {
        self.cppr.pop();
        let top = self.cppr.last().copied().unwrap_or(OPEN);
        let xisr = match vector {
            Vector::Ipi => IPI,
            Vector::Irq(i) => self.kernel.irqs[i].lisn,
        };
        self.eoi(top, xisr)
    }

    fn more(&mut self) -> Step<bool> {
        Ok(false)
    }

    fn send_ipi(&mut self, to: u32) -> Step {
        // The message is visible before the IPI.
        fence(Ordering::SeqCst);
        self.set_mfrr(to, IPI_PRIORITY)
    }

    fn startup(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        self.get_xive(irq.lisn)?; // the kernel maps no number that this refuses
        self.unmask(irq, state)
    }

    fn shutdown(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        self.mask(irq, state)
    }

    fn mask(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        self.rtas(RtasCall::IntOff, &[irq.lisn], 1)?;
        self.set_xive(irq.lisn, state.target, OPEN)
    }

    fn unmask(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        self.set_xive(irq.lisn, state.target, IRQ_PRIORITY)?;
        self.rtas(RtasCall::IntOn, &[irq.lisn], 1)?;
        Ok(())
    }

    fn resend(&mut self, _irq: &Irq) -> Step {
        Ok(())
    }

    fn masked_triggers_are_kept(&self) -> bool {
        true
    }

    fn route(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        let (_, priority) = self.get_xive(irq.lisn)?;
        self.set_xive(irq.lisn, state.target, priority as u8)
    }

    fn check(&mut self, irq: &Irq, state: &IrqState) -> Step {
        let got = self.get_xive(irq.lisn)?;
        if got != (self.kernel.server(state.target), u32::from(IRQ_PRIORITY)) {
            let what = format!("source {:#x} is at {got:x?}, not {state:?}", irq.lisn);
            self.tally().wrong(what);
        }
        self.call(opcode::H_IPOLL, &[u64::from(self.kernel.server(self.me))])?;
        Ok(())
    }

    fn leave(&mut self, topology: &Topology, rng: &mut Rng) -> Step {
        self.set_cppr(0)?;
        let kernel = self.kernel.clone();
        for irq in &kernel.irqs {
            let mut state = irq.lock();
            if state.started && state.target == self.me {
                state.target = topology.pick(rng, Some(self.me)).unwrap_or(self.me);
                self.route(irq, &mut state)?;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
        // IPIs may come again, nothing else.
        self.cppr = vec![IRQ_PRIORITY];
        self.set_cppr(IRQ_PRIORITY)
    }

    fn teardown(&mut self) -> Step {
        self.set_cppr(0)?;
        self.set_mfrr(self.me, OPEN)
    }

    fn shut_sources(&mut self, crashed: bool) -> Step {
        self.eoi(0, IPI)?;
        let kernel = self.kernel.clone();
        for irq in &kernel.irqs {
            let mut state = irq.lock();
            if state.started {
                if crashed {
                    // It may have been in service on a vCPU that is no more.
                    self.eoi(0, irq.lisn)?;
                }
                self.mask(irq, &mut state)?;
                state.started = false;
            }
        }
        Ok(())
    }
}
