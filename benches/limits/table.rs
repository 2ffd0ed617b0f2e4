//! Rows: a path, what it costs, what its limit costs, the ratio and whether the aim is reached; for people.

use crate::timing::{Pairs, Ratio, Sense, median};

/// A measured path.
#[derive(Clone, Debug)]
pub struct Row {
    pub path: String,
    pub pairs: Pairs,
    pub sense: Sense,
    pub aim: f64,
    /// A miss is a regression: nothing in it belongs to the hypervisor.
    pub gate: bool,
    /// Instructions an operation: ours, the limit's.
    pub steps: Option<(f64, f64)>,
    pub unit: Unit,
    /// Ours over the limit's, or for [`Sense::Min`] the limit's over ours.
    pub ratio: Ratio,
}

/// What the columns of a row are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Nanoseconds,
    Bytes,
}

impl Row {
    pub fn new(path: &str, pairs: Pairs, sense: Sense, aim: f64) -> Self {
        let ratio = match sense {
            Sense::Max => pairs.ratio(),
            Sense::Min => Pairs {
                ours: pairs.limit.clone(),
                limit: pairs.ours.clone(),
                turn: pairs.turn,
            }
            .ratio(),
        };
        Self {
            path: path.to_owned(),
            pairs,
            sense,
            aim,
            gate: false,
            steps: None,
            unit: Unit::Nanoseconds,
            ratio,
        }
    }

    pub fn gate(self) -> Self {
        Self { gate: true, ..self }
    }

    pub fn in_bytes(self) -> Self {
        Self {
            unit: Unit::Bytes,
            ..self
        }
    }

    pub fn ours(&self) -> f64 {
        median(&mut self.pairs.ours.clone())
    }

    pub fn limit(&self) -> f64 {
        median(&mut self.pairs.limit.clone())
    }

    /// The whole interval lies beyond the aim.
    pub fn is_missed(&self) -> bool {
        match self.sense {
            Sense::Max => self.ratio.lo > self.aim,
            Sense::Min => self.ratio.hi < self.aim,
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.is_missed(), self.gate) {
            (false, _) => "",
            (true, false) => "missed",
            (true, true) => "MISSED",
        }
    }

    fn value(&self, value: f64) -> String {
        match self.unit {
            Unit::Bytes => format!("{:.1} MiB", value / 1048576.0),
            Unit::Nanoseconds if value < 1e4 => format!("{value:.1} ns"),
            Unit::Nanoseconds if value < 1e7 => format!("{:.1} us", value / 1e3),
            Unit::Nanoseconds => format!("{:.1} ms", value / 1e6),
        }
    }
}

/// The heading of the table.
pub fn heading() {
    println!(
        "{:<58}{:>11}{:>11}{:>7}  {:<15}{:>7} {:>11}",
        "path", "ours", "limit", "ratio", "95 %", "aim", "instructions"
    );
}

/// One line of the table.
pub fn line(row: &Row) {
    let Ratio { value, lo, hi } = row.ratio;
    let bound = match row.sense {
        Sense::Max => "<=",
        Sense::Min => ">=",
    };
    let steps = match row.steps {
        Some((ours, limit)) => format!("{ours:.0} / {limit:.0}"),
        None => "-".to_owned(),
    };
    println!(
        "{:<58}{:>11}{:>11}{:>7.2}  {:<15}{:>7} {:>11}  {}",
        row.path,
        row.value(row.ours()),
        row.value(row.limit()),
        value,
        format!("{lo:.2} .. {hi:.2}"),
        format!("{bound} {}", row.aim),
        steps,
        row.verdict()
    );
}
