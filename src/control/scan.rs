//! Looks through the words of all sources for the few on which a machine-wide operation has to act. (A million of
//! them are looked at in a few milliseconds; a transition for each takes ten times that.)

use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::{AtomicWord, Contiguous, Page};

use super::Core;
use crate::memory::QueueMemory;

impl<M: QueueMemory> Core<M> {
    /// Sources of which the word in XIVE or in XICS is wanted, ascending.
    pub(super) fn sources_where(
        &self,
        xive: impl Fn(u64) -> bool,
        xics: impl Fn(u64) -> bool,
    ) -> Vec<u32> {
        let (storage, geometry) = (self.plane.storage().shared(), self.plane.geometry());
        let ic_mode = self.machine().ic_mode;
        let mut found = Vec::new();
        if ic_mode.has_xive() {
            let sources = geometry.sources();
            for first in (0..sources).step_by(64) {
                let numbers = first..sources.min(first + 64);
                collect(first, storage.sources(geometry, numbers), &xive, &mut found);
            }
        }
        if ic_mode.has_xics() {
            let words = storage.pages(Page::IcsSource(0), geometry.ics_sources());
            let in_xive = found.len();
            collect(geometry.xics_base(), words, xics, &mut found);
            if in_xive > 0 {
                found.sort_unstable();
                found.dedup();
            }
        }
        found
    }
}

/// Those of the words of numbers from `first` on that are wanted.
fn collect<'a, W: AtomicWord + 'a>(
    first: u32,
    words: impl IntoIterator<Item = &'a W>,
    wanted: impl Fn(u64) -> bool,
    to: &mut Vec<u32>,
) {
    // Acquire: who acts on what is found takes over what its writer published.
    let found = (first..)
        .zip(words)
        .filter(|(_, word)| wanted(word.load(Ordering::Acquire)));
    to.extend(found.map(|(lisn, _)| lisn));
}
