//! kill -9 and what the next daemon finds: everything but the process is as before (protocol.md, "After
//! a crash"; SPEC.md, restart).
//!
//! Remote mode, one request at a time: what dies with the daemon is what it was just doing. Those
//! moments are written into the journal by hand here; the mapped mode's are `mock_vmm`'s.

#![allow(clippy::unwrap_used)]

#[path = "harness/mod.rs"]
mod harness;

#[path = "restart/kills.rs"]
mod kills;
#[path = "restart/memory.rs"]
mod memory;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use harness::client::{Client, errno};
use harness::guest::*;
use harness::{Daemon, client};
use nix::libc;
use papr_intc_protocol::layout::words::journal;
use papr_intc_protocol::layout::{Geometry, Page, Table};
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret};
use papr_intc_protocol::wire::Wire;
use papr_intc_protocol::wire::guest::{HcallReply, RtasReply, mode};
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::{Line, VcpuLine};

const QUEUE: u64 = 0x10_0000;
const LISN: u32 = 0x1300;

fn trigger(guest: &Guest, lisn: u32) {
    guest.main.call(&Trigger { lisn, zero: 0 }).unwrap();
}

fn line(guest: &Guest, server: u32) -> bool {
    let reply = guest.main.call(&VcpuLine { server, zero: 0 }).unwrap();
    reply.level == 1
}

/// Kills the daemon and goes on with another one.
fn restart(daemon: Daemon, guest: &mut Guest) -> (Daemon, StartReply) {
    daemon.kill();
    let (daemon, socket) = Daemon::connected(&[]);
    let (taken, started) = guest.reconnect(socket, executor::DAEMON);
    assert_eq!(taken.start_count, 1, "the last one got as far as START");
    (daemon, started)
}

/// Every word of tables and pages that a guest or its machine can tell, but for the header.
fn machine_words(guest: &Guest) -> Vec<Vec<u8>> {
    let g: Geometry = guest.machine.geometry().unwrap();
    let (bytes, pages) = (guest.words(), g.tables_size());
    let table = |at| g.table_offset(at) as usize;
    let page = |at| (pages + g.page_offset(at)) as usize;
    let upto = |from: usize, len: u32| bytes[from..from + len as usize].to_vec();
    vec![
        bytes[table(Table::Eas(0))..pages as usize].to_vec(),
        upto(page(Page::EndCursor(0)), g.ends() * 128),
        upto(page(Page::Source(0)), g.sources() * 8),
        upto(page(Page::IcsSource(0)), g.ics_sources() * 8),
        (0..g.servers())
            .flat_map(|s| upto(page(Page::Tima(s)), 8))
            .collect(),
        // Without the tag, which only says that something has changed.
        (0..g.servers())
            .flat_map(|s| upto(page(Page::Icp(s)), 6))
            .collect(),
    ]
}

#[test]
fn a_xive_machine_is_as_before() {
    let (daemon, mut guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.claim_lsi(LISN + 1);
    guest.choose_xive();
    guest.set_queue(1, 6, QUEUE);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    guest.open(1);
    trigger(&guest, LISN);
    trigger(&guest, LISN);
    was_kicked(&guest.kicks[1]);
    let before = machine_words(&guest);

    let (_daemon, _) = restart(daemon, &mut guest);
    assert!(machine_words(&guest) == before, "words have changed");
    assert!(line(&guest, 1));
    assert!(was_kicked(&guest.kicks[1]), "signalled again");
    assert_eq!(guest.cas(0x40).mode, mode::XIVE);
    let config = guest.hcall_reply(0, opcode::H_INT_GET_SOURCE_CONFIG, &[0, LISN.into()]);
    assert_eq!(config.args[..3], [1, 6, 0x77]);
    let queue = guest.hcall_reply(0, opcode::H_INT_GET_QUEUE_CONFIG, &[1, 1, 6]);
    assert_eq!(
        queue.args[..4],
        [3, QUEUE, 12, 1],
        "flags, address, size, index"
    );
    // PQ was 11: the EOI forwards the second event, into the second slot.
    guest.mmio(esb_load(LISN, 1, 0));
    assert_eq!(guest.ram_word(QUEUE + 4), 0x8000_0077);
    assert_eq!(errno(guest.claim(LISN, claim_flag::MSI)), libc::EBUSY);
}

#[test]
fn an_xics_machine_is_as_before() {
    let (daemon, mut guest) = Guest::new(machine());
    for lisn in [LISN, LISN + 1] {
        guest.claim_msi(lisn);
        assert_eq!(guest.rtas(RtasCall::SetXive, &[lisn, 2, 5]), 0);
    }
    guest.must(2, opcode::H_CPPR, &[0xff]);
    trigger(&guest, LISN);
    trigger(&guest, LISN + 1);
    let before = machine_words(&guest);

    let (_daemon, _) = restart(daemon, &mut guest);
    assert!(machine_words(&guest) == before, "words have changed");
    assert!(line(&guest, 2) && was_kicked(&guest.kicks[2]));
    for lisn in [LISN, LISN + 1] {
        let xirr = guest.must(2, opcode::H_XIRR, &[]);
        assert_eq!(xirr, 0xff00_0000 | u64::from(lisn));
        guest.must(2, opcode::H_EOI, &[xirr]);
    }
    assert!(!line(&guest, 2));
    let routing = guest.main.call(&rtas(RtasCall::GetXive as u32, &[LISN], 3));
    assert_eq!(routing.unwrap().rets[..3], [0, 2, 5]);
}

#[test]
fn a_level_and_a_quiesced_machine_stay() {
    use papr_intc_protocol::wire::machine::{Quiesce, Resume};
    let (daemon, mut guest) = Guest::new(machine());
    guest.claim_lsi(LISN);
    assert_eq!(guest.rtas(RtasCall::SetXive, &[LISN, 0, 5]), 0);
    guest.must(0, opcode::H_CPPR, &[0xff]);
    let quiesce = Quiesce {
        deadline_ms: 1000,
        zero: 0,
    };
    assert_eq!(guest.main.call(&quiesce).unwrap().depth, 1);
    guest
        .main
        .call(&SetLevel {
            lisn: LISN,
            level: 1,
        })
        .unwrap();

    let (_daemon, _) = restart(daemon, &mut guest);
    let refused = guest.main.call(&hcall(0, opcode::H_XIRR, &[]));
    assert_eq!(errno(refused), libc::EBUSY, "still quiesced");
    assert!(!line(&guest, 0));
    let resume = Resume {
        executor: executor::KEEP,
        zero: 0,
    };
    assert_eq!(guest.main.call(&resume).unwrap().depth, 0);
    assert!(line(&guest, 0) && was_kicked(&guest.kicks[0]));
}

#[test]
fn an_answered_queue_configuration_sent_again_resets_no_queue() {
    let (daemon, mut guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_source(LISN, 1, 6, 0x77);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    let request = hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &[1, 1, 6, QUEUE, 12]);
    assert_eq!(guest.main.call(&request).unwrap().ret, ret::H_SUCCESS);
    let seq = guest.main.last_seq();

    let (daemon, _) = restart(daemon, &mut guest);
    let last = Last {
        channel: 0,
        zero: 0,
    };
    assert_eq!(guest.main.call(&last).unwrap().seq, seq);
    // On another channel: on its own, the replay comes first.
    let event = Trigger {
        lisn: LISN,
        zero: 0,
    };
    guest.channel(0).call(&event).unwrap();
    let again = guest.main.replay(seq, &request).unwrap();
    assert_eq!((again.ret, again.args), (ret::H_SUCCESS, request.args));
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077);
    guest.mmio(esb_load(LISN, 1, 0));
    trigger(&guest, LISN);
    assert_eq!(guest.ram_word(QUEUE + 4), 0x8000_0077, "the second slot");

    // The same on a vCPU's own channel, and without the flag it is a new request.
    let channel = guest.channel(1);
    let on_channel = hcall(1, opcode::H_INT_SET_QUEUE_CONFIG, &[1, 1, 6, QUEUE, 12]);
    channel.call(&on_channel).unwrap();
    guest.mmio(esb_load(LISN, 1, 0));
    trigger(&guest, LISN);
    let (_daemon, _) = restart(daemon, &mut guest);
    let channel = guest.channel(1);
    channel.replay(1, &on_channel).unwrap();
    let index = |guest: &Guest| {
        let args = [1, 1, 6];
        let reply = guest.hcall_reply(0, opcode::H_INT_GET_QUEUE_CONFIG, &args);
        reply.args[3]
    };
    assert_eq!(index(&guest), 1);
    channel.call(&on_channel).unwrap();
    assert_eq!(index(&guest), 0);
}

#[test]
fn a_claim_sent_again_gives_the_same_number() {
    let (daemon, mut guest) = Guest::new(machine());
    let request = Claim {
        first: ANY,
        count: 4,
        align: 4,
        flags: claim_flag::MSI,
        low: 0x1300,
        high: 0x2000,
    };
    let first = guest.main.call(&request).unwrap();
    let seq = guest.main.last_seq();
    let (_daemon, _) = restart(daemon, &mut guest);
    assert_eq!(guest.main.replay(seq, &request).unwrap(), first);
    assert_ne!(guest.main.call(&request).unwrap(), first, "a new claim");
}

/// Writes the journal of a daemon that died right after it had announced `operation` (kind and
/// details) as request `seq` of the main channel, with `reply` as the answer to be.
fn announce(guest: &Guest, seq: u64, operation: [u64; 4], reply: &[u8]) {
    let g = guest.machine.geometry().unwrap();
    let set = |at, value: u64| {
        let offset = g.table_offset(at);
        guest
            .shm
            .write_all_at(&value.to_ne_bytes(), offset)
            .unwrap();
    };
    set(Table::Reply(0, 0), 0);
    set(Table::Reply(0, 1), reply.len() as u64);
    for (i, chunk) in (2..).zip(reply.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        set(Table::Reply(0, i), u64::from_ne_bytes(word));
    }
    for (i, detail) in (0..).zip(&operation[1..]) {
        set(Table::Journal(journal::DETAIL + i), *detail);
    }
    set(Table::Journal(journal::CHANNEL), 0);
    set(Table::Journal(journal::SEQUENCE), seq);
    set(Table::Journal(journal::OPERATION), operation[0]);
}

#[test]
fn a_claim_that_was_only_announced_is_completed_and_answered() {
    let (daemon, mut guest) = Guest::new(machine());
    let request = claim(LISN, 3, claim_flag::MSI);
    let seq = guest.main.last_seq() + 1;
    guest.main.go_on_from(seq);
    let reply = ClaimReply {
        first: LISN,
        zero: 0,
    };
    let operation = [2, LISN.into(), 3, claim_flag::MSI.into()];
    announce(&guest, seq, operation, &reply.to_bytes());
    let (_daemon, started) = restart(daemon, &mut guest);
    assert_eq!(started.redone, 1);
    assert_eq!(guest.main.replay(seq, &request).unwrap(), reply);
    assert_eq!(errno(guest.claim(LISN + 2, 0)), libc::EBUSY);
    trigger(&guest, LISN + 2);
}

#[test]
fn a_release_or_a_routing_that_was_only_announced_is_completed_and_answered() {
    let (daemon, mut guest) = Guest::new(machine());
    guest.main.call(&claim(LISN, 3, 0)).unwrap();
    let seq = guest.main.last_seq() + 1;
    guest.main.go_on_from(seq);
    announce(&guest, seq, [3, LISN.into(), 2, 0], &[]);
    let (daemon, started) = restart(daemon, &mut guest);
    assert_eq!(started.redone, 1);
    let free = Free {
        first: LISN,
        count: 2,
    };
    guest.main.replay(seq, &free).unwrap();
    assert_eq!(errno(guest.main.call(&free)), libc::ENOENT);

    // set-xive of the third: server 2, priority 5, to be restored as 6.
    let seq = guest.main.last_seq() + 1;
    guest.main.go_on_from(seq);
    let routed = RtasReply {
        written: 1,
        zero: 0,
        rets: [0; 16],
        line: Line {
            level: 0,
            zero: 0,
            seq: 0,
        },
    };
    let operation = [4, (LISN + 2).into(), 2, 5 | 6 << 8];
    announce(&guest, seq, operation, &routed.to_bytes());
    let (_daemon, started) = restart(daemon, &mut guest);
    assert_eq!(started.redone, 1);
    let request = rtas(RtasCall::SetXive as u32, &[LISN + 2, 2, 5], 1);
    assert_eq!(guest.main.replay(seq, &request).unwrap(), routed);
    let now = guest
        .main
        .call(&rtas(RtasCall::GetXive as u32, &[LISN + 2], 3));
    assert_eq!(now.unwrap().rets[..3], [0, 2, 5]);
}

#[test]
fn a_queue_configuration_that_was_only_announced_runs_when_it_is_sent_again() {
    let (daemon, mut guest) = Guest::new(machine());
    guest.choose_xive();
    let request = hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &[1, 1, 6, QUEUE, 12]);
    let seq = guest.main.last_seq() + 1;
    guest.main.go_on_from(seq);
    let reply = HcallReply {
        ret: 0,
        args: request.args,
        line: guest.main.call(&VcpuLine { server: 0, zero: 0 }).unwrap(),
    };
    // END 1 * 8 + 6; its selector is 0 until the commit.
    announce(&guest, seq, [1, 14, 1, 0], &reply.to_bytes());
    let (_daemon, _) = restart(daemon, &mut guest);
    let queue = |guest: &Guest| {
        let reply = guest.hcall_reply(0, opcode::H_INT_GET_QUEUE_CONFIG, &[0, 1, 6]);
        reply.args[2]
    };
    assert_eq!(guest.main.replay(seq, &request).unwrap().ret, 0);
    assert_eq!(queue(&guest), 12);
}

#[test]
fn memory_is_refused_while_its_daemon_lives_and_taken_when_it_is_dead() {
    let (daemon, mut guest) = Guest::new(machine());
    let before = guest.words();
    let (second, socket) = Daemon::connected(&[]);
    let probe = Client::new(socket);
    negotiate(&probe);
    probe.hello();
    let check = CheckShm {
        shm: guest.shm_request(),
    };
    let (checked, _) = probe.call_fds(&check, &[guest.shm.as_fd()]).unwrap();
    assert_eq!(
        checked.errno, 0,
        "CHECK_SHM takes no lock: {:?}",
        checked.text
    );
    let take = guest.shm_request();
    let refused = probe.call_fds(&take, &[guest.shm.as_fd()]).unwrap_err();
    assert_eq!(refused.errno, libc::EBUSY, "{}", refused.text);
    assert!(guest.words() == before, "a refused SET_SHM wrote");
    guest.main.ping();

    daemon.kill();
    let (taken, _) = probe.call_fds(&take, &[guest.shm.as_fd()]).unwrap();
    assert_eq!((taken.generation, taken.start_count), (2, 1));
    drop((probe, second));
    // The second one died before START: this is the second attempt.
    guest.info.generation = 2;
    let (_third, socket) = Daemon::connected(&[]);
    let (taken, _) = guest.reconnect(socket, executor::DAEMON);
    assert_eq!((taken.generation, taken.start_count), (3, 2));
}

#[test]
fn records_are_not_trusted_after_three_starts_that_failed() {
    let (daemon, mut guest) = Guest::new(machine());
    for lisn in [LISN, LISN + 1] {
        guest.claim_msi(lisn);
        assert_eq!(guest.rtas(RtasCall::SetXive, &[lisn, 2, 5]), 0);
    }
    // Rejected: it waits in its source's word, the other one is presented.
    trigger(&guest, LISN);
    let seq = guest.main.last_seq() + 1;
    guest.main.go_on_from(seq);
    daemon.kill();
    // A release that nobody asked for, and a commit that wipes the source's word.
    announce(&guest, seq, [3, (LISN + 1).into(), 1, 0], &[]);
    let g = guest.machine.geometry().unwrap();
    let set = |word, value: u64| {
        let at = g.table_offset(Table::Journal(word));
        guest.shm.write_all_at(&value.to_ne_bytes(), at).unwrap();
    };
    let source = u64::from(LISN - guest.machine.xics_base);
    set(journal::REDO_FIRST, 9 << 56 | source);
    set(journal::REDO_FIRST + 1, 0);
    set(journal::REDO, 1);
    for start in 1..=3 {
        let (daemon, socket) = Daemon::connected(&[]);
        guest.main = Client::new(socket);
        negotiate(&guest.main);
        guest.main.hello();
        let taken = guest.set_shm().unwrap();
        assert_eq!(taken.start_count, start);
        guest.info.generation = taken.generation;
        daemon.kill();
    }
    guest.main.go_on_from(seq);
    let (_daemon, socket) = Daemon::connected(&[]);
    let (taken, started) = guest.reconnect(socket, executor::DAEMON);
    assert_eq!((taken.start_count, started.redone), (4, 0));
    guest.must(2, opcode::H_CPPR, &[0xff]);
    let xirr = guest.must(2, opcode::H_XIRR, &[]);
    assert_eq!(
        xirr & 0xff_ffff,
        u64::from(LISN),
        "the event is still there"
    );
    guest.must(2, opcode::H_EOI, &[xirr]);
    trigger(&guest, LISN + 1);
    assert!(line(&guest, 2), "the other one is still claimed and routed");
}

#[test]
fn the_lock_goes_with_the_daemon_even_if_the_vmm_lives_on() {
    let (daemon, mut guest) = Guest::new(machine());
    let (daemon, _) = restart(daemon, &mut guest);
    // Now the daemon's memory came from the VMM, not the other way round.
    let (_second, socket) = Daemon::connected(&[]);
    let probe = Client::new(socket);
    probe.hello();
    let take = guest.shm_request();
    let refused = probe.call_fds(&take, &[guest.shm.as_fd()]);
    assert_eq!(errno(refused), libc::EBUSY);
    daemon.kill();
    probe.call_fds(&take, &[guest.shm.as_fd()]).unwrap();
}

/// A copy of the shared memory, cut at `size`.
pub(crate) fn copy(guest: &Guest, size: u64) -> File {
    let copy = memory::sealable();
    let bytes = guest.words();
    copy.write_all_at(&bytes[..size.min(guest.info.size) as usize], 0)
        .unwrap();
    copy.set_len(size).unwrap();
    copy
}

pub(crate) fn fresh() -> (Daemon, Client) {
    let (daemon, socket) = Daemon::connected(&[]);
    let client = client::Client::new(socket);
    client.hello();
    (daemon, client)
}
