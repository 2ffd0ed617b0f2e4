//! Valid states from a seed, for tests: small machines, in which everything that can be pending is.

use super::model::*;
use crate::layout::header::Mode;
use crate::layout::{Compat, IcMode, Machine};

/// Numbers from a seed (xorshift64*).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(crate) fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        (self.word() >> 32) as u32 % n
    }
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
    fn byte(&mut self) -> u8 {
        // Priorities that matter, mostly.
        match self.below(4) {
            0 => 0xff,
            1 => 0,
            _ => self.word() as u8,
        }
    }
}

/// A machine of a few sources and servers.
pub(crate) fn machine(rng: &mut Rng) -> Machine {
    let ic_mode = [IcMode::Xics, IcMode::Xive, IcMode::Dual][rng.below(3) as usize];
    let compat = [Compat::Papr1, Compat::Qemu72][rng.below(2) as usize];
    Machine {
        sources: 16 + 1 + rng.below(200),
        xics_base: 16,
        store_eoi: compat == Compat::Papr1 && rng.one_in(2),
        ..Machine::pseries(ic_mode, compat, 1 + rng.below(5))
    }
}

/// A valid state of a machine; `density` of 0 is a machine at rest.
pub(crate) fn state(rng: &mut Rng, machine: Machine, density: u32) -> State {
    let ic_mode = machine.ic_mode;
    let active = match ic_mode {
        IcMode::Xics => Mode::Xics,
        IcMode::Xive => Mode::Xive,
        IcMode::Dual => [Mode::Xics, Mode::Xive][rng.below(2) as usize],
    };
    let used = |rng: &mut Rng| density > 0 && rng.below(100) < density;
    let head = Head {
        active,
        cas_xive: active == Mode::Xive && rng.one_in(2),
        ov5_byte_23: [0, 0x40][usize::from(active == Mode::Xive)],
        servers: (0..machine.servers).filter(|_| rng.below(4) > 0).collect(),
        ..Head::new("random", machine)
    };
    let mut state = State::reset(head);
    claims(rng, &mut state, &used);
    state.head.fixed = fixed(&state.claims);
    inputs(rng, &mut state, &used);
    if ic_mode.has_xics() {
        xics(rng, &mut state, &used);
    }
    if ic_mode.has_xive() {
        xive(rng, &mut state, &used);
    }
    state
}

type Used<'a> = &'a dyn Fn(&mut Rng) -> bool;

fn claims(rng: &mut Rng, state: &mut State, used: Used<'_>) {
    let machine = state.head.machine;
    for lisn in machine.xics_base..machine.sources {
        if !used(rng) {
            continue;
        }
        let kind = [Kind::Edge, Kind::Lsi, Kind::Msi][rng.below(3) as usize];
        match state.claims.last_mut() {
            Some(run) if run.kind == kind && run.first + run.count == lisn => run.count += 1,
            _ => state.claims.push(Claims {
                first: lisn,
                count: 1,
                kind,
            }),
        }
    }
}

fn inputs(rng: &mut Rng, state: &mut State, used: Used<'_>) {
    for run in state.claims.clone() {
        for lisn in run.first..run.first + run.count {
            let lsi = run.kind == Kind::Lsi;
            let input = Input {
                lisn,
                level_vmm: lsi && rng.one_in(2),
                level_irqfd: lsi && rng.one_in(3),
                // An IPI has no device; XICS has none of its numbers.
                latched: run.first >= state.head.machine.xics_base && rng.one_in(3),
                resample_due: lsi && rng.one_in(4),
            };
            let idle = Input {
                lisn,
                ..Input::default()
            };
            if used(rng) && input != idle {
                state.inputs.push(input);
            }
        }
    }
}

fn xics(rng: &mut Rng, state: &mut State, used: Used<'_>) {
    let machine = state.head.machine;
    for irq in machine.xics_base..machine.sources {
        let kind = state.kind(irq);
        let saved = rng.byte();
        let (lsi, msi) = (
            kind == Some(Kind::Lsi),
            matches!(kind, Some(Kind::Edge | Kind::Msi)),
        );
        let source = XicsSource {
            irq,
            server: rng.below(machine.servers) as u16,
            priority: if rng.one_in(3) { 0xff } else { saved },
            saved,
            sent: lsi && rng.one_in(2),
            rejected: msi && rng.one_in(2),
            masked_pending: msi && rng.one_in(3),
        };
        if used(rng) && source != XicsSource::reset(irq) {
            state.xics.sources.push(source);
        }
    }
    for server in state.head.servers.clone() {
        let xisr = match rng.below(3) {
            0 => 0,
            1 => 2,
            _ => machine.xics_base + rng.below(machine.sources - machine.xics_base),
        };
        let icp = Icp {
            server,
            cppr: rng.byte(),
            xisr,
            pending_priority: if xisr == 0 { 0xff } else { rng.byte() & 0x7f },
            mfrr: rng.byte(),
        };
        if used(rng) && icp != Icp::reset(server) {
            state.xics.icps.push(icp);
        }
    }
}

fn xive(rng: &mut Rng, state: &mut State, used: Used<'_>) {
    let machine = state.head.machine;
    for lisn in 0..machine.sources {
        let source = XiveSource {
            lisn,
            pq: rng.below(4) as u8,
            masked: rng.one_in(2),
            end: rng.below(machine.servers * 8),
            eisn: rng.word() as u32 & 0x7fff_ffff,
        };
        if used(rng) && source != XiveSource::reset(lisn, state.kind(lisn).is_some()) {
            state.xive.sources.push(source);
        }
    }
    for end in 0..machine.servers * 8 {
        let size = [12, 16, 21, 24][rng.below(4) as usize];
        let configured = End {
            end,
            address: u64::from(rng.below(1 << 16)) << size,
            size,
            always_notify: rng.one_in(2),
            generation: rng.one_in(2),
            index: rng.below(1 << (size - 2)),
            esn: rng.below(4) as u8,
        };
        if used(rng) {
            state.xive.ends.push(configured);
        }
    }
    for server in state.head.servers.clone() {
        let nsr = u64::from(rng.below(2)) << 63;
        let ring = Ring {
            server,
            bytes: nsr | rng.word() & 0x00ff_ffff_ffff_00ff,
        };
        if used(rng) && ring.bytes != Ring::RESET {
            state.xive.rings.push(ring);
        }
    }
}
