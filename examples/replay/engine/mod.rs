//! Replaying recordings of QEMU 7.2's controllers, and comparing result by result.
//!
//! Shared by the example (`examples/replay`) and the conformance tests, both of which include this folder
//! by path. [`guest`] is what a controller under test must offer; [`oracle`], [`states`] and [`boot`] are
//! the three formats; [`rows`] are the differences that are meant, [`report`] counts. Formats are described
//! in `tests/conformance/README.md`.

pub mod bench;
pub mod boot;
pub mod explain;
pub mod files;
pub mod guest;
pub mod oracle;
pub mod report;
pub mod rows;
pub mod states;

use std::fmt;

use explain::Models;
use guest::{GuestError, Start};
use report::Report;

/// H_INT_ESB.
pub const H_INT_ESB: u64 = 0x3c8;
/// H_XIRR_X, whose r5 is a time stamp.
pub const H_XIRR_X: u64 = 0x2fc;
/// H_INT_SET_QUEUE_CONFIG.
pub const H_INT_SET_QUEUE_CONFIG: u64 = 0x3b8;

/// Why a file could not be replayed to its end.
#[derive(Debug)]
pub enum ReplayError {
    /// The file cannot be read or decompressed.
    Read(String),
    /// A line that the format does not have.
    Syntax(usize, String),
    /// The controller under test failed at a line.
    Guest(usize, GuestError),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Read(why) => f.write_str(why),
            ReplayError::Syntax(line, why) => write!(f, "line {line}: {why}"),
            ReplayError::Guest(line, why) => write!(f, "line {line}: controller failed: {why}"),
        }
    }
}

impl std::error::Error for ReplayError {}

/// Puts a line number to an error of the controller.
trait AtLine<T> {
    fn at(self, line: usize) -> Result<T, ReplayError>;
}

impl<T> AtLine<T> for Result<T, GuestError> {
    fn at(self, line: usize) -> Result<T, ReplayError> {
        self.map_err(|e| ReplayError::Guest(line, e))
    }
}

/// Replays one recording of any format.
pub fn replay(
    name: &str,
    text: &str,
    strict: bool,
    start: &mut Start<'_>,
    models: &mut Models<'_>,
) -> Result<Report, ReplayError> {
    match files::Format::of(text) {
        files::Format::Oracle => oracle::replay(name, text, strict, start, models),
        files::Format::States => states::replay(name, text, strict, start),
        files::Format::Boot => boot::replay(name, text, strict, start),
    }
}

/// A hexadecimal number, with or without 0x.
fn hex(word: &str, line: usize) -> Result<u64, ReplayError> {
    let digits = word.strip_prefix("0x").unwrap_or(word);
    u64::from_str_radix(digits, 16)
        .map_err(|_| ReplayError::Syntax(line, format!("not a hexadecimal number: {word}")))
}

fn syntax(line: usize, why: impl Into<String>) -> ReplayError {
    ReplayError::Syntax(line, why.into())
}
