//! The interrupt controller of one guest, as its VMM holds it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::layout::header::Executor;
use papr_intc_protocol::layout::mapped::MappedStorage;
use papr_intc_protocol::wire::Request;
use papr_intc_protocol::wire::guest::GetFdt;
use papr_intc_protocol::wire::handshake::Query;
use papr_intc_protocol::wire::machine::{MachineReset, Quiesce, Resume, reset_flag};
use papr_intc_protocol::wire::source::{Claim, Free, Sync};
use papr_intc_protocol::wire::vcpu::{VcpuConnect, VcpuDisconnect};
use std::os::fd::AsFd;

use crate::change::OnThread;
use crate::channel::{Shut, may_wait, never_wait_here};
use crate::connection::Connection;
use crate::core::{Core, Options, Topology, in_one_session};
use crate::error::Error;
use crate::handshake::{channel_request, executor_code};
use crate::host::Kick;
use crate::process::Launcher;
use crate::ram::Ram;
use crate::shm::Shm;
use crate::source::Source;
use crate::supervisor;
use crate::sync::{lock, write};
use crate::vcpu::{Vcpu, VcpuState};

/// A running interrupt controller. Clones are the same one; when the last is gone, it is shut down.
#[derive(Clone)]
pub struct Intc(Arc<Handle>);

/// How long a change of executor waits for threads inside a transition.
const TURN_LIMIT: Duration = Duration::from_secs(1);

/// Owns the threads, which own the core.
struct Handle {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// One quiesce or resume at a time.
    quiescing: Mutex<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Handle {
    fn shutdown(&self) {
        self.core.signals.stop();
        // What waits for a daemon returns at once; the watch thread still says goodbye to this one.
        self.core.intake.stop();
        for vcpu in self.core.all_vcpus() {
            vcpu.channel().shut(Shut::ShutDown);
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        let me = std::thread::current().id();
        for thread in threads {
            // The last handle may go in a callback on one of these threads.
            if thread.thread().id() != me && thread.join().is_err() {
                log::error!("a thread of the front-end panicked");
            }
        }
    }
}

impl Intc {
    /// Starts a daemon and shakes hands. `kick(server)` is called when the line of a vCPU may have
    /// changed: make its thread leave the guest or its halt and look at [`Vcpu::pending`]. It is called
    /// on any thread, with no lock of this crate held, and must not block. On the watch thread calls that may
    /// wait for a daemon return [`Error::Watching`].
    ///
    /// A daemon that somebody else started may have served a VMM that is dead by now
    /// (`--on-disconnect wait`): this one takes its guest over, see [`adopted`](Self::adopted).
    ///
    /// # Errors
    /// Whatever keeps the first daemon from serving.
    pub fn start(
        options: Options,
        launcher: Launcher,
        ram: Arc<impl Ram + 'static>,
        kick: Kick,
    ) -> Result<Self, Error> {
        let on_thread = options.on_thread.clone();
        let core = Arc::new(Core::new(options, ram, kick)?);
        let (supervisor, session) = supervisor::start(Arc::clone(&core), launcher)?;
        let watch = spawn("papr-intc-watch", &on_thread, move || {
            never_wait_here();
            supervisor.run(session);
        })?;
        let handle = Arc::new(Handle {
            core: Arc::clone(&core),
            threads: Mutex::new(vec![watch]),
            quiescing: Mutex::new(()),
        });
        let io = spawn("papr-intc-io", &on_thread, move || core.intake.run(&*core))?;
        lock(&handle.threads).push(io);
        Ok(Self(handle))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0.core
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.core().options.machine
    }

    /// The mapped pages, to look at; none in remote mode.
    pub fn storage(&self) -> Option<&MappedStorage> {
        let mapped = self.core().mapped.get()?;
        Some(mapped.plane.storage())
    }

    /// Pid of the present daemon; none while there is none.
    pub fn daemon_pid(&self) -> Option<u32> {
        match self.core().signals.pid.load(Ordering::Relaxed) {
            0 => None,
            pid => Some(pid),
        }
    }

    /// How many daemons after the first have served.
    pub fn restarts(&self) -> u64 {
        self.core().signals.restarts.load(Ordering::Relaxed)
    }

    /// Ends the daemon. Every call that waits for one returns [`Error::ShutDown`]. What the handles can
    /// do without a daemon still works. Idempotent.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }

    /// Remote mode from now on: the daemon runs the data plane, irqfds included. For a VMM that has
    /// learnt of a defect in the plane that it is linked with.
    ///
    /// # Errors
    /// As [`quiesce`](Self::quiesce) and [`resume`](Self::resume); then the mode is as before.
    pub fn demote(&self) -> Result<(), Error> {
        self.run_by(Executor::Daemon)
    }

    /// Mapped mode from now on.
    ///
    /// # Errors
    /// As [`demote`](Self::demote); [`Error::Unfit`] if the daemon itself asked for remote mode: then that is
    /// kept, and the wish is remembered for the next daemon.
    pub fn promote(&self) -> Result<(), Error> {
        self.run_by(Executor::FrontEnd)
    }

    fn run_by(&self, executor: Executor) -> Result<(), Error> {
        self.quiesce(TURN_LIMIT)?;
        self.resume(Some(executor)).or_else(|e| {
            self.resume(None)?;
            Err(e)
        })?;
        if lock(&self.core().topology).executor == executor {
            return Ok(());
        }
        let what = "it asked for remote mode; the next one that does not will be obeyed";
        Err(Error::Unfit(what.to_owned()))
    }

    /// Who runs the data plane at present.
    pub fn executor(&self) -> Executor {
        match self.core().is_remote() {
            true => Executor::Daemon,
            false => Executor::FrontEnd,
        }
    }

    /// The daemon held the memory of an earlier VMM when this one came: the guest goes on with its claims,
    /// routings and pending interrupts. Otherwise they are as after power-on.
    pub fn adopted(&self) -> bool {
        self.core().adopted.load(Ordering::Relaxed)
    }

    /// As [`Vcpu::set_cancelled`], for the calls of this handle and for triggers.
    pub fn set_cancelled(&self, cancelled: bool) {
        self.core().main.set_cancelled(cancelled);
    }

    /// Connects a vCPU and opens its channel.
    pub fn connect_vcpu(&self, server: u32) -> Result<Vcpu, Error> {
        let core = self.core();
        if server >= core.geometry.servers() {
            return Err(Error::Invalid(format!(
                "server {server} is not below {}",
                core.geometry.servers()
            )));
        }
        let state = Arc::new(VcpuState::new(server, core.watcher())?);
        in_one_session(core, |_topology| self.introduce(&state))?;
        core.intake.add_kick(server, Arc::clone(state.event()))?;
        Ok(Vcpu::new(self.clone(), state))
    }

    /// Under the topology lock: no handshake runs meanwhile.
    fn introduce(&self, state: &Arc<VcpuState>) -> Result<(), Error> {
        let core = self.core();
        let server = state.server();
        {
            // Listed first: if this daemon dies, the next one's handshake connects the vCPU.
            let mut vcpus = write(&core.vcpus);
            let listed = vcpus.entry(server).or_insert_with(|| Arc::clone(state));
            if !Arc::ptr_eq(listed, state) {
                return Err(Error::Invalid(format!("server {server} is connected")));
            }
        }
        if state.channel().is_up() {
            return Ok(());
        }
        let connected = self.open_channel(state);
        if let Err(e) = &connected
            && !matches!(e, Error::Lost)
        {
            write(&core.vcpus).remove(&server);
        }
        connected
    }

    fn open_channel(&self, state: &VcpuState) -> Result<(), Error> {
        let core = self.core();
        let servers = vec![state.server()];
        core.ask_session(&VcpuConnect { servers }, &[state.event().as_fd()])?;
        let (request, ours, theirs) = channel_request(state.server())?;
        let session = core.ask_session(&request, &[theirs.as_fd()])?;
        let connection = Arc::new(Connection::plain(ours));
        connection.set_tick(core.options.watch.patience);
        state.channel().bring_up(connection, session);
        Ok(())
    }

    pub(crate) fn disconnect_vcpu(&self, state: &VcpuState) -> Result<(), Error> {
        let core = self.core();
        let server = state.server();
        let request = VcpuDisconnect { server, zero: 0 };
        let gone = in_one_session(core, |_topology| {
            write(&core.vcpus).remove(&server);
            match core.ask_session(&request, &[]) {
                // The next daemon was not told of the vCPU.
                Err(Error::Refused { errno, .. }) if errno == Errno::ENOENT as i32 => Ok(()),
                other => other.map(|_| ()),
            }
        });
        state.channel().shut(Shut::ShutDown);
        core.intake.remove_kick(server);
        gone
    }

    /// A handle to a source, claimed or not yet.
    pub fn source(&self, lisn: u32) -> Result<Source, Error> {
        let sources = self.machine().sources;
        if lisn >= sources {
            return Err(Error::Invalid(format!(
                "LISN {lisn:#x} is not below {sources:#x}"
            )));
        }
        Ok(Source::new(self.clone(), lisn))
    }

    pub(crate) fn ask<R: Request>(&self, request: &R) -> Result<R::Reply, Error> {
        self.core().ask(request)
    }

    /// Claims numbers in both controllers, all or none; the first of them.
    pub fn claim(&self, claim: &Claim) -> Result<u32, Error> {
        self.ask(claim).map(|reply| reply.first)
    }

    /// Releases numbers, all or none.
    pub fn free(&self, first: u32, count: u32) -> Result<(), Error> {
        self.ask(&Free { first, count })
    }

    /// Returns when every event of the source accepted before (of every source with
    /// [`ALL`](papr_intc_protocol::wire::source::ALL)) is in its queue.
    pub fn sync(&self, lisn: u32) -> Result<(), Error> {
        self.ask(&Sync { lisn, zero: 0 })
    }

    /// Both controllers as after power-on. No vCPU runs. Lines are to be looked at again afterwards.
    pub fn machine_reset(&self, free_msis: bool) -> Result<(), Error> {
        let flags = if free_msis { reset_flag::FREE_MSIS } else { 0 };
        self.ask(&MachineReset { flags, zero: 0 })?;
        self.core().kick_all();
        Ok(())
    }

    /// Stops transitions; triggers and levels are recorded from now on, calls of the guest wait. Nests.
    ///
    /// # Errors
    /// ETIMEDOUT after `deadline`; then everything goes on as before.
    pub fn quiesce(&self, deadline: Duration) -> Result<(), Error> {
        may_wait()?;
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let _one = lock(&self.0.quiescing);
        let depth = self.quiesce_depth();
        let request = Quiesce {
            deadline_ms,
            zero: 0,
        };
        self.reach_depth(depth + 1, |_| request.clone())
    }

    /// Undoes one quiesce; the last one replays what was recorded, under `by` as executor if given:
    /// mapped and remote mode change here, irqfds included. A daemon that has asked for remote mode keeps it;
    /// the wish is remembered for the next one.
    pub fn resume(&self, by: Option<Executor>) -> Result<(), Error> {
        may_wait()?;
        let resumed = {
            let _one = lock(&self.0.quiescing);
            self.resume_one(by)
        };
        // The VMM's callback may do anything: no lock is held, and its calls do not wait for another resume.
        if self.quiesce_depth() == 0 {
            self.core().kick_all();
        }
        resumed
    }

    /// The caller holds the lock of quiesces.
    fn resume_one(&self, by: Option<Executor>) -> Result<(), Error> {
        let depth = match self.quiesce_depth() {
            0 => return Err(Error::Invalid("resume without quiesce".to_owned())),
            depth => depth - 1,
        };
        if by.is_some() && depth > 0 {
            let what = "only the last resume can change the executor";
            return Err(Error::Invalid(what.to_owned()));
        }
        let core = self.core();
        let (before, wanted) = {
            let topology = lock(&core.topology);
            (topology.executor, topology.wanted)
        };
        let request = |topology: &Topology| {
            // Another daemon may have turned the machine meanwhile, which this one completes.
            let to = topology.allowed(by.unwrap_or(topology.executor));
            Resume {
                executor: executor_code(to),
                zero: 0,
            }
        };
        let handed = by.map_or(Ok(()), |to| {
            lock(&core.topology).wanted = to;
            self.hand_over(to)
        });
        let resumed = handed.and_then(|()| self.reach_depth(depth, request));
        if resumed.is_err() && by.is_some() {
            // As if nothing had been asked.
            lock(&core.topology).wanted = wanted;
            self.hand_over(before)?;
        }
        if lock(&core.topology).executor == Executor::FrontEnd {
            core.intake.unpause()?;
            core.resample_all_due();
        }
        resumed
    }

    fn quiesce_depth(&self) -> u64 {
        let topology = lock(&self.core().topology);
        topology.shm.as_ref().map_or(0, Shm::quiesce_depth)
    }

    /// Sends QUIESCE or RESUME until the header has the depth that it leads to. A daemon that died with
    /// the request may have executed it: the header tells, and another run would count twice.
    fn reach_depth<R: Request>(
        &self,
        depth: u64,
        request: impl Fn(&Topology) -> R,
    ) -> Result<(), Error> {
        in_one_session(self.core(), |topology| {
            let now = topology.shm.as_ref().map_or(0, Shm::quiesce_depth);
            if now != depth {
                self.core().ask_session(&request(topology), &[])?;
            }
            topology.quiesced = depth;
            Ok(())
        })
    }

    /// Before the executor is `to`: the pages are mapped, and the other side does not read the irqfds.
    fn hand_over(&self, to: Executor) -> Result<(), Error> {
        let core = self.core();
        {
            let topology = lock(&core.topology);
            match (topology.allowed(to), &topology.shm) {
                (Executor::Daemon, _) => {
                    core.intake.pause();
                }
                (Executor::FrontEnd, Some(shm)) => {
                    core.ensure_mapped(shm)?;
                }
                (Executor::FrontEnd, None) => {}
            }
        }
        in_one_session(core, |topology| {
            let to = topology.allowed(to);
            // From here on a new daemon is started so. The gate is latched: nobody executes yet.
            topology.executor = to;
            core.set_remote(to == Executor::Daemon);
            if to == Executor::Daemon {
                // The watch thread sleeps until something happens: from now on it asks from time to time.
                core.signals.doubt_any();
            }
            if topology.irqfds_at != to {
                self.move_irqfds(to)?;
                topology.irqfds_at = to;
            }
            Ok(())
        })
    }

    /// What the daemon says to people: `what` is one of
    /// [`query`](papr_intc_protocol::wire::handshake::query), `argument` which one.
    pub fn query(&self, what: u32, argument: u64) -> Result<String, Error> {
        let mut bytes = Vec::new();
        let mut cursor = 0;
        loop {
            let reply = self.ask(&Query {
                what,
                zero: 0,
                cursor,
                argument,
            })?;
            bytes.extend_from_slice(&reply.bytes.0);
            // A cursor that does not rise would never end.
            if reply.next <= cursor {
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            cursor = reply.next;
        }
    }

    /// Device tree of a mode ([`mode`](papr_intc_protocol::wire::guest::mode)), as a flattened blob.
    pub fn fdt(&self, mode: u32) -> Result<Vec<u8>, Error> {
        self.ask(&GetFdt { mode, zero: 0 }).map(|r| r.fdt.0)
    }
}

fn spawn(
    name: &str,
    on_thread: &OnThread,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let on_thread = on_thread.clone();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            on_thread.tell(true);
            body();
            on_thread.tell(false);
        })
        .map_err(Error::os("starting a thread"))
}

const fn assert_send_sync<T: Send + std::marker::Sync>() {}
const _: () = {
    assert_send_sync::<Intc>();
    assert_send_sync::<Vcpu>();
    assert_send_sync::<Source>();
};
