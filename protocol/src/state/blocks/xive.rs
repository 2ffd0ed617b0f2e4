//! A block of XIVE sources: PQ and EAS.

use std::ops::Range;

use prost::bytes::Bytes;

use super::{
    Block, Held, Kinds, SIZE, gathered, pick_bytes, pick_words, spread, take_bytes, take_words,
};
use crate::layout::{Geometry, IcMode};
use crate::layout::words::{eas, source};
use crate::state::columns::{XiveSourcesMessage, known_bytes};
use crate::state::model::{Kind, XiveSource};
use crate::state::stream::StreamError;
use crate::state::validate::{Checker, Invalid};

/// Flags: PQ, and above it whether the EAS is masked.
const MASKED_SHIFT: u32 = 2;
const EISN: u32 = 0x7fff_ffff;

#[derive(Debug)]
pub(in crate::state) struct XiveBlock {
    flags: [u8; SIZE],
    end: [u32; SIZE],
    eisn: [u32; SIZE],
}

impl XiveBlock {
    /// From source words and EAS.
    pub(in crate::state) fn of_words(sources: &[u64; SIZE], eas: &[u64; SIZE]) -> Self {
        let (mut flags, mut end, mut eisn) = ([0; SIZE], [0; SIZE], [0; SIZE]);
        for i in 0..SIZE {
            flags[i] = (sources[i] & source::PQ) as u8
                | ((eas[i] & eas::MASKED) >> (31 - MASKED_SHIFT)) as u8;
            end[i] = eas::end(eas[i]);
            eisn[i] = eas::eisn(eas[i]);
        }
        Self { flags, end, eisn }
    }

    /// Source words and EAS.
    pub(in crate::state) fn words(&self, kinds: Kinds) -> ([u64; SIZE], [u64; SIZE]) {
        let valid = spread(kinds.claimed);
        let (mut sources, mut eas) = ([0; SIZE], [0; SIZE]);
        for i in 0..SIZE {
            sources[i] = u64::from(self.flags[i]) & source::PQ;
            let masked = u64::from(self.flags[i] >> MASKED_SHIFT) << 31;
            let route = u64::from(self.end[i]) << 32 | u64::from(self.eisn[i]);
            eas[i] = u64::from(valid[i]) << 63 | route | masked;
        }
        (sources, eas)
    }
}

const _: () = assert!(eas::VALID == 1 << 63 && eas::MASKED == 1 << 31 && source::PQ == 3);

impl Block for XiveBlock {
    type Entry = XiveSource;
    type Message = XiveSourcesMessage;
    const NAME: &'static str = "xive-sources";
    const COLUMNS: &'static [(&'static str, usize)] = &[("flags", 1), ("end", 4), ("eisn", 4)];

    fn is_of(ic_mode: IcMode) -> bool {
        ic_mode.has_xive()
    }

    fn reset(kinds: Kinds) -> Self {
        let claimed = spread(kinds.claimed);
        Self {
            flags: claimed.map(|claimed| claimed << MASKED_SHIFT | source::RESET as u8),
            end: [0; SIZE],
            eisn: [0; SIZE],
        }
    }

    fn used(&self, kinds: Kinds) -> u64 {
        let claimed = spread(kinds.claimed);
        let mut used = [0; SIZE];
        for i in 0..SIZE {
            let flags = self.flags[i] ^ (claimed[i] << MASKED_SHIFT | source::RESET as u8);
            let differs = u32::from(flags) | self.end[i] | self.eisn[i];
            used[i] = u8::from(differs != 0);
        }
        gathered(&used)
    }

    fn fits(held: &Held<Self>, geometry: &Geometry) -> bool {
        let (block, ends) = (&held.block, geometry.ends());
        let mut wrong = 0;
        for i in 0..SIZE {
            wrong |= u32::from(block.end[i] >= ends) | (block.eisn[i] & !EISN);
        }
        wrong == 0
    }

    fn check(
        checker: &Checker<'_>,
        entry: &XiveSource,
        kind: Option<Kind>,
    ) -> Result<(), Invalid> {
        checker.xive_source(entry, kind)
    }

    fn number(entry: &XiveSource) -> u32 {
        entry.lisn
    }

    fn entry(&self, bit: usize, lisn: u32) -> XiveSource {
        XiveSource {
            lisn,
            pq: self.flags[bit] & 3,
            masked: self.flags[bit] >> MASKED_SHIFT != 0,
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
