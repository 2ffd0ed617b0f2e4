//! The sending half: whole messages out, within a time.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{SendFlags, send};

use super::{
    FLAG_VERSION, FLAG_VERSION_MASK, HEADER_LEN, MAX_FDS, MAX_PAPR_BODY, body_limit, wait,
};

/// How long a message may take to leave before its connection is given up.
pub const SEND_DEADLINE: Duration = Duration::from_secs(2);

/// Why a message was not sent. Unless it is [`SendError::Oversize`] or [`SendError::TooManyFds`], part of it may have
/// gone out, and the connection must be dropped.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The body is larger than [`body_limit`]; nothing was sent.
    #[error("a body of {0} bytes is over the limit")]
    Oversize(usize),
    /// More than [`MAX_FDS`] descriptors; nothing was sent.
    #[error("{0} descriptors are over the limit of {MAX_FDS}")]
    TooManyFds(usize),
    /// The peer did not make room in the time allowed.
    #[error("the peer does not read: not sent within the time allowed")]
    TimedOut,
    /// The socket failed; EPIPE when the peer has hung up.
    #[error("send failed: {0}")]
    Socket(#[from] Errno),
}

/// Sends one message; the version bits of `flags` are set here. Waits for room at most `within`, whether or not the
/// socket is non-blocking, so a peer that stopped reading cannot hold the thread.
///
/// # Errors
/// See [`SendError`].
pub fn send_message(
    socket: impl AsFd,
    request: u32,
    flags: u32,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
    within: Duration,
) -> Result<(), SendError> {
    if body.len() > body_limit(request) {
        return Err(SendError::Oversize(body.len()));
    }
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    compose(&mut message, request, flags, |out| {
        out.extend_from_slice(body);
    });
    send_bytes(socket, &message, fds, within)
}

/// Makes a message in `out`, in place of what it held.
pub(in crate::server) fn compose(
    out: &mut Vec<u8>,
    request: u32,
    flags: u32,
    body: impl FnOnce(&mut Vec<u8>),
) {
    out.clear();
    out.extend_from_slice(&[0; HEADER_LEN]);
    body(out);
    // Below 2^32: what is sent is limited before it is made.
    let size = (out.len() - HEADER_LEN) as u32;
    out[..HEADER_LEN].copy_from_slice(&header(request, flags, size));
}

/// Sends what [`compose`] made, as [`send_message`].
pub(in crate::server) fn send_bytes(
    socket: impl AsFd,
    message: &[u8],
    mut fds: &[BorrowedFd<'_>],
    within: Duration,
) -> Result<(), SendError> {
    if message.len() > HEADER_LEN + MAX_PAPR_BODY {
        return Err(SendError::Oversize(message.len() - HEADER_LEN));
    }
    if fds.len() > MAX_FDS {
        return Err(SendError::TooManyFds(fds.len()));
    }
    let socket = socket.as_fd();
    let mut until = None;
    let mut sent = 0;
    while sent < message.len() {
        match send_some(socket, &message[sent..], fds) {
            // The descriptors went with the first byte.
            Ok(n) => {
                sent += n;
                fds = &[];
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let until = until.get_or_insert_with(|| Instant::now() + within);
                if !wait(socket, PollFlags::POLLOUT, Some(*until))? {
                    return Err(SendError::TimedOut);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One system call: how many bytes have gone.
fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    if fds.is_empty() {
        return send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map_err(errno);
    }
    let how = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let record = [ControlMessage::ScmRights(&numbers)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &record,
        how,
        None,
    )
}

/// The same number, as the other library has it.
pub(in crate::server) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// The header of a message, in host byte order, with the version set.
#[must_use]
pub fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
    let flags = (flags & !FLAG_VERSION_MASK) | FLAG_VERSION;
    let mut bytes = [0; HEADER_LEN];
    bytes[0..4].copy_from_slice(&request.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&size.to_ne_bytes());
    bytes
}
