//! From a PAPR message to the function that serves it: one line each.

use std::os::fd::OwnedFd;
use std::time::Instant;

use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::*;
use papr_intc_protocol::wire::{MAIN_CHANNEL, REPLAY, Request, RequestHead, WATCH_CHANNEL, Wire};

use super::descriptors::check_eventfd;
use super::journal::Ticket;
use super::{Control, Core, Effect, Irqfd, Refused};
use crate::memory::QueueMemory;

/// A request as it came in.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// 0 the main socket, server + 1 a vCPU's channel, [`WATCH_CHANNEL`] the watch's.
    pub channel: u32,
    /// Message code.
    pub code: u32,
    /// Number and flags.
    pub head: RequestHead,
    /// What follows the head.
    pub payload: &'a [u8],
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// What a served request leads to.
#[derive(Debug, Default)]
pub struct Served {
    /// Payload of the reply; none while a barrier is under way.
    pub reply: Option<Vec<u8>>,
    /// Descriptors of the reply.
    pub fds: Vec<OwnedFd>,
    /// What the server has to do.
    pub effect: Option<Effect>,
}

impl Served {
    fn reply(payload: &impl Wire) -> Self {
        Self {
            reply: Some(payload.to_bytes()),
            ..Self::default()
        }
    }
}

fn no_fds(fds: &[OwnedFd]) -> Result<(), Refused> {
    match fds.len() {
        0 => Ok(()),
        found => Err(Refused::Descriptors {
            found,
            expected: "none",
        }),
    }
}

fn one_fd(mut fds: Vec<OwnedFd>) -> Result<OwnedFd, Refused> {
    match (fds.len(), fds.pop()) {
        (1, Some(fd)) => Ok(fd),
        (found, _) => Err(Refused::Descriptors {
            found,
            expected: "one",
        }),
    }
}

/// Requests that a vCPU's channel may carry.
fn on_vcpu_channel(code: u32) -> bool {
    matches!(
        code,
        Ping::CODE
            | VcpuReset::CODE
            | VcpuLine::CODE
            | SetLevel::CODE
            | Trigger::CODE
            | Sync::CODE
            | Hcall::CODE
            | Rtas::CODE
            | Cas::CODE
            | Mmio::CODE
    )
}

/// Requests that the watch channel may carry: they change nothing, so that they can be served at any time.
fn on_watch_channel(code: u32) -> bool {
    matches!(code, Ping::CODE | Query::CODE | Last::CODE)
}

/// Bytes of the replies that are kept, to be given again after a restart; `None` for requests whose
/// replies are not.
fn kept(code: u32) -> Option<usize> {
    match code {
        Hcall::CODE => Some(96),
        Rtas::CODE => Some(88),
        Mmio::CODE => Some(24),
        Claim::CODE | StateLoad::CODE => Some(8),
        Free::CODE | SetLevel::CODE | Trigger::CODE | VcpuReset::CODE => Some(0),
        _ => None,
    }
}

/// Requests that run transitions and nothing else: a daemon that executes alone commits them whole.
fn is_transition(code: u32) -> bool {
    matches!(
        code,
        Hcall::CODE | Rtas::CODE | Mmio::CODE | SetLevel::CODE | Trigger::CODE | VcpuReset::CODE
    )
}

impl<M: QueueMemory + Clone> Control<M> {
    /// Serves one request. After one without a reply, only [`Self::poll_barrier`] may be called until it
    /// has given the answer.
    pub fn serve(&mut self, incoming: Incoming<'_>, now: Instant) -> Result<Served, Refused> {
        self.served += 1;
        let ticket = Ticket {
            channel: incoming.channel,
            seq: incoming.head.seq,
        };
        let allowed = match incoming.channel {
            MAIN_CHANNEL => true,
            WATCH_CHANNEL => on_watch_channel(incoming.code),
            _ => on_vcpu_channel(incoming.code),
        };
        if !allowed {
            return Err(Refused::Phase("this request belongs on another channel"));
        }
        let code = incoming.code;
        let replayed = incoming.head.flags & REPLAY != 0;
        if let (true, Some(len)) = (replayed, kept(code))
            && let Ok(core) = self.core()
            && let Some(payload) = core.journal().replay(ticket)
            // Else the record is damaged, or of another request: this one has not been executed.
            && payload.len() == len
        {
            let reply = Some(payload);
            return Ok(Served {
                reply,
                ..Served::default()
            });
        }
        if is_transition(code) && self.core().is_ok_and(Core::is_alone) {
            return self.serve_alone(incoming, ticket, now);
        }
        let served = self.dispatch(incoming, ticket, now)?;
        if let (Some(_), Some(payload), Ok(core)) = (kept(code), &served.reply, self.core()) {
            let journal = core.journal();
            // What `finish` has recorded stays: taken back for a moment, a kill would run it again.
            if journal.last(ticket.channel) != ticket.seq {
                journal.record(ticket, payload);
                journal.abandon();
            }
        }
        Ok(served)
    }

    /// A transition of the only executor: with its reply on record, or not at all.
    fn serve_alone(
        &mut self,
        incoming: Incoming<'_>,
        ticket: Ticket,
        now: Instant,
    ) -> Result<Served, Refused> {
        self.core()?.exact().begin();
        let served = self.dispatch(incoming, ticket, now);
        let exact = self.core()?.exact();
        match &served {
            Ok(Served {
                reply: Some(payload),
                ..
            }) => exact.commit(Some((ticket, payload))),
            _ => exact.abort(),
        }
        served
    }

    fn dispatch(
        &mut self,
        incoming: Incoming<'_>,
        ticket: Ticket,
        now: Instant,
    ) -> Result<Served, Refused> {
        let Incoming {
            code, payload, fds, ..
        } = incoming;
        // Requests that carry descriptors.
        match code {
            SetShm::CODE => {
                let request = SetShm::from_bytes(payload)?;
                return self
                    .set_shm(&request, one_fd(fds)?)
                    .map(|r| Served::reply(&r));
            }
            CheckShm::CODE => {
                let request = CheckShm::from_bytes(payload)?;
                return Ok(Served::reply(&self.check_shm(&request, one_fd(fds)?)));
            }
            VcpuConnect::CODE => {
                let request = VcpuConnect::from_bytes(payload)?;
                return self.vcpu_connect(&request, fds).map(|r| Served::reply(&r));
            }
            VcpuChannel::CODE => {
                let request = VcpuChannel::from_bytes(payload)?;
                let effect = self.vcpu_channel(request.server, one_fd(fds)?)?;
                return Ok(Served {
                    effect: Some(effect),
                    ..Served::reply(&())
                });
            }
            SetIrqfds::CODE => {
                let request = SetIrqfds::from_bytes(payload)?;
                let effect = Effect::SetIrqfds(self.irqfds(&request, fds)?);
                return Ok(Served {
                    effect: Some(effect),
                    ..Served::reply(&())
                });
            }
            _ => no_fds(&fds)?,
        }
        match code {
            Hcall::CODE => {
                let r = own(ticket, Hcall::from_bytes(payload)?, |r| r.server)?;
                self.hcall(&r, ticket).map(|r| Served::reply(&r))
            }
            Mmio::CODE => {
                let r = own(ticket, Mmio::from_bytes(payload)?, |r| r.server)?;
                self.mmio(&r).map(|r| Served::reply(&r))
            }
            Rtas::CODE => {
                let r = own(ticket, Rtas::from_bytes(payload)?, |r| r.server)?;
                self.rtas(&r, ticket).map(|r| Served::reply(&r))
            }
            VcpuLine::CODE => {
                let r = own(ticket, VcpuLine::from_bytes(payload)?, |r| r.server)?;
                self.core()?.check_connected(r.server)?;
                Ok(Served::reply(&self.line(r.server)))
            }
            VcpuReset::CODE => {
                let r = own(ticket, VcpuReset::from_bytes(payload)?, |r| r.server)?;
                self.vcpu_reset(r.server).map(|()| Served::reply(&()))
            }
            SetLevel::CODE => self
                .set_level(&SetLevel::from_bytes(payload)?)
                .map(|()| Served::reply(&())),
            Trigger::CODE => self
                .trigger(&Trigger::from_bytes(payload)?)
                .map(|()| Served::reply(&())),
            Sync::CODE => self
                .sync(&Sync::from_bytes(payload)?)
                .map(|()| Served::reply(&())),
            Claim::CODE => self
                .claim(&Claim::from_bytes(payload)?, ticket)
                .map(|r| Served::reply(&r)),
            Free::CODE => self
                .free(&Free::from_bytes(payload)?, ticket)
                .map(|()| Served::reply(&())),
            ClearIrqfds::CODE => {
                let r = ClearIrqfds::from_bytes(payload)?;
                Ok(Served {
                    effect: Some(Effect::ClearIrqfds(r.items)),
                    ..Served::reply(&())
                })
            }
            _ => self.dispatch_machine(code, payload, ticket, now),
        }
    }

    /// Handshake, barriers and questions.
    fn dispatch_machine(
        &mut self,
        code: u32,
        payload: &[u8],
        ticket: Ticket,
        now: Instant,
    ) -> Result<Served, Refused> {
        match code {
            Hello::CODE => self
                .hello(&Hello::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            SetMachine::CODE => self
                .set_machine(&SetMachine::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            GetShm::CODE => {
                GetShm::from_bytes(payload)?;
                let (info, fd) = self.get_shm()?;
                Ok(Served {
                    fds: vec![fd],
                    ..Served::reply(&info)
                })
            }
            Start::CODE => self
                .start(&Start::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            Goodbye::CODE => {
                Goodbye::from_bytes(payload)?;
                Ok(Served {
                    effect: Some(Effect::Exit),
                    ..Served::reply(&())
                })
            }
            Ping::CODE => {
                let ping = Ping::from_bytes(payload)?;
                Ok(Served::reply(&self.ping(&ping, now)))
            }
            Last::CODE => {
                let channel = Last::from_bytes(payload)?.channel;
                let core = self.memory_core()?;
                if channel > core.machine().servers {
                    return Err(Refused::NoServer(channel - 1));
                }
                Ok(Served::reply(&LastReply {
                    seq: core.journal().last(channel),
                }))
            }
            Query::CODE => self
                .query(&Query::from_bytes(payload)?, now)
                .map(|r| Served::reply(&r)),
            GetFdt::CODE => self
                .get_fdt(&GetFdt::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            Cas::CODE => {
                let r = own(ticket, Cas::from_bytes(payload)?, |r| r.server)?;
                let reply = self.cas(&r, now)?;
                Ok(Served {
                    reply,
                    ..Served::default()
                })
            }
            VcpuDisconnect::CODE => {
                let server = VcpuDisconnect::from_bytes(payload)?.server;
                self.vcpu_disconnect(server, now)
                    .map(|()| Served::default())
            }
            MachineReset::CODE => self
                .machine_reset(&MachineReset::from_bytes(payload)?, now)
                .map(|()| Served::default()),
            Quiesce::CODE => self
                .quiesce(&Quiesce::from_bytes(payload)?, now)
                .map(|()| Served::default()),
            Resume::CODE => self
                .resume(&Resume::from_bytes(payload)?, now)
                .map(|()| Served::default()),
            StateHeader::CODE => self
                .state_header(&StateHeader::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            StateCheck::CODE => self
                .state_check(&StateCheck::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            StateRead::CODE => self
                .state_read(&StateRead::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            StateWrite::CODE => self
                .state_write(&StateWrite::from_bytes(payload)?)
                .map(|r| Served::reply(&r)),
            StateLoad::CODE => self
                .state_load(&StateLoad::from_bytes(payload)?, ticket)
                .map(|r| Served::reply(&r)),
            StateAbort::CODE => {
                StateAbort::from_bytes(payload)?;
                self.abort_state(Some(ticket)).map(|()| Served::reply(&()))
            }
            SetLogLevel::CODE => {
                let filter = SetLogLevel::from_bytes(payload)?.filter.0;
                let level = filter
                    .parse()
                    .map_err(|_| Refused::Value(format!("{filter:?} is not a log level")))?;
                log::set_max_level(level);
                Ok(Served::reply(&()))
            }
            other => Err(Refused::UnknownRequest(other)),
        }
    }

    /// RESET_DEVICE of a stock front-end: MACHINE_RESET with the MSIs freed.
    pub fn device_reset(&mut self, now: Instant) -> Result<(), Refused> {
        self.machine_reset(
            &MachineReset {
                flags: reset_flag::FREE_MSIS,
                zero: 0,
            },
            now,
        )
    }

    fn irqfds(&self, request: &SetIrqfds, fds: Vec<OwnedFd>) -> Result<Vec<Irqfd>, Refused> {
        let core = self.memory_core()?;
        let (items, found) = (&request.items, fds.len());
        for item in items {
            core.check_irqfd(item)?;
        }
        let kinds = |kind| items.iter().filter(|item| item.kind == kind).count();
        let levels = kinds(irqfd_kind::LEVEL);
        if levels != 0 && levels != items.len() {
            let what = "a batch holds irqfds of one kind".to_owned();
            return Err(Refused::Value(what));
        }
        if found != items.len() + levels {
            let expected = "one for each item, two for each of kind LEVEL";
            return Err(Refused::Descriptors { found, expected });
        }
        // The reader of a resamplefd may be the kernel, which takes any write for an event.
        let quick = levels == 0;
        fds.iter().try_for_each(|fd| check_eventfd(fd, quick))?;
        let mut fds = fds.into_iter();
        let mut irqfds = Vec::new();
        while let (Some(item), Some(trigger)) = (items.get(irqfds.len()), fds.next()) {
            // A predecessor may have read this count for nothing: whoever reads it next has it back.
            if core.exact().in_doubt(item) {
                // EAGAIN: the counter is full, so its event is there.
                let _ = nix::unistd::write(&trigger, &1u64.to_ne_bytes());
                core.exact().doubt_over();
            }
            irqfds.push(Irqfd {
                item: *item,
                trigger,
                resample: if levels == 0 { None } else { fds.next() },
            });
        }
        Ok(irqfds)
    }
}

impl<M: QueueMemory> Core<M> {
    /// The source exists and can have such an irqfd.
    fn check_irqfd(&self, item: &IrqfdItem) -> Result<(), Refused> {
        let IrqfdItem { lisn, kind, .. } = *item;
        if !self.claims().is_claimed(lisn) {
            return Err(Refused::NotClaimed(lisn));
        }
        if kind > irqfd_kind::LEVEL {
            let what = format!("irqfd kind {kind} is not defined");
            return Err(Refused::Value(what));
        }
        if kind == irqfd_kind::LEVEL && !self.claims().is_lsi(lisn) {
            let what = format!("{lisn:#x} is an MSI, which has no level");
            return Err(Refused::Value(what));
        }
        Ok(())
    }
}

/// A vCPU's channel speaks for its own vCPU only.
fn own<R>(ticket: Ticket, request: R, server: impl Fn(&R) -> u32) -> Result<R, Refused> {
    let named = server(&request);
    match ticket.channel.checked_sub(1) {
        Some(own) if own != named => Err(Refused::NotYours { own, named }),
        _ => Ok(request),
    }
}
