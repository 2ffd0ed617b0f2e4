//! The test's side of `examples/crash_daemon/control.rs`: a page that says at which point the daemon stops
//! or a system call of it fails, and tells when that has happened.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

const ARMED: u64 = 0;
const COUNT: u64 = 1;
const ERRNO: u64 = 2;
const HIT: u64 = 3;
const KIND: u64 = 4;
const DETAIL: u64 = 5;
const NEXT: u64 = 6;
const AFTER_NEXT: u64 = 7;
const FORGETFUL: u64 = 8;
const BYTES: u64 = 72;

/// The page. A file is enough: nothing here is fast.
pub struct Control(File);

impl Control {
    /// Unarmed.
    pub fn new() -> Self {
        let file = File::from(memfd_create(c"crash control", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(BYTES).unwrap();
        Self(file)
    }

    /// Where the daemon finds it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    fn set(&self, word: u64, value: u64) {
        let bytes = value.to_ne_bytes();
        self.0.write_all_at(&bytes, word * 8).unwrap();
    }

    fn get(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, word * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn prepare(&self, errno: i32) {
        self.set(HIT, 0);
        self.set(COUNT, 0);
        self.set(ERRNO, errno as u64);
    }

    /// The running daemon stops at point `n` from now, or a call of it fails with `errno` if that is not 0.
    pub fn arm(&self, n: u64, errno: i32) {
        self.prepare(errno);
        self.set(ARMED, n);
    }

    /// As [`arm`](Self::arm), for the next daemon that starts, and for the one after it.
    pub fn arm_next(&self, n: u64, after: u64, errno: i32) {
        self.prepare(errno);
        self.set(AFTER_NEXT, after);
        self.set(NEXT, n);
    }

    /// Daemons that start from now on forget what was under way.
    pub fn make_forgetful(&self) {
        self.set(FORGETFUL, 1);
    }

    /// Nothing more happens.
    pub fn disarm(&self) {
        [ARMED, NEXT, AFTER_NEXT]
            .into_iter()
            .for_each(|w| self.set(w, 0));
    }

    /// It has happened.
    pub fn is_hit(&self) -> bool {
        self.get(HIT) == 1
    }

    /// It has happened; the next one counts anew.
    pub fn take_hit(&self) -> bool {
        let hit = self.is_hit();
        if hit {
            self.set(HIT, 0);
        }
        hit
    }

    /// What it was, for people.
    pub fn point(&self) -> String {
        match (self.get(KIND), self.get(DETAIL)) {
            (1, address) => format!("before the write to ...{:05x}", address & 0xf_ffff),
            (2, call) => format!("at system call {call}"),
            _ => "nowhere".to_owned(),
        }
    }
}
