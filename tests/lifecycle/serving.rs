//! One daemon, nothing goes wrong: both controllers, every way to run them.

use papr_intc_frontend::Error;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::protocol::wire::handshake::query;

use crate::bench::{Bench, FIRST, How, OV5_XIVE};

/// Log2 of the ESB space of a LISN.
const ESB_SHIFT: u32 = 17;
const MANAGEMENT: u64 = 0x1_0000;
const TIMA_OS: u64 = 0x2_0000;

/// An MSI, an LSI and an IPI through XICS.
fn xics_interrupts(bench: &Bench) {
    bench.open(0);
    bench.open(1);
    bench.xics_source(FIRST + 1, false, 0);
    bench.trigger(FIRST + 1);
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), FIRST + 1);
    assert!(!bench.vcpus[0].pending());
    bench.eoi(0, FIRST + 1);

    bench.xics_source(FIRST + 2, true, 1);
    let lsi = bench.intc.source(FIRST + 2).unwrap();
    lsi.set_level(true).unwrap();
    bench.wait_for_line(1, true);
    assert_eq!(bench.accept(1), FIRST + 2);
    // Still asserted: the EOI presents it again.
    bench.eoi(1, FIRST + 2);
    bench.wait_for_line(1, true);
    assert_eq!(bench.accept(1), FIRST + 2);
    lsi.set_level(false).unwrap();
    bench.eoi(1, FIRST + 2);
    assert!(!bench.vcpus[1].pending());

    assert_eq!(bench.hcall(0, opcode::H_IPI, &[1, 4]).0, 0);
    bench.wait_for_line(1, true);
    assert_eq!(bench.accept(1), 2);
    assert_eq!(bench.hcall(1, opcode::H_IPI, &[1, 0xff]).0, 0);
    bench.eoi(1, 2);
}

/// An MSI through XIVE, with a queue at `page` of the guest's RAM.
fn xive_interrupt(bench: &Bench, lisn: u32, page: u64) {
    let vcpu = &bench.vcpus[1];
    let set_queue = [0, 1, 6, page, 16];
    let configured = bench.hcall(1, opcode::H_INT_SET_QUEUE_CONFIG, &set_queue);
    assert_eq!(configured.0, 0);
    // Flag 2: with the event's data.
    let set_source = [2, u64::from(lisn), 1, 6, 0x77];
    assert_eq!(
        bench
            .hcall(1, opcode::H_INT_SET_SOURCE_CONFIG, &set_source)
            .0,
        0
    );
    vcpu.tima_store(TIMA_OS + 0x11, 1, 0xff).unwrap();
    let management = u64::from(lisn) << ESB_SHIFT | MANAGEMENT;
    vcpu.esb_load(management + 0xc00, 8).unwrap();

    bench.trigger(lisn);
    bench.wait_for_line(1, true);
    assert_eq!(bench.ram.read_u32_be(page), Some(0x8000_0077));
    assert!(bench.ram.is_dirty(page) || daemon_writes(bench));
    let acknowledged = vcpu.tima_load(TIMA_OS + 0x810, 2).unwrap();
    assert_eq!(acknowledged, 0x8006);
    assert!(!vcpu.pending());
    // EOI, then back to the lowest priority.
    assert_eq!(vcpu.esb_load(management, 8).unwrap(), 0);
    vcpu.tima_store(TIMA_OS + 0x11, 1, 0xff).unwrap();
}

/// The daemon wrote the entry, through its own mapping and bitmap.
fn daemon_writes(bench: &Bench) -> bool {
    bench.intc.storage().is_none() || bench.forwards()
}

#[test]
fn xics_delivers_msis_lsis_and_ipis_in_every_way_to_run_it() {
    for how in How::all(IcMode::Xics) {
        xics_interrupts(&Bench::start(&how));
    }
}

#[test]
fn xive_delivers_after_cas_in_every_way_to_run_it() {
    for how in How::all(IcMode::Dual) {
        let bench = Bench::start(&how);
        let chosen = bench.vcpus[0].cas(&OV5_XIVE).unwrap();
        assert_eq!((chosen.ret, chosen.byte_23), (0, 0x40));
        bench.claim(FIRST + 9, false);
        xive_interrupt(&bench, FIRST + 9, 0x10_0000);
    }
}

#[test]
fn a_machine_reset_returns_a_dual_machine_to_xics() {
    let bench = Bench::start(&How::mapped(IcMode::Dual));
    bench.vcpus[0].cas(&OV5_XIVE).unwrap();
    bench.intc.machine_reset(true).unwrap();
    xics_interrupts(&bench);
}

#[test]
fn refusals_carry_errno_and_text() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.claim(FIRST, false);
    let claim = papr_intc_frontend::protocol::wire::source::Claim {
        first: FIRST,
        count: 1,
        align: 1,
        flags: 0,
        low: 0,
        high: 0,
    };
    let taken = bench.intc.claim(&claim).unwrap_err();
    assert_eq!(taken.errno(), nix::errno::Errno::EBUSY as i32);
    assert!(matches!(
        bench.intc.free(FIRST + 5, 1),
        Err(Error::Refused { .. })
    ));
    assert!(bench.intc.source(0x2000).is_err());
    assert!(bench.intc.connect_vcpu(4).is_err());
    assert!(bench.intc.connect_vcpu(0).is_err(), "connected already");
}

#[test]
fn a_vcpu_goes_and_comes_back() {
    let mut bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.vcpus.pop().unwrap().disconnect().unwrap();
    bench.vcpus.push(bench.intc.connect_vcpu(1).unwrap());
    xics_interrupts(&bench);
    bench.vcpus[1].reset().unwrap();
    bench.open(1);
}

#[test]
fn queries_and_device_trees_are_answered() {
    let bench = Bench::start(&How::mapped(IcMode::Dual));
    let status = bench.intc.query(query::STATUS, 0).unwrap();
    assert!(status.starts_with('{'), "{status}");
    for mode in 0..3 {
        let fdt = bench.intc.fdt(mode).unwrap();
        assert_eq!(fdt[..4], [0xd0, 0x0d, 0xfe, 0xed]);
    }
}

#[test]
fn the_mapping_exists_in_mapped_mode_only() {
    assert!(
        Bench::start(&How::mapped(IcMode::Dual))
            .intc
            .storage()
            .is_some()
    );
    assert!(
        Bench::start(&How::remote(IcMode::Dual))
            .intc
            .storage()
            .is_none()
    );
}

#[test]
fn shutdown_ends_the_daemon_and_later_calls() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.intc.shutdown();
    assert_eq!(bench.intc.daemon_pid(), None);
    assert!(matches!(bench.intc.free(FIRST, 1), Err(Error::ShutDown)));
    // What needs no daemon goes on.
    bench.open(0);
    assert!(!bench.vcpus[0].pending());
}
