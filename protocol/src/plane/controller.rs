//! Both controllers of one machine behind one door: the active one runs the transition.
//!
//! [`Controller`] looks at the state word once and runs what it says: the active mode, the gate.
//! A thread of the VMM has its epoch around it ([`Thread`]); the daemon, which waits for epochs but has none, uses
//! it directly. [`Plane`] holds what both are made of.

use std::sync::atomic::Ordering;

use super::LevelInput;
use super::host::Host;
use super::thread::Thread;
use super::xics::Xics;
use super::xive::Xive;
use crate::layout::header::{Gate, Mode, State};
use crate::layout::words::{ics, source};
use crate::layout::{AtomicWord, Geometry, IcMode, Machine, Page, Storage};

/// Where an operation of a guest or a device went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome<T> {
    /// It ran here.
    Done(T),
    /// It has to be sent to the daemon: the daemon is the executor, or the call configures.
    Elsewhere,
    /// A machine-wide operation is under way: call again when the gate has opened.
    Latched,
}

impl<T> Outcome<T> {
    /// Applies `f` to what ran here.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Done(value) => Outcome::Done(f(value)),
            Self::Elsewhere => Outcome::Elsewhere,
            Self::Latched => Outcome::Latched,
        }
    }
}

/// Both controllers at one value of the state word.
pub struct Controller<'a, S, H> {
    /// XICS transitions.
    pub xics: Xics<'a, S, H>,
    /// XIVE transitions.
    pub xive: Xive<'a, S, H>,
    /// The machine.
    pub machine: &'a Machine,
    /// Its offsets.
    pub geometry: &'a Geometry,
    /// The state word, as read when this was made.
    pub state: State,
    storage: &'a S,
}

impl<'a, S: Storage, H: Host> Controller<'a, S, H> {
    /// Reads the state word.
    #[inline]
    pub(super) fn new(
        storage: &'a S,
        host: &'a H,
        machine: &'a Machine,
        geometry: &'a Geometry,
    ) -> Self {
        Self {
            xics: Xics::new(storage, host, machine, geometry),
            xive: Xive::new(storage, host, machine, geometry),
            machine,
            geometry,
            state: State::read(storage),
            storage,
        }
    }

    /// One event of a device on `lisn`.
    #[inline]
    pub fn trigger(&self, lisn: u32) {
        if lisn >= self.geometry.sources() {
            return;
        }
        match (self.state.gate, self.state.mode) {
            (Gate::Open, Mode::Xive) => self.xive.trigger(lisn),
            (Gate::Open, Mode::Xics) => self.xics.trigger(lisn),
            (_, Mode::Xive) => self.xive.latch_trigger(lisn),
            (_, Mode::Xics) => self.xics.latch_trigger(lisn),
        }
    }

    /// A device's level on the LSI `lisn` changed.
    pub fn set_level(&self, lisn: u32, input: LevelInput, level: bool) {
        if lisn >= self.geometry.sources() {
            return;
        }
        match (self.state.gate, self.state.mode) {
            (Gate::Open, Mode::Xive) => self.xive.set_level(lisn, input, level),
            (Gate::Open, Mode::Xics) => self.xics.set_level(lisn, input, level),
            _ => self.latch_level(lisn, input, level),
        }
    }

    /// Records a level. An LSI's level goes into the words of both controllers, the active one first:
    /// a mode switch may be under way, see [`Self::copy_levels`].
    fn latch_level(&self, lisn: u32, input: LevelInput, level: bool) {
        let both = self.machine.ic_mode == IcMode::Dual && self.xive.is_lsi(lisn);
        match self.state.mode {
            Mode::Xive => {
                self.xive.latch_level(lisn, input, level);
                if both {
                    self.xics.latch_level(lisn, input, level);
                }
            }
            Mode::Xics => {
                self.xics.latch_level(lisn, input, level);
                if both {
                    self.xive.latch_level(lisn, input, level);
                }
            }
        }
    }

    /// Acts on what was recorded for a source in either controller: one trigger, or a level that rose.
    /// The gate has opened and the grace period after that is over, so that nobody records any more.
    pub fn replay(&self, lisn: u32) {
        if self.machine.ic_mode == IcMode::Dual {
            self.carry_latch(lisn);
        }
        match self.state.mode {
            Mode::Xive => self.xive.replay(lisn),
            Mode::Xics => self.xics.replay(lisn),
        }
    }

    /// Moves a trigger latched in the idle controller's word, from before a mode switch, to the active
    /// one's. It is recorded there before it goes here: a daemon that dies in between leaves it twice,
    /// and its successor makes one of the two.
    fn carry_latch(&self, lisn: u32) {
        let idle = match self.state.mode {
            Mode::Xics => Mode::Xive,
            Mode::Xive => Mode::Xics,
        };
        let Some((word, bits)) = self.source_word(lisn, idle) else {
            return;
        };
        // Acquire pairs with the latching swap, and the swap of the other word passes on what the
        // device published. Nobody latches here any more.
        if word.load(Ordering::Acquire) & bits.latched != 0 {
            match self.state.mode {
                Mode::Xive => self.xive.latch_trigger(lisn),
                Mode::Xics => self.xics.latch_trigger(lisn),
            }
            // Release: after the swap above, also for who finds the word of a dead daemon.
            word.fetch_and(!bits.latched, Ordering::Release);
        }
    }

    /// The resamplefds of an LSI are due: a dead executor may have left them so.
    pub fn resample_due(&self, lisn: u32) -> bool {
        let due = |mode, bit| {
            let word = self.source_word(lisn, mode);
            // Acquire pairs with the EOI's swap.
            word.is_some_and(|(word, _)| word.load(Ordering::Acquire) & bit != 0)
        };
        due(Mode::Xive, source::RESAMPLE_DUE) || due(Mode::Xics, ics::RESAMPLE_DUE)
    }

    /// They have been written. Whichever controller they were due in: the mode may have changed since.
    pub fn resampled(&self, lisn: u32) {
        if self.machine.ic_mode.has_xive() {
            self.xive.resampled(lisn);
        }
        if self.machine.ic_mode.has_xics() {
            self.xics.resampled(lisn);
        }
    }

    /// Copies the levels of an LSI from the words of controller `from` to those of `to`: half of a mode
    /// switch, at a latched gate. Devices may change the level meanwhile; they store into `from`
    /// first, then into `to`, so that the second look catches what the copy would undo.
    pub fn copy_levels(&self, lisn: u32, from: Mode, to: Mode) {
        let (Some((source, s)), Some((target, t))) =
            (self.source_word(lisn, from), self.source_word(lisn, to))
        else {
            return;
        };
        loop {
            // Acquire and AcqRel: see below.
            let seen = source.load(Ordering::Acquire) & (s.vmm | s.irqfd);
            for (has, bit) in [(seen & s.vmm != 0, t.vmm), (seen & s.irqfd != 0, t.irqfd)] {
                if has {
                    // A level that the new controller has never seen rise: `replay` presents it.
                    target.fetch_or(bit | t.latched, Ordering::AcqRel);
                } else {
                    target.fetch_and(!bit, Ordering::AcqRel);
                }
            }
            // If a device's swap of `target` came before ours, ours read from it (AcqRel), and this load
            // sees the device's earlier swap of `source`. If it came after, the device's value stands.
            if source.load(Ordering::Acquire) & (s.vmm | s.irqfd) == seen {
                return;
            }
        }
    }

    /// The word of a source in a controller and its bits; none for numbers that it does not have.
    fn source_word(&self, lisn: u32, mode: Mode) -> Option<(&S::Word, SourceBits)> {
        match mode {
            Mode::Xive => Some((self.storage.page(Page::Source(lisn)), XIVE_BITS)),
            Mode::Xics => {
                let index = lisn.checked_sub(self.geometry.xics_base())?;
                Some((self.storage.page(Page::IcsSource(index)), XICS_BITS))
            }
        }
    }

    /// The external-interrupt line of a vCPU, by its word.
    pub fn line(&self, server: u32) -> bool {
        server < self.geometry.servers()
            && match self.state.mode {
                Mode::Xive => self.xive.line(server),
                Mode::Xics => self.xics.line(server),
            }
    }
}

struct SourceBits {
    vmm: u64,
    irqfd: u64,
    latched: u64,
}

const XIVE_BITS: SourceBits = SourceBits {
    vmm: source::LEVEL_VMM,
    irqfd: source::LEVEL_IRQFD,
    latched: source::LATCHED,
};
const XICS_BITS: SourceBits = SourceBits {
    vmm: ics::LEVEL_VMM,
    irqfd: ics::LEVEL_IRQFD,
    latched: ics::LATCHED,
};

/// The data plane of one machine on one storage.
pub struct Plane<S, H> {
    storage: S,
    host: H,
    machine: Machine,
    geometry: Geometry,
}

impl<S: Storage, H> Plane<S, H> {
    /// The plane of `machine` on new memory; `None` if the machine has no geometry.
    pub fn new(storage: S, host: H, machine: Machine) -> Option<Self> {
        let geometry = machine.geometry()?;
        Some(Self::on(storage, host, machine, geometry))
    }
    /// The plane of `machine` on `storage`, which has its words where `geometry` says.
    pub fn on(storage: S, host: H, machine: Machine, geometry: Geometry) -> Self {
        Self {
            storage,
            host,
            machine,
            geometry,
        }
    }
    /// The words.
    pub fn storage(&self) -> &S {
        &self.storage
    }
    /// The executor's outside.
    pub fn host(&self) -> &H {
        &self.host
    }
    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
    /// Its offsets.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    /// The state word now.
    pub fn state(&self) -> State {
        State::read(&self.storage)
    }

    /// Both controllers at the present state, on another host than the plane's own.
    #[inline]
    pub fn controller_on<'a, T: Host>(&'a self, host: &'a T) -> Controller<'a, S, T> {
        Controller::new(&self.storage, host, &self.machine, &self.geometry)
    }

    /// As [`thread`](Self::thread), on another host than the plane's own.
    #[inline]
    pub fn thread_on<'a, T: Host>(&'a self, host: &'a T, epoch: u32) -> Thread<'a, S, T> {
        Thread::new(&self.storage, host, &self.machine, &self.geometry, epoch)
    }
}

impl<S: Storage, H: Host> Plane<S, H> {
    /// Both controllers at the present state. For an executor without an epoch: the daemon.
    #[inline]
    pub fn controller(&self) -> Controller<'_, S, H> {
        self.controller_on(&self.host)
    }

    /// What a thread of the VMM with epoch slot `epoch` runs. No other thread uses the slot now.
    #[inline]
    pub fn thread(&self, epoch: u32) -> Thread<'_, S, H> {
        self.thread_on(&self.host, epoch)
    }

    /// The external-interrupt line of a vCPU.
    pub fn line(&self, server: u32) -> bool {
        self.controller().line(server)
    }
}
