//! XICS against the model: all six hypercalls, four RTAS calls, triggers, levels, claims, vCPUs, resets.

use papr_intc_protocol::layout::words::icp;
use papr_intc_protocol::layout::{Compat, IcMode, Page, Storage};
use papr_intc_protocol::papr::codes::RtasCall;
use papr_intc_protocol::papr::{dispatch, xics};
use proptest::prelude::*;
use std::sync::atomic::Ordering;

use super::model::machine::Rtas;
use super::{ABSENT, Pair, SERVERS, XICS_BASE, config};

/// The sources in play, on both sides of the boundaries of the pending index. Even ones start as MSIs,
/// every third as an LSI, the last one is not claimed.
const PLAYED: [u32; 9] = [0, 1, 2, 62, 63, 64, 65, 127, 159];

#[derive(Clone, Debug)]
enum Op {
    Device {
        n: usize,
        level: bool,
    },
    Hcall {
        server: u32,
        opcode: u64,
        r4: u64,
        r5: u64,
    },
    Rtas {
        call: u8,
        args: Vec<u32>,
        nret: u32,
    },
    Claim {
        n: usize,
        lsi: bool,
    },
    Free {
        n: usize,
    },
    Connect {
        server: u32,
        connected: bool,
    },
    VcpuReset {
        server: u32,
    },
    MachineReset,
    Quiesced {
        events: Vec<(usize, bool)>,
    },
}

fn priority() -> impl Strategy<Value = u8> {
    prop_oneof![6 => 0u8..8, 3 => Just(0xff), 1 => any::<u8>()]
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        12 => (0..PLAYED.len()).prop_map(|i| XICS_BASE + PLAYED[i]),
        1 => prop_oneof![Just(0), Just(2), Just(XICS_BASE - 1), Just(XICS_BASE + 160), any::<u32>()],
    ]
}

fn hcall() -> impl Strategy<Value = Op> {
    let server = 0..SERVERS;
    let target = prop_oneof![9 => (0..SERVERS).prop_map(u64::from), 1 => any::<u64>()];
    let eoi =
        (priority(), number()).prop_map(|(p, n)| u64::from(p) << 24 | u64::from(n & 0xff_ffff));
    prop_oneof![
        4 => (server.clone(), any::<u64>()).prop_map(|(server, r4)| (server, 0x74, r4, 0)),
        1 => server.clone().prop_map(|server| (server, 0x2fc, 0, 0)),
        5 => (server.clone(), eoi).prop_map(|(server, r4)| (server, 0x64, r4, 0)),
        4 => (server.clone(), priority()).prop_map(|(server, p)| (server, 0x68, u64::from(p), 0)),
        4 => (server.clone(), target.clone(), priority())
            .prop_map(|(server, r4, p)| (server, 0x6c, r4, u64::from(p))),
        1 => (server, target).prop_map(|(server, r4)| (server, 0x70, r4, 0)),
    ]
    .prop_map(|(server, opcode, r4, r5)| Op::Hcall {
        server,
        opcode,
        r4,
        r5,
    })
}

fn rtas() -> impl Strategy<Value = Op> {
    let priority = prop_oneof![20 => priority().prop_map(u32::from), 1 => any::<u32>()];
    let set = (
        number(),
        prop_oneof![20 => 0..SERVERS, 1 => any::<u32>()],
        priority,
    )
        .prop_map(|(n, server, p)| (0, vec![n, server, p], 1));
    let other =
        (1u8..4, number()).prop_map(|(call, n)| (call, vec![n], if call == 1 { 3 } else { 1 }));
    let wrong = (0u8..4, prop::collection::vec(number(), 0..4), 0u32..4);
    prop_oneof![8 => set, 6 => other, 1 => wrong].prop_map(|(call, args, nret)| Op::Rtas {
        call,
        args,
        nret,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..PLAYED.len();
    let server = 0..SERVERS;
    prop_oneof![
        300 => (n.clone(), any::<bool>()).prop_map(|(n, level)| Op::Device { n, level }),
        600 => hcall(),
        300 => rtas(),
        12 => (n.clone(), any::<bool>()).prop_map(|(n, lsi)| Op::Claim { n, lsi }),
        8 => n.prop_map(|n| Op::Free { n }),
        10 => (server.clone(), any::<bool>()).prop_map(|(server, connected)| Op::Connect { server, connected }),
        4 => server.prop_map(|server| Op::VcpuReset { server }),
        1 => Just(Op::MachineReset),
        20 => prop::collection::vec((0..PLAYED.len(), any::<bool>()), 0..4).prop_map(|events| Op::Quiesced { events }),
    ]
}

impl Pair {
    fn xics(compat: Compat) -> Pair {
        let mut pair = Pair::new(IcMode::Xics, compat);
        for n in 0..PLAYED.len() - 1 {
            pair.claim(n, n % 3 == 2);
        }
        for server in (0..SERVERS).filter(|s| *s != ABSENT) {
            pair.c().xics.set_cppr(server, 0xff);
            pair.model
                .hcall(server, 0x68, [0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        pair
    }

    fn claim(&mut self, n: usize, lsi: bool) {
        let lisn = XICS_BASE + PLAYED[n];
        if self.model.claim(lisn, lsi) {
            self.c().xics.claim(lisn, lsi);
        }
    }

    fn connected(&self, server: u32) -> bool {
        self.c().xics.is_connected(server)
    }

    fn perform(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Device { n, level } => {
                let lisn = XICS_BASE + PLAYED[n];
                let c = self.plane.controller();
                if c.xics.source(lisn).unwrap().lsi {
                    c.set_level(lisn, papr_intc_protocol::plane::LevelInput::Vmm, level);
                    self.model.set_level(lisn, level);
                } else {
                    c.trigger(lisn);
                    self.model.pulse(lisn);
                }
            }
            Op::Hcall {
                server,
                opcode,
                r4,
                r5,
            } if self.connected(server) => {
                let mut args = [r4, r5, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc];
                let want = self.model.hcall(server, opcode, args);
                let ret = dispatch::local_hcall(&self.c(), server, opcode, &mut args, 0);
                prop_assert_eq!((ret, args), (Some(want.0), want.1));
            }
            Op::Hcall { .. } => {}
            Op::Rtas {
                call,
                ref args,
                nret,
            } => {
                let (ours, theirs) = [
                    (RtasCall::SetXive, Rtas::SetXive),
                    (RtasCall::GetXive, Rtas::GetXive),
                    (RtasCall::IntOn, Rtas::IntOn),
                    (RtasCall::IntOff, Rtas::IntOff),
                ][call as usize];
                let cells = xics::rtas(&self.c().xics, ours, args, nret);
                prop_assert_eq!(cells.cells(), &self.model.rtas(theirs, args, nret)[..]);
            }
            Op::Claim { n, lsi } => self.claim(n, lsi),
            Op::Free { n } => {
                let lisn = XICS_BASE + PLAYED[n];
                if self.c().xics.source(lisn).unwrap().claimed {
                    self.c().xics.free(lisn).unwrap();
                    self.model.free(lisn);
                }
            }
            Op::Connect { server, connected } if self.connected(server) != connected => {
                self.connect(server, connected);
            }
            Op::Connect { .. } => {}
            Op::VcpuReset { server } => {
                self.c().xics.vcpu_reset(server);
                self.model.vcpu_reset(server);
            }
            Op::Quiesced { ref events } => {
                // The daemon and the front-end refuse devices without a claim.
                let claimed =
                    |n: usize| self.c().xics.source(XICS_BASE + PLAYED[n]).unwrap().claimed;
                let events = events.iter().filter(|e| claimed(e.0));
                let events: Vec<_> = events.map(|e| (XICS_BASE + PLAYED[e.0], e.1)).collect();
                self.quiesced(&PLAYED.map(|n| XICS_BASE + n), &events);
            }
            Op::MachineReset => {
                let c = self.plane.controller();
                c.xics.reset();
                PLAYED.iter().for_each(|n| c.replay(XICS_BASE + n));
                self.model.reset();
            }
        }
        self.check_xics()?;
        self.check_lines()
    }

    /// Every register of every vCPU and everything about every source.
    fn check_xics(&self) -> Result<(), TestCaseError> {
        let (c, model) = (self.c(), self.model.xics.as_ref().unwrap());
        for server in 0..SERVERS {
            let w = self
                .plane
                .storage()
                .page(Page::Icp(server))
                .load(Ordering::Relaxed);
            let ours = (
                icp::cppr(w),
                icp::xisr(w),
                icp::pp(w),
                icp::mfrr(w),
                w & icp::CONNECTED != 0,
            );
            let m = model.icp[server as usize];
            prop_assert_eq!(
                ours,
                (m.cppr, m.xisr, m.pending, m.mfrr, m.connected),
                "vCPU {}",
                server
            );
        }
        for n in PLAYED {
            let (s, m) = (c.xics.source(XICS_BASE + n).unwrap(), model.src[n as usize]);
            let r = s.routing;
            prop_assert_eq!(
                (s.claimed, s.lsi, r.server, r.priority, r.saved, s.status),
                (m.claimed, m.lsi, m.server, m.prio, m.saved, m.status()),
                "source {:#x}",
                XICS_BASE + n
            );
        }
        Ok(())
    }
}

fn run(compat: Compat, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut pair = Pair::xics(compat);
    ops.iter().try_for_each(|op| pair.perform(op))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn xics_equals_the_model_at_qemu_7_2(ops in prop::collection::vec(op(), 1..400)) {
        run(Compat::Qemu72, &ops)?;
    }

    #[test]
    fn xics_equals_the_model_at_papr_1(ops in prop::collection::vec(op(), 1..400)) {
        run(Compat::Papr1, &ops)?;
    }
}
