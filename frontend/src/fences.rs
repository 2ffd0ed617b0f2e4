//! Who fences a thread that enters a transition: the thread itself, or the daemon by `membarrier(2)`, as HELLO
//! agreed (SPEC.md [W-46], [P-28]; docs/decisions/0012).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use papr_intc_protocol::layout::mapped::MappedStorage;
use papr_intc_protocol::layout::membarrier;
use papr_intc_protocol::plane::epoch::GracePeriod;
use papr_intc_protocol::wire::handshake::feature;

use crate::error::Error;

/// Between two looks at the transitions that a change waits for.
const LOOK: Duration = Duration::from_micros(50);

/// The agreement with the present daemon. Changed with the topology's lock held.
#[derive(Debug)]
pub(crate) struct Fences {
    /// The kernel fences the threads of this process for whoever asks.
    registered: bool,
    /// The daemon asks for it where it has to: transitions go without.
    left: AtomicBool,
}

impl Fences {
    /// Registers this process. The threads fence themselves.
    pub fn new() -> Self {
        Self {
            registered: membarrier::register(),
            left: AtomicBool::new(false),
        }
    }

    /// Feature bits for HELLO.
    pub fn features(&self) -> u32 {
        match self.registered {
            true => feature::MEMBARRIER,
            false => 0,
        }
    }

    #[cfg(test)]
    pub fn are_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// For pages that nobody uses yet.
    pub fn apply(&self, storage: &MappedStorage) {
        // Relaxed: under the lock, as everywhere here.
        storage.set_fenced_by_daemon(self.left.load(Ordering::Relaxed));
    }

    /// The daemon that is about to begin fences our threads, or does not; `storage` is what they are on.
    ///
    /// # Errors
    /// A transition under way did not end within `patience`; the daemon must not begin.
    pub fn leave(
        &self,
        leave: bool,
        storage: Option<&MappedStorage>,
        patience: Duration,
    ) -> Result<(), Error> {
        if let Some(storage) = storage {
            storage.set_fenced_by_daemon(leave);
            // After a failure too this wait is owed.
            if !leave && self.left.load(Ordering::Relaxed) {
                wait_for_the_unfenced(storage, patience)?;
            }
        }
        self.left.store(leave, Ordering::Relaxed);
        Ok(())
    }
}

/// A thread that still found the flag up may be inside without a fence. None is any more once those are out that are
/// seen inside behind a fence of everybody.
fn wait_for_the_unfenced(storage: &MappedStorage, patience: Duration) -> Result<(), Error> {
    let end = Instant::now() + patience;
    let mut grace = GracePeriod::begin(storage, storage.geometry());
    while !grace.poll(storage) {
        if Instant::now() >= end {
            return Err(Error::Unfit(format!(
                "it does not fence our threads, and {} of them did not end a transition in {patience:?}",
                grace.stragglers().count()
            )));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use papr_intc_protocol::layout::Geometry;
    use papr_intc_protocol::plane::epoch::Inside;

    use super::*;

    fn storage() -> MappedStorage {
        let geometry = Geometry::new(0x2000, 0x1000, 2).unwrap();
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(geometry.size()).unwrap();
        MappedStorage::map(&file, geometry).unwrap()
    }

    #[test]
    fn a_daemon_that_does_not_fence_waits_for_those_who_entered_without() {
        let (storage, fences) = (storage(), Fences::new());
        let leave = |l| fences.leave(l, Some(&storage), Duration::from_millis(2));
        leave(true).unwrap();
        assert!(storage.is_fenced_by_daemon());
        let inside = Inside::enter(&storage, 1);
        for _ in 0..2 {
            let error = leave(false).unwrap_err().to_string();
            assert!(error.contains("1 of them"), "{error}");
            // Whoever enters now has a fence already.
            assert!(!storage.is_fenced_by_daemon());
        }
        drop(inside);
        leave(false).unwrap();
        // Nobody is without any more: the next one is not waited for.
        let _inside = Inside::enter(&storage, 1);
        leave(false).unwrap();
    }

    #[test]
    fn pages_mapped_later_go_by_the_agreement() {
        let fences = Fences::new();
        fences.leave(true, None, Duration::ZERO).unwrap();
        let storage = storage();
        assert!(!storage.is_fenced_by_daemon());
        fences.apply(&storage);
        assert!(storage.is_fenced_by_daemon());
    }
}
