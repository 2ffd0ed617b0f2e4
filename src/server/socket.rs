//! Framing on a stream socket: whole messages with their descriptors, in and out.
//!
//! Follows SPEC.md, framing: a 12-byte header `{u32 request, u32 flags, u32 size}` in host byte order, then `size` bytes
//! of body; descriptors travel by SCM_RIGHTS with the header, and are accepted with the body too. Limits: 253
//! descriptors per message, 65,536 bytes of body on PAPR codes, 4,096 on standard ones; a header that breaks a limit
//! is refused before any of its body is read.
//!
//! A [`Reader`] holds the message a connection is in the middle of. It belongs to one connection and one thread, never
//! blocks, and never reads past the end of a message, because only then is it certain whose descriptors have arrived.
//! This file does not interpret requests, does not own sockets and does not log.

// UNSAFETY: a descriptor received by SCM_RIGHTS is a bare number; `receive` alone makes it an `OwnedFd`.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recvmsg};

mod send;
#[cfg(test)]
mod tests;

pub use send::{SEND_DEADLINE, SendError, header, send_message};
pub(super) use send::{compose, errno, send_bytes};

/// Bytes of a message header.
pub const HEADER_LEN: usize = 12;
/// Descriptors one message may carry: the kernel's own limit for one SCM_RIGHTS record.
pub const MAX_FDS: usize = 253;
/// The first PAPR request code; lower codes are the standard vhost-user requests.
pub const PAPR_FIRST: u32 = 0x1000;
/// Largest body of a PAPR message, in bytes.
pub const MAX_PAPR_BODY: usize = 65_536;
/// Largest body of a standard vhost-user message, in bytes.
pub const MAX_STANDARD_BODY: usize = 4_096;
/// Bits 0-1 of the flags: the version of the framing.
pub const FLAG_VERSION_MASK: u32 = 0x3;
/// The only version there is.
pub const FLAG_VERSION: u32 = 0x1;
/// Bit 2 of the flags: the message is a reply.
pub const FLAG_REPLY: u32 = 0x4;
/// Bit 3 of the flags: the sender of a standard request wants an acknowledgement.
pub const FLAG_NEED_REPLY: u32 = 0x8;

/// System calls one [`Reader::poll_message`] makes at most: a peer that feeds single bytes as fast as they are read
/// gets no more of the thread than anybody else.
pub(super) const READS_PER_POLL: usize = 16;

/// Largest body, in bytes, that a message with this request code may have.
#[must_use]
pub const fn body_limit(request: u32) -> usize {
    if request >= PAPR_FIRST {
        MAX_PAPR_BODY
    } else {
        MAX_STANDARD_BODY
    }
}

/// One message as it came from, or goes to, the socket.
#[derive(Debug)]
pub struct RawMessage {
    /// Request code.
    pub request: u32,
    /// Flags as received: version, reply, need-reply, and whatever the peer put into the reserved bits.
    pub flags: u32,
    /// Body, `size` bytes.
    pub body: Vec<u8>,
    /// Descriptors, in the order in which they were sent; closed when the message is dropped.
    pub fds: Vec<OwnedFd>,
}

impl RawMessage {
    /// A reply to `request` without descriptors.
    #[must_use]
    pub fn reply(request: u32, body: Vec<u8>) -> Self {
        Self {
            request,
            flags: FLAG_VERSION | FLAG_REPLY,
            body,
            fds: Vec::new(),
        }
    }

    /// The sender asked for an acknowledgement. Means nothing on PAPR codes, which are always answered.
    #[must_use]
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// The message is a reply.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// Sends this message, see [`send_message`]. The descriptors stay open here.
    ///
    /// # Errors
    /// As [`send_message`].
    pub fn send(&self, socket: impl AsFd, within: Duration) -> Result<(), SendError> {
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        send_message(socket, self.request, self.flags, &self.body, &fds, within)
    }
}

/// Why nothing more can be read from a connection. All of them end it: the stream is out of step.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The version bits are not 1.
    #[error("request {request:#x} has framing version {version}, only 1 is spoken")]
    Version {
        /// Request code of the header.
        request: u32,
        /// Version found.
        version: u32,
    },
    /// The header announces more than the limit. Nothing of the body was read.
    #[error("request {request:#x} announces {size} bytes of body, the limit is {limit}")]
    Oversize {
        /// Request code of the header.
        request: u32,
        /// Announced size in bytes.
        size: u32,
        /// [`body_limit`] of this request, in bytes.
        limit: usize,
    },
    /// More than [`MAX_FDS`] descriptors came with one message. All of them have been closed.
    #[error("a message carries more than {MAX_FDS} descriptors")]
    TooManyFds,
    /// The kernel could not hand over every descriptor, as a rule because this process is at its limit of open files.
    /// Those that did arrive have been closed.
    #[error("descriptors were lost in transit (limit of open files?)")]
    FdsLost,
    /// The peer hung up in the middle of a message.
    #[error(
        "the peer hung up inside a message, {missing} bytes before its end or the end of its header"
    )]
    Truncated {
        /// Bytes that were still to come.
        missing: usize,
    },
    /// Nothing complete came in the time allowed. Only from [`recv_message`].
    #[error("no complete message within the time allowed")]
    TimedOut,
    /// The socket failed.
    #[error("receive failed: {0}")]
    Socket(#[from] Errno),
}

/// What [`Reader::poll_message`] found.
#[derive(Debug)]
pub enum Progress {
    /// One whole message. More may be waiting.
    Ready(RawMessage),
    /// Nothing whole yet; call again when the socket polls readable (level-triggered: it may be so at once).
    Pending,
    /// The peer hung up between two messages.
    Closed,
}

/// A header that keeps the limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    /// Bytes of body.
    pub(super) size: usize,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, ReceiveError> {
        let (request, flags, size) = (word(bytes, 0), word(bytes, 4), word(bytes, 8));
        let (version, limit) = (flags & FLAG_VERSION_MASK, body_limit(request));
        if version != FLAG_VERSION {
            return Err(ReceiveError::Version { request, version });
        }
        if size as usize > limit {
            return Err(ReceiveError::Oversize {
                request,
                size,
                limit,
            });
        }
        Ok(Self {
            request,
            flags,
            size: size as usize,
        })
    }
}

/// What a connection is in the middle of.
#[derive(Debug)]
enum State {
    Header {
        bytes: [u8; HEADER_LEN],
        have: usize,
    },
    Body {
        header: Header,
        bytes: Vec<u8>,
        have: usize,
    },
    Broken,
}

const EMPTY: State = State::Header {
    bytes: [0; HEADER_LEN],
    have: 0,
};

/// The receiving half of one connection.
#[derive(Debug)]
pub struct Reader {
    state: State,
    fds: Vec<OwnedFd>,
    // Room for one SCM_RIGHTS record of MAX_FDS. On the heap, so that it is aligned as a cmsghdr wants it.
    ancillary: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader that stands before the first byte of a message.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: EMPTY,
            fds: Vec::new(),
            ancillary: nix::cmsg_space!([RawFd; MAX_FDS]),
        }
    }

    /// Part of a message has arrived and the rest has not.
    #[must_use]
    pub fn mid_message(&self) -> bool {
        match &self.state {
            State::Header { have, .. } => *have > 0,
            State::Body { .. } => true,
            State::Broken => false,
        }
    }

    /// Reads what has arrived on `socket`, up to the end of one message, without blocking, whether or not the socket
    /// is non-blocking.
    ///
    /// # Errors
    /// See [`ReceiveError`]. The descriptors of the unfinished message are closed; every further call says `Closed`.
    pub fn poll_message(&mut self, socket: impl AsFd) -> Result<Progress, ReceiveError> {
        let result = self.advance(socket.as_fd());
        if !matches!(result, Ok(Progress::Ready(_) | Progress::Pending)) {
            self.state = State::Broken;
            self.fds.clear();
        }
        result
    }

    fn advance(&mut self, socket: BorrowedFd<'_>) -> Result<Progress, ReceiveError> {
        for _ in 0..READS_PER_POLL {
            let (buffer, have) = match &mut self.state {
                State::Header { bytes, have } => (&mut bytes[..], have),
                State::Body { bytes, have, .. } => (&mut bytes[..], have),
                State::Broken => return Ok(Progress::Closed),
            };
            if *have < buffer.len() {
                match receive(
                    socket,
                    &mut buffer[*have..],
                    &mut self.ancillary,
                    &mut self.fds,
                )? {
                    Received::Nothing => return Ok(Progress::Pending),
                    Received::Bytes(n) => *have += n,
                    Received::End => {
                        let missing = buffer.len() - *have;
                        return if self.mid_message() {
                            Err(ReceiveError::Truncated { missing })
                        } else {
                            Ok(Progress::Closed)
                        };
                    }
                }
            }
            if let Some(message) = self.take_if_whole()? {
                return Ok(Progress::Ready(message));
            }
        }
        Ok(Progress::Pending)
    }

    /// Goes from a complete header to its body, and hands out a complete body.
    fn take_if_whole(&mut self) -> Result<Option<RawMessage>, ReceiveError> {
        if self.fds.len() > MAX_FDS {
            return Err(ReceiveError::TooManyFds);
        }
        if let State::Header {
            bytes,
            have: HEADER_LEN,
        } = &self.state
        {
            let header = Header::parse(bytes)?;
            self.state = State::Body {
                header,
                bytes: vec![0; header.size],
                have: 0,
            };
        }
        match &mut self.state {
            State::Body {
                header,
                bytes,
                have,
            } if *have == bytes.len() => {
                let message = RawMessage {
                    request: header.request,
                    flags: header.flags,
                    body: std::mem::take(bytes),
                    fds: std::mem::take(&mut self.fds),
                };
                self.state = EMPTY;
                Ok(Some(message))
            }
            _ => Ok(None),
        }
    }
}

/// One header field.
fn word(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

enum Received {
    Bytes(usize),
    Nothing,
    End,
}

/// One recvmsg: bytes into `buffer` (not empty), descriptors appended to `fds`.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    ancillary: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Received, ReceiveError> {
    // The record is parsed from this buffer, not through nix: nix shows nothing of a truncated record, and the
    // descriptors that were installed before the truncation would stay open for ever. Zeroed, an absent record reads
    // as one of length zero.
    ancillary.fill(0);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut vectors = [IoSliceMut::new(buffer)];
    let received = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut vectors,
            Some(&mut *ancillary),
            flags,
        ) {
            Ok(message) => break (message.bytes, message.flags),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            Err(Errno::ECONNRESET) => return Ok(Received::End),
            Err(error) => return Err(error.into()),
        }
    };
    for number in rights(ancillary) {
        // SAFETY: the buffer was all zero before this recvmsg, so every number in a SCM_RIGHTS record was put there by
        // the kernel, which installed it in this process's table for this call. Nobody else has seen it, and it is
        // taken exactly once: `rights` yields each number of the record once, and the buffer is zeroed before reuse.
        fds.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    if received.1.contains(MsgFlags::MSG_CTRUNC) {
        return Err(ReceiveError::FdsLost);
    }
    Ok(if received.0 == 0 {
        Received::End
    } else {
        Received::Bytes(received.0)
    })
}

/// The descriptor numbers in a buffer of control messages. Follows cmsg(3): a `cmsghdr` is `{size_t len, int level,
/// int type}`, `len` counts it, and records start at multiples of the word size.
fn rights(control: &[u8]) -> impl Iterator<Item = RawFd> {
    const WORD: usize = size_of::<usize>();
    const HEADER: usize = (WORD + 8).next_multiple_of(WORD);
    let int = |bytes: &[u8]| bytes.try_into().map_or(0, libc::c_int::from_ne_bytes);
    let mut rest = control;
    std::iter::from_fn(move || {
        let len = usize::from_ne_bytes(rest.get(..WORD)?.try_into().ok()?);
        let record = rest.get(..len)?;
        let payload = record.get(HEADER..)?;
        let is_rights = int(&record[WORD..WORD + 4]) == libc::SOL_SOCKET
            && int(&record[WORD + 4..WORD + 8]) == libc::SCM_RIGHTS;
        rest = rest.get(len.next_multiple_of(WORD)..).unwrap_or_default();
        Some(if is_rights { payload } else { &[] })
    })
    .flat_map(move |payload| payload.chunks_exact(4).map(int))
}

/// Receives one message, waiting at most `within` (`None`: as long as it takes). `Ok(None)`: the peer hung up between
/// two messages. For callers that have nothing else to do; a thread that serves several connections keeps a [`Reader`]
/// for each.
///
/// # Errors
/// See [`ReceiveError`]; after any of them, [`ReceiveError::TimedOut`] included, the connection must be dropped.
pub fn recv_message(
    socket: impl AsFd,
    within: Option<Duration>,
) -> Result<Option<RawMessage>, ReceiveError> {
    let until = within.map(|time| Instant::now() + time);
    let mut reader = Reader::new();
    loop {
        match reader.poll_message(&socket)? {
            Progress::Ready(message) => return Ok(Some(message)),
            Progress::Closed => return Ok(None),
            Progress::Pending => {
                if !wait(socket.as_fd(), PollFlags::POLLIN, until)? {
                    return Err(ReceiveError::TimedOut);
                }
            }
        }
    }
}

/// Waits until the socket is ready or has failed; false when `until` has passed and it is not. Looks once even if the time
/// is over: this process may have been stopped in between, and the peer may not.
fn wait(socket: BorrowedFd<'_>, events: PollFlags, until: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, or the last millisecond would be a busy loop.
        let timeout = match left {
            None => PollTimeout::NONE,
            Some(left) if left.is_zero() => PollTimeout::ZERO,
            Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut [PollFd::new(socket, events)], timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}
