//! A block of XICS sources: routing and status. The first and the last may hold numbers that XICS does not serve.

use std::ops::Range;

use prost::bytes::Bytes;

use super::{
    Block, Held, Kinds, SIZE, add, each, halves, mask, nonzero, pick_bytes, pick_words, spread,
    take_bytes, take_words,
};
use crate::layout::words::ics;
use crate::layout::{Geometry, IcMode};
use crate::state::columns::{self, XicsSourcesMessage, bad, known_bytes};
use crate::state::model::{Kind, XicsSource};
use crate::state::stream::StreamError;
use crate::state::validate::{Checker, Invalid};

const MASKED: u8 = 0xff;
const SENT: u8 = 1;
const REJECTED: u8 = 2;
const MASKED_PENDING: u8 = 4;
const STATUS: u8 = SENT | REJECTED | MASKED_PENDING;
// Of a word: the lower half is the routing, the upper half has these, of which the status is three in a row.
const SERVER: u32 = 0xffff;
const CLAIMED: u8 = 1;
const LSI: u8 = 2;
const STATUS_SHIFT: u32 = 3;

const _: () = {
    const fn high(bits: u8) -> u64 {
        (bits as u64) << 32
    }
    assert!(ics::CLAIMED == high(CLAIMED) && ics::LSI == high(LSI));
    assert!(ics::SENT == high(SENT << STATUS_SHIFT));
    assert!(ics::REJECTED == high(REJECTED << STATUS_SHIFT));
    assert!(ics::MASKED_PENDING == high(MASKED_PENDING << STATUS_SHIFT));
    assert!(ics::SERVER == SERVER as u64);
};

#[derive(Debug)]
pub(in crate::state) struct XicsBlock {
    server: [u32; SIZE],
    priority: [u8; SIZE],
    saved: [u8; SIZE],
    status: [u8; SIZE],
}

impl Held<XicsBlock> {
    /// Takes source words; listed is what is not as after reset.
    pub(in crate::state) fn take(&mut self, words: &[u64; SIZE]) {
        const KEPT: u64 = 0xffff_ffff | (STATUS as u64) << (32 + STATUS_SHIFT);
        let differ = words.iter().fold(0, |any, word| any | word ^ ics::RESET);
        self.listed = 0;
        if differ & KEPT != 0 {
            self.block.take_words(words);
            self.listed = self.block.used(self.kinds);
        }
    }
}

impl XicsBlock {
    /// Takes source words.
    fn take_words(&mut self, words: &[u64; SIZE]) {
        let (low, high) = halves(words);
        each(&mut self.server, &low, |low| low & SERVER);
        each(&mut self.priority, &low, |low| {
            (low >> ics::PRIORITY_SHIFT) as u8
        });
        each(&mut self.saved, &low, |low| (low >> ics::SAVED_SHIFT) as u8);
        each(&mut self.status, &high, |high| {
            (high >> STATUS_SHIFT) as u8 & STATUS
        });
    }

    /// Makes source words.
    pub(in crate::state) fn to_words(&self, kinds: Kinds, words: &mut [u64; SIZE]) {
        let mut low = self.server;
        add(&mut low, &self.priority, |low, priority| {
            low | u32::from(priority) << ics::PRIORITY_SHIFT
        });
        add(&mut low, &self.saved, |low, saved| {
            low | u32::from(saved) << ics::SAVED_SHIFT
        });
        let mut high = spread(kinds.claimed, CLAIMED);
        add(&mut high, &spread(kinds.lsi, LSI), |high, lsi| high | lsi);
        add(&mut high, &self.status, |high, status| {
            high | status << STATUS_SHIFT
        });
        for ((word, low), high) in words.iter_mut().zip(&low).zip(&high) {
            *word = u64::from(*high) << 32 | u64::from(*low);
        }
    }

    /// Sources with any of these bits in their status.
    fn having(&self, status: u8) -> u64 {
        let mut having = [0; SIZE];
        each(&mut having, &self.status, |found| found & status);
        nonzero(&having)
    }
}

impl Block for XicsBlock {
    type Entry = XicsSource;
    type Message = XicsSourcesMessage;
    const NAME: &'static str = "xics-sources";
    const COLUMNS: &'static [(&'static str, usize)] =
        &[("server", 4), ("priority", 1), ("saved", 1), ("status", 1)];

    fn is_of(ic_mode: IcMode) -> bool {
        ic_mode.has_xics()
    }

    fn new() -> Self {
        Self {
            server: [0; SIZE],
            priority: [MASKED; SIZE],
            saved: [MASKED; SIZE],
            status: [0; SIZE],
        }
    }

    fn reset(&mut self, _: Kinds) {
        *self = Self::new();
    }

    fn used(&self, _: Kinds) -> u64 {
        let mut used = [0; SIZE];
        each(&mut used, &self.server, |server| u8::from(server != 0));
        add(&mut used, &self.priority, |used, priority| used | !priority);
        add(&mut used, &self.saved, |used, saved| used | !saved);
        add(&mut used, &self.status, |used, status| used | status);
        nonzero(&used)
    }

    fn fits(held: &Held<Self>, geometry: &Geometry) -> bool {
        let (block, kinds, servers) = (&held.block, held.kinds, geometry.servers());
        let (mut wrong_server, mut wrong) = (0, 0);
        for server in &block.server {
            wrong_server |= u32::from(*server >= servers);
        }
        for (priority, saved) in block.priority.iter().zip(&block.saved) {
            wrong |= u8::from(priority != saved) & u8::from(*priority != MASKED);
        }
        let no_lsi = block.having(SENT) & !kinds.lsi;
        let no_msi = block.having(REJECTED | MASKED_PENDING) & !(kinds.claimed & !kinds.lsi);
        let not_served = held.listed & !served(held.w, geometry);
        wrong_server == 0 && wrong == 0 && (no_lsi | no_msi | not_served) == 0
    }

    fn check(checker: &Checker<'_>, entry: &XicsSource, kind: Option<Kind>) -> Result<(), Invalid> {
        checker.xics_source(entry, kind)
    }

    fn number(entry: &XicsSource) -> u32 {
        entry.irq
    }

    fn entry(&self, bit: usize, irq: u32) -> XicsSource {
        let status = self.status[bit];
        XicsSource {
            irq,
            server: self.server[bit] as u16,
            priority: self.priority[bit],
            saved: self.saved[bit],
            sent: status & SENT != 0,
            rejected: status & REJECTED != 0,
            masked_pending: status & MASKED_PENDING != 0,
        }
    }

    fn set(&mut self, bit: usize, entry: &XicsSource) {
        self.server[bit] = entry.server.into();
        self.priority[bit] = entry.priority;
        self.saved[bit] = entry.saved;
        self.status[bit] = columns::bits(&[
            (entry.sent, SENT),
            (entry.rejected, REJECTED),
            (entry.masked_pending, MASKED_PENDING),
        ]);
    }

    fn append(&self, which: u64, columns: &mut [Vec<u8>]) {
        let [server, priority, saved, status] = columns else {
            return;
        };
        pick_words(&self.server, which, server);
        pick_bytes(&self.priority, which, priority);
        pick_bytes(&self.saved, which, saved);
        pick_bytes(&self.status, which, status);
    }

    fn take(&mut self, bits: Range<usize>, columns: &[&[u8]]) {
        let [server, priority, saved, status] = columns else {
            return;
        };
        take_words(&mut self.server[bits.clone()], server);
        take_bytes(&mut self.priority[bits.clone()], priority);
        take_bytes(&mut self.saved[bits.clone()], saved);
        take_bytes(&mut self.status[bits], status);
    }

    fn known(columns: &[Bytes]) -> Result<(), StreamError> {
        let [server, _, _, status] = columns else {
            return Ok(());
        };
        known_bytes(Self::NAME, status, 7)?;
        let (servers, _) = server.as_chunks::<4>();
        let any = servers
            .iter()
            .fold(0, |any, server| any | u32::from_le_bytes(*server));
        if any <= u16::MAX.into() {
            return Ok(());
        }
        let mut servers = servers.iter().map(|server| u32::from_le_bytes(*server));
        let server = servers.find(|server| *server > u16::MAX.into());
        Err(bad(Self::NAME, format!("server {}", server.unwrap_or(any))))
    }

    fn message(runs: Vec<u32>, columns: Vec<Bytes>) -> XicsSourcesMessage {
        let mut columns = columns.into_iter();
        let mut next = || columns.next().unwrap_or_default();
        XicsSourcesMessage {
            runs,
            server: next(),
            priority: next(),
            saved: next(),
            status: next(),
        }
    }

    fn columns(message: XicsSourcesMessage) -> (Vec<u32>, Vec<Bytes>) {
        let m = message;
        (m.runs, vec![m.server, m.priority, m.saved, m.status])
    }
}

/// The bits of block `w` that XICS serves.
pub(in crate::state) fn served(w: u32, geometry: &Geometry) -> u64 {
    let first = w * u64::BITS;
    let from = geometry.xics_base().max(first);
    let to = geometry.sources().min(first + u64::BITS);
    if from < to {
        mask(from - first..to - first)
    } else {
        0
    }
}
