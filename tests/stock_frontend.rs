//! The stock front-end, `vhost::vhost_user::Frontend`, with the real daemon: handshake, memory table,
//! log base and reset, alone and beside PAPR messages on the same socket.
//!
//! The standard half by itself is tested beside its code; here its effects reach the machine: queue
//! entries land in the shared memory and mark their pages, RESET_DEVICE resets the controllers.

#![allow(clippy::unwrap_used)] // helpers of tests say what they mean with it

#[path = "harness/mod.rs"]
mod harness;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use harness::Daemon;
use harness::client::{Client, errno};
use harness::guest::*;
use nix::libc;
use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::wire::handshake::{GetShm, executor};
use papr_intc_protocol::wire::source::Trigger;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};

const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
const QUEUE: u64 = 0x10_0000;
const LISN: u32 = 0x1300;

fn region(file: &File, gpa: u64, size: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: 0x7000_0000_0000 + gpa,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

/// Everything a front-end says before memory; the device features it was offered.
fn shake_hands(vmm: &mut Frontend) -> u64 {
    vmm.set_owner().unwrap();
    let offered = vmm.get_features().unwrap();
    let protocol = vmm.get_protocol_features().unwrap();
    let wanted = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE;
    assert!(protocol.contains(wanted));
    vmm.set_protocol_features(protocol).unwrap();
    vmm.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    vmm.set_features(offered & !LOG_ALL).unwrap();
    offered
}

fn set_log(vmm: &Frontend, log: &File) {
    let region = VhostUserDirtyLogRegion {
        mmap_size: log.metadata().unwrap().len(),
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    vmm.set_log_base(0, Some(region)).unwrap();
}

/// Pages marked in the log.
fn dirty(log: &File) -> Vec<usize> {
    let mut bytes = vec![0; log.metadata().unwrap().len() as usize];
    log.read_exact_at(&mut bytes, 0).unwrap();
    let marked = |page: &usize| bytes[page / 8] >> (page % 8) & 1 == 1;
    (0..bytes.len() * 8).filter(marked).collect()
}

#[test]
fn a_stock_front_end_shakes_hands_shares_memory_sets_a_log_and_resets() {
    let (daemon, socket) = Daemon::connected(&[]);
    let mut vmm = Frontend::from_stream(socket, 0);
    let offered = shake_hands(&mut vmm);
    assert_eq!(offered & 1, 1, "PAPR messages");
    assert_eq!(offered & LOG_ALL, LOG_ALL);

    let (_, block) = vmm
        .get_config(0, 64, VhostUserConfigFlags::empty(), &[0; 64])
        .unwrap();
    assert_eq!(&block[..8], b"PAPRINTC");
    assert_eq!(block[44..48], [0; 4], "cold");

    let (ram, more, log) = (memfd(RAM), memfd(RAM), memfd(4096));
    vmm.set_mem_table(&[region(&ram, 0, RAM)]).unwrap();
    assert!(vmm.get_max_mem_slots().unwrap() >= 32);
    set_log(&vmm, &log);
    vmm.set_features(offered).unwrap();
    vmm.add_mem_region(&region(&more, RAM, RAM)).unwrap();
    vmm.remove_mem_region(&region(&more, RAM, RAM)).unwrap();
    vmm.reset_device().unwrap();
    vmm.reset_device().unwrap();
    // Refusals are told, and the connection goes on.
    vmm.add_mem_region(&region(&ram, 0, RAM)).unwrap_err();
    vmm.set_features(offered | 1 << 5).unwrap_err();
    vmm.get_max_mem_slots().unwrap();
    assert!(dirty(&log).is_empty());
    drop(vmm);
    daemon.ends_well();
}

/// The stock front-end and PAPR messages on one socket, up to a serving machine.
fn both() -> (Daemon, Frontend, Guest) {
    let (daemon, socket) = Daemon::connected(&[]);
    let mut vmm = Frontend::from_stream(socket.try_clone().unwrap(), 0);
    shake_hands(&mut vmm);
    let main = Client::new(socket);
    main.hello();
    let (machine, ram) = (machine(), memfd(RAM));
    set_machine(&main, &machine).unwrap();
    vmm.set_mem_table(&[region(&ram, 0, RAM)]).unwrap();
    let (info, shm) = get_shm(&main).unwrap();
    let kicks = (0..machine.servers).map(|_| eventfd()).collect();
    let guest = Guest {
        main,
        machine,
        ram,
        shm,
        info,
        kicks,
    };
    guest.connect_all();
    start(&guest.main, executor::DAEMON).unwrap();
    (daemon, vmm, guest)
}

/// One XIVE event of [`LISN`] into the queue at [`QUEUE`].
fn deliver(guest: &Guest) {
    let trigger = Trigger {
        lisn: LISN,
        zero: 0,
    };
    guest.main.call(&trigger).unwrap();
    guest.mmio(esb_load(LISN, 1, 0));
}

fn route(guest: &Guest) {
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_queue(1, 6, QUEUE);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.mmio(esb_load(LISN, 1, 0xc00));
}

#[test]
fn queue_entries_reach_the_shared_memory_and_mark_their_pages_while_it_migrates() {
    let (_daemon, vmm, guest) = both();
    let log = memfd(4096);
    route(&guest);
    set_log(&vmm, &log);
    deliver(&guest);
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077);
    assert!(dirty(&log).is_empty(), "LOG_ALL is not acknowledged");

    let features = FEATURES | LOG_ALL;
    vmm.set_features(features).unwrap();
    deliver(&guest);
    assert_eq!(guest.ram_word(QUEUE + 4), 0x8000_0077);
    assert_eq!(dirty(&log), [QUEUE as usize >> 12]);

    let fresh = memfd(4096);
    set_log(&vmm, &fresh);
    vmm.set_features(features & !LOG_ALL).unwrap();
    deliver(&guest);
    assert!(dirty(&fresh).is_empty());
}

#[test]
fn a_queue_in_memory_that_went_drops_its_entries_and_nothing_else() {
    let (_daemon, mut vmm, guest) = both();
    route(&guest);
    deliver(&guest);
    vmm.remove_mem_region(&region(&guest.ram, 0, RAM)).unwrap();
    deliver(&guest);
    assert_eq!(guest.ram_word(QUEUE + 4), 0);
    let args = [1, 1, 6, QUEUE, 12];
    let refused = guest.hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &args);
    assert_eq!(refused.0, -57, "H_P4: no RAM there");
    vmm.add_mem_region(&region(&guest.ram, 0, RAM)).unwrap();
    deliver(&guest);
    assert_eq!(
        guest.ram_word(QUEUE + 4),
        0x8000_0077,
        "the index had stayed"
    );
}

#[test]
fn reset_device_resets_the_machine_and_frees_its_msis() {
    let (_daemon, mut vmm, guest) = both();
    route(&guest);
    vmm.reset_device().unwrap();
    // XICS again, the number free, the memory still shared.
    assert_eq!(guest.must(1, opcode::H_XIRR, &[]), 0);
    route(&guest);
    deliver(&guest);
    assert_eq!(guest.ram_word(QUEUE), 0x8000_0077);
    assert_eq!(errno(guest.claim(LISN, 0)), libc::EBUSY);
    guest.main.call_fds(&GetShm {}, &[]).unwrap();
}
