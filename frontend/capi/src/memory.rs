//! The VMM's RAM: files that the daemon maps, and the VMM's own function for what the front-end writes.
//!
//! The VMM marks what its `write_u32` has stored; what the daemon writes is in the log that it is handed. So the
//! set of [`Intc::take_dirty`](papr_intc_frontend::Intc::take_dirty) has the daemon's pages only.
#![allow(unsafe_code)] // descriptors come as numbers

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use papr_intc_frontend::{Ram, Region};

use crate::boundary::Fail;
use crate::callbacks::Callbacks;
use crate::types;

/// A region with a descriptor of its own.
struct Shared {
    gpa: u64,
    len: u64,
    user: u64,
    offset: u64,
    file: OwnedFd,
}

/// What the VMM has described.
pub struct Memory {
    regions: Vec<Shared>,
    callbacks: Arc<Callbacks>,
}

/// A duplicate, close-on-exec, of a descriptor that the VMM keeps.
pub fn duplicate(fd: RawFd, name: &str) -> Result<OwnedFd, Fail> {
    if fd < 0 {
        return Err(Fail::new(
            Errno::EBADF,
            format!("{name} is {fd}, no descriptor"),
        ));
    }
    // SAFETY: not -1; only lent for the call that finds out whether it is open.
    let theirs = unsafe { BorrowedFd::borrow_raw(fd) };
    theirs.try_clone_to_owned().map_err(|e| {
        let errno = Errno::from_raw(e.raw_os_error().unwrap_or(nix::libc::EBADF));
        Fail::new(errno, format!("{name} is {fd}: {e}"))
    })
}

impl Memory {
    /// Duplicates the files.
    pub fn new(regions: &[types::Region], callbacks: Arc<Callbacks>) -> Result<Self, Fail> {
        let mut ends = 0;
        let mut sorted: Vec<&types::Region> = regions.iter().collect();
        sorted.sort_by_key(|r| r.gpa);
        for r in sorted {
            let end = r.gpa.checked_add(r.size).filter(|_| r.size > 0);
            let (Some(end), true) = (end, r.gpa >= ends) else {
                let why = format!(
                    "the region of {:#x} bytes at {:#x} is empty or overlaps another",
                    r.size, r.gpa
                );
                return Err(Fail::invalid(why));
            };
            ends = end;
        }
        let shared = |r: &types::Region| {
            Ok(Shared {
                gpa: r.gpa,
                len: r.size,
                user: r.host as u64,
                offset: r.offset,
                file: duplicate(r.fd, "the region's fd")?,
            })
        };
        let regions = regions.iter().map(shared).collect::<Result<_, Fail>>()?;
        Ok(Self { regions, callbacks })
    }
}

impl Ram for Memory {
    fn write_u32_be(&self, gpa: u64, value: u32) -> bool {
        self.callbacks.write_u32(gpa, value)
    }

    fn regions(&self) -> Vec<Region<'_>> {
        fn region(r: &Shared) -> Region<'_> {
            Region {
                gpa: r.gpa,
                len: r.len,
                user: r.user,
                offset: r.offset,
                file: Some(r.file.as_fd()),
            }
        }
        self.regions.iter().map(region).collect()
    }
}
