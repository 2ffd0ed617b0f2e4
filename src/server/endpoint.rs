//! An inherited descriptor becomes a socket (`--fd`).
#![allow(unsafe_code)] // a number from the command line becomes an owned descriptor, argued below

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{Backlog, getsockopt, listen, sockopt};

use crate::control::descriptors::is_stream_socket;

/// Takes over descriptor `number`, which a parent process left us; it must be a Unix stream socket. Not
/// passed on to children of ours. 0 is the front-end's choice: as standard input the socket reaches
/// this process and no other that the VMM starts at the same time.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    let is_output = (1..=2).contains(&number);
    if number < 0 || is_output {
        return Err(io::Error::other(
            "not a descriptor that a parent could have left",
        ));
    }
    // SAFETY: the number comes from the command line, where the parent says that it left us this
    // descriptor and nobody else in this process knows of it. This runs before any other descriptor
    // but stdio and the signalfd was opened; `fcntl` below refuses a closed number before anything
    // relies on it, and a number that hits one of our own descriptors fails the check for a Unix socket.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let check = || -> nix::Result<bool> {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        is_stream_socket(&fd)
    };
    match check() {
        Ok(true) => Ok(fd),
        Ok(false) => Err(io::Error::other("not a Unix stream socket")),
        Err(e) => {
            // Not ours to close: it may not even be open.
            std::mem::forget(fd);
            Err(e.into())
        }
    }
}

/// The socket listens (SO_ACCEPTCONN); otherwise it is connected, or useless.
pub fn is_listening(fd: &OwnedFd) -> io::Result<bool> {
    Ok(getsockopt(fd, sockopt::AcceptConn)?)
}

/// Whoever connects from now on sees this process as its peer (SO_PEERCRED), not the one that made the socket.
pub fn listen_anew(fd: &OwnedFd) -> io::Result<()> {
    Ok(listen(fd, Backlog::MAXCONN)?)
}
