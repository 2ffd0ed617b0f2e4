//! The points in which the compat levels differ, one switch each (`docs/fidelity.md` has a row for each).
//!
//! A field says which of two behaviours is modelled; [`Rules::QEMU_7_2`] and [`Rules::PAPR_1`] are the two
//! compat levels. What neither level takes over from QEMU is off in both; `replay` turns it on to prove that
//! a recorded difference is such a point's doing and nothing else's ([`Rules::with_quirk`]). The byte-swapped
//! H_INT_ESB result has no switch: the model gives the number itself.

/// One choice per fidelity row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// F-XICS-RESEND-ALL: a resend pass tries the sources of every server, not only the caller's.
    pub resend_all: bool,
    /// F-XICS-PASS (S07): a pass runs when XISR is empty and CPPR did not become more favoured, equal
    /// values included; otherwise a pass runs exactly when CPPR became less favoured.
    pub pass_if_empty: bool,
    /// F-XICS-RETRY (S40): a source given back is tried again at once if its server could take it.
    pub retry_given_back: bool,
    /// F-XICS-MOVED (S08, B5): set-xive and int-on deliver a rejected MSI too.
    pub write_takes_rejected: bool,
    /// F-XICS-MASKED (S09, B4): a pass forgets a rejected MSI that is masked by then.
    pub drop_masked: bool,
    /// F-XICS-FREE (B6): the priority a freed number is left with.
    pub freed_priority: u8,
    /// F-XIRR-WRONG-MODE (B7): H_XIRR under XIVE fails, but accepts on the idle presenter first.
    pub accept_in_wrong_mode: bool,
    /// F-XIVE-RESET: H_INT_RESET resets nothing.
    pub int_reset_does_nothing: bool,
    /// F-XIVE-INJECT: a store to management offsets 800-bff forwards an event whatever PQ says.
    pub inject: bool,
    /// F-XIVE-GENERATION: H_INT_GET_QUEUE_CONFIG shows the generation at integer bit 62, not bit 1.
    pub generation_at_bit_62: bool,
    /// F-RECLAIM: a number claimed again keeps PQ, END and EISN of its former life.
    pub reclaim_keeps_state: bool,
    /// F-XIVE-ESB-SIZE: only 8-byte ESB accesses work.
    pub esb_only_8_bytes: bool,
    /// F-XIVE-TARGET: H_INT_GET_SOURCE_CONFIG reads target and priority from the END, so a source whose
    /// queue is not enabled shows target fffffc00 and priority 0.
    pub source_config_from_end: bool,
    /// F-XIVE-RAW-CPPR: a 4- or 8-byte store over CPPR puts the raw byte there and presents nothing.
    pub raw_cppr: bool,
    /// F-XIVE-LSI-EOI: an end of interrupt at PQ 11 of an LSI whose line is high forwards nothing.
    pub lsi_eoi_forgets: bool,
    /// F-XIVE-LSI-READY: PQ set to 00 while an LSI's line is high forwards nothing.
    pub lsi_ready_forgets: bool,
    /// F-TRUNCATE: server numbers are cut to 32 bits and priorities to 8 before they are checked.
    pub truncate: bool,
    /// F-ESB-BOUND: H_INT_ESB lets offsets up to 20000 through, into the next source's pages.
    pub esb_crosses: bool,
    /// F-QUEUE-RAM: a 4 KiB queue may lie anywhere.
    pub queue_anywhere: bool,
    /// F-MMIO-XICS: until the first change of controllers ESB and TIMA answer under XICS too.
    pub mmio_under_xics: bool,
    /// F-CAS-LEVELS: a level is known to the controller that was active when it changed, and a vCPU's line
    /// stays as a controller last set it.
    pub levels_stay: bool,
}

impl Rules {
    /// Compat level `qemu-7.2`.
    pub const QEMU_7_2: Rules = Rules {
        resend_all: true,
        pass_if_empty: true,
        retry_given_back: false,
        write_takes_rejected: false,
        drop_masked: true,
        freed_priority: 0,
        accept_in_wrong_mode: true,
        int_reset_does_nothing: true,
        inject: true,
        generation_at_bit_62: true,
        reclaim_keeps_state: true,
        esb_only_8_bytes: true,
        source_config_from_end: true,
        raw_cppr: true,
        lsi_eoi_forgets: true,
        lsi_ready_forgets: true,
        truncate: true,
        esb_crosses: false,
        queue_anywhere: false,
        mmio_under_xics: false,
        levels_stay: false,
    };

    /// Compat level `papr-1`.
    pub const PAPR_1: Rules = Rules {
        resend_all: false,
        pass_if_empty: false,
        retry_given_back: true,
        write_takes_rejected: true,
        drop_masked: false,
        freed_priority: 0xff,
        accept_in_wrong_mode: false,
        int_reset_does_nothing: false,
        inject: false,
        generation_at_bit_62: false,
        reclaim_keeps_state: false,
        esb_only_8_bytes: false,
        source_config_from_end: true,
        raw_cppr: true,
        lsi_eoi_forgets: false,
        lsi_ready_forgets: false,
        truncate: true,
        esb_crosses: false,
        queue_anywhere: false,
        mmio_under_xics: false,
        levels_stay: false,
    };

    /// The rows of section 2 that a replay can meet and QEMU shows, in no particular order.
    pub const QUIRKS: [&str; 4] = ["F-ESB-BOUND", "F-QUEUE-RAM", "F-MMIO-XICS", "F-CAS-LEVELS"];

    /// The same, with QEMU's side of a row of [`Rules::QUIRKS`].
    pub fn with_quirk(mut self, row: &str) -> Rules {
        match row {
            "F-ESB-BOUND" => self.esb_crosses = true,
            "F-QUEUE-RAM" => self.queue_anywhere = true,
            "F-MMIO-XICS" => self.mmio_under_xics = true,
            "F-CAS-LEVELS" => self.levels_stay = true,
            _ => {}
        }
        self
    }
}
