//! Bit fields of the shared words (SPEC.md chapter 2, data-plane pages in SPEC.md chapter 3).
//!
//! Each module names one word. Plain constants and pure functions on u64: the transitions that use
//! them are in [`crate::plane`].

/// XIVE source word, one per LISN ([`Page::Source`](super::Page::Source)).
pub mod source {
    /// Queued: another event came while P was set; with P clear: the source is off.
    pub const Q: u64 = 1 << 0;
    /// Pending: an event was forwarded and not yet ended.
    pub const P: u64 = 1 << 1;
    /// P and Q.
    pub const PQ: u64 = P | Q;
    /// Level input driven by the VMM (LSIs only).
    pub const LEVEL_VMM: u64 = 1 << 2;
    /// Level input driven by an irqfd (LSIs only).
    pub const LEVEL_IRQFD: u64 = 1 << 3;
    /// The LSI is asserted if any of these is set.
    pub const ASSERTED: u64 = LEVEL_VMM | LEVEL_IRQFD;
    /// A resamplefd is still to be written.
    pub const RESAMPLE_DUE: u64 = 1 << 4;
    /// Triggered while the gate was latched.
    pub const LATCHED: u64 = 1 << 5;
    /// Toggle of journalled daemon operations (data-plane-xive §2).
    pub const TOGGLE: u64 = 1 << 6;
    /// One of the running forwards is the daemon's, which has one thread.
    pub const DAEMON_FORWARD: u64 = 1 << 7;
    /// One more forward running in an executor's thread.
    pub const FORWARD: u64 = 1 << 16;
    /// Count of running forwards.
    pub const FORWARDS: u64 = 0xffff << 16;
    /// PQ = 01: off. What reset writes.
    pub const RESET: u64 = Q;
}

/// Event assignment, one per LISN ([`Table::Eas`](super::Table::Eas)). PAPR's bits (xive.md §3.1).
pub mod eas {
    /// The LISN is claimed.
    pub const VALID: u64 = 1 << 63;
    /// Events are dropped.
    pub const MASKED: u64 = 1 << 31;
    /// END index.
    pub fn end(eas: u64) -> u32 {
        (eas >> 32 & 0x00ff_ffff) as u32
    }
    /// Event data that the queue entry carries (EISN).
    pub fn eisn(eas: u64) -> u32 {
        (eas & 0x7fff_ffff) as u32
    }
    /// A valid EAS.
    pub fn new(end: u32, eisn: u32, masked: bool) -> u64 {
        VALID
            | u64::from(end & 0x00ff_ffff) << 32
            | if masked { MASKED } else { 0 }
            | u64::from(eisn & 0x7fff_ffff)
    }
}

/// END configuration, word 1 ([`Table::EndConfig`](super::Table::EndConfig)); word 0 is the queue's address.
pub mod end_config {
    /// The END is in use.
    pub const VALID: u64 = 1 << 63;
    /// Notify on every event (the `n` flag of H_INT_SET_QUEUE_CONFIG).
    pub const ALWAYS_NOTIFY: u64 = 1 << 62;
    /// Log2 of the queue's bytes.
    pub fn size(config: u64) -> u32 {
        (config & 0xff) as u32
    }
    /// A valid configuration.
    pub fn new(size: u32, always_notify: bool) -> u64 {
        VALID | if always_notify { ALWAYS_NOTIFY } else { 0 } | u64::from(size & 0xff)
    }
}

/// END cursor, one per END ([`Page::EndCursor`](super::Page::EndCursor); data-plane-xive §2).
pub mod cursor {
    /// Next slot of the queue, in entries.
    pub const INDEX: u64 = 0x3f_ffff;
    /// Generation bit of the next entry.
    pub const GENERATION: u64 = 1 << 22;
    /// Which configuration slot is in force.
    pub const SEL: u64 = 1 << 23;
    /// Shift of ESn, the PQ pair of the notification (used by queues without ALWAYS_NOTIFY).
    pub const ESN_SHIFT: u32 = 24;
    /// ESn.
    pub const ESN: u64 = 3 << ESN_SHIFT;
    /// Lock owner: journal slot (worker) of a daemon.
    pub const WORKER: u64 = 0xff << 32;
    /// Shift of the worker.
    pub const WORKER_SHIFT: u32 = 32;
    /// Shift of the daemon generation.
    pub const DGEN_SHIFT: u32 = 40;
    /// Lock owner: generation of a daemon, 0 for a thread of the VMM.
    pub const DGEN: u64 = 0xffff << DGEN_SHIFT;
    /// Somebody holds the END lock.
    pub const LOCKED: u64 = 1 << 56;
    /// Everything that names the lock and its owner.
    pub const LOCK: u64 = LOCKED | DGEN | WORKER;
    /// A cursor after H_INT_SET_QUEUE_CONFIG: index 0, generation 1, ESn 00.
    pub const FRESH: u64 = GENERATION;
}

/// OS ring NSR..PIPR of a vCPU ([`Page::Tima`](super::Page::Tima)): the bytes as a big-endian u64.
///
/// AGE reads as 0 to the guest; its byte carries what concerns the word itself.
pub mod tima {
    /// Exception pending: the vCPU's line.
    pub const NSR_EO: u64 = 0x80 << 56;
    /// Shift of NSR.
    pub const NSR_SHIFT: u32 = 56;
    /// Shift of CPPR.
    pub const CPPR_SHIFT: u32 = 48;
    /// Shift of IPB.
    pub const IPB_SHIFT: u32 = 40;
    /// Shift of AGE.
    pub const AGE_SHIFT: u32 = 8;
    /// The AGE byte.
    pub const AGE: u64 = 0xff << AGE_SHIFT;
    /// In AGE: toggle of journalled acknowledges.
    pub const TOGGLE: u64 = 1 << 8;
    /// In AGE: the vCPU exists (its NVT is valid).
    pub const CONNECTED: u64 = 1 << 15;
    /// The ring of a vCPU after reset, without CONNECTED: LSMFB, ACK# and PIPR are ff (xive.md §4.2).
    pub const RESET: u64 = 0x0000_00ff_ff00_00ff;
    /// NSR.
    pub fn nsr(ring: u64) -> u8 {
        (ring >> NSR_SHIFT) as u8
    }
    /// CPPR.
    pub fn cppr(ring: u64) -> u8 {
        (ring >> CPPR_SHIFT) as u8
    }
    /// IPB.
    pub fn ipb(ring: u64) -> u8 {
        (ring >> IPB_SHIFT) as u8
    }
    /// PIPR.
    pub fn pipr(ring: u64) -> u8 {
        ring as u8
    }
}

/// ICP of a vCPU ([`Page::Icp`](super::Page::Icp); data-plane-xics §2). Bits 31:0 are the XIRR.
pub mod icp {
    /// XISR: 0 none, 2 the IPI, else a source number.
    pub const XISR: u64 = 0xff_ffff;
    /// XISR of an IPI.
    pub const IPI: u32 = 2;
    /// Shift of CPPR.
    pub const CPPR_SHIFT: u32 = 24;
    /// Shift of the pending priority.
    pub const PP_SHIFT: u32 = 32;
    /// Shift of MFRR.
    pub const MFRR_SHIFT: u32 = 40;
    /// The vCPU exists.
    pub const CONNECTED: u64 = 1 << 48;
    /// Flipped by each H_XIRR that the daemon runs.
    pub const PARITY: u64 = 1 << 49;
    /// One step of the tag, which every reconfiguration of a source routed here raises.
    pub const TAG: u64 = 1 << 50;
    /// After reset, without CONNECTED: CPPR 00, XISR 0, PP ff, MFRR ff.
    pub const RESET: u64 = 0xffff << PP_SHIFT;
    /// XISR.
    pub fn xisr(icp: u64) -> u32 {
        (icp & XISR) as u32
    }
    /// CPPR.
    pub fn cppr(icp: u64) -> u8 {
        (icp >> CPPR_SHIFT) as u8
    }
    /// Priority of what XISR holds, ff if nothing.
    pub fn pp(icp: u64) -> u8 {
        (icp >> PP_SHIFT) as u8
    }
    /// MFRR.
    pub fn mfrr(icp: u64) -> u8 {
        (icp >> MFRR_SHIFT) as u8
    }
}

/// XICS source word ([`Page::IcsSource`](super::Page::IcsSource); data-plane-xics §2).
pub mod ics {
    /// Server number.
    pub const SERVER: u64 = 0xffff;
    /// Shift of the priority.
    pub const PRIORITY_SHIFT: u32 = 16;
    /// Shift of the saved priority.
    pub const SAVED_SHIFT: u32 = 24;
    /// The number is claimed.
    pub const CLAIMED: u64 = 1 << 32;
    /// The source is level-sensitive.
    pub const LSI: u64 = 1 << 33;
    /// Level input driven by the VMM (LSIs only).
    pub const LEVEL_VMM: u64 = 1 << 34;
    /// Sent and not yet ended or rejected (LSIs only).
    pub const SENT: u64 = 1 << 35;
    /// Refused or displaced, to be sent again (MSIs only).
    pub const REJECTED: u64 = 1 << 36;
    /// Triggered while masked (MSIs only).
    pub const MASKED_PENDING: u64 = 1 << 37;
    /// Level input driven by an irqfd (LSIs only).
    pub const LEVEL_IRQFD: u64 = 1 << 38;
    /// A resamplefd is still to be written.
    pub const RESAMPLE_DUE: u64 = 1 << 39;
    /// Triggered while the gate was latched.
    pub const LATCHED: u64 = 1 << 40;
    /// The LSI is asserted if any of these is set.
    pub const ASSERTED: u64 = LEVEL_VMM | LEVEL_IRQFD;
    /// Routing after reset: server 0, priority and saved priority ff; status and CLAIMED, LSI beside it.
    pub const RESET: u64 = 0xffff << PRIORITY_SHIFT;
    /// Server number.
    pub fn server(word: u64) -> u32 {
        (word & SERVER) as u32
    }
    /// Priority; ff is masked.
    pub fn priority(word: u64) -> u8 {
        (word >> PRIORITY_SHIFT) as u8
    }
    /// What ibm,int-on restores.
    pub fn saved(word: u64) -> u8 {
        (word >> SAVED_SHIFT) as u8
    }
    /// Bits 31:0.
    pub fn routing(server: u32, priority: u8, saved: u8) -> u64 {
        u64::from(server & 0xffff)
            | u64::from(priority) << PRIORITY_SHIFT
            | u64::from(saved) << SAVED_SHIFT
    }
}

/// Run-time words of the VMM ([`Page::Run`](super::Page::Run)).
///
/// All but the first are for people: the front-end writes them, `papr-intc status` reads them, and
/// nothing is decided by them.
pub mod run {
    /// Highest daemon generation known dead; raised by the front-end after it fenced the daemon.
    pub const DEAD_GENERATION: u32 = 0;
    /// Whether a daemon serves: one of [`presence`](super::presence).
    pub const PRESENCE: u32 = 8;
    /// Process id of the daemon that serves or starts, in the VMM's namespace; 0 if there is none.
    pub const DAEMON_PID: u32 = 9;
    /// Milliseconds of CLOCK_MONOTONIC at which [`PRESENCE`] last changed.
    pub const SINCE: u32 = 10;
    /// Daemons that served after the first.
    pub const RESTARTS: u32 = 11;
    /// Milliseconds of CLOCK_MONOTONIC at which the last outage began, the one under way included.
    pub const OUTAGE_BEGAN: u32 = 12;
    /// Microseconds that the last outage that is over took.
    pub const OUTAGE_LENGTH: u32 = 13;
    /// Why: one of [`reason`](super::reason) in bits 7:0, bit 8: 23:16 is an exit code, bit 9: a signal.
    pub const OUTAGE_REASON: u32 = 14;
    /// Interrupts delivered during the last outage that is over.
    pub const OUTAGE_DELIVERED: u32 = 15;
    /// Sum of all delivered words when the last outage began.
    pub const OUTAGE_BASE: u32 = 16;
    /// The front-end's numbers: bits 15:0 protocol, 31:16 layout, 47:32 plane ABI.
    pub const FRONT_END: u32 = 17;
    /// Protocol and layout that were agreed with the daemon, as in [`FRONT_END`]; 47:32 is 0.
    pub const AGREED: u32 = 18;
    /// Process id of the VMM in its own namespace.
    pub const VMM_PID: u32 = 19;
    /// First of [`NAME_WORDS`] words: the guest's name, UTF-8, little-endian, ended by a zero byte if shorter.
    pub const NAME: u32 = 20;
    /// Words of the name.
    pub const NAME_WORDS: u32 = 8;
}

/// Values of [`run::PRESENCE`].
pub mod presence {
    /// A daemon serves.
    pub const PRESENT: u64 = 1;
    /// There is none, another is started.
    pub const ABSENT: u64 = 2;
    /// There is none, and none will be.
    pub const GAVE_UP: u64 = 3;
    /// The VMM has shut the controller down.
    pub const SHUT_DOWN: u64 = 4;
}

/// Why a daemon was lost ([`run::OUTAGE_REASON`]).
pub mod reason {
    /// Its process ended.
    pub const ENDED: u64 = 1;
    /// It closed its socket.
    pub const HUNG_UP: u64 = 2;
    /// It sent what is no reply, or a request met a broken connection.
    pub const BROKEN: u64 = 3;
    /// It did not answer in time, and was fenced.
    pub const SILENT: u64 = 4;
    /// A planned upgrade.
    pub const REPLACED: u64 = 5;
    /// Bits of the code.
    pub const CODE: u64 = 0xff;
    /// Bits 23:16 are the exit code.
    pub const HAS_EXIT: u64 = 1 << 8;
    /// Bits 23:16 are the signal that ended it.
    pub const HAS_SIGNAL: u64 = 1 << 9;
    /// Shift of exit code or signal.
    pub const STATUS_SHIFT: u32 = 16;
}

/// Journal words ([`Table::Journal`](super::Table::Journal)).
pub mod journal {
    /// XICS: bits 23:0 the token, 47:24 the victim that the daemon holds (data-plane-xics §7).
    pub const XICS: u32 = 0;
    /// Kind of the configuration request under way, 0 none.
    pub const OPERATION: u32 = 8;
    /// Channel of that request (as in reply records) in bits 63:32.
    pub const CHANNEL: u32 = 9;
    /// Its sequence number.
    pub const SEQUENCE: u32 = 10;
    /// First of six words of detail.
    pub const DETAIL: u32 = 11;
    /// An irqfd whose count the daemon reads: bit 63, input in bits 62:32, LISN in 31:0; 0 none.
    pub const IRQFD: u32 = 32;
    /// How many records of a committed operation are to be applied, 0 none.
    pub const REDO: u32 = 33;
    /// Channel of its request.
    pub const REDO_CHANNEL: u32 = 34;
    /// Sequence number of its request, 0 if it answers none.
    pub const REDO_SEQUENCE: u32 = 35;
    /// Where the daemon writes guest RAM at this moment, or last wrote: bit 0 set, the page's address; 0 nowhere yet.
    pub const RAM_PAGE: u32 = 36;
    /// First of [`REDO_RECORDS`] records of two words: what is stored where.
    pub const REDO_FIRST: u32 = 40;
    /// How many records there is room for.
    pub const REDO_RECORDS: u32 = 236;
}
