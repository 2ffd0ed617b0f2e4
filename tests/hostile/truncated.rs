//! Guest RAM whose file is cut short under the daemon: the region is lost, the process is not.

use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::wire::source::Trigger;

use crate::harness::Daemon;
use crate::harness::guest::*;

const LISN: u32 = 0x1300;
const QUEUE: u64 = 0x10_0000;

#[test]
fn ram_that_is_cut_short_costs_its_region_and_not_the_daemon() {
    let (daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_queue(1, 6, QUEUE);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.open(1);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    let trigger = || {
        let request = Trigger {
            lisn: LISN,
            zero: 0,
        };
        guest.main.call(&request).unwrap();
    };
    trigger();
    assert_eq!(guest.ram_word(QUEUE) & 0x7fff_ffff, 0x77);
    guest.ram.set_len(0).unwrap();
    for _ in 0..3 {
        guest.mmio(esb_load(LISN, 1, 0xc00));
        trigger();
    }
    guest.main.ping();
    // Another table, with a file that is there: everything goes on.
    guest.ram.set_len(RAM).unwrap();
    share_ram(&guest.main, &guest.ram);
    guest.set_queue(1, 6, QUEUE);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    trigger();
    assert_eq!(guest.ram_word(QUEUE) & 0x7fff_ffff, 0x77);
    guest.must(1, opcode::H_INT_SYNC, &[0, LISN.into()]);
    drop(daemon);
}

/// Flags of the mappings of guest RAM, of at least this many KiB, from /proc.
fn flags_of_ram(daemon: &Daemon) -> Vec<String> {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let mut of_ram = false;
    let mut found = Vec::new();
    for line in smaps.lines() {
        if line.contains("memfd:test") {
            of_ram = true;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && std::mem::take(&mut of_ram)
        {
            found.push(flags.trim().to_owned());
        }
    }
    found
}

#[test]
fn guest_ram_is_kept_out_of_core_dumps_and_children() {
    let (daemon, _guest) = Guest::new(machine());
    let found = flags_of_ram(&daemon);
    assert!(!found.is_empty(), "guest RAM is mapped");
    for flags in found {
        let has = |flag| flags.split(' ').any(|f| f == flag);
        assert!(has("dd") && has("dc") && has("nr"), "{flags}");
    }
}
