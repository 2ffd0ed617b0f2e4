//! What can go wrong for a VMM, each with an errno for callers that speak errno.

use std::io;

use nix::errno::Errno;

/// An error of the front-end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon answered a request with an error. Nothing was done.
    #[error("{request}: {text} (errno {errno})")]
    Refused {
        /// Name of the message in SPEC.md.
        request: &'static str,
        /// Positive errno.
        errno: i32,
        /// For people.
        text: String,
    },
    /// The connection ended. Callers that wait for the next daemon never see this.
    #[error("the daemon is gone")]
    Lost,
    /// The peer does not speak the protocol; the connection is closed.
    #[error("{request}: the reply is malformed: {what}")]
    Malformed {
        /// Name of the message in SPEC.md.
        request: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The daemon and this front-end do not fit together.
    #[error("the daemon does not fit: {0}")]
    Unfit(String),
    /// The shared memory that the daemon handed out cannot be used.
    #[error("the shared memory cannot be used: {0}")]
    Memory(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An argument that no daemon has to be asked about.
    #[error("{0}")]
    Invalid(String),
    /// [`Intc::shutdown`](crate::Intc::shutdown) was called, or the vCPU was disconnected.
    #[error("the interrupt controller is shut down")]
    ShutDown,
    /// The VMM cancelled the wait ([`Vcpu::set_cancelled`](crate::Vcpu::set_cancelled)). The same call,
    /// made again, goes on where this one stopped.
    #[error("the wait for the daemon was cancelled")]
    Cancelled,
    /// The wait took longer than the VMM allows ([`Absence`](crate::Absence)). As for `Cancelled`.
    #[error("the daemon is away for too long")]
    TimedOut,
    /// A callback on the watch thread, which brings daemons back, made a call that may wait for one.
    #[error("called on the thread that brings daemons back: it cannot wait for one")]
    Watching,
    /// No daemon could be started any more; what the data plane can do goes on.
    #[error("no daemon could be started: {0}")]
    GaveUp(String),
}

impl Error {
    /// The error as a positive errno.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused { errno, .. } => *errno,
            Self::Lost => Errno::ECONNRESET as i32,
            Self::Malformed { .. } => Errno::EPROTO as i32,
            Self::Unfit(_) => Errno::EPROTONOSUPPORT as i32,
            Self::Memory(_) => Errno::EUCLEAN as i32,
            Self::Os { source, .. } => source.raw_os_error().unwrap_or(Errno::EIO as i32),
            Self::Invalid(_) => Errno::EINVAL as i32,
            Self::ShutDown => Errno::ESHUTDOWN as i32,
            Self::GaveUp(_) => Errno::ENODEV as i32,
            Self::Cancelled => Errno::ECANCELED as i32,
            Self::Watching => Errno::EDEADLK as i32,
            Self::TimedOut => Errno::ETIMEDOUT as i32,
        }
    }

    /// For `map_err`: a failed system call while doing `what`.
    pub(crate) fn os<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Os {
            what,
            source: source.into(),
        }
    }

    /// The connection cannot be used any more: the request may be sent again on the next one.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(self, Self::Lost | Self::Malformed { .. } | Self::Os { .. })
    }
}
