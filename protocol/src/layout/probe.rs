//! Where a daemon may be cut: called before every write to a mapped word. Only in builds with the feature
//! `crash-points`, which are for tests: the enumeration of crash points stops a daemon at each of them.

use std::ops::Range;
use std::sync::{OnceLock, PoisonError, RwLock};

/// Hears of each write before it happens.
pub type Probe = fn(address: usize);

static PROBE: OnceLock<Probe> = OnceLock::new();
static MAPPED: RwLock<Vec<Range<usize>>> = RwLock::new(Vec::new());

/// Makes `probe` hear of all writes from now on. The first one counts.
pub fn install(probe: Probe) {
    let _ = PROBE.set(probe);
}

/// These addresses are shared with other processes.
pub(crate) fn mapped(addresses: Range<usize>) {
    let mut all = MAPPED.write().unwrap_or_else(PoisonError::into_inner);
    all.push(addresses);
}

/// A word is about to be written; copies of words that are not shared do not count.
pub(crate) fn write(address: usize) {
    let Some(probe) = PROBE.get() else { return };
    let all = MAPPED.read().unwrap_or_else(PoisonError::into_inner);
    if all.iter().any(|range| range.contains(&address)) {
        drop(all);
        probe(address);
    }
}

/// Guest RAM, or its dirty log, is about to be written.
pub fn write_to_ram(address: u64) {
    if let Some(probe) = PROBE.get() {
        probe(address as usize);
    }
}
