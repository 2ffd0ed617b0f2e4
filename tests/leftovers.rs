//! What is left when a daemon cannot start, or ends by force: one line, an exit code, and nothing behind.
#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::{GuestRam, Intc, Launcher, Options};

const DAEMON: &str = env!("CARGO_BIN_EXE_papr-intc");

/// A daemon on one end of a socket pair, by way of a shell that sets `limits` first.
fn daemon(limits: &str, temporary: &Path) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", &format!("{limits}; exec {DAEMON} --fd 0")])
        .env("TMPDIR", temporary)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (child, ours)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_daemon_without_descriptors_says_so_in_one_line_and_ends() {
    for limit in 3..16 {
        let folder = tempfile::tempdir().unwrap();
        let limits = format!("ulimit -n {limit}");
        let (child, ours) = daemon(&limits, folder.path());
        // One that has enough serves, until we hang up.
        drop(ours);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        match output.status.code() {
            Some(0) => assert_eq!(said, ""),
            Some(1 | 3) => assert_eq!(said.lines().count(), 1, "{limit}: {said}"),
            // The dynamic loader, without a descriptor for the C library.
            Some(127) => assert!(limit < 5, "{limit}: {said}"),
            other => panic!("{limit} descriptors: {other:?}, {said}"),
        }
        assert!(is_empty(folder.path()), "{limit} descriptors");
    }
}

/// A machine on a daemon whose temporary files go to `folder`.
fn machine(folder: &Path) -> Intc {
    let path = folder.join("daemon");
    // Written by another process: a child that another test's thread forks here would hold a file of ours open
    // for writing, and it could not be executed (ETXTBSY).
    let script = format!(
        "#!/bin/sh\nTMPDIR={} exec {DAEMON} \"$@\"",
        folder.display()
    );
    let write = "echo \"$1\" > \"$2\" && chmod 700 \"$2\"";
    let written = Command::new("/bin/sh")
        .args(["-c", write, "sh", &script])
        .arg(&path)
        .status();
    assert!(written.unwrap().success());
    let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 1);
    let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap());
    let launcher = Launcher::spawn(&path, vec![]);
    let intc = Intc::start(Options::new(machine), launcher, ram, Arc::new(|_| ())).unwrap();
    std::fs::remove_file(&path).unwrap();
    intc
}

#[test]
fn a_daemon_that_is_killed_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let intc = machine(folder.path());
    assert!(is_empty(folder.path()), "while it serves");
    let pid = Pid::from_raw(intc.daemon_pid().unwrap() as i32);
    kill(pid, Signal::SIGKILL).unwrap();
    drop(intc);
    assert!(is_empty(folder.path()));
    assert!(
        kill(pid, None).is_err(),
        "it is neither running nor a zombie"
    );
}

#[test]
fn a_daemon_whose_vmm_was_killed_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, ours) = daemon("true", folder.path());
    // All that is left of a VMM that was killed is a closed socket.
    drop(ours);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(is_empty(folder.path()));
}
