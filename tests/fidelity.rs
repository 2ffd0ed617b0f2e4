//! The rows of `docs/fidelity.md`, each at both compat levels, on a real daemon (mapped and remote) and on the
//! slow model. What a row says QEMU does is what `qemu-7.2` must do.

#![allow(clippy::unwrap_used, reason = "a test says what it means with unwrap")]

#[path = "../examples/replay/daemon_guest.rs"]
#[allow(dead_code, reason = "shared with examples/replay")]
mod daemon_guest;
#[path = "../examples/replay/engine/mod.rs"]
#[allow(dead_code, reason = "shared with examples/replay")]
mod engine;
#[path = "model/mod.rs"]
#[allow(dead_code, reason = "shared with examples/replay and other tests")]
mod model;
#[path = "../examples/replay/model_guest.rs"]
#[allow(dead_code, reason = "shared with examples/replay")]
mod model_guest;

use std::path::PathBuf;

use daemon_guest::{Compat, DaemonGuest, Way};
use engine::guest::{Guest, IcMode, RtasCall, Shape, Space};
use model::rules::Rules;
use model_guest::ModelGuest;

const H_EOI: u64 = 0x64;
const H_CPPR: u64 = 0x68;
const H_IPI: u64 = 0x6c;
const H_IPOLL: u64 = 0x70;
const H_XIRR: u64 = 0x74;
const SET_SOURCE_CONFIG: u64 = 0x3ac;
const GET_SOURCE_CONFIG: u64 = 0x3b0;
const SET_QUEUE_CONFIG: u64 = 0x3b8;
const GET_QUEUE_CONFIG: u64 = 0x3bc;
const H_INT_ESB: u64 = 0x3c8;
const H_INT_RESET: u64 = 0x3d0;

const RAM: u64 = 64 << 20;
const QUEUE: u64 = 0x10000;
const MSI: u32 = 0x1300;
const OTHER: u32 = 0x1301;
const LSI: u32 = 0x1200;
const EISN: u32 = 0x55;

/// Offsets in a source's pages.
const TRIGGER: u64 = 0;
const EOI: u64 = 0x10000;
const GET: u64 = 0x10800;
const SET_00: u64 = 0x10c00;
const SET_01: u64 = 0x10d00;
const SET_11: u64 = 0x10f00;
const INJECT: u64 = 0x10800;
const CPPR: u64 = 0x20011;
const RING: u64 = 0x20010;

struct Rig {
    guest: Box<dyn Guest>,
    qemu: bool,
}

/// Runs a check at both levels on everything that has levels.
fn everywhere(ic_mode: IcMode, check: impl Fn(&mut Rig)) {
    let shape = Shape {
        ic_mode,
        servers: 2,
        vcpus: vec![0, 1],
        ram: RAM,
    };
    let daemon = PathBuf::from(env!("CARGO_BIN_EXE_papr-intc"));
    for compat in [Compat::Qemu72, Compat::Papr1] {
        let qemu = compat == Compat::Qemu72;
        let rules = if qemu { Rules::QEMU_7_2 } else { Rules::PAPR_1 };
        let mut guests = vec![("model", ModelGuest::start(&shape, rules).unwrap())];
        for way in [Way::Mapped, Way::Remote] {
            guests.push((
                "daemon",
                DaemonGuest::start(&shape, compat, way, &daemon).unwrap(),
            ));
        }
        for (what, mut guest) in guests {
            println!("{what} at {compat:?}");
            for lisn in [MSI, OTHER] {
                assert!(guest.claim(lisn, false).unwrap());
            }
            assert!(guest.claim(LSI, true).unwrap());
            check(&mut Rig { guest, qemu });
        }
    }
}

/// With XICS active, both vCPUs open and both MSIs routed to vCPU 0 at priority 5.
fn with_xics(check: impl Fn(&mut Rig)) {
    everywhere(IcMode::Dual, |r| {
        for server in [0, 1] {
            r.call(server, H_CPPR, &[0xff]);
        }
        r.set_xive(MSI, 0, 5);
        r.set_xive(OTHER, 0, 5);
        check(r);
    });
}

/// With XIVE active, vCPU 0 open, a queue for it at priority 6, and all sources routed there.
fn with_xive(check: impl Fn(&mut Rig)) {
    everywhere(IcMode::Dual, |r| {
        assert_eq!(r.cas(0x40), (0, true));
        assert_eq!(r.call(0, SET_QUEUE_CONFIG, &[1, 0, 6, QUEUE, 12]).0, 0);
        for lisn in [MSI, OTHER, LSI] {
            r.route(lisn);
        }
        r.guest.store(0, Space::Tima, CPPR, 1, 0xff).unwrap();
        check(r);
    });
}

impl Rig {
    /// By level: what QEMU does, what papr-1 does.
    fn by_level<T>(&self, qemu: T, papr: T) -> T {
        if self.qemu { qemu } else { papr }
    }

    fn call(&mut self, server: u32, opcode: u64, registers: &[u64]) -> (i64, [u64; 9]) {
        let mut args = [0; 9];
        args[..registers.len()].copy_from_slice(registers);
        let reply = self.guest.hcall(server, opcode, args).unwrap();
        (reply.ret, reply.args)
    }

    fn rtas(&mut self, call: RtasCall, args: &[u32], nret: u32) -> Vec<u32> {
        self.guest.rtas(0, call, args, nret).unwrap()
    }

    fn set_xive(&mut self, lisn: u32, server: u32, prio: u32) {
        assert_eq!(self.rtas(RtasCall::SetXive, &[lisn, server, prio], 1), [0]);
    }

    fn xirr(&mut self, server: u32) -> u64 {
        self.call(0, H_IPOLL, &[server.into()]).1[0]
    }

    fn cas(&mut self, byte23: u8) -> (i64, bool) {
        let mut ov5 = [0; 25];
        ov5[0] = 23;
        ov5[23] = byte23;
        let reply = self.guest.cas(0, &ov5).unwrap();
        (reply.ret, reply.xive)
    }

    fn route(&mut self, lisn: u32) {
        let registers = [2, lisn.into(), 0, 6, EISN.into()];
        assert_eq!(self.call(0, SET_SOURCE_CONFIG, &registers).0, 0);
    }

    fn load(&mut self, lisn: u32, offset: u64) -> u64 {
        self.guest
            .load(0, Space::Esb, (u64::from(lisn) << 17) + offset, 8)
            .unwrap()
    }

    fn store(&mut self, lisn: u32, offset: u64) {
        self.guest
            .store(0, Space::Esb, (u64::from(lisn) << 17) + offset, 8, 0)
            .unwrap();
    }

    /// How many entries of our EISN the queue holds.
    fn entries(&mut self) -> usize {
        let mut bytes = [0; 64];
        self.guest.mem_read(QUEUE, &mut bytes).unwrap();
        bytes
            .chunks(4)
            .take_while(|w| w[..] == (1 << 31 | EISN).to_be_bytes())
            .count()
    }
}

/// F-XICS-MOVED, F-XICS-RESEND-ALL (S08).
#[test]
fn a_rejected_message_that_moves() {
    with_xics(|r| {
        r.set_xive(MSI, 1, 5);
        r.call(1, H_CPPR, &[0]);
        r.guest.pulse(MSI).unwrap();
        r.set_xive(MSI, 0, 5);
        assert_eq!(r.xirr(0), r.by_level(0xff00_0000, 0xff00_1300));
        // The old server opens: QEMU's pass tries everybody's sources.
        r.call(1, H_CPPR, &[0xff]);
        assert_eq!(r.xirr(0), 0xff00_1300);
    });
}

/// F-XICS-PASS: the same CPPR again (S07).
#[test]
fn a_write_of_the_same_cppr() {
    with_xics(|r| {
        r.set_xive(MSI, 1, 5);
        r.call(1, H_CPPR, &[0]);
        r.guest.pulse(MSI).unwrap();
        r.set_xive(MSI, 0, 5);
        r.call(0, H_CPPR, &[0xff]);
        assert_eq!(
            r.xirr(0),
            0xff00_1300,
            "QEMU: by this write; papr-1: before it"
        );
    });
}

/// F-XICS-PASS: something presented above CPPR (S29) does not keep better things out.
#[test]
fn opening_while_something_is_presented() {
    with_xics(|r| {
        r.set_xive(OTHER, 0, 3);
        r.guest.pulse(MSI).unwrap();
        r.call(0, H_EOI, &[MSI.into()]);
        r.guest.pulse(OTHER).unwrap();
        assert_eq!(r.xirr(0), 0x1300);
        r.call(0, H_CPPR, &[0xff]);
        assert_eq!(r.xirr(0), r.by_level(0xff00_1300, 0xff00_1301));
    });
}

/// F-XICS-PASS: an IPI that was refused is looked at when the guest accepts.
#[test]
fn accepting_while_an_ipi_waits() {
    with_xics(|r| {
        r.guest.pulse(MSI).unwrap();
        r.call(0, H_EOI, &[MSI.into()]);
        r.call(0, H_IPI, &[0, 3]);
        assert_eq!(r.call(0, H_XIRR, &[]).1[0], 0x1300);
        assert_eq!(r.xirr(0), r.by_level(0x0500_0000, 0x0500_0002));
    });
}

/// F-XICS-RETRY (S40).
#[test]
fn a_source_that_moved_while_presented_is_displaced() {
    with_xics(|r| {
        r.guest.pulse(MSI).unwrap();
        r.set_xive(MSI, 1, 5);
        r.call(0, H_CPPR, &[0]);
        assert_eq!(r.xirr(1), r.by_level(0xff00_0000, 0xff00_1300));
    });
}

/// F-XICS-MASKED (S09).
#[test]
fn a_rejected_message_that_is_masked() {
    with_xics(|r| {
        r.call(0, H_CPPR, &[0]);
        r.guest.pulse(MSI).unwrap();
        r.rtas(RtasCall::IntOff, &[MSI], 1);
        r.call(0, H_CPPR, &[0xff]);
        r.rtas(RtasCall::IntOn, &[MSI], 1);
        assert_eq!(r.xirr(0), r.by_level(0xff00_0000, 0xff00_1300));
    });
}

/// F-XICS-FREE.
#[test]
fn a_number_freed_and_claimed_again_in_xics() {
    with_xics(|r| {
        r.guest.free(MSI).unwrap();
        assert!(r.guest.claim(MSI, false).unwrap());
        let want = [0, 0, r.by_level(0, 0xff)];
        assert_eq!(r.rtas(RtasCall::GetXive, &[MSI], 3), want);
    });
}

/// F-XIRR-WRONG-MODE.
#[test]
fn h_xirr_under_xive() {
    with_xics(|r| {
        r.call(0, H_CPPR, &[5]);
        assert_eq!(r.cas(0x40), (0, true));
        assert_eq!(r.call(0, H_XIRR, &[7]), (-1, [7, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(r.cas(0), (0, false));
        assert_eq!(r.xirr(0), r.by_level(0xff00_0000, 0x0500_0000));
    });
}

/// The same at both levels (S28).
#[test]
fn accepting_nothing_opens_the_vcpu() {
    with_xics(|r| {
        r.call(0, H_CPPR, &[5]);
        assert_eq!(r.call(0, H_XIRR, &[]).1[0], 0x0500_0000);
        assert_eq!(r.xirr(0), 0xff00_0000);
    });
}

/// F-XIVE-RESET.
#[test]
fn h_int_reset() {
    with_xive(|r| {
        r.load(MSI, SET_00);
        assert_eq!(r.call(0, H_INT_RESET, &[0]).0, 0);
        assert_eq!(
            r.call(0, GET_QUEUE_CONFIG, &[0, 0, 6]).1[2],
            r.by_level(12, 0)
        );
        assert_eq!(
            r.call(0, GET_SOURCE_CONFIG, &[0, MSI.into()]).1[1],
            r.by_level(6, 0xff)
        );
        assert_eq!(r.load(MSI, GET), r.by_level(0, 1));
        assert_eq!(
            r.guest.load(0, Space::Tima, RING, 8).unwrap() >> 48,
            0xff,
            "CPPR stays"
        );
    });
}

/// F-XIVE-GENERATION.
#[test]
fn the_generation_of_a_queue() {
    with_xive(|r| {
        let flags = r.call(0, GET_QUEUE_CONFIG, &[1, 0, 6]).1[0];
        assert_eq!(flags, 1 | r.by_level(1 << 62, 2));
    });
}

/// F-XIVE-ESB-SIZE.
#[test]
fn small_accesses_to_source_pages() {
    with_xive(|r| {
        let at = (u64::from(MSI) << 17) + GET;
        for size in [1, 2, 4] {
            assert_eq!(
                r.guest.load(0, Space::Esb, at, size).unwrap(),
                r.by_level(0, 1)
            );
        }
        r.load(MSI, SET_00);
        r.guest
            .store(0, Space::Esb, u64::from(MSI) << 17, 4, 0)
            .unwrap();
        assert_eq!(r.entries(), r.by_level(0, 1));
    });
}

/// F-XIVE-INJECT.
#[test]
fn a_store_to_the_inject_offset() {
    with_xive(|r| {
        r.store(MSI, INJECT);
        assert_eq!((r.entries(), r.load(MSI, GET)), (r.by_level(1, 0), 1));
    });
}

/// F-RECLAIM.
#[test]
fn a_number_freed_and_claimed_again_in_xive() {
    with_xive(|r| {
        r.load(MSI, SET_00);
        r.guest.free(MSI).unwrap();
        assert!(r.guest.claim(MSI, false).unwrap());
        assert_eq!(r.load(MSI, GET), r.by_level(0, 1));
        let config = r.call(0, GET_SOURCE_CONFIG, &[0, MSI.into()]).1;
        assert_eq!((config[1], config[2]), (0xff, r.by_level(EISN.into(), 0)));
    });
}

/// F-XIVE-LSI-EOI.
#[test]
fn an_lsi_with_a_queued_event_ends_while_high() {
    with_xive(|r| {
        r.guest.set_level(LSI, true).unwrap();
        r.load(LSI, SET_11);
        assert_eq!(r.load(LSI, EOI), r.by_level(0, 1));
        assert_eq!((r.load(LSI, GET), r.entries()), (2, r.by_level(0, 1)));
    });
}

/// F-XIVE-LSI-READY.
#[test]
fn an_lsi_is_unmasked_while_high() {
    with_xive(|r| {
        r.load(LSI, SET_01);
        r.guest.set_level(LSI, true).unwrap();
        assert_eq!(r.load(LSI, SET_00), 1);
        assert_eq!((r.load(LSI, GET), r.entries()), r.by_level((0, 0), (2, 1)));
        // An EOI finds the level at both.
        r.load(LSI, EOI);
        assert_eq!(r.entries(), r.by_level(1, 2));
    });
}

/// F-ESB-SWAP, F-ESB-BOUND.
#[test]
fn h_int_esb_returns_the_number_and_stays_in_its_source() {
    with_xive(|r| {
        r.load(OTHER, SET_00);
        assert_eq!(r.call(0, H_INT_ESB, &[0, MSI.into(), 0x800]).1[0], 1);
        for offset in [0x10000, 0x1fff8, 0x20000, 0x20008, u64::MAX - 7] {
            assert_eq!(
                r.call(0, H_INT_ESB, &[1, MSI.into(), offset]).0,
                -56,
                "{offset:#x}"
            );
        }
        assert_eq!(r.call(0, H_INT_ESB, &[0, MSI.into(), 0x804]).0, -1);
        assert_eq!(r.load(OTHER, GET), 0, "the next source is untouched");
    });
}

/// F-QUEUE-RAM.
#[test]
fn a_queue_must_lie_in_ram() {
    with_xive(|r| {
        for (page, size) in [
            (RAM, 12),
            (RAM - 0x1000, 16),
            (0x6_0100_0000_0000, 12),
            (RAM - 0x100_0000, 24),
        ] {
            let wholly_inside = page + (1 << size) <= RAM;
            let want = if wholly_inside { 0 } else { -57 };
            assert_eq!(
                r.call(0, SET_QUEUE_CONFIG, &[1, 0, 5, page, size]).0,
                want,
                "{page:#x} {size}"
            );
        }
    });
}

/// F-TIMA-PAGES.
#[test]
fn only_the_os_page_of_the_thread_context_answers() {
    with_xive(|r| {
        for page in [0, 0x10000, 0x30000] {
            assert_eq!(
                r.guest.load(0, Space::Tima, page + 0x10, 8).unwrap(),
                u64::MAX
            );
            r.guest.store(0, Space::Tima, page + 0x11, 1, 3).unwrap();
        }
        assert_eq!(
            r.guest.load(0, Space::Tima, RING, 8).unwrap(),
            0x00ff_00ff_ff00_00ff
        );
    });
}

/// F-MMIO-XICS.
#[test]
fn source_pages_and_thread_context_answer_only_under_xive() {
    everywhere(IcMode::Dual, |r| {
        for reset in [false, true] {
            if reset {
                r.guest.machine_reset().unwrap();
            }
            assert_eq!((r.load(MSI, GET), r.load(MSI, TRIGGER)), (0, 0));
            assert_eq!(r.guest.load(0, Space::Tima, RING, 8).unwrap(), 0);
            assert_eq!(r.cas(0x40), (0, true));
            assert_eq!((r.load(MSI, GET), r.load(MSI, TRIGGER)), (1, u64::MAX));
        }
    });
}

/// F-CAS-EXIT.
#[test]
fn a_mode_the_machine_does_not_have_is_refused() {
    for (ic_mode, impossible) in [
        (IcMode::Xics, 0x40),
        (IcMode::Xive, 0),
        (IcMode::Dual, 0x80),
    ] {
        everywhere(ic_mode, |r| {
            let before = ic_mode == IcMode::Xive;
            for byte in [impossible, 0x80, 0xc0] {
                assert_eq!(r.cas(byte), (-4, before), "{byte:#x}");
            }
            let possible = if before { 0x40 } else { 0 };
            assert_eq!(r.cas(possible), (0, before));
        });
    }
}

/// F-CAS-LEVELS.
#[test]
fn levels_and_lines_follow_the_active_controller() {
    with_xics(|r| {
        r.guest.set_level(LSI, true).unwrap();
        r.call(0, H_IPI, &[0, 4]);
        assert!(r.guest.line(0).unwrap());
        assert_eq!(r.cas(0x40), (0, true));
        assert!(!r.guest.line(0).unwrap());
        assert_eq!(r.call(0, SET_QUEUE_CONFIG, &[1, 0, 6, QUEUE, 12]).0, 0);
        r.route(LSI);
        r.load(LSI, SET_00);
        r.load(LSI, EOI);
        assert_ne!(r.entries(), 0, "XIVE knows the level");
        r.guest.set_level(LSI, false).unwrap();
        assert_eq!(r.cas(0), (0, false));
        assert!(r.guest.line(0).unwrap(), "the IPI is still there");
        assert_eq!(r.guest.ics(LSI).unwrap().status, 0, "XICS knows the level");
    });
}
