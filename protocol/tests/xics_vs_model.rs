//! Random operations on the XICS plane, sequentially, after each of them:
//!
//! * at `qemu-7.2`: results, ICPs, sources and lines equal those of a slow restatement of QEMU's
//!   rules that scans every source and has no index;
//! * at `papr-1`: the invariants that this level promises (SPEC.md chapter 3, XICS invariants).
//!
//! Sizes with one, two and three levels of pending index.

#[path = "xics_model/mod.rs"]
mod model;

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use model::{Kind, Model};
use papr_intc_protocol::layout::plain::PlainStorage;
use papr_intc_protocol::layout::words::{icp, ics};
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine, Page, Storage};
use papr_intc_protocol::papr::codes::{RtasCall, opcode};
use papr_intc_protocol::papr::xics::{local, rtas};
use papr_intc_protocol::plane::xics::Xics;
use papr_intc_protocol::plane::{Host, LevelInput, LockOwner};
use proptest::prelude::*;

const SERVERS: u32 = 4;
const BASE: u32 = 16;
/// Sources in use: every third is an LSI.
const USED: usize = 12;

/// What the guest, the devices and the VMM may do. Sources are places in the list of those used.
#[derive(Clone, Copy, Debug)]
enum Op {
    Trigger(usize),
    Level(usize, LevelInput, bool),
    Xirr(u32),
    Eoi(u32, u8, u32),
    EoiOf(u32, u8, usize),
    Cppr(u32, u8),
    Ipi(u32, u32, u8),
    Poll(u32),
    SetXive(usize, u32, u8),
    IntOff(usize),
    IntOn(usize),
    GetXive(usize),
    Disconnect(u32),
    Connect(u32),
    Reset(u32),
    Free(usize),
    Claim(usize),
}

fn ops(length: usize) -> impl Strategy<Value = Vec<(bool, Op)>> {
    let s = || 0..USED;
    let k = || 0..SERVERS;
    let p = || prop::sample::select(vec![0u8, 1, 3, 4, 5, 5, 6, 7, 0xff, 0xff]);
    let input = prop::sample::select(vec![LevelInput::Vmm, LevelInput::Irqfd]);
    let op = prop_oneof![
        7 => s().prop_map(Op::Trigger),
        4 => (s(), input, any::<bool>()).prop_map(|(n, i, v)| Op::Level(n, i, v)),
        6 => k().prop_map(Op::Xirr),
        1 => (k(), p(), 0u32..4).prop_map(|(k, p, x)| Op::Eoi(k, p, x)),
        6 => (k(), p(), s()).prop_map(|(k, p, n)| Op::EoiOf(k, p, n)),
        6 => (k(), p()).prop_map(|(k, p)| Op::Cppr(k, p)),
        3 => (k(), 0..=SERVERS, p()).prop_map(|(k, t, p)| Op::Ipi(k, t, p)),
        1 => (0..=SERVERS).prop_map(Op::Poll),
        5 => (s(), k(), p()).prop_map(|(n, k, p)| Op::SetXive(n, k, p)),
        2 => s().prop_map(Op::IntOff),
        2 => s().prop_map(Op::IntOn),
        1 => s().prop_map(Op::GetXive),
        1 => k().prop_map(Op::Disconnect),
        2 => k().prop_map(Op::Connect),
        1 => k().prop_map(Op::Reset),
        1 => s().prop_map(Op::Free),
        3 => s().prop_map(Op::Claim),
    ];
    prop::collection::vec((any::<bool>(), op), 1..=length)
}

/// Checks the host's side of the bargain: every operation ends with an empty journal.
#[derive(Default)]
struct Watch {
    daemon: bool,
    journal: Cell<(u32, u32)>,
    resampled: Cell<u32>,
}

impl Host for Watch {
    fn write_queue_entry(&self, _: u64, _: u32) -> bool {
        unreachable!("XICS has no event queues")
    }
    fn kick(&self, server: u32) {
        assert!(server < SERVERS);
    }
    fn lock_owner(&self) -> LockOwner {
        if self.daemon {
            LockOwner::Daemon {
                generation: 1,
                worker: 0,
            }
        } else {
            LockOwner::FrontEnd
        }
    }
    fn journal(&self, token: u32, victim: u32) {
        self.journal.set((token, victim));
    }
    fn resample(&self, irq: u32) {
        self.resampled.set(irq);
    }
    fn contended(&self, irq: u32) {
        panic!("nobody contends for source {irq:#x}");
    }
}

struct Bench {
    storage: PlainStorage,
    machine: Machine,
    geometry: Geometry,
    hosts: [Watch; 2],
    /// Global numbers in use, ascending.
    used: Vec<u32>,
    kinds: Vec<Kind>,
}

impl Bench {
    fn new(compat: Compat, ics_sources: u32) -> Self {
        let machine = Machine {
            sources: BASE + ics_sources,
            xics_base: BASE,
            ..Machine::pseries(IcMode::Xics, compat, SERVERS)
        };
        let geometry = machine.geometry().unwrap();
        // Neighbours, both ends, and all over the range.
        let mut used: Vec<u32> = (0..USED as u32 - 5)
            .map(|i| BASE + (u64::from(ics_sources) * u64::from(i) / (USED as u64 - 5)) as u32)
            .chain([1, 2, ics_sources - 3, ics_sources - 2, ics_sources - 1].map(|i| BASE + i))
            .collect();
        used.sort_unstable();
        used.dedup();
        // Small machines: fill up with what is free.
        let mut spare = BASE..;
        while used.len() < USED {
            let irq = spare.next().unwrap();
            if !used.contains(&irq) {
                used.push(irq);
                used.sort_unstable();
            }
        }
        let kinds = (0..USED)
            .map(|i| if i % 3 == 2 { Kind::Lsi } else { Kind::Msi })
            .collect();
        let bench = Self {
            storage: PlainStorage::new(geometry),
            machine,
            geometry,
            hosts: [
                Watch::default(),
                Watch {
                    daemon: true,
                    ..Watch::default()
                },
            ],
            used,
            kinds,
        };
        let xics = bench.xics(true);
        xics.create();
        for server in 0..SERVERS {
            xics.connect(server);
        }
        for (i, irq) in bench.used.iter().enumerate() {
            xics.claim(*irq, bench.kinds[i] == Kind::Lsi);
        }
        bench
    }

    fn xics(&self, daemon: bool) -> Xics<'_, PlainStorage, Watch> {
        Xics::new(
            &self.storage,
            &self.hosts[usize::from(daemon)],
            &self.machine,
            &self.geometry,
        )
    }

    /// Runs an operation as a guest or a device would; what comes back in registers or cells.
    fn run(&self, daemon: bool, op: Op) -> Vec<u64> {
        let xics = self.xics(daemon);
        let irq = |n: usize| self.used[n];
        let hcall = |server, opcode, a0: u64, a1: u64| {
            let mut args = [a0, a1, 7, 8, 9, 10, 11, 12, 13];
            let code = local(&xics, server, opcode, &mut args, 0x1234).unwrap();
            assert_eq!(args[2..], [7, 8, 9, 10, 11, 12, 13]);
            vec![code as u64, args[0], args[1]]
        };
        let call = |call, args: &[u32], nret| {
            let reply = rtas(&xics, call, args, nret);
            reply.cells().iter().map(|c| u64::from(*c)).collect()
        };
        let done = vec![];
        let result = match op {
            Op::Trigger(n) => {
                xics.trigger(irq(n));
                done
            }
            Op::Level(n, input, level) => {
                xics.set_level(irq(n), input, level);
                done
            }
            Op::Xirr(k) if daemon => hcall(k, opcode::H_XIRR_X, 0, 0),
            Op::Xirr(k) => hcall(k, opcode::H_XIRR, 0, 0),
            Op::Eoi(k, p, x) => hcall(k, opcode::H_EOI, u64::from(p) << 24 | u64::from(x), 0),
            Op::EoiOf(k, p, n) => {
                let xirr = u64::from(p) << 24 | u64::from(irq(n));
                hcall(k, opcode::H_EOI, 5 << 32 | xirr, 0)
            }
            Op::Cppr(k, p) => hcall(k, opcode::H_CPPR, 0xab00 | u64::from(p), 0),
            Op::Ipi(k, t, p) => hcall(
                k,
                opcode::H_IPI,
                7 << 32 | u64::from(t),
                0x100 | u64::from(p),
            ),
            Op::Poll(t) => hcall(0, opcode::H_IPOLL, u64::from(t), 0),
            Op::SetXive(n, k, p) => call(RtasCall::SetXive, &[irq(n), k, u32::from(p)], 1),
            Op::IntOff(n) => call(RtasCall::IntOff, &[irq(n)], 1),
            Op::IntOn(n) => call(RtasCall::IntOn, &[irq(n)], 1),
            Op::GetXive(n) => call(RtasCall::GetXive, &[irq(n)], 3),
            Op::Disconnect(k) => {
                xics.disconnect(k);
                done
            }
            Op::Connect(k) => {
                xics.connect(k);
                done
            }
            Op::Reset(k) => {
                xics.vcpu_reset(k);
                done
            }
            Op::Free(n) => {
                xics.free(irq(n)).unwrap();
                done
            }
            Op::Claim(n) => {
                xics.claim(irq(n), self.kinds[n] == Kind::Lsi);
                done
            }
        };
        for host in &self.hosts {
            assert_eq!(host.journal.get(), (0, 0), "journal left by {op:?}");
            let due = host.resampled.take();
            if due != 0 {
                xics.resampled(due);
            }
        }
        result
    }

    fn icp(&self, server: u32) -> u64 {
        self.storage.page(Page::Icp(server)).load(Relaxed)
    }
    fn source(&self, n: usize) -> u64 {
        let at = Page::IcsSource(self.used[n] - BASE);
        self.storage.page(at).load(Relaxed)
    }

    /// I1, I2 and I7, which hold at both levels.
    fn check_words(&self) -> Result<(), TestCaseError> {
        for k in 0..SERVERS {
            let i = self.icp(k);
            prop_assert_eq!(
                icp::xisr(i) == 0,
                icp::pp(i) == 0xff,
                "I1 of {}: {:x}",
                k,
                i
            );
        }
        for n in 0..USED {
            let w = self.source(n);
            let foreign = match self.kinds[n] {
                Kind::Msi => ics::ASSERTED | ics::SENT,
                Kind::Lsi => ics::REJECTED | ics::MASKED_PENDING,
            };
            prop_assert_eq!(w & foreign, 0, "I7 of {:x}: {:x}", self.used[n], w);
            prop_assert_eq!(w & ics::RESAMPLE_DUE, 0);
            if pending(w) {
                prop_assert!(self.indexed(n), "I2 of {:x}: {:x}", self.used[n], w);
            }
        }
        Ok(())
    }

    /// Leaf, mid and root bit of a source are set.
    fn indexed(&self, n: usize) -> bool {
        let index = self.used[n] - BASE;
        let bit = |at, bit: u32| self.storage.page(at).load(Relaxed) >> bit & 1 == 1;
        let (leaf, leaves) = (index / 64, self.geometry.leaves());
        let root = match self.machine.compat {
            Compat::Qemu72 => Page::CommonRoot,
            Compat::Papr1 => Page::PendingRoot(ics::server(self.source(n))),
        };
        let (slice, mid) = if leaves <= 64 {
            (leaf, true)
        } else {
            let mids = leaves.div_ceil(64);
            (
                leaf / 64 / mids.div_ceil(64),
                bit(Page::PendingMid(leaf / 64), leaf % 64),
            )
        };
        bit(Page::PendingLeaf(leaf), index % 64) && mid && bit(root, slice)
    }

    /// What `papr-1` promises after every operation: nothing waits that could be presented.
    fn check_nothing_stalls(&self) -> Result<(), TestCaseError> {
        for n in 0..USED {
            let w = self.source(n);
            let i = self.icp(ics::server(w));
            prop_assert!(
                !(takable(w) && presentable(i, ics::priority(w))),
                "source {:x} waits ({:x}) though its vCPU is open ({:x})",
                self.used[n],
                w,
                i
            );
            let masked_msi = w & ics::LSI == 0 && ics::priority(w) == 0xff;
            prop_assert!(!(masked_msi && w & ics::REJECTED != 0), "I7: {:x}", w);
        }
        for k in 0..SERVERS {
            let i = self.icp(k);
            let ipi_waits = icp::xisr(i) == 0 && icp::mfrr(i) < icp::cppr(i);
            prop_assert!(
                !(ipi_waits && i & icp::CONNECTED != 0),
                "IPI of {}: {:x}",
                k,
                i
            );
        }
        Ok(())
    }

    /// An MSI that was triggered and not yet accepted is in some word.
    fn check_nothing_vanished(&self, unserved: &[bool]) -> Result<(), TestCaseError> {
        for (n, _) in unserved.iter().enumerate().filter(|(_, u)| **u) {
            let recorded = self.source(n) & (ics::REJECTED | ics::MASKED_PENDING) != 0;
            let shown = (0..SERVERS).any(|k| icp::xisr(self.icp(k)) == self.used[n]);
            prop_assert!(recorded || shown, "event of {:x} vanished", self.used[n]);
        }
        Ok(())
    }
}

fn takable(w: u64) -> bool {
    let recorded = if w & ics::LSI != 0 {
        w & ics::ASSERTED != 0 && w & ics::SENT == 0
    } else {
        w & ics::REJECTED != 0
    };
    w & ics::CLAIMED != 0 && ics::priority(w) != 0xff && recorded
}
fn pending(w: u64) -> bool {
    takable(w) || w & ics::LSI == 0 && w & ics::CLAIMED != 0 && w & ics::REJECTED != 0
}
fn presentable(i: u64, p: u8) -> bool {
    i & icp::CONNECTED != 0 && p < icp::cppr(i) && (icp::xisr(i) == 0 || p < icp::pp(i))
}

fn equals_qemu(ics_sources: u32, ops: &[(bool, Op)]) -> Result<(), TestCaseError> {
    let bench = Bench::new(Compat::Qemu72, ics_sources);
    let mut model = Model::new(SERVERS, &bench.used, &bench.kinds);
    for (step, (daemon, op)) in ops.iter().enumerate() {
        let got = bench.run(*daemon, *op);
        let want = apply(&mut model, &bench, *daemon, *op);
        prop_assert_eq!(got, want, "result of step {}: {:x?}", step, op);
        for (k, want) in model.icps.iter().enumerate() {
            let i = bench.icp(k as u32);
            let got = model::Icp {
                connected: i & icp::CONNECTED != 0,
                cppr: icp::cppr(i),
                xisr: icp::xisr(i),
                pp: icp::pp(i),
                mfrr: icp::mfrr(i),
            };
            prop_assert_eq!(got, *want, "ICP {} after step {}: {:x?}", k, step, op);
            let line = bench.xics(*daemon).line(k as u32);
            prop_assert_eq!(line, want.xisr != 0);
        }
        for (n, want) in model.sources.iter().enumerate() {
            let got = bench.xics(*daemon).source(bench.used[n]).unwrap();
            prop_assert_eq!(
                (got.claimed, got.routing.server, got.routing.priority),
                (want.claimed, want.server, want.priority),
                "source {:x} after step {}: {:x?}",
                bench.used[n],
                step,
                op
            );
            prop_assert_eq!(
                (got.routing.saved, got.status),
                (want.saved, want.status),
                "source {:x} after step {}: {:x?}",
                bench.used[n],
                step,
                op
            );
        }
        bench.check_words()?;
    }
    Ok(())
}

/// The same operation on the model, with the same form of result.
fn apply(m: &mut Model, bench: &Bench, daemon: bool, op: Op) -> Vec<u64> {
    let irq = |n: usize| u64::from(bench.used[n]);
    let parameter = -4i64 as u64;
    match op {
        Op::Trigger(n) => m.pulse(n),
        Op::Level(n, input, level) => m.set_level(n, input, level),
        Op::Xirr(k) => return vec![0, u64::from(m.accept(k)), if daemon { 0x1234 } else { 0 }],
        Op::Eoi(k, p, x) => {
            m.eoi(k, p, None);
            return vec![0, u64::from(p) << 24 | u64::from(x), 0];
        }
        Op::EoiOf(k, p, n) => {
            m.eoi(k, p, Some(n));
            return vec![0, 5 << 32 | u64::from(p) << 24 | irq(n), 0];
        }
        Op::Cppr(k, p) => {
            m.set_cppr(k, p);
            return vec![0, 0xab00 | u64::from(p), 0];
        }
        Op::Ipi(_, t, p) => {
            let code = if m.set_mfrr(t, p) { 0 } else { parameter };
            return vec![code, 7 << 32 | u64::from(t), 0x100 | u64::from(p)];
        }
        Op::Poll(t) => {
            return match m.icps.get(t as usize).filter(|i| i.connected) {
                Some(i) => vec![
                    0,
                    u64::from(i.cppr) << 24 | u64::from(i.xisr),
                    u64::from(i.mfrr),
                ],
                None => vec![parameter, u64::from(t), 0],
            };
        }
        Op::SetXive(n, k, p) => {
            if !m.icps[k as usize].connected {
                return vec![u64::from(-3i32 as u32)];
            }
            m.write(n, k, p, p);
            return vec![0];
        }
        Op::IntOff(n) => {
            let s = m.sources[n];
            m.write(n, s.server, 0xff, s.priority);
            return vec![0];
        }
        Op::IntOn(n) => {
            let s = m.sources[n];
            m.write(n, s.server, s.saved, s.saved);
            return vec![0];
        }
        Op::GetXive(n) => {
            let s = m.sources[n];
            return vec![0, u64::from(s.server), u64::from(s.priority)];
        }
        Op::Disconnect(k) => m.reset_icp(k, false),
        Op::Connect(k) => m.icps[k as usize].connected = true,
        Op::Reset(k) => {
            let connected = m.icps[k as usize].connected;
            m.reset_icp(k, connected);
        }
        Op::Free(n) => m.free(n),
        Op::Claim(n) => m.sources[n].claimed = true,
    }
    vec![]
}

fn keeps_papr_invariants(ics_sources: u32, ops: &[(bool, Op)]) -> Result<(), TestCaseError> {
    let bench = Bench::new(Compat::Papr1, ics_sources);
    let mut unserved = [false; USED];
    for (daemon, op) in ops {
        let result = bench.run(*daemon, *op);
        match op {
            Op::Trigger(n) if bench.kinds[*n] == Kind::Msi => {
                unserved[*n] |= bench.source(*n) & ics::CLAIMED != 0;
            }
            Op::Free(n) => unserved[*n] = false,
            Op::Xirr(_) => {
                let xisr = result[1] as u32 & 0xff_ffff;
                if let Ok(n) = bench.used.binary_search(&xisr) {
                    unserved[n] = false;
                }
            }
            _ => {}
        }
        bench.check_words()?;
        bench.check_nothing_stalls()?;
        bench.check_nothing_vanished(&unserved)?;
    }
    Ok(())
}

const ONE_LEVEL: u32 = 20;
const TWO_LEVELS: u32 = 5000;
const THREE_LEVELS: u32 = 300_000;

/// Sequences of 1000 operations on average. `PROPTEST_CASES` overrides the number of them.
fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: asked.and_then(|n| n.parse().ok()).unwrap_or(default),
        max_shrink_iters: 600,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn qemu_7_2_equals_the_model_with_one_index_word(ops in ops(2000)) {
        equals_qemu(ONE_LEVEL, &ops)?;
    }
    #[test]
    fn qemu_7_2_equals_the_model_with_mid_words(ops in ops(2000)) {
        equals_qemu(TWO_LEVELS, &ops)?;
    }
    #[test]
    fn papr_1_keeps_its_invariants_with_one_index_word(ops in ops(2000)) {
        keeps_papr_invariants(ONE_LEVEL, &ops)?;
    }
    #[test]
    fn papr_1_keeps_its_invariants_with_mid_words(ops in ops(2000)) {
        keeps_papr_invariants(TWO_LEVELS, &ops)?;
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn qemu_7_2_equals_the_model_with_several_mid_words_a_slice(ops in ops(2000)) {
        equals_qemu(THREE_LEVELS, &ops)?;
    }
    #[test]
    fn papr_1_keeps_its_invariants_with_several_mid_words_a_slice(ops in ops(2000)) {
        keeps_papr_invariants(THREE_LEVELS, &ops)?;
    }
}
