//! What a descriptor from a VMM must be before the one thread that serves may wait on it, read it or
//! write it: anything else could block that thread, or wake it for ever.

use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt,
    sockopt,
};

use super::Refused;

/// What the kernel calls an eventfd in /proc.
const EVENTFD: &str = "anon_inode:[eventfd]";

fn refused(why: &str) -> Refused {
    Refused::Value(why.into())
}

/// An eventfd that never blocks: EFD_NONBLOCK.
pub(super) fn check_eventfd(fd: impl AsFd) -> Result<(), Refused> {
    let fd = fd.as_fd();
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    if name.is_ok_and(|name| name.as_os_str() != EVENTFD) {
        return Err(refused("a descriptor is not an eventfd"));
    }
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Refused::Os {
        what: "looking at an eventfd",
        source: e.into(),
    })?;
    if OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK) {
        Ok(())
    } else {
        Err(refused("an eventfd has to be made with EFD_NONBLOCK"))
    }
}

/// A stream socket of the Unix domain.
pub fn is_stream_socket(fd: impl AsFd) -> nix::Result<bool> {
    let fd = fd.as_fd();
    let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let is_unix = name.family() == Some(AddressFamily::Unix);
    Ok(is_unix && getsockopt(&fd, sockopt::SockType)? == SockType::Stream)
}

/// One end of a connected pair of stream sockets.
pub(super) fn check_channel(fd: impl AsFd) -> Result<(), Refused> {
    let fd = fd.as_fd();
    let connected = || getpeername::<SockaddrStorage>(fd.as_raw_fd()).is_ok();
    if is_stream_socket(fd).unwrap_or(false) && connected() {
        Ok(())
    } else {
        let why = "a channel is one end of a connected Unix stream socket";
        Err(refused(why))
    }
}
