//! A state of the search: memory, ghosts, and where each thread is.

use std::hash::{Hash, Hasher};

use super::memory::{Ghost, Key, LOCALS, word};

/// A state, to be judged.
pub struct Snapshot<'a> {
    pub ghost: &'a Ghost,
    pub(super) state: &'a State,
}

impl Snapshot<'_> {
    /// The value of a word.
    pub fn get(&self, key: Key) -> u64 {
        let cell = word(key).cell;
        self.state.memory.get(cell).copied().unwrap_or(0)
    }
    /// The thread has no operation left.
    pub fn finished(&self, thread: usize) -> bool {
        self.state.threads[thread].op.is_none()
    }
}

/// Where a thread is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct At {
    pub(super) op: Option<u16>,
    pub(super) stopped: bool,
    pub(super) history: Vec<u64>,
    pub(super) mark: usize,
    pub(super) dirty: bool,
    pub(super) locals: [u64; LOCALS],
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) memory: Vec<u64>,
    pub(super) ghost: Ghost,
    pub(super) threads: Vec<At>,
}

/// Two independent 64-bit lanes: states are known by 128 bits of hash.
pub(super) struct Lanes(u64, u64);
impl Hasher for Lanes {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let a = u128::from(self.0 ^ v) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (a >> 64) as u64 ^ a as u64;
        let b = (self.1.rotate_left(23) ^ v.wrapping_mul(0xd6e8_feb8_6659_fd93))
            .wrapping_mul(0xa24b_aed4_963e_e407);
        self.1 = b ^ b >> 29;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// The visited set's keys are hashes already.
#[derive(Default)]
pub(super) struct Already(u64);
impl Hasher for Already {
    fn write(&mut self, _: &[u8]) {}
    fn write_u128(&mut self, v: u128) {
        self.0 = v as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

impl State {
    pub(super) fn key(&self) -> u128 {
        let mut lanes = Lanes(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);
        // Words that were never touched are zero, whether or not the vector reaches them.
        let used = self
            .memory
            .iter()
            .rposition(|v| *v != 0)
            .map_or(0, |i| i + 1);
        self.memory[..used].hash(&mut lanes);
        self.ghost.hash(&mut lanes);
        self.threads.hash(&mut lanes);
        u128::from(lanes.0) << 64 | u128::from(lanes.1)
    }
}
