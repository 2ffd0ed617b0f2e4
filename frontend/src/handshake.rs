//! The whole handshake with a daemon, first or restarted: a function of what the VMM has asked for so
//! far (SPEC.md §1.4; protocol "after a crash", steps 5 to 11). It is never resumed in part: any
//! failure means another daemon and the whole of it again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::header::Executor;
use papr_intc_protocol::wire::handshake::{
    CheckShm, GetShm, Hello, HelloReply, SetMachine, Start, StartReply, executor, feature, verdict,
};
use papr_intc_protocol::wire::machine::{Quiesce, Resume};
use papr_intc_protocol::wire::source::{IrqfdItem, SetIrqfds, irqfd_kind};
use papr_intc_protocol::wire::vcpu::{VcpuChannel, VcpuConnect, WATCH};
use papr_intc_protocol::wire::{MAX_FDS, Request, Text};

use crate::connection::{Connection, ONE_TICK};
use crate::core::{Core, Topology};
use crate::dirty_log;
use crate::error::Error;
use crate::event::Event;
use crate::io_thread::Irqfd;
use crate::shm::{OWN, Shm};
use crate::standard::{LOG_ALL, Standard};
use crate::sync::lock;
use crate::vcpu::VcpuState;

/// A vCPU with the new connection of its channel.
type Opened = (Arc<VcpuState>, Arc<Connection>);

/// What the first half of a handshake found.
pub(crate) struct Introduced {
    verdict: u32,
    /// Generation of the memory that the daemon holds, 0 if none.
    held: u64,
    /// As [`Topology::features`].
    features: u64,
    /// It fences our threads where it waits for them.
    fences: bool,
}

/// What a handshake achieved.
pub(crate) struct Established {
    /// Of the daemon, in the header.
    pub generation: u64,
    /// A channel for every vCPU.
    pub channels: Vec<Opened>,
    /// The channel for PINGs.
    pub watch: Option<Connection>,
    /// What START found to do.
    pub counts: StartReply,
    /// The executor is another one than under the daemon before.
    pub turned: Option<Turned>,
}

/// How the executor changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// From the front-end to the daemon.
    Demoted,
    /// Back.
    Promoted,
}

/// A handshake under way.
struct Handshake<'a> {
    core: &'a Core,
    connection: &'a Connection,
}

/// The first half: who is there, which machine, whose RAM. Takes nothing over: it may be spoken with a
/// daemon that is started beside the one that serves.
pub(crate) fn introduce(
    core: &Core,
    topology: &mut Topology,
    connection: &Connection,
) -> Result<Introduced, Error> {
    let shake = Handshake { core, connection };
    let features = shake.standard().negotiate()?;
    let hello = shake.hello(topology)?;
    shake.machine()?;
    if core.options.machine.ram_shared {
        shake.standard().set_mem_table(&*core.ram)?;
    }
    if lock(&core.log).is_some() && features & LOG_ALL == 0 {
        return Err(Error::Unfit("it cannot log dirty pages".to_owned()));
    }
    Ok(Introduced {
        verdict: hello.verdict,
        held: hello.generation,
        features,
        fences: hello.features & core.fences.features() & feature::MEMBARRIER != 0,
    })
}

/// CHECK_SHM: would this daemon take the memory over?
pub(crate) fn check_memory(
    core: &Core,
    topology: &Topology,
    connection: &Connection,
) -> Result<(), Error> {
    let Some(shm) = &topology.shm else {
        return Ok(());
    };
    let shake = Handshake { core, connection };
    let request = CheckShm { shm: shm.request() };
    let (verdict, _) = shake.ask(&request, &[shm.memfd.as_fd()])?;
    if verdict.errno == 0 {
        return Ok(());
    }
    Err(Error::Refused {
        request: CheckShm::NAME,
        errno: verdict.errno as i32,
        text: verdict.text.0,
    })
}

/// The second half, up to START. The caller holds the topology lock until the channels are up.
pub(crate) fn establish(
    core: &Core,
    topology: &mut Topology,
    connection: &Connection,
    introduced: Introduced,
) -> Result<Established, Error> {
    let shake = Handshake { core, connection };
    // Of the last handshake that succeeded, or as the VMM has changed it since.
    let was_remote = core.is_remote();
    // A daemon that distrusts the front-end's plane is obeyed, for as long as it serves.
    topology.demoted = introduced.verdict == verdict::DEMOTE;
    topology.executor = match topology.demoted {
        true => Executor::Daemon,
        false => topology.wanted,
    };
    if topology.shm.is_none() && introduced.held != 0 {
        // Relaxed: nobody has this controller yet.
        core.adopted.store(true, Ordering::Relaxed);
    }
    topology.features = introduced.features;
    core.leave_fences_to_daemon(introduced.fences)?;
    // As it is now: the introduction of an upgrade may be old. Before START, which is when it writes first.
    let log = lock(&core.log).clone();
    if let Some(log) = &log {
        dirty_log::tell(core, topology.features, Some(log), &shake.standard())?;
    }
    shake.memory(topology)?;
    let channels = shake.vcpus()?;
    let watch = shake.watch()?;
    let counts = shake.start_as(topology)?;
    let turned = match (was_remote, topology.executor) {
        (false, Executor::Daemon) => Some(Turned::Demoted),
        (true, Executor::FrontEnd) => Some(Turned::Promoted),
        _ => None,
    };
    if let Some(turned) = turned {
        log::warn!(
            "{turned:?}: the data plane is run by {:?}",
            topology.executor
        );
    }
    Ok(Established {
        generation: topology.shm.as_ref().map_or(0, Shm::generation),
        channels,
        watch,
        counts,
        turned,
    })
}

impl Handshake<'_> {
    fn standard(&self) -> Standard<'_> {
        Standard {
            connection: self.connection,
            go_on: ONE_TICK,
        }
    }

    fn ask<R: Request>(
        &self,
        request: &R,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(R::Reply, Vec<OwnedFd>), Error> {
        let seq = self.core.main.next_seq();
        self.connection.exchange(seq, 0, request, fds)
    }

    fn hello(&self, topology: &Topology) -> Result<HelloReply, Error> {
        let request = Hello {
            protocol_min: OWN.protocol_min,
            protocol_max: OWN.protocol_max,
            layout_min: OWN.layout_min,
            layout_max: OWN.layout,
            // In remote mode too: the VMM may want mapped mode later, under this daemon.
            plane_abi: OWN.plane,
            zero: 0,
            features: self.core.fences.features(),
            generation: topology.shm.as_ref().map_or(0, Shm::generation),
            name: Text(self.core.options.name.clone()),
        };
        let (hello, _) = self.ask(&request, &[])?;
        let spoken = OWN
            .common_protocol(hello.protocol, hello.protocol)
            .is_some();
        if !spoken || !OWN.knows_layout(hello.layout.into()) {
            let ((low, high), chosen) = (OWN.layouts(), (hello.protocol, hello.layout));
            return Err(Error::Unfit(format!(
                "it chose protocol {} and layout {}; this front-end has {} to {} and {low} to {high}",
                chosen.0, chosen.1, OWN.protocol_min, OWN.protocol_max
            )));
        }
        log::debug!("papr-intc {}, state {}", hello.version.0, hello.state);
        Ok(hello)
    }

    fn machine(&self) -> Result<(), Error> {
        let words = self.core.options.machine.to_words();
        self.ask(&SetMachine { words }, &[]).map(|_| ())
    }

    /// The first daemon hands out the memory, new or that of a VMM before us; every later one is handed it.
    fn memory(&self, topology: &mut Topology) -> Result<(), Error> {
        let core = self.core;
        let shm = match &topology.shm {
            Some(shm) => {
                self.ask(&shm.request(), &[shm.memfd.as_fd()])?;
                shm
            }
            None => {
                let (info, fds) = self.ask(&GetShm {}, &[])?;
                let shm = Shm::accept(&info, fds, &core.options.machine)?;
                // Who hands it out holds its lock: all that held it before are dead.
                core.bury(shm.generation().saturating_sub(1));
                topology.shm.insert(shm)
            }
        };
        if topology.executor == Executor::FrontEnd || core.options.forward_all {
            shm.check()?;
            core.ensure_mapped(shm)?;
        }
        Ok(())
    }

    /// Connects every vCPU with its eventfd, and opens its channel.
    fn vcpus(&self) -> Result<Vec<Opened>, Error> {
        let vcpus = self.core.all_vcpus();
        for batch in vcpus.chunks(MAX_FDS) {
            let servers = batch.iter().map(|v| v.server()).collect();
            let events: Vec<_> = batch.iter().map(|v| v.event().as_fd()).collect();
            self.ask(&VcpuConnect { servers }, &events)?;
        }
        let mut opened = Vec::with_capacity(vcpus.len());
        self.connection.pipeline(vcpus.into_iter().map(|vcpu| {
            let (request, ours, theirs) = channel_request(vcpu.server())?;
            opened.push((vcpu, Arc::new(Connection::plain(ours))));
            Ok((self.core.main.next_seq(), request, theirs.into()))
        }))?;
        Ok(opened)
    }

    /// SET_IRQFDS. A source that was freed while its irqfd was in place must not keep a daemon from
    /// serving all the others.
    fn irqfds(&self, irqfds: &[Irqfd]) -> Result<(), Error> {
        let send =
            |batch: &[Irqfd]| send_irqfds(batch, |request, fds| self.ask(request, fds).map(|_| ()));
        match send(irqfds) {
            Err(Error::Refused { .. }) => {}
            other => return other,
        }
        for one in irqfds.chunks(1) {
            match send(one) {
                Err(e @ Error::Refused { .. }) => log::warn!("an irqfd is left out: {e}"),
                other => other?,
            }
        }
        Ok(())
    }

    /// The channel for PINGs; a daemon that does not know it is watched for its end only.
    fn watch(&self) -> Result<Option<Connection>, Error> {
        let (request, ours, theirs) = channel_request(WATCH)?;
        match self.ask(&request, &[theirs.as_fd()]) {
            Ok(_) => Ok(Some(Connection::plain(ours))),
            Err(Error::Refused { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// START, irqfds before it if the daemon is to read them, and whatever a predecessor's end left open.
    fn start_as(&self, topology: &mut Topology) -> Result<StartReply, Error> {
        let core = self.core;
        let to = topology.executor;
        let shm = topology.shm.as_ref();
        let running = shm.is_some_and(|shm| shm.executor() == Some(Executor::FrontEnd));
        if to == Executor::Daemon {
            core.intake.pause();
        }
        let counts = if to == Executor::Daemon && running {
            // Threads of ours are inside transitions: they must have left before the daemon begins.
            let counts = self.start(Executor::FrontEnd)?;
            let deadline_ms = core.options.watch.message.as_millis() as u32 / 2;
            self.ask(
                &Quiesce {
                    deadline_ms,
                    zero: 0,
                },
                &[],
            )?;
            self.irqfds(&core.intake.irqfds())?;
            self.resume(executor::DAEMON)?;
            counts
        } else {
            if to == Executor::Daemon {
                self.irqfds(&core.intake.irqfds())?;
            }
            self.start(to)?
        };
        topology.irqfds_at = to;
        // A QUIESCE of an earlier handshake, cut by the end of its daemon.
        let depth = || topology.shm.as_ref().map_or(0, Shm::quiesce_depth);
        for _ in topology.quiesced..depth() {
            self.resume(executor_code(to))?;
        }
        if to == Executor::FrontEnd {
            core.intake.unpause()?;
            core.resample_all_due();
        }
        core.set_remote(to == Executor::Daemon);
        Ok(counts)
    }

    fn start(&self, by: Executor) -> Result<StartReply, Error> {
        let request = Start {
            executor: executor_code(by),
            flags: 0,
        };
        self.ask(&request, &[]).map(|(reply, _)| reply)
    }

    fn resume(&self, executor: u32) -> Result<(), Error> {
        self.ask(&Resume { executor, zero: 0 }, &[]).map(|_| ())
    }
}

/// An executor's number in messages.
pub(crate) fn executor_code(by: Executor) -> u32 {
    match by {
        Executor::FrontEnd => executor::FRONT_END,
        Executor::Daemon => executor::DAEMON,
    }
}

/// VCPU_CHANNEL: the request, our end and the daemon's.
pub(crate) fn channel_request(server: u32) -> Result<(VcpuChannel, UnixStream, UnixStream), Error> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::os("making a socket pair"))?;
    Ok((VcpuChannel { server, zero: 0 }, ours, theirs))
}

/// As SET_IRQFDS and CLEAR_IRQFDS name it.
pub(crate) fn irqfd_item(irqfd: &Irqfd) -> IrqfdItem {
    IrqfdItem {
        lisn: irqfd.lisn,
        kind: match irqfd.resample {
            None => irqfd_kind::EDGE,
            Some(_) => irqfd_kind::LEVEL,
        },
        input: irqfd.input,
        zero: 0,
    }
}

/// SET_IRQFDS in batches of one kind, one after the other.
pub(crate) fn send_irqfds(
    irqfds: &[Irqfd],
    send: impl Fn(&SetIrqfds, &[BorrowedFd<'_>]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (edges, levels): (Vec<&Irqfd>, Vec<&Irqfd>) =
        irqfds.iter().partition(|irqfd| irqfd.resample.is_none());
    let batches = edges.chunks(MAX_FDS).chain(levels.chunks(MAX_FDS / 2));
    for batch in batches {
        let items = batch.iter().map(|irqfd| irqfd_item(irqfd)).collect();
        let fds_of = |irqfd: &&'_ Irqfd| [Some(irqfd.trigger.clone()), irqfd.resample.clone()];
        let fds: Vec<Arc<Event>> = batch.iter().flat_map(fds_of).flatten().collect();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        send(&SetIrqfds { items }, &fds)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
