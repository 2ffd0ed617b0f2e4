//! XIVE against the model: ESB and TIMA accesses, all H_INT_* calls, triggers, levels, claims, vCPUs, resets.

use papr_intc_protocol::layout::words::{eas, source, tima};
use papr_intc_protocol::layout::{Compat, IcMode, Page, Storage, Table};
use papr_intc_protocol::papr::{dispatch, xive_config};
use papr_intc_protocol::plane::LevelInput;
use proptest::prelude::*;
use std::sync::atomic::Ordering;

use super::{Pair, RAM, SERVERS, XICS_BASE, config};

/// The numbers in play: two IPIs, MSIs, two LSIs at the end; the last MSI is not claimed at the start.
const PLAYED: [u32; 8] = [
    0,
    1,
    XICS_BASE,
    XICS_BASE + 1,
    XICS_BASE + 2,
    XICS_BASE + 3,
    XICS_BASE + 4,
    XICS_BASE + 5,
];
const FIRST_LSI: usize = 6;
/// What is left when memory is taken away: some of the queues lie above.
const SOME_RAM: u64 = 0x60000;

#[derive(Clone, Debug)]
enum Op {
    Device {
        n: usize,
        level: bool,
    },
    Esb {
        n: usize,
        page: u64,
        offset: u64,
        size: u8,
        store: bool,
    },
    Burst {
        n: usize,
        count: u32,
    },
    Tima {
        server: u32,
        offset: u64,
        size: u8,
        store: Option<u64>,
    },
    Hcall {
        server: u32,
        opcode: u64,
        args: [u64; 5],
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
    /// Memory is taken from under the queues, or given back.
    Ram {
        there: bool,
    },
    Quiesced {
        events: Vec<(usize, bool)>,
    },
}

fn n() -> impl Strategy<Value = usize> + Clone {
    0..PLAYED.len()
}

fn size() -> impl Strategy<Value = u8> {
    prop_oneof![12 => Just(8u8), 1 => Just(4), 1 => Just(2), 1 => Just(1)]
}

fn esb() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![
        3 => Just(0), 2 => Just(0x800), 4 => Just(0xc00), 2 => Just(0xd00), 1 => Just(0xe00), 1 => Just(0xf00),
        1 => Just(0x400), 2 => (0u64..0x2000).prop_map(|o| o * 8),
    ];
    let page = prop_oneof![1 => Just(0u64), 3 => Just(1)];
    (n(), page, offset, size(), any::<bool>()).prop_map(|(n, page, offset, size, store)| Op::Esb {
        n,
        page,
        offset,
        size,
        store,
    })
}

fn tima() -> impl Strategy<Value = Op> {
    let access = prop_oneof![
        6 => Just((0x20810, 2u8, false)), 3 => Just((0x20010, 8, false)), 1 => Just((0x20010, 4, false)),
        1 => Just((0x20014, 4, false)), 6 => Just((0x20011, 1, true)), 3 => Just((0x20812, 1, true)),
        1 => Just((0x20010, 8, true)), 1 => Just((0x20010, 4, true)),
        2 => (0u64..0x40, 0u32..4, any::<bool>()).prop_map(|(o, s, store)| {
            let size = 1u8 << s;
            (0x20000 + (o & !(u64::from(size) - 1)), size, store)
        }),
        1 => (0u64..0x8000, 0u32..4, any::<bool>()).prop_map(|(o, s, store)| (o * 8, 1 << s, store)),
    ];
    let value = prop_oneof![4 => 0u64..8, 3 => Just(0xff), 1 => any::<u64>()];
    (0..SERVERS, access, value).prop_map(|(server, (offset, size, store), value)| Op::Tima {
        server,
        offset,
        size,
        store: store.then_some(value),
    })
}

fn lisn() -> impl Strategy<Value = u64> {
    let near = [
        2u64,
        XICS_BASE as u64 + 6,
        XICS_BASE as u64 + 160,
        1 << 32,
        u64::MAX,
    ];
    prop_oneof![20 => n().prop_map(|n| u64::from(PLAYED[n])), 1 => prop::sample::select(near.to_vec()), 1 => any::<u64>()]
}

fn server() -> impl Strategy<Value = u64> {
    prop_oneof![20 => (0..SERVERS).prop_map(u64::from), 1 => Just(1 << 32), 1 => Just(u64::from(SERVERS)), 1 => any::<u64>()]
}

fn prio() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 4u64..7, 2 => 0u64..9, 2 => Just(0xff), 1 => Just(0x106), 1 => any::<u64>()]
}

fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(0u64), 8 => Just(1), 8 => Just(2), 2 => Just(3), 1 => any::<u64>()]
}

fn hcall() -> impl Strategy<Value = Op> {
    let eisn = prop_oneof![1u64..100, any::<u64>()];
    let page = prop_oneof![20 => (0u64..16).prop_map(|p| p << 16), 1 => Just(RAM), 1 => Just(0x800), 1 => any::<u64>()];
    let log2 = prop_oneof![12 => Just(12u64), 3 => Just(16), 1 => Just(0), 1 => Just(13), 1 => Just(21), 1 => any::<u64>()];
    let offset = prop_oneof![6 => Just(0u64), 4 => Just(0xc00), 2 => Just(0xd00), 2 => (0u64..0x1000).prop_map(|o| o * 8),
        1 => 0u64..0x30000, 1 => any::<u64>()];
    let set_queue = (flags(), server(), prio(), page, log2)
        .prop_map(|(f, s, p, a, z)| (0x3b8, [f & !2, s, p, a, z]));
    let set_source = (flags(), lisn(), server(), prio(), eisn)
        .prop_map(|(f, l, s, p, e)| (0x3ac, [f, l, s, p, e]));
    let call = (flags(), lisn(), offset).prop_map(|(f, l, o)| (0x3c8, [f & !2, l, o, 5, 6]));
    let sources = prop::sample::select(vec![0x3a8u64, 0x3b0, 0x3cc, 0x3c0, 0x3c4]);
    let look = (sources, flags(), lisn()).prop_map(|(op, f, l)| (op, [f & !3, l, 7, 8, 9]));
    let queues = prop::sample::select(vec![0x3b4u64, 0x3bc]);
    let queue =
        (queues, flags(), server(), prio()).prop_map(|(op, f, s, p)| (op, [f & !2, s, p, 8, 9]));
    let reset = flags().prop_map(|f| (0x3d0, [f, 5, 6, 7, 8]));
    let wrong = (0u64..0x40, flags(), lisn()).prop_map(|(o, f, l)| (0x3a0 + o, [f, l, 0, 6, 7]));
    (0..SERVERS, prop_oneof![8 => set_queue, 10 => set_source, 8 => call, 4 => look, 4 => queue, 1 => reset, 1 => wrong])
        .prop_map(|(server, (opcode, args))| Op::Hcall { server, opcode, args })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        200 => (n(), any::<bool>()).prop_map(|(n, level)| Op::Device { n, level }),
        300 => esb(),
        8 => (n(), prop_oneof![4 => 1u32..8, 1 => 1000u32..1100]).prop_map(|(n, count)| Op::Burst { n, count }),
        300 => tima(),
        400 => hcall(),
        10 => (2..PLAYED.len(), any::<bool>()).prop_map(|(n, lsi)| Op::Claim { n, lsi }),
        8 => (2..PLAYED.len()).prop_map(|n| Op::Free { n }),
        8 => (0..SERVERS, any::<bool>()).prop_map(|(server, connected)| Op::Connect { server, connected }),
        4 => (0..SERVERS).prop_map(|server| Op::VcpuReset { server }),
        1 => Just(Op::MachineReset),
        8 => prop::bool::weighted(0.7).prop_map(|there| Op::Ram { there }),
        20 => prop::collection::vec((n(), any::<bool>()), 0..4).prop_map(|events| Op::Quiesced { events }),
    ]
}

impl Pair {
    fn xive(compat: Compat) -> Pair {
        let mut pair = Pair::new(IcMode::Xive, compat);
        pair.model.cas(&CHOOSE_XIVE);
        for (n, lisn) in PLAYED
            .into_iter()
            .enumerate()
            .filter(|(n, _)| *n != FIRST_LSI - 1)
        {
            pair.claim_xive(lisn, n >= FIRST_LSI);
        }
        pair
    }

    fn claim_xive(&mut self, lisn: u32, lsi: bool) {
        if self.model.claim(lisn, lsi) {
            let c = self.c();
            // As the daemon does it.
            if c.machine.compat == Compat::Papr1 {
                c.xive.reset_source(lisn);
            }
            c.xive.claim(lisn, lsi);
        }
    }

    fn access(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let c = self.plane.controller();
        match *op {
            // The daemon and the front-end refuse devices without a claim.
            Op::Device { n, .. } if c.xive.source_config(PLAYED[n].into()).is_none() => {}
            Op::Device { n, level } if c.xive.is_lsi(PLAYED[n]) => {
                c.set_level(PLAYED[n], LevelInput::Vmm, level);
                self.model.set_level(PLAYED[n], level);
            }
            Op::Device { n, .. } => {
                c.trigger(PLAYED[n]);
                self.model.pulse(PLAYED[n]);
            }
            Op::Esb {
                n,
                page,
                offset,
                size,
                store,
            } => {
                let at = u64::from(PLAYED[n]) << 17 | page << 16 | offset;
                if store {
                    dispatch::esb_store(&c, at, size, 0x5a);
                    self.model.esb_store(at, size);
                } else {
                    prop_assert_eq!(
                        dispatch::esb_load(&c, at, size),
                        self.model.esb_load(at, size)
                    );
                }
            }
            Op::Burst { n, count } => {
                for _ in 0..count {
                    let (trigger, eoi) = (
                        u64::from(PLAYED[n]) << 17,
                        u64::from(PLAYED[n]) << 17 | 0x10000,
                    );
                    dispatch::esb_store(&c, trigger, 8, 0);
                    self.model.esb_store(trigger, 8);
                    prop_assert_eq!(dispatch::esb_load(&c, eoi, 8), self.model.esb_load(eoi, 8));
                }
            }
            Op::Tima {
                server,
                offset,
                size,
                store,
            } if c.xive.is_connected(server) => match store {
                Some(value) => {
                    dispatch::tima_store(&c, server, offset, size, value);
                    self.model.tima_store(server, offset, size, value);
                }
                None => {
                    let want = self.model.tima_load(server, offset, size);
                    prop_assert_eq!(dispatch::tima_load(&c, server, offset, size), want);
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn call(&mut self, server: u32, opcode: u64, registers: [u64; 5]) -> Result<(), TestCaseError> {
        let mut args = [0x99; 9];
        args[..5].copy_from_slice(&registers);
        let want = self.model.hcall(server, opcode, args);
        let c = self.plane.controller();
        let ram = |gpa: u64, bytes: u64| self.plane.host().mem.borrow().contains(gpa, bytes);
        let ret = dispatch::local_hcall(&c, server, opcode, &mut args, 0)
            .or_else(|| xive_config::config(&c.xive, opcode, &mut args, &ram));
        prop_assert_eq!((ret, args), (Some(want.0), want.1));
        Ok(())
    }

    fn configure(&mut self, op: &Op) {
        match *op {
            Op::Claim { n, lsi } => self.claim_xive(PLAYED[n], lsi),
            Op::Free { n } if self.c().xive.source_config(PLAYED[n].into()).is_some() => {
                self.c().xive.free(PLAYED[n]).unwrap();
                self.model.free(PLAYED[n]);
            }
            Op::Connect { server, connected }
                if self.c().xive.is_connected(server) != connected =>
            {
                self.connect(server, connected);
            }
            Op::VcpuReset { server } => {
                self.c().xive.vcpu_reset(server);
                self.model.vcpu_reset(server);
            }
            Op::Ram { there } => {
                let size = if there { RAM } else { SOME_RAM };
                self.plane.host().mem.borrow_mut().resize(size);
                self.model.mem.resize(size);
            }
            Op::Quiesced { ref events } => {
                let claimed = |n: usize| self.c().xive.source_config(PLAYED[n].into()).is_some();
                let events = events.iter().filter(|e| claimed(e.0));
                let events: Vec<_> = events.map(|e| (PLAYED[e.0], e.1)).collect();
                self.quiesced(&PLAYED, &events);
            }
            Op::MachineReset => {
                let c = self.plane.controller();
                PLAYED.iter().for_each(|lisn| c.xive.reset_source(*lisn));
                (0..c.geometry.ends()).for_each(|end| c.xive.reset_end(end));
                (0..SERVERS).for_each(|server| c.xive.vcpu_reset(server));
                PLAYED.iter().for_each(|lisn| c.replay(*lisn));
                self.model.reset();
                self.model.cas(&CHOOSE_XIVE);
            }
            _ => {}
        }
    }

    fn check_xive(&self) -> Result<(), TestCaseError> {
        let (c, model) = (self.c(), self.model.xive.as_ref().unwrap());
        let storage = self.plane.storage();
        for lisn in PLAYED {
            let w = storage.page(Page::Source(lisn)).load(Ordering::Relaxed);
            let e = storage.table(Table::Eas(lisn), Ordering::Relaxed);
            let m = model.src[lisn as usize];
            let valid = e & eas::VALID != 0;
            prop_assert_eq!(
                (w & source::PQ, w & source::ASSERTED != 0),
                (m.pq.into(), m.asserted),
                "source {:#x}",
                lisn
            );
            prop_assert_eq!(
                (valid, w & source::FORWARDS),
                (m.valid, 0),
                "source {:#x}",
                lisn
            );
            if valid {
                let end = m.server * 8 + u32::from(m.prio);
                let ours = (e & eas::MASKED != 0, eas::end(e), eas::eisn(e));
                prop_assert_eq!(ours, (m.masked, end, m.eisn), "source {:#x}", lisn);
            }
        }
        for (end, m) in model.end.iter().enumerate() {
            let e = c.xive.end(end as u32);
            prop_assert_eq!((e.valid, e.esn), (m.valid, m.esn), "END {:#x}", end);
            let ours = (
                e.always_notify,
                e.address,
                u64::from(e.size),
                u64::from(e.index),
                u32::from(e.generation),
            );
            prop_assert_eq!(
                ours,
                (m.always, m.page, m.size, m.index, m.generation),
                "END {:#x}",
                end
            );
        }
        for server in 0..SERVERS {
            let r = storage.page(Page::Tima(server)).load(Ordering::Relaxed);
            let m = model.ring[server as usize];
            let ours = (
                tima::nsr(r),
                tima::cppr(r),
                tima::ipb(r),
                tima::pipr(r),
                r & tima::CONNECTED != 0,
            );
            prop_assert_eq!(
                ours,
                (m.nsr, m.cppr, m.ipb, m.pipr, m.connected),
                "vCPU {}",
                server
            );
        }
        Ok(())
    }
}

/// Option vector 5: 24 bytes, number 23 chooses XIVE.
const CHOOSE_XIVE: [u8; 25] = {
    let mut ov5 = [0; 25];
    ov5[0] = 23;
    ov5[23] = 0x40;
    ov5
};

fn run(compat: Compat, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut pair = Pair::xive(compat);
    for op in ops {
        match *op {
            Op::Hcall {
                server,
                opcode,
                args,
            } if pair.c().xive.is_connected(server) => {
                pair.call(server, opcode, args)?;
            }
            Op::Claim { .. }
            | Op::Free { .. }
            | Op::Connect { .. }
            | Op::VcpuReset { .. }
            | Op::MachineReset
            | Op::Ram { .. }
            | Op::Quiesced { .. } => {
                pair.configure(op);
            }
            _ => pair.access(op)?,
        }
        pair.check_entries()?;
        pair.check_xive()?;
        pair.check_lines()?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn xive_equals_the_model_at_qemu_7_2(ops in prop::collection::vec(op(), 1..400)) {
        run(Compat::Qemu72, &ops)?;
    }

    #[test]
    fn xive_equals_the_model_at_papr_1(ops in prop::collection::vec(op(), 1..400)) {
        run(Compat::Papr1, &ops)?;
    }
}
