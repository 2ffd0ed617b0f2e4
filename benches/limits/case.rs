//! A path that one thread runs by itself, beside its limit: both as closures, so that the clock and the
//! single-stepper (`steps`) measure the same code.

use crate::table::Row;
use crate::timing::{Budget, Pairs, Sense, timed};

/// A path and its limit, as batches of operations.
pub struct Case<'a> {
    pub path: String,
    /// Ours over the limit's, at most.
    pub aim: f64,
    /// Operations in one call of `ours` or `limit`.
    pub batch: u32,
    /// Puts the machine where `ours` can run; not measured.
    pub before: Box<dyn FnMut() + 'a>,
    pub ours: Box<dyn FnMut() + 'a>,
    pub limit: Box<dyn FnMut() + 'a>,
}

/// A sample lasts at least so long, in nanoseconds.
const SAMPLE: f64 = 40_000.0;

impl<'a> Case<'a> {
    pub fn new(
        path: &str,
        aim: f64,
        batch: u32,
        ours: impl FnMut() + 'a,
        limit: impl FnMut() + 'a,
    ) -> Self {
        Self {
            path: path.to_owned(),
            aim,
            batch,
            before: Box::new(|| ()),
            ours: Box::new(ours),
            limit: Box::new(limit),
        }
    }

    pub fn after(self, before: impl FnMut() + 'a) -> Self {
        Self {
            before: Box::new(before),
            ..self
        }
    }

    /// By the clock. One thread on one CPU, so that it can be a gate.
    pub fn measure(&mut self, budget: Budget) -> Row {
        let Self {
            before,
            ours,
            limit,
            batch,
            ..
        } = self;
        let first = timed(&mut *limit).max(1.0);
        let rounds = (SAMPLE / first).ceil().clamp(1.0, 1000.0) as u32;
        let operations = f64::from(rounds * *batch);
        let pairs = Pairs::take(
            budget,
            || {
                let round = |_| {
                    before();
                    timed(&mut *ours)
                };
                (0..rounds).map(round).sum::<f64>() / operations
            },
            || (0..rounds).map(|_| timed(&mut *limit)).sum::<f64>() / operations,
        );
        Row::new(&self.path, pairs, Sense::Max, self.aim).gate()
    }
}
