//! Chapter 1: every message has its code, its sizes, and its fields in their order.

use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::*;
use papr_intc_protocol::wire::{
    Malformed, REQUESTS, RESERVED, ReplyHead, Request, RequestHead, Wire,
};

use crate::page::{Page, number};

/// The wire structures as they are declared.
const SOURCES: [&str; 5] = [
    include_str!("../../src/wire/handshake.rs"),
    include_str!("../../src/wire/vcpu.rs"),
    include_str!("../../src/wire/source.rs"),
    include_str!("../../src/wire/guest.rs"),
    include_str!("../../src/wire/machine.rs"),
];

const TABLE: &str = "| offset | size | field | meaning |";

/// What a message is made of: name, type names, bytes of request and reply without text, blob or items.
struct Message {
    name: &'static str,
    code: u32,
    request: (&'static str, usize),
    reply: (&'static str, usize),
}

/// Bytes of the fixed part of a payload: of the shortest run of zeros that decodes.
fn fixed<T: Wire>() -> usize {
    (0..4096)
        .find(|n| !matches!(T::from_bytes(&vec![0; *n]), Err(Malformed::Short)))
        .expect("every payload fits")
}

/// `handshake::Hello` as `Hello`.
fn short_name<T>() -> &'static str {
    let path = std::any::type_name::<T>();
    path.rsplit("::").next().unwrap_or(path)
}

fn message<R: Request>() -> Message {
    Message {
        name: R::NAME,
        code: R::CODE,
        request: (short_name::<R>(), fixed::<R>()),
        reply: (short_name::<R::Reply>(), fixed::<R::Reply>()),
    }
}

fn messages() -> Vec<Message> {
    vec![
        message::<Hello>(),
        message::<SetMachine>(),
        message::<GetShm>(),
        message::<SetShm>(),
        message::<CheckShm>(),
        message::<Start>(),
        message::<Goodbye>(),
        message::<Ping>(),
        message::<Last>(),
        message::<Query>(),
        message::<VcpuConnect>(),
        message::<VcpuDisconnect>(),
        message::<VcpuReset>(),
        message::<VcpuChannel>(),
        message::<VcpuLine>(),
        message::<Claim>(),
        message::<Free>(),
        message::<SetIrqfds>(),
        message::<ClearIrqfds>(),
        message::<SetLevel>(),
        message::<Trigger>(),
        message::<Sync>(),
        message::<Hcall>(),
        message::<Rtas>(),
        message::<Cas>(),
        message::<Mmio>(),
        message::<GetFdt>(),
        message::<MachineReset>(),
        message::<Quiesce>(),
        message::<Resume>(),
        message::<StateHeader>(),
        message::<StateCheck>(),
        message::<StateRead>(),
        message::<StateAbort>(),
        message::<SetLogLevel>(),
        message::<StateWrite>(),
        message::<StateLoad>(),
    ]
}

fn section(m: &Message) -> Page {
    Page::of(1).section(&format!("### {:#x} {}", m.code, m.name))
}

/// The field names of a structure, from its declaration.
fn fields(name: &str) -> Vec<String> {
    let start = format!("pub struct {name} {{");
    let body = SOURCES
        .iter()
        .find_map(|s| s.split_once(&start))
        .unwrap_or_else(|| panic!("no structure {name}"))
        .1;
    let body = &body[..body.find('}').unwrap_or(0)];
    body.lines()
        .filter_map(|l| l.trim().strip_prefix("pub "))
        .filter_map(|l| l.split_once(':'))
        .map(|(field, _)| field.to_owned())
        .collect()
}

#[test]
fn the_table_has_every_request_and_no_other() {
    let listed: Vec<(u32, &str)> = messages().iter().map(|m| (m.code, m.name)).collect();
    assert_eq!(listed, REQUESTS, "this test's own list");
    let head = "| code | name | ch | phase | descriptors in | out | again |";
    let rows = Page::of(1).table(head);
    let found: Vec<_> = rows
        .iter()
        .map(|r| (number(&r[0]) as u32, r[1].as_str()))
        .collect();
    assert_eq!(found, REQUESTS);
    let rows = Page::of(1).table("| code | name | meant for |");
    let found: Vec<_> = rows
        .iter()
        .map(|r| (number(&r[0]) as u32, r[1].as_str()))
        .collect();
    assert_eq!(found, RESERVED);
}

#[test]
fn every_request_has_a_section_and_every_section_a_request() {
    let headings = Page::of(1).lines_after("### 0x");
    let expected: Vec<_> = REQUESTS
        .iter()
        .map(|(code, name)| format!("{code:x} {name}"))
        .collect();
    assert_eq!(headings, expected);
}

#[test]
fn sizes_are_the_codes_sizes() {
    for m in messages() {
        let section = section(&m);
        let (request, reply) = (m.request.1, m.reply.1);
        assert!(
            section.says(&format!("Request: {request} bytes")),
            "{}: a request has {request} bytes",
            m.name
        );
        assert!(
            section.says(&format!("Reply: {reply} bytes")),
            "{}: a reply has {reply} bytes",
            m.name
        );
    }
    let heads = [fixed::<RequestHead>(), fixed::<ReplyHead>()];
    assert_eq!(heads, [16, 16]);
    let item = fixed::<IrqfdItem>();
    for name in ["0x1022 SET_IRQFDS", "0x1023 CLEAR_IRQFDS"] {
        let section = Page::of(1).section(&format!("### {name}"));
        assert!(section.says(&format!("list of {item}-byte items")));
    }
}

/// A table's fields are those of the structure, follow each other, and end at its size. A field without
/// a size (text, blob) is the last.
fn check(what: &str, rows: &[Vec<String>], name: &str, size: usize) {
    let names: Vec<_> = rows.iter().map(|r| r[2].clone()).collect();
    assert_eq!(names, fields(name), "fields of {what}");
    let mut at = 0;
    for row in rows {
        assert_eq!(number(&row[0]), at, "{what}: offset of {}", row[2]);
        if row[1] != "–" {
            at += number(&row[1]);
        }
    }
    assert_eq!(at as usize, size, "{what}: size");
}

#[test]
fn payload_tables_are_the_structures() {
    for m in messages() {
        let tables = section(&m).tables(TABLE);
        let mut tables = tables.iter();
        let same = m.request.0 == m.reply.0;
        let reply = (m.reply.0 != "()" && !same).then_some(m.reply);
        for (side, (name, size)) in [("request", m.request)]
            .into_iter()
            .chain(reply.map(|r| ("reply", r)))
        {
            if fields(name).is_empty() {
                continue;
            }
            let what = format!("{} {side}", m.name);
            let rows = tables
                .next()
                .unwrap_or_else(|| panic!("{what} has no table"));
            check(&what, rows, name, size);
        }
        if m.name == "SET_IRQFDS" {
            let rows = tables.next().expect("a table of the item");
            check("irqfd item", rows, "IrqfdItem", fixed::<IrqfdItem>());
        }
        assert!(tables.next().is_none(), "{}: a table too many", m.name);
    }
}

#[test]
fn limits_and_constants_are_the_codes() {
    use papr_intc_protocol::layout::geometry::{MAX_SERVERS, MAX_SOURCES};
    use papr_intc_protocol::wire::*;
    use papr_intc_protocol::{LAYOUT_MIN, LAYOUT_VERSION, PLANE_ABI, PROTOCOL_VERSION};
    let page = Page::of(1);
    assert_eq!(
        (PROTOCOL_VERSION, LAYOUT_MIN, LAYOUT_VERSION, PLANE_ABI),
        (1, 1, 2, 1)
    );
    assert_eq!(REPLAY, 1);
    assert!(page.says("**protocol** 1") && page.says("**layout** 2"));
    assert!(page.says("**plane ABI** 1") && page.says("flags: bit 0 = REPLAY"));
    assert_eq!(
        (FEATURE_PAPR_MESSAGES, HEADER_BYTES, PAPR_CODES),
        (1, 12, 0x1000)
    );
    assert_eq!((MAIN_CHANNEL, ANY, ALL), (0, 0xffff_ffff, 0xffff_ffff));
    let rows = page
        .section("## 1.1 Discovery")
        .table("| offset | size | field |");
    let limit = |what: &str| {
        let row = rows.iter().find(|r| r[2].starts_with(what));
        let text = &row.unwrap_or_else(|| panic!("no row {what}"))[2];
        number(
            text.rsplit_once(", ")
                .expect("a number at the end")
                .1
                .trim(),
        )
    };
    assert_eq!(limit("largest PAPR body") as usize, MAX_BODY);
    assert_eq!(limit("most descriptors") as usize, MAX_FDS);
    assert_eq!(limit("most sources") as u32, MAX_SOURCES);
    assert_eq!(limit("most servers") as u32, MAX_SERVERS);
    let end = rows.iter().fold(0, |at, row| {
        assert_eq!(number(&row[0]), at, "{}", row[2]);
        at + number(&row[1])
    });
    assert_eq!(end, 64);
    assert!(page.says("4,096 on standard ones") && MAX_STANDARD_BODY == 4096);
    assert!(page.says("at most 512 bytes") && MAX_TEXT == 512);
    assert_eq!(flag::VERSION | flag::REPLY, 5);
    assert!(page.says("flags 5"));
}

#[test]
fn named_values_are_the_codes() {
    let says = |name: &str, what: String| {
        assert!(
            Page::of(1).section(name).says(&what),
            "{name} does not say {what:?}"
        );
    };
    says("### 0x1000 HELLO", format!("{} MAP", verdict::MAP));
    says("### 0x1000 HELLO", format!("{} DEMOTE", verdict::DEMOTE));
    says(
        "## 1.1 Discovery",
        format!(
            "{} cold, {} wants memory, {} serving",
            state::COLD,
            state::WANTS_MEMORY,
            state::SERVING
        ),
    );
    let (front, daemon) = (executor::FRONT_END, executor::DAEMON);
    says("### 0x1005 START", format!("{front} FRONT_END"));
    says("### 0x1005 START", format!("{daemon} DAEMON"));
    says(
        "### 0x1042 RESUME",
        format!(
            "{} as before, {front} FRONT_END, {daemon} DAEMON",
            executor::KEEP
        ),
    );
    for (n, name) in [
        (query::STATUS, "STATUS"),
        (query::PIC, "PIC"),
        (query::SOURCES, "SOURCES"),
        (query::VCPU, "VCPU"),
    ] {
        says("### 0x1009 QUERY", format!("{n} {name}"));
    }
    assert_eq!((claim_flag::LSI, claim_flag::MSI), (1, 2));
    says("### 0x1020 CLAIM", "bit 0 LSI".into());
    says("### 0x1020 CLAIM", "bit 1 MSI".into());
    says(
        "### 0x1022 SET_IRQFDS",
        format!("{} EDGE", irqfd_kind::EDGE),
    );
    says(
        "### 0x1022 SET_IRQFDS",
        format!("{} LEVEL", irqfd_kind::LEVEL),
    );
    says("### 0x1033 MMIO", format!("{} ESB", space::ESB));
    says("### 0x1033 MMIO", format!("{} TIMA", space::TIMA));
    let modes = format!("{} XICS, {} XIVE", mode::XICS, mode::XIVE);
    says("### 0x1032 CAS", modes.clone());
    says(
        "### 0x1034 GET_FDT",
        format!("{} the active one, {modes}", mode::ACTIVE),
    );
    assert_eq!(reset_flag::FREE_MSIS, 1);
    says("### 0x1040 MACHINE_RESET", "bit 0 FREE_MSIS".into());
}
