//! The vmdescription: the JSON at the end of a QEMU migration file that says how long each device is.
//!
//! Device sections do not say where they end; this text does. It lists the devices in stream order, their
//! fields with sizes, and their subsections. [`super::stream`] cuts the file by it, and changes it when a
//! subsection comes or goes, so that whoever reads the new file next can do the same.

use serde_json::{Value, json};

/// Deepest nesting of subsections that is followed (QEMU has two).
const MAX_DEPTH: u32 = 8;

/// What is wrong with a description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// No JSON, or too deep.
    #[error("the vmdescription is no JSON: {0}")]
    NotJson(String),
    /// A member is missing or has another type.
    #[error("the vmdescription of {device} has no usable {member:?}")]
    Member {
        /// Which device, or `the stream`.
        device: String,
        /// Which member.
        member: &'static str,
    },
    /// Sizes that do not add up in 64 bits, or subsections nested too deep.
    #[error("the vmdescription of {0} is out of bounds")]
    Bounds(String),
}

/// A vmdescription.
#[derive(Clone, Debug)]
pub struct Description(Value);

/// A device of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name in the section header.
    pub name: String,
    /// Its instance there.
    pub instance: u32,
    /// Its version there.
    pub version: u32,
    /// Bytes of its fields, subsections not counted.
    pub fields: u64,
    /// Its subsections, in stream order.
    pub subsections: Vec<Part>,
}

/// A subsection of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Bytes after its header: its fields, and its own subsections with their headers.
    pub length: u64,
}

impl Device {
    /// Bytes from the section's type byte to the end of its footer; `None` if no file is so long.
    pub fn length(&self) -> Option<u64> {
        const HEADER: u64 = 1 + 4 + 1 + 4 + 4;
        const FOOTER: u64 = 1 + 4;
        let own = (HEADER + FOOTER + self.name.len() as u64).checked_add(self.fields)?;
        self.subsections.iter().try_fold(own, |sum, part| {
            sum.checked_add(part_header(&part.name))?
                .checked_add(part.length)
        })
    }
}

/// Bytes of a subsection's header: type, name with length, version.
fn part_header(name: &str) -> u64 {
    1 + 1 + name.len() as u64 + 4
}

impl Description {
    /// Reads the text.
    pub fn parse(text: &[u8]) -> Result<Self, DescriptionError> {
        let value: Value =
            serde_json::from_slice(text).map_err(|e| DescriptionError::NotJson(e.to_string()))?;
        Ok(Self(value))
    }

    /// The text, its members in alphabetical order.
    pub fn to_text(&self) -> String {
        self.0.to_string()
    }

    /// The devices, in stream order.
    pub fn devices(&self) -> Result<Vec<Device>, DescriptionError> {
        let list = self.0["devices"].as_array();
        let list = list.ok_or_else(|| missing("the stream", "devices"))?;
        list.iter().map(device).collect()
    }

    /// Describes one more subsection of the device at `index`: one buffer of `size` bytes.
    pub fn add_part(&mut self, index: usize, name: &str, version: u32, size: u64) {
        let field = json!({ "name": name, "type": "buffer", "size": size });
        let part = json!({ "vmsd_name": name, "version": version, "fields": [field] });
        let device = &mut self.0["devices"][index];
        match device["subsections"].as_array_mut() {
            Some(parts) => parts.push(part),
            None => device["subsections"] = json!([part]),
        }
    }

    /// Forgets a subsection of the device at `index`.
    pub fn remove_part(&mut self, index: usize, name: &str) {
        let parts = self.0["devices"][index]["subsections"].as_array_mut();
        if let Some(parts) = parts {
            parts.retain(|part| part["vmsd_name"] != name);
        }
    }
}

fn missing(device: &str, member: &'static str) -> DescriptionError {
    DescriptionError::Member {
        device: device.to_owned(),
        member,
    }
}

fn text<'a>(value: &'a Value, member: &'static str) -> Result<&'a str, DescriptionError> {
    let text = value[member].as_str().filter(|name| name.len() < 256);
    text.ok_or_else(|| missing("a device", member))
}

fn number(value: &Value, member: &'static str, device: &str) -> Result<u32, DescriptionError> {
    let number = value[member].as_u64().and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| missing(device, member))
}

fn device(value: &Value) -> Result<Device, DescriptionError> {
    let name = text(value, "name")?;
    Ok(Device {
        name: name.to_owned(),
        instance: number(value, "instance_id", name)?,
        version: number(value, "version", name)?,
        fields: fields(value, name)?,
        subsections: parts(value, name, 0)?,
    })
}

/// Bytes of the fields; an array is described by its first element and `array_len`.
fn fields(value: &Value, device: &str) -> Result<u64, DescriptionError> {
    let list = value["fields"].as_array();
    let list = list.ok_or_else(|| missing(device, "fields"))?;
    list.iter().try_fold(0u64, |sum, field| {
        let size = field["size"].as_u64();
        let size = size.ok_or_else(|| missing(device, "size"))?;
        let count = match &field["array_len"] {
            Value::Null => 1,
            count => count.as_u64().ok_or_else(|| missing(device, "array_len"))?,
        };
        size.checked_mul(count)
            .and_then(|bytes| sum.checked_add(bytes))
            .ok_or_else(|| DescriptionError::Bounds(device.to_owned()))
    })
}

fn parts(value: &Value, device: &str, depth: u32) -> Result<Vec<Part>, DescriptionError> {
    let bounds = || DescriptionError::Bounds(device.to_owned());
    let list = match &value["subsections"] {
        Value::Null => return Ok(Vec::new()),
        list => list
            .as_array()
            .ok_or_else(|| missing(device, "subsections"))?,
    };
    if depth == MAX_DEPTH {
        return Err(bounds());
    }
    let part = |value: &Value| {
        let name = text(value, "vmsd_name")?;
        let own = fields(value, device)?;
        let inner = parts(value, device, depth + 1)?;
        let length = inner.iter().try_fold(own, |sum, part| {
            sum.checked_add(part_header(&part.name))?
                .checked_add(part.length)
        });
        Ok(Part {
            name: name.to_owned(),
            version: number(value, "version", device)?,
            length: length.ok_or_else(bounds)?,
        })
    };
    list.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<Vec<Device>, DescriptionError> {
        Description::parse(value.to_string().as_bytes())?.devices()
    }

    #[test]
    fn lengths_count_arrays_and_nested_subsections() {
        let inner = json!({ "vmsd_name": "d/i", "version": 1, "fields": [{ "size": 2 }] });
        let part = json!({ "vmsd_name": "d/p", "version": 3, "fields": [{ "size": 4 }],
            "subsections": [inner] });
        let devices = parse(
            json!({ "devices": [{ "name": "d", "instance_id": 7, "version": 2,
            "fields": [{ "size": 4 }, { "size": 8, "array_len": 16 }], "subsections": [part] }] }),
        );
        let device = &devices.unwrap()[0];
        assert_eq!(
            (device.instance, device.version, device.fields),
            (7, 2, 132)
        );
        assert_eq!(device.subsections[0].length, 4 + 1 + 1 + 3 + 4 + 2);
        assert_eq!(device.length(), Some(14 + 1 + 132 + 9 + 15 + 5));
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let with = |fields: Value| {
            parse(
                json!({ "devices": [{ "name": "d", "instance_id": 0, "version": 1,
                "fields": fields }] }),
            )
        };
        assert!(with(json!([])).is_ok());
        let bounds = DescriptionError::Bounds("d".to_owned());
        assert_eq!(
            with(json!([{ "size": u64::MAX, "array_len": 2 }])),
            Err(bounds.clone())
        );
        assert_eq!(
            with(json!([{ "size": u64::MAX }, { "size": 1 }])),
            Err(bounds)
        );
        assert!(with(json!([{ "size": -1 }])).is_err());
        assert!(with(json!({})).is_err());
        assert!(parse(json!({})).is_err());
        assert!(parse(json!({ "devices": [{ "name": "x".repeat(256) }] })).is_err());
        assert!(Description::parse(b"{").is_err());
    }

    #[test]
    fn nesting_has_a_limit() {
        let mut part = json!({ "vmsd_name": "p", "version": 1, "fields": [] });
        for _ in 0..MAX_DEPTH {
            part = json!({ "vmsd_name": "p", "version": 1, "fields": [], "subsections": [part] });
        }
        let devices = parse(
            json!({ "devices": [{ "name": "d", "instance_id": 0, "version": 1,
            "fields": [], "subsections": [part] }] }),
        );
        assert_eq!(devices, Err(DescriptionError::Bounds("d".to_owned())));
    }
}
