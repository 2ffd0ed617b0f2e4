//! Where the front-end's messages go. To a descriptor, not to a function: a message may come while locks are held.
#![allow(unsafe_code)] // exported names; what C hands in

use std::ffi::{c_char, c_int};
use std::fs::File;
use std::io::Write;
use std::sync::{PoisonError, RwLock};

use log::{LevelFilter, Log, Metadata, Record};
use nix::errno::Errno;

use crate::boundary::{Fail, done};
use crate::memory::duplicate;
use crate::pointers::{given, text};

static LINES: Lines = Lines(RwLock::new(None));

struct Lines(RwLock<Option<File>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let file = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut file) = file.as_ref() {
            // In one piece, so that lines of several threads do not mix. Nobody hears that it failed.
            let line = format!("papr-intc {}: {}\n", record.level(), record.args());
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Messages of the front-end, of all controllers of this process, go to fd as lines from now on; without this call
/// they go nowhere. level: "off", "error", "warn", "info", "debug" or "trace". fd is duplicated. -EEXIST: a Rust program
/// that links this library has a logger of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_log(fd: c_int, level: *const c_char) -> c_int {
    done(|| {
        // SAFETY: the caller's string ends.
        let level = given(unsafe { text(level, "level") }?, "level")?;
        let filter: LevelFilter = level
            .parse()
            .map_err(|_| Fail::invalid(format!("{level} is no log level")))?;
        let file = File::from(duplicate(fd, "fd")?);
        let mut lines = LINES.0.write().unwrap_or_else(PoisonError::into_inner);
        if lines.is_none() && log::set_logger(&LINES).is_err() {
            let why = "this process has another logger";
            return Err(Fail::new(Errno::EEXIST, why));
        }
        *lines = Some(file);
        log::set_max_level(filter);
        Ok(())
    })
}
