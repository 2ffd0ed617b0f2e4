//! Conservative recovery: what a daemon does whose predecessors all died on their way to START.
//!
//! A record that kills or confuses its reader would do so again and again. After [`TRIES`] starts in a
//! row that never reached START, the records are dropped unread: an operation that was only announced
//! or committed did not happen then, its request is sent again by the front-end, and what is derived
//! from other words is made anew. The reply records stay: they are only compared and copied.

use papr_intc_protocol::layout::header::{Executor, Gate};

use super::Core;
use crate::memory::QueueMemory;

/// Starts in a row that may trust the records.
const TRIES: u64 = 3;

impl<M: QueueMemory> Core<M> {
    /// Drops the records if too many starts in a row have failed; before anything else is recovered.
    pub(super) fn distrust(&self) {
        // Counts this start too.
        let starts = self.memory.start_count();
        if starts <= TRIES {
            return;
        }
        log::warn!(
            "{} starts did not reach START: recovering conservatively",
            starts - 1
        );
        if let Some((ticket, operation)) = self.journal().open() {
            log::warn!("dropping {operation:?} of channel {}", ticket.channel);
        }
        self.journal().abandon();
        if self.exact().drop_records() {
            log::warn!("dropping a committed operation");
        }
        // Beside threads of the VMM the index is not cleared: `recover` makes every source that
        // waits findable, and what it shows too much is skipped.
        let state = self.state();
        let shared = state.executor == Executor::FrontEnd && state.gate == Gate::Open;
        if !shared && self.machine().ic_mode.has_xics() {
            self.controller().xics.rebuild_index();
        }
    }
}
