//! Chapter 2: offsets, header words, the machine, and the bits of every word.

use papr_intc_protocol::layout::geometry::*;
use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word};
use papr_intc_protocol::layout::machine::{ESB_SHIFT, MACHINE_WORDS};
use papr_intc_protocol::layout::words::*;
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine, Page, Table};

use crate::page::{self, number};

fn page() -> page::Page {
    page::Page::of(2)
}

/// `[S-n]`'s paragraph and what follows.
fn at(requirement: &str) -> page::Page {
    page().after(&format!("\n[{requirement}]"))
}

#[test]
fn header_words_have_their_numbers() {
    let rows = page().table("| word | name | holds |");
    let found: Vec<_> = rows
        .iter()
        .map(|r| (number(&r[0]) as u32, r[1].as_str()))
        .collect();
    let expected = [
        (word::MAGIC, "MAGIC"),
        (word::VERSIONS, "VERSIONS"),
        (word::COMPAT_FLAGS, "COMPAT_FLAGS"),
        (word::INCOMPAT_FLAGS, "INCOMPAT_FLAGS"),
        (word::GENERATION, "GENERATION"),
        (word::START_COUNT, "START_COUNT"),
        (word::STATE, "STATE"),
        (word::OV5_BYTE_23, "OV5_BYTE_23"),
        (word::MACHINE, "MACHINE"),
        (word::QUIESCE_DEPTH, "QUIESCE_DEPTH"),
        (word::DELIVERED, "DELIVERED"),
        (word::LOADED, "LOADED"),
    ];
    assert_eq!(found, expected);
    assert_eq!(MACHINE_WORDS, 6);
}

#[test]
fn journal_and_reply_words_have_their_numbers() {
    let rows = page().section("## 2.6 Journal and reply records");
    let rows = rows.table("| word | name | holds |");
    let found: Vec<_> = rows
        .iter()
        .map(|r| (number(&r[0]) as u32, r[1].as_str()))
        .collect();
    let expected = [
        (journal::XICS, "XICS"),
        (journal::OPERATION, "OPERATION"),
        (journal::CHANNEL, "CHANNEL"),
        (journal::SEQUENCE, "SEQUENCE"),
        (journal::DETAIL, "DETAIL"),
        (journal::IRQFD, "IRQFD"),
        (journal::REDO, "REDO"),
        (journal::REDO_CHANNEL, "REDO_CHANNEL"),
        (journal::REDO_SEQUENCE, "REDO_SEQUENCE"),
        (journal::RAM_PAGE, "RAM_PAGE"),
        (journal::REDO_FIRST, "REDO_FIRST"),
    ];
    assert_eq!(found, expected);
    let room = (JOURNAL_BYTES as u32 / 8 - journal::REDO_FIRST) / 2;
    assert_eq!(room, journal::REDO_RECORDS);
    assert!(page().says(&format!("first of {room} records of two words")));
    let payload = (REPLY_WORDS - 2) * 8;
    assert!(page().says(&format!("payload, at most {payload} bytes")));
    assert!(page().says(&format!("{REPLY_WORDS} words each")));
}

#[test]
fn run_words_have_their_numbers() {
    let rows = at("S-20").table("| word | name | says |");
    let found: Vec<_> = rows
        .iter()
        .map(|r| (number(&r[0]) as u32, r[1].as_str()))
        .collect();
    let expected = [
        (run::DEAD_GENERATION, "DEAD_GENERATION"),
        (run::PRESENCE, "PRESENCE"),
        (run::DAEMON_PID, "DAEMON_PID"),
        (run::SINCE, "SINCE"),
        (run::RESTARTS, "RESTARTS"),
        (run::OUTAGE_BEGAN, "OUTAGE_BEGAN"),
        (run::OUTAGE_LENGTH, "OUTAGE_LENGTH"),
        (run::OUTAGE_REASON, "OUTAGE_REASON"),
        (run::OUTAGE_DELIVERED, "OUTAGE_DELIVERED"),
        (run::OUTAGE_BASE, "OUTAGE_BASE"),
        (run::FRONT_END, "FRONT_END"),
        (run::AGREED, "AGREED"),
        (run::VMM_PID, "VMM_PID"),
        (run::NAME, "NAME"),
    ];
    assert_eq!(found, expected);
    assert!(page().says(&format!(
        "first of {} words: the guest's name",
        run::NAME_WORDS
    )));
    use presence::*;
    assert_eq!((PRESENT, ABSENT, GAVE_UP, SHUT_DOWN), (1, 2, 3, 4));
    assert!(page().says("1 a daemon serves, 2 absent, 3 given up, 4 shut down"));
    use reason::*;
    assert_eq!((ENDED, HUNG_UP, BROKEN, SILENT, REPLACED), (1, 2, 3, 4, 5));
    assert!(page().says("4 silent, 5 replaced"));
    assert_eq!((HAS_EXIT, HAS_SIGNAL, STATUS_SHIFT), (1 << 8, 1 << 9, 16));
    let g = Geometry::new(0x2000, 0x1000, 4).unwrap();
    let line = g.page_offset(Page::Epoch(3));
    assert_eq!(g.page_offset(Page::Delivered(3)), line + 8);
    assert!(page().says("epoch + 0, delivered + 8"));
}

#[test]
fn sizes_and_limits_are_the_codes() {
    assert_eq!((HEADER_BYTES, JOURNAL_BYTES, LINE), (4096, 4096, 128));
    assert!(page().says("multiple of 65,536") && ZONE_ALIGN == 65536);
    assert!(page().says("(1 to 1,048,576)") && MAX_SOURCES == 1_048_576);
    assert!(page().says("(1 to 4,096;") && MAX_SERVERS == 4096);
    assert!(page().says("128 × (V + 1,024)") && DEVICE_EPOCHS == 1024);
    assert!(page().says("E = 8 × V") && ENDS_PER_SERVER == 8);
    assert!(page().says(&format!("2^{ESB_SHIFT} bytes for each LISN")));
}

#[test]
fn fixed_points_are_the_geometrys() {
    let g = Geometry::new(0x2000, 0x1000, 4).unwrap();
    let t = |at| ("tables", g.table_offset(at));
    let p = |at| ("pages", g.page_offset(at));
    let expected = [
        t(Table::Reply(0, 0)),
        t(Table::Eas(0)),
        t(Table::EndConfig(0, 0, 0)),
        t(Table::Claimed(0)),
        t(Table::Lsi(0)),
        t(Table::Msi(0)),
        ("", g.tables_size()),
        p(Page::Epoch(0)),
        p(Page::Tima(0)),
        p(Page::Icp(0)),
        p(Page::PendingRoot(0)),
        p(Page::EndCursor(0)),
        p(Page::Source(0)),
        p(Page::Source(0x1001)),
        p(Page::IcsSource(0)),
        p(Page::CommonRoot),
        p(Page::PendingMid(0)),
        p(Page::PendingLeaf(0)),
        ("", g.pages_size()),
    ];
    let rows = page().table("| word | zone | offset |");
    let found: Vec<_> = rows
        .iter()
        .map(|r| (r[1].as_str(), number(&r[2])))
        .collect();
    assert_eq!(found, expected);
    let largest = Geometry::new(MAX_SOURCES, 0x1000, MAX_SERVERS).unwrap();
    assert!(page().says(&format!("the memfd has {:#x} bytes", largest.size())));
}

/// The rules of [S-7] computed from the text's formulas, for odd sizes too.
#[test]
fn offsets_follow_the_rules_of_the_text() {
    for (n, b, v) in [
        (0x2000u64, 0x1000u64, 4u64),
        (1 << 20, 16, 4096),
        (100, 17, 3),
    ] {
        let g = Geometry::new(n as u32, b as u32, v as u32).unwrap();
        let (e, x) = (8 * v, n - b);
        let leaves = x.div_ceil(64);
        let mut at = 8192;
        let mut area = |bytes: u64| {
            let start = at;
            at = (at + bytes).next_multiple_of(128);
            start
        };
        let tables = [
            128 * (v + 1),
            8 * n,
            32 * e,
            8 * n.div_ceil(64),
            8 * n.div_ceil(64),
        ];
        let starts = tables.map(&mut area);
        assert_eq!(starts[1], g.table_offset(Table::Eas(0)));
        assert_eq!(starts[2], g.table_offset(Table::EndConfig(0, 0, 0)));
        assert_eq!(starts[4], g.table_offset(Table::Lsi(0)));
        at = 4096;
        let mut area = |bytes: u64| {
            let start = at;
            at = (at + bytes).next_multiple_of(128);
            start
        };
        let words = 32_768 * n.div_ceil(4096);
        let pages = [128 * (v + 1024), 128 * v, 128 * e, words, 8 * x, 8];
        let starts = pages.map(&mut area);
        assert_eq!(starts[2], g.page_offset(Page::EndCursor(0)));
        for lisn in [0, 1, n / 2, n - 1] {
            let r = lisn % 4096;
            let place = lisn - r + 17 * r % 4096;
            let at = g.page_offset(Page::Source(lisn as u32));
            assert_eq!(at, starts[3] + 8 * place, "{lisn}");
        }
        assert_eq!(starts[4], g.page_offset(Page::IcsSource(0)));
        assert_eq!(starts[5], g.page_offset(Page::CommonRoot));
        let mids = area(8 * leaves.div_ceil(64));
        let leaf = area(8 * leaves);
        assert_eq!(mids, g.page_offset(Page::PendingMid(0)));
        assert_eq!(leaf, g.page_offset(Page::PendingLeaf(0)));
    }
}

/// All that layout 1 differs in.
#[test]
fn layout_1_has_source_words_in_order() {
    assert!(page().says("**Layout 1** differs in this only"));
    let g = Geometry::in_layout(1, 100, 17, 3).unwrap();
    let first = g.page_offset(Page::Source(0));
    assert_eq!(g.page_offset(Page::Source(99)), first + 8 * 99);
    let area = (8 * 100u64).next_multiple_of(128);
    assert_eq!(g.page_offset(Page::IcsSource(0)), first + area);
}

/// `63:38` or `48`, of a mask of adjacent bits.
fn bits(mask: u64) -> String {
    let (low, high) = (mask.trailing_zeros(), 63 - mask.leading_zeros());
    if low == high {
        low.to_string()
    } else {
        format!("{high}:{low}")
    }
}

/// The table under `requirement` with this head says that `name` has the bits of `mask`.
fn field(requirement: &str, head: &str, name: &str, mask: u64) {
    let rows = at(requirement).table(head);
    let row = rows
        .iter()
        .find(|r| r[0] == bits(mask) && r[1].starts_with(name));
    assert!(
        row.is_some(),
        "[{requirement}]: no row {} {name}",
        bits(mask)
    );
}

#[test]
fn words_of_tables_have_their_bits() {
    for (name, mask) in [("VALID", eas::VALID), ("MASKED", eas::MASKED)] {
        field("S-17", "| bits | field | |", name, mask);
    }
    field("S-17", "| bits | field | |", "END index", 0x00ff_ffff << 32);
    assert_eq!(eas::end(u64::MAX), 0x00ff_ffff);
    field("S-17", "| bits | field | |", "EISN", 0x7fff_ffff);
    assert_eq!(eas::eisn(u64::MAX), 0x7fff_ffff);

    let rows = at("S-18").table("| word | bits | field | |");
    for (name, mask) in [
        ("VALID", end_config::VALID),
        ("ALWAYS_NOTIFY", end_config::ALWAYS_NOTIFY),
        ("size", 0xff),
    ] {
        let row = rows.iter().find(|r| r[0] == "1" && r[2] == name);
        assert_eq!(row.unwrap()[1], bits(mask), "{name}");
    }
}

#[test]
fn words_of_pages_have_their_bits() {
    let plain = "| bits | field | |";
    for (name, mask) in [
        ("Q", source::Q),
        ("P", source::P),
        ("LEVEL_VMM", source::LEVEL_VMM),
        ("LEVEL_IRQFD", source::LEVEL_IRQFD),
        ("RESAMPLE_DUE", source::RESAMPLE_DUE),
        ("LATCHED", source::LATCHED),
        ("TOGGLE", source::TOGGLE),
        ("DAEMON_FORWARD", source::DAEMON_FORWARD),
        ("FORWARDS", source::FORWARDS),
    ] {
        field("S-22", plain, name, mask);
    }
    for (name, mask) in [
        ("INDEX", cursor::INDEX),
        ("GENERATION", cursor::GENERATION),
        ("SEL", cursor::SEL),
        ("ESN", cursor::ESN),
        ("WORKER", cursor::WORKER),
        ("DGEN", cursor::DGEN),
        ("LOCKED", cursor::LOCKED),
    ] {
        field("S-23", plain, name, mask);
    }
    let reset = "| bits | field | after reset |";
    for (name, mask) in [
        ("NSR", 0xff << tima::NSR_SHIFT),
        ("CPPR", 0xff << tima::CPPR_SHIFT),
        ("IPB", 0xff << tima::IPB_SHIFT),
        ("CONNECTED", tima::CONNECTED),
        ("TOGGLE", tima::TOGGLE),
        ("PIPR", 0xff),
    ] {
        field("S-24", reset, name, mask);
    }
    assert_eq!(tima::NSR_EO, 1 << 63);
    for (name, mask) in [
        ("XISR", icp::XISR),
        ("CPPR", 0xff << icp::CPPR_SHIFT),
        ("PP", 0xff << icp::PP_SHIFT),
        ("MFRR", 0xff << icp::MFRR_SHIFT),
        ("CONNECTED", icp::CONNECTED),
        ("PARITY", icp::PARITY),
        ("TAG", !(icp::TAG - 1)),
    ] {
        field("S-25", reset, name, mask);
    }
    for (name, mask) in [
        ("server", ics::SERVER),
        ("priority", 0xff << ics::PRIORITY_SHIFT),
        ("saved priority", 0xff << ics::SAVED_SHIFT),
        ("CLAIMED", ics::CLAIMED),
        ("LSI", ics::LSI),
        ("LEVEL_VMM", ics::LEVEL_VMM),
        ("SENT", ics::SENT),
        ("REJECTED", ics::REJECTED),
        ("MASKED_PENDING", ics::MASKED_PENDING),
        ("LEVEL_IRQFD", ics::LEVEL_IRQFD),
        ("RESAMPLE_DUE", ics::RESAMPLE_DUE),
        ("LATCHED", ics::LATCHED),
    ] {
        field("S-26", reset, name, mask);
    }
}

/// The column "after reset", folded into a word.
fn reset_value(requirement: &str) -> u64 {
    let rows = at(requirement).table("| bits | field | after reset |");
    rows.iter().fold(0, |word, row| {
        let low: u32 = row[0].rsplit(':').next().unwrap().parse().unwrap();
        word | u64::from_str_radix(&row[2], 16).unwrap_or(0) << low
    })
}

#[test]
fn words_after_reset_are_the_codes() {
    assert_eq!(reset_value("S-24"), tima::RESET);
    assert_eq!(reset_value("S-25"), icp::RESET);
    assert_eq!(reset_value("S-26"), ics::RESET);
    assert_eq!(source::RESET, 1);
    assert_eq!(cursor::FRESH, cursor::GENERATION);
}

#[test]
fn the_state_word_is_as_drawn() {
    let rows = at("S-12").table("| bits | field | values |");
    let found: Vec<_> = rows
        .iter()
        .map(|r| (r[0].as_str(), r[1].as_str()))
        .collect();
    let expected = [
        ("1:0", "mode"),
        ("3:2", "gate"),
        ("4", "executor"),
        ("5", "cas_xive"),
    ];
    assert_eq!(found, expected);
    let state = |mode, gate, executor, cas_xive| {
        State {
            mode,
            gate,
            executor,
            cas_xive,
        }
        .to_word()
    };
    let (front, daemon) = (Executor::FrontEnd, Executor::Daemon);
    assert_eq!(state(Mode::Xics, Gate::Closed, front, false), 1);
    assert_eq!(state(Mode::Xive, Gate::Closed, front, false), 2);
    assert_eq!(state(Mode::Xics, Gate::Open, front, false), 1 | 1 << 2);
    assert_eq!(state(Mode::Xics, Gate::Latch, front, false), 1 | 2 << 2);
    assert_eq!(state(Mode::Xics, Gate::Closed, daemon, false), 1 | 1 << 4);
    assert_eq!(state(Mode::Xics, Gate::Closed, front, true), 1 | 1 << 5);
    assert!(page().says("1 XICS, 2 XIVE") && page().says("0 closed, 1 open, 2 latch"));
    assert!(page().says("0 front-end, 1 daemon"));
}

/// Where a machine's fields are, from the table of [S-11], put together to words.
#[test]
fn the_machines_words_are_as_drawn() {
    let m = Machine {
        sources: 0x12345,
        servers: 0xabc,
        xics_base: 0x1001,
        phandle: 0x89ab_cdef,
        store_eoi: true,
        ram_shared: true,
        hv_prio: 5,
        ..Machine::pseries(IcMode::Dual, Compat::Qemu72, 1)
    };
    let value = |field: &str| match field {
        "ic_mode" => 3,
        "compat" => 2,
        "hv_prio" => 5,
        "store_eoi" | "ram_shared" => 1,
        "sources" => 0x12345,
        "servers" => 0xabc,
        "xics_base" => 0x1001,
        "phandle" => 0x89ab_cdef,
        "esb_base" => m.esb_base,
        "end_base" => m.end_base,
        "tima_base" => m.tima_base,
        "" => 0,
        other => panic!("no field {other}"),
    };
    let mut words = [0u64; MACHINE_WORDS as usize];
    for row in at("S-11").table("| word | bits | field | values |") {
        let low: u32 = row[1].rsplit(':').next().unwrap().parse().unwrap();
        words[number(&row[0]) as usize] |= value(&row[2]) << low;
    }
    assert_eq!(words, m.to_words());
    assert!(page().says("1 XICS, 2 XIVE, 3 dual"));
    assert!(page().says("1 `papr-1`, 2 `qemu-7.2`"));
}
