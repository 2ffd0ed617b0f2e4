//! `papr-intc state` as people use it: files in, files out, exit codes, one line on stderr.
#![allow(clippy::unwrap_used)] // a test says what it means with it

mod harness;

use std::fs;
use std::path::PathBuf;

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;
use serde_json::Value;
use tempfile::TempDir;

/// What a run said, and its exit code.
struct Said {
    code: i32,
    out: String,
    err: String,
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Said {
        let mut command = harness::command();
        let output = command
            .current_dir(&self.0)
            .arg("state")
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

/// A guest in XICS mode with one interrupt of each kind on its way.
fn busy() -> State {
    let machine = Machine::pseries(IcMode::Xics, Compat::Qemu72, 2);
    let head = Head {
        servers: vec![0, 1],
        ..Head::new("a test", machine)
    };
    let mut state = State::reset(head);
    for (first, count, kind) in [
        (0x1000, 2, Kind::Edge),
        (0x1200, 4, Kind::Lsi),
        (0x1300, 3, Kind::Msi),
    ] {
        state.claims.push(Claims { first, count, kind });
    }
    state.head.fixed = fixed(&state.claims);
    state.inputs.push(Input {
        lisn: 0x1201,
        level_vmm: true,
        ..Input::default()
    });
    let source = |irq, server, priority| XicsSource {
        server,
        priority,
        saved: priority,
        ..XicsSource::reset(irq)
    };
    state.xics.sources = vec![
        source(0x1201, 0, 6),
        source(0x1300, 0, 5),
        XicsSource {
            rejected: true,
            ..source(0x1301, 1, 7)
        },
        XicsSource {
            masked_pending: true,
            ..source(0x1302, 0, 0xff)
        },
    ];
    state.xics.icps.push(Icp {
        cppr: 0xff,
        xisr: 0x1300,
        pending_priority: 5,
        ..Icp::reset(0)
    });
    state
}

#[test]
fn a_state_is_shown_to_people_and_to_programs() {
    let folder = Folder::new();
    folder.file("busy", &busy().encode().unwrap());
    let shown = folder.run(&["show", "busy"]);
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    for line in [
        "controller   XICS, XIVE was not negotiated",
        "vCPUs        2: servers 0-1",
        "levels high  0x1201",
        "pending      3",
        "  0x1300 is presented to vCPU 0, priority 5",
        "  0x1301 was refused by vCPU 1, priority 7",
        "  0x1302 came while masked",
    ] {
        assert!(
            shown.out.lines().any(|l| l == line),
            "{line:?}\n{}",
            shown.out
        );
    }
    let json: Value = serde_json::from_str(&folder.run(&["show", "--json", "busy"]).out).unwrap();
    assert_eq!(json["xics"]["icps"][0]["xisr"], 0x1300);
    assert_eq!(json["head"]["machine"]["compat"], "qemu-7.2");
    assert_eq!(json["claims"][2]["kind"], "msi");
}

#[test]
fn a_guest_in_xive_is_shown_with_what_is_in_its_queues() {
    let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 1);
    let head = Head {
        active: Mode::Xive,
        cas_xive: true,
        ov5_byte_23: 0x40,
        servers: vec![0],
        ..Head::new("a test", machine)
    };
    let mut state = State::reset(head);
    state.xive.sources.push(XiveSource {
        lisn: 0,
        pq: 2,
        masked: false,
        end: 6,
        eisn: 16,
    });
    state.xive.rings.push(Ring {
        server: 0,
        bytes: 0x80ff_02ff_ff00_0006,
    });
    let folder = Folder::new();
    folder.file("xive", &state.encode().unwrap());
    let shown = folder.run(&["show", "xive"]).out;
    for line in [
        "controller   XIVE, negotiated at CAS",
        "  vCPU 0 has its line up, priority 6",
        "  0x0 is in a queue or being served (vCPU 0, priority 6)",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line:?}\n{shown}");
    }
}

#[test]
fn a_state_goes_to_kvm_and_back() {
    let folder = Folder::new();
    let state = busy().encode().unwrap();
    folder.file("ours", &state);
    let said = folder.run(&["convert", "ours", "--to", "kvm", "--strict", "-o", "kvm"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    let said = folder.run(&["convert", "kvm", "--to", "papr", "-o", "again"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert_eq!(fs::read(folder.path("again")).unwrap(), state);
    // Nothing else is left behind.
    assert_eq!(fs::read_dir(folder.path(".")).unwrap().count(), 3);
}

#[test]
fn what_a_conversion_changes_is_told_and_refused_if_strict() {
    let folder = Folder::new();
    let mut state = busy();
    state.inputs[0] = Input {
        lisn: 0x1201,
        level_irqfd: true,
        ..Input::default()
    };
    folder.file("ours", &state.encode().unwrap());
    let note = "input 0x1201: the level of an irqfd is now the VMM's";
    let said = folder.run(&["convert", "ours", "--to", "kvm", "-o", "kvm"]);
    assert_eq!((said.code, said.err), (0, format!("papr-intc: {note}\n")));
    fs::remove_file(folder.path("kvm")).unwrap();
    let said = folder.run(&["convert", "ours", "--to", "kvm", "--strict", "-o", "kvm"]);
    assert_eq!(
        (said.code, said.err),
        (1, format!("papr-intc: --strict: {note}\n"))
    );
    assert!(!folder.path("kvm").exists());
}

#[test]
fn a_state_is_checked_against_a_machine() {
    let folder = Folder::new();
    let state = busy();
    folder.file("ours", &state.encode().unwrap());
    folder.file("head", &state.head.encode().unwrap());
    let mut other = state.head.clone();
    other.servers = vec![0];
    folder.file("one-vcpu", &other.encode().unwrap());
    for (args, code, err) in [
        (&["ours"][..], 0, ""),
        (&["head"], 0, ""),
        (&["ours", "--against", "head"], 0, ""),
        (&["head", "--against", "ours"], 0, ""),
        (
            &["ours", "--against", "one-vcpu"],
            1,
            "ours: vCPU with server number 1 exists in the incoming state and not here",
        ),
        (
            &["ours", "--servers", "3"],
            1,
            "ours: servers is 2 in the incoming state and 3 here",
        ),
        (&["ours", "--ic-mode", "dual"], 0, ""),
        (
            &["ours", "--ic-mode", "xive"],
            1,
            "ours: capability xics is 1 in the incoming state, this machine has 0",
        ),
        (
            &["ours", "--compat", "papr-1"],
            1,
            "ours: compat level is qemu-7.2 in the incoming state and papr-1 here",
        ),
    ] {
        let said = folder.run(&[&["check"], args].concat());
        assert_eq!(said.code, code, "{args:?}: {}", said.err);
        assert_eq!(said.out, if code == 0 { "sound\n" } else { "" });
        let line = if err.is_empty() {
            String::new()
        } else {
            format!("papr-intc: {err}\n")
        };
        assert_eq!(said.err, line, "{args:?}");
    }
}

#[test]
fn a_check_of_heads_says_what_the_daemons_say_of_machines_with_more_controllers() {
    let folder = Folder::new();
    let machine = |ic_mode, compat| Machine::pseries(ic_mode, compat, 2);
    let mut heads = Vec::new();
    for (name, ic_mode) in [
        ("xics", IcMode::Xics),
        ("xive", IcMode::Xive),
        ("dual", IcMode::Dual),
    ] {
        let head = Head::new("a test", machine(ic_mode, Compat::Papr1));
        let mut state = State::reset(Head {
            servers: vec![0, 1],
            ..head
        });
        let (first, count, kind) = (0x1200, 4, Kind::Lsi);
        state.claims.push(Claims { first, count, kind });
        state.head.fixed = fixed(&state.claims);
        folder.file(&format!("{name}.state"), &state.encode().unwrap());
        folder.file(name, &state.head.encode().unwrap());
        heads.push(name);
    }
    for from in &heads {
        for to in &heads {
            let taken = from == to || *to == "dual";
            for from in [(*from).to_owned(), format!("{from}.state")] {
                let said = folder.run(&["check", &from, "--against", to]);
                assert_eq!(said.code, i32::from(!taken), "{from} to {to}: {}", said.err);
            }
        }
    }
}

#[test]
fn failures_have_their_codes_and_one_line() {
    let folder = Folder::new();
    let mut cut = busy().encode().unwrap();
    folder.file("head", &busy().head.encode().unwrap());
    cut.truncate(cut.len() - 1);
    folder.file("cut", &cut);
    folder.file("text", b"hello");
    folder.file(
        "qemu",
        b"QEVM\0\0\0\x03\x07\0\0\0\x0bpseries-7.2 and no more",
    );
    folder.file("json", b"{}");
    for (args, code, err) in [
        (
            &["show", "absent"][..],
            3,
            "absent: No such file or directory",
        ),
        (&["show", "text"], 1, "text: no state of papr-intc"),
        (&["show", "cut"], 1, "cut: the stream is cut at byte"),
        (&["check", "qemu"], 1, "qemu: no vmdescription at the end"),
        (&["check", "json"], 1, "json: format: null is not there"),
        (
            &["check", "text", "--from", "qemu"],
            1,
            "text: no QEMU migration file",
        ),
        (
            &["convert", "head", "--to", "kvm", "-o", "x"],
            1,
            "head: a head alone",
        ),
        (
            &["convert", "cut", "--to", "qemu", "-o", "x"],
            2,
            "--into names",
        ),
        (
            &["convert", "cut", "--to", "kvm", "--into", "qemu", "-o", "x"],
            2,
            "--into names",
        ),
        (&["show"], 2, "the following required arguments"),
        (&["show", "cut", "--vsmt", "0"], 2, "invalid value '0'"),
        (&["melt"], 2, "unrecognized subcommand"),
    ] {
        let said = folder.run(args);
        assert_eq!(said.code, code, "{args:?}: {}", said.err);
        assert!(
            said.err.starts_with(&format!("papr-intc: {err}")),
            "{args:?}: {}",
            said.err
        );
        assert_eq!(
            (said.err.lines().count(), said.out.as_str()),
            (1, ""),
            "{args:?}"
        );
    }
    assert!(!folder.path("x").exists());
}
