//! The client side of the framing: one request, one reply, descriptors by SCM_RIGHTS (SPEC.md §1.1).
//!
//! A [`Connection`] knows nothing of restarts, sequence numbers or waiting for a daemon; that is
//! [`channel`](crate::channel)'s. It serves PAPR messages and the few standard ones of the handshake
//! through the same reader. (`vhost::vhost_user::Frontend` could share the stream, but it reads
//! without a deadline: a daemon that stops inside the handshake would hold the supervisor for ever.)
//!
//! Requests of several threads queue on a lock; one is outstanding at a time. [`Connection::close`]
//! works from any thread and ends a blocked request.
#![allow(unsafe_code)] // received descriptors become owned ones in `owned`; argued there

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use papr_intc_protocol::wire::{
    HEADER_BYTES, MAX_BODY, MAX_FDS, Request, Wire, flag, request_body, split_reply,
};

use crate::error::Error;
use crate::sync::lock;

/// Most descriptors that a reply carries; more are a protocol error. There is room for [`MAX_FDS`], so
/// that the kernel never cuts the list and every descriptor that came is closed.
const MAX_REPLY_FDS: usize = 4;
/// Replies up to this size are read by one system call.
const FIRST_READ: usize = 4096;

/// One stream to a daemon.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Held from the first byte of a request to the last of its reply.
    buffers: Mutex<Buffers>,
}

#[derive(Debug)]
struct Buffers {
    input: Vec<u8>,
    control: Vec<u8>,
}

/// A reply as it came: its body and descriptors.
type Raw = (Vec<u8>, Vec<OwnedFd>);

impl Connection {
    /// Speaks on `stream`, which is blocking.
    pub fn new(stream: UnixStream) -> Self {
        let buffers = Buffers {
            input: vec![0; FIRST_READ],
            control: nix::cmsg_space!([RawFd; MAX_FDS]),
        };
        Self {
            stream,
            buffers: Mutex::new(buffers),
        }
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
        let body = request_body(seq, flags, request);
        let (reply, fds) = self.round_trip(R::NAME, R::CODE, flag::VERSION, &body, fds)?;
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

    /// Sends a standard vhost-user message; `flags` beside the version. Waits for a reply of exactly
    /// eight bytes if `answered`.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange), but a refusal is in the reply's value.
    pub fn standard(
        &self,
        name: &'static str,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        answered: bool,
    ) -> Result<u64, Error> {
        let flags = flags | flag::VERSION;
        if !answered {
            let _turn = lock(&self.buffers);
            return self.send(code, flags, body, fds).map(|()| 0);
        }
        let (reply, _) = self.round_trip(name, code, flags, body, fds)?;
        u64::from_bytes(&reply).map_err(|e| Error::Malformed {
            request: name,
            what: e.to_string(),
        })
    }

    /// From now on a read or write that waits longer than `limit` ends with ETIMEDOUT.
    pub fn set_deadline(&self, limit: Option<Duration>) -> Result<(), Error> {
        let set = |r: std::io::Result<()>| r.map_err(Error::os("setting a deadline"));
        set(self.stream.set_read_timeout(limit))?;
        set(self.stream.set_write_timeout(limit))
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

    fn round_trip(
        &self,
        name: &'static str,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Raw, Error> {
        let mut buffers = lock(&self.buffers);
        self.send(code, flags, body, fds)?;
        self.receive(name, code, &mut buffers)
    }

    fn send(
        &self,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
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
                Err(e) => return Err(socket_error(e)),
            }
        }
        Ok(())
    }

    /// Reads one reply. Nothing may follow it: the next reply is to a request not yet sent.
    fn receive(&self, name: &'static str, code: u32, buffers: &mut Buffers) -> Result<Raw, Error> {
        let malformed = |what: &str| Error::Malformed {
            request: name,
            what: what.to_owned(),
        };
        let mut fds = Vec::new();
        let mut have = 0;
        let mut want = HEADER_BYTES;
        while have < want {
            if buffers.input.len() < want {
                buffers.input.resize(want, 0);
            }
            let Buffers { input, control } = buffers;
            let n = self.read_some(&mut input[have..], control, &mut fds)?;
            if fds.len() > MAX_REPLY_FDS {
                return Err(malformed("too many descriptors"));
            }
            if n == 0 {
                return Err(Error::Lost);
            }
            have += n;
            if have >= HEADER_BYTES && want == HEADER_BYTES {
                want += checked_size(input, code).map_err(malformed)?;
            }
        }
        if have > want {
            return Err(malformed("bytes follow it"));
        }
        let body = buffers.input[HEADER_BYTES..want].to_vec();
        buffers.input.truncate(FIRST_READ);
        Ok((body, fds))
    }

    /// One recvmsg: bytes read.
    fn read_some(
        &self,
        into: &mut [u8],
        control: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<usize, Error> {
        loop {
            let mut iov = [IoSliceMut::new(into)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = self.stream.as_raw_fd();
            match recvmsg::<UnixAddr>(fd, &mut iov, Some(&mut *control), flags) {
                Ok(message) => {
                    for control in message.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::ScmRights(raw) = control {
                            fds.extend(raw.into_iter().map(owned));
                        }
                    }
                    return Ok(message.bytes);
                }
                Err(Errno::EINTR) => {}
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
