//! The VMM is replaced while the daemon stays (`--on-disconnect wait`): a VMM process is killed -9 while
//! its devices trigger, another one takes the guest over, and every interrupt is there.
//!
//! The first VMM is this test binary once more ([`vmm`]), told by its environment what to do. Guest RAM is
//! a file, which both map; in it each device notes what it is about to trigger, and what it has.

#![allow(clippy::unwrap_used)] // tests and their bench say what they mean with unwrap

#[path = "harness/mod.rs"]
mod harness;
#[path = "vmm_away/vmm.rs"]
mod vmm;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use harness::{Daemon, client::Client};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::{Executor, GuestRam, Intc, Launcher, Options};
use vmm::{FIRST, Guest, Note, SOURCES, Setup};

/// What a device got done before the kill, and how often its interrupt came afterwards.
fn check(note: Note, came: u32, setup: &Setup, lisn: u32) {
    // A forward that the VMM died in runs again: XIVE may queue that one event twice.
    let most = if setup.ic_mode == IcMode::Xics { 1 } else { 2 };
    let right = match note {
        Note::Nothing => came == 0,
        Note::Asked => came <= most,
        Note::Done => came == 1,
    };
    assert!(right, "{setup:?}, {lisn:#x}: {note:?}, came {came} times");
}

/// One VMM killed after its devices have triggered `after` times, another one in its place, which has the
/// data plane run by `next`.
fn replace_the_vmm(setup: &Setup, next: Executor, after: u32) {
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait"]);
    let ram = tempfile::NamedTempFile::new().unwrap();
    let first = vmm::spawn(setup, address.path(), ram.path());
    let memory = vmm::map(ram.path());
    vmm::kill_after(first, &memory, after);

    let notes: Vec<Note> = (0..SOURCES).map(|i| vmm::note(&memory, i)).collect();
    let setup = &Setup {
        executor: next,
        ..*setup
    };
    let mut guest = Guest::take_over(setup, Launcher::connect(address.path()), memory);
    assert!(guest.intc.adopted());
    assert_eq!(guest.intc.executor(), setup.executor);
    let done = notes.iter().filter(|n| **n == Note::Done).count() as u32;
    let came = guest.drain(done);
    for (i, note) in notes.iter().enumerate() {
        check(*note, came[i], setup, FIRST + i as u32);
    }
    assert!(done >= after, "{done} of {after}");
    // The guest goes on as if nothing had been.
    (0..SOURCES).for_each(|i| guest.trigger(FIRST + i));
    let lost = guest
        .drain(SOURCES)
        .iter()
        .filter(|came| **came != 1)
        .count();
    assert_eq!(lost, 0, "{setup:?} after {after}, {done} done");
    guest.intc.shutdown();
    daemon.ends_well();
}

#[test]
fn every_pending_interrupt_is_there_for_the_next_vmm() {
    for setup in Setup::all() {
        for next in [setup.executor, other(setup.executor)] {
            for after in [0, 1, SOURCES / 3, SOURCES - 20, SOURCES] {
                replace_the_vmm(&setup, next, after);
            }
        }
    }
}

#[test]
fn what_was_recorded_for_a_quiesced_vmm_is_there_for_the_next_one_too() {
    for setup in Setup::all() {
        let setup = Setup {
            quiesced: true,
            ..setup
        };
        for after in [0, SOURCES / 2, SOURCES] {
            replace_the_vmm(&setup, setup.executor, after);
        }
    }
}

fn other(executor: Executor) -> Executor {
    match executor {
        Executor::FrontEnd => Executor::Daemon,
        Executor::Daemon => Executor::FrontEnd,
    }
}

#[test]
fn a_vmm_that_is_turned_away_does_not_kill_the_daemon_of_another_one() {
    let setup = Setup {
        ic_mode: IcMode::Xics,
        executor: Executor::FrontEnd,
        quiesced: false,
    };
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait"]);
    let ram = tempfile::NamedTempFile::new().unwrap();
    ram.as_file().set_len(vmm::RAM).unwrap();
    let launcher = || Launcher::connect(address.path());
    let first = Guest::start(&setup, launcher(), vmm::map(ram.path())).unwrap();
    assert!(!first.intc.adopted());
    let second = Guest::start(&setup, launcher(), vmm::map(ram.path()));
    assert!(second.is_err(), "two VMMs on one daemon");
    first.trigger(FIRST);
    drop(first);
    daemon.ends_well();
}

#[test]
fn another_machine_is_refused_and_the_guest_is_still_there_for_the_right_one() {
    let setup = Setup::all().next().unwrap();
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait"]);
    let ram = tempfile::NamedTempFile::new().unwrap();
    let first = vmm::spawn(&setup, address.path(), ram.path());
    vmm::kill_after(first, &vmm::map(ram.path()), SOURCES);
    let other = Setup {
        ic_mode: IcMode::Dual,
        ..setup
    };
    let launcher = || Launcher::connect(address.path());
    let refused = Guest::connect(&other, launcher(), vmm::map(ram.path()))
        .err()
        .unwrap();
    assert_eq!(refused.errno(), nix::libc::EEXIST);
    assert!(refused.to_string().contains("ic_mode"), "{refused}");
    let mut guest = Guest::take_over(&setup, launcher(), vmm::map(ram.path()));
    assert_eq!(guest.drain(SOURCES), vec![1; SOURCES as usize]);
    guest.intc.shutdown();
    daemon.ends_well();
}

/// With socket activation a service manager makes the socket, and is what a first connection has for a peer.
#[test]
fn a_stopped_daemon_is_killed_and_not_whoever_made_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap());
    let options = Options::new(Machine::pseries(IcMode::Xics, Compat::Papr1, 1));
    thread::scope(|scope| {
        let start = || Intc::start(options, Launcher::connect(&path), ram, Arc::new(|_| ()));
        let vmm = scope.spawn(start);
        let until = Instant::now() + harness::LONG;
        harness::wait_for(&listener, PollFlags::POLLIN, until, "a connection");
        let mut daemon = Daemon::on_fd(listener.into(), &[]);
        let intc = vmm.join().unwrap().unwrap();
        assert_eq!(intc.daemon_pid(), Some(daemon.pid().as_raw() as u32));
        daemon.hold();
        intc.shutdown();
        assert_eq!(daemon.wait().signal, Some(Signal::SIGKILL as i32));
    });
}

#[test]
fn the_wait_for_another_vmm_has_a_limit() {
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait=1"]);
    let stay = Client::new(address.connect());
    assert!(stay.is_greeted());
    drop(stay);
    // One that comes in time is served, and the limit begins again when it has left.
    drop(address.served());
    let since = Instant::now();
    daemon.ends_well();
    assert!(since.elapsed() > Duration::from_millis(500), "too early");
}
