//! Pairs of measurements, one of a path and one of its limit, taken in turns so that what else the machine does
//! meets both; medians; and an interval by a bootstrap that gives the same for the same samples.

use std::time::{Duration, Instant};

/// Which side of its aim a ratio should be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    /// At most the aim.
    Max,
    /// At least the aim.
    Min,
}

/// What was measured: nanoseconds an operation, pair by pair.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    pub ours: Vec<f64>,
    pub limit: Vec<f64>,
    /// So many samples of one side were taken in a row, and share the machine's mood; 0 is 1.
    pub turn: usize,
}

/// A ratio and where it lies with 95 %.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    pub value: f64,
    pub lo: f64,
    pub hi: f64,
}

/// How long a row may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub time: Duration,
    /// At least so many pairs, however long they take.
    pub least: usize,
}

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;
/// No row needs more.
const MOST: usize = 400;

impl Pairs {
    /// Empty, for samples that come in turns of so many.
    pub fn in_turns(turn: usize) -> Self {
        Self {
            turn,
            ..Self::default()
        }
    }

    /// Takes pairs until the budget is used up. The order within a pair changes from one to the next.
    pub fn take(
        budget: Budget,
        mut ours: impl FnMut() -> f64,
        mut limit: impl FnMut() -> f64,
    ) -> Self {
        let mut pairs = Self::default();
        let begun = Instant::now();
        // The first of each is cold.
        let _ = (ours(), limit());
        while pairs.ours.len() < budget.least
            || (begun.elapsed() < budget.time && pairs.ours.len() < MOST)
        {
            if pairs.ours.len() % 2 == 0 {
                pairs.ours.push(ours());
                pairs.limit.push(limit());
            } else {
                pairs.limit.push(limit());
                pairs.ours.push(ours());
            }
        }
        pairs
    }

    /// Ours over the limit's: a ratio of medians.
    pub fn ratio(&self) -> Ratio {
        let value = median(&mut self.ours.clone()) / median(&mut self.limit.clone());
        // What was taken in one turn is one sample: the interval of thousands that go together would be too narrow.
        let turns = |all: &[f64]| -> Vec<f64> {
            let turns = all.chunks(self.turn.max(1));
            turns.map(|turn| median(&mut turn.to_vec())).collect()
        };
        let (ours, limit) = (turns(&self.ours), turns(&self.limit));
        let count = ours.len().min(limit.len());
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mut resampled: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let picks: Vec<usize> = (0..count).map(|_| dice.below(count)).collect();
                let of =
                    |from: &[f64]| median(&mut picks.iter().map(|i| from[*i]).collect::<Vec<_>>());
                of(&ours) / of(&limit)
            })
            .collect();
        resampled.sort_by(f64::total_cmp);
        Ratio {
            value,
            lo: resampled[RESAMPLES * 25 / 1000],
            hi: resampled[RESAMPLES * 975 / 1000 - 1],
        }
    }
}

/// The median; sorts only as far as it must.
pub fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Nanoseconds of `f`, without what the clock itself takes.
pub fn timed(f: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    f();
    (begun.elapsed().as_nanos() as f64 - clock_cost()).max(0.0)
}

/// What two readings of the clock one after the other are apart.
pub fn clock_cost() -> f64 {
    static COST: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *COST.get_or_init(|| {
        let mut apart: Vec<f64> = (0..10_000)
            .map(|_| Instant::now().elapsed().as_nanos() as f64)
            .collect();
        median(&mut apart)
    })
}

/// Pseudo-random numbers (SplitMix64), the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
