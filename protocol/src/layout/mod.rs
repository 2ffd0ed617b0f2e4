//! The shared memory of one guest's interrupt controller: which words exist, where they are, what
//! their bits mean. SPEC.md chapter 2 draws the same.
//!
//! One memfd, two zones. The daemon alone writes `tables` (a VMM maps it read-only); the executor
//! of the data plane writes `pages`. Every shared word is a naturally aligned u64 in host order.
//!
//! * [`geometry`]: from the machine's sizes to byte offsets.
//! * [`header`]: the first page of `tables`, and the state word that gates every transition.
//! * [`machine`]: what SET_MACHINE fixed, as header words.
//! * [`words`]: the bit fields of every other word.
//! * [`storage`]: the seam between the data plane and what holds the words.
//! * [`mapped`]: that seam over a memory mapping; [`plain`]: over ordinary memory.

pub mod geometry;
pub mod header;
pub mod machine;
pub mod mapped;
pub mod membarrier;
pub mod plain;
#[cfg(feature = "crash-points")]
pub mod probe;
pub mod storage;
pub mod words;

pub use geometry::Geometry;
pub use machine::{Compat, IcMode, Machine};
pub use storage::{AtomicWord, Contiguous, Page, Storage, Table, TableStorage};
