//! A vCPU: its calls, its accesses, its line.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use nix::errno::Errno;
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret};
use papr_intc_protocol::wire::guest::{Cas, CasReply, Hcall, Mmio, Rtas, space};
use papr_intc_protocol::wire::vcpu::{Line, VcpuLine, VcpuReset};
use papr_intc_protocol::wire::{Request, Rest};

use crate::channel::{Channel, Patience, Watcher};
use crate::core::{Absence, Core, GateWait};
use crate::error::Error;
use crate::event::Event;
use crate::intc::Intc;
use crate::sync::lock;

/// Reads the guest's time base (512 MHz).
pub type TimeBase = Box<dyn Fn() -> u64 + Send + Sync>;

const TIME_BASE_HZ: u128 = 512_000_000;

/// What the front-end keeps of a vCPU, over all daemons.
pub(crate) struct VcpuState {
    server: u32,
    channel: Channel,
    /// Written by the daemon when the line may have changed.
    event: Arc<Event>,
    /// The newest sample of the line that the daemon sent. Used in remote mode only.
    line: Mutex<Sample>,
    /// The eventfd was written, or the daemon changed, since the line was sampled.
    stale: AtomicBool,
    /// Held while a stale line is sampled again, and while `sync_line` sets it.
    sampling: Mutex<()>,
    syncing: Mutex<()>,
    time_base: OnceLock<TimeBase>,
}

/// A level and when it was taken; numbers rise within a session.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    session: u64,
    seq: u64,
    level: bool,
}

impl Sample {
    /// Takes a newer sample; an older one is dropped.
    fn take(&mut self, session: u64, line: Line) {
        if (session, line.seq) >= (self.session, self.seq) {
            *self = Self {
                session,
                seq: line.seq,
                level: line.level != 0,
            };
        }
    }
}

impl VcpuState {
    pub fn new(server: u32, watcher: Arc<dyn Watcher>) -> Result<Self, Error> {
        Ok(Self {
            server,
            channel: Channel::new(watcher),
            event: Arc::new(Event::new()?),
            line: Mutex::new(Sample::default()),
            stale: AtomicBool::new(true),
            sampling: Mutex::new(()),
            syncing: Mutex::new(()),
            time_base: OnceLock::new(),
        })
    }

    pub fn server(&self) -> u32 {
        self.server
    }
    pub fn channel(&self) -> &Channel {
        &self.channel
    }
    pub fn event(&self) -> &Arc<Event> {
        &self.event
    }

    /// What was sampled is not to be trusted any more.
    pub fn look_again(&self) {
        // Release pairs with the swap in `remote_line`: who takes the mark sees what was done before it
        // was set.
        self.stale.store(true, Ordering::Release);
    }

    /// The line of remote mode. While the daemon is away, or a call of this vCPU is under way, the
    /// last sample: the end of either is followed by another look.
    fn remote_line(&self) -> bool {
        let _one = lock(&self.sampling);
        // AcqRel pairs with `look_again`.
        if self.stale.swap(false, Ordering::AcqRel) {
            let request = VcpuLine {
                server: self.server,
                zero: 0,
            };
            match self.channel.send(Patience::Now, &request, &[]) {
                Ok(answer) => lock(&self.line).take(answer.session, answer.reply),
                Err(_) => self.look_again(),
            }
        }
        lock(&self.line).level
    }
}

/// A connected vCPU. Its calls come from one thread at a time, as the vCPU's do; the line may be asked
/// for by any.
///
/// Calls that need an absent daemon block until the next one has answered; see [`Intc::shutdown`].
pub struct Vcpu {
    intc: Intc,
    state: Arc<VcpuState>,
    /// The state's, without a look at its line.
    server: u32,
}

impl Vcpu {
    pub(crate) fn new(intc: Intc, state: Arc<VcpuState>) -> Self {
        let server = state.server();
        Self {
            intc,
            state,
            server,
        }
    }

    fn core(&self) -> &Core {
        self.intc.core()
    }

    /// Its server number.
    pub fn server(&self) -> u32 {
        self.server
    }

    /// Where H_XIRR_X takes the guest's time base from; by default from the host's monotonic clock. Only
    /// the first closure counts.
    pub fn set_time_base(&self, read: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.state.time_base.set(Box::new(read));
    }

    fn time_base(&self, opcode: u64) -> u64 {
        if opcode != opcode::H_XIRR_X {
            return 0;
        }
        static START: OnceLock<Instant> = OnceLock::new();
        match self.state.time_base.get() {
            Some(read) => read(),
            None => {
                let elapsed = START.get_or_init(Instant::now).elapsed();
                (elapsed.as_nanos() * TIME_BASE_HZ / 1_000_000_000) as u64
            }
        }
    }

    /// Sends a guest's call on this vCPU's channel; `line` finds the sample in the reply. The daemon
    /// refuses such calls with EBUSY while the machine is quiesced: the vCPU waits, as in mapped mode.
    fn send<R: Request>(
        &self,
        patience: Patience,
        request: &R,
        line: impl Fn(&R::Reply) -> Line,
    ) -> Result<R::Reply, Error> {
        let mut wait = GateWait::default();
        loop {
            match self.state.channel.send(patience, request, &[]) {
                Ok(answer) => {
                    if !self.core().is_remote() {
                        // Run by a daemon that was no longer, or not yet, the executor.
                        self.core().resample_all_due();
                    }
                    if answer.replayed {
                        // Its sample may be from the daemon before, whose numbers mean nothing now.
                        self.state.look_again();
                    } else {
                        let line = line(&answer.reply);
                        lock(&self.state.line).take(answer.session, line);
                    }
                    return Ok(answer.reply);
                }
                Err(Error::Refused { errno, .. }) if errno == Errno::EBUSY as i32 => {
                    self.core().wait_for_gate(&self.state.channel, &mut wait)?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// While it is set, this vCPU's calls return [`Error::Cancelled`] instead of waiting for a daemon or for
    /// the end of a quiesce; one that waits already returns within the patience of
    /// [`WatchLimits`](crate::WatchLimits). The same call, made again later, goes on where it stopped:
    /// it still runs once. Any thread may call this.
    pub fn set_cancelled(&self, cancelled: bool) {
        self.state.channel.set_cancelled(cancelled);
    }

    /// How long this hypercall may wait for a daemon.
    fn patience(&self, opcode: u64) -> Patience {
        match self.core().options.absence {
            Absence::Busy(limit)
                if (opcode::H_INT_GET_SOURCE_INFO..=opcode::H_INT_RESET).contains(&opcode) =>
            {
                Patience::Until(Instant::now() + limit)
            }
            _ => Patience::Persist,
        }
    }

    /// A hypercall: `args` are r4 to r12 and changed as the call says; r3 comes back. An opcode that is
    /// not an interrupt call gets H_FUNCTION.
    ///
    /// The VMM has checked that the guest was not in problem state.
    pub fn hcall(&self, opcode: u64, args: &mut [u64; 9]) -> Result<i64, Error> {
        let server = self.server();
        let time_base = self.time_base(opcode);
        let ran = self.core().local(&self.state.channel, |thread| {
            thread.hcall(server, opcode, args, time_base)
        })?;
        if let Some(ret) = ran {
            return Ok(ret);
        }
        let request = Hcall {
            server,
            zero: 0,
            opcode,
            args: *args,
            time_base,
        };
        match self.send(self.patience(opcode), &request, |r| r.line) {
            Ok(reply) => {
                *args = reply.args;
                Ok(reply.ret)
            }
            Err(Error::TimedOut) => Ok(ret::H_BUSY),
            Err(e) => Err(e),
        }
    }

    /// An RTAS call with the argument cells `args` and room for `nret` results (16 each at most). The
    /// cells to write to the guest; the first is the status.
    pub fn rtas(&self, call: RtasCall, args: &[u32], nret: u32) -> Result<Vec<u32>, Error> {
        let ran = self.core().local(&self.state.channel, move |thread| {
            thread.rtas(call, args, nret)
        })?;
        if let Some(reply) = ran {
            return Ok(reply.cells().to_vec());
        }
        let mut cells = [0; 16];
        let Some(used) = cells.get_mut(..args.len()) else {
            return Err(Error::Invalid(format!("{} RTAS arguments", args.len())));
        };
        used.copy_from_slice(args);
        let request = Rtas {
            server: self.server(),
            call: call as u32,
            nargs: args.len() as u32,
            nret,
            args: cells,
        };
        let reply = self.send(Patience::Persist, &request, |r| r.line)?;
        let written = (reply.written as usize).min(reply.rets.len());
        Ok(reply.rets[..written].to_vec())
    }

    /// Client-architecture-support: `ov5` is option vector 5 as in the guest's table. The VMM has
    /// checked that no other vCPU runs.
    pub fn cas(&self, ov5: &[u8]) -> Result<CasReply, Error> {
        let request = Cas {
            server: self.server(),
            zero: 0,
            ov5: Rest(ov5.to_vec()),
        };
        let (reply, _) = self.state.channel.call(&request, &[])?;
        self.state.look_again();
        Ok(reply)
    }

    /// A load of the guest at `offset` from the machine's ESB base.
    pub fn esb_load(&self, offset: u64, size: u8) -> Result<u64, Error> {
        match self.core().local(&self.state.channel, move |thread| {
            thread.esb_load(offset, size)
        })? {
            Some(value) => Ok(value),
            None => self.mmio(space::ESB, offset, size, None),
        }
    }

    /// A store of the guest at `offset` from the machine's ESB base.
    pub fn esb_store(&self, offset: u64, size: u8, value: u64) -> Result<(), Error> {
        match self.core().local(&self.state.channel, move |thread| {
            thread.esb_store(offset, size, value)
        })? {
            Some(()) => Ok(()),
            None => self.mmio(space::ESB, offset, size, Some(value)).map(|_| ()),
        }
    }

    /// A load of this vCPU at `offset` from the machine's TIMA base.
    pub fn tima_load(&self, offset: u64, size: u8) -> Result<u64, Error> {
        let server = self.server();
        match self.core().local(&self.state.channel, move |thread| {
            thread.tima_load(server, offset, size)
        })? {
            Some(value) => Ok(value),
            None => self.mmio(space::TIMA, offset, size, None),
        }
    }

    /// A store of this vCPU at `offset` from the machine's TIMA base.
    pub fn tima_store(&self, offset: u64, size: u8, value: u64) -> Result<(), Error> {
        let server = self.server();
        match self.core().local(&self.state.channel, move |thread| {
            thread.tima_store(server, offset, size, value)
        })? {
            Some(()) => Ok(()),
            None => self
                .mmio(space::TIMA, offset, size, Some(value))
                .map(|_| ()),
        }
    }

    fn mmio(&self, space: u32, offset: u64, size: u8, value: Option<u64>) -> Result<u64, Error> {
        let request = Mmio {
            server: self.server(),
            space,
            offset,
            size: u32::from(size),
            store: u32::from(value.is_some()),
            value: value.unwrap_or(0),
        };
        self.send(Patience::Persist, &request, |r| r.line)
            .map(|r| r.value)
    }

    /// The level of the external-interrupt line. Never waits for an absent daemon; starts no transition.
    pub fn pending(&self) -> bool {
        match self.core().mapped.get() {
            Some(mapped) => mapped.look(|c| c.line(self.server())),
            None => self.state.remote_line(),
        }
    }

    /// Gives the line's level to `set` until it stays what was set; one caller at a time. `set` must not
    /// call `sync_line` of the same vCPU.
    pub fn sync_line(&self, mut set: impl FnMut(bool)) {
        let _one = lock(&self.state.syncing);
        loop {
            let level = self.pending();
            set(level);
            if self.pending() == level {
                return;
            }
        }
    }

    /// ICP and ring as after power-on.
    pub fn reset(&self) -> Result<(), Error> {
        let request = VcpuReset {
            server: self.server(),
            zero: 0,
        };
        self.state.channel.call(&request, &[])?;
        self.state.look_again();
        Ok(())
    }

    /// The vCPU is unplugged. Calls on its other handles fail from now on.
    pub fn disconnect(self) -> Result<(), Error> {
        self.intc.disconnect_vcpu(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_sample_is_dropped_and_a_new_session_starts_afresh() {
        let line = |level, seq| Line {
            level,
            zero: 0,
            seq,
        };
        let mut sample = Sample::default();
        sample.take(1, line(1, 10));
        sample.take(1, line(0, 9));
        assert!(sample.level);
        sample.take(2, line(0, 1));
        assert!(!sample.level);
        sample.take(1, line(1, 11));
        assert!(!sample.level);
    }
}
