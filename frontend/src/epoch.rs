//! Epoch slots: which word of shared memory says that this thread is inside a transition.
//!
//! The data plane makes the word odd while a transition runs; the daemon's machine-wide steps wait
//! for odd words to move (SPEC.md §3, architecture §2). A slot belongs to one thread at a time: it
//! is taken at the thread's first transition, cached in the thread, and given back when the thread
//! ends. Threads beyond the last slot share one, under a lock.
//!
//! A transition must not start another one (from a kick callback, for instance): the word would
//! read even in the middle of the outer one. Debug builds assert it.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::sync::lock;

/// The slots of one machine.
#[derive(Debug)]
pub struct Slots {
    /// Tells this machine's slots from another's in a thread's cache.
    id: u64,
    free: Mutex<Vec<u32>>,
    /// For threads that find no free slot.
    shared: Mutex<u32>,
}

/// A slot that a thread holds; given back when the thread ends.
struct Held {
    id: u64,
    slot: u32,
    owner: Weak<Slots>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(slots) = self.owner.upgrade() {
            lock(&slots.free).push(self.slot);
        }
    }
}

thread_local! {
    /// The slot used last: machine and number. Machine 0 is none.
    static LAST: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Clears INSIDE when a transition ends, by a panic too.
struct Inside;

impl Inside {
    #[inline]
    fn enter() -> Self {
        if cfg!(debug_assertions) {
            let nested = INSIDE.try_with(|i| i.replace(true)).unwrap_or(false);
            assert!(!nested, "a transition was started inside a transition");
        }
        Self
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            // An error: the thread is ending and its cache is gone.
            let _ = INSIDE.try_with(|i| i.set(false));
        }
    }
}

impl Slots {
    /// `count` slots, 0 to `count - 1`; at least one.
    pub fn new(count: u32) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let last = count.saturating_sub(1);
        Arc::new(Self {
            // Relaxed: only uniqueness matters.
            id: IDS.fetch_add(1, Ordering::Relaxed),
            free: Mutex::new((0..last).rev().collect()),
            shared: Mutex::new(last),
        })
    }

    /// Runs one transition with the calling thread's slot.
    #[inline]
    pub fn with<T>(self: &Arc<Self>, transition: impl FnOnce(u32) -> T) -> T {
        let (id, slot) = LAST.try_with(Cell::get).unwrap_or((0, 0));
        if id == self.id {
            let _inside = Inside::enter();
            return transition(slot);
        }
        self.with_uncached(transition)
    }

    #[cold]
    fn with_uncached<T>(self: &Arc<Self>, transition: impl FnOnce(u32) -> T) -> T {
        let slot = HELD.try_with(|held| self.take(&mut held.borrow_mut()));
        match slot.ok().flatten() {
            Some(slot) => {
                let _ = LAST.try_with(|l| l.set((self.id, slot)));
                let _inside = Inside::enter();
                transition(slot)
            }
            // No slot is free, or the thread is ending.
            None => {
                let slot = lock(&self.shared);
                let _inside = Inside::enter();
                transition(*slot)
            }
        }
    }

    fn take(self: &Arc<Self>, held: &mut Vec<Held>) -> Option<u32> {
        held.retain(|h| h.owner.strong_count() > 0);
        if let Some(h) = held.iter().find(|h| h.id == self.id) {
            return Some(h.slot);
        }
        let slot = lock(&self.free).pop()?;
        held.push(Held {
            id: self.id,
            slot,
            owner: Arc::downgrade(self),
        });
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_thread_keeps_its_slot_and_gives_it_back() {
        let slots = Slots::new(2);
        let run = |s: &Arc<Slots>| s.with(|slot| slot);
        let first =
            std::thread::scope(|scope| scope.spawn(|| (run(&slots), run(&slots))).join().unwrap());
        assert_eq!(first, (0, 0));
        // The only slot that is not shared is free again.
        let second = std::thread::scope(|s| s.spawn(|| run(&slots)).join().unwrap());
        assert_eq!(second, 0);
    }

    #[test]
    fn threads_at_the_same_time_have_different_slots_or_share_the_last_one_in_turn() {
        let slots = Slots::new(3);
        let inside = [const { AtomicU64::new(0) }; 3];
        let barrier = Barrier::new(6);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..1000 {
                        slots.with(|slot| {
                            let at = &inside[slot as usize];
                            assert_eq!(at.fetch_add(1, Ordering::SeqCst), 0);
                            at.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                    barrier.wait();
                });
            }
        });
    }

    #[test]
    fn two_machines_in_one_thread_have_slots_of_their_own() {
        let (a, b) = (Slots::new(2), Slots::new(2));
        assert_eq!(a.with(|s| s), 0);
        assert_eq!(b.with(|s| s), 0);
        assert_eq!(a.with(|s| s), 0);
        drop(a);
        let c = Slots::new(2);
        assert_eq!(c.with(|s| s), 0);
        assert!(HELD.with(|h| h.borrow().len()) <= 2);
    }

    #[test]
    #[should_panic(expected = "inside a transition")]
    #[cfg(debug_assertions)]
    fn nesting_is_caught() {
        let slots = Slots::new(4);
        slots.with(|_| slots.with(|_| ()));
    }
}
