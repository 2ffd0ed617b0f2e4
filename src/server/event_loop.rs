//! The one thread that serves: sockets in, replies out, one request after the other.
//!
//! Each channel is first in, first out. Between channels there is no order, except that a barrier
//! (on the main socket, or CAS) first finishes what is readable on every channel, and nothing is
//! started before its reply (SPEC.md §1.3).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;
use papr_intc_protocol::wire::vcpu::WATCH;
use papr_intc_protocol::wire::{self, MAIN_CHANNEL, PAPR_CODES, Request};

use super::identity;
use super::irqfds::Irqfds;
use super::monitor::Monitor;
use super::socket::{Progress, RawMessage, Reader};
use super::standard::{GuestRam, Standard, StandardError, StandardEvent, is_barrier};
use super::token::Token;
use crate::control::requests::Incoming;
use crate::control::{Control, Effect, Expected, Refused};
use crate::versions::Versions;

/// How long a reply may wait for room in a socket before its connection is dropped.
const SEND_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two looks at a barrier's grace period.
const BARRIER_PAUSE: Duration = Duration::from_micros(50);
/// The same, in milliseconds, after the requester has got its answer.
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
    /// Keep the memory and its lock, wait for another front-end.
    Wait,
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

fn os(what: &'static str) -> impl FnOnce(Errno) -> ServerError {
    move |source| ServerError::Os { what, source }
}

/// A socket with what has arrived of its next message.
struct Connection {
    socket: OwnedFd,
    reader: Reader,
}

impl Connection {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reader: Reader::new(),
        }
    }

    /// The next whole message. `Err(())`: the connection is over; why has been logged.
    fn poll(&mut self) -> Result<Option<RawMessage>, ()> {
        match self.reader.poll_message(&self.socket) {
            Ok(Progress::Ready(message)) => Ok(Some(message)),
            Ok(Progress::Pending) => Ok(None),
            Ok(Progress::Closed) => Err(()),
            Err(e) => {
                log::warn!("dropping a connection: {e}");
                Err(())
            }
        }
    }

    fn send(&self, message: &RawMessage) -> Result<(), ()> {
        message.send(&self.socket, SEND_PATIENCE).map_err(|e| {
            log::warn!("dropping a connection: {e}");
        })
    }
}

/// How a barrier ended for its requester: the payload of the reply, or why not.
type Answer = Result<Vec<u8>, Refused>;

/// The server of one guest.
pub struct EventLoop {
    epoll: Epoll,
    signals: SignalFd,
    listener: Option<UnixListener>,
    versions: Versions,
    on_disconnect: OnDisconnect,
    main: Option<Connection>,
    channels: BTreeMap<u32, Connection>,
    standard: Standard,
    control: Control<GuestRam>,
    irqfds: Irqfds,
    monitor: Option<Monitor>,
    ended: Option<Ended>,
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
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(os("epoll_create"))?;
        let standard = Standard::new(identity::block(&versions, 0, 0))?;
        let control = Control::new(standard.ram(), expected, versions, Instant::now());
        let mut server = Self {
            epoll,
            signals,
            listener: None,
            versions,
            on_disconnect,
            main: None,
            channels: BTreeMap::new(),
            standard,
            control,
            irqfds: Irqfds::default(),
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
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token.to_data());
        self.epoll.add(fd, event).map_err(os("epoll_ctl"))
    }

    /// Serves until something ends it.
    pub fn run(mut self) -> Result<Ended, ServerError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            if let Some(ended) = self.ended {
                return Ok(ended);
            }
            let timeout = if self.control.is_reopening() {
                EpollTimeout::from(LATE_PAUSE_MS)
            } else {
                EpollTimeout::NONE
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(os("epoll_wait")(e)),
            };
            self.control.poll_reopening();
            for event in &events[..count] {
                if self.ended.is_some() {
                    break;
                }
                if let Some(token) = Token::from_data(event.data()) {
                    self.handle(token)?;
                }
            }
        }
    }

    fn handle(&mut self, token: Token) -> Result<(), ServerError> {
        match token {
            Token::Signal => self.ended = Some(Ended::Signal),
            Token::Listener => self.accept()?,
            Token::Main => self.serve_main()?,
            Token::Monitor => self.serve_monitor(),
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
                log::warn!("refused a second front-end");
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
        Ok(())
    }

    /// The front-end has gone: its descriptors and memory are dropped.
    fn end_connection(&mut self) -> Result<(), ServerError> {
        self.main = None;
        let servers: Vec<u32> = self.channels.keys().copied().collect();
        servers.into_iter().for_each(|s| self.forget_channel(s));
        if self.listener.is_none() || self.on_disconnect == OnDisconnect::Exit {
            self.ended.get_or_insert(Ended::Disconnected);
            return Ok(());
        }
        log::info!("the front-end has gone, waiting for another");
        self.irqfds
            .clear_all(&self.epoll)
            .map_err(os("epoll_ctl"))?;
        self.control.vmm_left();
        self.standard.connection_ended()?;
        self.standard.set_identity(identity::block(
            &self.versions,
            self.control.generation(),
            self.control.phase(),
        ));
        Ok(())
    }

    fn serve_main(&mut self) -> Result<(), ServerError> {
        let Some(main) = &mut self.main else {
            return Ok(());
        };
        match main.poll() {
            Ok(None) => Ok(()),
            Err(()) => self.end_connection(),
            Ok(Some(message)) if message.request >= PAPR_CODES => {
                if is_papr_barrier(message.request) {
                    self.drain_channels(None)?;
                }
                // Draining may have shown that the VMM is gone, and its message with it.
                match self.main {
                    Some(_) => self.serve_papr(MAIN_CHANNEL, message),
                    None => Ok(()),
                }
            }
            Ok(Some(message)) => self.serve_standard(message),
        }
    }

    fn serve_channel(&mut self, server: u32) -> Result<(), ServerError> {
        let Some(message) = self.poll_channel(server)? else {
            return Ok(());
        };
        // On the watch channel it is refused.
        if is_papr_barrier(message.request) && server != WATCH {
            self.drain_channels(Some(server))?;
        }
        self.serve_papr(server + 1, message)
    }

    /// The next whole message of a vCPU's channel; the channel is forgotten if it has ended.
    fn poll_channel(&mut self, server: u32) -> Result<Option<RawMessage>, ServerError> {
        let Some(channel) = self.channels.get_mut(&server) else {
            return Ok(None);
        };
        let polled = channel.poll();
        if polled.is_err() {
            self.forget_channel(server);
        }
        Ok(polled.unwrap_or(None))
    }

    /// Ends a vCPU's channel. Closing it is not enough: epoll watches the open file description, which
    /// the VMM may hold too, and a hang-up would wake us for ever.
    fn forget_channel(&mut self, server: u32) {
        if let Some(channel) = self.channels.remove(&server)
            && let Err(e) = self.epoll.delete(&channel.socket)
        {
            log::error!("forgetting the channel of server {server}: {e}");
        }
    }

    /// Serves what is readable on every vCPU's channel, but for that of `except`.
    fn drain_channels(&mut self, except: Option<u32>) -> Result<(), ServerError> {
        let servers: Vec<u32> = self.channels.keys().copied().collect();
        let others = servers
            .into_iter()
            .filter(|s| Some(*s) != except && *s != WATCH);
        for server in others {
            if let Some(message) = self.poll_channel(server)? {
                self.serve_papr(server + 1, message)?;
            }
        }
        Ok(())
    }

    fn serve_papr(&mut self, channel: u32, message: RawMessage) -> Result<(), ServerError> {
        let code = message.request;
        if message.is_reply() {
            // Never answered: two ends that answer each other's answers would not stop.
            log::debug!(
                "ignoring a reply to {} on channel {channel}",
                wire::name(code)
            );
            return Ok(());
        }
        let (head, payload) = match wire::split_request(&message.body) {
            Ok(split) => split,
            Err(e) => {
                let seq = message
                    .body
                    .first_chunk()
                    .map_or(0, |seq| u64::from_ne_bytes(*seq));
                let body = wire::error_body(seq, nix::libc::EPROTO, &format!("malformed: {e}"));
                return self.reply(channel, code, body, Vec::new());
            }
        };
        let incoming = Incoming {
            channel,
            code,
            head,
            payload,
            fds: message.fds,
        };
        match self.control.serve(incoming, Instant::now()) {
            Ok(served) => {
                if let Some(effect) = served.effect {
                    self.apply(effect)?;
                }
                match served.reply {
                    Some(payload) => {
                        let mut body = wire::reply_body(head.seq, &());
                        body.extend_from_slice(&payload);
                        self.reply(channel, code, body, served.fds)?;
                    }
                    None => match self.finish_barrier()? {
                        Some(answer) => self.answer_barrier(channel, code, head.seq, answer)?,
                        None => return Ok(()),
                    },
                }
            }
            Err(refused) => {
                log::debug!(
                    "{} of channel {channel} refused: {refused}",
                    wire::name(code)
                );
                let body = wire::error_body(head.seq, refused.errno(), &refused.to_string());
                self.reply(channel, code, body, Vec::new())?;
            }
        }
        self.after_request()
    }

    /// Nothing else is started while a barrier waits for the threads of the VMM; only a signal, the
    /// front-end's death and its watch channel are looked at. `None`: one of the first two ended the wait.
    fn finish_barrier(&mut self) -> Result<Option<Answer>, ServerError> {
        while self.control.in_barrier() {
            if let Some(answer) = self.control.poll_barrier(Instant::now()) {
                return Ok(Some(answer));
            }
            if self.control.in_barrier() && self.interrupted()? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn answer_barrier(
        &mut self,
        channel: u32,
        code: u32,
        seq: u64,
        answer: Answer,
    ) -> Result<(), ServerError> {
        let body = match answer {
            Ok(payload) => {
                let mut body = wire::reply_body(seq, &());
                body.extend_from_slice(&payload);
                body
            }
            Err(e) => {
                log::warn!("{}: {e}", wire::name(code));
                wire::error_body(seq, e.errno(), &e.to_string())
            }
        };
        self.reply(channel, code, body, Vec::new())
    }

    /// Pauses a barrier's wait. `true`: it is pointless, because we are to end or the VMM is gone.
    fn interrupted(&mut self) -> Result<bool, ServerError> {
        let Some(main) = &self.main else {
            self.control.vmm_left();
            return Ok(true);
        };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(main.socket.as_fd(), PollFlags::POLLHUP),
        ];
        if let Some(watch) = self.channels.get(&WATCH) {
            fds.push(PollFd::new(watch.socket.as_fd(), PollFlags::POLLIN));
        }
        // The last one, whichever number it has.
        let monitor = self.monitor.as_ref().map(|m| {
            fds.push(PollFd::new(m.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        match ppoll(&mut fds, Some(BARRIER_PAUSE.into()), None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(e) => return Err(os("ppoll")(e)),
        }
        let fired = |i: usize| fds.get(i).is_some_and(|fd| fd.any().unwrap_or(false));
        let (signal, socket, watch) = (
            fired(0),
            fired(1),
            fds.len() > 2 && monitor != Some(2) && fired(2),
        );
        let looked_at = monitor.is_some_and(fired);
        if signal {
            self.ended = Some(Ended::Signal);
        } else if socket {
            self.end_connection()?;
        } else if watch {
            // What it may carry starts nothing, a barrier least of all.
            self.serve_channel(WATCH)?;
        }
        if looked_at {
            self.serve_monitor();
        }
        Ok(signal || socket)
    }

    fn reply(
        &mut self,
        channel: u32,
        code: u32,
        body: Vec<u8>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ServerError> {
        let message = RawMessage {
            fds,
            ..RawMessage::reply(code, body)
        };
        match channel.checked_sub(1) {
            None => match &self.main {
                Some(main) if main.send(&message).is_err() => self.end_connection(),
                _ => Ok(()),
            },
            Some(server) => {
                let broken = self
                    .channels
                    .get(&server)
                    .is_some_and(|c| c.send(&message).is_err());
                if broken {
                    self.forget_channel(server);
                }
                Ok(())
            }
        }
    }

    fn apply(&mut self, effect: Effect) -> Result<(), ServerError> {
        match effect {
            Effect::AddChannel { server, socket } => {
                self.forget_channel(server);
                let connection = Connection::new(socket);
                self.watch(&connection.socket, Token::Channel(server))?;
                self.channels.insert(server, connection);
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

    /// The executor or the phase may have changed.
    fn after_request(&mut self) -> Result<(), ServerError> {
        self.irqfds
            .watch(&self.epoll, self.control.executes())
            .map_err(os("epoll_ctl"))?;
        self.standard.set_identity(identity::block(
            &self.versions,
            self.control.generation(),
            self.control.phase(),
        ));
        Ok(())
    }

    fn serve_standard(&mut self, message: RawMessage) -> Result<(), ServerError> {
        if is_barrier(message.request) {
            self.drain_channels(None)?;
        }
        if self.main.is_none() {
            return Ok(());
        }
        let mut served = self.standard.serve(message)?;
        if served.events.contains(&StandardEvent::DeviceReset) && !self.reset_device()? {
            served.refuse();
        }
        match (&self.main, served.reply) {
            (Some(main), Some(reply)) if main.send(&reply).is_err() => self.end_connection(),
            _ => Ok(()),
        }
    }

    /// RESET_DEVICE: a machine reset, if there is a machine yet.
    fn reset_device(&mut self) -> Result<bool, ServerError> {
        if self.control.phase() != wire::handshake::state::SERVING {
            return Ok(true);
        }
        let begun = self.control.device_reset(Instant::now());
        let done = match begun {
            Ok(()) => self.finish_barrier()?.unwrap_or(Ok(Vec::new())),
            Err(e) => Err(e),
        };
        if let Err(e) = &done {
            log::warn!("RESET_DEVICE: {e}");
        }
        Ok(done.is_ok())
    }
}

fn is_papr_barrier(code: u32) -> bool {
    use wire::guest::Cas;
    use wire::machine::{MachineReset, Quiesce, Resume};
    use wire::vcpu::VcpuDisconnect;
    matches!(
        code,
        Cas::CODE | MachineReset::CODE | Quiesce::CODE | Resume::CODE | VcpuDisconnect::CODE
    )
}
