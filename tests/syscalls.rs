//! The system calls of each phase, as docs/integrating.md lists them: a VMM's seccomp filter is made from that table.
//!
//! Two proofs. A walk through all phases in which every thread, the library's and the daemon's process has a real
//! seccomp filter of the documented calls and nothing else: a call that is not listed ends the process
//! (`cargo test`). The same walk under strace, where each thread's calls in each phase must be in its cell; what
//! was seen is printed as the table (`tests/strace`, which installs strace).
#![cfg(target_arch = "x86_64")] // other architectures have other calls
#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

#[allow(dead_code)] // The bench of tests/lifecycle, of which this needs a part.
#[path = "lifecycle/bench.rs"]
mod bench;
#[path = "syscalls/walk.rs"]
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use papr_intc_frontend::Launcher;

use walk::walk;

/// What a marker in the trace begins with: a file that is not there is looked for.
const MARKER: &str = "papr-intc-phase:";

fn daemon(more: &[OsString]) -> Launcher {
    let mut args: Vec<OsString> = vec!["--log-level".into(), "info".into()];
    args.extend_from_slice(more);
    Launcher::spawn(env!("CARGO_BIN_EXE_papr-intc"), args)
}

/// What is traced: the walk with markers in it.
#[test]
#[ignore = "run by the_phases_make_the_documented_calls, under strace"]
fn the_walk() {
    let place = tempfile::tempdir().unwrap();
    let monitor = place.path().join("monitor");
    let monitored = daemon(&["--monitor-path".into(), monitor.clone().into()]);
    let launchers = [daemon(&[]), daemon(&[]), monitored];
    let mark = |phase: &str| drop(std::fs::metadata(format!("{MARKER}{phase}")));
    walk(launchers, Some(&monitor), &(Arc::new(|_: &str| ()) as walk::Confine), &mark);
}

/// Phase and thread → calls.
type Seen = BTreeMap<(String, String), BTreeSet<String>>;

/// Reads `strace -f -Y`: lines of `pid<thread> call(arguments…`, in the order in which they began.
fn seen(trace: &str) -> Seen {
    let mut seen = Seen::new();
    let mut phase = "before".to_owned();
    for line in trace.lines() {
        if let Some((_, marked)) = line.split_once(MARKER) {
            phase = marked.split('"').next().unwrap_or_default().to_owned();
            continue;
        }
        let Some((thread, rest)) = line.split_once("> ") else { continue };
        let thread = thread.split_once('<').map_or(thread, |(_, name)| name);
        let Some((call, _)) = rest.split_once('(') else { continue };
        let call = call.trim();
        if call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let cell = seen.entry((phase.clone(), thread.to_owned())).or_default();
            cell.insert(call.to_owned());
        }
    }
    seen
}

#[test]
#[ignore = "needs strace: tests/strace installs it"]
fn the_phases_make_the_documented_calls() {
    let place = tempfile::tempdir().unwrap();
    let trace = place.path().join("trace");
    let strace = Command::new("strace")
        .args(["-f", "-Y", "-qq", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "the_walk", "--nocapture"])
        .status();
    assert!(strace.expect("strace runs").success());
    let trace = std::fs::read_to_string(Path::new(&trace)).unwrap();
    for ((phase, thread), calls) in seen(&trace) {
        println!("{phase} | {thread} | {}", calls.into_iter().collect::<Vec<_>>().join(" "));
    }
}
