//! What was counted: shared counters for the progress line, histograms per thread for the summary.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;

/// Where an interrupt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another vCPU.
    Ipi,
    /// A device thread in the VMM.
    Msi,
    /// An eventfd written by the device process.
    Eventfd,
    /// A vhost-user device: the buffers of its queue.
    Ring,
    /// A level.
    Lsi,
}

/// All kinds, in the order of the summary.
pub const KINDS: [Kind; 5] = [Kind::Ipi, Kind::Msi, Kind::Eventfd, Kind::Ring, Kind::Lsi];

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipi => "IPI",
            Self::Msi => "MSI, device thread",
            Self::Eventfd => "MSI, eventfd of a process",
            Self::Ring => "MSI, vhost-user queue",
            Self::Lsi => "LSI",
        }
    }

    /// Another process signals it, when it likes.
    pub fn is_elsewhere(self) -> bool {
        matches!(self, Self::Eventfd | Self::Ring)
    }
}

/// What a handler found when it read its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A new number, sent so many nanoseconds ago.
    New(u64),
    /// Nothing new, but the device had triggered more than once before the last look.
    Repeat,
    /// Nothing new, and no trigger accounts for it.
    Nothing,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of the whole run.
        #[derive(Debug, Default)]
        pub struct Tally {
            $($(#[$doc])* pub $name: AtomicU64,)*
            /// Handler runs that found something new, by [`Kind`].
            pub delivered: [AtomicU64; KINDS.len()],
            /// What the controller answered wrongly; the first few.
            pub wrong: Mutex<Vec<String>>,
        }
    };
}

counters! {
    /// Handler runs that found nothing new and that no trigger accounts for.
    spurious,
    /// Handler runs for the second trigger of a burst whose numbers had been read together.
    repeats,
    /// Interrupt entries that found no interrupt.
    empty,
    /// Interrupts that came after their driver had freed them.
    strays,
    /// Calls that configure: hcalls, RTAS, CAS.
    configured,
    /// Times H_BUSY was answered.
    busy,
    /// Affinity moves.
    moves,
    /// Interrupts masked and unmasked, or disabled and enabled.
    masks,
    /// Interrupts shut down and started again.
    restarts,
    /// vCPUs taken off.
    cpu_off,
    /// vCPUs brought on.
    cpu_on,
    /// CAS calls.
    cas,
    /// Kernels replaced by kexec.
    kexecs,
    /// Machine resets.
    resets,
    /// Drains in which everything sent was seen.
    drains,
    /// Wrong answers.
    wrongs,
}

impl Tally {
    /// Counts one.
    pub fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A handler ran.
    pub fn ran(&self, kind: Kind, found: Found) {
        match found {
            Found::New(_) => Self::one(&self.delivered[kind as usize]),
            Found::Repeat => Self::one(&self.repeats),
            Found::Nothing => Self::one(&self.spurious),
        }
    }

    /// All kinds together.
    pub fn all_delivered(&self) -> u64 {
        self.delivered
            .iter()
            .map(|c| c.load(Ordering::Relaxed))
            .sum()
    }

    /// Changes while the guest does anything at all.
    pub fn progress(&self) -> u64 {
        let counters = [&self.configured, &self.empty, &self.repeats, &self.spurious];
        let others: u64 = counters.iter().map(|c| c.load(Ordering::Relaxed)).sum();
        self.all_delivered() + others
    }

    /// The controller answered what no controller may answer.
    pub fn wrong(&self, what: String) {
        Self::one(&self.wrongs);
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() < 20 {
            wrong.push(what);
        }
    }
}

/// Trigger → handler, in nanoseconds, by [`Kind`]. Each vCPU thread has its own.
#[derive(Clone, Debug)]
pub struct Latencies(pub Vec<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        let empty = Histogram::new_with_bounds(100, 60_000_000_000, 3)
            .expect("bounds and digits are constants that the crate accepts");
        Self(vec![empty; KINDS.len()])
    }
}

impl Latencies {
    /// One handler run.
    pub fn record(&mut self, kind: Kind, nanoseconds: u64) {
        self.0[kind as usize].saturating_record(nanoseconds);
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            // Same bounds everywhere, so this cannot fail.
            let _ = mine.add(theirs);
        }
    }
}
