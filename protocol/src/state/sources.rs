//! Sections of sources, written and read by the block: [`Writer`] cuts what comes into sections, [`Received`] knows where
//! in a stream the columns of what it lists are.

use std::ops::Range;

use prost::bytes::Bytes;

use super::blocks::{Bitmaps, Block, Blocks, Held, bits, mask, spans};
use super::columns::{self, MOST, bad};
use super::model::Claims;
use super::stream::{Encoder, StreamError};

/// One section under way.
pub(super) struct Writer<B> {
    /// Gaps and counts, as [`columns::runs`] makes them.
    runs: Vec<u32>,
    /// After the last number.
    end: u32,
    count: usize,
    columns: Vec<Vec<u8>>,
    of: std::marker::PhantomData<B>,
}

impl<B: Block> Writer<B> {
    pub(super) fn new() -> Self {
        Self {
            runs: Vec::new(),
            end: 0,
            count: 0,
            columns: B::COLUMNS.iter().map(|_| Vec::new()).collect(),
            of: std::marker::PhantomData,
        }
    }

    /// Appends what a block lists.
    pub(super) fn push(&mut self, held: &Held<B>, out: &mut Encoder) {
        let mut left = held.listed;
        while left != 0 {
            let now = lowest(left, MOST - self.count);
            self.append(held, now);
            left &= !now;
            if self.count == MOST {
                self.flush(out);
            }
        }
    }

    fn append(&mut self, held: &Held<B>, which: u64) {
        for span in spans(which) {
            let first = held.first() + span.start;
            let count = span.end - span.start;
            match self.runs.last_mut() {
                Some(last) if first == self.end => *last += count,
                _ => self.runs.extend([first - self.end, count]),
            }
            self.end = first + count;
        }
        if self.count == 0 {
            for (column, (_, width)) in self.columns.iter_mut().zip(B::COLUMNS) {
                column.reserve(MOST * width);
            }
        }
        held.block.append(which, &mut self.columns);
        self.count += which.count_ones() as usize;
    }

    /// Writes what there is, if anything, as a section.
    pub(super) fn flush(&mut self, out: &mut Encoder) {
        if self.count == 0 {
            return;
        }
        let done = std::mem::replace(self, Self::new());
        let columns = done.columns.into_iter().map(|column| {
            // One of zeros is left out.
            if is_zero(&column) {
                Bytes::new()
            } else {
                column.into()
            }
        });
        out.section(B::NAME, &B::message(done.runs, columns.collect()));
    }
}

/// The lowest bits of a word, at most so many.
fn lowest(word: u64, most: usize) -> u64 {
    if word.count_ones() as usize <= most {
        return word;
    }
    bits(word).take(most).fold(0, |some, bit| some | 1 << bit)
}

fn is_zero(bytes: &[u8]) -> bool {
    let (pieces, rest) = bytes.as_chunks::<64>();
    let zero = |piece: &[u8; 64]| piece.iter().fold(0, |any, b| any | b) == 0;
    pieces.iter().all(zero) && rest.iter().all(|b| *b == 0)
}

/// What sections of one kind list: runs of numbers, and where their columns are. No more of it than numbers.
#[derive(Debug)]
pub(super) struct Received<B> {
    runs: Vec<Run>,
    of: std::marker::PhantomData<B>,
}

/// Most columns of a section.
const COLUMNS: usize = 4;

#[derive(Debug)]
struct Run {
    numbers: Range<u32>,
    /// Where in the stream its part of each column is; [`ZEROS`]: that is left out.
    columns: [u32; COLUMNS],
}

const ZEROS: u32 = u32::MAX;

impl<B: Block> Received<B> {
    pub(super) fn new() -> Self {
        const { assert!(B::COLUMNS.len() <= COLUMNS) };
        Self {
            runs: Vec::new(),
            of: std::marker::PhantomData,
        }
    }

    /// Takes a section, whose numbers come after those there are and are below `limit`. Which of them make sense
    /// is asked later.
    pub(super) fn take(
        &mut self,
        stream: &Bytes,
        payload: &[u8],
        limit: u32,
    ) -> Result<(), StreamError> {
        let message = columns::decode(B::NAME, stream.slice_ref(payload))?;
        let (runs, columns) = B::columns(message);
        let last = self.runs.last().map(|run| run.numbers.end - 1);
        let ranges = columns::ranges(B::NAME, &runs, columns::after(last)..limit)?;
        let count = ranges.iter().map(ExactSizeIterator::len).sum();
        for (column, (name, width)) in columns.iter().zip(B::COLUMNS) {
            check_column(B::NAME, name, column, count, *width)?;
        }
        B::known(&columns)?;
        let mut done = 0;
        for numbers in ranges {
            let mut starts = [ZEROS; COLUMNS];
            for ((start, column), (_, width)) in starts.iter_mut().zip(&columns).zip(B::COLUMNS) {
                if !column.is_empty() {
                    *start = (offset(stream, column) + done * width) as u32;
                }
            }
            done += numbers.len();
            let columns = starts;
            self.runs.push(Run { numbers, columns });
        }
        Ok(())
    }

    /// With the stream in which it was received, and its claims.
    pub(super) fn blocks<'a>(&'a self, stream: &'a [u8], claims: &'a [Claims]) -> InStream<'a, B> {
        InStream {
            runs: self,
            stream,
            claims,
        }
    }
}

/// Where in `whole` its part `part` begins. (A stream is far below 4 GiB.)
fn offset(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

fn check_column(
    section: &'static str,
    name: &str,
    bytes: &[u8],
    count: usize,
    width: usize,
) -> Result<(), StreamError> {
    if bytes.is_empty() {
        return Ok(());
    }
    if bytes.len() != count * width {
        let (found, unit) = match width {
            1 => (bytes.len(), "values"),
            _ => (bytes.len(), "bytes"),
        };
        let what = format!("column {name} has {found} {unit} for {count} entries");
        return Err(bad(section, what));
    }
    if is_zero(bytes) {
        let what = format!("column {name} is all zeros and not left out");
        return Err(bad(section, what));
    }
    Ok(())
}

/// The blocks of a stream.
pub(super) struct InStream<'a, B> {
    runs: &'a Received<B>,
    stream: &'a [u8],
    claims: &'a [Claims],
}

impl<B: Block> Blocks<B> for InStream<'_, B> {
    fn each<E>(self, mut take: impl FnMut(&Held<B>) -> Result<(), E>) -> Result<(), E> {
        let mut bitmaps = Bitmaps(self.claims);
        let mut held = Held::<B>::new();
        for run in &self.runs.runs {
            let mut next = run.numbers.start;
            while next < run.numbers.end {
                let w = next / u64::BITS;
                let first = w * u64::BITS;
                let end = run.numbers.end.min(first + u64::BITS);
                let bits = mask(next - first..end - first);
                if held.w != w || held.listed == 0 {
                    if held.listed != 0 {
                        take(&held)?;
                    }
                    held.become_empty(w, bitmaps.at(w), bits);
                }
                run.fill(self.stream, next..end, &mut held);
                held.listed |= bits;
                next = end;
            }
        }
        match held.listed {
            0 => Ok(()),
            _ => take(&held),
        }
    }
}

impl Run {
    /// Puts `numbers`, which are of this run and of one block, there.
    fn fill<B: Block>(&self, stream: &[u8], numbers: Range<u32>, held: &mut Held<B>) {
        let skipped = (numbers.start - self.numbers.start) as usize;
        let count = numbers.len();
        let mut pieces = [[].as_slice(); COLUMNS];
        for ((piece, start), (_, width)) in pieces.iter_mut().zip(self.columns).zip(B::COLUMNS) {
            if start != ZEROS {
                let from = start as usize + skipped * width;
                *piece = &stream[from..from + count * width];
            }
        }
        let bit = (numbers.start - held.first()) as usize;
        held.block
            .take(bit..bit + count, &pieces[..B::COLUMNS.len()]);
    }
}
