//! Migration files made in code: taken apart, changed, damaged.

use std::io::Cursor;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A file of these devices, after `ram` bytes that no device section explains.
pub(crate) fn file(ram: &[u8], sections: &[Section]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(CONFIGURATION);
    out.extend(11u32.to_be_bytes());
    out.extend(b"pseries-7.2");
    out.extend(ram);
    let mut devices = Vec::new();
    for s in sections {
        out.extend(s.to_bytes());
        let parts: Vec<Value> = s.subsections.iter().map(part_description).collect();
        devices.push(
            json!({ "name": s.name, "instance_id": s.instance, "version": s.version,
            "vmsd_name": s.name, "fields": [{ "name": "all", "size": s.payload.len() }],
            "subsections": parts }),
        );
    }
    let text = json!({ "page_size": 4096, "devices": devices }).to_string();
    out.extend([END, DESCRIPTION]);
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text.bytes());
    out
}

fn part_description(part: &Subsection) -> Value {
    json!({ "vmsd_name": part.name, "version": part.version,
        "fields": [{ "name": "all", "size": part.payload.len() }] })
}

/// A device.
pub(crate) fn section(name: &str, instance: u32, payload: &[u8]) -> Section {
    Section {
        id: 0x230 + instance,
        name: name.to_owned(),
        instance,
        version: 1,
        payload: payload.to_vec(),
        subsections: Vec::new(),
    }
}

fn part(name: &str, payload: &[u8]) -> Subsection {
    Subsection {
        name: name.to_owned(),
        version: 1,
        payload: payload.to_vec(),
    }
}

fn sample() -> Vec<Section> {
    let mut spapr = section("spapr", 0, &[1; 16]);
    spapr.subsections = vec![part("spapr_a", &[2; 8]), part("spapr_b", &[3; 3])];
    vec![
        section("ics", 0, &[9; 100]),
        section("icp/server", 0, &[4; 6]),
        section("icp/server", 1, &[5; 6]),
        spapr,
    ]
}

fn read(bytes: &[u8]) -> Result<Stream, StreamError> {
    Stream::read(&mut Cursor::new(bytes))
}

fn rewritten(stream: &Stream, original: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    stream.write(&mut Cursor::new(original), &mut out).unwrap();
    out
}

#[test]
fn a_file_is_taken_apart_and_put_together_unchanged() {
    // RAM may hold anything, device sections too.
    let ram = section("ics", 0, b"of an older guest").to_bytes();
    let bytes = file(&ram, &sample());
    let stream = read(&bytes).unwrap();
    assert_eq!(stream.machine(), "pseries-7.2");
    assert_eq!(stream.sections(), sample());
    assert_eq!(stream.instances("icp/server").count(), 2);
    assert_eq!(stream.section("icp/server", 1).unwrap().payload, [5; 6]);
    let parts = stream.section("spapr", 0).unwrap();
    assert_eq!(parts.subsection("spapr_b").unwrap().payload, [3; 3]);
    assert_eq!(rewritten(&stream, &bytes), bytes);
}

#[test]
fn changed_sections_and_subsections_are_found_again() {
    let bytes = file(b"ram", &sample());
    let mut stream = read(&bytes).unwrap();
    stream.replace("ics", 0, vec![7; 100]).unwrap();
    stream
        .set_subsection("spapr", 0, part("spapr_a", &[6; 8]))
        .unwrap();
    stream
        .set_subsection("spapr", 0, part("spapr_new", &[8; 5]))
        .unwrap();
    stream
        .set_subsection("icp/server", 1, part("icp/x", &[1]))
        .unwrap();
    stream.remove_subsection("spapr", 0, "spapr_b").unwrap();
    let again = read(&rewritten(&stream, &bytes)).unwrap();
    assert_eq!(again.sections(), stream.sections());
    let spapr = again.section("spapr", 0).unwrap();
    let names: Vec<&str> = spapr.subsections.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["spapr_a", "spapr_new"]);
    assert_eq!(spapr.subsections[0].payload, [6; 8]);
}

#[test]
fn a_replacement_has_a_place_and_a_size() {
    let mut stream = read(&file(b"", &sample())).unwrap();
    assert!(matches!(
        stream.replace("ics", 0, vec![0; 99]),
        Err(StreamError::Size {
            there: 100,
            new: 99,
            ..
        })
    ));
    assert!(matches!(
        stream.replace("ics", 1, vec![0; 100]),
        Err(StreamError::Absent(name, 1)) if name == "ics"
    ));
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let bytes = file(b"ram", &sample());
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn every_header_and_footer_is_checked() {
    let bytes = file(b"ram", &sample());
    let stream = read(&bytes).unwrap();
    let start = stream.prefix as usize;
    let ics = stream.sections()[0].to_bytes().len();
    // Type, name length, name, instance, version of the first section; its footer.
    for at in [0, 5, 6, 12, 16, ics - 5, ics - 1] {
        let mut bad = bytes.clone();
        bad[start + at] ^= 0x40;
        let error = read(&bad).unwrap_err().to_string();
        assert!(
            error.starts_with("section ics (instance 0): its "),
            "{error}"
        );
    }
}

#[test]
fn a_description_of_more_than_there_is_is_refused() {
    let text = br#"{"devices":[{"name":"d","instance_id":0,"version":1,"fields":[{"size":99999999999}]}]}"#;
    let mut bytes = file(b"", &[]);
    bytes.truncate(8 + 5 + 11);
    bytes.extend([END, DESCRIPTION]);
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text);
    assert!(matches!(read(&bytes), Err(StreamError::TooLong { .. })));
}

#[test]
fn the_same_section_twice_is_refused() {
    let bytes = file(b"", &[section("ics", 0, &[]), section("ics", 0, &[])]);
    assert!(matches!(read(&bytes), Err(StreamError::Twice(..))));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        let mut tail = file(b"", &[])[..24].to_vec();
        tail.extend(&bytes);
        let _ = read(&tail);
    }

    #[test]
    fn a_damaged_file_never_panics(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = file(b"ram", &sample());
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(stream) = read(&bytes) {
            let _ = rewritten(&stream, &bytes);
        }
    }
}
