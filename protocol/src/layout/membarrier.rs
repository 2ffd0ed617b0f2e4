//! Fences of which one side pays all: the kernel makes every thread of the VMM pass one (`membarrier(2)`).
//!
//! A transition has to say "this thread is inside" before it looks at the state word ([P-3] of SPEC.md), and
//! a machine-wide step is rare. So the step pays: the VMM registers, its threads only keep the compiler
//! from reordering, and the daemon asks the kernel for a fence on every CPU that runs one of them. Threads that
//! run nowhere have passed one when they were switched out.
//!
//! Both sides agree on it in HELLO ([`feature::MEMBARRIER`](crate::wire::handshake::feature::MEMBARRIER)); one
//! of them without it means a fence in each transition.

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, fence};

use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

/// The kernel has the commands of both sides (Linux 4.16), and no filter keeps them from this process.
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let commands = membarrier_query();
        commands.contains_command(MembarrierCommand::GlobalExpedited)
            && commands.contains_command(MembarrierCommand::RegisterGlobalExpedited)
    })
}

/// Makes the threads of this process, those to come too, take part. `false`: they do not, each needs its
/// own fences.
pub fn register() -> bool {
    is_available() && membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// A full fence here and, between the call and its return, on every thread of the processes that registered.
/// `false`: the kernel refuses; nothing is said about their order.
#[must_use]
pub fn everywhere() -> bool {
    // Before and after: the caller's own accesses stay on their side, whatever a system call is to the compiler.
    fence(Ordering::SeqCst);
    let done = membarrier(MembarrierCommand::GlobalExpedited).is_ok();
    fence(Ordering::SeqCst);
    done
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, compiler_fence};

    use super::*;

    /// Dekker's pattern with one fence for two: both sides never miss each other. (Without `everywhere` this fails
    /// within a thousand rounds on a machine with two CPUs.)
    #[test]
    fn a_registered_thread_without_a_fence_and_the_caller_see_each_other() {
        if !register() {
            return;
        }
        let [inside, state, seen, round] = [const { AtomicU64::new(0) }; 4];
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut last = 0;
                while !stop.load(Ordering::Acquire) {
                    let now = round.load(Ordering::Acquire);
                    if now == last {
                        std::hint::spin_loop();
                        continue;
                    }
                    last = now;
                    inside.store(now, Ordering::Relaxed);
                    compiler_fence(Ordering::SeqCst);
                    seen.store(state.load(Ordering::Relaxed) << 32 | now, Ordering::Release);
                }
            });
            for now in 1..20_000 {
                round.store(now, Ordering::Release);
                // Sometimes early, sometimes late.
                (0..now % 97).for_each(|_| std::hint::spin_loop());
                state.store(now, Ordering::Relaxed);
                assert!(everywhere());
                let entered = inside.load(Ordering::Relaxed) == now;
                let mut found = seen.load(Ordering::Acquire);
                while found & 0xffff_ffff != now {
                    std::thread::yield_now();
                    found = seen.load(Ordering::Acquire);
                }
                assert!(entered || found >> 32 == now, "round {now}");
            }
            stop.store(true, Ordering::Release);
        });
    }
}
