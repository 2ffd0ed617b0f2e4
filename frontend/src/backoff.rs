//! When the next daemon may start, and when to stop trying. No clock: times are given.
//!
//! A daemon that served for a while and then died is replaced at once, however often: that is an
//! operator's or a test's doing. One that dies right after START waits a little; one that never
//! reaches START waits longer and longer, and after [`GIVE_UP_AFTER`] of them in a row the
//! supervisor stops with one event.

use std::time::Duration;

/// A daemon that served for so long was no failure, whatever came then.
const SETTLED: Duration = Duration::from_millis(100);
/// One that served for so long has earned the first limits again.
const TRUSTED: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(1);
const LAST_DELAY: Duration = Duration::from_secs(1);
/// Delay at most after a daemon that did reach START.
const STARTED_DELAY: Duration = Duration::from_millis(16);
/// So many failed starts in a row, excused ones not counted, are the end.
pub(crate) const GIVE_UP_AFTER: u32 = 6;
/// A limit that was too short for this host is doubled up to so many times.
const DOUBLINGS: u32 = 4;

/// How a daemon that served came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, or by its own fault.
    Own,
    /// By somebody else's SIGKILL.
    Killed,
    /// Fenced for not answering.
    Silent,
}

/// What the past starts and ends say about the next ones.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    delay: Duration,
    failures: u32,
    /// Daemons fenced for their silence, since one was trusted.
    silent: u32,
    /// Handshakes that took too long, in a row.
    slow: u32,
}

impl Backoff {
    /// A daemon served for `served` and ended.
    pub fn ended(&mut self, served: Duration, end: End) {
        self.failures = 0;
        self.slow = 0;
        if served >= TRUSTED {
            self.silent = 0;
        }
        self.silent += u32::from(end == End::Silent);
        self.delay = match end {
            _ if served >= SETTLED => Duration::ZERO,
            // However often: it says nothing about the daemon.
            End::Killed => FIRST_DELAY,
            End::Own | End::Silent => longer(self.delay).min(STARTED_DELAY),
        };
    }

    /// A start failed; `excused` if not by the daemon's own fault, `slow` if a message took too long.
    pub fn failed(&mut self, excused: bool, slow: bool) {
        self.failures += u32::from(!excused);
        self.slow += u32::from(slow);
        self.delay = longer(self.delay);
    }

    /// How long to wait before the next start.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// No more starts.
    pub fn gives_up(&self) -> bool {
        self.failures >= GIVE_UP_AFTER
    }

    /// The answer to a PING may take so long: `first`, doubled for each daemon that was too slow but the
    /// first two, which may well have been stopped by an operator.
    pub fn answer_limit(&self, first: Duration) -> Duration {
        first * (1 << self.silent.saturating_sub(2).min(DOUBLINGS))
    }

    /// One message of a handshake may take so long.
    pub fn message_limit(&self, first: Duration) -> Duration {
        first * (1 << self.slow.min(DOUBLINGS))
    }
}

fn longer(delay: Duration) -> Duration {
    (delay * 2).clamp(FIRST_DELAY, LAST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_daemon_that_served_is_replaced_at_once_and_one_that_did_not_a_little_later() {
        let mut b = Backoff::default();
        for _ in 0..100 {
            b.ended(SETTLED, End::Own);
            assert_eq!(b.delay(), Duration::ZERO);
            b.ended(Duration::ZERO, End::Killed);
            assert_eq!(b.delay(), FIRST_DELAY);
        }
        b.ended(SETTLED, End::Own);
        let delays = [1, 2, 4, 8, 16, 16].map(|ms| {
            b.ended(Duration::ZERO, End::Own);
            b.delay() == ms * MS
        });
        assert_eq!(delays, [true; 6]);
    }

    #[test]
    fn starts_that_fail_wait_up_to_a_second_and_six_are_the_end() {
        let mut b = Backoff::default();
        for _ in 0..20 {
            b.failed(true, false);
        }
        assert_eq!((b.delay(), b.gives_up()), (LAST_DELAY, false));
        for n in 1..=GIVE_UP_AFTER {
            b.failed(false, false);
            assert_eq!(b.gives_up(), n == GIVE_UP_AFTER);
        }
        // An operator who repairs it begins afresh.
        b.ended(SETTLED, End::Own);
        assert!(!b.gives_up());
    }

    #[test]
    fn limits_double_with_each_silence_and_are_short_again_after_ten_seconds_of_service() {
        let mut b = Backoff::default();
        let first = 250 * MS;
        let mut limits = Vec::new();
        for _ in 0..8 {
            limits.push(b.answer_limit(first).as_millis());
            b.ended(SETTLED, End::Silent);
        }
        assert_eq!(limits, [250, 250, 250, 500, 1000, 2000, 4000, 4000]);
        b.ended(TRUSTED, End::Own);
        assert_eq!(b.answer_limit(first), first);
        b.failed(false, true);
        assert_eq!(b.message_limit(MS), 2 * MS);
        b.ended(SETTLED, End::Own);
        assert_eq!(b.message_limit(MS), MS);
    }
}
