//! HELLO to START: who is there, which machine, whose memory; and recovery (protocol.md "After a crash").

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use papr_intc_protocol::Versions;
use papr_intc_protocol::layout::geometry::{MAX_SERVERS, MAX_SOURCES};
use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word};
use papr_intc_protocol::layout::words::{cursor, source};
use papr_intc_protocol::layout::{AtomicWord, Machine, Page, Storage};
use papr_intc_protocol::plane::{Host, Plane};
use papr_intc_protocol::versions::highest_common;
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::{MAX_BODY, MAX_FDS, Text};
use std::sync::atomic::Ordering;

use super::host::DaemonHost;
use super::journal::{Operation, Ticket};
use super::{Control, Core, Refused};
use crate::memory::staged::Staged;
use crate::memory::{QueueMemory, Said, SharedMemory};

impl<M: QueueMemory + Clone> Control<M> {
    /// [`state`] as HELLO and the config block report it.
    pub fn phase(&self) -> u32 {
        match (&self.machine, self.started) {
            (_, true) => state::SERVING,
            (Some(_), false) => state::WANTS_MEMORY,
            (None, false) => state::COLD,
        }
    }

    /// Generation of the memory that we hold, 0 if none.
    pub fn generation(&self) -> u64 {
        self.core.as_ref().map_or(0, |c| c.memory.generation)
    }

    pub(super) fn hello(&mut self, hello: &Hello) -> Result<HelloReply, Refused> {
        let v = &self.versions;
        let refused = |what: &str, min: u16, max: u16, ours: String| {
            let text = format!("this daemon speaks {what} {ours}, the front-end {min} to {max}");
            Refused::Version(text)
        };
        let (min, max) = (hello.protocol_min, hello.protocol_max);
        let protocol = v.common_protocol(min, max).ok_or_else(|| {
            let ours = format!("{} to {}", v.protocol_min, v.protocol_max);
            refused("protocol", min, max, ours)
        })?;
        let (min, max) = (hello.layout_min, hello.layout_max);
        // Memory that is there stays as it is; new memory gets what both understand.
        let ours = match &self.core {
            Some(core) => (core.layout(), core.layout()),
            None => v.layouts(),
        };
        let layout = highest_common(ours, (min, max)).ok_or_else(|| {
            let ours = format!("{} to {}", ours.0, ours.1);
            refused("layout", min, max, ours)
        })?;
        let maps = hello.plane_abi == v.plane || hello.plane_abi == 0;
        log::info!(
            "front-end {:?} connected, plane ABI {}",
            hello.name.0,
            hello.plane_abi
        );
        let features = hello.features & v.features_here();
        let version = Text(v.build.into());
        self.layout = layout;
        Ok(HelloReply {
            protocol,
            layout,
            verdict: if maps { verdict::MAP } else { verdict::DEMOTE },
            features,
            max_body: MAX_BODY as u32,
            max_fds: MAX_FDS as u32,
            max_sources: MAX_SOURCES,
            max_servers: MAX_SERVERS,
            state: self.phase(),
            generation: self.generation(),
            version,
        })
    }

    pub(super) fn set_machine(&mut self, set: &SetMachine) -> Result<SetMachine, Refused> {
        let machine = Machine::from_words(set.words)
            .ok_or_else(|| Refused::Value("the machine's words make no machine".into()))?;
        self.check_machine(&machine)?;
        if !machine.ram_shared && machine.ic_mode.has_xive() {
            let why = "XIVE needs guest RAM that is shared with the daemon";
            return Err(Refused::Unsupported(why));
        }
        self.machine = Some(machine);
        Ok(SetMachine {
            words: machine.to_words(),
        })
    }

    /// The machine is the one that the command line and an earlier SET_MACHINE asked for, if they did.
    fn check_machine(&self, machine: &Machine) -> Result<(), Refused> {
        let e = &self.expected;
        let wanted = Machine {
            ic_mode: e.ic_mode.unwrap_or(machine.ic_mode),
            compat: e.compat.unwrap_or(machine.compat),
            servers: e.servers.unwrap_or(machine.servers),
            sources: e.sources.unwrap_or(machine.sources),
            ..*machine
        };
        let first = self.machine.unwrap_or(wanted);
        let difference = wanted
            .difference(machine)
            .or_else(|| first.difference(machine));
        difference.map_or(Ok(()), |d| Err(Refused::MachineDiffers(d)))
    }

    /// GET_SHM: the memory, made now if there is none. The memfd goes with the reply.
    pub(super) fn get_shm(&mut self) -> Result<(ShmInfo, OwnedFd), Refused> {
        if self.core.is_none() {
            let machine = self
                .machine
                .ok_or(Refused::Phase("GET_SHM before SET_MACHINE"))?;
            let memory = SharedMemory::create(machine, &self.versions, self.layout)?;
            let core = self.core_on(memory);
            core.prepare();
            self.core = Some(core);
        }
        let core = self.memory_core()?;
        let fd = core.memory.file().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| Refused::Os {
            what: "duplicating the memfd",
            source,
        })?;
        let geometry = core.plane.geometry();
        let info = ShmInfo {
            layout: core.layout().into(),
            zero: 0,
            generation: core.memory.generation,
            size: geometry.size(),
            tables_size: geometry.tables_size(),
            pages_size: geometry.pages_size(),
        };
        Ok((info, fd))
    }

    /// SET_SHM: take over what a dead predecessor left, or what we hold already.
    pub(super) fn set_shm(&mut self, set: &SetShm, fd: OwnedFd) -> Result<SetShmReply, Refused> {
        self.check_layout(set)?;
        if let Some(core) = &self.core {
            if !same_file(&fd, core.memory.file())? {
                return Err(Refused::Phase("this daemon holds another memory"));
            }
            let generation = core.memory.generation;
            return Ok(SetShmReply {
                generation,
                start_count: core.memory.start_count(),
            });
        }
        let memory = SharedMemory::adopt(fd, said(set), &self.versions, |machine| {
            self.check_machine(machine)
        })?;
        let reply = SetShmReply {
            generation: memory.generation,
            start_count: memory.start_count(),
        };
        self.machine = Some(memory.machine);
        self.core = Some(self.core_on(memory));
        Ok(reply)
    }

    pub(super) fn check_shm(&self, check: &CheckShm, fd: OwnedFd) -> CheckShmReply {
        let verdict = self
            .check_layout(&check.shm)
            .and_then(|()| Ok(SharedMemory::check(fd, said(&check.shm), &self.versions)?))
            .and_then(|machine| self.check_machine(&machine));
        match verdict {
            Ok(()) => CheckShmReply {
                errno: 0,
                text: Text::default(),
            },
            Err(e) => CheckShmReply {
                errno: e.errno() as u32,
                text: Text(e.to_string()),
            },
        }
    }

    fn check_layout(&self, set: &SetShm) -> Result<(), Refused> {
        let (v, layout) = (&self.versions, set.layout);
        if v.knows_layout(layout) {
            return Ok(());
        }
        let (lowest, highest) = (v.layout_min, v.layout);
        let text =
            format!("the memory has layout {layout}, this daemon knows {lowest} to {highest}");
        Err(Refused::Version(text))
    }

    fn core_on(&self, memory: SharedMemory) -> Core<M> {
        let storage = memory.storage.clone();
        let host = DaemonHost::new(self.ram.clone(), storage.clone(), memory.generation);
        let geometry = *storage.geometry();
        let plane = Plane::on(Staged::new(storage), host, memory.machine, geometry);
        Core { memory, plane }
    }

    pub(super) fn start(&mut self, start: &Start) -> Result<StartReply, Refused> {
        let executor = executor_of(start.executor)
            .ok_or_else(|| Refused::Value("START names no executor".into()))?;
        if self.started {
            return Err(Refused::Phase("the daemon has been started already"));
        }
        let core = self.memory_core()?;
        core.plane.host().mark_last_page();
        if self.bereaved {
            core.bury_front_end();
        }
        core.distrust();
        let (redone, in_doubt) = core.recover();
        core.raise_flags(&self.versions);
        let gate = if core.depth() == 0 {
            Gate::Open
        } else {
            Gate::Latch
        };
        core.set_state(State {
            gate,
            executor,
            ..core.state()
        });
        core.make_up_for_irqfds();
        let resignalled = core.resignal();
        core.memory.set_header(word::START_COUNT, 0);
        let generation = core.memory.generation;
        // Threads of the VMM may be latching still, if the predecessor died inside a barrier.
        self.reopening = (gate == Gate::Open).then(|| core.grace());
        self.started = true;
        self.bereaved = false;
        log::info!("serving: generation {generation}, executor {executor:?}, {redone} redone");
        Ok(StartReply {
            redone,
            resignalled,
            in_doubt,
            zero: 0,
        })
    }
}

impl<M: QueueMemory> Core<M> {
    /// The mode after power-on and reset.
    pub(super) fn initial_mode(&self) -> Mode {
        if self.machine().ic_mode.has_xics() {
            Mode::Xics
        } else {
            Mode::Xive
        }
    }

    /// Fresh memory: every word as after power-on, the IPIs claimed, the gate closed.
    fn prepare(&self) {
        let c = self.controller();
        c.xics.create();
        for lisn in 0..c.geometry.sources() {
            c.xive.reset_source(lisn);
        }
        for end in 0..c.geometry.ends() {
            c.xive.reset_end(end);
        }
        for server in 0..c.geometry.servers() {
            c.xive.disconnect(server);
        }
        if c.machine.ic_mode.has_xive() {
            self.claims().mark(0, c.geometry.servers(), 0);
            (0..c.geometry.servers()).for_each(|ipi| c.xive.claim(ipi, false));
        }
        let mode = self.initial_mode();
        let executor = Executor::FrontEnd;
        self.set_state(State {
            mode,
            gate: Gate::Closed,
            executor,
            cas_xive: false,
        });
    }

    /// What this build does to the memory from now on, for those who take it over.
    fn raise_flags(&self, versions: &Versions) {
        for (w, flags) in [
            (word::COMPAT_FLAGS, versions.compat_flags),
            (word::INCOMPAT_FLAGS, versions.incompat_used),
        ] {
            let raised = self.memory.header(w);
            if flags & !raised != 0 {
                self.memory.set_header(w, raised | flags);
            }
        }
    }

    /// Finishes what a dead predecessor had under way. Returns how many operations were redone and
    /// how many sources were in doubt. Can itself be cut and done again.
    fn recover(&self) -> (u32, u32) {
        let c = self.controller();
        let committed = u32::from(self.exact().recover());
        let claims = self.claims();
        let redone = claims.claimed().filter(|lisn| c.xive.redo_forward(*lisn));
        let in_doubt = redone.count() as u32;
        // While XIVE is active nothing is presented by XICS.
        if self.depth() == 0 && c.state.mode == Mode::Xics {
            c.xics.recover();
        } else {
            c.xics.take_back();
        }
        let Some((ticket, operation)) = self.journal().open() else {
            self.loading(false);
            return (committed, in_doubt);
        };
        log::info!("recovering: {operation:?} of channel {}", ticket.channel);
        if !self.is_possible(ticket, operation) {
            log::error!("the journal is damaged, its operation is dropped");
            self.journal().abandon();
        } else if self.redo(operation) {
            self.journal().finish(ticket);
        } else {
            self.journal().abandon();
        }
        self.loading(false);
        (committed + 1, in_doubt)
    }

    /// What a predecessor may have read from an irqfd that nobody handed to us, and the resamplefds that it
    /// left due (if they are the front-end's, it looks for itself).
    fn make_up_for_irqfds(&self) {
        if let Some(lisn) = self.exact().doubtful() {
            // The word comes from shared memory.
            let claims = self.claims();
            if lisn < self.machine().sources && claims.is_claimed(lisn) {
                let is_level = self.claims().is_lsi(lisn);
                self.run(|| self.event(lisn, is_level));
            }
            self.exact().doubt_over();
        }
        if self.is_alone() {
            let (c, claims) = (self.controller(), self.claims());
            let due = claims.lsis().filter(|lisn| c.resample_due(*lisn));
            due.for_each(|lisn| self.plane.host().resample(lisn));
        }
    }

    /// The VMM that ran transitions is gone, with all its threads: their epochs are over, their END
    /// locks free. A forward of theirs runs again; it may queue its event twice.
    fn bury_front_end(&self) {
        let (storage, geometry) = (self.plane.storage(), self.plane.geometry());
        for epoch in 0..geometry.epochs() {
            // Nobody else is left to write these words; Release as uniform with the owner's store.
            storage.page(Page::Epoch(epoch)).store(0, Ordering::Release);
        }
        for end in 0..geometry.ends() {
            let cursor = storage.page(Page::EndCursor(end));
            // AcqRel: takes over what the dead holder stored under the lock.
            cursor.fetch_and(!cursor::LOCK, Ordering::AcqRel);
        }
        self.redo_forwards();
    }

    /// The journal comes from shared memory: it may name what the machine does not have. Queues and
    /// routings are checked where they are redone.
    fn is_possible(&self, ticket: Ticket, operation: Operation) -> bool {
        let numbers = match operation {
            Operation::Claim { first, count, .. } | Operation::Free { first, count } => {
                self.claims().check_range(first, count)
            }
            Operation::Queue { .. } | Operation::Route { .. } | Operation::Load => Ok(()),
        };
        ticket.channel <= self.machine().servers && numbers.is_ok()
    }

    /// `true` if the operation is complete now, `false` if it never happened.
    fn redo(&self, operation: Operation) -> bool {
        match operation {
            Operation::Queue { end, selector } => {
                // Acquire pairs with the commit's Release.
                end < self.plane.geometry().ends()
                    && (self
                        .plane
                        .storage()
                        .page(Page::EndCursor(end))
                        .load(Ordering::Acquire)
                        & cursor::SEL
                        != 0)
                        == selector
            }
            Operation::Claim {
                first,
                count,
                flags,
            } => {
                self.claim_both(first, count, flags);
                true
            }
            Operation::Free { first, count } => self.free_both(first, count).is_ok(),
            Operation::Route { irq, to } => self.controller().xics.write(irq, to).is_ok(),
            Operation::Load => {
                self.is_loaded() || {
                    self.back_to_reset();
                    false
                }
            }
        }
    }

    /// Forwards that died with the VMM run again. Each may queue its event twice.
    fn redo_forwards(&self) {
        const FORWARDS: u64 = source::FORWARDS | source::DAEMON_FORWARD;
        let c = self.controller();
        for lisn in self.claims().claimed() {
            let word = self.plane.storage().page(Page::Source(lisn));
            // AcqRel: nobody else executes; uniform with the source's other swaps.
            if word.fetch_and(!FORWARDS, Ordering::AcqRel) & FORWARDS != 0 {
                // Busy: only a VMM that scribbles over a cursor; the event stays with its source.
                let _ = c.xive.route(lisn);
            }
        }
    }

    /// After recovery: signals every line that is up. What was latched is replayed when the gate has
    /// opened.
    fn resignal(&self) -> u32 {
        let c = self.controller();
        let lines = (0..c.geometry.servers()).filter(|s| c.line(*s));
        lines
            .inspect(|server| self.plane.host().kick(*server))
            .count() as u32
    }
}

/// START and RESUME name executors by number.
pub(super) fn executor_of(number: u32) -> Option<Executor> {
    match number {
        executor::FRONT_END => Some(Executor::FrontEnd),
        executor::DAEMON => Some(Executor::Daemon),
        _ => None,
    }
}

fn said(set: &SetShm) -> Said {
    Said {
        layout: set.layout,
        generation: set.generation,
        size: set.size,
    }
}

fn same_file(fd: &OwnedFd, file: &File) -> Result<bool, Refused> {
    use std::os::unix::fs::MetadataExt;
    let os = |source| Refused::Os {
        what: "looking at the memfd",
        source,
    };
    let theirs = File::from(fd.try_clone().map_err(os)?)
        .metadata()
        .map_err(os)?;
    let ours = file.metadata().map_err(os)?;
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}
