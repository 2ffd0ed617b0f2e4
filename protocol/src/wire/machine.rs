//! Reset, quiesce and resume (SPEC.md §1.8). All are barriers.

use super::bytes::{Text, wire_structs};

/// Flags of MACHINE_RESET.
pub mod reset_flag {
    /// Release the numbers claimed as MSIs.
    pub const FREE_MSIS: u32 = 1;
}

wire_structs! {
    /// 0x1040: both controllers as after power-on; claims of fixed numbers and levels survive.
    pub struct MachineReset {
        /// [`reset_flag`].
        pub flags: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1041: stop transitions; triggers are latched from now on. Nests.
    pub struct Quiesce {
        /// Give up after so many milliseconds, as if nothing had been asked.
        pub deadline_ms: u32,
        /// Zero.
        pub zero: u32,
    }

    /// Quiet.
    pub struct QuiesceReply {
        /// How deep, this one included.
        pub depth: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1042: undo one QUIESCE; the last one replays what was latched.
    pub struct Resume {
        /// [`executor`](super::handshake::executor) from now on; only the last RESUME can change it.
        pub executor: u32,
        /// Zero.
        pub zero: u32,
    }

    /// Running again, if `depth` is 0.
    pub struct ResumeReply {
        /// QUIESCEs still open.
        pub depth: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1047: what the daemon logs.
    pub struct SetLogLevel {
        /// error, warn, info, debug, trace or off.
        pub filter: Text,
    }
}
