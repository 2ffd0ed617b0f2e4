//! Between the lists of [`super::model`] and the messages of `state.proto`: runs of numbers, and a column for
//! each field.

mod messages;

use std::ops::Range;

pub(super) use messages::*;

use super::model::*;
use super::stream::StreamError;

/// Entries in one section: a section is small enough to be worked on in a cache.
pub(super) const MOST: usize = 16_384;

/// A list of the model as one kind of section. Sources have their own way: [`super::sources`].
pub(super) trait Columns: Sized {
    /// Name of the section.
    const NAME: &'static str;
    /// Writes entries.
    fn write(entries: &[Self], out: &mut Vec<u8>);
    /// Appends the entries of a section, which come after those there are. `limit`: numbers are below it.
    fn read(payload: &[u8], limit: u32, into: &mut Vec<Self>) -> Result<(), StreamError>;
}

pub(super) fn decode<M: prost::Message + Default>(
    name: &'static str,
    payload: impl prost::bytes::Buf,
) -> Result<M, StreamError> {
    M::decode(payload).map_err(|e| StreamError::Payload {
        section: name,
        what: e.to_string(),
    })
}

pub(super) fn bad(section: &'static str, what: impl Into<String>) -> StreamError {
    StreamError::Payload {
        section,
        what: what.into(),
    }
}

/// Gaps and counts of ascending numbers.
pub(super) fn runs(numbers: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut runs: Vec<u32> = Vec::new();
    let mut end = 0;
    for n in numbers {
        match runs.last_mut() {
            Some(count) if n == end => *count += 1,
            _ => runs.extend([n - end, 1]),
        }
        end = n + 1;
    }
    runs
}

/// The numbers of `runs`; all of them in `range`. What earlier sections had is below it, so that no stream
/// can name more entries than there are.
pub(super) fn ranges(
    section: &'static str,
    runs: &[u32],
    range: Range<u32>,
) -> Result<Vec<Range<u32>>, StreamError> {
    if !runs.len().is_multiple_of(2) {
        return Err(bad(section, "a gap without a count"));
    }
    let mut ranges = Vec::with_capacity(runs.len() / 2);
    let mut end = 0u32;
    for (i, run) in runs.chunks_exact(2).enumerate() {
        let first = end.checked_add(run[0]);
        let after = first.and_then(|first| first.checked_add(run[1]));
        let (Some(first), Some(after)) = (
            first.filter(|first| *first >= range.start),
            after.filter(|after| *after <= range.end),
        ) else {
            return Err(bad(section, format!("run {i} leaves {range:#x?}")));
        };
        if run[1] == 0 || (run[0] == 0 && i > 0) {
            return Err(bad(
                section,
                format!("run {i} is empty or joins the one before"),
            ));
        }
        ranges.push(first..after);
        end = after;
    }
    Ok(ranges)
}

/// The same, one by one.
pub(super) fn numbers(
    section: &'static str,
    runs: &[u32],
    range: Range<u32>,
) -> Result<Vec<u32>, StreamError> {
    let ranges = ranges(section, runs, range)?;
    Ok(ranges.into_iter().flatten().collect())
}

/// The lowest number that may follow the last one of a list.
pub(super) fn after(last: Option<u32>) -> u32 {
    last.map_or(0, |n| n.saturating_add(1))
}

/// A column, left out if it is all zeros.
fn column<T: Copy + PartialEq + Default>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut column: Vec<T> = values.collect();
    if column.iter().all(|v| *v == T::default()) {
        column.clear();
    }
    column
}

/// A column of `n` values as it was read.
struct Read<'a, T>(&'a [T]);

impl<'a, T: Copy + PartialEq + Default> Read<'a, T> {
    fn new(
        section: &'static str,
        name: &str,
        values: &'a [T],
        n: usize,
    ) -> Result<Self, StreamError> {
        let all_zero = || values.iter().all(|v| *v == T::default());
        if values.is_empty() {
            return Ok(Self(values));
        }
        if values.len() != n {
            let what = format!("column {name} has {} values for {n} entries", values.len());
            return Err(bad(section, what));
        }
        if all_zero() {
            return Err(bad(
                section,
                format!("column {name} is all zeros and not left out"),
            ));
        }
        Ok(Self(values))
    }
    fn at(&self, i: usize) -> T {
        self.0.get(i).copied().unwrap_or_default()
    }
}

/// The bits that are on.
pub(super) fn bits(flags: &[(bool, u8)]) -> u8 {
    flags
        .iter()
        .fold(0, |all, (on, bit)| all | if *on { *bit } else { 0 })
}

/// A column of flags has none that is not in `mask`.
pub(super) fn known_bytes(
    section: &'static str,
    flags: &[u8],
    mask: u8,
) -> Result<(), StreamError> {
    if flags.iter().fold(0, |any, flags| any | flags) & !mask == 0 {
        return Ok(());
    }
    flags
        .iter()
        .try_for_each(|flags| known(section, *flags, mask).map(|_| ()))
}

fn known(section: &'static str, flags: u8, mask: u8) -> Result<u8, StreamError> {
    match flags & !mask {
        0 => Ok(flags),
        unknown => Err(bad(section, format!("flags {unknown:#x} are not defined"))),
    }
}

impl Columns for Claims {
    const NAME: &'static str = "claims";

    fn write(entries: &[Self], out: &mut Vec<u8>) {
        encode(&ClaimsMessage::of(entries), out);
    }

    fn read(payload: &[u8], limit: u32, into: &mut Vec<Self>) -> Result<(), StreamError> {
        let message: ClaimsMessage = decode(Self::NAME, payload)?;
        message.append(limit, into)
    }
}

impl ClaimsMessage {
    pub(super) fn of(entries: &[Claims]) -> Self {
        let mut end = 0;
        let mut runs = Vec::with_capacity(entries.len() * 2);
        for run in entries {
            runs.extend([run.first - end, run.count]);
            end = run.first + run.count;
        }
        let kinds = column(entries.iter().map(|run| run.kind as u32));
        Self { runs, kinds }
    }

    /// Appends its runs, which come after those there are.
    pub(super) fn append(&self, limit: u32, into: &mut Vec<Claims>) -> Result<(), StreamError> {
        const NAME: &str = Claims::NAME;
        let kinds = Read::new(NAME, "kinds", &self.kinds, self.runs.len() / 2)?;
        if !self.runs.len().is_multiple_of(2) {
            return Err(bad(NAME, "a gap without a count"));
        }
        let lowest = into.last().map_or(0, |run| run.first + run.count);
        let mut end = 0u32;
        for (i, run) in self.runs.chunks_exact(2).enumerate() {
            let first = end.checked_add(run[0]).filter(|first| *first >= lowest);
            let after = first.and_then(|first| first.checked_add(run[1]));
            let (Some(first), Some(after)) = (first, after.filter(|after| *after <= limit)) else {
                return Err(bad(NAME, format!("run {i} leaves {lowest:#x}..{limit:#x}")));
            };
            if run[1] == 0 {
                return Err(bad(NAME, format!("run {i} is empty")));
            }
            let kind = match kinds.at(i) {
                0 => Kind::Edge,
                1 => Kind::Lsi,
                2 => Kind::Msi,
                other => return Err(bad(NAME, format!("kind {other} is not defined"))),
            };
            let count = run[1];
            into.push(Claims { first, count, kind });
            end = after;
        }
        Ok(())
    }
}

impl Columns for Input {
    const NAME: &'static str = "inputs";

    fn write(entries: &[Self], out: &mut Vec<u8>) {
        let flags = entries.iter().map(|i| {
            bits(&[
                (i.level_vmm, 1),
                (i.level_irqfd, 2),
                (i.latched, 4),
                (i.resample_due, 8),
            ])
        });
        let message = InputsMessage {
            runs: runs(entries.iter().map(|i| i.lisn)),
            flags: column(flags),
        };
        encode(&message, out);
    }

    fn read(payload: &[u8], limit: u32, into: &mut Vec<Self>) -> Result<(), StreamError> {
        let m: InputsMessage = decode(Self::NAME, payload)?;
        let numbers = numbers(
            Self::NAME,
            &m.runs,
            after(into.last().map(|e| e.lisn))..limit,
        )?;
        let flags = Read::new(Self::NAME, "flags", &m.flags, numbers.len())?;
        for (i, lisn) in numbers.into_iter().enumerate() {
            let f = known(Self::NAME, flags.at(i), 15)?;
            into.push(Self {
                lisn,
                level_vmm: f & 1 != 0,
                level_irqfd: f & 2 != 0,
                latched: f & 4 != 0,
                resample_due: f & 8 != 0,
            });
        }
        Ok(())
    }
}

impl Columns for Icp {
    const NAME: &'static str = "xics-icps";

    fn write(entries: &[Self], out: &mut Vec<u8>) {
        let message = IcpsMessage {
            runs: runs(entries.iter().map(|i| i.server)),
            cppr: column(entries.iter().map(|i| i.cppr)),
            xisr: column(entries.iter().map(|i| i.xisr)),
            pending_priority: column(entries.iter().map(|i| i.pending_priority)),
            mfrr: column(entries.iter().map(|i| i.mfrr)),
        };
        encode(&message, out);
    }

    fn read(payload: &[u8], limit: u32, into: &mut Vec<Self>) -> Result<(), StreamError> {
        let m: IcpsMessage = decode(Self::NAME, payload)?;
        let numbers = numbers(
            Self::NAME,
            &m.runs,
            after(into.last().map(|e| e.server))..limit,
        )?;
        let n = numbers.len();
        let cppr = Read::new(Self::NAME, "cppr", &m.cppr, n)?;
        let xisr = Read::new(Self::NAME, "xisr", &m.xisr, n)?;
        let pending = Read::new(Self::NAME, "pending_priority", &m.pending_priority, n)?;
        let mfrr = Read::new(Self::NAME, "mfrr", &m.mfrr, n)?;
        into.extend(numbers.into_iter().enumerate().map(|(i, server)| Self {
            server,
            cppr: cppr.at(i),
            xisr: xisr.at(i),
            pending_priority: pending.at(i),
            mfrr: mfrr.at(i),
        }));
        Ok(())
    }
}

impl Columns for End {
    const NAME: &'static str = "xive-ends";

    fn write(entries: &[Self], out: &mut Vec<u8>) {
        let flags = |e: &Self| (e.esn & 3) << 2 | bits(&[(e.always_notify, 1), (e.generation, 2)]);
        let message = EndsMessage {
            runs: runs(entries.iter().map(|e| e.end)),
            address: column(entries.iter().map(|e| e.address)),
            size: column(entries.iter().map(|e| e.size)),
            flags: column(entries.iter().map(flags)),
            index: column(entries.iter().map(|e| e.index)),
        };
        encode(&message, out);
    }

    fn read(payload: &[u8], limit: u32, into: &mut Vec<Self>) -> Result<(), StreamError> {
        let m: EndsMessage = decode(Self::NAME, payload)?;
        let numbers = numbers(
            Self::NAME,
            &m.runs,
            after(into.last().map(|e| e.end))..limit,
        )?;
        let n = numbers.len();
        let address = Read::new(Self::NAME, "address", &m.address, n)?;
        let size = Read::new(Self::NAME, "size", &m.size, n)?;
        let flags = Read::new(Self::NAME, "flags", &m.flags, n)?;
        let index = Read::new(Self::NAME, "index", &m.index, n)?;
        for (i, end) in numbers.into_iter().enumerate() {
            let f = known(Self::NAME, flags.at(i), 15)?;
            into.push(Self {
                end,
                address: address.at(i),
                size: size.at(i),
                always_notify: f & 1 != 0,
                generation: f & 2 != 0,
                index: index.at(i),
                esn: f >> 2,
            });
        }
        Ok(())
    }
}

impl Columns for Ring {
    const NAME: &'static str = "xive-rings";

    fn write(entries: &[Self], out: &mut Vec<u8>) {
        let message = RingsMessage {
            runs: runs(entries.iter().map(|r| r.server)),
            ring: column(entries.iter().map(|r| r.bytes)),
        };
        encode(&message, out);
    }

    fn read(payload: &[u8], limit: u32, into: &mut Vec<Self>) -> Result<(), StreamError> {
        let m: RingsMessage = decode(Self::NAME, payload)?;
        let numbers = numbers(
            Self::NAME,
            &m.runs,
            after(into.last().map(|e| e.server))..limit,
        )?;
        let ring = Read::new(Self::NAME, "ring", &m.ring, numbers.len())?;
        into.extend(numbers.into_iter().enumerate().map(|(i, server)| Self {
            server,
            bytes: ring.at(i),
        }));
        Ok(())
    }
}

/// Appends a message. The only error of prost is too little room, and a vector grows.
pub(super) fn encode(message: &impl prost::Message, out: &mut Vec<u8>) {
    out.reserve(message.encoded_len());
    let encoded = message.encode(out);
    debug_assert!(encoded.is_ok());
}
