//! Mappings of other people's files: guest RAM and its dirty log. Kept out of core dumps and of children, and guarded: a
//! file that its owner cut short costs its region, not the process.
//!
//! A load or store beyond the end of a mapped file raises SIGBUS. The handler puts private zero pages in the
//! place of the whole region and marks it dead; the access goes on and reaches nobody. A SIGBUS anywhere
//! else keeps its default action. (The front-end lives in somebody else's process and installs no handler: there the
//! VMM's own access would have met the same end.)
//!
//! The table of regions is written by whoever changes the memory table and read by the handler, on any
//! thread: atomics, a region is named by its start and published by its end.
#![allow(unsafe_code)] // a signal handler, madvise, and a mapping replaced in place

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;

/// As many as a front-end may share, and a log.
const REGIONS: usize = 512;

struct Region {
    start: AtomicUsize,
    /// 0: the slot is free.
    end: AtomicUsize,
    dead: AtomicBool,
    /// The log has a line about it.
    told: AtomicBool,
}

static GUARDED: [Region; REGIONS] = [const {
    Region {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        dead: AtomicBool::new(false),
        told: AtomicBool::new(false),
    }
}; REGIONS];
/// Some region is dead: the hot path asks only this.
static ANY_DEAD: AtomicBool = AtomicBool::new(false);

impl Region {
    fn range(&self) -> Range<usize> {
        // Acquire pairs with the Release in `guard`: an end is seen with its start.
        let end = self.end.load(Ordering::Acquire);
        self.start.load(Ordering::Relaxed)..end
    }
}

/// Catches SIGBUS from now on.
pub fn install() -> Result<(), Errno> {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler does only what a handler may: atomics, mmap and sigaction, which are system calls.
    Errno::result(unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) }).map(drop)
}

/// These regions are guarded from now on, too.
pub fn guard(regions: &[Range<usize>]) {
    for region in regions {
        if GUARDED.iter().any(|slot| slot.range() == *region) {
            continue;
        }
        keep_private(region);
        let Some(slot) = GUARDED.iter().find(|slot| slot.range().end == 0) else {
            log::error!("more regions than can be guarded");
            return;
        };
        slot.dead.store(false, Ordering::Relaxed);
        slot.told.store(false, Ordering::Relaxed);
        slot.start.store(region.start, Ordering::Relaxed);
        // Release pairs with `Region::range`.
        slot.end.store(region.end, Ordering::Release);
    }
}

/// Only these regions are guarded from now on; nobody uses the others any more.
pub fn guard_only(regions: &[Range<usize>]) {
    for slot in &GUARDED {
        if !regions.contains(&slot.range()) {
            slot.end.store(0, Ordering::Release);
        }
    }
}

/// What was stored at `address` went nowhere: its region's file was cut short.
#[inline]
pub fn is_lost(address: usize) -> bool {
    // Relaxed: set on this very thread, by the handler, before the access went on.
    ANY_DEAD.load(Ordering::Relaxed) && is_dead(address)
}

#[cold]
fn is_dead(address: usize) -> bool {
    let hit = GUARDED.iter().find(|slot| slot.range().contains(&address));
    let Some(slot) = hit.filter(|slot| slot.dead.load(Ordering::Relaxed)) else {
        return false;
    };
    if !slot.told.swap(true, Ordering::Relaxed) {
        let bytes = slot.range().len();
        log::error!("guest RAM is gone: the file of a region of {bytes:#x} bytes was cut short");
    }
    true
}

/// Neither in core dumps nor in children: the VMM's secrets, and a dump of gigabytes would keep its
/// news of our death waiting.
fn keep_private(region: &Range<usize>) {
    for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
        // SAFETY: advice on a mapping of ours changes neither its place nor its contents.
        let done = unsafe { libc::madvise(region.start as *mut _, region.len(), advice) };
        if let Err(e) = Errno::result(done) {
            log::warn!("madvise {advice}: {e}");
        }
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let hit = GUARDED.iter().find(|slot| slot.range().contains(&address));
    if let Some(slot) = hit
        && replace(slot.range())
    {
        slot.dead.store(true, Ordering::Relaxed);
        ANY_DEAD.store(true, Ordering::Relaxed);
        return;
    }
    // Not ours: the access is repeated and ends the process as it would have.
    // SAFETY: SIG_DFL is a valid action.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Puts zero pages in the place of a region; in a handler.
fn replace(region: Range<usize>) -> bool {
    // SAFETY: the range is one mapping of ours (guest RAM or its log, never Rust's own memory), which stays mapped; all
    // accesses to it are volatile or atomic and expect its contents to change under them.
    let mapped = unsafe {
        libc::mmap(
            region.start as *mut _,
            region.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
