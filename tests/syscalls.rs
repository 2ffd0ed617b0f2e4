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
#[path = "syscalls/lists.rs"]
mod lists;
#[path = "syscalls/service.rs"]
mod service;
#[path = "syscalls/walk.rs"]
mod walk;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use papr_intc_frontend::Launcher;

use lists::{Calls, Lists};
use service::Service;
use walk::{ALONE, walk};

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
    let mark = |phase: &str| {
        // What is still under way is of the phase before; too little time makes the test ask for a longer list.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let _ = std::fs::metadata(format!("{MARKER}{phase}"));
    };
    walk(
        launchers,
        Some(&monitor),
        &(Arc::new(|_: &str| ()) as walk::Confine),
        &mark,
    );
}

/// Phase and thread → calls, and how many of each.
type Seen = BTreeMap<(String, String), BTreeMap<String, usize>>;

/// Reads `strace -f -Y`: lines of `pid<thread> call(arguments…`, in the order in which they began.
fn seen(trace: &str) -> Seen {
    let mut seen = Seen::new();
    let mut phase = "before".to_owned();
    for line in trace.lines() {
        if let Some((_, marked)) = line.split_once(MARKER) {
            phase = marked.split('"').next().unwrap_or_default().to_owned();
            continue;
        }
        let Some((thread, rest)) = line.split_once("> ") else {
            continue;
        };
        let thread = thread.split_once('<').map_or(thread, |(_, name)| name);
        let call = rest.split_once('(').map_or("", |(call, _)| call.trim());
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !call.is_empty() && call.chars().all(is_name) {
            let cell = seen.entry((phase.clone(), thread.to_owned())).or_default();
            *cell.entry(call.to_owned()).or_default() += 1;
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
    let seen = seen(&std::fs::read_to_string(trace).unwrap());
    let lists = Lists::read();
    let mut unlisted = Vec::new();
    for ((phase, thread), calls) in &seen {
        let Some(allowed) = lists.allowed(phase, thread) else {
            continue;
        };
        let all: Vec<String> = calls.iter().map(|(c, n)| format!("{c}:{n}")).collect();
        println!("{phase} | {thread} | {}", all.join(" "));
        let not = calls.keys().filter(|call| !allowed.contains(*call));
        unlisted.extend(not.map(|call| format!("{phase} | {thread} | {call}")));
    }
    let unlisted = unlisted.join("\n");
    assert!(
        unlisted.is_empty(),
        "not in docs/integrating.md:\n{unlisted}"
    );
    for (column, threads) in lists::COLUMNS {
        let of = |(_, thread): &(String, String)| threads.contains(&thread.as_str());
        let made = seen.iter().filter(|(place, _)| of(place));
        let made: Calls = made.flat_map(|(_, calls)| calls.keys().cloned()).collect();
        let idle: Vec<_> = (&lists.column(column) - &made).into_iter().collect();
        println!("{column}: listed and not made here: {}", idle.join(" "));
    }
    let alone = &seen[&("alone".to_owned(), "vcpu".to_owned())];
    println!("alone, {ALONE} interrupts | vcpu | {alone:?}");
    let all: usize = alone.values().sum();
    assert!(
        all < ALONE + 10,
        "beside one futex each, the walk's own kick, there is no system call"
    );
}

/// The calling thread, and whatever it starts, makes these calls from now on; another one ends its process.
fn confine(calls: &Calls) {
    let allowed: Vec<_> = calls
        .iter()
        .map(|call| serde_json::json!({"syscall": call}))
        .collect();
    let filter = serde_json::json!({"all": {
        "mismatch_action": "kill_process",
        "match_action": "allow",
        "filter": allowed,
    }});
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let programs = seccompiler::compile_from_json(filter.to_string().as_bytes(), arch);
    seccompiler::apply_filter(&programs.expect("names of system calls")["all"]).unwrap();
}

/// The walk, where each thread of the VMM is confined to its column; `starts` is what the caller of `start` may do.
fn confined_walk(launchers: [Launcher; 3], starts: Calls) {
    let lists = Lists::read();
    let threads = move |name: &str| match name {
        "vmm" => confine(&starts),
        _ => confine(&lists.column("vcpu")),
    };
    walk(
        launchers,
        None,
        &(Arc::new(threads) as walk::Confine),
        &|_| (),
    );
}

fn union(of: &[Calls]) -> Calls {
    of.iter().flatten().cloned().collect()
}

#[test]
#[ignore = "run by the tests of lists, in a process of its own"]
fn spawning_walk() {
    let lists = Lists::read();
    let starts = ["caller", "watch", "io", "daemon"].map(|column| lists.column(column));
    confined_walk([daemon(&[]), daemon(&[]), daemon(&[])], union(&starts));
}

/// Where the daemons of [`connecting_walk`] listen: a folder.
const FOLDER: &str = "PAPR_INTC_TEST_FOLDER";

fn sockets(folder: &Path) -> [PathBuf; 3] {
    ["one", "next", "other"].map(|name| folder.join(name))
}

#[test]
#[ignore = "run by the tests of lists, in a process of its own"]
fn connecting_walk() {
    let folder = std::env::var_os(FOLDER).expect("started by a test of lists");
    let lists = Lists::without("spawn");
    let starts = ["caller", "watch", "io"].map(|column| lists.column(column));
    confined_walk(
        sockets(folder.as_ref()).map(Launcher::connect),
        union(&starts),
    );
}

/// In a process of its own: a call that is not listed ends it.
fn passes(walk: &str, folder: &Path) {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", walk])
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let (out, err) = (ended.stdout, ended.stderr);
    let said = String::from_utf8_lossy(&[out, err].concat()).into_owned();
    let status = ended.status;
    assert!(
        status.success(),
        "{status}; after SIGSYS, tests/strace finds the call:\n{said}"
    );
}

#[test]
fn every_thread_lives_on_its_list_when_the_library_spawns_daemons() {
    passes("spawning_walk", Path::new(""));
}

#[test]
fn every_thread_lives_on_its_list_when_somebody_else_starts_daemons() {
    let place = tempfile::tempdir().unwrap();
    let lists = Lists::read();
    let calls = union(&[lists.column("daemon"), lists.group("spawn")]);
    let _services = sockets(place.path()).map(|path| {
        let calls = calls.clone();
        Service::start(&path, move || confine(&calls))
    });
    passes("connecting_walk", place.path());
}
