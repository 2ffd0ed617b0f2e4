//! What the handles, the supervisor and the I/O thread of one machine share.
//!
//! Locks, in the order in which they may be taken: `topology` (held over messages of one session, and
//! over a whole handshake), `vcpus` (never held over a message), then the leaf locks of channels and
//! the intake. A thread that waits for the next daemon ([`Patience::Persist`]) holds none of them.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use papr_intc_protocol::layout::header::Executor;
use papr_intc_protocol::layout::mapped::MappedStorage;
use papr_intc_protocol::layout::words::run;
use papr_intc_protocol::layout::{AtomicWord, Geometry, Machine, Page, Storage};
use papr_intc_protocol::plane::thread::Thread;
use papr_intc_protocol::plane::{Controller, LevelInput, Outcome, Plane};
use papr_intc_protocol::wire::Request;
use papr_intc_protocol::wire::source::{SetLevel, Trigger};

use crate::change::{OnChange, OnThread};
use crate::channel::{self, Channel, Patience, Shut, Watcher};
use crate::dirty_log::SharedLog;
use crate::epoch::Slots;
use crate::error::Error;
use crate::fences::Fences;
use crate::host::{FrontHost, Kick, Running};
use crate::io_thread::{Intake, Irqfd, Sink};
use crate::outage;
use crate::ram::Ram;
use crate::shm::{self, RunPage, Shm};
use crate::signals::Signals;
use crate::sync::{lock, read};
use crate::vcpu::VcpuState;

/// What a VMM asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine, the same for the life of the guest.
    pub machine: Machine,
    /// Who runs the data plane: the front-end (mapped mode) or the daemon (remote mode).
    pub executor: Executor,
    /// Send every call and trigger to the daemon, which is the executor then, though the pages are mapped.
    /// For tests.
    pub forward_all: bool,
    /// Name of the VMM or guest, for the daemon's log.
    pub name: String,
    /// When a daemon counts as hung.
    pub watch: WatchLimits,
    /// What a guest's call does while there is no daemon.
    pub absence: Absence,
    /// Hears of daemons that go and come.
    pub on_change: OnChange,
    /// Hears of threads that the front-end starts.
    pub on_thread: OnThread,
}

impl Options {
    /// Mapped mode, a name of `"guest"`, default limits, calls that wait.
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            executor: Executor::FrontEnd,
            forward_all: false,
            name: "guest".to_owned(),
            watch: WatchLimits::default(),
            absence: Absence::Wait,
            on_change: OnChange::default(),
            on_thread: OnThread::default(),
        }
    }
}

/// What counts as a hung daemon. Too short limits cost a restart, which loses nothing; `answer` doubles from
/// the third daemon on that was too slow, and `message` from the second, both up to sixteenfold.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    /// A caller that waits longer than this for a reply makes the watch thread ask whether the daemon
    /// still runs. Default: 200 ms.
    pub patience: Duration,
    /// The answer to that may take so long. Default: 250 ms.
    pub answer: Duration,
    /// In remote mode the daemon is asked this often without a reason (at most 65 s); never, if none.
    /// Default: 1 s.
    pub idle: Option<Duration>,
    /// One message of a handshake may take so long. Default: 1 s.
    pub message: Duration,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            patience: Duration::from_millis(200),
            answer: Duration::from_millis(250),
            idle: Some(Duration::from_secs(1)),
            message: Duration::from_secs(1),
        }
    }
}

/// What a guest's call does that needs a daemon when there is none, or none that answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Absence {
    /// It waits, until it is cancelled ([`Vcpu::set_cancelled`](crate::Vcpu::set_cancelled)).
    #[default]
    Wait,
    /// An H_INT_* call returns H_BUSY to the guest after this time, which makes it again; other calls
    /// wait.
    Busy(Duration),
}

/// The plane of the mapped mode, as the front-end runs it.
pub(crate) type FrontPlane = Plane<MappedStorage, FrontHost>;

/// The mapped pages and who executes on them.
pub(crate) struct Mapped {
    pub plane: FrontPlane,
    slots: Arc<Slots>,
}

/// A thread of ours in one transition.
pub(crate) type FrontThread<'a> = Thread<'a, MappedStorage, Running<'a>>;

impl Mapped {
    /// Looks at the words, outside of any transition; kicks nobody.
    pub fn look<T>(
        &self,
        look: impl FnOnce(&Controller<'_, MappedStorage, Running<'_>>) -> T,
    ) -> T {
        look(&self.plane.controller_on(&self.plane.host().run()))
    }
}

/// What the next daemon has to be told, beside the vCPUs.
pub(crate) struct Topology {
    /// Who is to execute, as the VMM wants it.
    pub wanted: Executor,
    /// Who does: the same, but for a daemon that asked for demotion.
    pub executor: Executor,
    /// The daemon asked for it: only another daemon can promote.
    pub demoted: bool,
    /// QUIESCEs of the VMM that are in force.
    pub quiesced: u64,
    /// Device features that the daemon was told, and LOG_ALL if it can log.
    pub features: u64,
    /// Who reads the irqfds, from the moment they were handed over.
    pub irqfds_at: Executor,
    /// The shared memory; none before the first handshake.
    pub shm: Option<Shm>,
}

impl Topology {
    /// Who may execute if the VMM wants `to`: a daemon that has asked for remote mode gets it.
    pub fn allowed(&self, to: Executor) -> Executor {
        if self.demoted { Executor::Daemon } else { to }
    }
}

/// A wait for the gate so far.
#[derive(Default)]
pub(crate) struct GateWait {
    count: u32,
    /// When it began, or when the daemon was last asked about.
    asked: Option<Instant>,
}

pub(crate) struct Core {
    pub options: Options,
    pub geometry: Geometry,
    pub ram: Arc<dyn Ram>,
    pub kick: Kick,
    pub main: Channel,
    pub vcpus: RwLock<BTreeMap<u32, Arc<VcpuState>>>,
    pub topology: Mutex<Topology>,
    /// Where daemons mark the pages that they write, while they are to. A leaf lock; changed with the topology's held.
    pub log: Mutex<Option<Arc<SharedLog>>>,
    pub mapped: OnceLock<Mapped>,
    pub intake: Intake,
    pub signals: Arc<Signals>,
    /// Where the run words are, once there is shared memory.
    run_page: OnceLock<RunPage>,
    dead: Arc<AtomicU64>,
    /// The daemon executes; for the watch thread, which must not take the topology lock.
    remote: AtomicBool,
    /// The first daemon held the memory of a VMM before this one.
    pub adopted: AtomicBool,
    pub fences: Fences,
}

impl Core {
    pub fn new(options: Options, ram: Arc<dyn Ram>, kick: Kick) -> Result<Self, Error> {
        let geometry = options
            .machine
            .geometry()
            .ok_or_else(|| Error::Invalid("the machine's numbers are out of range".to_owned()))?;
        let signals = Arc::new(Signals::new()?);
        // What sends everything executes nothing.
        let executor = match options.forward_all {
            true => Executor::Daemon,
            false => options.executor,
        };
        Ok(Self {
            geometry,
            ram,
            kick,
            main: Channel::new(signals.clone()),
            vcpus: RwLock::new(BTreeMap::new()),
            topology: Mutex::new(Topology {
                wanted: executor,
                executor,
                demoted: false,
                quiesced: 0,
                features: 0,
                irqfds_at: executor,
                shm: None,
            }),
            log: Mutex::new(None),
            mapped: OnceLock::new(),
            intake: Intake::new(executor == Executor::FrontEnd)?,
            signals,
            run_page: OnceLock::new(),
            dead: Arc::new(AtomicU64::new(0)),
            remote: AtomicBool::new(executor == Executor::Daemon),
            adopted: AtomicBool::new(false),
            fences: Fences::new(),
            options,
        })
    }

    /// There is shared memory: the run words can be written from now on.
    pub fn show_in(&self, shm: &Shm) {
        if self.run_page.get().is_none()
            && let Ok(page) = RunPage::of(shm)
        {
            outage::introduce(&page, &self.options.name, std::process::id());
            let _ = self.run_page.set(page);
        }
    }

    /// Changes run words. Takes no lock: a caller of a daemon that hangs may hold the topology's.
    pub fn show(&self, change: impl FnOnce(&RunPage, Duration)) {
        if let Some(page) = self.run_page.get() {
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Into::into);
            change(page, now);
        }
    }

    /// Hears how the daemon does, from every channel.
    pub fn watcher(&self) -> Arc<dyn Watcher> {
        self.signals.clone()
    }

    /// The daemon executes.
    pub fn is_remote(&self) -> bool {
        // Relaxed: says when to ask the daemon, no more.
        self.remote.load(Ordering::Relaxed)
    }

    pub fn set_remote(&self, remote: bool) {
        self.remote.store(remote, Ordering::Relaxed);
    }

    /// Maps the pages, if they are not mapped yet.
    pub fn ensure_mapped(&self, shm: &Shm) -> Result<&Mapped, Error> {
        if let Some(mapped) = self.mapped.get() {
            return Ok(mapped);
        }
        let storage = shm::map(shm, &self.options.machine)?;
        self.store_dead(&storage);
        self.fences.apply(&storage);
        let dead = Arc::clone(&self.dead);
        let doubt: Arc<dyn Fn() + Send + std::marker::Sync> = {
            let signals = Arc::clone(&self.signals);
            Arc::new(move || signals.doubt_any())
        };
        let host = FrontHost::new(Arc::clone(&self.ram), Arc::clone(&self.kick), dead, doubt);
        let plane = Plane::on(storage, host, self.options.machine, shm.geometry);
        let slots = Slots::new(self.geometry.epochs());
        Ok(self.mapped.get_or_init(|| Mapped { plane, slots }))
    }

    /// The daemon that is about to begin fences our threads where it waits for them, or does not.
    pub fn leave_fences_to_daemon(&self, leave: bool) -> Result<(), Error> {
        let storage = self.mapped.get().map(|mapped| mapped.plane.storage());
        let patience = self.options.watch.message;
        self.fences.leave(leave, storage, patience)
    }

    /// Runs a transition here, waiting while the gate is latched, unless `channel` is cancelled. `None`: it
    /// must be sent.
    #[inline(always)]
    pub fn local<T>(
        &self,
        channel: &Channel,
        mut transition: impl FnMut(&FrontThread<'_>) -> Outcome<T>,
    ) -> Result<Option<T>, Error> {
        let Some(mapped) = self.mapped.get() else {
            return Ok(None);
        };
        if self.options.forward_all {
            return Ok(None);
        }
        match self.run_once(mapped, &mut transition) {
            Outcome::Done(value) => Ok(Some(value)),
            Outcome::Elsewhere => Ok(None),
            Outcome::Latched => self.local_later(channel, mapped, transition),
        }
    }

    /// As `local`, but once: `None` also if the gate is latched.
    #[inline(always)]
    fn try_local<T>(
        &self,
        mut transition: impl FnMut(&FrontThread<'_>) -> Outcome<T>,
    ) -> Option<T> {
        let mapped = self.mapped.get().filter(|_| !self.options.forward_all)?;
        match self.run_once(mapped, &mut transition) {
            Outcome::Done(value) => Some(value),
            Outcome::Elsewhere | Outcome::Latched => None,
        }
    }

    #[inline(always)]
    fn run_once<T>(
        &self,
        mapped: &Mapped,
        transition: &mut impl FnMut(&FrontThread<'_>) -> Outcome<T>,
    ) -> Outcome<T> {
        let plane = &mapped.plane;
        let running = plane.host().run();
        let in_epoch = |epoch| transition(&plane.thread_on(&running, epoch));
        let outcome = mapped.slots.with(in_epoch);
        if let Some(lisn) = running.deliver() {
            self.resample(lisn);
        }
        outcome
    }

    /// As `local`, for one that met a latched gate.
    #[cold]
    fn local_later<T>(
        &self,
        channel: &Channel,
        mapped: &Mapped,
        mut transition: impl FnMut(&FrontThread<'_>) -> Outcome<T>,
    ) -> Result<Option<T>, Error> {
        let mut wait = GateWait::default();
        loop {
            self.wait_for_gate(channel, &mut wait)?;
            match self.run_once(mapped, &mut transition) {
                Outcome::Done(value) => return Ok(Some(value)),
                Outcome::Elsewhere => return Ok(None),
                Outcome::Latched => {}
            }
        }
    }

    /// A machine-wide operation is under way, or the daemon died in one. Nothing signals its end (the
    /// gate is a word that the daemon stores), so the thread looks again, less and less often.
    #[cold]
    pub fn wait_for_gate(&self, channel: &Channel, wait: &mut GateWait) -> Result<(), Error> {
        channel::may_wait()?;
        if let Some(error) = channel.shut_error() {
            return Err(error);
        }
        if channel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match wait.count {
            0..64 => std::thread::yield_now(),
            n => std::thread::sleep(Duration::from_micros(20 << ((n - 64) / 16).min(6))),
        }
        wait.count = wait.count.saturating_add(1);
        let asked = wait.asked.get_or_insert_with(Instant::now);
        if asked.elapsed() >= self.options.watch.patience {
            // Quiesced by the VMM, most often; or the daemon hangs in a machine-wide operation.
            self.signals.doubt_any();
            wait.asked = None;
        }
        Ok(())
    }

    /// Writes the resamplefds of a source: its level from irqfds has fallen by an EOI.
    #[cold]
    fn resample(&self, lisn: u32) {
        self.intake.resample(lisn);
        if let Some(mapped) = self.mapped.get() {
            mapped.look(|c| c.resampled(lisn));
        }
    }

    /// Makes up for resamplefds that an executor left due when it died.
    pub fn resample_all_due(&self) {
        let Some(mapped) = self.mapped.get() else {
            return;
        };
        for lisn in self.intake.levels() {
            if mapped.look(|c| c.resample_due(lisn)) {
                self.resample(lisn);
            }
        }
    }

    pub fn trigger(&self, lisn: u32) -> Result<(), Error> {
        match self.local(&self.main, move |thread| thread.trigger(lisn))? {
            Some(()) => Ok(()),
            None => self.ask(&Trigger { lisn, zero: 0 }),
        }
    }

    /// A level irqfd had a count.
    fn assert(&self, irqfd: &Irqfd) -> Result<(), Error> {
        let (lisn, input) = (irqfd.lisn, LevelInput::Irqfd);
        let ran = self.local(&self.main, move |thread| {
            thread.set_level(lisn, input, true)
        })?;
        if ran.is_none() {
            // The executor has changed in this moment: the count is the daemon's to read.
            irqfd.trigger.signal();
        }
        Ok(())
    }

    pub fn set_level(&self, lisn: u32, level: bool) -> Result<(), Error> {
        let input = LevelInput::Vmm;
        let ran = self.local(&self.main, move |thread| {
            thread.set_level(lisn, input, level)
        })?;
        match ran {
            Some(()) => Ok(()),
            None => self.ask(&SetLevel {
                lisn,
                level: u32::from(level),
            }),
        }
    }

    /// A request on the main channel, over as many daemons as it takes.
    pub fn ask<R: Request>(&self, request: &R) -> Result<R::Reply, Error> {
        self.main.call(request, &[]).map(|(reply, _)| reply)
    }

    /// A request that the next handshake makes superfluous.
    pub fn ask_session<R: Request>(
        &self,
        request: &R,
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, Error> {
        let answer = self.main.send(Patience::ThisSession, request, fds)?;
        Ok(answer.session)
    }

    /// Every vCPU, in order.
    pub fn all_vcpus(&self) -> Vec<Arc<VcpuState>> {
        read(&self.vcpus).values().cloned().collect()
    }

    /// Every line may have changed.
    pub fn kick_all(&self) {
        for vcpu in self.all_vcpus() {
            vcpu.look_again();
            (self.kick)(vcpu.server());
        }
    }

    /// No channel has a daemon.
    pub fn all_down(&self) {
        self.main.down(u64::MAX);
        for vcpu in self.all_vcpus() {
            vcpu.channel().down(u64::MAX);
        }
    }

    /// Channels get a daemon no more, but one that waits for a reply may still have it.
    pub fn all_detached(&self) {
        self.main.detach();
        for vcpu in self.all_vcpus() {
            vcpu.channel().detach();
        }
    }

    /// No channel will have one any more.
    pub fn shut(&self, why: &Shut) {
        self.main.shut(why.clone());
        for vcpu in self.all_vcpus() {
            vcpu.channel().shut(why.clone());
        }
    }

    /// All daemons are dead up to the generation that the header has now.
    pub fn bury(&self, dead: u64) {
        // Relaxed: see `FrontHost::is_dead`.
        self.dead.fetch_max(dead, Ordering::Relaxed);
        if let Some(mapped) = self.mapped.get() {
            self.store_dead(mapped.plane.storage());
        }
    }

    fn store_dead<S: Storage>(&self, storage: &S) {
        let dead = self.dead.load(Ordering::Relaxed);
        // Release pairs with the next daemon's Acquire; the front-end itself reads its own copy.
        storage
            .page(Page::Run(run::DEAD_GENERATION))
            .store(dead, Ordering::Release);
    }
}

impl Sink for Core {
    fn trigger_here(&self, irqfd: &Irqfd) -> bool {
        let lisn = irqfd.lisn;
        self.try_local(|thread| thread.trigger(lisn)).is_some()
    }

    fn trigger(&self, irqfd: &Irqfd) {
        let lisn = irqfd.lisn;
        let done = match irqfd.resample {
            None => Core::trigger(self, lisn),
            Some(_) => self.assert(irqfd),
        };
        if let Err(e) = done {
            log::warn!("an event of the irqfd of source {lisn:#x} is lost: {e}");
        }
    }

    fn kicked(&self, server: u32) {
        if let Some(vcpu) = read(&self.vcpus).get(&server) {
            vcpu.look_again();
        }
        (self.kick)(server);
    }
}

/// Takes the topology lock for as long as one session lasts, again and again until `step` has run in one.
pub(crate) fn in_one_session<T>(
    core: &Core,
    mut step: impl FnMut(&mut Topology) -> Result<T, Error>,
) -> Result<T, Error> {
    loop {
        core.main.wait_up()?;
        match step(&mut lock(&core.topology)) {
            Err(Error::Lost) => {}
            other => return other,
        }
    }
}
