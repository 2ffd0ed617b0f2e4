//! State over a descriptor, as stock vhost-user front-ends move it: SET_DEVICE_STATE_FD and
//! CHECK_DEVICE_STATE, with `vhost::vhost_user::Frontend` and the real daemon. (What a state holds, and who may
//! take it: `tests/migration`.)

#![allow(clippy::unwrap_used)] // helpers of tests say what they mean with it

#[path = "harness/mod.rs"]
mod harness;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::thread;

use harness::Daemon;
use harness::client::Client;
use harness::guest::*;
use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::wire::handshake::executor;
use papr_intc_protocol::wire::machine::{Quiesce, Resume, StateAbort, StateRead};
use papr_intc_protocol::wire::source::{Trigger, claim_flag};
use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection as Direction, VhostTransferStatePhase as Phase,
    VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

const LISN: u32 = 0x1300;
/// Bytes that a pipe holds.
const PIPE: usize = 1 << 16;

/// A serving machine, with the stock front-end and PAPR messages on one socket.
fn machine_of(sources: u32) -> (Daemon, Frontend, Guest) {
    let (daemon, socket) = Daemon::connected(&[]);
    let mut vmm = Frontend::from_stream(socket.try_clone().unwrap(), 0);
    vmm.set_owner().unwrap();
    let offered = vmm.get_features().unwrap();
    let protocol = vmm.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::DEVICE_STATE));
    vmm.set_protocol_features(protocol).unwrap();
    vmm.set_features(offered & FEATURES).unwrap();
    let main = Client::new(socket);
    main.hello();
    let mut machine = machine();
    machine.sources = sources;
    let guest = Guest::prepare_on(main, machine);
    start(&guest.main, executor::DAEMON).unwrap();
    (daemon, vmm, guest)
}

fn trigger(guest: &Guest, lisn: u32) {
    guest.main.call(&Trigger { lisn, zero: 0 }).unwrap();
}

fn resume(guest: &Guest) {
    let keep = Resume {
        executor: executor::KEEP,
        zero: 0,
    };
    assert_eq!(guest.main.call(&keep).unwrap().depth, 0);
}

fn read(guest: &Guest) -> Vec<u8> {
    let mut state = Vec::new();
    loop {
        let piece = guest.main.call(&StateRead {
            offset: state.len() as u64,
            length: 65_000,
            zero: 0,
        });
        let piece = piece.unwrap();
        state.extend(piece.bytes.0);
        if state.len() as u64 == piece.total {
            return state;
        }
    }
}

/// SAVE into a pipe, to its end, and the verdict.
fn save(vmm: &Frontend) -> Vec<u8> {
    let (mut ours, theirs) = std::io::pipe().unwrap();
    let none = vmm.set_device_state_fd(Direction::SAVE, Phase::STOPPED, OwnedFd::from(theirs));
    assert!(
        none.unwrap().is_none(),
        "the front-end's descriptor is used"
    );
    let mut state = Vec::new();
    ours.read_to_end(&mut state).unwrap();
    vmm.check_device_state().unwrap();
    state
}

/// LOAD from a pipe; the verdict of CHECK.
fn load(vmm: &Frontend, state: &[u8]) -> vhost::Result<()> {
    let (theirs, mut ours) = std::io::pipe().unwrap();
    vmm.set_device_state_fd(Direction::LOAD, Phase::STOPPED, OwnedFd::from(theirs))
        .unwrap();
    let state = state.to_vec();
    // The check is asked while the state is still on its way: it waits for the end.
    let writer = thread::spawn(move || ours.write_all(&state).unwrap());
    let checked = vmm.check_device_state();
    writer.join().unwrap();
    checked
}

/// One MSI that its vCPU has refused so far.
fn with_pending(guest: &Guest) {
    guest.claim_msi(LISN);
    let set = papr_intc_protocol::papr::codes::RtasCall::SetXive;
    assert_eq!(guest.rtas(set, &[LISN, 1, 5]), 0);
    trigger(guest, LISN);
}

fn takes_it(guest: &Guest) {
    guest.must(1, opcode::H_CPPR, &[0xff]);
    assert_eq!(
        guest.must(1, opcode::H_XIRR, &[]) & 0xff_ffff,
        u64::from(LISN)
    );
}

#[test]
fn a_state_goes_through_pipes_and_is_the_one_of_state_read() {
    let (source, vmm, guest) = machine_of(0x1_2000);
    with_pending(&guest);
    // More than a pipe holds at once.
    assert_eq!(guest.claim(LISN + 1, claim_flag::MSI).unwrap(), LISN + 1);
    for lisn in (LISN + 2..LISN + 60_000).step_by(2) {
        guest.claim_msi(lisn);
    }
    let state = save(&vmm);
    assert!(state.len() > PIPE, "{} bytes", state.len());
    assert_eq!(read(&guest), state);
    // Quiesced for it, and not for ever.
    resume(&guest);
    takes_it(&guest);

    let (_there, vmm, guest) = machine_of(0x1_2000);
    load(&vmm, &state).unwrap();
    resume(&guest);
    takes_it(&guest);
    drop(vmm);
    drop(source);
}

#[test]
fn a_file_does_as_well_as_a_pipe() {
    let (_source, vmm, guest) = machine_of(0x2000);
    with_pending(&guest);
    let mut file = tempfile::tempfile().unwrap();
    let give = |file: &File| OwnedFd::from(file.try_clone().unwrap());
    vmm.set_device_state_fd(Direction::SAVE, Phase::STOPPED, give(&file))
        .unwrap();
    vmm.check_device_state().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();

    let (_there, vmm, guest) = machine_of(0x2000);
    vmm.set_device_state_fd(Direction::LOAD, Phase::STOPPED, give(&file))
        .unwrap();
    vmm.check_device_state().unwrap();
    resume(&guest);
    takes_it(&guest);
}

#[test]
fn a_damaged_state_is_refused_at_the_check_and_a_good_one_is_taken_after_it() {
    let (_source, vmm, guest) = machine_of(0x2000);
    with_pending(&guest);
    let state = save(&vmm);
    let (there, vmm, guest) = machine_of(0x2000);
    let quiesce = Quiesce {
        deadline_ms: 1000,
        zero: 0,
    };
    guest.main.call(&quiesce).unwrap();
    let before = read(&guest);
    load(&vmm, &state[..state.len() - 1]).unwrap_err();
    let mut damaged = state.clone();
    damaged[100] ^= 4;
    load(&vmm, &damaged).unwrap_err();
    load(&vmm, &[]).unwrap_err();
    assert_eq!(read(&guest), before);
    load(&vmm, &state).unwrap();
    assert_eq!(read(&guest), state);
    // A second one is refused at once.
    let (theirs, _ours) = std::io::pipe().unwrap();
    vmm.set_device_state_fd(Direction::LOAD, Phase::STOPPED, OwnedFd::from(theirs))
        .unwrap_err();
    guest.main.call(&StateAbort {}).unwrap();
    assert_eq!(read(&guest), before);
    let said = there.stderr();
    assert!(
        said.contains("cut at byte") && said.contains("checksum"),
        "{said}"
    );
}

#[test]
fn a_descriptor_that_cannot_be_read_or_written_costs_the_transfer_alone() {
    let (daemon, vmm, guest) = machine_of(0x2000);
    with_pending(&guest);
    let path = OFlag::O_PATH;
    let all = [
        Epoll::new(EpollCreateFlags::empty()).unwrap().0,
        OwnedFd::from(std::io::pipe().unwrap().0),
        OwnedFd::from(File::open("/").unwrap()),
        nix::fcntl::open("/", path, nix::sys::stat::Mode::empty()).unwrap(),
    ];
    for fd in all {
        for direction in [Direction::SAVE, Direction::LOAD] {
            let fd = fd.try_clone().unwrap();
            let begun = vmm.set_device_state_fd(direction, Phase::STOPPED, fd);
            assert!(begun.is_err() || vmm.check_device_state().is_err());
        }
    }
    guest.main.ping();
    resume(&guest);
    takes_it(&guest);
    drop((vmm, guest));
    daemon.ends_well();
}

#[test]
fn a_file_that_is_appended_to_keeps_what_it_has() {
    let (_source, vmm, _guest) = machine_of(0x2000);
    let state = save(&vmm);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"before").unwrap();
    let append = File::options().append(true).open(file.path()).unwrap();
    vmm.set_device_state_fd(Direction::SAVE, Phase::STOPPED, OwnedFd::from(append))
        .unwrap();
    vmm.check_device_state().unwrap();
    let written = std::fs::read(file.path()).unwrap();
    assert_eq!(written, [b"before".as_slice(), &state].concat());
}

#[test]
fn a_state_that_comes_byte_by_byte_is_taken_and_others_are_served_meanwhile() {
    let (_source, vmm, guest) = machine_of(0x2000);
    with_pending(&guest);
    let state = save(&vmm);
    let (_there, vmm, guest) = machine_of(0x2000);
    let (theirs, mut ours) = std::io::pipe().unwrap();
    vmm.set_device_state_fd(Direction::LOAD, Phase::STOPPED, OwnedFd::from(theirs))
        .unwrap();
    for byte in &state {
        ours.write_all(&[*byte]).unwrap();
        guest.main.ping();
    }
    drop(ours);
    vmm.check_device_state().unwrap();
    resume(&guest);
    takes_it(&guest);
}

#[test]
fn a_daemon_that_dies_in_a_save_leaves_a_stream_that_nobody_takes() {
    let (source, vmm, guest) = machine_of(0x1_2000);
    for lisn in (LISN..LISN + 60_000).step_by(2) {
        guest.claim_msi(lisn);
    }
    let (mut ours, theirs) = std::io::pipe().unwrap();
    vmm.set_device_state_fd(Direction::SAVE, Phase::STOPPED, OwnedFd::from(theirs))
        .unwrap();
    let mut state = vec![0; 100];
    ours.read_exact(&mut state).unwrap();
    drop(source); // killed
    ours.read_to_end(&mut state).unwrap();
    vmm.check_device_state().unwrap_err();
    let (_there, vmm, guest) = machine_of(0x1_2000);
    load(&vmm, &state).unwrap_err();
    resume(&guest);
}

#[test]
fn without_a_machine_or_a_transfer_there_is_a_refusal_and_the_connection_goes_on() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let mut vmm = Frontend::from_stream(socket, 0);
    vmm.set_owner().unwrap();
    let offered = vmm.get_features().unwrap();
    let protocol = vmm.get_protocol_features().unwrap();
    vmm.set_protocol_features(protocol).unwrap();
    vmm.set_features(offered & FEATURES).unwrap();
    for direction in [Direction::SAVE, Direction::LOAD] {
        let (_ours, theirs) = std::io::pipe().unwrap();
        vmm.set_device_state_fd(direction, Phase::STOPPED, OwnedFd::from(theirs))
            .unwrap_err();
    }
    vmm.check_device_state().unwrap_err();
    vmm.get_max_mem_slots().unwrap();
}

#[test]
fn a_reader_that_goes_away_costs_the_transfer_and_one_that_does_not_read_nothing_else() {
    let (daemon, vmm, guest) = machine_of(0x1_2000);
    for lisn in (LISN..LISN + 60_000).step_by(2) {
        guest.claim_msi(lisn);
    }
    let begin = || {
        let (ours, theirs) = std::io::pipe().unwrap();
        vmm.set_device_state_fd(Direction::SAVE, Phase::STOPPED, OwnedFd::from(theirs))
            .unwrap();
        ours
    };
    drop(begin());
    vmm.check_device_state().unwrap_err();
    // The pipe is full and nobody reads: the daemon serves on, and a new transfer replaces this one.
    let unread = begin();
    guest.main.ping();
    resume(&guest);
    let state = save(&vmm);
    assert!(state.len() > PIPE);
    drop(unread);
    let last = begin();
    drop((vmm, guest));
    daemon.ends_well();
    drop(last);
}
