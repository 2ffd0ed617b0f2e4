//! Valid states of pseries machines from a seed, for tests: whatever another's format can hold, often.

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;

use super::os_ring;

/// Numbers from a seed (xorshift64*).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u32) -> u32 {
        (self.word() >> 32) as u32 % n
    }
    pub fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u32) as usize]
    }
    fn priority(&mut self) -> u8 {
        self.pick(&[0, 1, 4, 5, 6, 7, 0x7f, 0xfe])
    }
}

/// How many server numbers lie between two vCPUs of [`state`].
pub const VSMT: u32 = 2;

/// A state of a pseries machine of level `qemu-7.2`, without what only we carry (irqfd levels, latches).
pub fn state(rng: &mut Rng, producer: &str) -> State {
    let ic_mode = rng.pick(&[IcMode::Xics, IcMode::Xive, IcMode::Dual]);
    let vcpus = 1 + rng.below(4);
    let machine = Machine::pseries(ic_mode, Compat::Qemu72, vcpus * VSMT);
    let active = match ic_mode {
        IcMode::Xics => Mode::Xics,
        IcMode::Xive => Mode::Xive,
        IcMode::Dual => rng.pick(&[Mode::Xics, Mode::Xive]),
    };
    let cas_xive = active == Mode::Xive && (ic_mode == IcMode::Dual || rng.one_in(2));
    // The last one is there: a XICS machine's size is told from it.
    let exists = |rng: &mut Rng, index: u32| index == vcpus - 1 || !rng.one_in(3);
    let servers = (0..vcpus).filter(|i| exists(rng, *i)).map(|i| i * VSMT);
    let head = Head {
        active,
        cas_xive,
        ov5_byte_23: if cas_xive { 0x40 } else { 0 },
        servers: servers.collect(),
        ..Head::new(producer, machine)
    };
    let mut state = State::reset(head);
    claims(rng, &mut state);
    if ic_mode.has_xics() {
        xics(rng, &mut state);
    }
    if ic_mode.has_xive() {
        xive(rng, &mut state);
    }
    state
}

fn claims(rng: &mut Rng, state: &mut State) {
    let mut runs = vec![(0x1000, 2, Kind::Edge), (0x1100, 1, Kind::Edge)];
    runs.push((0x1200, 4, Kind::Lsi));
    let mut next = 0x1300 + rng.below(3);
    for _ in 0..rng.below(4) {
        let count = 1 + rng.below(5);
        runs.push((next, count, Kind::Msi));
        next += count + 1 + rng.below(60);
    }
    let run = |(first, count, kind)| Claims { first, count, kind };
    state.claims.extend(runs.into_iter().map(run));
    state.head.fixed = fixed(&state.claims);
    for lisn in 0x1200..0x1204 {
        if rng.one_in(3) {
            state.inputs.push(Input {
                lisn,
                level_vmm: true,
                ..Input::default()
            });
        }
    }
}

/// Numbers with a state of their own: claimed ones, and some that are not.
fn numbers(rng: &mut Rng, state: &State, from: u32) -> Vec<u32> {
    let claimed = state
        .claims
        .iter()
        .flat_map(|run| run.first..run.first + run.count);
    let mut numbers: Vec<u32> = claimed
        .filter(|lisn| *lisn >= from && !rng.one_in(3))
        .collect();
    numbers.extend([0x1002, 0x1fff].into_iter().filter(|_| rng.one_in(8)));
    numbers.sort_unstable();
    numbers
}

fn xics(rng: &mut Rng, state: &mut State) {
    let servers = state.head.servers.clone();
    for irq in numbers(rng, state, 0x1000) {
        let kind = state.kind(irq);
        let msi = matches!(kind, Some(Kind::Edge | Kind::Msi));
        let saved = rng.priority();
        let source = XicsSource {
            irq,
            server: rng.pick(&servers) as u16,
            priority: if rng.one_in(3) { 0xff } else { saved },
            saved,
            sent: kind == Some(Kind::Lsi) && rng.one_in(2),
            rejected: msi && rng.one_in(3),
            masked_pending: msi && rng.one_in(3),
        };
        state.xics.sources.push(source);
    }
    for server in servers {
        let xisr = rng.pick(&[0, 0, 2, 0x1000, 0x1200, 0x1201, 0x1300, 0x1301]);
        let icp = Icp {
            server,
            cppr: rng.pick(&[0, 5, 6, 0xff, 0xff]),
            xisr,
            pending_priority: if xisr == 0 { 0xff } else { rng.priority() },
            mfrr: rng.pick(&[0xff, 0xff, 4, 5]),
        };
        if icp != Icp::reset(server) {
            state.xics.icps.push(icp);
        }
    }
}

fn xive(rng: &mut Rng, state: &mut State) {
    let ends = state.head.machine.servers * 8;
    for lisn in numbers(rng, state, 0) {
        let source = XiveSource {
            lisn,
            pq: rng.below(4) as u8,
            masked: rng.one_in(3),
            end: rng.below(ends),
            eisn: rng.word() as u32 & 0x7fff_ffff,
        };
        if source != XiveSource::reset(lisn, state.kind(lisn).is_some()) {
            state.xive.sources.push(source);
        }
    }
    for end in 0..ends {
        let size = rng.pick(&[12, 16, 16, 16, 21, 24]);
        if rng.one_in(4) {
            state.xive.ends.push(End {
                end,
                address: u64::from(rng.below(1 << 20)) << size,
                size,
                always_notify: !rng.one_in(4),
                generation: rng.one_in(2),
                index: rng.below(1 << (size - 2)),
                esn: rng.below(4) as u8,
            });
        }
    }
    for server in state.head.servers.clone() {
        let (cppr, ipb) = (
            rng.pick(&[0, 5, 6, 7, 0xff]),
            rng.pick(&[0, 0, 1, 2, 3, 0x80]),
        );
        let computed = os_ring::computed(cppr << 48 | ipb << 40);
        // The line stays up if CPPR comes down afterwards, and down if CPPR is stored raw.
        let bytes = computed ^ u64::from(rng.one_in(4)) << 63;
        if bytes != Ring::RESET {
            state.xive.rings.push(Ring { server, bytes });
        }
    }
}
