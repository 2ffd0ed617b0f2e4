//! Streams: every damage is noticed, the schema reads what is written, old streams stay readable.

use super::super::random::{self, Rng};
use super::*;
use crate::layout::{Compat, IcMode};

fn some_state(seed: u64, density: u32) -> State {
    let mut rng = Rng::new(seed);
    let machine = random::machine(&mut rng);
    random::state(&mut rng, machine, density)
}

#[test]
fn every_truncation_is_refused() {
    for seed in 0..20 {
        let bytes = some_state(seed, 40).encode().unwrap();
        for length in 0..bytes.len() {
            assert!(
                State::decode(&bytes[..length]).is_err(),
                "seed {seed}, {length} bytes"
            );
        }
    }
}

#[test]
fn every_flip_of_a_bit_is_refused() {
    for seed in 0..20 {
        let bytes = some_state(seed, 40).encode().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(State::decode(&damaged).is_err(), "seed {seed}, bit {bit}");
        }
    }
}

/// A flip inside a payload with its checksum made good: the schema and the values are all that is left to
/// notice it. What is taken is a valid state with one meaning.
#[test]
fn a_forged_section_is_refused_or_is_another_valid_state() {
    for seed in 0..6 {
        let bytes = some_state(seed, 40).encode().unwrap();
        let mut start = MAGIC.len();
        while start < bytes.len() {
            let length = le(&bytes[start + 20..start + 24]) as usize;
            let end = start + SECTION_HEADER + length;
            for bit in start * 8..end * 8 {
                let mut forged = bytes.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                let crc = crc32fast::hash(&forged[start..end]);
                forged[end..end + 4].copy_from_slice(&crc.to_le_bytes());
                if let Ok(state) = State::decode(&forged) {
                    state.validate().unwrap();
                    state.encode().unwrap();
                }
            }
            start = end + 4;
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_or_take_memory_beyond_their_length(
        mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000),
        with_magic in proptest::prelude::any::<bool>(),
    ) {
        if with_magic && bytes.len() >= MAGIC.len() {
            bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        }
        let _ = State::decode(&bytes);
        let _ = Head::decode(&bytes);
    }
}

/// A stream with another section before its end.
fn with_section(state: &State, name: &str, flags: u32) -> Vec<u8> {
    let bytes = state.encode().unwrap();
    let mut sections = Sections::new(&bytes).unwrap();
    let (mut count, mut end) = (0, MAGIC.len());
    while let Some(section) = sections.next_section().unwrap() {
        if section.name == END {
            break;
        }
        count += 1;
        end = sections.position();
    }
    let mut out = bytes[..end].to_vec();
    let start = out.len();
    section(&mut out, name, |out| out.extend_from_slice(b"whatever"));
    out[start + 16..start + 20].copy_from_slice(&flags.to_le_bytes());
    let crc_at = out.len() - 4;
    let crc = crc32fast::hash(&out[start..crc_at]);
    out[crc_at..].copy_from_slice(&crc.to_le_bytes());
    let bytes = out.len() as u64;
    section(&mut out, END, |out| {
        columns::encode(
            &EndMessage {
                sections: count + 1,
                bytes,
            },
            out,
        );
    });
    out
}

#[test]
fn an_unknown_section_is_skipped_if_it_is_optional_and_refused_by_name_if_not() {
    let state = some_state(3, 30);
    assert_eq!(
        State::decode(&with_section(&state, "weather", 0)),
        Ok(state.clone())
    );
    assert_eq!(
        State::decode(&with_section(&state, "escalation", MANDATORY)),
        Err(StreamError::UnknownSection("escalation".into()))
    );
    assert!(matches!(
        State::decode(&with_section(&state, "weather", 2)),
        Err(StreamError::Section { .. })
    ));
}

#[test]
fn a_section_that_comes_twice_or_too_late_is_refused() {
    let state = some_state(5, 60);
    let bytes = state.encode().unwrap();
    let mut sections = Sections::new(&bytes).unwrap();
    let mut starts = vec![MAGIC.len()];
    while sections.next_section().unwrap().is_some() {
        starts.push(sections.position());
    }
    for pair in starts.windows(2) {
        let mut twice = bytes[..pair[1]].to_vec();
        twice.extend_from_slice(&bytes[pair[0]..]);
        assert!(
            State::decode(&twice).is_err(),
            "section at {} twice",
            pair[0]
        );
        let mut without = bytes[..pair[0]].to_vec();
        without.extend_from_slice(&bytes[pair[1]..]);
        assert!(
            State::decode(&without).is_err(),
            "section at {} missing",
            pair[0]
        );
    }
    let mut more = bytes.clone();
    more.push(0);
    assert!(State::decode(&more).is_err());
}

#[test]
fn the_order_of_the_sections_between_head_and_end_says_nothing() {
    for seed in 0..50 {
        let state = some_state(seed, 60);
        let bytes = state.encode().unwrap();
        let mut sections = Sections::new(&bytes).unwrap();
        let mut pieces = Vec::new();
        let mut start = MAGIC.len();
        while sections.next_section().unwrap().is_some() {
            pieces.push(&bytes[start..sections.position()]);
            start = sections.position();
        }
        let mut rng = Rng::new(seed);
        for last in (2..pieces.len() - 1).rev() {
            pieces.swap(last, 1 + rng.below(last as u32) as usize);
        }
        let shuffled = [MAGIC.as_slice(), &pieces.concat()].concat();
        assert_eq!(State::decode(&shuffled), Ok(state), "seed {seed}");
    }
}

#[test]
fn a_head_that_is_too_long_or_would_spoil_a_log_line_is_refused_and_not_written() {
    let state = some_state(1, 30);
    for producer in [
        "x".repeat(validate::MAX_PRODUCER + 1),
        "a\nb".into(),
        "\x1b[2J".into(),
    ] {
        let head = Head {
            producer,
            ..state.head.clone()
        };
        assert!(head.encode().is_err());
        let mut message = state.head.to_message().unwrap();
        message.producer = head.producer;
        assert!(Head::from_message(message).is_err());
    }
    // Longer than a head by what no reader knows.
    let mut out = MAGIC.to_vec();
    section(&mut out, HEAD, |out| {
        columns::encode(&state.head.to_message().unwrap(), out);
        let unknown = MAX_HEAD as u32;
        out.extend([
            0xfa,
            0x01,
            unknown as u8 | 0x80,
            (unknown >> 7) as u8 | 0x80,
            (unknown >> 14) as u8,
        ]);
        out.resize(out.len() + MAX_HEAD, 0);
    });
    assert!(matches!(Head::decode(&out), Err(StreamError::TooLong(_))));
}

/// A few bytes that name all entries again and again would be a lot of memory.
#[test]
fn entries_that_were_named_before_are_refused() {
    let mut head = Head::new("test", Machine::pseries(IcMode::Xive, Compat::Papr1, 1));
    head.machine.sources = 1 << 20;
    let mut out = head.encode().unwrap();
    let all = XiveSource {
        lisn: 0,
        pq: 3,
        masked: false,
        end: 0,
        eisn: 0,
    };
    for _ in 0..2 {
        section(&mut out, XiveBlock::NAME, |out| {
            let flags = vec![all.pq].into();
            let message = XiveBlock::message(vec![all.lisn, 1], vec![flags]);
            columns::encode(&message, out);
        });
    }
    let refused = State::decode(&out).unwrap_err();
    assert!(
        matches!(
            refused,
            StreamError::Payload {
                section: "xive-sources",
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn a_cold_machine_is_below_4_kib_and_a_million_sources_are_below_the_limit() {
    for ic_mode in [IcMode::Xics, IcMode::Xive, IcMode::Dual] {
        let mut machine = Machine::pseries(ic_mode, Compat::Papr1, 4096);
        machine.sources = 1 << 20;
        let mut state = State::reset(Head::new("papr-intc 0.1.0", machine));
        state.head.servers = (0..4096).collect();
        assert!(state.encode().unwrap().len() < 4096);
        let mut rng = Rng::new(1);
        machine.store_eoi = true;
        let full = random::state(&mut rng, machine, 100);
        assert!(full.encode().unwrap().len() < MAX_STREAM / 6);
    }
}

/// The messages by `state.proto`, as another team would read them.
fn schema() -> prost_reflect::DescriptorPool {
    let files = protox::compile(["state.proto"], [env!("CARGO_MANIFEST_DIR")]).unwrap();
    prost_reflect::DescriptorPool::from_file_descriptor_set(files).unwrap()
}

fn message_of(section: &str) -> String {
    let name = match section {
        "head" => "Head",
        "claims" => "Claims",
        "inputs" => "Inputs",
        "xics-sources" => "XicsSources",
        "xics-icps" => "Icps",
        "xive-sources" => "XiveSources",
        "xive-ends" => "Ends",
        "xive-rings" => "Rings",
        "end" => "End",
        other => panic!("section {other} has no message"),
    };
    format!("papr_intc.state.v1.{name}")
}

#[test]
fn the_schema_reads_every_section_and_writes_the_same_bytes() {
    use prost_reflect::prost::Message;
    let pool = schema();
    for seed in 0..200 {
        let bytes = some_state(seed, 50).encode().unwrap();
        let mut sections = Sections::new(&bytes).unwrap();
        while let Some(section) = sections.next_section().unwrap() {
            let descriptor = pool.get_message_by_name(&message_of(section.name)).unwrap();
            let read = prost_reflect::DynamicMessage::decode(descriptor, section.payload).unwrap();
            assert_eq!(
                read.unknown_fields().count(),
                0,
                "{}: not in the schema",
                section.name
            );
            assert_eq!(read.encode_to_vec(), section.payload, "{}", section.name);
        }
    }
}

#[test]
fn names_in_the_schema_mean_what_the_model_means() {
    let state = golden_dual();
    let bytes = state.encode().unwrap();
    let pool = schema();
    let mut found = std::collections::BTreeMap::new();
    let mut sections = Sections::new(&bytes).unwrap();
    while let Some(section) = sections.next_section().unwrap() {
        let descriptor = pool.get_message_by_name(&message_of(section.name)).unwrap();
        let read = prost_reflect::DynamicMessage::decode(descriptor, section.payload).unwrap();
        found.insert(section.name.to_owned(), read.to_string());
    }
    for (section, text) in [
        ("head", "compat:\"papr-1\""),
        ("head", "active:XIVE"),
        ("head", "server_runs:[0,2,2,1]"),
        ("head", "tima_base:1692157036986368"),
        ("claims", "kinds:[EDGE,EDGE,LSI,MSI]"),
        ("inputs", "flags:\"\\005\\010\""),
        ("xics-sources", "priority:\"\\377\\006\""),
        ("xics-icps", "xisr:[4865,2]"),
        ("xive-sources", "eisn:[17,19]"),
        ("xive-ends", "size:\"\\020\""),
        ("xive-rings", "ring:[9223374240156221695]"),
    ] {
        let shown = found[section].replace(' ', "");
        assert!(shown.contains(text), "{section}: no {text} in {shown}");
    }
}

/// One of everything.
fn golden_dual() -> State {
    let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 6);
    let mut state = State::reset(Head {
        active: Mode::Xive,
        cas_xive: true,
        ov5_byte_23: 0x40,
        servers: vec![0, 1, 4],
        ..Head::new("papr-intc 0.1.0", machine)
    });
    let run = |first, count, kind| Claims { first, count, kind };
    state.claims.extend([
        run(0x1000, 2, Kind::Edge),
        run(0x1200, 4, Kind::Lsi),
        run(0x1300, 3, Kind::Msi),
    ]);
    state.head.fixed = fixed(&state.claims);
    state.inputs = vec![
        Input {
            lisn: 0x1201,
            level_vmm: true,
            latched: true,
            ..Input::default()
        },
        Input {
            lisn: 0x1203,
            resample_due: true,
            ..Input::default()
        },
    ];
    state.xics.sources = vec![
        XicsSource {
            server: 1,
            saved: 5,
            masked_pending: true,
            ..XicsSource::reset(0x1300)
        },
        XicsSource {
            server: 4,
            priority: 6,
            saved: 6,
            rejected: true,
            ..XicsSource::reset(0x1301)
        },
    ];
    state.xics.icps = vec![
        Icp {
            server: 0,
            cppr: 0xff,
            xisr: 0x1301,
            pending_priority: 5,
            mfrr: 0xff,
        },
        Icp {
            server: 4,
            cppr: 7,
            xisr: 2,
            pending_priority: 4,
            mfrr: 4,
        },
    ];
    state.xive.sources = vec![
        XiveSource {
            lisn: 0,
            pq: 2,
            masked: false,
            end: 6,
            eisn: 17,
        },
        XiveSource {
            lisn: 0x1300,
            pq: 3,
            masked: false,
            end: 14,
            eisn: 19,
        },
    ];
    state.xive.ends = vec![End {
        end: 6,
        address: 0x200_0000,
        size: 16,
        always_notify: true,
        generation: false,
        index: 0x1234,
        esn: 2,
    }];
    let bytes = 0x8000_0200_ff00_0000 | 0xff00_0000 | 0xff;
    state.xive.rings = vec![Ring {
        server: 1,
        bytes: bytes & 0xffff_ffff_ffff_00ff,
    }];
    state
}

#[test]
fn the_ipis_are_claimed_on_machines_with_xive_and_on_no_others() {
    for servers in [4, 16] {
        for ic_mode in [IcMode::Xics, IcMode::Xive, IcMode::Dual] {
            let machine = Machine {
                sources: 64,
                xics_base: 16,
                ..Machine::pseries(ic_mode, Compat::Papr1, servers)
            };
            for count in [0, 1, servers - 1, servers, servers + 1] {
                let mut state = State::reset(Head::new("test", machine));
                state.claims.clear();
                let (first, kind) = (0, Kind::Edge);
                if count > 0 {
                    state.claims.push(Claims { first, count, kind });
                }
                state.head.fixed = fixed(&state.claims);
                // Beyond the IPIs it is another claim, if XICS's numbers begin there.
                let joined = count > servers && servers == machine.xics_base;
                let right = match ic_mode.has_xive() {
                    true => count == servers || joined,
                    false => count == 0,
                };
                let said = state.validate();
                assert_eq!(
                    said.is_ok(),
                    right,
                    "{ic_mode:?}, {count} of {servers}: {said:?}"
                );
            }
        }
    }
}

/// A list of three sections, of which the second begins where the first ended: a gap is counted from 0 in each. All
/// columns are zeros, and left out.
fn golden_cut_list() -> State {
    let mut machine = Machine::pseries(IcMode::Xive, Compat::Papr1, 2);
    machine.sources = 0x1_0000;
    let mut state = State::reset(Head::new("papr-intc 0.1.0", machine));
    let on = |lisn| XiveSource {
        pq: 0,
        ..XiveSource::reset(lisn, false)
    };
    state.xive.sources = (0x100..0xa000).map(on).collect();
    state
}

/// Streams of releases: kept for ever, in `vectors/state`.
fn golden() -> Vec<(&'static str, State)> {
    let reset = |ic_mode, compat| {
        let mut state = State::reset(Head::new(
            "papr-intc 0.1.0",
            Machine::pseries(ic_mode, compat, 2),
        ));
        state.head.servers = vec![0, 1];
        state
    };
    vec![
        ("1-cold-xics", reset(IcMode::Xics, Compat::Qemu72)),
        ("1-cold-xive", reset(IcMode::Xive, Compat::Papr1)),
        ("1-cold-dual", reset(IcMode::Dual, Compat::Papr1)),
        ("1-one-of-everything", golden_dual()),
        ("1-cut-list", golden_cut_list()),
    ]
}

#[test]
fn golden_streams_are_read_and_written_as_ever() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/state");
    for (name, state) in golden() {
        let kept = std::fs::read(folder.join(format!("{name}.state"))).unwrap();
        assert_eq!(State::decode(&kept), Ok(state.clone()), "{name}");
        assert_eq!(state.encode().unwrap(), kept, "{name}");
    }
    // Those too that were made at random once.
    let files = std::fs::read_dir(folder).unwrap();
    let mut count = 0;
    for file in files.map(|f| f.unwrap().path()) {
        let kept = std::fs::read(&file).unwrap();
        let state = State::decode(&kept).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert_eq!(state.encode().unwrap(), kept, "{}", file.display());
        count += 1;
    }
    assert!(count >= 6, "{count} golden streams");
}
