//! memfd, seals, and the lock that says who serves.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::MemoryError;

fn os(what: &'static str) -> impl FnOnce(Errno) -> MemoryError {
    move |e| MemoryError::Os {
        what,
        source: e.into(),
    }
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// A memfd of `size` zero bytes, sealed.
pub(super) fn create(size: u64) -> Result<File, MemoryError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"papr-intc", flags).map_err(os("memfd_create"))?);
    file.set_len(size).map_err(|source| MemoryError::Os {
        what: "sizing the memfd",
        source,
    })?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals())).map_err(os("sealing the memfd"))?;
    Ok(file)
}

/// Refuses a memfd that its holder could shrink under a mapping.
pub(super) fn check_seals(file: &File) -> Result<(), MemoryError> {
    let found = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).map_err(os("reading the seals"))?;
    if SealFlag::from_bits_truncate(found).contains(seals()) {
        Ok(())
    } else {
        Err(MemoryError::Seals)
    }
}

/// Bytes of a memfd.
pub(super) fn size(file: &File) -> Result<u64, MemoryError> {
    let meta = file.metadata();
    meta.map(|m| m.len()).map_err(|source| MemoryError::Os {
        what: "reading the size",
        source,
    })
}

/// Takes the lock of the serving daemon: exclusive, on an open file description of our own, so that it
/// goes with this process. The description that travels between VMM and daemons is shared by all of
/// them: a lock on it would exclude nobody, and would last as long as the VMM. The whole file, from 0
/// to the end. The lock is held as long as the returned file is open.
pub(super) fn lock(shared: &File) -> Result<File, MemoryError> {
    let path = format!("/proc/self/fd/{}", shared.as_raw_fd());
    let file = File::options().read(true).write(true).open(path);
    let file = file.map_err(|source| MemoryError::Os {
        what: "reopening the memfd",
        source,
    })?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(file),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(MemoryError::Locked),
        Err(e) => Err(os("locking the memfd")(e)),
    }
}
