//! The header page of `tables`: identity, versions, and the state word that gates every transition.
//!
//! Written by the daemon alone. A reader treats every field as outside input: [`check`] before use.

use std::sync::atomic::Ordering;

use super::storage::{Storage, Table};
use crate::versions::Versions;

/// Header word numbers (each a u64).
pub mod word {
    /// `PAPRINTC`, [`super::MAGIC`].
    pub const MAGIC: u32 = 0;
    /// Layout version in bits 15:0; in 31:16 the plane ABI that the memory was made for.
    pub const VERSIONS: u32 = 1;
    /// Flags that an older reader may ignore.
    pub const COMPAT_FLAGS: u32 = 2;
    /// Flags that a reader must know or refuse.
    pub const INCOMPAT_FLAGS: u32 = 3;
    /// Raised by one each time a daemon takes the memory over; the first is 1.
    pub const GENERATION: u32 = 4;
    /// Starts since the last successful START.
    pub const START_COUNT: u32 = 5;
    /// The state word, see [`super::State`].
    pub const STATE: u32 = 6;
    /// Negotiated option vector 5 byte 23 of the last CAS.
    pub const OV5_BYTE_23: u32 = 7;
    /// QUIESCEs not yet resumed.
    pub const QUIESCE_DEPTH: u32 = 16;
    /// Interrupts that vCPUs accepted while a daemon was the executor. For people: not exact over a crash.
    pub const DELIVERED: u32 = 17;
    /// 1: a state has been loaded, and the machine has not run since.
    pub const LOADED: u32 = 18;
    /// First of [`super::super::machine::MACHINE_WORDS`] words that SET_MACHINE fixed.
    pub const MACHINE: u32 = 8;
}

/// Bits of [`word::INCOMPAT_FLAGS`].
pub mod incompat {
    /// A state is being loaded: the words are neither what they were nor what they will be. A daemon that
    /// takes such memory over puts the machine back to reset first (SPEC.md §6.6).
    pub const LOADING: u64 = 1;
}

/// The bytes `PAPRINTC`, read as a little-endian u64.
pub const MAGIC: u64 = u64::from_le_bytes(*b"PAPRINTC");

/// The interrupt controller that serves the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The XICS presentation controllers and sources.
    Xics,
    /// XIVE exploitation mode.
    Xive,
}

/// What transitions may do at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Before START: nothing may run.
    Closed,
    /// Transitions run.
    Open,
    /// A machine-wide operation is under way: triggers and levels are only recorded.
    Latch,
}

/// Who runs the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Executor {
    /// The VMM's own threads, on the mapped pages.
    FrontEnd,
    /// The daemon, reached by messages.
    Daemon,
}

/// The state word: read once at the start of every transition, inside its epoch.
///
/// Bits 1:0 mode (1 XICS, 2 XIVE), 3:2 gate (0 closed, 1 open, 2 latch), 4 executor (1 daemon),
/// 5 XIVE was selected by CAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The active controller.
    pub mode: Mode,
    /// What transitions may do.
    pub gate: Gate,
    /// Who runs them.
    pub executor: Executor,
    /// CAS selected XIVE: the gate of the H_INT_* calls (with `ic-mode=xive` the mode is XIVE before).
    pub cas_xive: bool,
}

impl State {
    /// As a word.
    pub fn to_word(self) -> u64 {
        let mode = match self.mode {
            Mode::Xics => 1,
            Mode::Xive => 2,
        };
        let gate = match self.gate {
            Gate::Closed => 0,
            Gate::Open => 1,
            Gate::Latch => 2,
        };
        let executor = u64::from(self.executor == Executor::Daemon);
        mode | gate << 2 | executor << 4 | u64::from(self.cas_xive) << 5
    }

    /// From a word. A word that no daemon writes reads as a closed gate.
    #[inline]
    pub fn from_word(word: u64) -> Self {
        // Every transition asks: looked up, not worked out.
        static STATES: [State; 64] = {
            let mut states = [State::decode(0); 64];
            let mut word = 0;
            while word < states.len() {
                states[word] = State::decode(word as u64);
                word += 1;
            }
            states
        };
        STATES[(word & 63) as usize]
    }

    const fn decode(word: u64) -> Self {
        let gate = match (word >> 2 & 3, word & 3) {
            (1, 1 | 2) => Gate::Open,
            (2, 1 | 2) => Gate::Latch,
            _ => Gate::Closed,
        };
        Self {
            mode: if word & 3 == 2 {
                Mode::Xive
            } else {
                Mode::Xics
            },
            gate,
            executor: if word >> 4 & 1 == 1 {
                Executor::Daemon
            } else {
                Executor::FrontEnd
            },
            cas_xive: word >> 5 & 1 == 1,
        }
    }

    /// Reads the state word. Acquire pairs with the daemon's Release store of it: who sees a mode
    /// sees the words that were prepared for it.
    #[inline]
    pub fn read<S: Storage>(storage: &S) -> Self {
        Self::from_word(storage.table(Table::Header(word::STATE), Ordering::Acquire))
    }
}

/// Why a header is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The memory is not ours, or damaged.
    #[error("the memory does not start with the magic PAPRINTC (found {0:#018x})")]
    Magic(u64),
    /// Another layout version.
    #[error("the memory has layout {found}, this build knows {lowest} to {highest}")]
    Layout {
        /// In the memory.
        found: u16,
        /// Lowest that this build goes on with.
        lowest: u16,
        /// Highest.
        highest: u16,
    },
    /// Another plane ABI.
    #[error("the memory has plane ABI {found}, this build runs {lowest} to {highest}")]
    PlaneAbi {
        /// In the memory.
        found: u16,
        /// Lowest that this build goes on with.
        lowest: u16,
        /// Highest.
        highest: u16,
    },
    /// Something is in use that an older build must not meet.
    #[error("the memory has incompat flags {unknown:#x}, this build knows {known:#x}")]
    Incompat {
        /// Those that this build does not know.
        unknown: u64,
        /// Those that it does.
        known: u64,
    },
}

/// Checks magic, versions and flags, in this order, and tells the layout. Unknown compat flags are nobody's
/// business.
pub fn check<S: Storage>(storage: &S, own: &Versions) -> Result<u16, HeaderError> {
    let read = |w| storage.table(Table::Header(w), Ordering::Acquire);
    let magic = read(word::MAGIC);
    if magic != MAGIC {
        return Err(HeaderError::Magic(magic));
    }
    let versions = read(word::VERSIONS);
    own.check_memory(versions, read(word::INCOMPAT_FLAGS))?;
    Ok(versions as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_word() {
        for mode in [Mode::Xics, Mode::Xive] {
            for gate in [Gate::Closed, Gate::Open, Gate::Latch] {
                for executor in [Executor::FrontEnd, Executor::Daemon] {
                    for cas_xive in [false, true] {
                        let state = State {
                            mode,
                            gate,
                            executor,
                            cas_xive,
                        };
                        assert_eq!(State::from_word(state.to_word()), state);
                    }
                }
            }
        }
    }

    #[test]
    fn words_that_no_daemon_writes_close_the_gate() {
        for word in [0, 0b01_00, 0b10_11, 0b11_01, u64::MAX] {
            assert_eq!(State::from_word(word).gate, Gate::Closed, "{word:#b}");
        }
    }
}
