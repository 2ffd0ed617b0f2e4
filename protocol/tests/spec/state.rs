//! Chapter 6: the framing, the sections, the capabilities and the limits are the code's.

use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::state::caps::{CAPABILITIES, Knows};
use papr_intc_protocol::state::model::{Head, MAX_FIXED};
use papr_intc_protocol::state::stream::*;
use papr_intc_protocol::wire::machine::MAX_STATE_BYTES;

use crate::page::{Page, grouped};

#[test]
fn the_framing_of_a_section_is_the_one_of_a_stream() {
    let rows = Page::of(6).table("| offset | size | field |");
    let places: Vec<(&str, &str)> = rows
        .iter()
        .map(|r| (r[0].as_str(), r[1].as_str()))
        .collect();
    assert_eq!(
        places,
        [
            ("0", "16"),
            ("16", "4"),
            ("20", "4"),
            ("24", "–"),
            ("–", "4")
        ]
    );
    assert_eq!((SECTION_HEADER, SECTION_OVERHEAD, MANDATORY), (24, 28, 1));
    let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 2);
    let head = Head::new("test", machine).encode().unwrap();
    assert_eq!(&head[..8], MAGIC);
    assert_eq!(&head[8..24], b"head\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(head[24..28], [1, 0, 0, 0]);
    let length = u32::from_le_bytes(head[28..32].try_into().unwrap()) as usize;
    assert_eq!(head.len(), 8 + SECTION_OVERHEAD + length);
    assert_eq!(
        crc32fast::hash(&head[8..head.len() - 4]).to_le_bytes(),
        head[head.len() - 4..]
    );
    assert!(Page::of(6).says("the 8 bytes `PAPRSTAT`"));
}

#[test]
fn the_sections_are_those_that_the_code_writes() {
    let rows = Page::of(6).table("| section | message | holds |");
    let found: Vec<&str> = rows.iter().map(|r| r[0].as_str()).collect();
    assert_eq!(found, SECTIONS);
}

#[test]
fn the_capabilities_are_the_frozen_tables() {
    let rows = Page::of(6).table("| capability | papr-1 | qemu-7.2 | values |");
    assert_eq!(rows.len(), CAPABILITIES.len());
    for (row, capability) in rows.iter().zip(CAPABILITIES) {
        assert_eq!(row[0], capability.name);
        for (cell, (level, knows)) in row[1..].iter().zip(capability.levels) {
            let expected = match knows {
                Knows::Carried => "carried".to_owned(),
                Knows::Frozen(value) => value.to_string(),
            };
            assert_eq!(*cell, expected, "{} at {level}", capability.name);
        }
    }
}

#[test]
fn the_limits_are_the_codes() {
    let page = Page::of(6);
    assert!(page.says(&format!("at most {}", grouped(MAX_SECTION))));
    assert!(page.says(&format!("more than {} bytes", grouped(MAX_STREAM))));
    assert!(page.says(&format!("at most {} bytes", grouped(MAX_HEAD))));
    assert!(page.says(&format!("more than {} runs", grouped(MAX_FIXED))));
    assert!(page.says(&format!("Format {FORMAT},")));
    let read = Page::of(1).section("### 0x1045 STATE_READ");
    assert!(read.says(&format!("at most {}", grouped(MAX_STATE_BYTES as usize))));
}
