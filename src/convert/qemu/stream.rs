//! A whole QEMU migration file: `migrate "exec:cat > file"` of a pseries machine.
//!
//! The file is a header with the machine's name, then RAM and other sections of their own formats, then
//! the devices, an end mark, and the vmdescription ([`super::description`]). Only the devices are
//! taken apart; what stands before them is copied as it is, and never held in memory.
//!
//! A device section is `04`, be32 section id, u8 length and name, be32 instance, be32 version, its fields, its
//! subsections (`05`, u8 length and name, be32 version, payload), `7e`, be32 section id.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::description::{Description, DescriptionError, Device};

const MAGIC: &[u8; 8] = b"QEVM\x00\x00\x00\x03";
const CONFIGURATION: u8 = 0x07;
const SECTION: u8 = 0x04;
const SUBSECTION: u8 = 0x05;
const DESCRIPTION: u8 = 0x06;
const FOOTER: u8 = 0x7e;
/// The end mark.
const END: u8 = 0x00;

/// Longest machine name.
const MAX_NAME: u32 = 256;
/// Longest vmdescription: 2 KiB a vCPU for 4096 of them, twice.
const MAX_DESCRIPTION: u64 = 16 << 20;
/// Most bytes of all devices together.
const MAX_DEVICES: u64 = 256 << 20;

/// Why a file cannot be taken apart.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Reading failed.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
    /// It does not begin as a migration file does.
    #[error("no QEMU migration file: it does not begin with QEVM, version 3 and a machine's name")]
    NotAStream,
    /// It does not end with a vmdescription.
    #[error("no vmdescription at the end: the file is cut short, or its machine does not send one")]
    NoDescription,
    /// The vmdescription is not usable.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// The devices do not fit between the start and the end of the file.
    #[error("the vmdescription speaks of {devices} bytes of devices; there are {available}")]
    TooLong {
        /// Bytes that the vmdescription names.
        devices: u64,
        /// Bytes there are, or the most that is read.
        available: u64,
    },
    /// A header or footer is not what the vmdescription says.
    #[error("section {name} (instance {instance}): its {what} is not where the vmdescription says")]
    Section {
        /// Which section.
        name: String,
        /// Which instance.
        instance: u32,
        /// `header`, `footer`, or a subsection's name.
        what: String,
    },
    /// Two sections have the same name and instance.
    #[error("section {0} (instance {1}) is there twice")]
    Twice(String, u32),
    /// A section that is to be replaced is not there.
    #[error("there is no section {0} (instance {1})")]
    Absent(String, u32),
    /// A section that is to be replaced is not of the same size.
    #[error("section {name} (instance {instance}) has {there} bytes; {new} do not fit")]
    Size {
        /// Which section.
        name: String,
        /// Which instance.
        instance: u32,
        /// Bytes it has.
        there: usize,
        /// Bytes of the replacement.
        new: usize,
    },
}

/// A migration file, its devices in memory.
#[derive(Clone, Debug)]
pub struct Stream {
    machine: String,
    /// Bytes before the first device.
    prefix: u64,
    sections: Vec<Section>,
    description: Description,
    /// The description as it was, as long as it describes the sections.
    text: Option<Vec<u8>>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Number of the section in this stream.
    pub id: u32,
    /// Name of the device's state.
    pub name: String,
    /// Which of several.
    pub instance: u32,
    /// Version of the format.
    pub version: u32,
    /// Its fields.
    pub payload: Vec<u8>,
    /// Its subsections.
    pub subsections: Vec<Subsection>,
}

/// An optional part of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsection {
    /// Its name.
    pub name: String,
    /// Version of the format.
    pub version: u32,
    /// Its fields, and subsections of its own as they stand in the file.
    pub payload: Vec<u8>,
}

impl Section {
    /// A subsection.
    pub fn subsection(&self, name: &str) -> Option<&Subsection> {
        self.subsections.iter().find(|part| part.name == name)
    }

    fn error(&self, what: &str) -> StreamError {
        StreamError::Section {
            name: self.name.clone(),
            instance: self.instance,
            what: what.to_owned(),
        }
    }
}

impl Stream {
    /// Takes a file apart. Reads its start, and from its end backwards the devices.
    pub fn read<R: Read + Seek>(input: &mut R) -> Result<Self, StreamError> {
        let machine = machine_name(input)?;
        let length = input.seek(SeekFrom::End(0))?;
        let (at, text) = find_description(input, length)?;
        let description = Description::parse(&text)?;
        let devices = description.devices()?;
        let total = devices
            .iter()
            .try_fold(0u64, |sum, device| sum.checked_add(device.length()?));
        let available = at.min(MAX_DEVICES);
        let total = total.unwrap_or(u64::MAX);
        let prefix = at.checked_sub(total).filter(|_| total <= MAX_DEVICES);
        let prefix = prefix.ok_or(StreamError::TooLong {
            devices: total,
            available,
        })?;
        let bytes = read_at(input, prefix, total)?;
        let mut rest = bytes.as_slice();
        let mut names = BTreeSet::new();
        let mut sections = Vec::with_capacity(devices.len());
        for device in devices {
            let section = cut(&device, &mut rest)?;
            if !names.insert((device.name.clone(), device.instance)) {
                return Err(StreamError::Twice(device.name, device.instance));
            }
            sections.push(section);
        }
        Ok(Self {
            machine,
            prefix,
            sections,
            description,
            text: Some(text),
        })
    }

    /// Writes the file: what stands before the devices from `original`, the devices as they are now.
    pub fn write<R: Read + Seek, W: Write>(&self, original: &mut R, out: &mut W) -> io::Result<()> {
        original.seek(SeekFrom::Start(0))?;
        let copied = io::copy(&mut original.by_ref().take(self.prefix), out)?;
        if copied != self.prefix {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for section in &self.sections {
            out.write_all(&section.to_bytes())?;
        }
        let text = match &self.text {
            Some(text) => text.clone(),
            None => self.description.to_text().into_bytes(),
        };
        out.write_all(&[END, DESCRIPTION])?;
        out.write_all(&(text.len() as u32).to_be_bytes())?;
        out.write_all(&text)
    }

    /// Name of the machine type, `pseries-7.2` for example.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// The devices, in stream order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// A device.
    pub fn section(&self, name: &str, instance: u32) -> Option<&Section> {
        self.sections
            .iter()
            .find(|s| s.name == name && s.instance == instance)
    }

    /// Instances of a device, in stream order.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Section> {
        self.sections.iter().filter(move |s| s.name == name)
    }

    /// Replaces the fields of a device by as many bytes.
    pub fn replace(
        &mut self,
        name: &str,
        instance: u32,
        payload: Vec<u8>,
    ) -> Result<(), StreamError> {
        let index = self.index(name, instance)?;
        let section = &mut self.sections[index];
        if section.payload.len() != payload.len() {
            return Err(StreamError::Size {
                name: name.to_owned(),
                instance,
                there: section.payload.len(),
                new: payload.len(),
            });
        }
        section.payload = payload;
        Ok(())
    }

    /// Adds a subsection to a device, or replaces the one of that name.
    pub fn set_subsection(
        &mut self,
        name: &str,
        instance: u32,
        part: Subsection,
    ) -> Result<(), StreamError> {
        let index = self.index(name, instance)?;
        let parts = &mut self.sections[index].subsections;
        let old = parts.iter_mut().find(|p| p.name == part.name);
        match old {
            Some(old) if old.payload.len() == part.payload.len() => *old = part,
            _ => {
                self.remove_subsection(name, instance, &part.name)?;
                let size = part.payload.len() as u64;
                self.description
                    .add_part(index, &part.name, part.version, size);
                self.sections[index].subsections.push(part);
                self.text = None;
            }
        }
        Ok(())
    }

    /// Removes a subsection of a device, if it is there.
    pub fn remove_subsection(
        &mut self,
        name: &str,
        instance: u32,
        part: &str,
    ) -> Result<(), StreamError> {
        let index = self.index(name, instance)?;
        let parts = &mut self.sections[index].subsections;
        if parts.iter().any(|p| p.name == part) {
            parts.retain(|p| p.name != part);
            self.description.remove_part(index, part);
            self.text = None;
        }
        Ok(())
    }

    fn index(&self, name: &str, instance: u32) -> Result<usize, StreamError> {
        self.sections
            .iter()
            .position(|s| s.name == name && s.instance == instance)
            .ok_or_else(|| StreamError::Absent(name.to_owned(), instance))
    }
}

impl Section {
    /// The section as it stands in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![SECTION];
        out.extend(self.id.to_be_bytes());
        out.extend(named(&self.name));
        out.extend(self.instance.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        out.extend(&self.payload);
        for part in &self.subsections {
            out.push(SUBSECTION);
            out.extend(named(&part.name));
            out.extend(part.version.to_be_bytes());
            out.extend(&part.payload);
        }
        out.push(FOOTER);
        out.extend(self.id.to_be_bytes());
        out
    }
}

/// A name with its length before it; the description refused longer ones.
fn named(name: &str) -> impl Iterator<Item = u8> {
    std::iter::once(name.len() as u8).chain(name.bytes())
}

fn read_at<R: Read + Seek>(input: &mut R, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.seek(SeekFrom::Start(at))?;
    input.by_ref().take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// The machine's name from the start of the file.
fn machine_name<R: Read + Seek>(input: &mut R) -> Result<String, StreamError> {
    let start = read_at(input, 0, 13).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => StreamError::NotAStream,
        _ => e.into(),
    })?;
    let length = u32::from_be_bytes([start[9], start[10], start[11], start[12]]);
    if !start.starts_with(MAGIC) || start[8] != CONFIGURATION || length > MAX_NAME {
        return Err(StreamError::NotAStream);
    }
    let name = read_at(input, 13, u64::from(length)).ok();
    name.and_then(|name| String::from_utf8(name).ok())
        .ok_or(StreamError::NotAStream)
}

/// Where the end mark before the vmdescription is, and the text.
///
/// The last byte `06` that a matching length follows: JSON has no such byte, but the length may.
fn find_description<R: Read + Seek>(
    input: &mut R,
    length: u64,
) -> Result<(u64, Vec<u8>), StreamError> {
    const HEADER: usize = 6;
    let window = length.min(MAX_DESCRIPTION + HEADER as u64);
    let mut bytes = read_at(input, length - window, window)?;
    let found = (0..bytes.len().saturating_sub(HEADER - 1))
        .rev()
        .find(|&at| {
            let header = &bytes[at..at + HEADER];
            let size = u32::from_be_bytes([header[2], header[3], header[4], header[5]]);
            header.starts_with(&[END, DESCRIPTION]) && size as usize == bytes.len() - at - HEADER
        });
    let at = found.ok_or(StreamError::NoDescription)?;
    Ok((length - window + at as u64, bytes.split_off(at + HEADER)))
}

/// Cuts one device off the front of `rest`.
fn cut(device: &Device, rest: &mut &[u8]) -> Result<Section, StreamError> {
    let mut section = Section {
        id: 0,
        name: device.name.clone(),
        instance: device.instance,
        version: device.version,
        payload: Vec::new(),
        subsections: Vec::new(),
    };
    let id = rest.get(1..5).and_then(|id| id.try_into().ok());
    section.id = u32::from_be_bytes(id.ok_or_else(|| section.error("header"))?);
    let bare = section.to_bytes();
    let header = &bare[..bare.len() - 5];
    let footer = &bare[bare.len() - 5..];
    expect(rest, header).ok_or_else(|| section.error("header"))?;
    section.payload = take(rest, device.fields).ok_or_else(|| section.error("payload"))?;
    for part in &device.subsections {
        let mut header = vec![SUBSECTION];
        header.extend(named(&part.name));
        header.extend(part.version.to_be_bytes());
        let payload = expect(rest, &header).and_then(|()| take(rest, part.length));
        section.subsections.push(Subsection {
            name: part.name.clone(),
            version: part.version,
            payload: payload.ok_or_else(|| section.error(&part.name))?,
        });
    }
    expect(rest, footer).ok_or_else(|| section.error("footer"))?;
    Ok(section)
}

fn expect(rest: &mut &[u8], bytes: &[u8]) -> Option<()> {
    *rest = rest.strip_prefix(bytes)?;
    Some(())
}

fn take(rest: &mut &[u8], length: u64) -> Option<Vec<u8>> {
    let (taken, left) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = left;
    Some(taken.to_vec())
}

#[cfg(test)]
pub(crate) mod tests;
