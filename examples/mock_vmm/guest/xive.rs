//! XIVE as Linux drives it (xive.md §9): queues in guest memory, ESB pages, the OS TIMA page.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use papr_intc_protocol::papr::codes::{opcode, ret};

use super::chip::{Chip, Vector};
use super::{Choice, Esb, Irq, IrqState, Kernel, Topology, call, configure, must};
use crate::board::{Cpu, Step};
use crate::rng::Rng;
use crate::tally::Tally;

/// The least favoured priority that the guest may use: for everything.
const PRIORITY: u64 = 6;
/// EISN of every vCPU's IPI.
const IPI_EISN: u32 = 0x10;
/// EISN of interrupt 0.
const FIRST_EISN: u32 = 0x20;
/// EISN of a source that is shut.
const NO_EISN: u64 = 0x7fff_ffff;
/// What a freed queue page is filled with: nobody may write it any more.
const POISON: u32 = 0x5a5a_a5a5;

/// ESB management offsets.
mod esb {
    pub const EOI: u64 = 0;
    pub const STORE_EOI: u64 = 0x400;
    pub const GET: u64 = 0x800;
    pub const SET_PQ_00: u64 = 0xc00;
    pub const SET_PQ_01: u64 = 0xd00;
    pub const SET_PQ_10: u64 = 0xe00;
    pub const SET_PQ_11: u64 = 0xf00;
}
/// OS TIMA page.
mod tima {
    pub const CPPR: u64 = 0x2_0011;
    pub const ACK: u64 = 0x2_0810;
}
const P: u64 = 2;
const Q: u64 = 1;

/// A vCPU's event queue as its kernel reads it.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    gpa: u64,
    entries: u64,
    index: u64,
    toggle: u32,
}

/// One vCPU's XIVE.
pub struct Xive {
    kernel: Arc<Kernel>,
    cpu: Arc<dyn Cpu>,
    me: u32,
    queue: Queue,
    /// The queue may hold something: an acknowledge said so, and it was not found empty since.
    scan: bool,
}

impl Xive {
    /// For vCPU `me`.
    pub fn new(kernel: Arc<Kernel>, cpu: Arc<dyn Cpu>, me: u32) -> Self {
        debug_assert_eq!(kernel.choice, Choice::Xive);
        Self {
            kernel,
            cpu,
            me,
            queue: Queue::default(),
            scan: false,
        }
    }

    fn tally(&self) -> &Tally {
        self.kernel.tally()
    }

    fn must(&self, op: u64, args: &[u64]) -> Step<[u64; 9]> {
        must(&*self.cpu, self.tally(), op, args)
    }

    fn set_cppr(&self, cppr: u64) -> Step {
        self.cpu.tima_store(tima::CPPR, 1, cppr)
    }

    fn load(&self, esb: &Esb, offset: u64) -> Step<u64> {
        if esb.by_hcall {
            let args = [0, u64::from(esb.lisn), offset, 0];
            Ok(call(&*self.cpu, self.tally(), opcode::H_INT_ESB, &args)?[0])
        } else {
            self.cpu.esb_load(esb.management + offset)
        }
    }

    fn trigger(&self, esb: &Esb) -> Step {
        self.cpu.esb_store(esb.trigger, 0)
    }

    fn esb_of(&self, irq: &Irq) -> Step<Esb> {
        if let Some(esb) = irq.esb.get() {
            return Ok(*esb);
        }
        let esb = self.source_info(irq.lisn)?;
        if esb.by_hcall != irq.lsi {
            let what = format!("LISN {:#x}: H_INT_ESB flag is {}", irq.lisn, esb.by_hcall);
            self.tally().wrong(what);
        }
        Ok(*irq.esb.get_or_init(|| esb))
    }

    fn source_info(&self, lisn: u32) -> Step<Esb> {
        let args = [0, u64::from(lisn)];
        let out = call(
            &*self.cpu,
            self.tally(),
            opcode::H_INT_GET_SOURCE_INFO,
            &args,
        )?;
        let base = self.kernel.platform.board.machine().esb_base;
        Ok(Esb {
            lisn,
            management: out[1].wrapping_sub(base),
            trigger: out[2].wrapping_sub(base),
            by_hcall: out[0] & 8 != 0,
            store_eoi: out[0] & 1 != 0,
        })
    }

    fn set_source(&self, lisn: u32, vcpu: u32, priority: u64, eisn: u64) -> Step {
        let target = self.kernel.server(vcpu);
        let args = [2, u64::from(lisn), u64::from(target), priority, eisn];
        self.must(opcode::H_INT_SET_SOURCE_CONFIG, &args)?;
        Ok(())
    }

    fn end_source(&self, esb: &Esb, lsi: bool) -> Step {
        if esb.store_eoi {
            return self.cpu.esb_store(esb.management + esb::STORE_EOI, 0);
        }
        if lsi {
            self.load(esb, esb::EOI)?;
        } else if self.load(esb, esb::SET_PQ_00)? & Q != 0 {
            // It came again while it was handled: the guest, not the controller, sends it on.
            self.trigger(esb)?;
        }
        Ok(())
    }

    fn peek(&self) -> Option<u32> {
        let entry = self
            .kernel
            .platform
            .board
            .ram_read(self.queue.gpa + 4 * self.queue.index);
        (entry >> 31 != self.queue.toggle).then_some(entry & 0x7fff_ffff)
    }

    fn pop(&mut self) -> Option<u32> {
        let eisn = self.peek()?;
        self.queue.index += 1;
        if self.queue.index == self.queue.entries {
            self.queue.index = 0;
            self.queue.toggle ^= 1;
        }
        Some(eisn)
    }

    /// `None` for a number that no kernel of this run gave out.
    fn vector(&self, eisn: u32) -> Option<Vector> {
        if eisn == IPI_EISN {
            return Some(Vector::Ipi);
        }
        let index = eisn.checked_sub(FIRST_EISN)? as usize;
        (index < self.kernel.irqs.len()).then_some(Vector::Irq(index))
    }

    fn fill_queue(&self, vcpu: u32, value: u32) {
        let (gpa, order) = self.kernel.queue_of(vcpu);
        self.kernel.platform.board.ram_fill(gpa, 1 << order, value);
        let freed = &self.kernel.freed_queues[vcpu as usize];
        freed.store(value == POISON, Ordering::Relaxed);
    }

    /// Nothing may have written a queue after it was taken away.
    fn check_poison(&self, vcpu: u32) {
        let (gpa, order) = self.kernel.queue_of(vcpu);
        let freed = self.kernel.freed_queues[vcpu as usize].load(Ordering::Relaxed);
        if freed
            && !self
                .kernel
                .platform
                .board
                .ram_is_filled(gpa, 1 << order, POISON)
        {
            let what = format!("the queue of vCPU {vcpu} was written after it was freed");
            self.tally().wrong(what);
        }
    }
}

impl Chip for Xive {
    fn prepare(&mut self, vcpu: u32) -> Step {
        self.check_poison(vcpu);
        self.fill_queue(vcpu, 0);
        let (gpa, order) = self.kernel.queue_of(vcpu);
        let server = self.kernel.server(vcpu);
        let target = u64::from(server);
        self.must(opcode::H_INT_GET_QUEUE_INFO, &[0, target, PRIORITY])?;
        let args = [1, target, PRIORITY, gpa, u64::from(order)];
        self.must(opcode::H_INT_SET_QUEUE_CONFIG, &args)?;
        // IPIs are the first numbers, one for each server.
        let ipi = self.source_info(server)?;
        self.set_source(server, vcpu, PRIORITY, u64::from(IPI_EISN))?;
        self.load(&ipi, esb::SET_PQ_00)?;
        *self.kernel.ipis[vcpu as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = ipi;
        Ok(())
    }

    fn open(&mut self) -> Step {
        let (gpa, order) = self.kernel.queue_of(self.me);
        let entries = 1 << (order - 2);
        self.queue = Queue {
            gpa,
            entries,
            ..Queue::default()
        };
        self.set_cppr(0xff)
    }

    fn next(&mut self) -> Step<Option<Vector>> {
        let ack = self.cpu.tima_load(tima::ACK, 2)?;
        self.scan |= ack & 0x8000 != 0;
        while self.scan {
            match self.pop() {
                None => {
                    self.scan = false;
                    self.set_cppr(0xff)?;
                }
                Some(eisn) => match self.vector(eisn) {
                    Some(vector) => return Ok(Some(vector)),
                    None if u64::from(eisn) == NO_EISN => {}
                    None => self
                        .tally()
                        .wrong(format!("queue entry with EISN {eisn:#x}")),
                },
            }
        }
        Ok(None)
    }

    fn begin_ipi(&mut self) -> Step {
        Ok(())
    }

    fn end(&mut self, vector: Vector, source_too: bool) -> Step {
        match vector {
            Vector::Ipi => {
                let ipi = *self.kernel.ipis[self.me as usize]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                self.end_source(&ipi, false)
            }
            Vector::Irq(i) if source_too => {
                let irq = &self.kernel.irqs[i];
                self.end_source(&self.esb_of(irq)?, irq.lsi)
            }
            Vector::Irq(_) => Ok(()),
        }
    }

    fn more(&mut self) -> Step<bool> {
        if self.scan && self.peek().is_none() {
            self.scan = false;
            self.set_cppr(0xff)?;
        }
        Ok(self.scan)
    }

    fn send_ipi(&mut self, to: u32) -> Step {
        let ipi = *self.kernel.ipis[to as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.trigger(&ipi)
    }

    fn startup(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        let esb = self.esb_of(irq)?;
        self.load(&esb, esb::SET_PQ_01)?;
        self.route(irq, state)?;
        state.saved_p = false;
        self.load(&esb, esb::SET_PQ_00)?;
        Ok(())
    }

    fn shutdown(&mut self, irq: &Irq, _state: &mut IrqState) -> Step {
        self.load(&self.esb_of(irq)?, esb::SET_PQ_01)?;
        self.set_source(irq.lisn, 0, 0xff, NO_EISN)
    }

    fn mask(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        let old = self.load(&self.esb_of(irq)?, esb::SET_PQ_01)?;
        state.saved_p |= old & P != 0;
        Ok(())
    }

    fn unmask(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        let p = std::mem::take(&mut state.saved_p);
        let offset = if p { esb::SET_PQ_10 } else { esb::SET_PQ_00 };
        self.load(&self.esb_of(irq)?, offset)?;
        Ok(())
    }

    fn resend(&mut self, irq: &Irq) -> Step {
        let esb = self.esb_of(irq)?;
        if !irq.lsi {
            self.load(&esb, esb::SET_PQ_11)?;
        }
        // For a level the end of interrupt is enough: it comes again if it is still high.
        self.load(&esb, esb::EOI)?;
        Ok(())
    }

    fn masked_triggers_are_kept(&self) -> bool {
        false
    }

    fn route(&mut self, irq: &Irq, state: &mut IrqState) -> Step {
        let eisn = u64::from(FIRST_EISN) + irq.index as u64;
        self.set_source(irq.lisn, state.target, PRIORITY, eisn)
    }

    fn check(&mut self, irq: &Irq, state: &IrqState) -> Step {
        let args = [0, u64::from(irq.lisn)];
        let out = call(
            &*self.cpu,
            self.tally(),
            opcode::H_INT_GET_SOURCE_CONFIG,
            &args,
        )?;
        let eisn = u64::from(FIRST_EISN) + irq.index as u64;
        let server = u64::from(self.kernel.server(state.target));
        if out[..3] != [server, PRIORITY, eisn] {
            let what = format!(
                "source {:#x} is at {:x?}, not {state:?}",
                irq.lisn,
                &out[..3]
            );
            self.tally().wrong(what);
        }
        let pq = self.load(&self.esb_of(irq)?, esb::GET)?;
        if pq > 3 && !irq.lsi {
            self.tally()
                .wrong(format!("source {:#x} has PQ {pq:#x}", irq.lisn));
        }
        call(&*self.cpu, self.tally(), opcode::H_INT_SYNC, &args)?;
        Ok(())
    }

    fn leave(&mut self, topology: &Topology, rng: &mut Rng) -> Step {
        let kernel = self.kernel.clone();
        for irq in &kernel.irqs {
            let mut state = irq.lock();
            if state.started && state.target == self.me {
                state.target = topology.pick(rng, Some(self.me)).unwrap_or(self.me);
                self.route(irq, &mut state)?;
            }
        }
        // Nothing comes to this queue any more. What is in it goes to the new targets.
        self.set_cppr(0)?;
        while let Some(eisn) = self.pop() {
            if let Some(Vector::Irq(i)) = self.vector(eisn) {
                let irq = &kernel.irqs[i];
                let state = irq.lock();
                if state.started {
                    self.resend(irq)?;
                }
            }
        }
        self.set_cppr(0xff)
    }

    fn teardown(&mut self) -> Step {
        self.set_cppr(0)?;
        let ipi = *self.kernel.ipis[self.me as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.load(&ipi, esb::SET_PQ_01)?;
        let server = self.kernel.server(self.me);
        self.set_source(server, 0, 0xff, NO_EISN)?;
        let args = [0, u64::from(server), PRIORITY, 0, 0];
        self.must(opcode::H_INT_SET_QUEUE_CONFIG, &args)?;
        self.fill_queue(self.me, POISON);
        self.scan = false;
        Ok(())
    }

    fn shut_sources(&mut self, crashed: bool) -> Step {
        let kernel = self.kernel.clone();
        for irq in &kernel.irqs {
            let mut state = irq.lock();
            if state.started {
                self.mask(irq, &mut state)?;
                if !crashed {
                    self.shutdown(irq, &mut state)?;
                }
                state.started = false;
            }
        }
        let (code, _) = configure(&*self.cpu, self.tally(), opcode::H_INT_RESET, [0; 9])?;
        if code != ret::H_SUCCESS {
            self.tally().wrong(format!("H_INT_RESET answered {code}"));
        }
        Ok(())
    }
}
