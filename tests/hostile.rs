//! A VMM and a guest that do everything wrong, against the real daemon: it answers each request with
//! a clear error or the PAPR code, stays in step, leaks nothing, and refused requests have no effect.
//!
//! * [`calls`]: every hcall, RTAS call and access, with random arguments.
//! * [`messages`]: malformed, cut, oversized and dripped messages, wrong descriptors, random bytes.
//! * [`scribble`]: shared memory written over while the daemon works, and garbage handed to a new one.
//! * [`truncated`]: guest RAM whose file is cut short.
//!
//! Random numbers come from fixed seeds. `HOSTILE=10` makes ten times as many of everything.

#![allow(clippy::unwrap_used)] // helpers of tests say what they mean with it

#[path = "hostile/calls.rs"]
mod calls;
#[path = "harness/mod.rs"]
mod harness;
#[path = "hostile/messages.rs"]
mod messages;
#[path = "hostile/scribble.rs"]
mod scribble;
#[path = "hostile/truncated.rs"]
mod truncated;

use harness::Daemon;

/// `count`, times what the environment asks for.
fn rounds(count: usize) -> usize {
    let factor = std::env::var("HOSTILE").map_or(1, |text| text.parse().unwrap());
    count * factor
}

/// Random numbers by a seed (splitmix64).
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.word() as u8).collect()
    }
    /// A number that somebody might mistake for another: small, a source, RAM, an edge, or anything.
    fn register(&mut self) -> u64 {
        match self.below(8) {
            0..3 => self.below(9),
            3 => 0x1300 + self.below(20),
            4 => self.below(harness::guest::RAM >> 12) << 12,
            5 => self.pick(&EDGES),
            6 => 1 << self.below(64),
            _ => self.word(),
        }
    }
}

const EDGES: [u64; 12] = [
    0xff,
    0x100,
    0xfff,
    0x1000,
    0x1fff,
    0x2000,
    0xff_ffff,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// What the daemon holds: compared before and after.
fn held(daemon: &Daemon) -> (usize, usize) {
    (daemon.fds(), daemon.mappings())
}

/// What the daemon's private memory may grow by in a test, in KiB: buffers of its largest message and
/// what the allocator keeps, whatever the number of requests.
const SLACK_KIB: u64 = 4096;

/// The daemon holds what it held, in `work`, which has done everything once before.
fn leaks_nothing(daemon: &Daemon, work: impl FnOnce()) {
    let (before, memory) = (held(daemon), daemon.private_kib());
    work();
    assert_eq!(held(daemon), before, "descriptors, mappings");
    let grown = daemon.private_kib().saturating_sub(memory);
    assert!(grown < SLACK_KIB, "{grown} KiB more");
}
