//! The one thread that serves: sockets in, replies out, one request after the other.
//!
//! Each channel is first in, first out. Between channels there is no order, except that a barrier
//! (on the main socket, or CAS) first finishes what is readable on every channel, and nothing is
//! started before its reply (SPEC.md §1.3): that is [`super::held`]'s business. What a message leads to
//! is [`super::serving`]'s; here are the descriptors, and who comes and goes.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;
use papr_intc_protocol::Versions;
use papr_intc_protocol::wire::vcpu::WATCH;

use super::connection::{Channel, Connection};
use super::held::{Held, is_urgent};
use super::identity;
use super::irqfds::Irqfds;
use super::monitor::Monitor;
use super::standard::{GuestRam, Standard, StandardError};
use super::token::Token;
use super::transfer::Transfer;
use crate::control::{Control, Effect, Expected};
use crate::log_limit::LogLimit;

/// Pause, in milliseconds, between two looks at a grace period whose requester has got its answer.
const LATE_PAUSE_MS: u8 = 10;
const EVENTS: usize = 64;

/// Where front-ends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// They connect.
    Listener(UnixListener),
    /// There is one, and no other.
    Connected(UnixStream),
}

/// What to do when the front-end has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// End.
    Exit,
    /// Keep the memory and its lock, wait for another front-end; no longer than this.
    Wait(Option<Duration>),
}

/// Why serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// SIGTERM or SIGINT.
    Signal,
    /// GOODBYE.
    Goodbye,
    /// The front-end went, and there is no other to wait for.
    Disconnected,
}

/// Why serving failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A system call of the event loop itself.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: Errno,
    },
    /// The standard half.
    #[error(transparent)]
    Standard(#[from] StandardError),
}

pub(super) fn os(what: &'static str) -> impl FnOnce(Errno) -> ServerError {
    move |source| ServerError::Os { what, source }
}

/// The server of one guest.
pub struct EventLoop {
    /// Everything.
    pub(super) epoll: Epoll,
    /// What is looked at even while a barrier is under way.
    pub(super) urgent: Epoll,
    signals: SignalFd,
    listener: Option<UnixListener>,
    on_disconnect: OnDisconnect,
    /// When we have waited long enough for another front-end.
    alone_until: Option<Instant>,
    pub(super) main: Option<Connection>,
    pub(super) channels: BTreeMap<u32, Channel>,
    /// Channels of which more was read than one message: nothing else will announce it.
    pub(super) ahead: VecDeque<u32>,
    /// Buffers of messages, in and out, kept so that none is allocated.
    pub(super) spare: Vec<u8>,
    pub(super) out: Vec<u8>,
    /// Generation and phase in the block of GET_CONFIG.
    identified: (u64, u32),
    pub(super) standard: Standard,
    pub(super) control: Control<GuestRam>,
    irqfds: Irqfds,
    pub(super) monitor: Option<Monitor>,
    pub(super) held: Held,
    pub(super) transfer: Option<Transfer>,
    /// Of lines about refused front-ends and barriers.
    pub(super) refusals: LogLimit,
    pub(super) ended: Option<Ended>,
}

impl EventLoop {
    /// Everything that can fail at start fails here. `signals` is readable on SIGTERM and SIGINT,
    /// which are blocked in every thread.
    pub fn new(
        endpoint: Endpoint,
        signals: SignalFd,
        on_disconnect: OnDisconnect,
        expected: Expected,
        versions: Versions,
    ) -> Result<Self, ServerError> {
        let new_epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(os("epoll_create"));
        let (epoll, urgent) = (new_epoll()?, new_epoll()?);
        let standard = Standard::new(identity::block(&versions, 0, 0))?;
        let control = Control::new(standard.ram(), expected, versions, Instant::now());
        let mut server = Self {
            epoll,
            urgent,
            signals,
            listener: None,
            on_disconnect,
            alone_until: None,
            main: None,
            channels: BTreeMap::new(),
            ahead: VecDeque::new(),
            spare: Vec::new(),
            out: Vec::new(),
            identified: (0, 0),
            standard,
            control,
            irqfds: Irqfds::default(),
            held: Held::default(),
            transfer: None,
            refusals: LogLimit::new(Instant::now()),
            monitor: None,
            ended: None,
        };
        server.watch(&server.signals, Token::Signal)?;
        match endpoint {
            Endpoint::Listener(listener) => {
                server.watch(&listener, Token::Listener)?;
                server.listener = Some(listener);
            }
            Endpoint::Connected(stream) => server.begin_connection(stream)?,
        }
        Ok(server)
    }

    /// Serves those who only look on, too.
    pub fn monitored_by(mut self, monitor: Monitor) -> Result<Self, ServerError> {
        self.watch(&monitor, Token::Monitor)?;
        self.monitor = Some(monitor);
        Ok(self)
    }

    fn serve_monitor(&mut self) {
        if let Some(monitor) = &mut self.monitor {
            let control = &self.control;
            monitor.serve(|code, payload| control.look(code, payload, Instant::now()));
        }
    }

    fn watch(&self, fd: impl AsFd, token: Token) -> Result<(), ServerError> {
        let event = |flags| EpollEvent::new(flags, token.to_data());
        if is_urgent(token) {
            // A hang-up is reported without being asked for; the main socket's messages are not urgent.
            let flags = match token {
                Token::Main => EpollFlags::empty(),
                _ => EpollFlags::EPOLLIN,
            };
            self.urgent
                .add(&fd, event(flags))
                .map_err(os("epoll_ctl"))?;
        }
        self.epoll
            .add(fd, event(EpollFlags::EPOLLIN))
            .map_err(os("epoll_ctl"))
    }

    /// Closing a descriptor is not enough: epoll watches the open file description, which the VMM may
    /// hold too, and a hang-up would wake us for ever.
    pub(super) fn unwatch(&self, fd: impl AsFd, token: Token) {
        let mut done = self.epoll.delete(&fd);
        if is_urgent(token) {
            done = done.and(self.urgent.delete(&fd));
        }
        if let Err(e) = done {
            log::error!("forgetting {token:?}: {e}");
        }
    }

    /// Serves until something ends it.
    pub fn run(mut self) -> Result<Ended, ServerError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            if let Some(ended) = self.ended {
                return Ok(ended);
            }
            if self.go_on()? {
                self.pause()?;
                continue;
            }
            let timeout = self.timeout();
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(os("epoll_wait")(e)),
            };
            self.control.poll_reopening();
            if count == 0 && self.alone_until.is_some_and(|at| Instant::now() >= at) {
                log::info!("no front-end came in time");
                self.ended = Some(Ended::Disconnected);
            }
            for event in &events[..count] {
                // What was not looked at is reported again.
                if self.ended.is_some() || self.held.is_busy() {
                    break;
                }
                if let Some(token) = Token::from_data(event.data()) {
                    self.handle(token)?;
                }
            }
            self.serve_ahead()?;
        }
    }

    /// One message of each channel of which more was read.
    fn serve_ahead(&mut self) -> Result<(), ServerError> {
        for _ in 0..self.ahead.len() {
            if self.ended.is_some() || self.held.is_busy() {
                break;
            }
            if let Some(server) = self.ahead.pop_front() {
                self.serve_channel(server)?;
            }
        }
        Ok(())
    }

    /// As [`Self::serve_ahead`], of the watch channel alone: a barrier does not keep it waiting.
    pub(super) fn serve_watch_ahead(&mut self) -> Result<(), ServerError> {
        let had = self.ahead.len();
        self.ahead.retain(|server| *server != WATCH);
        if self.ahead.len() == had {
            return Ok(());
        }
        self.serve_channel(WATCH)
    }

    /// Of the next wait for events.
    fn timeout(&self) -> EpollTimeout {
        if !self.ahead.is_empty() {
            return EpollTimeout::ZERO;
        }
        if self.control.is_reopening() {
            return EpollTimeout::from(LATE_PAUSE_MS);
        }
        let Some(at) = self.alone_until else {
            return EpollTimeout::NONE;
        };
        // Rounded up; a limit beyond the type's is waited for in pieces.
        let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
        EpollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
    }

    pub(super) fn handle(&mut self, token: Token) -> Result<(), ServerError> {
        match token {
            Token::Signal => self.ended = Some(Ended::Signal),
            Token::Listener => self.accept()?,
            Token::Main => self.serve_main()?,
            Token::Monitor => self.serve_monitor(),
            Token::Transfer => self.go_on_with_transfer(),
            Token::Channel(server) => self.serve_channel(server)?,
            Token::Irqfd(n) => {
                if let Some((item, take)) = self.irqfds.find(n) {
                    self.control.irqfd(&item, take);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<(), ServerError> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        match listener.accept() {
            Ok((stream, _)) if self.main.is_none() => self.begin_connection(stream),
            Ok(_) => {
                if let Some(more) = self.refusals.take(Instant::now()) {
                    log::warn!("refused a second front-end{more}");
                }
                Ok(())
            }
            Err(e) => {
                log::warn!("accepting a front-end: {e}");
                Ok(())
            }
        }
    }

    fn begin_connection(&mut self, stream: UnixStream) -> Result<(), ServerError> {
        let connection = Connection::new(stream.into());
        self.watch(&connection.socket, Token::Main)?;
        self.main = Some(connection);
        self.alone_until = None;
        Ok(())
    }

    /// The front-end has gone: its descriptors and memory are dropped.
    pub(super) fn end_connection(&mut self) -> Result<(), ServerError> {
        if let Some(main) = self.main.take() {
            self.unwatch(&main.socket, Token::Main);
        }
        self.forget_held();
        self.end_transfer();
        let servers: Vec<u32> = self.channels.keys().copied().collect();
        servers.into_iter().for_each(|s| self.forget_channel(s));
        let limit = match self.on_disconnect {
            OnDisconnect::Wait(limit) if self.listener.is_some() => limit,
            _ => {
                self.ended.get_or_insert(Ended::Disconnected);
                return Ok(());
            }
        };
        self.alone_until = limit.map(|limit| Instant::now() + limit);
        // What a device has written so far is an event; the next VMM may come with other eventfds.
        for (item, take) in self.irqfds.all() {
            self.control.irqfd(&item, take);
        }
        log::info!("the front-end has gone, waiting for another");
        self.irqfds
            .clear_all(&self.epoll)
            .map_err(os("epoll_ctl"))?;
        self.control.vmm_left();
        self.standard.connection_ended()?;
        self.identify();
        Ok(())
    }

    /// Ends a vCPU's channel.
    pub(super) fn forget_channel(&mut self, server: u32) {
        if let Some(channel) = self.channels.remove(&server) {
            self.unwatch(&channel.socket, Token::Channel(server));
        }
    }

    pub(super) fn apply(&mut self, effect: Effect) -> Result<(), ServerError> {
        match effect {
            Effect::AddChannel { server, socket } => {
                self.forget_channel(server);
                let channel = Channel::new(socket);
                self.watch(&channel.socket, Token::Channel(server))?;
                self.channels.insert(server, channel);
                Ok(())
            }
            Effect::SetIrqfds(irqfds) => self
                .irqfds
                .set(&self.epoll, irqfds)
                .map_err(os("watching an irqfd")),
            Effect::ClearIrqfds(items) => self
                .irqfds
                .clear(&self.epoll, &items)
                .map_err(os("forgetting an irqfd")),
            Effect::Exit => {
                self.ended = Some(Ended::Goodbye);
                Ok(())
            }
        }
    }

    fn identify(&mut self) {
        let control = &self.control;
        let (generation, phase) = (control.generation(), control.phase());
        if self.identified != (generation, phase) {
            self.identified = (generation, phase);
            let block = identity::block(control.versions(), generation, phase);
            self.standard.set_identity(block);
        }
    }

    /// The executor or the phase may have changed; interrupts may have been ended.
    pub(super) fn after_request(&mut self) -> Result<(), ServerError> {
        for lisn in self.control.resamples_due() {
            self.irqfds.resample(lisn);
            self.control.resampled(lisn);
        }
        self.irqfds
            .watch(&self.epoll, self.control.executes())
            .map_err(os("epoll_ctl"))?;
        self.identify();
        Ok(())
    }
}
