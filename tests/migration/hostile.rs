//! Heads and streams whose author wishes us ill: one short line says no, and the daemon serves on.

use papr_intc_frontend::protocol::layout::IcMode;

use crate::bench::{Bench, How};
use crate::guest::*;

/// A stream of one section "head" with these fields of its message: numbers and bytes.
fn head(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut payload = vec![1 << 3, 1]; // the format
    for (number, bytes) in fields {
        payload.push(number << 3 | 2);
        let mut length = bytes.len();
        while length > 0x7f {
            payload.push(length as u8 | 0x80);
            length >>= 7;
        }
        payload.push(length as u8);
        payload.extend_from_slice(bytes);
    }
    let mut section = [0; 24];
    section[..4].copy_from_slice(b"head");
    section[16] = 1;
    section[20..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut section = section.to_vec();
    section.extend_from_slice(&payload);
    let crc = crc32fast::hash(&section);
    [b"PAPRSTAT".as_slice(), &section, &crc.to_le_bytes()].concat()
}

/// Field 4 of a head: a capability of this name.
fn capability(name: &[u8]) -> Vec<u8> {
    let length = name.len();
    [
        &[
            0x0a,
            length as u8 | 0x80,
            (length >> 7) as u8 | 0x80,
            (length >> 14) as u8,
        ],
        name,
    ]
    .concat()
}

#[test]
fn names_of_any_length_are_refused_in_one_short_line() {
    let there = Bench::start(&How::mapped(IcMode::Dual));
    there.intc.quiesce(LONG).unwrap();
    let pid = there.intc.daemon_pid();
    // As long as a message can carry it.
    let long = [b'x'; 65_478];
    for bad in [
        head(&[(3, &long)]),
        head(&[(3, b"papr-1"), (4, &capability(&long[..65_300]))]),
        head(&[(3, b"a\nb\x1b[2J")]),
        head(&[(3, b"papr-1"), (4, &capability(b"a\nb"))]),
    ] {
        let (_, text) = refused(there.intc.state_check(&bad));
        assert!(text.len() < 300, "{} bytes", text.len());
        assert!(!text.contains(char::is_control), "{text:?}");
        let (_, said) = refused(there.intc.state_load(&bad));
        assert_eq!(said, text);
    }
    assert_eq!(there.intc.daemon_pid(), pid, "the daemon was replaced");
}
