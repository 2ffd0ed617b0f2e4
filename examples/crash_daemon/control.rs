//! The page by which a test says where to stop, and sees that it has happened. `tests/crash_points` has the
//! other side.
#![allow(unsafe_code)] // a page of a file is seen as atomics

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;

use crate::trap;

/// The point to stop at, 1 the first from now on; 0: do not count.
const ARMED: usize = 0;
/// Points so far.
const COUNT: usize = 1;
/// 0: stop there. Else the errno that system calls fail with; then only calls that can are counted.
const ERRNO: usize = 2;
/// 1 once it has happened.
const HIT: usize = 3;
/// 1 a write, 2 a system call.
const KIND: usize = 4;
/// Its address or number.
const DETAIL: usize = 5;
/// ARMED of the next daemon that starts.
const NEXT: usize = 6;
/// ARMED of the one after it.
const AFTER_NEXT: usize = 7;
/// 1: daemons forget what their predecessors had under way, to see that the test notices.
const FORGETFUL: usize = 8;
const WORDS: usize = 9;

static PAGE: OnceLock<&'static [AtomicU64; WORDS]> = OnceLock::new();

/// Where a daemon may be cut.
#[derive(Clone, Copy)]
pub enum Point {
    /// A write to shared memory, by address.
    Write(usize),
    /// A system call, by number, and its second argument.
    Call(i64, i64),
}

/// Maps the page; from here on points are numbered if the test wants it.
pub fn open(path: &Path) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let bytes = WORDS * 8;
    // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the page was just mapped, is never unmapped, aligned, and all bit patterns are valid atomics.
    let page: &'static [AtomicU64; WORDS] = unsafe { &*page.cast() };
    // The test waits for nothing here but HIT; SeqCst throughout, as speed is no matter.
    let next = page[NEXT].swap(0, Ordering::SeqCst);
    if next != 0 {
        page[NEXT].store(page[AFTER_NEXT].swap(0, Ordering::SeqCst), Ordering::SeqCst);
        page[COUNT].store(0, Ordering::SeqCst);
        page[ARMED].store(next, Ordering::SeqCst);
    }
    if page[FORGETFUL].load(Ordering::SeqCst) == 1 {
        papr_intc::control::journal::forget();
    }
    let _ = PAGE.set(page);
    Ok(())
}

/// A point is reached. Returns the errno to fail with, if it is the one; or never.
pub fn point(at: Point) -> Option<i32> {
    let page = PAGE.get()?;
    let armed = page[ARMED].load(Ordering::SeqCst);
    if armed == 0 {
        return None;
    }
    let errno = page[ERRNO].load(Ordering::SeqCst) as i32;
    let counts = match at {
        Point::Write(_) => errno == 0,
        Point::Call(call, second) => errno == 0 || trap::can_fail(call, second, errno),
    };
    if !counts || page[COUNT].fetch_add(1, Ordering::SeqCst) + 1 != armed {
        return None;
    }
    let (kind, detail) = match at {
        Point::Write(address) => (1, address as u64),
        Point::Call(call, _) => (2, call as u64),
    };
    page[ARMED].store(0, Ordering::SeqCst);
    page[KIND].store(kind, Ordering::SeqCst);
    page[DETAIL].store(detail, Ordering::SeqCst);
    page[HIT].store(1, Ordering::SeqCst);
    if errno != 0 {
        return Some(errno);
    }
    loop {
        trap::sleep();
    }
}
