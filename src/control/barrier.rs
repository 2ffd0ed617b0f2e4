//! What concerns the whole machine: CAS, reset, disconnect, quiesce and resume.
//!
//! Each latches the gate, waits for every transition that began before (grace period), works, opens
//! the gate, waits again for those that still latched, and replays what they recorded. The waiting
//! is done by whoever calls [`Control::poll_barrier`] again; nothing here blocks.
//!
//! A requester waits no longer than its deadline. If threads of the VMM still latch after that, the
//! replay is left to [`Control::poll_reopening`], and requests are served meanwhile.

use std::time::{Duration, Instant};

use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word};
use papr_intc_protocol::layout::words::{ics, source};
use papr_intc_protocol::papr::codes::ret;
use papr_intc_protocol::plane::Host;
use papr_intc_protocol::plane::epoch::GracePeriod;
use papr_intc_protocol::wire::guest::{Cas, CasReply, FdtReply, GetFdt, mode};
use papr_intc_protocol::wire::handshake::executor;
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::{Rest, Wire};

use super::lifecycle::executor_of;
use super::{Control, Core, Refused};
use crate::memory::QueueMemory;
use crate::papr::{cas, fdt};

/// How long CAS, reset and disconnect wait for threads inside a transition.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest deadline of QUIESCE.
const LONGEST: Duration = Duration::from_secs(60);

/// What is done at the latched gate.
#[derive(Debug)]
enum Work {
    Cas(Mode),
    Reset(MachineReset),
    Disconnect(u32),
    Quiesce,
    Resume(Option<Executor>),
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Self::Cas(_) => "CAS",
            Self::Reset(_) => "MACHINE_RESET",
            Self::Disconnect(_) => "VCPU_DISCONNECT",
            Self::Quiesce => "QUIESCE",
            Self::Resume(_) => "RESUME",
        }
    }
}

/// A machine-wide operation under way.
#[derive(Debug)]
pub struct Barrier {
    work: Work,
    grace: GracePeriod,
    /// The work is done and the gate open; what was latched is still to be replayed.
    opening: bool,
    deadline: Instant,
}

impl<M: QueueMemory> Core<M> {
    pub(super) fn grace(&self) -> GracePeriod {
        GracePeriod::begin(self.plane.storage(), self.plane.geometry())
    }

    /// The work itself: no executor is inside a transition, devices only record.
    fn at_the_gate(&self, work: &Work) {
        match work {
            Work::Cas(mode) => self.switch(*mode, *mode == Mode::Xive),
            Work::Reset(reset) => self.reset(reset),
            Work::Disconnect(server) => {
                let c = self.controller();
                c.xics.disconnect(*server);
                c.xive.disconnect(*server);
                self.plane.host().set_kick(*server, None);
            }
            Work::Quiesce => self
                .memory
                .set_header(word::QUIESCE_DEPTH, self.depth().saturating_add(1)),
            Work::Resume(executor) => {
                let depth = self.depth().saturating_sub(1);
                self.memory.set_header(word::QUIESCE_DEPTH, depth);
                if let (0, Some(executor)) = (depth, executor) {
                    self.set_state(State {
                        executor: *executor,
                        ..self.state()
                    });
                }
            }
        }
    }

    /// Makes `mode` the active controller. Levels follow; the lines follow from the words.
    fn switch(&self, to: Mode, cas_xive: bool) {
        let state = self.state();
        if state.mode != to {
            let c = self.controller();
            self.claims()
                .lsis()
                .for_each(|lisn| c.copy_levels(lisn, state.mode, to));
        }
        self.memory
            .set_header(word::OV5_BYTE_23, cas::byte_23(to).into());
        self.set_state(State {
            mode: to,
            cas_xive,
            ..state
        });
    }

    /// Both controllers as after power-on; claims of fixed numbers, kinds, levels and vCPUs stay.
    fn reset(&self, reset: &MachineReset) {
        self.switch(self.initial_mode(), false);
        self.memory.set_header(word::OV5_BYTE_23, 0);
        let c = self.controller();
        c.xics.reset();
        for lisn in 0..c.geometry.sources() {
            c.xive.reset_source(lisn);
        }
        for end in 0..c.geometry.ends() {
            c.xive.reset_end(end);
        }
        (0..c.geometry.servers()).for_each(|server| c.xive.vcpu_reset(server));
        if reset.flags & reset_flag::FREE_MSIS != 0 {
            let msis: Vec<u32> = self.claims().msis().collect();
            for lisn in msis {
                // Nothing can be busy at the gate.
                if let Err(e) = self.free_both(lisn, 1) {
                    log::error!("freeing {lisn:#x} at reset: {e}");
                }
            }
        }
    }

    /// Nobody latches any more: acts on what was recorded, and tells every vCPU to look again, since
    /// words may have changed wholesale.
    pub(super) fn replay_all(&self) {
        let c = self.controller();
        let has = |bit: u64| move |word: u64| word & bit != 0;
        for lisn in self.sources_where(has(source::LATCHED), has(ics::LATCHED)) {
            if self.claims().is_claimed(lisn) {
                self.run(|| c.replay(lisn));
            }
        }
        self.first_look();
        (0..c.geometry.servers()).for_each(|server| self.plane.host().kick(server));
    }

    /// The replies to the requester, from the state after the work.
    fn answer(&self, work: &Work) -> Result<Vec<u8>, Refused> {
        let depth = self.depth() as u32;
        Ok(match work {
            Work::Cas(_) => self.cas_reply(ret::H_SUCCESS)?.to_bytes(),
            Work::Reset(_) | Work::Disconnect(_) => Vec::new(),
            Work::Quiesce => QuiesceReply { depth, zero: 0 }.to_bytes(),
            Work::Resume(_) => ResumeReply { depth, zero: 0 }.to_bytes(),
        })
    }

    fn cas_reply(&self, ret: i64) -> Result<CasReply, Refused> {
        let state = self.state();
        Ok(CasReply {
            ret,
            byte_23: self.memory.header(word::OV5_BYTE_23) as u32,
            mode: mode_number(state.mode),
            fdt: Rest(fdt::fragment(self.machine(), state.mode)?),
        })
    }
}

fn mode_number(m: Mode) -> u32 {
    match m {
        Mode::Xics => mode::XICS,
        Mode::Xive => mode::XIVE,
    }
}

impl<M: QueueMemory + Clone> Control<M> {
    /// CAS: answers at once if the choice is impossible; then nothing has changed.
    pub(super) fn cas(&mut self, request: &Cas, now: Instant) -> Result<Option<Vec<u8>>, Refused> {
        let core = self.core()?;
        core.check_connected(request.server)?;
        match cas::choose(&request.ov5.0, core.machine().ic_mode) {
            Ok(mode) => self.begin(Work::Cas(mode), now + PATIENCE).map(|()| None),
            Err(e) => {
                // The guest's doing, as often as it likes: no warning.
                if let Some(more) = self.cas_lines.take(now) {
                    log::info!("CAS of server {}: {e}{more}", request.server);
                }
                self.core()?
                    .cas_reply(ret::H_PARAMETER)
                    .map(|reply| Some(reply.to_bytes()))
            }
        }
    }

    pub(super) fn machine_reset(
        &mut self,
        reset: &MachineReset,
        now: Instant,
    ) -> Result<(), Refused> {
        if reset.flags & !reset_flag::FREE_MSIS != 0 {
            return Err(Refused::Value(format!(
                "reset flags {:#x} are not defined",
                reset.flags
            )));
        }
        self.begin(Work::Reset(reset.clone()), now + PATIENCE)
    }

    pub(super) fn vcpu_disconnect(&mut self, server: u32, now: Instant) -> Result<(), Refused> {
        self.core()?.check_connected(server)?;
        self.begin(Work::Disconnect(server), now + PATIENCE)
    }

    pub(super) fn quiesce(&mut self, quiesce: &Quiesce, now: Instant) -> Result<(), Refused> {
        let wait = Duration::from_millis(quiesce.deadline_ms.into()).min(LONGEST);
        self.begin(Work::Quiesce, now + wait)
    }

    /// State moves while the machine is quiesced. `false`: it will be, see [`Self::poll_barrier`]; RESUME
    /// undoes it.
    pub fn quiesce_for_state(&mut self, now: Instant) -> Result<bool, Refused> {
        if self.core()?.depth() > 0 {
            return Ok(true);
        }
        self.begin(Work::Quiesce, now + PATIENCE).map(|()| false)
    }

    pub(super) fn resume(&mut self, resume: &Resume, now: Instant) -> Result<(), Refused> {
        let executor = match resume.executor {
            executor::KEEP => None,
            number => Some(
                executor_of(number)
                    .ok_or_else(|| Refused::Value(format!("executor {number} is not defined")))?,
            ),
        };
        if self.core()?.depth() == 0 {
            return Err(Refused::Phase("RESUME without QUIESCE"));
        }
        self.forget_states();
        self.begin(Work::Resume(executor), now + PATIENCE)
    }

    pub(super) fn get_fdt(&self, get: &GetFdt) -> Result<FdtReply, Refused> {
        let core = self.memory_core()?;
        let ic_mode = core.machine().ic_mode;
        let mode = match get.mode {
            mode::ACTIVE => core.state().mode,
            mode::XICS if ic_mode.has_xics() => Mode::Xics,
            mode::XIVE if ic_mode.has_xive() => Mode::Xive,
            _ => return Err(Refused::Unsupported("the machine does not have that mode")),
        };
        Ok(FdtReply {
            fdt: Rest(fdt::fragment(core.machine(), mode)?),
        })
    }

    fn begin(&mut self, work: Work, deadline: Instant) -> Result<(), Refused> {
        let core = self.core()?;
        core.set_gate(Gate::Latch);
        let barrier = Barrier {
            work,
            grace: core.grace(),
            opening: false,
            deadline,
        };
        self.barrier = Some(barrier);
        // What an earlier opening still owed, the end of this operation or of the quiesce does.
        self.reopening = None;
        Ok(())
    }

    /// Goes on with the machine-wide operation. `Some`: it is over for the requester, this is the
    /// answer. `None`: threads of the VMM are still waited for.
    pub fn poll_barrier(&mut self, now: Instant) -> Option<Result<Vec<u8>, Refused>> {
        let mut barrier = self.barrier.take()?;
        let core = self.core.as_ref()?;
        loop {
            let over = barrier.grace.poll(core.plane.storage());
            match (over, barrier.opening) {
                (false, _) if now < barrier.deadline => {
                    self.barrier = Some(barrier);
                    return None;
                }
                (false, false) => return Some(Err(self.give_up(&barrier))),
                (false, true) => {
                    let answer = core.answer(&barrier.work);
                    self.reopening = Some(barrier.grace);
                    return Some(answer);
                }
                (true, false) => {
                    core.at_the_gate(&barrier.work);
                    if core.depth() > 0 {
                        return Some(core.answer(&barrier.work));
                    }
                    core.set_gate(Gate::Open);
                    barrier.opening = true;
                    barrier.grace = core.grace();
                }
                (true, true) => {
                    core.replay_all();
                    return Some(core.answer(&barrier.work));
                }
            }
        }
    }

    /// The deadline has passed before the work: nothing has been done, and the gate is as it was.
    fn give_up(&mut self, barrier: &Barrier) -> Refused {
        let threads = barrier.grace.stragglers().count();
        let what = barrier.work.name();
        self.reopen();
        Refused::GraceTimeout { what, threads }
    }

    /// Opens the gate, unless the machine is quiesced. What was latched is replayed by
    /// [`Self::poll_reopening`] when nobody latches any more.
    pub(super) fn reopen(&mut self) {
        let Some(core) = self.core.as_ref().filter(|core| core.depth() == 0) else {
            return;
        };
        core.set_gate(Gate::Open);
        self.reopening = Some(core.grace());
    }

    /// The gate is open, and what was latched is still to be replayed: [`Self::poll_reopening`].
    pub fn is_reopening(&self) -> bool {
        self.reopening.is_some()
    }

    /// Replays what was latched, once every thread that may still latch has left its transition.
    pub fn poll_reopening(&mut self) {
        let (Some(mut grace), Some(core)) = (self.reopening.take(), &self.core) else {
            return;
        };
        if grace.poll(core.plane.storage()) {
            core.replay_all();
        } else {
            self.reopening = Some(grace);
        }
    }
}
