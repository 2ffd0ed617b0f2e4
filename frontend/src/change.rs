//! What the VMM hears of its daemon (it went, another one serves, there will be none) and of our threads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why a daemon was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Its process ended.
    Ended,
    /// It closed its socket.
    HungUp,
    /// It sent what is no reply, or a request met a broken connection.
    Broken,
    /// It did not answer within this time.
    Silent(Duration),
    /// A planned upgrade.
    Replaced,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the process ended"),
            Self::HungUp => f.write_str("the connection hung up"),
            Self::Broken => f.write_str("a request met a broken connection"),
            Self::Replaced => f.write_str("it is replaced"),
            Self::Silent(limit) => write!(f, "it did not answer within {limit:?}"),
        }
    }
}

/// A change of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// There is no daemon. In mapped mode every interrupt goes on; calls that configure wait.
    Absent {
        /// Why.
        reason: Reason,
        /// How the process ended, by exit code or signal.
        how: String,
    },
    /// A daemon serves again.
    Present {
        /// How long there was none.
        outage: Duration,
        /// Generation of the shared memory.
        generation: u64,
        /// Operations of its predecessor that it finished.
        redone: u32,
        /// Lines that were up and were signalled again.
        resignalled: u32,
        /// Sources whose last event may have been under way.
        in_doubt: u32,
    },
    /// The daemon runs the data plane itself: it does not trust, or know, the front-end's.
    Demoted,
    /// The front-end runs the data plane again.
    Promoted,
    /// No daemon could be started in six attempts; nothing is tried any more.
    GaveUp {
        /// The last failure.
        why: String,
    },
}

/// Called at every change, on the watch thread, with no lock held. Calls that may wait for a daemon return
/// [`Error::Watching`](crate::Error::Watching) there.
#[derive(Clone, Default)]
pub struct OnChange(Option<Arc<Hearer>>);

type Hearer = dyn Fn(&Change) + Send + Sync;

impl OnChange {
    /// Calls `f`.
    pub fn call(f: impl Fn(&Change) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(f)))
    }

    pub(crate) fn tell(&self, change: &Change) {
        if let Some(f) = &self.0 {
            f(change);
        }
    }
}

/// Called on each thread that the front-end starts: with `true` before anything else, with `false` at its end.
#[derive(Clone, Default)]
pub struct OnThread(Option<Arc<dyn Fn(bool) + Send + Sync>>);

impl OnThread {
    /// Calls `f`.
    pub fn call(f: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(f)))
    }

    pub(crate) fn tell(&self, begins: bool) {
        if let Some(f) = &self.0 {
            f(begins);
        }
    }
}

impl fmt::Debug for OnThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnThread({})", self.0.is_some())
    }
}

impl fmt::Debug for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnChange({})", self.0.is_some())
    }
}
