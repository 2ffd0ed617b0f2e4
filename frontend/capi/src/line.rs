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
        // Every step is a read-modify-write with AcqRel: whoever finds a mark sees what had been seen by the one who
        // left it, so the level that is read next is not older.
        if self.0.fetch_or(AGAIN, Ordering::AcqRel) != IDLE {
            return;
        }
        let mut given = None;
        loop {
            // The marks so far are served by what follows.
            self.0.swap(GIVING, Ordering::AcqRel);
            let now = level();
            if given != Some(now) {
                set(now);
                given = Some(now);
                continue;
            }
            let end = self
                .0
                .compare_exchange(GIVING, IDLE, Ordering::AcqRel, Ordering::Relaxed);
            if end.is_ok() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_level_that_changes_while_it_is_given_is_given_again() {
        let level = Cell::new(true);
        let given = Cell::new(Vec::new());
        let set = |l| {
            let mut all = given.take();
            all.push(l);
            level.set(all.len() == 2);
            given.set(all);
        };
        Giver::default().give(|| level.get(), set);
        assert_eq!(given.take(), [true, false, true, false]);
    }

    #[test]
    fn a_nested_call_returns_and_the_outer_one_ends() {
        let giver = Giver::default();
        let mut count = 0;
        giver.give(
            || true,
            |_| {
                giver.give(|| true, |_| panic!("given inside"));
                count += 1;
            },
        );
        assert_eq!(count, 1);
        giver.give(|| true, |_| count += 1);
        assert_eq!(count, 2, "the next call gives again");
    }

    #[test]
    fn when_all_have_returned_the_line_has_the_last_level() {
        for _ in 0..2000 {
            let giver = Giver::default();
            let (level, line) = (AtomicBool::new(false), AtomicBool::new(false));
            let work = |to| {
                level.store(to, Ordering::Release);
                let set = |l| line.store(l, Ordering::Release);
                giver.give(|| level.load(Ordering::Acquire), set);
            };
            std::thread::scope(|scope| {
                scope.spawn(|| work(true));
                work(false);
            });
            let (level, line) = (level.into_inner(), line.into_inner());
            assert_eq!(level, line);
        }
    }
}
