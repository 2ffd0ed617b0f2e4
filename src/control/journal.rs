//! What a successor needs to finish our last request: one operation record, and the last reply of each
//! channel (architecture §4, protocol.md "After a crash").
//!
//! A kill cuts program order, so each record's parts are stored before the word that makes them
//! count. A request that is sent again is answered from the reply record, or executed.
//!
//! | word | stored |
//! |---|---|
//! | reply payload, length | before the operation, if the reply is known before; else after it |
//! | operation, with details | before the first store of a multi-word update |
//! | reply sequence number | after the last store: "executed" |
//! | page of guest RAM | before an entry in it; the entry's mark in the dirty log comes after it |

use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::geometry::REPLY_WORDS;
use papr_intc_protocol::layout::words::journal;
use papr_intc_protocol::layout::{AtomicWord, Table, TableStorage};
use papr_intc_protocol::plane::xics::Routing;

/// Bytes of a payload that a reply record holds.
pub const RECORD_BYTES: usize = (REPLY_WORDS as usize - 2) * 8;

/// Bytes of a page of the dirty log.
const PAGE: u64 = 4096;

/// A multi-word update that a successor completes or finds undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// An END gets a new configuration; committed if the cursor's selector is `selector`.
    Queue {
        /// END index.
        end: u32,
        /// Selector after the commit.
        selector: bool,
    },
    /// Numbers are claimed in both controllers.
    Claim {
        /// First number.
        first: u32,
        /// How many.
        count: u32,
        /// [`claim_flag`](papr_intc_protocol::wire::source::claim_flag).
        flags: u32,
    },
    /// Numbers are freed in both controllers.
    Free {
        /// First number.
        first: u32,
        /// How many.
        count: u32,
    },
    /// An XICS source gets a new routing, in absolute values.
    Route {
        /// The source.
        irq: u32,
        /// Its routing.
        to: Routing,
    },
    /// Every word is stored anew: a state is loaded, which is complete when the header's LOADED is set, or the
    /// machine goes back to reset, which begins by clearing it. A successor cannot complete a load, and resets.
    Load,
}

impl Operation {
    fn to_words(self) -> [u64; 4] {
        let w = u64::from;
        match self {
            Self::Queue { end, selector } => [1, w(end), u64::from(selector), 0],
            Self::Claim {
                first,
                count,
                flags,
            } => [2, w(first), w(count), w(flags)],
            Self::Free { first, count } => [3, w(first), w(count), 0],
            Self::Route { irq, to } => {
                let priorities = u64::from(to.priority) | u64::from(to.saved) << 8;
                [4, w(irq), w(to.server), priorities]
            }
            Self::Load => [5, 0, 0, 0],
        }
    }

    fn from_words(w: [u64; 4]) -> Option<Self> {
        let (a, b, c) = (w[1] as u32, w[2] as u32, w[3]);
        match w[0] {
            1 => Some(Self::Queue {
                end: a,
                selector: b != 0,
            }),
            2 => Some(Self::Claim {
                first: a,
                count: b,
                flags: c as u32,
            }),
            3 => Some(Self::Free { first: a, count: b }),
            4 => {
                let to = Routing {
                    server: b,
                    priority: c as u8,
                    saved: (c >> 8) as u8,
                };
                Some(Self::Route { irq: a, to })
            }
            5 => Some(Self::Load),
            _ => None,
        }
    }
}

/// Which request: channel and sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// 0 the main socket, server + 1 a vCPU's channel.
    pub channel: u32,
    /// Of the request.
    pub seq: u64,
}

/// Makes this daemon forget what a predecessor had under way. For the test that such a daemon is noticed.
#[cfg(feature = "crash-points")]
pub fn forget() {
    // Relaxed: set before the daemon begins.
    FORGETFUL.store(true, Ordering::Relaxed);
}

#[cfg(feature = "crash-points")]
static FORGETFUL: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn is_forgetful() -> bool {
    #[cfg(feature = "crash-points")]
    return FORGETFUL.load(Ordering::Relaxed);
    #[cfg(not(feature = "crash-points"))]
    false
}

/// The journal on some storage.
#[derive(Clone, Copy)]
pub struct Journal<'a, S>(pub &'a S);

impl<S: TableStorage> Journal<'_, S> {
    fn set(&self, at: Table, value: u64) {
        // Release: keeps program order, which is all that a kill can cut.
        self.0.table_word(at).store(value, Ordering::Release);
    }
    fn get(&self, at: Table) -> u64 {
        // Acquire pairs with `set`; between processes the kernel's news of a death orders the rest.
        self.0.table(at, Ordering::Acquire)
    }

    /// Stores a reply without saying that its request was executed. Longer payloads are not kept:
    /// their requests can be executed again. Returns whether it is kept.
    pub fn prepare(&self, ticket: Ticket, payload: &[u8]) -> bool {
        let channel = ticket.channel;
        self.set(Table::Reply(channel, 0), 0);
        if payload.len() > RECORD_BYTES {
            return false;
        }
        self.set(Table::Reply(channel, 1), payload.len() as u64);
        for (i, chunk) in (2..).zip(payload.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.set(Table::Reply(channel, i), u64::from_ne_bytes(word));
        }
        true
    }

    /// The request whose reply is prepared has been executed.
    pub fn mark_executed(&self, ticket: Ticket) {
        self.set(Table::Reply(ticket.channel, 0), ticket.seq);
    }

    /// Keeps the reply of an executed request.
    pub fn record(&self, ticket: Ticket, payload: &[u8]) {
        if self.prepare(ticket, payload) {
            self.mark_executed(ticket);
        }
    }

    /// Announces a multi-word update and the reply it will have.
    pub fn begin(&self, ticket: Ticket, operation: Operation, payload: &[u8]) {
        self.prepare(ticket, payload);
        let [kind, details @ ..] = operation.to_words();
        for (i, d) in (0..).zip(details) {
            self.set(Table::Journal(journal::DETAIL + i), d);
        }
        self.set(Table::Journal(journal::CHANNEL), u64::from(ticket.channel));
        self.set(Table::Journal(journal::SEQUENCE), ticket.seq);
        self.set(Table::Journal(journal::OPERATION), kind);
    }

    /// The update announced by `begin` is complete.
    pub fn finish(&self, ticket: Ticket) {
        self.mark_executed(ticket);
        self.abandon();
    }

    /// The update announced by `begin` did not happen, or is none of ours.
    pub fn abandon(&self) {
        self.set(Table::Journal(journal::OPERATION), 0);
    }

    /// What a predecessor had under way.
    pub fn open(&self) -> Option<(Ticket, Operation)> {
        if is_forgetful() {
            return None;
        }
        let detail = |i| self.get(Table::Journal(journal::DETAIL + i));
        let kind = self.get(Table::Journal(journal::OPERATION));
        let operation = Operation::from_words([kind, detail(0), detail(1), detail(2)])?;
        let channel = self.get(Table::Journal(journal::CHANNEL)) as u32;
        Some((
            Ticket {
                channel,
                seq: self.get(Table::Journal(journal::SEQUENCE)),
            },
            operation,
        ))
    }

    /// Guest RAM is about to be written at this address.
    pub fn write_in(&self, gpa: u64) {
        let page = gpa & !(PAGE - 1) | 1;
        self.set(Table::Journal(journal::RAM_PAGE), page);
    }

    /// The page of guest RAM that was written last, by us or a predecessor. Shared memory says so: it may be none of the
    /// guest's.
    pub fn last_page(&self) -> Option<u64> {
        let page = self.get(Table::Journal(journal::RAM_PAGE));
        (page & 1 != 0).then_some(page & !(PAGE - 1))
    }

    /// Number of the last executed request of a channel, 0 if none.
    pub fn last(&self, channel: u32) -> u64 {
        self.get(Table::Reply(channel, 0))
    }

    /// The reply of a request that is sent again, if it was executed.
    pub fn replay(&self, ticket: Ticket) -> Option<Vec<u8>> {
        if is_forgetful() || ticket.seq == 0 || self.last(ticket.channel) != ticket.seq {
            return None;
        }
        let length = self.get(Table::Reply(ticket.channel, 1)) as usize;
        let words = (2..REPLY_WORDS).map(|i| self.get(Table::Reply(ticket.channel, i)));
        let mut payload: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        payload.truncate(length);
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use papr_intc_protocol::layout::Geometry;
    use papr_intc_protocol::layout::plain::PlainStorage;

    use super::*;

    const TICKET: Ticket = Ticket {
        channel: 1,
        seq: 77,
    };

    fn storage() -> PlainStorage {
        PlainStorage::new(Geometry::new(64, 16, 2).unwrap())
    }

    #[test]
    fn an_executed_request_is_answered_again_and_another_is_not() {
        let storage = storage();
        let journal = Journal(&storage);
        journal.record(TICKET, b"seventeen bytes..");
        assert_eq!(
            journal.replay(TICKET).as_deref(),
            Some(&b"seventeen bytes.."[..])
        );
        assert_eq!(journal.replay(Ticket { seq: 78, ..TICKET }), None);
        assert_eq!(
            journal.replay(Ticket {
                channel: 2,
                ..TICKET
            }),
            None
        );
    }

    #[test]
    fn an_announced_update_is_open_until_it_is_finished() {
        let storage = storage();
        let journal = Journal(&storage);
        let to = Routing {
            server: 1,
            priority: 5,
            saved: 6,
        };
        for op in [
            Operation::Queue {
                end: 9,
                selector: true,
            },
            Operation::Claim {
                first: 20,
                count: 3,
                flags: 2,
            },
            Operation::Free {
                first: 20,
                count: 3,
            },
            Operation::Route { irq: 17, to },
            Operation::Load,
        ] {
            journal.begin(TICKET, op, b"reply");
            assert_eq!(journal.open(), Some((TICKET, op)));
            assert_eq!(journal.replay(TICKET), None, "not executed yet");
            journal.finish(TICKET);
            assert_eq!(journal.open(), None);
            assert_eq!(journal.replay(TICKET).as_deref(), Some(&b"reply"[..]));
        }
    }

    #[test]
    fn the_page_that_was_written_last_is_on_record_even_if_it_is_the_first() {
        let storage = storage();
        let journal = Journal(&storage);
        assert_eq!(journal.last_page(), None);
        journal.write_in(0xffc);
        assert_eq!(journal.last_page(), Some(0));
        journal.write_in(0x12_3004);
        assert_eq!(journal.last_page(), Some(0x12_3000));
    }

    #[test]
    fn a_long_reply_is_not_kept() {
        let storage = storage();
        let journal = Journal(&storage);
        journal.record(TICKET, &[1; RECORD_BYTES + 1]);
        assert_eq!(journal.replay(TICKET), None);
    }
}
