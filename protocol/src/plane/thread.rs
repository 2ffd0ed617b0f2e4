//! A thread of the VMM on the plane: each call is one transition inside the thread's epoch, or the answer
//! "not here".

use std::sync::atomic::Ordering;

use super::LevelInput;
use super::controller::{Controller, Outcome};
use super::epoch::Inside;
use super::host::Host;
use crate::layout::header::{Executor, Gate};
use crate::layout::{AtomicWord, Geometry, Machine, Page, Storage};
use crate::papr::codes::RtasCall;
use crate::papr::dispatch;
use crate::papr::xics::RtasReply;

/// What a thread runs; made for each transition, or for many.
pub struct Thread<'a, S, H> {
    storage: &'a S,
    host: &'a H,
    machine: &'a Machine,
    geometry: &'a Geometry,
    epoch: u32,
}

impl<'a, S: Storage, H: Host> Thread<'a, S, H> {
    /// `geometry` is that of `machine`, `storage` was made for it, and no other thread uses the slot `epoch` now.
    #[inline]
    pub(super) fn new(
        storage: &'a S,
        host: &'a H,
        machine: &'a Machine,
        geometry: &'a Geometry,
        epoch: u32,
    ) -> Self {
        Self {
            storage,
            host,
            machine,
            geometry,
            epoch,
        }
    }

    /// Counts an interrupt that a vCPU accepted. For people.
    #[inline]
    fn count_delivered(&self) {
        let word = self.storage.page(Page::Delivered(self.epoch));
        // Relaxed, and no read-modify-write: the thread's own word, in the line of its epoch; readers
        // only add the words of all threads up.
        let so_far = word.load(Ordering::Relaxed);
        word.store(so_far.wrapping_add(1), Ordering::Relaxed);
    }

    /// Runs `f` in the epoch of the calling thread, if the front-end is the executor.
    #[inline]
    fn device<T>(&self, f: impl FnOnce(&Controller<'_, S, H>) -> T) -> Outcome<T> {
        let inside = Inside::enter(self.storage, self.epoch);
        let controller = Controller::new(self.storage, self.host, self.machine, self.geometry);
        let outcome = match (controller.state.gate, controller.state.executor) {
            (Gate::Closed, _) | (_, Executor::Daemon) => Outcome::Elsewhere,
            _ => Outcome::Done(f(&controller)),
        };
        drop(inside);
        outcome
    }

    /// As `device`, for what a guest does: not while the gate is latched.
    #[inline]
    fn guest<T>(&self, f: impl FnOnce(&Controller<'_, S, H>) -> Option<T>) -> Outcome<T> {
        let ran = self.device(|c| match c.state.gate {
            Gate::Open => f(c).map_or(Outcome::Elsewhere, Outcome::Done),
            _ => Outcome::Latched,
        });
        match ran {
            Outcome::Done(outcome) => outcome,
            Outcome::Elsewhere => Outcome::Elsewhere,
            Outcome::Latched => Outcome::Latched,
        }
    }

    /// One event of a device. Recorded while the gate is latched; never `Latched`.
    #[inline]
    pub fn trigger(&self, lisn: u32) -> Outcome<()> {
        self.device(|c| c.trigger(lisn))
    }

    /// A device's level changed. Recorded while the gate is latched; never `Latched`.
    pub fn set_level(&self, lisn: u32, input: LevelInput, level: bool) -> Outcome<()> {
        self.device(|c| c.set_level(lisn, input, level))
    }

    /// A guest's load at `offset` of the ESB space. 0 while XICS is active.
    #[inline]
    pub fn esb_load(&self, offset: u64, size: u8) -> Outcome<u64> {
        self.guest(|c| Some(dispatch::esb_load(c, offset, size)))
    }

    /// A guest's store in the ESB space. Ignored while XICS is active.
    #[inline]
    pub fn esb_store(&self, offset: u64, size: u8, value: u64) -> Outcome<()> {
        self.guest(|c| {
            dispatch::esb_store(c, offset, size, value);
            Some(())
        })
    }

    /// A load of vCPU `server` at `offset` of the TIMA space. 0 while XICS is active.
    #[inline]
    pub fn tima_load(&self, server: u32, offset: u64, size: u8) -> Outcome<u64> {
        let loaded = self.guest(|c| Some(dispatch::tima_load(c, server, offset, size)));
        if let Outcome::Done(value) = &loaded
            && dispatch::load_accepted(offset, size, *value)
        {
            self.count_delivered();
        }
        loaded
    }

    /// A store of vCPU `server` in the TIMA space. Ignored while XICS is active.
    #[inline]
    pub fn tima_store(&self, server: u32, offset: u64, size: u8, value: u64) -> Outcome<()> {
        self.guest(|c| {
            dispatch::tima_store(c, server, offset, size, value);
            Some(())
        })
    }

    /// A hypercall of vCPU `server`; `args` are r4 to r12, changed as the call says, and r3 comes
    /// back. An opcode that is not an interrupt call gets H_FUNCTION.
    #[inline]
    pub fn hcall(
        &self,
        server: u32,
        opcode: u64,
        args: &mut [u64; 9],
        time_base: u64,
    ) -> Outcome<i64> {
        let answered = self.guest(|c| dispatch::local_hcall(c, server, opcode, args, time_base));
        if let Outcome::Done(r3) = &answered
            && dispatch::hcall_accepted(opcode, *r3, args)
        {
            self.count_delivered();
        }
        answered
    }

    /// An RTAS call. Only ibm,get-xive runs here.
    pub fn rtas(&self, call: RtasCall, args: &[u32], nret: u32) -> Outcome<RtasReply> {
        self.guest(|c| dispatch::local_rtas(c, call, args, nret))
    }
}
