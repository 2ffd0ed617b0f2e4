//! The client side of the framing: one request, one reply, descriptors by SCM_RIGHTS (SPEC.md §1.1).
//!
//! A [`Connection`] knows nothing of restarts, sequence numbers or waiting for a daemon; that is
//! [`channel`](crate::channel)'s. It serves PAPR messages and the few standard ones of the handshake
//! through the same reader. (`vhost::vhost_user::Frontend` could share the stream, but it reads
//! without a deadline: a daemon that stops inside the handshake would hold the supervisor for ever.)
//!
//! Requests of several threads queue on a lock; one is outstanding at a time. [`Connection::close`]
//! works from any thread and ends a blocked request. A caller may leave while the daemon still owes it a
//! reply: the next one with the same number takes that reply, another one lets it pass.
#![allow(unsafe_code)] // received descriptors become owned ones in `owned`; argued there

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, sendmsg,
};
use papr_intc_protocol::wire::{
    HEADER_BYTES, MAX_BODY, MAX_FDS, Request, Wire, flag, request_body, split_reply,
};

use crate::error::Error;
use crate::sync::lock;

/// Most descriptors that a reply carries; more are a protocol error. There is room for [`MAX_FDS`], so
/// that the kernel never cuts the list and every descriptor that came is closed.
const MAX_REPLY_FDS: usize = 4;
/// Zero would mean for ever.
const SHORTEST_TICK: Duration = Duration::from_micros(1);
/// Replies up to this size are read by one system call.
const FIRST_READ: usize = 4096;

/// One stream to a daemon.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Process that sent the last message, as the kernel says; 0 if it was not asked (SO_PASSCRED).
    sender: AtomicU32,
    /// Held from the first byte of a request to the last of its reply.
    buffers: Mutex<Buffers>,
}

#[derive(Debug)]
struct Buffers {
    input: Vec<u8>,
    control: Vec<u8>,
    /// A request whose caller left: its number, code and name. The reply is still to come.
    owed: Option<Owed>,
}

#[derive(Clone, Copy, Debug)]
struct Owed {
    seq: u64,
    code: u32,
    name: &'static str,
}

/// Asked each time that the connection's tick has passed without news: go on waiting?
pub(crate) type GoOn<'a> = &'a dyn Fn() -> bool;

/// Waits no longer than one tick.
pub(crate) const ONE_TICK: GoOn<'static> = &|| false;

/// A reply as it came: its body and descriptors.
type Raw = (Vec<u8>, Vec<OwnedFd>);

impl Connection {
    /// Speaks on `stream`, which is blocking.
    pub fn new(stream: UnixStream) -> Self {
        let buffers = Buffers {
            input: vec![0; FIRST_READ],
            control: nix::cmsg_space!([RawFd; MAX_FDS], UnixCredentials),
            owed: None,
        };
        Self {
            stream,
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
        let body = request_body(seq, flags, request);
        let owed = Owed {
            seq,
            code: R::CODE,
            name: R::NAME,
        };
        let mut buffers = lock(&self.buffers);
        let (reply, fds) = match buffers.owed {
            Some(own) if own.seq == seq && own.code == R::CODE => {
                self.receive(owed, &mut buffers, go_on)?
            }
            other => {
                if let Some(other) = other {
                    self.receive(other, &mut buffers, go_on)?;
                }
                self.send(R::CODE, flag::VERSION, &body, fds, go_on)?;
                self.receive(owed, &mut buffers, go_on)?
            }
        };
        drop(buffers);
        let malformed = |what: String| Error::Malformed {
            request: R::NAME,
            what,
        };
        let (head, payload) = split_reply(&reply).map_err(|e| malformed(e.to_string()))?;
        if head.seq != seq {
            return Err(malformed(format!("it answers {}, not {seq}", head.seq)));
        }
        if head.status != 0 {
            return Err(Error::Refused {
                request: R::NAME,
                errno: head.status.checked_neg().unwrap_or(Errno::EPROTO as i32),
                text: String::from_utf8_lossy(payload).into_owned(),
            });
        }
        let value = R::Reply::from_bytes(payload).map_err(|e| malformed(e.to_string()))?;
        Ok((value, fds))
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
        self.send(code, flags | flag::VERSION, body, fds, go_on)?;
        let owed = Owed { seq: 0, code, name };
        self.receive(owed, &mut buffers, go_on)
            .map(|(reply, _)| reply)
    }

    /// Sends a standard request that has no reply.
    pub(crate) fn standard_unanswered(
        &self,
        code: u32,
        body: &[u8],
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        let _turn = lock(&self.buffers);
        self.send(code, flag::VERSION, body, &[], go_on)
    }

    /// A read or write that waits longer than `tick` ends with ETIMEDOUT, or asks whether to go on.
    pub fn set_tick(&self, tick: Duration) -> Result<(), Error> {
        let set = |r: std::io::Result<()>| r.map_err(Error::os("setting a deadline"));
        let tick = Some(tick.max(SHORTEST_TICK));
        set(self.stream.set_read_timeout(tick))?;
        set(self.stream.set_write_timeout(tick))
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

    fn send(
        &self,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        if body.len() > MAX_BODY || fds.len() > MAX_FDS {
            return Err(Error::Invalid(format!(
                "a message of {} bytes and {} descriptors is too large",
                body.len(),
                fds.len()
            )));
        }
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        for word in [code, flags, body.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let mut sent = 0;
        while sent < message.len() {
            // The descriptors travel with the first byte.
            let control: &[ControlMessage<'_>] = if sent == 0 && !raw.is_empty() {
                &rights
            } else {
                &[]
            };
            let iov = [IoSlice::new(&message[sent..])];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(self.stream.as_raw_fd(), &iov, control, flags, None) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if go_on() => {}
                Err(Errno::EAGAIN) if sent > 0 => return Err(Error::Lost),
                Err(e) => return Err(socket_error(e)),
            }
        }
        Ok(())
    }

    /// Reads one reply. Nothing may follow it: the next reply is to a request not yet sent.
    fn receive(&self, owed: Owed, buffers: &mut Buffers, go_on: GoOn<'_>) -> Result<Raw, Error> {
        let malformed = |what: &str| Error::Malformed {
            request: owed.name,
            what: what.to_owned(),
        };
        buffers.owed = Some(owed);
        let mut fds = Vec::new();
        let mut have = 0;
        let mut want = HEADER_BYTES;
        while have < want {
            if buffers.input.len() < want {
                buffers.input.resize(want, 0);
            }
            let Buffers { input, control, .. } = buffers;
            let n = match self.read_some(&mut input[have..], control, &mut fds)? {
                Some(n) => n,
                None if go_on() => continue,
                // Of half a reply the rest could not be told from the next one.
                None if have > 0 => return Err(malformed("it does not end")),
                None => return Err(socket_error(Errno::EAGAIN)),
            };
            if fds.len() > MAX_REPLY_FDS {
                return Err(malformed("too many descriptors"));
            }
            if n == 0 {
                return Err(Error::Lost);
            }
            have += n;
            if have >= HEADER_BYTES && want == HEADER_BYTES {
                want += checked_size(input, owed.code).map_err(malformed)?;
            }
        }
        if have > want {
            return Err(malformed("bytes follow it"));
        }
        buffers.owed = None;
        let body = buffers.input[HEADER_BYTES..want].to_vec();
        buffers.input.truncate(FIRST_READ);
        Ok((body, fds))
    }

    /// One recvmsg: bytes read; none if a tick has passed.
    fn read_some(
        &self,
        into: &mut [u8],
        control: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Option<usize>, Error> {
        loop {
            let mut iov = [IoSliceMut::new(into)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = self.stream.as_raw_fd();
            match recvmsg::<UnixAddr>(fd, &mut iov, Some(&mut *control), flags) {
                Ok(message) => {
                    for control in message.cmsgs().into_iter().flatten() {
                        match control {
                            ControlMessageOwned::ScmRights(raw) => {
                                fds.extend(raw.into_iter().map(owned));
                            }
                            ControlMessageOwned::ScmCredentials(sender) => {
                                let pid = sender.pid().max(0) as u32;
                                self.sender.store(pid, Ordering::Relaxed);
                            }
                            _ => {}
                        }
                    }
                    return Ok(Some(message.bytes));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(e) => return Err(socket_error(e)),
            }
        }
    }
}

/// Size of the body that a reply's header announces.
fn checked_size(header: &[u8], code: u32) -> Result<usize, &'static str> {
    let word = |i: usize| {
        let bytes = header[i * 4..].first_chunk().copied();
        bytes.map_or(0, u32::from_ne_bytes)
    };
    let (found, flags, size) = (word(0), word(1), word(2) as usize);
    if found != code {
        return Err("it answers another request");
    }
    if flags & flag::VERSION_MASK != flag::VERSION || flags & flag::REPLY == 0 {
        return Err("its flags are not a reply's");
    }
    if size > MAX_BODY {
        return Err("it is too large");
    }
    Ok(size)
}

fn socket_error(errno: Errno) -> Error {
    match errno {
        Errno::EPIPE | Errno::ECONNRESET => Error::Lost,
        Errno::EAGAIN => Error::os("waiting for the daemon")(Errno::ETIMEDOUT),
        e => Error::os("speaking with the daemon")(e),
    }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for us by SCM_RIGHTS; nobody else in the
    // process knows its number, so that this is its only owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests;
