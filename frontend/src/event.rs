//! An eventfd that this crate owns: made by it, or duplicated (close-on-exec) from the VMM's.
#![allow(unsafe_code)] // vmm-sys-util lends its descriptor as a number only

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::Error;

/// A non-blocking counter.
#[derive(Debug)]
pub(crate) struct Event(pub(crate) OwnedFd);

impl Event {
    /// A fresh one, at zero.
    pub fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        EventFd::from_flags(flags)
            .map(|fd| Self(OwnedFd::from(fd)))
            .map_err(Error::os("making an eventfd"))
    }

    /// The VMM's, duplicated.
    pub fn duplicate(theirs: &vmm_sys_util::eventfd::EventFd) -> Result<Self, Error> {
        // SAFETY: `theirs` owns the descriptor and is borrowed for longer than this value lives.
        let borrowed = unsafe { BorrowedFd::borrow_raw(theirs.as_raw_fd()) };
        borrowed
            .try_clone_to_owned()
            .map(Self)
            .map_err(Error::os("duplicating an eventfd"))
    }

    /// Sets the count to zero; `true` if it was not.
    pub fn take(&self) -> bool {
        self.take_count() != 0
    }

    /// Sets the count to zero; what it was.
    pub fn take_count(&self) -> u64 {
        let mut count = [0; 8];
        match nix::unistd::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Adds one. A counter that is full is as good as one more.
    pub fn signal(&self) {
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
