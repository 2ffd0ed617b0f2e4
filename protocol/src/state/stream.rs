//! The stream: a magic, then sections (SPEC.md §6.2).
//!
//! A section is a name of 16 bytes (ASCII, padded with zeros), flags and length (u32, little-endian each), so
//! many bytes of payload, and the CRC-32 of all that (u32, little-endian). The same state has the same bytes:
//! whatever could be said in two ways is refused when it is read.

use std::convert::Infallible;

use super::blocks::{Block, Blocks, Listed, XicsBlock, XiveBlock};
use super::caps::{self, Mismatch, Table};
use super::columns::{
    self, CapabilityMessage, ClaimsMessage, Columns, EndMessage, HeadMessage, MOST, MachineMessage,
};
use super::model::*;
use super::sources::Writer;
use super::validate::{self, Invalid};
use crate::layout::Machine;
use crate::layout::header::Mode;

/// What a stream starts with.
pub const MAGIC: &[u8; 8] = b"PAPRSTAT";
/// The format that this build writes and reads.
pub const FORMAT: u32 = 1;
/// Section flag: who does not know the section refuses the stream. Without it, it is skipped.
pub const MANDATORY: u32 = 1;
/// Bytes of a section's name, flags and length.
pub const SECTION_HEADER: usize = 24;
/// Bytes of a section that are not payload.
pub const SECTION_OVERHEAD: usize = SECTION_HEADER + 4;
/// A stream is no longer. The state of 2^20 sources and 4,096 vCPUs, all used, is below a sixth of it.
pub const MAX_STREAM: usize = 128 << 20;
/// A section's payload is no longer.
pub const MAX_SECTION: usize = 1 << 20;
/// A head is no longer: it fits one message.
pub const MAX_HEAD: usize = 60_000;
/// Names of compat levels and capabilities are no longer: they are in refusals.
pub const MAX_NAME: usize = 64;

const HEAD: &str = "head";
pub(super) const END: &str = "end";
/// The sections of this format, in the order in which they are written.
pub const SECTIONS: [&str; 9] = [
    HEAD,
    Claims::NAME,
    XicsBlock::NAME,
    Icp::NAME,
    XiveBlock::NAME,
    super::model::End::NAME,
    Ring::NAME,
    Input::NAME,
    END,
];

/// Why a stream is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Not a state.
    #[error("it does not start with PAPRSTAT")]
    Magic,
    /// Longer than any.
    #[error("{0} bytes are more than any state has")]
    TooLong(usize),
    /// It ends inside a section, or has none at the end.
    #[error("the stream is cut at byte {0}")]
    Truncated(usize),
    /// A checksum is wrong.
    #[error(
        "section {section}: the checksum is {found:#010x}, of these bytes it is {computed:#010x}"
    )]
    Checksum {
        /// Name as it reads.
        section: String,
        /// In the stream.
        found: u32,
        /// Of what was read.
        computed: u32,
    },
    /// A mandatory section that this build does not have.
    #[error("section {0} is mandatory and not known here")]
    UnknownSection(String),
    /// A section whose header is wrong.
    #[error("section {section}: {what}")]
    Section {
        /// Name as it reads.
        section: String,
        /// What is wrong.
        what: String,
    },
    /// A section's message is wrong.
    #[error("section {section}: {what}")]
    Payload {
        /// Which.
        section: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Another format.
    #[error("the state has format {found}, this build reads {FORMAT}")]
    Format {
        /// In the head.
        found: u32,
    },
    /// The head announces what this build cannot take.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Values that make no sense together.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// One section of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// [`MANDATORY`].
    pub flags: u32,
    /// Its message.
    pub payload: &'a [u8],
}

/// Appends a section around what `write` appends.
fn section(out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    let mut header = [0; SECTION_HEADER];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[16..20].copy_from_slice(&MANDATORY.to_le_bytes());
    out.extend_from_slice(&header);
    write(out);
    // Sections are made of at most a few thousand entries each.
    let length = (out.len() - start - SECTION_HEADER) as u32;
    out[start + 20..start + 24].copy_from_slice(&length.to_le_bytes());
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Reads sections one after the other.
#[derive(Clone, Debug)]
pub struct Sections<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Sections<'a> {
    /// The sections of a stream, after its magic.
    pub fn new(bytes: &'a [u8]) -> Result<Self, StreamError> {
        if bytes.len() > MAX_STREAM {
            return Err(StreamError::TooLong(bytes.len()));
        }
        match bytes.get(..MAGIC.len()) {
            Some(magic) if magic == MAGIC => Ok(Self {
                bytes,
                at: MAGIC.len(),
            }),
            Some(_) => Err(StreamError::Magic),
            None if MAGIC.starts_with(bytes) => Err(StreamError::Truncated(bytes.len())),
            None => Err(StreamError::Magic),
        }
    }

    /// Where the next one starts.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next section, its checksum verified; `None` at the end of the bytes.
    pub fn next_section(&mut self) -> Result<Option<Section<'a>>, StreamError> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let cut = || StreamError::Truncated(self.bytes.len());
        let header = rest.get(..SECTION_HEADER).ok_or_else(cut)?;
        let (flags, length) = (le(&header[16..20]), le(&header[20..24]) as usize);
        if length > MAX_SECTION {
            return Err(StreamError::TooLong(length));
        }
        let end = SECTION_HEADER + length;
        let payload = rest.get(SECTION_HEADER..end).ok_or_else(cut)?;
        let found = le(rest.get(end..end.saturating_add(4)).ok_or_else(cut)?);
        let computed = crc32fast::hash(&rest[..end]);
        let shown = || {
            String::from_utf8_lossy(&header[..16])
                .trim_end_matches('\0')
                .escape_debug()
                .to_string()
        };
        if found != computed {
            return Err(StreamError::Checksum {
                section: shown(),
                found,
                computed,
            });
        }
        let Some(name) = name_of(&header[..16]) else {
            let what = "the name is not padded ASCII".to_owned();
            return Err(StreamError::Section {
                section: shown(),
                what,
            });
        };
        if flags & !MANDATORY != 0 {
            let what = format!("flags {flags:#x} are not defined");
            return Err(StreamError::Section {
                section: shown(),
                what,
            });
        }
        self.at += end + 4;
        Ok(Some(Section {
            name,
            flags,
            payload,
        }))
    }
}

fn le(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn name_of(field: &[u8]) -> Option<&str> {
    let length = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    let (name, padding) = field.split_at(length);
    let printable = name.iter().all(|b| b.is_ascii_graphic());
    let clean = !name.is_empty() && printable && padding.iter().all(|b| *b == 0);
    clean.then(|| std::str::from_utf8(name).ok()).flatten()
}

fn bad_head(what: String) -> StreamError {
    let section = HEAD;
    StreamError::Payload { section, what }
}

/// Unknown ones are shown to people.
fn check_name(item: &str, name: &str) -> Result<(), StreamError> {
    let printable = name.bytes().all(|b| b.is_ascii_graphic());
    if printable && (1..=MAX_NAME).contains(&name.len()) {
        return Ok(());
    }
    let (start, length): (String, _) = (name.chars().take(20).collect(), name.len());
    Err(bad_head(format!(
        "{item} {start:?} of {length} bytes is not 1 to {MAX_NAME} printable characters"
    )))
}

impl Head {
    fn to_message(&self) -> Result<HeadMessage, Mismatch> {
        let m = &self.machine;
        let level = level_name(m.compat);
        let carried = Table::BUILD.carry(level, &caps::of(m))?;
        let capability = |(name, value)| CapabilityMessage { name, value };
        Ok(HeadMessage {
            format: FORMAT,
            producer: self.producer.clone(),
            compat: level.to_owned(),
            capabilities: carried.into_iter().map(capability).collect(),
            machine: Some(MachineMessage {
                sources: m.sources,
                xics_base: m.xics_base,
                servers: m.servers,
                phandle: m.phandle,
                esb_base: m.esb_base,
                end_base: m.end_base,
                tima_base: m.tima_base,
                hv_prio: m.hv_prio.into(),
            }),
            active: match self.active {
                Mode::Xics => 1,
                Mode::Xive => 2,
            },
            cas_xive: self.cas_xive,
            ov5_byte_23: self.ov5_byte_23.into(),
            server_runs: columns::runs(self.servers.iter().copied()),
            fixed: (!self.fixed.is_empty()).then(|| ClaimsMessage::of(&self.fixed)),
        })
    }

    fn from_message(message: HeadMessage) -> Result<Self, StreamError> {
        let bad = bad_head;
        if message.format != FORMAT {
            let found = message.format;
            return Err(StreamError::Format { found });
        }
        validate::producer(&message.producer)?;
        check_name("compat level", &message.compat)?;
        for c in &message.capabilities {
            check_name("capability", &c.name)?;
        }
        let compat = level_of(&message.compat)
            .ok_or_else(|| Mismatch::UnknownLevel(message.compat.clone()))?;
        let carried: Vec<caps::Carried> = message
            .capabilities
            .iter()
            .map(|c| (c.name.clone(), c.value))
            .collect();
        let values = Table::BUILD.read(&message.compat, &carried)?;
        // In the order of the table, each once: one way to say it.
        if Table::BUILD.carry(&message.compat, &values)? != carried {
            return Err(bad(
                "the capabilities are not in the order of their table".into()
            ));
        }
        let (ic_mode, store_eoi) = caps::controllers(&values)
            .ok_or_else(|| bad(format!("capabilities {carried:?} make no machine")))?;
        let m = message
            .machine
            .ok_or_else(|| bad("there is no machine".into()))?;
        let byte = |item: &str, value: u32| {
            u8::try_from(value).map_err(|_| bad(format!("{item} {value} is no byte")))
        };
        let machine = Machine {
            ic_mode,
            compat,
            sources: m.sources,
            xics_base: m.xics_base,
            servers: m.servers,
            phandle: m.phandle,
            esb_base: m.esb_base,
            end_base: m.end_base,
            tima_base: m.tima_base,
            hv_prio: byte("hv_prio", m.hv_prio)?,
            store_eoi,
            ram_shared: true,
        };
        if machine.geometry().is_none() {
            return Err(bad(format!("the machine's numbers make none: {machine:?}")));
        }
        let mut fixed = Vec::new();
        if let Some(claims) = &message.fixed {
            claims.append(machine.sources, &mut fixed)?;
        }
        Ok(Self {
            fixed,
            producer: message.producer,
            machine,
            active: match message.active {
                1 => Mode::Xics,
                2 => Mode::Xive,
                other => return Err(bad(format!("active controller {other} is not defined"))),
            },
            cas_xive: message.cas_xive,
            ov5_byte_23: byte("ov5_byte_23", message.ov5_byte_23)?,
            servers: columns::numbers(HEAD, &message.server_runs, 0..machine.servers)?,
        })
    }

    /// The first bytes of a stream: magic and head. What STATE_HEADER hands out.
    ///
    /// # Errors
    /// A capability that the machine's compat level cannot carry.
    pub fn encode(&self) -> Result<Vec<u8>, StreamError> {
        validate::producer(&self.producer)?;
        let message = self.to_message()?;
        let mut out = MAGIC.to_vec();
        section(&mut out, HEAD, |out| columns::encode(&message, out));
        if out.len() > MAX_HEAD {
            return Err(StreamError::TooLong(out.len()));
        }
        Ok(out)
    }

    /// Reads the head of a stream, whatever follows it.
    pub fn decode(bytes: &[u8]) -> Result<Self, StreamError> {
        Self::take(&mut Sections::new(bytes)?)
    }

    pub(super) fn take(sections: &mut Sections<'_>) -> Result<Self, StreamError> {
        let first = sections.next_section()?;
        let first = first.ok_or(StreamError::Truncated(sections.at))?;
        if first.name != HEAD {
            let (section, what) = (first.name.to_owned(), "the head comes first".to_owned());
            return Err(StreamError::Section { section, what });
        }
        if sections.position() > MAX_HEAD {
            return Err(StreamError::TooLong(sections.position()));
        }
        let message = prost::Message::decode(first.payload).map_err(|e| StreamError::Payload {
            section: HEAD,
            what: e.to_string(),
        })?;
        Self::from_message(message)
    }
}

/// Writes a stream, list by list. What is handed in is valid.
pub(super) struct Encoder {
    out: Vec<u8>,
    sections: u32,
}

impl Encoder {
    /// A stream with this head, and room for so many bytes.
    pub(super) fn new(head: &Head, room: usize) -> Result<Self, StreamError> {
        let mut out = head.encode()?;
        out.reserve(room);
        Ok(Self { out, sections: 1 })
    }

    /// A section.
    pub(super) fn section(&mut self, name: &str, message: &impl prost::Message) {
        section(&mut self.out, name, |out| columns::encode(message, out));
        self.sections += 1;
    }

    /// Sections of one kind, as many as the list needs.
    pub(super) fn list<T: Columns>(&mut self, entries: &[T]) {
        for chunk in entries.chunks(MOST) {
            section(&mut self.out, T::NAME, |out| T::write(chunk, out));
            self.sections += 1;
        }
    }

    /// The same of sources.
    pub(super) fn sources<B: Block>(&mut self, blocks: impl Blocks<B>) {
        let mut writer = Writer::new();
        let done: Result<(), Infallible> = blocks.each(|held| {
            writer.push(held, self);
            Ok(())
        });
        let Ok(()) = done;
        writer.flush(self);
    }

    /// The whole stream.
    pub(super) fn finish(self) -> Vec<u8> {
        let Self { mut out, sections } = self;
        let bytes = out.len() as u64;
        section(&mut out, END, |out| {
            columns::encode(&EndMessage { sections, bytes }, out);
        });
        out
    }
}

impl State {
    /// The whole stream.
    ///
    /// # Errors
    /// The state is not [valid](State::validate), or has what its level cannot carry.
    pub fn encode(&self) -> Result<Vec<u8>, StreamError> {
        self.validate()?;
        // Bytes of entries, about.
        let room = self.xics.sources.len() * 8 + self.xive.sources.len() * 10 + 4096;
        let claims = self.claims.as_slice();
        let mut encoder = Encoder::new(&self.head, room)?;
        encoder.list(claims);
        let entries = &self.xics.sources;
        encoder.sources::<XicsBlock>(Listed { entries, claims });
        encoder.list(&self.xics.icps);
        let entries = &self.xive.sources;
        encoder.sources::<XiveBlock>(Listed { entries, claims });
        encoder.list(&self.xive.ends);
        encoder.list(&self.xive.rings);
        encoder.list(&self.inputs);
        Ok(encoder.finish())
    }
}

#[cfg(test)]
mod tests;
