//! New daemons that do not fit, die, or cannot be started again.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::{Change, Executor, Intc, Launcher, OnChange, Reason};

use super::{next, next_daemon};
use crate::bench::{Bench, FIRST, How, launcher};

fn deliver(bench: &Bench, lisn: u32) {
    bench.trigger(lisn);
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), lisn);
    bench.eoi(0, lisn);
}

fn with_source(bench: &Bench) {
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
}

#[test]
fn a_daemon_that_does_not_fit_is_refused_and_the_old_one_is_not_touched() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    with_source(&bench);
    let (pid, restarts) = (bench.intc.daemon_pid(), bench.intc.restarts());
    let refused = bench.intc.upgrade(next(&["--servers", "7"])).unwrap_err();
    assert_eq!(refused.errno(), Errno::EEXIST as i32);
    let text = refused.to_string();
    assert!(
        text.contains("servers") && text.contains('7') && text.contains('4'),
        "{text}"
    );
    for program in ["/bin/false", "/no/such/daemon", "/bin/cat"] {
        bench
            .intc
            .upgrade(Launcher::spawn(program, vec![]))
            .unwrap_err();
    }
    assert_eq!(
        (bench.intc.daemon_pid(), bench.intc.restarts()),
        (pid, restarts)
    );
    deliver(&bench, FIRST);
    bench.claim(FIRST + 1, false);
}

/// Children of this process that run `binary`.
pub fn children_running(binary: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let after = stat.rsplit(')').next().unwrap_or_default();
        let parent: Option<u32> = after.split_whitespace().nth(1).and_then(|p| p.parse().ok());
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if parent == Some(std::process::id()) && exe == binary {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// A copy of a program under a name of its own, so that no other test runs it too. Not written by this
/// process: a child that another test forks meanwhile would hold it open, and it could not be executed.
pub fn copy_of(program: &Path, to: &Path) {
    let copied = Command::new("cp").args([program, to]).status();
    assert!(copied.unwrap().success());
}

#[test]
fn if_the_new_daemon_dies_after_goodbye_the_old_binary_serves_again_though_its_file_is_another() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    copy_of(Path::new(env!("CARGO_BIN_EXE_papr-intc")), &old);
    copy_of(&next_daemon(), &new);
    let killed = Arc::new(AtomicU32::new(0));
    let (target, kills) = (new.clone(), Arc::clone(&killed));
    let on_change = OnChange::call(move |change| {
        // Told between GOODBYE and the rest of the new one's handshake.
        let replaced = matches!(
            change,
            Change::Absent {
                reason: Reason::Replaced,
                ..
            }
        );
        if replaced && kills.fetch_add(1, Ordering::Relaxed) == 0 {
            for pid in children_running(&target) {
                kill(pid, Signal::SIGKILL).unwrap();
            }
        }
    });
    let quiet = || vec!["--log-level".into(), "off".into()];
    let first = Launcher::spawn(&old, quiet());
    let bench = Bench::start_by(&How::mapped(IcMode::Xics), first, |o| {
        o.on_change = on_change
    });
    with_source(&bench);
    // As a package manager does: another file under the name.
    let other = directory.path().join("other");
    copy_of(Path::new("/bin/false"), &other);
    fs::rename(&other, &old).unwrap();

    bench
        .intc
        .upgrade(Launcher::spawn(&new, quiet()))
        .unwrap_err();
    assert_eq!(killed.load(Ordering::Relaxed), 1);
    assert_eq!(bench.intc.executor(), Executor::FrontEnd);
    deliver(&bench, FIRST);
    bench.claim(FIRST + 1, false);
    // Nothing of the failure is left: the same upgrade goes well now.
    bench.intc.upgrade(Launcher::spawn(&new, quiet())).unwrap();
    deliver(&bench, FIRST);
}

#[test]
fn after_an_upgrade_restarts_are_of_the_new_binary_and_of_the_old_one_if_it_cannot_be_started() {
    let directory = tempfile::tempdir().unwrap();
    let new = directory.path().join("new");
    copy_of(&next_daemon(), &new);
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    with_source(&bench);
    let launcher = Launcher::spawn(&new, vec!["--log-level".into(), "off".into()]);
    bench.intc.upgrade(launcher).unwrap();
    bench.kill_and_wait();
    assert_eq!(children_running(&new).len(), 1);
    assert_eq!(bench.intc.executor(), Executor::Daemon);
    deliver(&bench, FIRST);
    // Neither its file nor its inode can be executed any more.
    fs::set_permissions(&new, Permissions::from_mode(0o644)).unwrap();
    bench.kill_and_wait();
    assert_eq!(
        bench.intc.executor(),
        Executor::FrontEnd,
        "the old binary allows it"
    );
    deliver(&bench, FIRST);
    bench.kill_and_wait();
    deliver(&bench, FIRST);
}

#[test]
fn an_upgrade_asked_for_in_the_end_is_refused_and_does_not_hang() {
    let shared: Arc<OnceLock<Intc>> = Arc::default();
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    shared.set(bench.intc.clone()).ok().unwrap();
    bench.intc.shutdown();
    assert_eq!(
        shared
            .get()
            .unwrap()
            .upgrade(launcher())
            .unwrap_err()
            .errno(),
        Errno::ESHUTDOWN as i32
    );
}

#[test]
fn crashes_and_upgrades_are_dealt_with_one_after_the_other() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    with_source(&bench);
    for round in 0..20 {
        let to = if round % 2 == 0 {
            next(&[])
        } else {
            launcher()
        };
        // The old one is dead or dying when the new one comes.
        bench.signal(Signal::SIGKILL);
        bench.intc.upgrade(to).unwrap();
        let executor = [Executor::Daemon, Executor::FrontEnd][round % 2];
        assert_eq!(bench.intc.executor(), executor);
        deliver(&bench, FIRST);
    }
}

#[test]
fn a_file_that_was_replaced_by_no_daemon_does_not_keep_the_old_one_from_coming_back() {
    let directory = tempfile::tempdir().unwrap();
    let (file, other) = (
        directory.path().join("daemon"),
        directory.path().join("other"),
    );
    copy_of(Path::new(env!("CARGO_BIN_EXE_papr-intc")), &file);
    copy_of(Path::new("/bin/false"), &other);
    let first = Launcher::spawn(&file, vec!["--log-level".into(), "off".into()]);
    let bench = Bench::start_by(&How::mapped(IcMode::Xics), first, |_| ());
    with_source(&bench);
    fs::rename(&other, &file).unwrap();
    for _ in 0..2 {
        bench.kill_and_wait();
        deliver(&bench, FIRST);
    }
}
