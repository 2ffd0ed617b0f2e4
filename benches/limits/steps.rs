//! Instructions an operation, counted by single-stepping another process of this program. Virtual machines
//! seldom have a counter for them; this counts everywhere on x86-64, and gives the same number every time.
//!
//! The stepped process marks where a count begins and ends by signals to itself, which the stepper takes away.
//! Its other threads and its daemon run as ever.

use std::process::{Child, Command};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::case::Case;

/// Names the process to be stepped.
pub const STEPPED: &str = "--stepped";
const BEGIN: Signal = Signal::SIGUSR1;
const END: Signal = Signal::SIGUSR2;
/// More are a loop that waits for something.
const MOST: u64 = 2_000_000;

/// In the process to be stepped: runs every case once, ours and the limit's.
pub fn offer(cases: &mut [Case<'_>]) {
    marked(|| ());
    for case in cases {
        // The first time takes what only first times take.
        for _ in 0..2 {
            (case.before)();
            (case.ours)();
        }
        (case.before)();
        marked(&mut case.ours);
        (case.limit)();
        marked(&mut case.limit);
    }
}

/// Lets the parent trace this thread; `false` if that is forbidden.
pub fn be_stepped() -> bool {
    ptrace::traceme().is_ok()
}

fn marked(f: impl FnOnce()) {
    // Without a stepper these would end the process.
    let _ = raise(BEGIN);
    f();
    let _ = raise(END);
}

/// Counts what such a process marks; none if this machine cannot.
pub fn counts(arguments: &[&str]) -> Option<Vec<u64>> {
    if !cfg!(target_arch = "x86_64") {
        // Elsewhere an atomic may be a loop that never ends if it is stepped through.
        return None;
    }
    let own = std::env::current_exe().ok()?;
    let mut child = Command::new(own).args(arguments).spawn().ok()?;
    let counted = step_through(&mut child);
    let _ = child.kill();
    let _ = child.wait();
    let (empty, counts) = counted?.split_first().map(|(e, c)| (*e, c.to_vec()))?;
    Some(counts.iter().map(|n| n.saturating_sub(empty)).collect())
}

fn step_through(child: &mut Child) -> Option<Vec<u64>> {
    let pid = Pid::from_raw(child.id().try_into().ok()?);
    let mut counts = Vec::new();
    loop {
        match waitpid(pid, None).ok()? {
            WaitStatus::Stopped(_, BEGIN) => {
                counts.push(step_to_end(pid)?);
                ptrace::cont(pid, None).ok()?;
            }
            WaitStatus::Stopped(_, other) => ptrace::cont(pid, other).ok()?,
            WaitStatus::Exited(_, 0) => return Some(counts),
            _ => return None,
        }
    }
}

fn step_to_end(pid: Pid) -> Option<u64> {
    for count in 0..MOST {
        ptrace::step(pid, None).ok()?;
        match waitpid(pid, None).ok()? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, END) => return Some(count),
            _ => return None,
        }
    }
    None
}
