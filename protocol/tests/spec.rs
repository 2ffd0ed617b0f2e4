//! SPEC.md and the code say the same numbers: codes, opcodes, offsets, sizes, fields, bits.
//!
//! The pages are read as text. What is looked for: headings `### 0x1000 HELLO`, lines `Request: 8
//! bytes`, and the rows of tables. A number that is changed on one side only fails here; so does a
//! message, a call or a word that one side does not have. Prose is not checked.
#![allow(clippy::unwrap_used)] // helpers of tests say what they mean with it

#[path = "spec/layout.rs"]
mod layout;
#[path = "spec/messages.rs"]
mod messages;
#[path = "spec/page.rs"]
mod page;
#[path = "spec/state.rs"]
mod state;

use page::{PAGES, Page};
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret, rtas};

#[test]
fn requirement_numbers_rise_within_their_letter_and_every_reference_has_a_target() {
    let text: String = PAGES.iter().map(|(_, text)| *text).collect();
    let mut defined = Vec::new();
    let mut named = Vec::new();
    for (at, _) in text.match_indices('[') {
        let Some(id) = page::requirement(&text[at..]) else {
            continue;
        };
        let starts_line = at == 0 || text.as_bytes()[at - 1] == b'\n';
        // Sections of chapter 4 end their first paragraph with their number.
        let line = text[at..].lines().next().unwrap_or_default();
        let ends_line = line.len() == id.len() + 2 || line[id.len() + 2..].starts_with(" Checks");
        if starts_line || (id.starts_with('G') && ends_line) {
            defined.push(id);
        } else {
            named.push(id);
        }
    }
    for letter in ["W", "S", "P", "G", "Q", "M"] {
        let numbers: Vec<u32> = defined
            .iter()
            .filter(|id| id.starts_with(letter))
            .map(|id| id[2..].parse().unwrap())
            .collect();
        assert!(numbers.len() > 10, "{letter}: {numbers:?}");
        assert!(
            numbers.is_sorted_by(|a, b| a < b),
            "[{letter}-n] out of order or twice: {numbers:?}"
        );
    }
    let missing: Vec<_> = named.iter().filter(|id| !defined.contains(id)).collect();
    assert!(missing.is_empty(), "named but not defined: {missing:?}");
}

#[test]
fn every_section_that_is_named_exists() {
    let text: String = PAGES.iter().map(|(_, text)| *text).collect();
    let headings: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("## "))
        .filter_map(|l| l.split(' ').next())
        .collect();
    for (at, _) in text.match_indices('§') {
        let rest = &text[at + '§'.len_utf8()..];
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let section = rest[..end].trim_end_matches('.');
        assert!(headings.contains(&section), "§{section} is no heading");
    }
}

#[test]
fn the_table_of_calls_has_every_opcode_and_no_other() {
    use opcode::*;
    let code = [
        ("H_EOI", H_EOI),
        ("H_CPPR", H_CPPR),
        ("H_IPI", H_IPI),
        ("H_IPOLL", H_IPOLL),
        ("H_XIRR", H_XIRR),
        ("H_XIRR_X", H_XIRR_X),
        ("H_INT_GET_SOURCE_INFO", H_INT_GET_SOURCE_INFO),
        ("H_INT_SET_SOURCE_CONFIG", H_INT_SET_SOURCE_CONFIG),
        ("H_INT_GET_SOURCE_CONFIG", H_INT_GET_SOURCE_CONFIG),
        ("H_INT_GET_QUEUE_INFO", H_INT_GET_QUEUE_INFO),
        ("H_INT_SET_QUEUE_CONFIG", H_INT_SET_QUEUE_CONFIG),
        ("H_INT_GET_QUEUE_CONFIG", H_INT_GET_QUEUE_CONFIG),
        ("H_INT_SET_OS_REPORTING_LINE", H_INT_SET_OS_REPORTING_LINE),
        ("H_INT_GET_OS_REPORTING_LINE", H_INT_GET_OS_REPORTING_LINE),
        ("H_INT_ESB", H_INT_ESB),
        ("H_INT_SYNC", H_INT_SYNC),
        ("H_INT_RESET", H_INT_RESET),
    ];
    let expected: Vec<_> = code
        .iter()
        .map(|(name, op)| (format!("{op:#x}"), (*name).to_owned()))
        .collect();
    let rows = Page::of(4).table("| opcode | call | side | again |");
    let found: Vec<_> = rows.iter().map(|r| (r[0].clone(), r[1].clone())).collect();
    assert_eq!(found, expected);
    for (name, _) in code {
        assert!(
            Page::of(4).has_line(&format!("### {name}")),
            "{name} has no section"
        );
    }
}

#[test]
fn return_codes_are_the_codes() {
    for (name, value) in [
        ("H_SUCCESS", ret::H_SUCCESS),
        ("H_BUSY", ret::H_BUSY),
        ("H_HARDWARE", ret::H_HARDWARE),
        ("H_FUNCTION", ret::H_FUNCTION),
        ("H_PRIVILEGE", ret::H_PRIVILEGE),
        ("H_PARAMETER", ret::H_PARAMETER),
        ("H_P2", ret::H_P2),
        ("H_P3", ret::H_P3),
        ("H_P4", ret::H_P4),
        ("H_P5", ret::H_P5),
    ] {
        assert!(Page::of(4).says(&format!("{name} {value}")), "{name}");
    }
    let status = format!(
        "{} success, {} hardware error, {} busy, {} parameter error",
        rtas::SUCCESS,
        rtas::HARDWARE,
        rtas::BUSY,
        rtas::PARAMETER
    );
    assert!(Page::of(4).says(&status));
}

#[test]
fn rtas_calls_have_their_ids() {
    let rows = Page::of(4).table("| id | call | side | nargs / nret | arguments | results |");
    let found: Vec<_> = rows
        .iter()
        .map(|r| (r[0].parse::<u32>().unwrap(), r[1].clone()))
        .collect();
    let expected = [
        (RtasCall::SetXive as u32, "ibm,set-xive".to_owned()),
        (RtasCall::GetXive as u32, "ibm,get-xive".to_owned()),
        (RtasCall::IntOn as u32, "ibm,int-on".to_owned()),
        (RtasCall::IntOff as u32, "ibm,int-off".to_owned()),
    ];
    assert_eq!(found, expected);
    assert_eq!(RtasCall::from_id(found.len() as u32 + 1), None);
}
