//! The control plane: one thread, one total order. It validates, allocates, configures, resets,
//! negotiates and explains; sockets and descriptors' events are [`crate::server`]'s business.
//!
//! * [`requests`]: from a message to the function that serves it.
//! * [`lifecycle`]: HELLO to START, recovery included.
//! * [`guest`]: hcalls, RTAS, MMIO, triggers.
//! * [`barrier`]: what waits for every transition under way: CAS, reset, disconnect, quiesce.
//! * [`sources`]: claims in both controllers. [`claims`]: the allocator.
//! * [`vcpus`]: connecting, resetting.
//! * [`descriptors`]: what a descriptor must be before we use it.
//! * `distrust`: recovery after several starts that failed.
//! * [`exact`]: operations of an executing daemon happen once or not at all.
//! * [`journal`]: what a successor needs. [`host`]: the daemon as an executor of transitions.
//! * [`query`]: state for people. `state`: the one that moves.

pub mod barrier;
pub mod claims;
pub mod descriptors;
mod distrust;
pub mod error;
pub mod exact;
pub mod guest;
pub mod host;
pub mod journal;
pub mod lifecycle;
pub mod query;
pub mod requests;
mod scan;
pub mod sources;
mod state;
pub mod vcpus;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use papr_intc_protocol::Versions;
use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::layout::header::{Executor, Gate, State, word};
use papr_intc_protocol::layout::mapped::OwnedStorage;
use papr_intc_protocol::plane::epoch::GracePeriod;
use papr_intc_protocol::plane::{Controller, LevelInput, Plane};
use papr_intc_protocol::wire::source::{IrqfdItem, irqfd_kind};
use papr_intc_protocol::wire::vcpu::Line;

pub use error::Refused;

use crate::log_limit::LogLimit;
use crate::memory::staged::Staged;
use crate::memory::{QueueMemory, SharedMemory};
use barrier::Barrier;
use claims::Claims;
use exact::Exact;
use host::DaemonHost;
use journal::Journal;

/// The words that the daemon works on.
pub type Words = Staged<Arc<OwnedStorage>>;

/// What the command line fixed; SET_MACHINE must agree.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// `--ic-mode`.
    pub ic_mode: Option<papr_intc_protocol::layout::IcMode>,
    /// `--compat`.
    pub compat: Option<papr_intc_protocol::layout::Compat>,
    /// `--servers`.
    pub servers: Option<u32>,
    /// `--sources`.
    pub sources: Option<u32>,
}

/// What the server has to do after a request was served.
#[derive(Debug)]
pub enum Effect {
    /// Serve another channel.
    AddChannel {
        /// Its vCPU.
        server: u32,
        /// Our end.
        socket: OwnedFd,
    },
    /// Watch eventfds, in place of what these items had.
    SetIrqfds(Vec<Irqfd>),
    /// Forget eventfds.
    ClearIrqfds(Vec<IrqfdItem>),
    /// GOODBYE: answer, then exit 0.
    Exit,
}

/// An eventfd that triggers a source.
#[derive(Debug)]
pub struct Irqfd {
    /// Which source and input.
    pub item: IrqfdItem,
    /// Written by a device.
    pub trigger: OwnedFd,
    /// Of a level: written by us when the guest has ended the interrupt.
    pub resample: Option<OwnedFd>,
}

/// A started, or almost started, machine.
struct Core<M> {
    memory: SharedMemory,
    plane: Plane<Words, DaemonHost<M>>,
}

impl<M: QueueMemory> Core<M> {
    fn machine(&self) -> &Machine {
        self.plane.machine()
    }
    fn controller(&self) -> Controller<'_, Words, DaemonHost<M>> {
        self.plane.controller()
    }
    fn claims(&self) -> Claims<'_, Words> {
        Claims::new(self.plane.storage(), self.plane.machine())
    }
    fn journal(&self) -> Journal<'_, Arc<OwnedStorage>> {
        Journal(self.plane.storage().shared())
    }
    fn exact(&self) -> Exact<'_, M, Arc<OwnedStorage>> {
        Exact::new(&self.plane)
    }
    /// The daemon alone changes the pages.
    fn is_alone(&self) -> bool {
        self.state().executor == Executor::Daemon
    }
    /// Runs one operation that answers no request; once or not at all, if the daemon executes alone.
    fn run(&self, operation: impl FnOnce()) {
        if self.is_alone() {
            self.exact().begin();
            operation();
            self.exact().commit(None);
        } else {
            operation();
        }
    }
    /// What a count of an irqfd means.
    fn event(&self, lisn: u32, is_level: bool) {
        if is_level {
            let input = LevelInput::Irqfd;
            self.controller().set_level(lisn, input, true);
        } else {
            self.controller().trigger(lisn);
        }
    }
    fn state(&self) -> State {
        self.plane.state()
    }
    fn set_state(&self, state: State) {
        self.memory.set_header(word::STATE, state.to_word());
    }
    fn set_gate(&self, gate: Gate) {
        self.set_state(State {
            gate,
            ..self.state()
        });
    }
    /// The layout of the memory.
    fn layout(&self) -> u16 {
        self.plane.geometry().layout()
    }
    fn depth(&self) -> u64 {
        self.memory.header(word::QUIESCE_DEPTH)
    }
}

/// The control plane of one guest.
pub struct Control<M> {
    ram: M,
    expected: Expected,
    versions: Versions,
    /// What the front-end agreed to for new memory.
    layout: u16,
    machine: Option<Machine>,
    core: Option<Core<M>>,
    started: bool,
    /// A VMM that ran transitions on this memory is gone.
    bereaved: bool,
    barrier: Option<Barrier>,
    /// The gate has opened; what was latched is to be replayed when this is over.
    reopening: Option<GracePeriod>,
    /// The state of the quiesced machine, as STATE_READ hands it out.
    outgoing: Option<Vec<u8>>,
    /// What has come of a state that is to be loaded.
    incoming: Vec<u8>,
    line_seq: u64,
    served: u64,
    since: Instant,
    /// Of lines about choices of the guest at CAS that cannot be.
    cas_lines: LogLimit,
}

impl<M: QueueMemory + Clone> Control<M> {
    /// A control plane without a machine. `now` is when the daemon started.
    pub fn new(ram: M, expected: Expected, versions: Versions, now: Instant) -> Self {
        Self {
            ram,
            expected,
            layout: versions.layout,
            versions,
            machine: None,
            core: None,
            started: false,
            bereaved: false,
            barrier: None,
            reopening: None,
            outgoing: None,
            incoming: Vec::new(),
            line_seq: 0,
            served: 0,
            since: now,
            cas_lines: LogLimit::new(now),
        }
    }

    /// What this daemon speaks.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// The machine after START.
    fn core(&self) -> Result<&Core<M>, Refused> {
        match &self.core {
            Some(core) if self.started => Ok(core),
            _ => Err(Refused::Phase("the daemon has not been started (START)")),
        }
    }

    /// The machine with its memory, before or after START.
    fn memory_core(&self) -> Result<&Core<M>, Refused> {
        self.core.as_ref().ok_or(Refused::Phase(
            "there is no shared memory yet (GET_SHM, SET_SHM)",
        ))
    }

    /// The daemon reads irqfds itself.
    pub fn executes(&self) -> bool {
        self.started
            && self.core.as_ref().is_some_and(|c| {
                let state = c.state();
                state.executor == Executor::Daemon && state.gate != Gate::Closed
            })
    }

    /// An irqfd seems to have been written since the last look: one event, if `take` reads a count.
    pub fn irqfd(&mut self, item: &IrqfdItem, take: impl FnOnce() -> bool) {
        let Ok(core) = self.core() else { return };
        core.exact().intend(item);
        if take() {
            core.run(|| core.event(item.lisn, item.kind == irqfd_kind::LEVEL));
        }
        core.exact().doubt_over();
    }

    /// Sources whose resamplefds are to be written now; then call [`Self::resampled`] for each.
    pub fn resamples_due(&self) -> Vec<u32> {
        let Ok(core) = self.core() else {
            return Vec::new();
        };
        let due = core.plane.host().take_due();
        // A call that was on its way when the front-end became the executor: the irqfds are over there, and
        // so is whoever looks for the mark in the word when the reply comes.
        if core.is_alone() { due } else { Vec::new() }
    }

    /// Every resamplefd of the source has been written.
    pub fn resampled(&self, lisn: u32) {
        if let Ok(core) = self.core() {
            core.controller().resampled(lisn);
        }
    }

    /// A sample of a vCPU's line, newer than all before it.
    fn line(&mut self, server: u32) -> Line {
        self.line_seq += 1;
        let level = self
            .core
            .as_ref()
            .is_some_and(|c| c.controller().line(server));
        Line {
            level: u32::from(level),
            zero: 0,
            seq: self.line_seq,
        }
    }

    /// The VMM went away: forget its descriptors and wait for another one. The memory and its lock
    /// stay, with the gate closed.
    pub fn vmm_left(&mut self) {
        self.barrier = None;
        self.reopening = None;
        self.forget_states();
        if let Some(core) = &self.core {
            core.set_gate(Gate::Closed);
            for server in 0..core.machine().servers {
                core.plane.host().set_kick(server, None);
            }
            self.bereaved = true;
        }
        self.started = false;
    }
}
