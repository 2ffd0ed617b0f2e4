//! Blocks of sources from the words of a machine.

use std::ops::Range;
use std::sync::atomic::Ordering::Acquire;

use super::super::blocks::{Block, Held, SIZE, XicsBlock, XiveBlock};
use super::super::sources::Writer;
use super::super::stream::{Encoder, StreamError};
use super::super::validate::Checker;
use super::{Words, XICS_INPUT, XIVE_INPUT, all};
use crate::layout::words::{ics, source};
use crate::layout::{AtomicWord, Contiguous, Page, Table};

impl<S: Contiguous> Words<'_, S> {
    /// Writes what XICS has that is not as after reset; marks in `touched` what holds something from outside.
    pub(super) fn save_xics(
        &self,
        touched: &mut [u64],
        checker: &Checker<'_>,
        out: &mut Encoder,
    ) -> Result<(), StreamError> {
        self.save_blocks(touched, checker, out, |held: &mut Held<XicsBlock>| {
            let mut words = [ics::RESET; SIZE];
            let (shared, bits) = self.ics_words(held.w);
            get(shared, &mut words[bits]);
            held.take(&words);
            having(&words, all(XICS_INPUT))
        })
    }

    /// The same of XIVE.
    pub(super) fn save_xive(
        &self,
        touched: &mut [u64],
        checker: &Checker<'_>,
        out: &mut Encoder,
    ) -> Result<(), StreamError> {
        self.save_blocks(touched, checker, out, |held: &mut Held<XiveBlock>| {
            let (mut sources, mut eas) = ([source::RESET; SIZE], [0; SIZE]);
            get(self.source_words(held.w), &mut sources);
            get(self.eas_words(held.w), &mut eas);
            held.take(&sources, &eas);
            having(&sources, all(XIVE_INPUT))
        })
    }

    fn save_blocks<B: Block>(
        &self,
        touched: &mut [u64],
        checker: &Checker<'_>,
        out: &mut Encoder,
        take: impl Fn(&mut Held<B>) -> u64,
    ) -> Result<(), StreamError> {
        let mut writer = Writer::new();
        let mut held = Held::<B>::new();
        for (w, touched) in (0..).zip(touched) {
            (held.w, held.kinds) = (w, self.kinds(w));
            *touched |= take(&mut held);
            if held.listed != 0 {
                checker.used(&held)?;
                writer.push(&held, out);
            }
        }
        writer.flush(out);
        Ok(())
    }

    /// Words of the XICS sources of block `w`, and which of the block they are.
    #[inline]
    pub(super) fn ics_words(&self, w: u32) -> (&[S::Word], Range<usize>) {
        let first = w * u64::BITS;
        let (base, sources) = (self.geometry.xics_base(), self.geometry.sources());
        let to = sources.min(first + u64::BITS).max(base);
        let from = base.max(first).min(to);
        let words = self.storage.pages(Page::IcsSource(from - base), to - from);
        let bits = from.saturating_sub(first)..to.saturating_sub(first);
        match words.is_empty() {
            true => (words, 0..0),
            false => (words, bits.start as usize..bits.end as usize),
        }
    }

    /// Source words of block `w`.
    #[inline]
    pub(super) fn source_words(&self, w: u32) -> impl Iterator<Item = &S::Word> {
        self.storage.sources(self.geometry, self.numbers(w))
    }

    /// EAS of block `w`.
    #[inline]
    pub(super) fn eas_words(&self, w: u32) -> &[S::Word] {
        let numbers = self.numbers(w);
        let count = numbers.end - numbers.start;
        self.storage.tables(Table::Eas(numbers.start), count)
    }

    fn numbers(&self, w: u32) -> Range<u32> {
        let first = w * u64::BITS;
        first..self.geometry.sources().min(first + u64::BITS)
    }
}

/// Reads words into `values`, of which there are at least as many.
fn get<'a, W: AtomicWord + 'a>(words: impl IntoIterator<Item = &'a W>, values: &mut [u64]) {
    for (value, word) in values.iter_mut().zip(words) {
        // Acquire: as in `Words::page`.
        *value = word.load(Acquire);
    }
}

/// Which words have any of `bits`.
fn having(words: &[u64; SIZE], bits: u64) -> u64 {
    if words.iter().fold(0, |any, word| any | word) & bits == 0 {
        return 0;
    }
    let each = (0..).zip(words).filter(|(_, word)| **word & bits != 0);
    each.fold(0, |having, (i, _)| having | 1 << i)
}
