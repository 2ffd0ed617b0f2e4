//! Files that hold a state: which format, in and out.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::Head;
use papr_intc_protocol::state::stream::{MAGIC, MAX_STREAM, Sections, StreamError};

use super::qemu::{self, stream::Stream};
use super::{ConvertError, Notes, kvm, refused};

/// Longest JSON document; a pseries machine's has less than 2 MiB.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Whose state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Ours (SPEC.md chapter 6)
    Papr,
    /// A migration file of a QEMU pseries machine
    Qemu,
    /// A JSON document of KVM's device attributes (docs/convert.md)
    Kvm,
}

impl Format {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Papr => "a state of papr-intc",
            Self::Qemu => "a QEMU migration file",
            Self::Kvm => "KVM device attributes",
        }
    }
}

/// Why a file gives no state.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// What is in it is refused.
    #[error("{0}: {1}")]
    Refused(PathBuf, ConvertError),
    /// It begins like nothing we know.
    #[error("{0}: no state of papr-intc, QEMU migration file or JSON document")]
    Unknown(PathBuf),
}

/// What a file holds.
#[derive(Debug)]
pub struct Found {
    /// In which format.
    pub format: Format,
    /// What.
    pub content: Content,
    /// What was changed to read it.
    pub notes: Notes,
}

/// A state, or what comes first of one.
#[derive(Debug)]
pub enum Content {
    /// A whole state.
    State(Box<State>),
    /// A head alone, as STATE_HEADER hands it out.
    Head(Box<Head>),
}

impl Content {
    /// The head of either.
    pub fn head(&self) -> &Head {
        match self {
            Self::State(state) => &state.head,
            Self::Head(head) => head,
        }
    }
}

/// Reads a file; `from` instead of looking what it begins with.
pub fn load(
    path: &Path,
    from: Option<Format>,
    options: &qemu::Options,
) -> Result<Found, FileError> {
    let io = |e| FileError::Io(path.to_owned(), e);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let format = match from {
        Some(format) => format,
        None => detect(&mut file)
            .map_err(io)?
            .ok_or_else(|| FileError::Unknown(path.to_owned()))?,
    };
    let mut notes = Notes::default();
    let content = match format {
        Format::Papr => {
            let bytes = whole(&mut file, MAX_STREAM as u64 + 1).map_err(io)?;
            ours(&bytes).map_err(ConvertError::from)
        }
        Format::Qemu => Stream::read(&mut file)
            .map_err(ConvertError::from)
            .and_then(|stream| qemu::read(&stream, options, &mut notes))
            .map(|state| Content::State(Box::new(state))),
        Format::Kvm => {
            let text = whole(&mut file, MAX_DOCUMENT + 1).map_err(io)?;
            document(&text).map(|state| Content::State(Box::new(state)))
        }
    };
    Ok(Found {
        format,
        content: content.map_err(|e| FileError::Refused(path.to_owned(), e))?,
        notes,
    })
}

fn detect<R: Read + Seek>(file: &mut R) -> io::Result<Option<Format>> {
    let start = whole(file, MAGIC.len() as u64)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(match start.as_slice() {
        start if start == MAGIC => Some(Format::Papr),
        [b'Q', b'E', b'V', b'M', ..] => Some(Format::Qemu),
        start if start.trim_ascii_start().starts_with(b"{") => Some(Format::Kvm),
        _ => None,
    })
}

/// All of a file, or its first `most` bytes.
fn whole<R: Read>(file: &mut R, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn ours(bytes: &[u8]) -> Result<Content, StreamError> {
    let mut sections = Sections::new(bytes)?;
    sections.next_section()?;
    if sections.position() == bytes.len() {
        Ok(Content::Head(Box::new(Head::decode(bytes)?)))
    } else {
        Ok(Content::State(Box::new(State::decode(bytes)?)))
    }
}

fn document(text: &[u8]) -> Result<State, ConvertError> {
    if text.len() as u64 > MAX_DOCUMENT {
        return Err(refused(
            "JSON",
            format!("it has more than {MAX_DOCUMENT} bytes"),
        ));
    }
    kvm::document::read(text)
}

/// A state as a file. QEMU's cannot be made of a state alone.
pub fn encode(state: &State, to: Format, notes: &mut Notes) -> Result<Vec<u8>, ConvertError> {
    match to {
        Format::Papr => Ok(state.encode()?),
        Format::Kvm => Ok(format!("{:#}\n", kvm::document::write(state, notes)?).into_bytes()),
        Format::Qemu => Err(refused("format", "a QEMU stream has more than this state")),
    }
}

/// Writes a file whole or not at all.
pub fn save(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = File::create(&part).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        std::fs::rename(&part, path)
    });
    written.map_err(|e| {
        // What is left of it is of no use; that it stays is no second failure.
        let _ = std::fs::remove_file(&part);
        FileError::Io(path.to_owned(), e)
    })
}
