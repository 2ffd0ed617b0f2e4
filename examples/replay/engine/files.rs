//! Reading recordings: plain or xz, and telling the formats apart by content.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::ReplayError;

const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";

/// The three formats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `op => result`.
    Oracle,
    /// `op | state of the vCPUs | state of the sources`.
    States,
    /// One operation a line, effects and result indented below.
    Boot,
}

impl Format {
    /// By the first line that is not a comment and shows it.
    pub fn of(text: &str) -> Format {
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            if line.contains(" => ") {
                return Format::Oracle;
            }
            if line.matches('|').count() == 2 {
                return Format::States;
            }
        }
        Format::Boot
    }
}

/// The text of a recording.
pub fn read(path: &Path) -> Result<String, ReplayError> {
    let fail = |why: String| ReplayError::Read(format!("{}: {why}", path.display()));
    let bytes = fs::read(path).map_err(|e| fail(e.to_string()))?;
    if !bytes.starts_with(XZ_MAGIC) {
        return String::from_utf8(bytes).map_err(|e| fail(e.to_string()));
    }
    let mut text = String::new();
    lzma_rust2::XzReader::new(&bytes[..], true)
        .read_to_string(&mut text)
        .map_err(|e| fail(e.to_string()))?;
    Ok(text)
}
