//! Dirty logging for a migration's pre-copy: which pages of guest RAM were written, by whoever executes.
//!
//! Two writers, two logs: the front-end marks in the bitmap of its mapping ([`GuestRam`](crate::GuestRam)), always; the
//! daemon in a memfd that it is handed by SET_LOG_BASE, while LOG_ALL is acknowledged.
//! [`Intc::take_dirty`] empties both into one set. Every daemon, restarted or upgraded, is told in its
//! handshake what holds at that moment, before START, so that no write of its own goes unmarked; what a
//! predecessor wrote and was killed before it could mark, a successor marks at START (SPEC.md §1.9).
//!
//! Order, on both sides: the entry is stored, then its bit is set, with Release. Whoever takes the bit,
//! with Acquire, sees the entry. A write that comes later sets the bit again. So a page that is copied after its bit
//! was taken is either up to date or will be taken once more.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::connection::GoOn;
use crate::core::{Core, Topology, in_one_session};
use crate::error::Error;
use crate::intc::Intc;
use crate::ram::{Extent, Ram};
use crate::standard::{LOG_ALL, Standard};
use crate::sync::lock;

/// Bytes of a page of the log, whatever the host's pages are (VHOST_LOG_PAGE).
pub const LOG_PAGE: u64 = 4096;

/// Pages of one word.
const WORD: u64 = u64::BITS as u64;

/// A set of pages of guest RAM, of [`LOG_PAGE`] bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyPages {
    /// Page number / 64 → one bit for each page. No word is 0.
    words: BTreeMap<u64, u64>,
}

impl DirtyPages {
    /// No page.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.words.values().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The page of this guest physical address is in the set.
    pub fn contains(&self, gpa: u64) -> bool {
        let page = gpa / LOG_PAGE;
        let word = self.words.get(&(page / WORD)).copied().unwrap_or(0);
        word >> (page % WORD) & 1 == 1
    }

    /// Guest physical addresses of the pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().flat_map(|(word, bits)| {
            let set = (0..WORD).filter(move |bit| bits >> bit & 1 == 1);
            set.map(move |bit| (word * WORD + bit) * LOG_PAGE)
        })
    }

    /// Adds the pages of `other`, for instance those that could not be sent.
    pub fn merge(&mut self, other: &Self) {
        for (word, bits) in &other.words {
            self.add_word(*word, *bits);
        }
    }

    /// Adds the pages of the bytes `gpa..gpa + len`.
    pub(crate) fn add(&mut self, gpa: u64, len: u64) {
        if len == 0 {
            return;
        }
        for page in gpa / LOG_PAGE..=(gpa + (len - 1)) / LOG_PAGE {
            self.add_word(page / WORD, 1 << (page % WORD));
        }
    }

    fn add_word(&mut self, word: u64, bits: u64) {
        if bits != 0 {
            *self.words.entry(word).or_default() |= bits;
        }
    }
}

/// The log that daemons mark in: one bit for each page from address 0 on, the lowest bit first.
#[derive(Debug)]
pub(crate) struct SharedLog {
    memfd: File,
    bytes: u64,
    map: MmapRegion,
}

impl SharedLog {
    /// An empty log that reaches to the end of RAM: 32 MiB for each TiB, once it has been looked through.
    pub fn new(ram: &dyn Ram) -> Result<Self, Error> {
        let bytes = Extent::of(ram)
            .end()
            .div_ceil(LOG_PAGE * 8)
            .next_multiple_of(LOG_PAGE);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memfd = memfd_create(c"papr-intc-dirty-log", flags)
            .map_err(Error::os("making the dirty log"))?;
        let memfd = File::from(memfd);
        memfd
            .set_len(bytes)
            .map_err(Error::os("sizing the dirty log"))?;
        // The daemon gets a descriptor of it, and must not be able to take the pages away under us.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::os("sealing the dirty log"))?;
        let own = memfd
            .try_clone()
            .map_err(Error::os("duplicating the dirty log"))?;
        let map = MmapRegion::from_file(FileOffset::new(own, 0), bytes as usize)
            .map_err(|e| Error::os("mapping the dirty log")(std::io::Error::other(e)))?;
        Ok(Self { memfd, bytes, map })
    }

    /// Empties the log into `pages`. Bits of what is no RAM are dropped: the daemon set them.
    fn take_into(&self, ram: &dyn Ram, pages: &mut DirtyPages) {
        let extent = Extent::of(ram);
        for words in extent.log_words() {
            for word in words {
                let Ok(bits) = self.map.get_atomic_ref::<AtomicU64>(word as usize * 8) else {
                    continue;
                };
                // Relaxed: a bit that is not seen yet will be the next time.
                if bits.load(Ordering::Relaxed) != 0 {
                    // Acquire pairs with the daemon's Release: what was written before a bit is seen by
                    // who copies the page now.
                    let taken = u64::from_le(bits.swap(0, Ordering::Acquire));
                    pages.add_word(word, taken & extent.log_word(word));
                }
            }
        }
    }
}

/// Tells a daemon whether to log, and where: `features` are those that it was told and, if it can log,
/// LOG_ALL.
pub(crate) fn tell(
    core: &Core,
    features: u64,
    log: Option<&SharedLog>,
    standard: &Standard<'_>,
) -> Result<(), Error> {
    if !core.options.machine.ram_shared {
        // It writes no guest RAM.
        return Ok(());
    }
    match log {
        None => standard.set_features(features & !LOG_ALL),
        Some(_) if features & LOG_ALL == 0 => {
            Err(Error::Unfit("it cannot log dirty pages".to_owned()))
        }
        Some(log) => {
            standard.set_log_base(log.memfd.as_fd(), log.bytes)?;
            standard.set_features(features)
        }
    }
}

impl Intc {
    /// Starts dirty logging: when this returns, every write of the interrupt controller to guest RAM, by
    /// this process or by the daemon, will be found by [`take_dirty`](Self::take_dirty), over restarts and
    /// upgrades of the daemon too. Copy all of RAM after it, not before. Does nothing if logging is on.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the daemon cannot log; logging is off then. After [`Error::Cancelled`] the next
    /// daemon will log: call again, or [`stop_dirty_log`](Self::stop_dirty_log).
    pub fn start_dirty_log(&self) -> Result<(), Error> {
        let core = self.core();
        in_one_session(core, |topology| {
            let log = {
                let mut log = lock(&core.log);
                match &*log {
                    Some(log) => Arc::clone(log),
                    None => Arc::clone(log.insert(Arc::new(SharedLog::new(&*core.ram)?))),
                }
            };
            let told = tell_session(core, topology, Some(&log));
            if told.as_ref().is_err_and(|e| !matches!(e, Error::Lost)) {
                *lock(&core.log) = None;
            }
            told
        })
    }

    /// Stops dirty logging by the daemon and forgets what it marked and nobody took. Does nothing if logging
    /// is off.
    ///
    /// # Errors
    /// Those of a request; no daemon that comes later will log.
    pub fn stop_dirty_log(&self) -> Result<(), Error> {
        let core = self.core();
        in_one_session(core, |topology| {
            *lock(&core.log) = None;
            tell_session(core, topology, None)
        })
    }

    /// The pages written since the last call, by this process (everything that writes through
    /// [`GuestRam::memory`](crate::GuestRam::memory)) and, while logging is on, by the daemon. They are copied after this, not before.
    ///
    /// Needs no daemon, and can be called at any time from any thread. It looks through all of both logs: some 0.15 ms for
    /// each GiB of RAM. The set is final only if it was taken while the machine was quiesced
    /// ([`quiesce`](Self::quiesce)) and no device of the VMM writes.
    ///
    /// This clears the bitmaps of [`GuestRam::memory`](crate::GuestRam::memory): a VMM that reads those itself loses to whoever comes
    /// first.
    pub fn take_dirty(&self) -> DirtyPages {
        let core = self.core();
        let log = lock(&core.log).clone();
        let mut pages = core.ram.take_dirty();
        if let Some(log) = log {
            log.take_into(&*core.ram, &mut pages);
        }
        pages
    }
}

/// Tells the daemon that serves. The caller holds the topology lock: no handshake runs meanwhile.
fn tell_session(core: &Core, topology: &Topology, log: Option<&SharedLog>) -> Result<(), Error> {
    core.main.standard(|connection, go_on: GoOn<'_>| {
        let standard = Standard { connection, go_on };
        tell(core, topology.features, log, &standard)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_ram::GuestRam;

    #[test]
    fn pages_are_found_at_both_ends_of_a_word_and_come_in_order() {
        let mut pages = DirtyPages::default();
        assert!(pages.is_empty());
        pages.add(64 * LOG_PAGE, LOG_PAGE);
        pages.add(62 * LOG_PAGE + 4095, 2);
        pages.add(0, 1);
        pages.add(0, 0);
        let all: Vec<u64> = pages.iter().map(|gpa| gpa / LOG_PAGE).collect();
        assert_eq!(all, [0, 62, 63, 64]);
        assert_eq!(pages.count(), 4);
        assert!(pages.contains(63 * LOG_PAGE + 7) && !pages.contains(61 * LOG_PAGE));
    }

    #[test]
    fn sets_are_merged() {
        let (mut one, mut other) = (DirtyPages::default(), DirtyPages::default());
        one.add(0, 1);
        other.add(LOG_PAGE, 1);
        other.add(1 << 40, 1);
        one.merge(&other);
        assert_eq!(one.iter().collect::<Vec<_>>(), [0, LOG_PAGE, 1 << 40]);
    }

    #[test]
    fn the_log_is_the_specifications_lowest_bit_first_and_what_is_no_ram_is_dropped() {
        use std::os::unix::fs::FileExt;
        // Pages 0 to 8, and 16 to 19: three bytes.
        let ram = GuestRam::new(&[(0, 9 * LOG_PAGE), (16 * LOG_PAGE, 4 * LOG_PAGE)]).unwrap();
        let log = SharedLog::new(&ram).unwrap();
        assert_eq!(log.memfd.metadata().unwrap().len(), log.bytes);
        log.memfd.write_all_at(&[0x81, 0xff, 0xf2], 0).unwrap();
        let mut pages = DirtyPages::default();
        log.take_into(&ram, &mut pages);
        let all: Vec<u64> = pages.iter().map(|gpa| gpa / LOG_PAGE).collect();
        assert_eq!(all, [0, 7, 8, 17]);
        let mut again = DirtyPages::default();
        log.take_into(&ram, &mut again);
        assert!(again.is_empty());
    }

    #[test]
    fn nobody_can_cut_the_log_short() {
        let ram = GuestRam::new(&[(0, LOG_PAGE)]).unwrap();
        let log = SharedLog::new(&ram).unwrap();
        log.memfd.set_len(0).unwrap_err();
    }
}
