//! Connecting vCPUs and asking for their lines (SPEC.md §1.5).

use super::bytes::wire_structs;

/// In VCPU_CHANNEL, instead of a server number: the front-end's watch over the daemon. This channel carries
/// PING, QUERY and LAST only, and is answered while a machine-wide operation waits. No machine has this number.
pub const WATCH: u32 = u32::MAX - 1;

wire_structs! {
    /// 0x1010: these vCPUs exist. Carries no descriptor, or one eventfd for each: the daemon writes 1
    /// to it when the vCPU's line may have changed. A vCPU that is connected already gets the new eventfd.
    pub struct VcpuConnect {
        /// Server numbers.
        pub servers: Vec<u32>,
    }

    /// Connected.
    pub struct VcpuConnectReply {
        /// How many are connected now.
        pub connected: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1011: the vCPU is gone (barrier).
    pub struct VcpuDisconnect {
        /// Server number.
        pub server: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1012: its ICP and ring as after power-on.
    pub struct VcpuReset {
        /// Server number.
        pub server: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1013: a socket of its own for a vCPU, or for the watch. Carries one end of a stream socketpair.
    pub struct VcpuChannel {
        /// Server number, or [`WATCH`].
        pub server: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1014: the level of its external-interrupt line.
    pub struct VcpuLine {
        /// Server number.
        pub server: u32,
        /// Zero.
        pub zero: u32,
    }

    /// A line's level. Of two, the one with the higher `seq` is newer.
    #[derive(Copy)]
    pub struct Line {
        /// 0 or 1.
        pub level: u32,
        /// Zero.
        pub zero: u32,
        /// Rises with every sample that the daemon takes.
        pub seq: u64,
    }
}
