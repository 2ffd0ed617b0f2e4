//! What the front-end needs of the guest's RAM: one store, and what the daemon is handed to map.
//!
//! [`GuestRam`](crate::GuestRam) is the implementation over `vm-memory`. A VMM that has its own memory, or is written in
//! another language, brings its own.

use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

use crate::dirty_log::{DirtyPages, LOG_PAGE};
use crate::error::Error;

/// A region as SET_MEM_TABLE describes it.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes, at least one.
    pub len: u64,
    /// Where the VMM has it mapped: what vhost-user's ring addresses would mean.
    pub user: u64,
    /// Its start in `file`.
    pub offset: u64,
    /// What the daemon maps; none if it cannot be shared.
    pub file: Option<BorrowedFd<'a>>,
}

/// The guest's RAM.
pub trait Ram: Send + Sync {
    /// Stores a big-endian u32 at `gpa` (a multiple of 4) in one access and marks its page dirty, unless
    /// [`mark_dirty`](Self::mark_dirty) does. `false`: there is no RAM, nothing was written.
    ///
    /// Called inside a transition, on any thread that runs one: it must not block, nor call the front-end.
    /// The store may be relaxed: the data plane publishes it.
    fn write_u32_be(&self, gpa: u64, value: u32) -> bool;

    /// The store at `gpa` lies behind a full fence now: a mark of its page that is still there will be taken by
    /// somebody who sees the store. Called in the same transition as the store, in the same way.
    fn mark_dirty(&self, gpa: u64) {
        let _ = gpa;
    }

    /// The pages that [`write_u32_be`](Self::write_u32_be) has written since the last call, for
    /// [`Intc::take_dirty`](crate::Intc::take_dirty). None, if whoever stores marks them elsewhere.
    fn take_dirty(&self) -> DirtyPages {
        DirtyPages::default()
    }

    /// All of it. The same at every call.
    fn regions(&self) -> Vec<Region<'_>>;
}

/// The regions with the files that the daemon maps; an error if one has none.
pub(crate) fn shared(ram: &dyn Ram) -> Result<Vec<(Region<'_>, BorrowedFd<'_>)>, Error> {
    fn with_file(r: Region<'_>) -> Result<(Region<'_>, BorrowedFd<'_>), Error> {
        let none = || {
            Error::Invalid(format!(
                "the RAM at {:#x} has no file to share it by",
                r.gpa
            ))
        };
        Ok((r, r.file.ok_or_else(none)?))
    }
    ram.regions().into_iter().map(with_file).collect()
}

/// Where RAM is, in words of 64 pages of the dirty log.
pub(crate) struct Extent(Vec<(u64, u64)>);

impl Extent {
    /// Of all regions.
    pub fn of(ram: &dyn Ram) -> Self {
        let regions = ram.regions();
        Self(
            regions
                .iter()
                .map(|r| (r.gpa, r.gpa + (r.len - 1)))
                .collect(),
        )
    }

    /// The address after the last byte.
    pub fn end(&self) -> u64 {
        self.0.iter().map(|(_, last)| last + 1).max().unwrap_or(0)
    }

    /// For each region, the words of the log that it reaches into.
    pub fn log_words(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        let word = |gpa| gpa / LOG_PAGE / u64::from(u64::BITS);
        self.0
            .iter()
            .map(move |(first, last)| word(*first)..=word(*last))
    }

    /// Which pages of this word of the log are RAM.
    pub fn log_word(&self, word: u64) -> u64 {
        let first = word * u64::from(u64::BITS);
        let is_ram = |bit: &u32| {
            let page = (first + u64::from(*bit)) * LOG_PAGE;
            self.0
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&page))
        };
        let pages = (0..u64::BITS).filter(is_ram);
        pages.fold(0, |bits, bit| bits | 1 << bit)
    }
}
