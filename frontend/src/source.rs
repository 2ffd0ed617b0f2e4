//! An interrupt source, as a device of the VMM sees it.

use crate::error::Error;
use crate::intc::Intc;

/// A handle to one LISN. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct Source {
    intc: Intc,
    lisn: u32,
}

impl Source {
    pub(crate) fn new(intc: Intc, lisn: u32) -> Self {
        Self { intc, lisn }
    }

    /// Its number.
    pub fn lisn(&self) -> u32 {
        self.lisn
    }

    /// One event. In mapped mode this is a transition on shared memory, which no daemon is needed for.
    ///
    /// # Errors
    /// Only what ends the interrupt controller, or in remote mode a source that is not claimed.
    pub fn trigger(&self) -> Result<(), Error> {
        self.intc.core().trigger(self.lisn)
    }

    /// The level of an LSI's input that the VMM drives.
    ///
    /// # Errors
    /// As [`trigger`](Self::trigger).
    pub fn set_level(&self, level: bool) -> Result<(), Error> {
        self.intc.core().set_level(self.lisn, level)
    }
}
