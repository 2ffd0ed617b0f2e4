//! What the run words of the shared memory say to people: whether a daemon serves, since when, why the
//! last one went, and what was delivered meanwhile (SPEC.md [S-20]).
//!
//! The supervisor calls these at its turning points; `papr-intc status --pid` reads the words, also while
//! the daemon is dead. Pure: the words are reached by the caller's [`RunWords`], the time is passed in.

use std::time::Duration;

use papr_intc_protocol::layout::words::{presence, reason, run};
use papr_intc_protocol::{LAYOUT_VERSION, PLANE_ABI, PROTOCOL_VERSION};

use crate::change::Reason;

/// The run words, mapped or not.
pub(crate) trait RunWords {
    /// Stores a word; one that cannot be stored is let go: it is for people.
    fn set(&self, word: u32, value: u64);
    /// A word that this front-end has stored; 0 if it cannot be read.
    fn get(&self, word: u32) -> u64;
    /// The layout of the memory that they are in.
    fn layout(&self) -> u16;
    /// Interrupts delivered so far, by all threads and daemons.
    fn delivered(&self) -> u64;
}

/// How a process ended, as far as its parent knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub exit: Option<i32>,
    pub signal: Option<i32>,
}

/// The first words of a front-end: who it is. `now` as everywhere here: since the host's monotonic clock
/// began.
pub(crate) fn introduce(words: &impl RunWords, name: &str, vmm: u32) {
    let own = numbers(PROTOCOL_VERSION, LAYOUT_VERSION) | u64::from(PLANE_ABI) << 32;
    words.set(run::FRONT_END, own);
    words.set(run::VMM_PID, vmm.into());
    let mut bytes = [0; run::NAME_WORDS as usize * 8];
    let fits = name.floor_char_boundary(bytes.len());
    bytes[..fits].copy_from_slice(&name.as_bytes()[..fits]);
    for (i, word) in (0..).zip(bytes.as_chunks::<8>().0) {
        words.set(run::NAME + i, u64::from_le_bytes(*word));
    }
}

fn numbers(protocol: u16, layout: u16) -> u64 {
    u64::from(protocol) | u64::from(layout) << 16
}

/// A daemon serves for the first time.
pub(crate) fn serving(words: &impl RunWords, pid: u32, now: Duration) {
    words.set(run::AGREED, numbers(PROTOCOL_VERSION, words.layout()));
    words.set(run::DAEMON_PID, pid.into());
    words.set(run::SINCE, millis(now));
    // Last: who sees it sees since when.
    words.set(run::PRESENCE, presence::PRESENT);
}

/// The daemon is gone and fenced.
pub(crate) fn absent(words: &impl RunWords, why: Reason, how: Status, now: Duration) {
    words.set(run::OUTAGE_BASE, words.delivered());
    words.set(run::OUTAGE_BEGAN, millis(now));
    words.set(run::OUTAGE_REASON, reason_word(why, how));
    words.set(run::DAEMON_PID, 0);
    words.set(run::SINCE, millis(now));
    words.set(run::PRESENCE, presence::ABSENT);
}

/// A daemon serves again, after an absence of `outage`.
pub(crate) fn present(
    words: &impl RunWords,
    pid: u32,
    restarts: u64,
    outage: Duration,
    now: Duration,
) {
    let meanwhile = words.delivered().wrapping_sub(words.get(run::OUTAGE_BASE));
    words.set(run::OUTAGE_DELIVERED, meanwhile);
    let length = u64::try_from(outage.as_micros()).unwrap_or(u64::MAX);
    words.set(run::OUTAGE_LENGTH, length);
    words.set(run::RESTARTS, restarts);
    serving(words, pid, now);
}

/// There will be no daemon any more: `presence::GAVE_UP` or `SHUT_DOWN`.
pub(crate) fn over(words: &impl RunWords, presence: u64, now: Duration) {
    words.set(run::DAEMON_PID, 0);
    words.set(run::SINCE, millis(now));
    words.set(run::PRESENCE, presence);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn reason_word(why: Reason, how: Status) -> u64 {
    let code = match why {
        Reason::Ended => reason::ENDED,
        Reason::HungUp => reason::HUNG_UP,
        Reason::Broken => reason::BROKEN,
        Reason::Silent(_) => reason::SILENT,
        Reason::Replaced => reason::REPLACED,
    };
    let status = |n: i32| u64::from(n as u8) << reason::STATUS_SHIFT;
    match (how.exit, how.signal) {
        (Some(exit), _) => code | reason::HAS_EXIT | status(exit),
        (None, Some(signal)) => code | reason::HAS_SIGNAL | status(signal),
        (None, None) => code,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Page {
        words: RefCell<BTreeMap<u32, u64>>,
        delivered: Cell<u64>,
    }

    impl RunWords for Page {
        fn set(&self, word: u32, value: u64) {
            self.words.borrow_mut().insert(word, value);
        }
        fn get(&self, word: u32) -> u64 {
            self.words.borrow().get(&word).copied().unwrap_or(0)
        }
        fn layout(&self) -> u16 {
            LAYOUT_VERSION
        }
        fn delivered(&self) -> u64 {
            self.delivered.get()
        }
    }

    #[test]
    fn an_outage_is_recorded_with_its_reason_its_length_and_what_was_delivered() {
        let page = Page::default();
        let at = Duration::from_millis;
        serving(&page, 10, at(1000));
        page.delivered.set(500);
        let killed = Status {
            exit: None,
            signal: Some(9),
        };
        absent(&page, Reason::Ended, killed, at(2000));
        assert_eq!(page.get(run::PRESENCE), presence::ABSENT);
        assert_eq!(page.get(run::DAEMON_PID), 0);
        page.delivered.set(530);
        present(&page, 11, 1, at(40), at(2040));
        let found = [
            run::PRESENCE,
            run::DAEMON_PID,
            run::SINCE,
            run::RESTARTS,
            run::OUTAGE_BEGAN,
            run::OUTAGE_LENGTH,
            run::OUTAGE_REASON,
            run::OUTAGE_DELIVERED,
        ];
        let why = reason::ENDED | reason::HAS_SIGNAL | 9 << reason::STATUS_SHIFT;
        assert_eq!(
            found.map(|w| page.get(w)),
            [presence::PRESENT, 11, 2040, 1, 2000, 40_000, why, 30]
        );
    }

    #[test]
    fn a_name_is_cut_between_characters() {
        let page = Page::default();
        introduce(&page, &"ü".repeat(40), 1);
        let words = (0..run::NAME_WORDS).map(|i| page.get(run::NAME + i));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), "ü".repeat(32));
        introduce(&page, "abc", 1);
        assert_eq!(page.get(run::NAME), u64::from_le_bytes(*b"abc\0\0\0\0\0"));
        assert_eq!(page.get(run::NAME + 1), 0);
    }
}
