//! Conformance with QEMU 7.2: every recording in `tests/conformance/traces`, replayed and compared.
//!
//! The replayer is the one of `examples/replay`. It is checked here too: against the slow model, which must
//! reproduce everything, and against the model with one rule wrong, which must not.

#![allow(clippy::unwrap_used, reason = "a test says what it means with unwrap")]

#[path = "../examples/replay/daemon_guest.rs"]
#[allow(dead_code, reason = "shared with examples/replay")]
mod daemon_guest;
#[path = "../examples/replay/engine/mod.rs"]
#[allow(dead_code, reason = "shared with examples/replay")]
mod engine;
#[path = "model/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with examples/replay and the property tests"
)]
mod model;
#[path = "../examples/replay/model_guest.rs"]
mod model_guest;

use std::fs;
use std::path::{Path, PathBuf};

use daemon_guest::{Compat, DaemonGuest, Way};
use engine::guest::{Shape, Start};
use engine::report::Report;
use engine::rows;
use model::rules::Rules;
use model_guest::ModelGuest;

fn traces() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/traces");
    let mut files: Vec<PathBuf> = [root.clone(), root.join("linux")]
        .iter()
        .flat_map(|dir| fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    assert!(files.len() >= 35, "recordings are missing");
    files
}

fn replay_one(path: &Path, start: &mut Start<'_>) -> Report {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let text = engine::files::read(path).unwrap();
    engine::replay(&name, &text, true, start, &mut ModelGuest::recorded)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn replay_all(start: &mut Start<'_>) -> Report {
    let mut total = Report::default();
    for path in traces() {
        let report = replay_one(&path, start);
        for difference in &report.first {
            println!("{difference}");
        }
        total.add(&report);
    }
    println!("total: {total}");
    total
}

#[test]
fn the_model_reproduces_every_recording() {
    let total = replay_all(&mut |shape| ModelGuest::start(shape, Rules::QEMU_7_2));
    assert_eq!(total.different, 0);
    assert!(total.ops > 56_000);
    // Nothing was excused: every marked result is reproduced, and H_INT_ESB's is compared swapped.
    assert_eq!(
        total.known.keys().collect::<Vec<_>>(),
        ["F-ESB-SWAP"].iter().collect::<Vec<_>>()
    );
}

/// The executor changes after every 50 operations that reach the controllers. A trace's line checks and
/// memory reads do not, its bursts do several times.
fn changes_hands(way: Way, total: &Report) {
    let switches = total.switches;
    assert_eq!(
        switches != 0,
        way == Way::Alternate,
        "{way:?}: {switches} changes"
    );
    if way == Way::Alternate {
        assert!(
            switches > total.ops / 100,
            "{switches} changes in {} ops",
            total.ops
        );
    }
}

fn the_daemon_reproduces_every_recording(way: Way) {
    let daemon = PathBuf::from(env!("CARGO_BIN_EXE_papr-intc"));
    let total = replay_all(&mut |shape| DaemonGuest::start(shape, Compat::Qemu72, way, &daemon));
    assert_eq!(total.different, 0);
    assert!(total.ops > 56_000);
    assert_eq!(total.known.keys().collect::<Vec<_>>(), [&"F-ESB-SWAP"]);
    changes_hands(way, &total);
}

#[test]
fn the_daemon_reproduces_every_recording_mapped() {
    the_daemon_reproduces_every_recording(Way::Mapped);
}

#[test]
fn the_daemon_reproduces_every_recording_remote() {
    the_daemon_reproduces_every_recording(Way::Remote);
}

#[test]
fn the_daemon_reproduces_every_recording_alternating() {
    the_daemon_reproduces_every_recording(Way::Alternate);
}

/// The papr-1 rules that the recordings can tell from QEMU's, one at a time.
#[test]
fn recordings_tell_each_wrong_rule() {
    let qemu = Rules::QEMU_7_2;
    let wrong = [
        (
            "F-XICS-RESEND-ALL",
            Rules {
                resend_all: false,
                ..qemu
            },
        ),
        (
            "F-XICS-PASS",
            Rules {
                pass_if_empty: false,
                ..qemu
            },
        ),
        (
            "F-XICS-RETRY",
            Rules {
                retry_given_back: true,
                ..qemu
            },
        ),
        (
            "F-XICS-MOVED",
            Rules {
                write_takes_rejected: true,
                ..qemu
            },
        ),
        (
            "F-XICS-MASKED",
            Rules {
                drop_masked: false,
                ..qemu
            },
        ),
        (
            "F-XIVE-GENERATION",
            Rules {
                generation_at_bit_62: false,
                ..qemu
            },
        ),
        (
            "F-XIVE-ESB-SIZE",
            Rules {
                esb_only_8_bytes: false,
                ..qemu
            },
        ),
        (
            "F-XIVE-LSI-EOI",
            Rules {
                lsi_eoi_forgets: false,
                ..qemu
            },
        ),
        (
            "F-XIVE-LSI-READY",
            Rules {
                lsi_ready_forgets: false,
                ..qemu
            },
        ),
    ];
    for (id, rules) in wrong {
        let start = &mut |shape: &Shape| ModelGuest::start(shape, rules);
        let tells = |path: &PathBuf| replay_one(path, start).different != 0;
        assert!(traces().iter().any(tells), "no recording shows {id}");
    }
}

/// Words of a text that name a row of docs/fidelity.md.
fn row_ids(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|w| w.starts_with("F-") && w.len() > 4)
        .map(str::to_owned)
        .collect()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_row_that_is_named_is_documented() {
    let document = include_str!("../docs/fidelity.md");
    let mut files = Vec::new();
    for dir in ["src", "protocol/src", "tests/model", "examples/replay"] {
        rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut files);
    }
    for file in files {
        for id in row_ids(&fs::read_to_string(&file).unwrap()) {
            assert!(document.contains(&id), "{} names {id}", file.display());
        }
    }
}

#[test]
fn every_mark_of_the_recorder_has_a_row() {
    let marks = ["size", "tima", "unclaimed", "no-end", "page"];
    assert!(marks.iter().all(|mark| rows::odd(mark).is_some()));
}

#[test]
fn a_recording_that_says_otherwise_differs() {
    let path = &traces()
        .into_iter()
        .find(|p| p.ends_with("xive-001.txt"))
        .unwrap();
    let text = engine::files::read(path)
        .unwrap()
        .replacen("irqcheck => 0", "irqcheck => 1", 1);
    let start = &mut |shape: &Shape| ModelGuest::start(shape, Rules::QEMU_7_2);
    let report = engine::replay("changed", &text, true, start, &mut ModelGuest::recorded).unwrap();
    assert_ne!(report.different, 0);
    assert!(report.first[0].contains("want 1\n"), "{}", report.first[0]);
}

/// A boot recording of a machine with sparse server numbers, a switch of controllers and a reset.
const BOOT: &str = include_str!("conformance/boot-sparse.rec");

#[test]
fn a_boot_recording_with_sparse_servers_a_switch_and_a_reset_replays() {
    let daemon = PathBuf::from(env!("CARGO_BIN_EXE_papr-intc"));
    let starts: [&mut Start<'_>; 2] = [
        &mut |shape| ModelGuest::start(shape, Rules::QEMU_7_2),
        &mut |shape| DaemonGuest::start(shape, Compat::Qemu72, Way::Mapped, &daemon),
    ];
    for start in starts {
        let report = engine::replay("boot", BOOT, true, start, &mut ModelGuest::recorded).unwrap();
        assert_eq!(
            (report.different, report.known["F-ESB-SWAP"]),
            (0, 1),
            "{:?}",
            report.first
        );
    }
}

#[test]
fn a_boot_recording_with_another_effect_differs() {
    let changes = [
        ("line 4 1\n  dma", "line 0 1\n  dma"),
        ("dma 30d0000 80000010", "dma 30d0000 80000011"),
        ("  dma 30d0000 80000010\n", ""),
        ("ret 8006", "ret 8005"),
        ("ret 0 ff001000", "ret 0 ff000000"),
    ];
    for (from, to) in changes {
        assert!(BOOT.contains(from));
        let text = BOOT.replacen(from, to, 1);
        let start = &mut |shape: &Shape| ModelGuest::start(shape, Rules::QEMU_7_2);
        let report = engine::replay("boot", &text, true, start, &mut ModelGuest::recorded).unwrap();
        assert_eq!(report.different, 1, "{from} -> {to}: {:?}", report.first);
    }
}

#[test]
fn only_marked_results_are_excused() {
    let trace = |note: &str| {
        format!(
            "# settings ic-mode=xive smp=1\n# vcpus 0\n# xive-lisn-ranges 0 1\n\
             esbload 0 1 800 => 0000000000000003{note}\n"
        )
    };
    let run = |note: &str, strict: bool| {
        let start = &mut |shape: &Shape| ModelGuest::start(shape, Rules::QEMU_7_2);
        engine::replay("t", &trace(note), strict, start, &mut ModelGuest::recorded).unwrap()
    };
    assert_eq!(run("", false).different, 1);
    assert_eq!(run(" ; odd:unclaimed", true).different, 0);
    assert_eq!(run(" ; odd:unclaimed", true).known["F-ODD-UNCLAIMED"], 1);
    assert_eq!(run(" ; odd:other", false).different, 0);
    assert_eq!(run(" ; odd:other", true).different, 1);
}

fn odd(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/odd");
    fs::read_to_string(path.join(name)).unwrap()
}

/// Every row of section 2 that a replay can meet is seen, and nothing differs that is not exactly a row's doing.
#[test]
fn odd_recordings_differ_only_as_the_rows_say() {
    let daemon = PathBuf::from(env!("CARGO_BIN_EXE_papr-intc"));
    let files = [
        "quirks-xics.txt",
        "quirks-xive.txt",
        "dual-cas.txt",
        "xive-bound.txt",
        "misaligned.txt",
    ];
    for way in [Way::Mapped, Way::Remote, Way::Alternate] {
        let start = &mut |shape: &Shape| DaemonGuest::start(shape, Compat::Qemu72, way, &daemon);
        let mut total = Report::default();
        for name in files {
            let report =
                engine::replay(name, &odd(name), true, start, &mut ModelGuest::recorded).unwrap();
            assert_eq!(report.different, 0, "{way:?}: {:?}", report.first);
            total.add(&report);
        }
        for row in &rows::WITH_STATE {
            assert!(total.known.contains_key(row.id), "{way:?}: {}", row.id);
        }
    }
}

#[test]
fn every_row_with_state_is_a_quirk_of_the_model() {
    let ids: Vec<&str> = rows::WITH_STATE.iter().map(|row| row.id).collect();
    assert!(Rules::QUIRKS.iter().all(|quirk| ids.contains(quirk)));
    for id in ids {
        assert_ne!(
            Rules::QEMU_7_2.with_quirk(id),
            Rules::QEMU_7_2,
            "{id} changes nothing"
        );
    }
}

/// A row excuses one result for another, not any result: neither another recorded one nor another seen one.
#[test]
fn a_row_with_state_excuses_nothing_else() {
    let text = odd("quirks-xics.txt");
    let replay = |text: &str, rules: Rules| {
        let start = &mut |shape: &Shape| ModelGuest::start(shape, rules);
        engine::replay("odd", text, true, start, &mut ModelGuest::recorded).unwrap()
    };
    let before = replay(&text, Rules::QEMU_7_2);
    assert_eq!((before.different, before.known["F-CAS-LEVELS"]), (0, 2));
    let (from, to) = (
        "0 ff000002 3 0 0 0 ; H_IPOLL\nreboot",
        "0 ff000002 4 0 0 0 ; H_IPOLL\nreboot",
    );
    assert!(text.contains(from));
    let changed = replay(&text.replacen(from, to, 1), Rules::QEMU_7_2);
    assert_eq!((changed.different, changed.known["F-CAS-LEVELS"]), (1, 1));
    let wrong = Rules {
        truncate: false,
        ..Rules::QEMU_7_2
    };
    assert_ne!(replay(&text, wrong).different, 0);
}

#[test]
fn what_cannot_be_replayed_or_compared_is_an_error() {
    let replay = |lines: &str| {
        let text = format!(
            "# settings ic-mode=xive smp=1\n# vcpus 0\n# xive-lisn-ranges 0 1\nirqcheck => 0\n{lines}"
        );
        let start = &mut |shape: &Shape| ModelGuest::start(shape, Rules::QEMU_7_2);
        engine::replay("t", &text, true, start, &mut ModelGuest::recorded)
    };
    let refused = [
        "frobnicate 1 => ok\n",
        "rtas ibm,no-such 1 2 => 0\n",
        "hcall 3a8 0 0\n",
        "hcall H_NONE 0 => 0\n",
        "esbload 0 1 => 0\n",
        "esbload 0 1 800 3 => 0\n",
        "timaload 10 0 => 0\n",
        "memfill 0 ffffffffffff 0 => ok\n",
        "!fatal exception 700\n",
    ];
    for lines in refused {
        assert!(replay(lines).is_err(), "{lines}");
    }
    let named =
        replay("hcall H_INT_GET_SOURCE_INFO 0 0 => -2 0 0 0 0 0\nend => ok\nafter the end\n");
    assert_eq!(named.unwrap().equal, 2);
}
