//! Reset, quiesce and resume; the state that moves (SPEC.md §1.8, chapter 6).

use super::bytes::{Rest, Text, wire_structs};

/// Most bytes of one STATE_READ or STATE_WRITE.
pub const MAX_STATE_BYTES: u32 = 65_000;

/// Compat levels in STATE_HEADER.
pub mod level {
    /// The machine's own.
    pub const OWN: u32 = 0;
    /// papr-1.
    pub const PAPR_1: u32 = 1;
    /// qemu-7.2.
    pub const QEMU_7_2: u32 = 2;
}

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

    /// 0x1043: the head of the state, to be shown to the destination before the guest stops.
    pub struct StateHeader {
        /// [`level`] that the destination has.
        pub compat: u32,
        /// Zero.
        pub zero: u32,
    }

    /// Bytes of a state.
    pub struct StateBytes {
        /// Of the whole of what is read.
        pub total: u64,
        /// A piece of it.
        pub bytes: Rest,
    }

    /// 0x1044: may this machine take the state with that head?
    pub struct StateCheck {
        /// As STATE_HEADER gave it.
        pub head: Rest,
    }

    /// The verdict.
    pub struct StateVerdict {
        /// 0, or the errno with which the state would be refused.
        pub errno: u32,
        /// The item and both values, for people.
        pub text: Text,
    }

    /// 0x1045: a piece of the state of a quiesced machine. Offset 0 takes it anew.
    pub struct StateRead {
        /// From here on.
        pub offset: u64,
        /// So many bytes, at most [`MAX_STATE_BYTES`].
        pub length: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1046: source: forget what was taken. Destination: forget what came, back to reset.
    pub struct StateAbort {}

    /// 0x1048: a piece of an incoming state. Offset 0 starts anew.
    pub struct StateWrite {
        /// Where it belongs: behind what came before.
        pub offset: u64,
        /// At most [`MAX_STATE_BYTES`].
        pub bytes: Rest,
    }

    /// How much has come.
    pub struct StateWritten {
        /// Bytes.
        pub total: u64,
    }

    /// 0x1049: the state that came takes effect, all of it or nothing. Quiesced.
    pub struct StateLoad {
        /// Its bytes.
        pub total: u64,
    }

    /// 0x1047: what the daemon logs.
    pub struct SetLogLevel {
        /// error, warn, info, debug, trace or off.
        pub filter: Text,
    }
}
