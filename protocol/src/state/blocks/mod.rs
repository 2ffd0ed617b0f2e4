//! Sources by the block: the 64 numbers that one word of the claim bitmaps covers, with a column for each of their
//! fields. A million sources are read, checked, written and stored so, in loops over arrays, and never lie in memory
//! one by one.
//!
//! [`Blocks`] come from lists of the model (here), from the words of a machine (`super::words`), or from a
//! stream (`super::sources`), and go to each of them.

mod xics;
mod xive;

use std::ops::Range;

use prost::bytes::Bytes;

pub(super) use xics::XicsBlock;
pub(super) use xive::XiveBlock;

use super::model::*;
use super::stream::StreamError;
use super::validate::{Checker, Invalid};
use crate::layout::{Geometry, IcMode};

/// Numbers of a block.
pub(super) const SIZE: usize = u64::BITS as usize;

/// What the claim bitmaps say of a block's numbers. `lsi` and `msi` are of claimed ones, and not both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) claimed: u64,
    pub(super) lsi: u64,
    pub(super) msi: u64,
}

impl Kinds {
    /// Of one of them.
    pub(super) fn of(self, bit: u32) -> Option<Kind> {
        let has = |bitmap: u64| bitmap >> bit & 1 == 1;
        has(self.claimed).then(|| match (has(self.lsi), has(self.msi)) {
            (true, _) => Kind::Lsi,
            (false, true) => Kind::Msi,
            (false, false) => Kind::Edge,
        })
    }
    /// Numbers of one kind.
    pub(super) fn all(self, kind: Kind) -> u64 {
        match kind {
            Kind::Lsi => self.lsi,
            Kind::Msi => self.msi,
            Kind::Edge => self.claimed & !self.lsi & !self.msi,
        }
    }
}

/// The bitmaps that runs of claims make, asked for rising words.
pub(super) struct Bitmaps<'a>(pub(super) &'a [Claims]);

impl Bitmaps<'_> {
    pub(super) fn at(&mut self, w: u32) -> Kinds {
        let (first, after) = (w * u64::BITS, (w + 1) * u64::BITS);
        let mut kinds = Kinds::default();
        while let [run, rest @ ..] = self.0
            && run.first < after
        {
            let end = run.first + run.count;
            if end > first {
                let bits = mask(run.first.max(first) - first..end.min(after) - first);
                kinds.claimed |= bits;
                match run.kind {
                    Kind::Lsi => kinds.lsi |= bits,
                    Kind::Msi => kinds.msi |= bits,
                    Kind::Edge => {}
                }
            }
            if end > after {
                break;
            }
            self.0 = rest;
        }
        kinds
    }
}

/// Columns of 64 sources of one controller.
pub(super) trait Block: Sized {
    /// One source.
    type Entry: Copy;
    /// A section of them.
    type Message: prost::Message + Default;
    /// Name of the section.
    const NAME: &'static str;
    /// Its columns: name, and bytes of a value.
    const COLUMNS: &'static [(&'static str, usize)];

    /// A machine has them.
    fn is_of(ic_mode: IcMode) -> bool;
    /// All as after reset, of numbers that are not claimed.
    fn new() -> Self;
    /// All as after reset.
    fn reset(&mut self, kinds: Kinds);
    /// Those that are not.
    fn used(&self, kinds: Kinds) -> u64;
    /// All that is listed makes sense. A fast answer: `false` leaves it to [`check`](Self::check) to say what is wrong.
    fn fits(held: &Held<Self>, geometry: &Geometry) -> bool;
    /// What is wrong with one.
    fn check(checker: &Checker<'_>, entry: &Self::Entry, kind: Option<Kind>)
    -> Result<(), Invalid>;

    /// Number of an entry.
    fn number(entry: &Self::Entry) -> u32;
    /// An entry, and its number.
    fn entry(&self, bit: usize, number: u32) -> Self::Entry;
    /// Takes an entry.
    fn set(&mut self, bit: usize, entry: &Self::Entry);

    /// Appends what the columns have of `which`.
    fn append(&self, which: u64, columns: &mut [Vec<u8>]);
    /// Takes a part of a section's columns; one that is left out is empty.
    fn take(&mut self, bits: Range<usize>, columns: &[&[u8]]);
    /// The columns have no values that no writer knows.
    fn known(columns: &[Bytes]) -> Result<(), StreamError>;
    /// A section's message.
    fn message(runs: Vec<u32>, columns: Vec<Bytes>) -> Self::Message;
    /// And what is in it.
    fn columns(message: Self::Message) -> (Vec<u32>, Vec<Bytes>);
}

/// A block of which something is listed.
pub(super) struct Held<B> {
    /// Its place in the bitmaps: its numbers are from 64 times that.
    pub(super) w: u32,
    pub(super) kinds: Kinds,
    pub(super) block: B,
    /// Those that are not as after reset.
    pub(super) listed: u64,
}

impl<B: Block> Held<B> {
    /// The first of a machine, of which nothing is claimed.
    pub(super) fn new() -> Self {
        Self {
            w: 0,
            kinds: Kinds::default(),
            block: B::new(),
            listed: 0,
        }
    }
    /// Becomes another one, of which nothing is listed; all but `coming`, which is about to be, is as after reset.
    pub(super) fn become_empty(&mut self, w: u32, kinds: Kinds, coming: u64) {
        (self.w, self.kinds, self.listed) = (w, kinds, 0);
        if coming != u64::MAX {
            self.block.reset(kinds);
        }
    }
    pub(super) fn first(&self) -> u32 {
        self.w * u64::BITS
    }
    /// What is listed, one by one.
    pub(super) fn entries(&self) -> impl Iterator<Item = (B::Entry, Option<Kind>)> {
        bits(self.listed).map(|bit| {
            let entry = self.block.entry(bit as usize, self.first() + bit);
            (entry, self.kinds.of(bit))
        })
    }
}

/// Where blocks come from.
pub(super) trait Blocks<B: Block> {
    /// Hands over, rising, every block of which something is listed.
    fn each<E>(self, take: impl FnMut(&Held<B>) -> Result<(), E>) -> Result<(), E>;
}

/// A valid list of the model.
pub(super) struct Listed<'a, B: Block> {
    pub(super) entries: &'a [B::Entry],
    pub(super) claims: &'a [Claims],
}

impl<B: Block> Blocks<B> for Listed<'_, B> {
    fn each<E>(self, mut take: impl FnMut(&Held<B>) -> Result<(), E>) -> Result<(), E> {
        let mut bitmaps = Bitmaps(self.claims);
        let mut held = Held::<B>::new();
        for entries in self
            .entries
            .chunk_by(|a, b| B::number(a) / u64::BITS == B::number(b) / u64::BITS)
        {
            let w = B::number(&entries[0]) / u64::BITS;
            held.become_empty(w, bitmaps.at(w), 0);
            for entry in entries {
                let bit = B::number(entry) % u64::BITS;
                held.block.set(bit as usize, entry);
                held.listed |= 1 << bit;
            }
            take(&held)?;
        }
        Ok(())
    }
}

/// Bits of a word that are set.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

/// The same in runs.
pub(super) fn spans(mut word: u64) -> impl Iterator<Item = Range<u32>> {
    std::iter::from_fn(move || {
        let from = (word != 0).then(|| word.trailing_zeros())?;
        let span = from..from + (word >> from).trailing_ones();
        word &= !mask(span.clone());
        Some(span)
    })
}

/// A word with these bits, at least one.
pub(super) fn mask(bits: Range<u32>) -> u64 {
    u64::MAX >> (u64::BITS - (bits.end - bits.start)) << bits.start
}

/// A value for each bit: `set`, or 0.
fn spread<T: Copy + Default>(word: u64, set: T) -> [T; SIZE] {
    // Neighbours are most often alike.
    match word {
        0 => [T::default(); SIZE],
        u64::MAX => [set; SIZE],
        _ => std::array::from_fn(|i| {
            if word >> i & 1 == 1 {
                set
            } else {
                T::default()
            }
        }),
    }
}

/// A bit for each byte, which is 0 or 1.
fn gathered(bytes: &[u8; SIZE]) -> u64 {
    let (eights, _) = bytes.as_chunks::<8>();
    let byte = |eight: &[u8; 8]| {
        // Byte i times 2^(56 - 7 i) has its bit at 56 + i, and no two products meet in a bit.
        u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56
    };
    let each = eights.iter().enumerate();
    each.fold(0, |word, (i, eight)| word | byte(eight) << (8 * i))
}

/// A bit for each byte that is not 0.
fn nonzero(bytes: &[u8; SIZE]) -> u64 {
    let mut ones = [0; SIZE];
    for (one, byte) in ones.iter_mut().zip(bytes) {
        *one = u8::from(*byte != 0);
    }
    gathered(&ones)
}

/// Lower and upper halves of words.
fn halves(words: &[u64; SIZE]) -> ([u32; SIZE], [u32; SIZE]) {
    let (mut low, mut high) = ([0; SIZE], [0; SIZE]);
    for ((low, high), word) in low.iter_mut().zip(&mut high).zip(words) {
        (*low, *high) = (*word as u32, (*word >> 32) as u32);
    }
    (low, high)
}

/// Each value of a column from that of another.
fn each<A: Copy, B>(to: &mut [B; SIZE], from: &[A; SIZE], of: impl Fn(A) -> B) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = of(*from);
    }
}

/// Each value of a column with that of another.
fn add<A: Copy, B: Copy>(to: &mut [A; SIZE], from: &[B; SIZE], with: impl Fn(A, B) -> A) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = with(*to, *from);
    }
}

/// Appends the values of `which`.
fn pick_bytes(values: &[u8; SIZE], which: u64, to: &mut Vec<u8>) {
    if which == u64::MAX {
        return to.extend_from_slice(values);
    }
    for span in spans(which) {
        to.extend_from_slice(&values[span.start as usize..span.end as usize]);
    }
}

fn pick_words(values: &[u32; SIZE], which: u64, to: &mut Vec<u8>) {
    let mut bytes = [[0; 4]; SIZE];
    each(&mut bytes, values, u32::to_le_bytes);
    if which == u64::MAX {
        return to.extend_from_slice(bytes.as_flattened());
    }
    for span in spans(which) {
        let span = &bytes[span.start as usize..span.end as usize];
        to.extend_from_slice(span.as_flattened());
    }
}

/// Takes a piece of a column; that is most often all of the block, and empty if the column is left out.
fn take_bytes(to: &mut [u8], column: &[u8]) {
    if column.is_empty() {
        to.fill(0);
    } else if let (Ok(to), Ok(column)) = (whole(to), <&[u8; SIZE]>::try_from(column)) {
        *to = *column;
    } else {
        to.copy_from_slice(column);
    }
}

fn take_words(to: &mut [u32], column: &[u8]) {
    let (column, _) = column.as_chunks::<4>();
    if column.is_empty() {
        to.fill(0);
    } else if let (Ok(to), Ok(column)) = (whole(to), column.try_into()) {
        each(to, column, u32::from_le_bytes);
    } else {
        for (to, bytes) in to.iter_mut().zip(column) {
            *to = u32::from_le_bytes(*bytes);
        }
    }
}

fn whole<T>(values: &mut [T]) -> Result<&mut [T; SIZE], std::array::TryFromSliceError> {
    values.try_into()
}

#[cfg(test)]
mod tests;
