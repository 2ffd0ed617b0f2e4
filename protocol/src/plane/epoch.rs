//! Epochs: how a machine-wide operation waits for every transition that may still act on the old
//! state (architecture §2).
//!
//! Each executing thread of the VMM owns one word: odd while the thread is inside a transition. The
//! daemon changes the state word, then waits until every word that it saw odd has moved.
//!
//! | | first | then |
//! |---|---|---|
//! | thread | store odd epoch | `fence_inside`, read the state word |
//! | daemon | store the state word | `fence_everywhere`, read the epochs |
//!
//! The two fences are the two halves of a store-buffer pattern: at least one side sees the other. Entering is
//! frequent and waiting is rare, so the daemon can pay for both ([`crate::layout::membarrier`]).

use std::sync::atomic::Ordering;

use crate::layout::{AtomicWord, Geometry, Page, Storage};

/// A thread is inside a transition until this is dropped.
pub struct Inside<'a, S: Storage> {
    word: &'a S::Word,
    odd: u64,
}

impl<'a, S: Storage> Inside<'a, S> {
    /// Enters with epoch slot `epoch` (< [`Geometry::epochs`]), which no other thread uses now.
    #[inline]
    pub fn enter(storage: &'a S, epoch: u32) -> Self {
        let word = storage.page(Page::Epoch(epoch));
        // Relaxed: the thread's own word, which nobody else writes.
        let odd = word.load(Ordering::Relaxed) | 1;
        word.store(odd, Ordering::Relaxed);
        // Pairs with the fence in `GracePeriod::poll`.
        storage.fence_inside();
        Self { word, odd }
    }
}

impl<S: Storage> Drop for Inside<'_, S> {
    #[inline]
    fn drop(&mut self) {
        // Release pairs with the Acquire in `GracePeriod::poll`: what the transition did is visible to
        // whoever sees the epoch moved.
        self.word.store(self.odd.wrapping_add(1), Ordering::Release);
    }
}

/// A wait for the transitions under way.
#[derive(Debug)]
pub struct GracePeriod {
    epochs: u32,
    /// Those inside when it began; none known before the fence.
    waiting: Option<Vec<(u32, u64)>>,
}

impl GracePeriod {
    /// Starts the wait. The caller has stored the state word that new transitions are to see.
    pub fn begin<S: Storage>(storage: &S, geometry: &Geometry) -> Self {
        let mut period = Self {
            epochs: geometry.epochs(),
            waiting: None,
        };
        period.look(storage);
        period
    }

    /// Who is inside. Nobody knows before every thread has passed a fence.
    fn look<S: Storage>(&mut self, storage: &S) {
        // Pairs with the fence in `Inside::enter`.
        if !storage.fence_everywhere() {
            return;
        }
        let waiting = (0..self.epochs)
            .map(|epoch| {
                let word = storage.page(Page::Epoch(epoch));
                (epoch, word.load(Ordering::Acquire))
            })
            .filter(|(_, seen)| seen & 1 == 1)
            .collect();
        self.waiting = Some(waiting);
    }

    /// `true` once every transition that had begun is over.
    pub fn poll<S: Storage>(&mut self, storage: &S) -> bool {
        if self.waiting.is_none() {
            self.look(storage);
        }
        let Some(waiting) = &mut self.waiting else {
            return false;
        };
        // Acquire pairs with the Release in `Inside::drop`.
        waiting.retain(|(e, seen)| storage.page(Page::Epoch(*e)).load(Ordering::Acquire) == *seen);
        waiting.is_empty()
    }

    /// Epoch slots still waited for, for the log.
    pub fn stragglers(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().flatten().map(|(epoch, _)| *epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plain::PlainStorage;

    #[test]
    fn a_grace_period_waits_for_those_inside_and_for_nobody_else() {
        let geometry = Geometry::new(64, 16, 1).unwrap();
        let storage = PlainStorage::new(geometry);
        let first = Inside::enter(&storage, 3);
        let mut grace = GracePeriod::begin(&storage, &geometry);
        let later = Inside::enter(&storage, 4);
        assert!(!grace.poll(&storage));
        assert_eq!(grace.stragglers().collect::<Vec<_>>(), [3]);
        drop(first);
        // Inside again at once: a new transition, which sees the new state.
        let again = Inside::enter(&storage, 3);
        assert!(grace.poll(&storage));
        drop((later, again));
        assert!(GracePeriod::begin(&storage, &geometry).poll(&storage));
    }
}
