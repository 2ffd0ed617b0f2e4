//! The client side of the framing: one request, one reply, descriptors by SCM_RIGHTS (SPEC.md §1.2). What is in a
//! message is `message`'s business.
//!
//! A [`Connection`] knows nothing of restarts, sequence numbers or waiting for a daemon; that is
//! [`channel`](crate::channel)'s. It serves PAPR messages and the few standard ones of the handshake
//! through the same reader. (`vhost::vhost_user::Frontend` could share the stream, but it reads
//! without a deadline: a daemon that stops inside the handshake would hold the supervisor for ever.)
//!
//! Requests of several threads queue on a lock; one is outstanding at a time, but in a
//! [`pipeline`](Connection::pipeline). [`Connection::close`]
//! works from any thread and ends a blocked request. A caller may leave while the daemon still owes it a
//! reply: the next one with the same number takes that reply, another one lets it pass.
//!
//! A vCPU's channel carries no descriptors: there a call is `sendto`, `poll` and `recvfrom`, and allocates
//! nothing once its buffers are there. A descriptor that comes all the same is closed by the kernel.
//! `poll`, although a blocking read would be one call less: who sleeps in a read is also woken when the
//! daemon takes the request, which costs more.
#![allow(unsafe_code)] // received descriptors become owned ones in `owned`; argued there

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, sendmsg,
};
use papr_intc_protocol::wire::{HEADER_BYTES, MAX_BODY, MAX_FDS, Request, flag};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::Error;
use crate::sync::lock;
use message::{Owed, answer, checked_size, compose, compose_request, malformed};

mod message;

/// Most descriptors that a reply carries; more are a protocol error. There is room for [`MAX_FDS`], so
/// that the kernel never cuts the list and every descriptor that came is closed.
const MAX_REPLY_FDS: usize = 4;
/// Requests that are sent before their replies are read. Descriptors in flight are limited (by the sender's
/// RLIMIT_NOFILE, for all of its user's processes), and so is what a socket holds.
const AHEAD: usize = 64;
/// Replies up to this size are read by one system call.
const FIRST_READ: usize = 4096;

/// One stream to a daemon.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// In milliseconds; 0 for ever.
    tick: AtomicU32,
    /// Process that sent the last message, as the kernel says; 0 if it was not asked (SO_PASSCRED).
    sender: AtomicU32,
    /// Held from the first byte of a request to the last of its reply.
    buffers: Mutex<Buffers>,
}

#[derive(Debug)]
struct Buffers {
    output: Vec<u8>,
    input: Vec<u8>,
    /// Bytes of `input` that have come.
    have: usize,
    /// Room for what comes beside the bytes: none if no descriptors are expected.
    control: Vec<u8>,
    /// A request whose caller left: its number, code and name. The reply is still to come.
    owed: Option<Owed>,
}

/// Asked each time that the connection's tick has passed without news: go on waiting?
pub(crate) type GoOn<'a> = &'a dyn Fn() -> bool;

/// Waits no longer than one tick.
pub(crate) const ONE_TICK: GoOn<'static> = &|| false;

/// A reply as it came: bytes in `input`, and descriptors.
type Raw = (usize, Vec<OwnedFd>);

impl Buffers {
    /// The body of a reply of so many bytes.
    fn body(&self, reply: usize) -> &[u8] {
        self.input.get(HEADER_BYTES..reply).unwrap_or_default()
    }

    /// Before a reply that nothing precedes.
    fn begin(&mut self) {
        self.have = 0;
        self.input.truncate(FIRST_READ);
    }

    /// The first reply, of so many bytes, has been looked at.
    fn pass(&mut self, reply: usize) {
        self.input.copy_within(reply..self.have, 0);
        self.have -= reply;
    }
}

impl Connection {
    /// Speaks on `stream`, which is blocking; descriptors come with replies.
    pub fn new(stream: UnixStream) -> Self {
        Self::with_control(stream, nix::cmsg_space!([RawFd; MAX_FDS], UnixCredentials))
    }

    /// As [`new`](Self::new), on a channel whose replies have no descriptors.
    pub(crate) fn plain(stream: UnixStream) -> Self {
        Self::with_control(stream, Vec::new())
    }

    fn with_control(stream: UnixStream, control: Vec<u8>) -> Self {
        let buffers = Buffers {
            output: Vec::new(),
            input: vec![0; FIRST_READ],
            have: 0,
            control,
            owed: None,
        };
        Self {
            stream,
            tick: AtomicU32::new(0),
            sender: AtomicU32::new(0),
            buffers: Mutex::new(buffers),
        }
    }

    /// Process that sent the last reply: 0 before the first one, unless the stream has SO_PASSCRED, and for a
    /// process of another PID namespace.
    pub(crate) fn sender(&self) -> u32 {
        // Relaxed: a number that goes with nothing else.
        self.sender.load(Ordering::Relaxed)
    }

    /// Sends a PAPR request with number `seq` and waits for its reply.
    ///
    /// # Errors
    /// [`Error::Refused`] leaves the connection usable; after any other error it must be closed.
    pub fn exchange<R: Request>(
        &self,
        seq: u64,
        flags: u32,
        request: &R,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(R::Reply, Vec<OwnedFd>), Error> {
        self.exchange_patiently(seq, flags, request, fds, ONE_TICK)
    }

    /// As [`exchange`](Self::exchange), for as many ticks as `go_on` allows. ETIMEDOUT when it does not:
    /// then the connection can still be used, unlike after any other error but a refusal.
    pub(crate) fn exchange_patiently<R: Request>(
        &self,
        seq: u64,
        flags: u32,
        request: &R,
        fds: &[BorrowedFd<'_>],
        go_on: GoOn<'_>,
    ) -> Result<(R::Reply, Vec<OwnedFd>), Error> {
        let owed = Owed::of::<R>(seq);
        let mut buffers = lock(&self.buffers);
        let (reply, fds) = match buffers.owed {
            Some(own) if own.seq == seq && own.code == R::CODE => {
                self.receive(owed, &mut buffers, go_on)?
            }
            other => {
                if let Some(other) = other {
                    self.receive(other, &mut buffers, go_on)?;
                }
                compose_request(&mut buffers.output, seq, flags, request);
                self.send(&buffers.output, fds, go_on)?;
                self.receive(owed, &mut buffers, go_on)?
            }
        };
        let value = answer::<R>(seq, buffers.body(reply))?;
        Ok((value, fds))
    }

    /// Requests of one kind, each with a descriptor, of which [`AHEAD`] are sent before the first is answered. The
    /// error is of the first that failed.
    ///
    /// # Errors
    /// After any error, a refusal too, the connection must be closed.
    pub(crate) fn pipeline<R: Request>(
        &self,
        requests: impl IntoIterator<Item = Result<(u64, R, OwnedFd), Error>>,
    ) -> Result<(), Error> {
        let mut requests = requests.into_iter();
        let mut buffers = lock(&self.buffers);
        let mut sent = Vec::with_capacity(AHEAD);
        loop {
            for request in requests.by_ref().take(AHEAD) {
                let (seq, request, fd) = request?;
                compose_request(&mut buffers.output, seq, 0, &request);
                self.send(&buffers.output, &[fd.as_fd()], ONE_TICK)?;
                sent.push(seq);
            }
            if sent.is_empty() {
                return Ok(());
            }
            buffers.begin();
            for seq in sent.drain(..) {
                let owed = Owed::of::<R>(seq);
                let (reply, _) = self.receive_next(owed, &mut buffers, ONE_TICK)?;
                answer::<R>(seq, buffers.body(reply))?;
                buffers.pass(reply);
            }
            if buffers.have > 0 {
                return Err(malformed(R::NAME, "bytes follow it"));
            }
        }
    }

    /// As [`exchange`](Self::exchange), if the request that is outstanding, if any, ends within `limit`.
    pub(crate) fn exchange_within<R: Request>(
        &self,
        limit: Duration,
        seq: u64,
        request: &R,
    ) -> Result<R::Reply, Error> {
        let end = Instant::now() + limit;
        while self.buffers.try_lock().is_err() {
            if Instant::now() >= end {
                return Err(socket_error(Errno::EAGAIN));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Nobody else begins a request meanwhile: the caller has seen to that.
        self.exchange(seq, 0, request, &[]).map(|(reply, _)| reply)
    }

    /// Sends a standard vhost-user request, `flags` beside the version, and waits for its reply, for as many
    /// ticks as `go_on` allows.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange), but a refusal is in the reply.
    pub(crate) fn standard(
        &self,
        name: &'static str,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        go_on: GoOn<'_>,
    ) -> Result<Vec<u8>, Error> {
        let mut buffers = lock(&self.buffers);
        if let Some(other) = buffers.owed {
            self.receive(other, &mut buffers, go_on)?;
        }
        self.send_standard(&mut buffers, code, flags, body, fds, go_on)?;
        let owed = Owed { seq: 0, code, name };
        let (reply, _) = self.receive(owed, &mut buffers, go_on)?;
        Ok(buffers.body(reply).to_vec())
    }

    /// Sends a standard request that has no reply.
    pub(crate) fn standard_unanswered(
        &self,
        code: u32,
        body: &[u8],
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        let mut buffers = lock(&self.buffers);
        self.send_standard(&mut buffers, code, 0, body, &[], go_on)
    }

    fn send_standard(
        &self,
        buffers: &mut Buffers,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        let flags = flags | flag::VERSION;
        compose(&mut buffers.output, code, flags, |out| {
            out.extend_from_slice(body);
        });
        self.send(&buffers.output, fds, go_on)
    }

    /// A read or write that waits longer than `tick` ends with ETIMEDOUT, or asks whether to go on.
    pub fn set_tick(&self, tick: Duration) {
        // Rounded up. Relaxed: a number that goes with nothing else.
        let millis = tick.as_micros().div_ceil(1000).clamp(1, i32::MAX as u128);
        self.tick.store(millis as u32, Ordering::Relaxed);
    }

    /// Waits until the stream is ready, or has ended. `false`: a tick has passed.
    fn is_ready(&self, events: PollFlags) -> Result<bool, Errno> {
        let tick = match self.tick.load(Ordering::Relaxed) {
            0 => PollTimeout::NONE,
            tick => PollTimeout::try_from(tick).unwrap_or(PollTimeout::MAX),
        };
        let mut fds = [PollFd::new(self.stream.as_fd(), events)];
        poll(&mut fds, tick).map(|ready| ready != 0)
    }

    /// Ends the connection; a blocked request returns [`Error::Lost`].
    pub fn close(&self) {
        // An error means that the peer has ended it already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The stream, to be watched for a hang-up.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>], go_on: GoOn<'_>) -> Result<(), Error> {
        if message.len() > HEADER_BYTES + MAX_BODY || fds.len() > MAX_FDS {
            return Err(Error::Invalid(format!(
                "a message of {} bytes and {} descriptors is too large",
                message.len(),
                fds.len()
            )));
        }
        let mut sent = 0;
        while sent < message.len() {
            // The descriptors travel with the first byte.
            let fds = if sent == 0 { fds } else { &[] };
            match self.send_some(&message[sent..], fds) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => match self.is_ready(PollFlags::POLLOUT) {
                    Ok(true) | Err(Errno::EINTR) => {}
                    Ok(false) if go_on() => {}
                    Ok(false) if sent > 0 => return Err(Error::Lost),
                    Ok(false) => return Err(socket_error(Errno::EAGAIN)),
                    Err(e) => return Err(socket_error(e)),
                },
                Err(e) => return Err(socket_error(e)),
            }
        }
        Ok(())
    }

    /// One system call: how many bytes have gone.
    fn send_some(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        if fds.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            return send(&self.stream, bytes, flags).map_err(errno);
        }
        let fd = self.stream.as_raw_fd();
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<UnixAddr>(fd, &[IoSlice::new(bytes)], &rights, flags, None)
    }

    /// Reads one reply. Nothing may follow it that is no reply to a request already sent.
    fn receive(&self, owed: Owed, buffers: &mut Buffers, go_on: GoOn<'_>) -> Result<Raw, Error> {
        buffers.begin();
        let read = self.receive_next(owed, buffers, go_on)?;
        if buffers.have > read.0 {
            return Err(malformed(owed.name, "bytes follow it"));
        }
        Ok(read)
    }

    /// Reads one reply, behind the one before if that is still in the buffer.
    fn receive_next(
        &self,
        owed: Owed,
        buffers: &mut Buffers,
        go_on: GoOn<'_>,
    ) -> Result<Raw, Error> {
        buffers.owed = Some(owed);
        let mut fds = Vec::new();
        loop {
            let header = buffers.input[..buffers.have].first_chunk();
            let size = header
                .map(|header| checked_size(header, owed))
                .transpose()?;
            let want = HEADER_BYTES + size.unwrap_or(0);
            if size.is_some() && buffers.have >= want {
                buffers.owed = None;
                return Ok((want, fds));
            }
            if buffers.input.len() < want {
                buffers.input.resize(want, 0);
            }
            let Buffers {
                input,
                control,
                have,
                ..
            } = buffers;
            match self.read_some(&mut input[*have..], control, &mut fds)? {
                Some(0) => return Err(Error::Lost),
                Some(n) => *have += n,
                None if go_on() => {}
                // Of half a reply the rest could not be told from the next one.
                None if *have > 0 => return Err(malformed(owed.name, "it does not end")),
                None => return Err(socket_error(Errno::EAGAIN)),
            }
            if fds.len() > MAX_REPLY_FDS {
                return Err(malformed(owed.name, "too many descriptors"));
            }
        }
    }

    /// Bytes read, once there are any; none if a tick has passed.
    fn read_some(
        &self,
        into: &mut [u8],
        control: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Option<usize>, Error> {
        loop {
            let read = self.is_ready(PollFlags::POLLIN).and_then(|ready| {
                let n = match (ready, control.is_empty()) {
                    (false, _) => return Ok(None),
                    (true, true) => self.read_plain(into)?,
                    (true, false) => self.read_with(into, control, fds)?,
                };
                Ok(Some(n))
            });
            match read {
                Ok(read) => return Ok(read),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(e) => return Err(socket_error(e)),
            }
        }
    }

    fn read_plain(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let read = recv(&self.stream, into, RecvFlags::DONTWAIT);
        read.map(|(read, _)| read).map_err(errno)
    }

    /// Bytes, and what came beside them.
    fn read_with(
        &self,
        into: &mut [u8],
        control: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<usize, Errno> {
        let mut iov = [IoSliceMut::new(into)];
        let fd = self.stream.as_raw_fd();
        let message = recvmsg::<UnixAddr>(
            fd,
            &mut iov,
            Some(control),
            MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
        )?;
        for control in message.cmsgs().into_iter().flatten() {
            match control {
                ControlMessageOwned::ScmRights(raw) => fds.extend(raw.into_iter().map(owned)),
                ControlMessageOwned::ScmCredentials(sender) => {
                    let pid = sender.pid().max(0) as u32;
                    self.sender.store(pid, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        Ok(message.bytes)
    }
}

fn socket_error(errno: Errno) -> Error {
    match errno {
        Errno::EPIPE | Errno::ECONNRESET => Error::Lost,
        Errno::EAGAIN => Error::os("waiting for the daemon")(Errno::ETIMEDOUT),
        e => Error::os("speaking with the daemon")(e),
    }
}

/// The same number, as the other library has it.
fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for us by SCM_RIGHTS; nobody else in the
    // process knows its number, so that this is its only owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests;
