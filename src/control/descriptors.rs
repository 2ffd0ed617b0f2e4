//! What a descriptor from a VMM must be before the one thread that serves may wait on it, read it or
//! write it: anything else could block that thread, or wake it for ever.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt,
    sockopt,
};
use nix::sys::stat::fstat;

use super::Refused;

/// What the kernel calls an eventfd in /proc.
const EVENTFD: &str = "anon_inode:[eventfd]";

fn refused(why: &str) -> Refused {
    Refused::Value(why.into())
}

/// An eventfd that never blocks: EFD_NONBLOCK. `quick`: nobody but a VMM's thread waits for it, which may be woken for
/// nothing.
pub(super) fn check_eventfd(fd: impl AsFd, quick: bool) -> Result<(), Refused> {
    let fd = fd.as_fd();
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Refused::Os {
        what: "looking at an eventfd",
        source: e.into(),
    })?;
    if !OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK) {
        let why = "an eventfd has to be made with EFD_NONBLOCK";
        return Err(refused(why));
    }
    // Adds nothing to an eventfd. Of the files of that inode hardly another can be written at all.
    let takes_nothing = || nix::unistd::write(fd, &[0; 8]) == Ok(8);
    // What fails may have been interrupted: then the certain way decides.
    let seems_one = quick && is_nameless(fd) && takes_nothing();
    match seems_one || is_called_eventfd(fd) {
        true => Ok(()),
        false => Err(refused("a descriptor is not an eventfd")),
    }
}

/// The certain way, which takes 4 µs; a restart may have thousands of them to look at.
fn is_called_eventfd(fd: BorrowedFd<'_>) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    name.is_ok_and(|name| name.as_os_str() == EVENTFD)
}

/// One of the kernel's files without a place in any file system: all of them share an inode.
fn is_nameless(fd: BorrowedFd<'_>) -> bool {
    static INODE: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    let inode = |fd: BorrowedFd<'_>| fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let known = INODE.get_or_init(|| {
        let one = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()?;
        inode(one.0.as_fd())
    });
    known.is_some() && *known == inode(fd)
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
