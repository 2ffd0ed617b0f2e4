//! Another binary in the place of the one that serves: `papr-intc` and `next_daemon`, which has the next
//! release's numbers, under load and with calls outstanding.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::RtasCall;
use papr_intc_frontend::{Error, Launcher};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bench::{Bench, FIRST, How, launcher};

/// The daemon of the next release.
fn next_daemon() -> PathBuf {
    static BUILT: Once = Once::new();
    // Cargo builds examples with all tests of a package, but not with one of them.
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--example",
            "next_daemon",
            "--manifest-path",
        ]);
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
    });
    // Beside the folder of the test binaries.
    let exe = std::env::current_exe().unwrap();
    let profile = exe.parent().and_then(Path::parent).unwrap();
    profile.join("examples/next_daemon")
}

/// Ends the load, when `change` panics too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn next(args: &[&str]) -> Launcher {
    let mut all = vec!["--log-level".into(), "error".into()];
    all.extend(args.iter().map(Into::into));
    Launcher::spawn(next_daemon(), all)
}

/// A shell script as a daemon.
fn script(dir: &Path, text: &str) -> Launcher {
    let path = dir.join("daemon");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Launcher::spawn(path, vec![])
}

fn is_remote(bench: &Bench) -> bool {
    bench
        .intc
        .query(0, 0)
        .unwrap()
        .contains("\"executor\":\"daemon\"")
}

/// `change` is done while interrupts and calls go on; every one of them is right.
fn under_load(bench: &Bench, change: impl FnOnce()) {
    bench.open(0);
    let done = AtomicBool::new(false);
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    bench.intc.add_irqfd(FIRST + 3, &irqfd).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u32;
            while !done.load(Ordering::Relaxed) {
                irqfd.write(1).unwrap();
                bench.trigger(FIRST + 4);
                let mut missing = vec![FIRST + 3, FIRST + 4];
                while !missing.is_empty() {
                    bench.wait_for_line(0, true);
                    let xisr = bench.accept(0);
                    bench.eoi(0, xisr);
                    let at = missing.iter().position(|m| *m == xisr);
                    missing.remove(at.unwrap_or_else(|| panic!("{xisr:#x} in round {n}")));
                }
                n += 1;
            }
        });
        scope.spawn(|| {
            let mut priority = 1;
            while !done.load(Ordering::Relaxed) {
                priority = priority % 7 + 1;
                let set = bench.vcpus[1].rtas(RtasCall::SetXive, &[FIRST + 5, 1, priority], 1);
                assert_eq!(set.unwrap(), [0]);
                let got = bench.vcpus[1].rtas(RtasCall::GetXive, &[FIRST + 5], 3);
                assert_eq!(got.unwrap(), [0, 1, priority]);
            }
        });
        let _end = End(&done);
        change();
    });
}

fn bench(how: &How) -> Bench {
    let bench = Bench::start(how);
    for lisn in [FIRST + 3, FIRST + 4, FIRST + 5] {
        bench.xics_source(lisn, false, 0);
    }
    bench
}

#[test]
fn an_upgrade_to_the_same_release_loses_nothing() {
    for how in How::all(IcMode::Xics) {
        let bench = bench(&how);
        under_load(&bench, || {
            for n in 1..=10 {
                let upgraded = bench.intc.upgrade(launcher()).unwrap();
                assert_eq!(upgraded.generation, n + 1);
                println!("away for {:?}", upgraded.away);
            }
        });
        assert_eq!(bench.intc.restarts(), 10);
    }
}

#[test]
fn the_next_release_takes_the_data_plane_and_this_one_gives_it_back() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = bench(&how);
        let remote = is_remote(&bench);
        under_load(&bench, || {
            for _ in 0..5 {
                bench.intc.upgrade(next(&[])).unwrap();
                assert!(is_remote(&bench));
                bench.kill_and_wait();
                assert!(is_remote(&bench), "a restart starts the new one");
                bench.intc.upgrade(launcher()).unwrap();
                assert_eq!(is_remote(&bench), remote);
            }
        });
    }
}

#[test]
fn a_daemon_that_does_not_fit_is_refused_before_the_old_one_is_touched() {
    let bench = bench(&How::mapped(IcMode::Xics));
    let pid = bench.intc.daemon_pid();
    let refused = bench.intc.upgrade(next(&["--servers", "17"])).unwrap_err();
    assert!(refused.to_string().contains("17"), "{refused}");
    let refused = bench.intc.upgrade(Launcher::spawn("/bin/false", vec![]));
    assert!(matches!(refused, Err(Error::Lost)));
    let refused = bench.intc.upgrade(Launcher::spawn("/no/such/file", vec![]));
    assert!(matches!(refused, Err(Error::Os { .. })));
    assert_eq!((bench.intc.daemon_pid(), bench.intc.restarts()), (pid, 0));
    bench.claim(FIRST + 9, false);
}

#[test]
fn memory_that_a_later_release_has_marked_is_refused_and_nobody_is_touched() {
    // The variable reaches the daemon through the environment of a shell.
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "PAPR_INTC_NEXT=incompat exec {} --log-level error \"$@\"",
        next_daemon().display()
    );
    let bench = bench(&How::remote(IcMode::Xics));
    bench.intc.upgrade(script(dir.path(), &text)).unwrap();
    let pid = bench.intc.daemon_pid();
    let refused = bench.intc.upgrade(launcher()).unwrap_err();
    assert!(
        refused.to_string().contains("0x8000000000000000"),
        "{refused}"
    );
    assert_eq!(bench.intc.daemon_pid(), pid);
    under_load(&bench, || ());
}

#[test]
fn a_file_that_was_replaced_by_no_daemon_does_not_keep_the_old_one_from_coming_back() {
    let dir = tempfile::tempdir().unwrap();
    let own = env!("CARGO_BIN_EXE_papr-intc");
    let copy = dir.path().join("copy");
    std::fs::copy(own, &copy).unwrap();
    let args: Vec<_> = ["--log-level", "error"].map(Into::into).into();
    let old = Bench::start_by(
        &How::mapped(IcMode::Xics),
        Launcher::spawn(&copy, args),
        |_| (),
    );
    for lisn in [FIRST + 3, FIRST + 4, FIRST + 5] {
        old.xics_source(lisn, false, 0);
    }
    // An operator has replaced the file meanwhile, by something that is no daemon.
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(&copy, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    old.kill_and_wait();
    under_load(&old, || old.kill_and_wait());
}
