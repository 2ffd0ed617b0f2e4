//! How often the guest, or a VMM, may make the daemon write a log line (docs/operating.md).
//!
//! A token bucket: [`BURST`] lines at once, then one each [`EVERY`]. What was suppressed is counted, and
//! the next line says how many. Time is passed in.

use std::fmt;
use std::time::{Duration, Instant};

/// Lines that may come at once.
const BURST: u32 = 5;
/// A new one each.
const EVERY: Duration = Duration::from_secs(2);

/// The bucket of one kind of line.
#[derive(Clone, Copy, Debug)]
pub struct LogLimit {
    left: u32,
    /// When `left` was last right.
    since: Instant,
    suppressed: u64,
}

/// How many lines like the one before which this is printed were suppressed; prints nothing for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suppressed(pub u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more like this suppressed)"),
        }
    }
}

impl LogLimit {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            suppressed: 0,
        }
    }

    /// Whether a line may be written now, and how many could not be since the last one.
    pub fn take(&mut self, now: Instant) -> Option<Suppressed> {
        let passed = now.saturating_duration_since(self.since);
        let earned = passed.as_nanos() / EVERY.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX).min(BURST);
        if earned > 0 {
            self.left = BURST.min(self.left + earned);
            self.since = if self.left == BURST {
                now
            } else {
                self.since + EVERY * earned
            };
        }
        if self.left == 0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1;
        Some(Suppressed(std::mem::take(&mut self.suppressed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_a_trickle_and_what_was_suppressed_is_told() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start);
        let passed = (0..100).filter(|_| limit.take(start).is_some()).count();
        assert_eq!(passed, 5);
        assert_eq!(limit.take(start + EVERY), Some(Suppressed(95)));
        assert_eq!(limit.take(start + EVERY), None);
        assert_eq!(limit.take(start + EVERY * 3 / 2), None);
        assert_eq!(limit.take(start + EVERY * 2), Some(Suppressed(2)));
    }

    #[test]
    fn a_long_silence_earns_one_burst_and_time_that_goes_back_nothing() {
        let start = Instant::now() + EVERY;
        let mut limit = LogLimit::new(start);
        while limit.take(start).is_some() {}
        assert_eq!(limit.take(start - EVERY), None);
        let later = start + EVERY * 1000;
        let passed = (0..100).filter(|_| limit.take(later).is_some()).count();
        assert_eq!(passed, 5);
        assert_eq!(Suppressed(0).to_string(), "");
    }
}
