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

/// A stock front-end that migrates: what differs since it last began to log, against what its log says.
struct Migration {
    vmm: Frontend,
    guest: Guest,
    /// Memory above the guest's first region, in the table or not.
    more: File,
    has_more: bool,
    log: File,
    logging: bool,
    /// Both files, as they were when logging began.
    before: Vec<u8>,
}

/// The second source and its queue, in the memory above.
const LISN_ABOVE: u32 = LISN + 1;
const QUEUE_ABOVE: u64 = RAM + 0x3_0000;

impl Migration {
    fn new(vmm: Frontend, guest: Guest) -> Self {
        guest.choose_xive();
        guest.claim_msi(LISN);
        guest.claim_msi(LISN_ABOVE);
        let mut migration = Self {
            vmm,
            guest,
            more: memfd(RAM),
            has_more: false,
            log: memfd(4096),
            logging: false,
            before: Vec::new(),
        };
        migration.switch_more();
        migration.guest.set_queue(2, 6, QUEUE_ABOVE);
        migration.guest.set_source(LISN_ABOVE, 2, 6, 0x78);
        migration.move_queue(0);
        migration
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2 * RAM as usize];
        let (low, high) = bytes.split_at_mut(RAM as usize);
        self.guest.ram.read_exact_at(low, 0).unwrap();
        self.more.read_exact_at(high, 0).unwrap();
        bytes
    }

    /// The region above comes or goes.
    fn switch_more(&mut self) {
        let more = region(&self.more, RAM, RAM);
        match self.has_more {
            false => drop(self.vmm.add_mem_region(&more).unwrap()),
            true => self.vmm.remove_mem_region(&more).unwrap(),
        }
        self.has_more = !self.has_more;
    }

    /// The whole table once more.
    fn set_table(&mut self) {
        let mut table = vec![region(&self.guest.ram, 0, RAM)];
        if self.has_more {
            table.push(region(&self.more, RAM, RAM));
        }
        self.vmm.set_mem_table(&table).unwrap();
    }

    fn move_queue(&self, step: u64) {
        self.guest.set_queue(1, 6, QUEUE + step % 50 * 0x1000);
        // Other data each time: an entry never looks like the one that was there.
        self.guest.set_source(LISN, 1, 6, 0x77 + step);
    }

    fn start(&mut self) {
        self.log = memfd(4096);
        self.before = self.memory();
        set_log(&self.vmm, &self.log);
        self.vmm.set_features(FEATURES | LOG_ALL).unwrap();
        self.logging = true;
    }

    fn stop(&mut self) {
        self.vmm.set_features(FEATURES).unwrap();
        self.logging = false;
    }

    /// An event of each source, whatever became of the ones before.
    fn deliver(&self) {
        for lisn in [LISN, LISN_ABOVE] {
            self.guest.mmio(esb_load(lisn, 1, 0xc00));
            self.guest.main.call(&Trigger { lisn, zero: 0 }).unwrap();
        }
    }

    /// The log is the difference, no more and no less; how many pages.
    fn check(&self) -> usize {
        let (before, now) = (self.before.chunks(4096), self.memory());
        let pages = before.zip(now.chunks(4096)).enumerate();
        let differing = pages.filter(|(_, (was, is))| was != is);
        let differing: Vec<usize> = differing.map(|(page, _)| page).collect();
        assert_eq!(dirty(&self.log), differing);
        differing.len()
    }
}

#[test]
fn the_log_of_a_stock_front_end_is_the_difference_of_memory() {
    let (_daemon, vmm, guest) = both();
    let mut migration = Migration::new(vmm, guest);
    let (mut pages, mut above) = (0, 0);
    for step in 0..200u64 {
        // Periods without a common divisor: every order comes up.
        match step {
            _ if step % 29 == 0 && !migration.logging => migration.start(),
            _ if step % 31 == 0 && migration.logging => migration.stop(),
            _ if step % 7 == 0 => migration.switch_more(),
            _ if step % 13 == 0 => migration.set_table(),
            _ if step % 3 == 0 => migration.move_queue(step),
            _ => migration.deliver(),
        }
        if migration.logging {
            pages += migration.check();
            let is_above = |page: &usize| *page as u64 * 4096 >= RAM;
            above += dirty(&migration.log).iter().filter(|p| is_above(p)).count();
        }
    }
    assert!(pages > 100 && above > 10, "{pages} pages, {above} above");
    // Off: nothing is marked in the log that is still mapped.
    migration.stop();
    migration.log.write_all_at(&[0; 4096], 0).unwrap();
    migration.deliver();
    assert!(dirty(&migration.log).is_empty());
}

#[test]
fn a_log_that_is_cut_short_costs_its_marks_and_not_the_daemon() {
    let (_daemon, vmm, guest) = both();
    let mut migration = Migration::new(vmm, guest);
    migration.start();
    migration.log.set_len(0).unwrap();
    migration.deliver();
    migration.switch_more();
    migration.deliver();
    migration.guest.main.ping();
    // Another one is as good as ever.
    migration.start();
    migration.deliver();
    assert_eq!(migration.check(), 1, "the memory above has gone");
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
