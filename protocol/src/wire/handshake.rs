//! HELLO to GOODBYE, and what people ask (SPEC.md §1.4).

use super::bytes::{Rest, Text, wire_structs};
use crate::layout::machine::MACHINE_WORDS;

/// Verdict of a daemon on the other side's data plane.
pub mod verdict {
    /// The front-end may map the pages and run the plane.
    pub const MAP: u32 = 0;
    /// Its plane is defective or unknown: let the daemon run it (remote mode).
    pub const DEMOTE: u32 = 1;
}

/// Feature bits of HELLO. A bit counts if both sides have it.
pub mod feature {
    /// The front-end's threads take part in `membarrier(2)` (global, expedited) and enter transitions without a
    /// fence. The daemon issues one where it waits for transitions ([P-3]).
    pub const MEMBARRIER: u32 = 1;
}

/// State of a daemon, as HELLO and the config block report it.
pub mod state {
    /// No machine yet.
    pub const COLD: u32 = 0;
    /// A machine, but no memory or not started.
    pub const WANTS_MEMORY: u32 = 1;
    /// Started.
    pub const SERVING: u32 = 2;
}

/// Executor numbers of START and RESUME.
pub mod executor {
    /// RESUME: as before.
    pub const KEEP: u32 = 0;
    /// Mapped mode.
    pub const FRONT_END: u32 = 1;
    /// Remote mode.
    pub const DAEMON: u32 = 2;
}

/// What QUERY can ask for.
pub mod query {
    /// One JSON object: state, generation, uptime, counters.
    pub const STATUS: u32 = 0;
    /// Text, as a monitor's `info pic`.
    pub const PIC: u32 = 1;
    /// Text: a line for each claimed source.
    pub const SOURCES: u32 = 2;
    /// One JSON object: the vCPU whose server number is `argument`.
    pub const VCPU: u32 = 3;
}

wire_structs! {
    /// 0x1000: who is there, which versions they speak. The first PAPR request on a connection.
    pub struct Hello {
        /// Lowest protocol version spoken.
        pub protocol_min: u16,
        /// Highest.
        pub protocol_max: u16,
        /// Lowest layout understood.
        pub layout_min: u16,
        /// Highest.
        pub layout_max: u16,
        /// Plane ABI that the front-end runs, or would; 0 if it never maps.
        pub plane_abi: u16,
        /// Zero.
        pub zero: u16,
        /// [`feature`] bits.
        pub features: u32,
        /// Generation of the memory it holds, 0 if none.
        pub generation: u64,
        /// Name of the VMM, for logs.
        pub name: Text,
    }

    /// The daemon's choice and limits.
    pub struct HelloReply {
        /// Protocol version from now on.
        pub protocol: u16,
        /// Layout version from now on.
        pub layout: u16,
        /// [`verdict`].
        pub verdict: u32,
        /// [`feature`] bits that both sides have.
        pub features: u32,
        /// Largest body it reads.
        pub max_body: u32,
        /// Most descriptors it reads with one message.
        pub max_fds: u32,
        /// Most sources.
        pub max_sources: u32,
        /// Most servers.
        pub max_servers: u32,
        /// [`state`].
        pub state: u32,
        /// Generation of the memory it holds, 0 if none.
        pub generation: u64,
        /// Version and build of the daemon, for people.
        pub version: Text,
    }

    /// 0x1001: the machine, as its header words
    /// ([`Machine::to_words`](crate::layout::Machine::to_words)).
    pub struct SetMachine {
        /// See `layout/machine.rs`.
        pub words: [u64; MACHINE_WORDS as usize],
    }

    /// 0x1002: hand out the shared memory. The reply carries the memfd.
    pub struct GetShm {}

    /// The shared memory's shape.
    pub struct ShmInfo {
        /// Layout version.
        pub layout: u32,
        /// Zero.
        pub zero: u32,
        /// Generation in its header.
        pub generation: u64,
        /// Bytes of the memfd.
        pub size: u64,
        /// Bytes of the zone `tables`, from offset 0.
        pub tables_size: u64,
        /// Bytes of the zone `pages`, after it.
        pub pages_size: u64,
    }

    /// 0x1003: take the shared memory of a dead predecessor. Carries the memfd.
    pub struct SetShm {
        /// Layout version.
        pub layout: u32,
        /// Zero.
        pub zero: u32,
        /// Generation that the front-end knows.
        pub generation: u64,
        /// Bytes of the memfd.
        pub size: u64,
    }

    /// Taken over.
    pub struct SetShmReply {
        /// The new generation.
        pub generation: u64,
        /// Starts since the last successful START, this one included.
        pub start_count: u64,
    }

    /// 0x1004: as SET_SHM, but nothing is taken, locked or written.
    pub struct CheckShm {
        /// What SET_SHM would be sent.
        pub shm: SetShm,
    }

    /// What SET_SHM would answer.
    pub struct CheckShmReply {
        /// 0, or the errno that SET_SHM would give.
        pub errno: u32,
        /// Why, for people.
        pub text: Text,
    }

    /// 0x1005: recover, then open the gate.
    pub struct Start {
        /// [`executor`], not KEEP.
        pub executor: u32,
        /// Zero.
        pub flags: u32,
    }

    /// What START found to do.
    #[derive(Copy)]
    pub struct StartReply {
        /// Configuration steps completed or undone.
        pub redone: u32,
        /// Lines signalled again.
        pub resignalled: u32,
        /// Sources whose delivery was in doubt and was repeated.
        pub in_doubt: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1006: finish, answer, release the memory, exit 0.
    pub struct Goodbye {}

    /// 0x1007: are you there?
    pub struct Ping {
        /// Returned.
        pub cookie: u64,
    }

    /// Yes.
    pub struct PingReply {
        /// The request's.
        pub cookie: u64,
        /// Milliseconds since the daemon started.
        pub uptime_ms: u64,
        /// Requests served by the control thread.
        pub served: u64,
    }

    /// 0x1008: what was the last request that you executed on a channel?
    pub struct Last {
        /// [`MAIN_CHANNEL`](super::MAIN_CHANNEL), or server + 1.
        pub channel: u32,
        /// Zero.
        pub zero: u32,
    }

    /// Its number.
    pub struct LastReply {
        /// 0 if none.
        pub seq: u64,
    }

    /// 0x1009: state for people and tools.
    pub struct Query {
        /// [`query`].
        pub what: u32,
        /// Zero.
        pub zero: u32,
        /// 0, then the last reply's `next`.
        pub cursor: u64,
        /// Which one, where `what` asks for one.
        pub argument: u64,
    }

    /// A piece of the answer.
    pub struct QueryReply {
        /// Cursor of the next piece, 0 after the last.
        pub next: u64,
        /// UTF-8.
        pub bytes: Rest,
    }
}
