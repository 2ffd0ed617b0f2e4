//! Counting: equal, known, different, and the first differences in full.

use std::collections::BTreeMap;
use std::fmt;

use super::rows::{self, Row};

/// How many differences of a file are kept in full.
const SHOWN: usize = 5;

/// What one operation came to.
#[derive(Debug)]
pub struct Verdict {
    /// What should have been seen, after the rows were applied.
    pub want: String,
    /// What was seen.
    pub got: String,
    /// The row that changed the expectation, if one did.
    pub row: Option<&'static Row>,
    /// The recorder's `odd:` mark on this result.
    pub odd: Option<String>,
}

impl Verdict {
    /// A plain comparison.
    pub fn plain(want: impl Into<String>, got: impl Into<String>) -> Verdict {
        Verdict {
            want: want.into(),
            got: got.into(),
            row: None,
            odd: None,
        }
    }
}

/// Counts of one file, or of all.
#[derive(Default, Debug)]
pub struct Report {
    /// Operations replayed.
    pub ops: u64,
    /// Same as recorded.
    pub equal: u64,
    /// Not as recorded, but exactly as a row says; by row.
    pub known: BTreeMap<&'static str, u64>,
    /// Anything else.
    pub different: u64,
    /// How often the data plane changed hands meanwhile.
    pub switches: u64,
    /// The first differences, ready to print.
    pub first: Vec<String>,
}

impl Report {
    /// Counts one operation. `place` is file and line, `op` what was done.
    pub fn count(&mut self, place: fmt::Arguments<'_>, op: &str, v: Verdict, strict: bool) {
        self.ops += 1;
        if v.want == v.got {
            match v.row {
                None => self.equal += 1,
                Some(row) => *self.known.entry(row.id).or_default() += 1,
            }
            return;
        }
        // Only a mark of the recorder's excuses a result that is not what it should be; strictly, only a
        // mark that has a row.
        let excuse = v
            .odd
            .as_deref()
            .map(|mark| rows::odd(mark).unwrap_or(&rows::ODD_OTHER));
        let excuse = excuse.filter(|row| !strict || row.odd.is_some());
        if let Some(row) = excuse {
            *self.known.entry(row.id).or_default() += 1;
            return;
        }
        self.different += 1;
        if self.first.len() < SHOWN {
            self.first.push(format!(
                "{place}: {op}\n    want {}\n    got  {}",
                v.want, v.got
            ));
        }
    }

    /// Adds another report's counts.
    pub fn add(&mut self, other: &Report) {
        self.ops += other.ops;
        self.equal += other.equal;
        self.different += other.different;
        self.switches += other.switches;
        for (row, n) in &other.known {
            *self.known.entry(row).or_default() += n;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: u64 = self.known.values().sum();
        write!(
            f,
            "ops={} equal={} known={known} different={}",
            self.ops, self.equal, self.different
        )?;
        for (row, n) in &self.known {
            write!(f, " {row}={n}")?;
        }
        if self.switches != 0 {
            write!(f, " switches={}", self.switches)?;
        }
        Ok(())
    }
}
