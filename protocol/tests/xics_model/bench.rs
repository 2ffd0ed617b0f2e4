//! The shipped transitions on plain words, driven like a guest, its devices and its VMM would, and
//! the invariants that hold after each operation.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use super::Kind;
use papr_intc_protocol::layout::plain::PlainStorage;
use papr_intc_protocol::layout::words::{icp, ics};
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine, Page, Storage};
use papr_intc_protocol::papr::codes::{RtasCall, opcode};
use papr_intc_protocol::papr::xics::{local, rtas};
use papr_intc_protocol::plane::xics::Xics;
use papr_intc_protocol::plane::{Host, LevelInput, LockOwner};
use proptest::prelude::*;

pub const SERVERS: u32 = 4;
pub const BASE: u32 = 16;
/// Sources in use: every third is an LSI.
pub const USED: usize = 12;

/// What the guest, the devices and the VMM may do. Sources are places in the list of those used.
#[derive(Clone, Copy, Debug)]
pub enum Op {
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

pub fn ops(length: usize) -> impl Strategy<Value = Vec<(bool, Op)>> {
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
pub struct Watch {
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

pub struct Bench {
    storage: PlainStorage,
    machine: Machine,
    geometry: Geometry,
    hosts: [Watch; 2],
    /// Global numbers in use, ascending.
    pub used: Vec<u32>,
    pub kinds: Vec<Kind>,
}

impl Bench {
    pub fn new(compat: Compat, ics_sources: u32) -> Self {
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

    pub fn xics(&self, daemon: bool) -> Xics<'_, PlainStorage, Watch> {
        Xics::new(
            &self.storage,
            &self.hosts[usize::from(daemon)],
            &self.machine,
            &self.geometry,
        )
    }

    /// Runs an operation as a guest or a device would; what comes back in registers or cells.
    pub fn run(&self, daemon: bool, op: Op) -> Vec<u64> {
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

    pub fn icp(&self, server: u32) -> u64 {
        self.storage.page(Page::Icp(server)).load(Relaxed)
    }
    pub fn source(&self, n: usize) -> u64 {
        let at = Page::IcsSource(self.used[n] - BASE);
        self.storage.page(at).load(Relaxed)
    }

    /// I1, I2 and I7, which hold at both levels.
    pub fn check_words(&self) -> Result<(), TestCaseError> {
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
    pub fn check_nothing_stalls(&self) -> Result<(), TestCaseError> {
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
    pub fn check_nothing_vanished(&self, unserved: &[bool]) -> Result<(), TestCaseError> {
        for (n, _) in unserved.iter().enumerate().filter(|(_, u)| **u) {
            let recorded = self.source(n) & (ics::REJECTED | ics::MASKED_PENDING) != 0;
            let shown = (0..SERVERS).any(|k| icp::xisr(self.icp(k)) == self.used[n]);
            prop_assert!(recorded || shown, "event of {:x} vanished", self.used[n]);
        }
        Ok(())
    }
}

pub fn takable(w: u64) -> bool {
    let recorded = if w & ics::LSI != 0 {
        w & ics::ASSERTED != 0 && w & ics::SENT == 0
    } else {
        w & ics::REJECTED != 0
    };
    w & ics::CLAIMED != 0 && ics::priority(w) != 0xff && recorded
}
pub fn pending(w: u64) -> bool {
    takable(w) || w & ics::LSI == 0 && w & ics::CLAIMED != 0 && w & ics::REJECTED != 0
}
pub fn presentable(i: u64, p: u8) -> bool {
    i & icp::CONNECTED != 0 && p < icp::cppr(i) && (icp::xisr(i) == 0 || p < icp::pp(i))
}
