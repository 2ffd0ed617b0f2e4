//! Why the daemon refuses a request: an errno for the VMM, a sentence for people.

use nix::libc;

use papr_intc_protocol::state::{Mismatch, StreamError};

use crate::memory::MemoryError;

/// A refused request. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The body does not have its code's form.
    #[error("malformed: {0}")]
    Malformed(#[from] papr_intc_protocol::wire::Malformed),
    /// The wrong number of descriptors came along.
    #[error("{found} descriptors came with the request, it takes {expected}")]
    Descriptors {
        /// Received.
        found: usize,
        /// What the request takes.
        expected: &'static str,
    },
    /// A value is outside its range.
    #[error("{0}")]
    Value(String),
    /// The request does not belong into this phase of the connection.
    #[error("{0}")]
    Phase(&'static str),
    /// The two sides have no version in common.
    #[error("{0}")]
    Version(String),
    /// The machine differs from the one in the header.
    #[error("the machine differs: {0}")]
    MachineDiffers(String),
    /// Something that this build does not do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// No such request.
    #[error("request {0:#x} is not known")]
    UnknownRequest(u32),
    /// No such vCPU.
    #[error("server {0} is not connected")]
    NoServer(u32),
    /// A server number that the machine does not have.
    #[error("server {server} is out of range, the machine has 0 to {last}")]
    ServerRange {
        /// Asked for.
        server: u32,
        /// Highest.
        last: u32,
    },
    /// A channel spoke for another vCPU.
    #[error("the channel of server {own} cannot speak for server {named}")]
    NotYours {
        /// The channel's.
        own: u32,
        /// The request's.
        named: u32,
    },
    /// The source is not claimed.
    #[error("source {0:#x} is not claimed")]
    NotClaimed(u32),
    /// The source is claimed already.
    #[error("source {0:#x} is claimed already")]
    Taken(u32),
    /// No free block of that size.
    #[error("no {0} free numbers in the range")]
    NoSpace(u32),
    /// A source number that the machine does not have.
    #[error("sources {first:#x} to {last:#x} are outside the machine's range")]
    SourceRange {
        /// First asked for.
        first: u32,
        /// Last asked for.
        last: u64,
    },
    /// A level for an edge source.
    #[error("source {0:#x} is an MSI, it has no level")]
    NotLevel(u32),
    /// The machine is quiesced.
    #[error("the machine is quiesced")]
    Quiesced,
    /// Only a quiesced machine has a state that can be moved.
    #[error("the machine is not quiesced")]
    NotQuiesced,
    /// The pieces of a state do not join: those of before are not here, a predecessor had them perhaps.
    #[error("the bytes at {asked} do not join: there are {have}")]
    Piece {
        /// Offset in the request.
        asked: u64,
        /// Bytes that are here.
        have: u64,
    },
    /// A state that cannot be taken, or not be written.
    #[error(transparent)]
    State(#[from] StreamError),
    /// A state that is not for this machine.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Threads of the VMM stayed inside a transition.
    #[error("{what}: {threads} threads are still inside a transition")]
    GraceTimeout {
        /// What waited for them.
        what: &'static str,
        /// How many.
        threads: usize,
    },
    /// An END lock or a running forward did not move.
    #[error("source {0:#x} is busy")]
    Busy(u32),
    /// The shared memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device tree could not be built.
    #[error("building the device tree: {0}")]
    Fdt(#[from] vm_fdt::Error),
    /// A system call.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: std::io::Error,
    },
}

impl Refused {
    /// The errno of the reply.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Malformed(_) | Self::Descriptors { .. } => libc::EPROTO,
            Self::Value(_) | Self::Phase(_) | Self::NotLevel(_) => libc::EINVAL,
            Self::Version(_) => libc::EPROTONOSUPPORT,
            Self::MachineDiffers(_) => libc::EEXIST,
            Self::Unsupported(_) => libc::ENOTSUP,
            Self::UnknownRequest(_) => libc::ENOSYS,
            Self::NoServer(_) | Self::NotClaimed(_) => libc::ENOENT,
            Self::ServerRange { .. } | Self::SourceRange { .. } => libc::ERANGE,
            Self::NotYours { .. } => libc::EPERM,
            Self::Taken(_) | Self::Quiesced | Self::Busy(_) => libc::EBUSY,
            Self::NotQuiesced => libc::EBUSY,
            Self::Piece { .. } => libc::ENODATA,
            Self::State(StreamError::Mismatch(_)) | Self::Mismatch(_) => libc::ENOTSUP,
            Self::State(StreamError::Format { .. } | StreamError::UnknownSection(_)) => {
                libc::EPROTONOSUPPORT
            }
            Self::State(_) => libc::EUCLEAN,
            Self::NoSpace(_) => libc::ENOSPC,
            Self::GraceTimeout { .. } => libc::ETIMEDOUT,
            Self::Memory(e) => e.errno(),
            Self::Fdt(_) => libc::EIO,
            Self::Os { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
