//! A vCPU's line, given to the VMM: the last level that it was given is the line's, whatever threads ask at once.
//!
//! No lock: a thread that finds another one giving the line leaves it a mark and goes. So a VMM may hold a lock of
//! its own over the call and take the same one in its function.

use std::sync::atomic::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const GIVING: u8 = 1;
const AGAIN: u8 = 2;

/// Who gives a line, if anybody does.
#[derive(Default)]
pub struct Giver(AtomicU8);

impl Giver {
    /// Gives `level()` to `set` until it stays; or leaves that to the thread that does so at present.
    pub fn give(&self, level: impl Fn() -> bool, mut set: impl FnMut(bool)) {
        // AcqRel: whoever gives sees what the one who left a mark had seen, and the other way round.
        if self.0.fetch_or(AGAIN, Ordering::AcqRel) != IDLE {
            return;
        }
        let mut given = None;
        loop {
            // The marks so far are served by what follows.
            self.0.store(GIVING, Ordering::Release);
            let now = level();
            if given != Some(now) {
                set(now);
                given = Some(now);
                continue;
            }
            let over = self
                .0
                .compare_exchange(GIVING, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if over.is_ok() {
                return;
            }
        }
    }
}
