//! A block of XIVE sources: PQ and EAS.

use std::ops::Range;

use prost::bytes::Bytes;

use super::{
    Block, Held, Kinds, SIZE, add, each, halves, nonzero, pick_bytes, pick_words, spread,
    take_bytes, take_words,
};
use crate::layout::words::{eas, source};
use crate::layout::{Geometry, IcMode};
use crate::state::columns::{XiveSourcesMessage, known_bytes};
use crate::state::model::{Kind, XiveSource};
use crate::state::stream::StreamError;
use crate::state::validate::{Checker, Invalid};

/// Flags: PQ, and above it whether the EAS is masked.
const MASKED_SHIFT: u32 = 2;
const MASKED: u8 = 1 << MASKED_SHIFT;
const PQ: u32 = 3;
const EISN: u32 = 0x7fff_ffff;
/// In the upper half of an EAS.
const END: u32 = 0x00ff_ffff;
const VALID: u32 = 1 << 31;

/// As after reset.
fn reset_flags(kinds: Kinds) -> [u8; SIZE] {
    let mut flags = spread(kinds.claimed, MASKED);
    for flags in &mut flags {
        *flags |= source::RESET as u8;
    }
    flags
}

#[derive(Debug)]
pub(in crate::state) struct XiveBlock {
    flags: [u8; SIZE],
    end: [u32; SIZE],
    eisn: [u32; SIZE],
}

impl Held<XiveBlock> {
    /// Takes source words and EAS; listed is what is not as after reset.
    pub(in crate::state) fn take(&mut self, sources: &[u64; SIZE], eas: &[u64; SIZE]) {
        let reset = match self.kinds.claimed {
            u64::MAX => eas::VALID | eas::MASKED,
            // If some are claimed, it takes a closer look.
            _ => 0,
        };
        let source = sources
            .iter()
            .fold(0, |any, word| any | word ^ source::RESET);
        let routing = eas.iter().fold(0, |any, eas| any | eas ^ reset);
        self.listed = 0;
        if source & source::PQ | routing != 0 {
            self.block.take_words(sources, eas);
            self.listed = self.block.used(self.kinds);
        }
    }
}

impl XiveBlock {
    /// Takes source words and EAS.
    fn take_words(&mut self, sources: &[u64; SIZE], eas: &[u64; SIZE]) {
        let (low, high) = halves(eas);
        each(&mut self.end, &high, |high| high & END);
        each(&mut self.eisn, &low, |low| low & EISN);
        let (mut flags, _) = halves(sources);
        add(&mut flags, &low, |word, low| {
            word & PQ | low >> 31 << MASKED_SHIFT
        });
        each(&mut self.flags, &flags, |flags| flags as u8);
    }

    /// Makes source words and EAS.
    pub(in crate::state) fn to_words(
        &self,
        kinds: Kinds,
        sources: &mut [u64; SIZE],
        eas: &mut [u64; SIZE],
    ) {
        let mut flags = [0; SIZE];
        each(&mut flags, &self.flags, u32::from);
        each(sources, &flags, |flags| u64::from(flags & PQ));
        let (mut low, mut high) = (self.eisn, spread(kinds.claimed, VALID));
        add(&mut low, &flags, |low, flags| {
            low | flags >> MASKED_SHIFT << 31
        });
        add(&mut high, &self.end, |high, end| high | end);
        for ((eas, low), high) in eas.iter_mut().zip(&low).zip(&high) {
            *eas = u64::from(*high) << 32 | u64::from(*low);
        }
    }
}

// Both halves of an EAS have their flag on top.
const _: () = assert!(eas::VALID == 1 << 63 && eas::MASKED == 1 << 31 && source::PQ == PQ as u64);

impl Block for XiveBlock {
    type Entry = XiveSource;
    type Message = XiveSourcesMessage;
    const NAME: &'static str = "xive-sources";
    const COLUMNS: &'static [(&'static str, usize)] = &[("flags", 1), ("end", 4), ("eisn", 4)];

    fn is_of(ic_mode: IcMode) -> bool {
        ic_mode.has_xive()
    }

    fn new() -> Self {
        Self {
            flags: [source::RESET as u8; SIZE],
            end: [0; SIZE],
            eisn: [0; SIZE],
        }
    }

    fn reset(&mut self, kinds: Kinds) {
        self.flags = reset_flags(kinds);
        self.end.fill(0);
        self.eisn.fill(0);
    }

    fn used(&self, kinds: Kinds) -> u64 {
        let mut routing = self.end;
        add(&mut routing, &self.eisn, |end, eisn| end | eisn);
        let mut used = reset_flags(kinds);
        add(&mut used, &self.flags, |reset, flags| reset ^ flags);
        add(&mut used, &routing, |used, routing| {
            used | u8::from(routing != 0)
        });
        nonzero(&used)
    }

    fn fits(held: &Held<Self>, geometry: &Geometry) -> bool {
        let (block, ends) = (&held.block, geometry.ends());
        let mut wrong = 0;
        for (end, eisn) in block.end.iter().zip(&block.eisn) {
            wrong |= u32::from(*end >= ends) | (eisn & !EISN);
        }
        wrong == 0
    }

    fn check(checker: &Checker<'_>, entry: &XiveSource, kind: Option<Kind>) -> Result<(), Invalid> {
        checker.xive_source(entry, kind)
    }

    fn number(entry: &XiveSource) -> u32 {
        entry.lisn
    }

    fn entry(&self, bit: usize, lisn: u32) -> XiveSource {
        XiveSource {
            lisn,
            pq: self.flags[bit] & 3,
            masked: self.flags[bit] & MASKED != 0,
            end: self.end[bit],
            eisn: self.eisn[bit],
        }
    }

    fn set(&mut self, bit: usize, entry: &XiveSource) {
        self.flags[bit] = entry.pq | u8::from(entry.masked) << MASKED_SHIFT;
        self.end[bit] = entry.end;
        self.eisn[bit] = entry.eisn;
    }

    fn append(&self, which: u64, columns: &mut [Vec<u8>]) {
        let [flags, end, eisn] = columns else { return };
        pick_bytes(&self.flags, which, flags);
        pick_words(&self.end, which, end);
        pick_words(&self.eisn, which, eisn);
    }

    fn take(&mut self, bits: Range<usize>, columns: &[&[u8]]) {
        let [flags, end, eisn] = columns else { return };
        take_bytes(&mut self.flags[bits.clone()], flags);
        take_words(&mut self.end[bits.clone()], end);
        take_words(&mut self.eisn[bits], eisn);
    }

    fn known(columns: &[Bytes]) -> Result<(), StreamError> {
        let flags = columns.first();
        flags.map_or(Ok(()), |flags| known_bytes(Self::NAME, flags, 7))
    }

    fn message(runs: Vec<u32>, columns: Vec<Bytes>) -> XiveSourcesMessage {
        let mut columns = columns.into_iter();
        let mut next = || columns.next().unwrap_or_default();
        XiveSourcesMessage {
            runs,
            flags: next(),
            end: next(),
            eisn: next(),
        }
    }

    fn columns(message: XiveSourcesMessage) -> (Vec<u32>, Vec<Bytes>) {
        let columns = vec![message.flags, message.end, message.eisn];
        (message.runs, columns)
    }
}
