//! What the monitor would show of a [`State`]: the other side of the comparison with [`super::pic`].

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::{Icp, Input, Kind, Ring, XicsSource, XiveSource};

use super::pic::{self, Eas, Ics, Pic, Queue, Xics, Xive, status};

/// Byte AGE of an OS ring: always ff in QEMU, and not carried.
const AGE: usize = 6;

/// The active controller; `ram` loads a word of guest memory.
pub fn shown(state: &State, ram: impl Fn(u64) -> u32) -> Pic {
    match state.head.active {
        Mode::Xics => Pic::Xics(xics(state)),
        Mode::Xive => Pic::Xive(xive(state, ram)),
    }
}

/// Claimed numbers, and whether they are levels.
fn claimed(state: &State) -> impl Iterator<Item = (u32, bool)> {
    let runs = state.claims.iter();
    runs.flat_map(|run| (run.first..run.first + run.count).map(|n| (n, run.kind == Kind::Lsi)))
}

fn is_asserted(state: &State, lisn: u32) -> bool {
    let asserts = |i: &Input| i.lisn == lisn && (i.level_vmm || i.level_irqfd);
    state.inputs.iter().any(asserts)
}

fn xics(state: &State) -> Xics {
    let icp = |&server: &u32| {
        let icp = state.xics.icps.iter().find(|icp| icp.server == server);
        let icp = icp.copied().unwrap_or_else(|| Icp::reset(server));
        pic::Icp {
            xirr: u32::from(icp.cppr) << 24 | icp.xisr,
            pending: icp.pending_priority,
            mfrr: icp.mfrr,
        }
    };
    let source = |(lisn, level): (u32, bool)| {
        let source = state.xics.sources.iter().find(|s| s.irq == lisn);
        let source = source.copied().unwrap_or_else(|| XicsSource::reset(lisn));
        let bits = [
            (is_asserted(state, lisn), status::ASSERTED),
            (source.sent, status::SENT),
            (source.rejected, status::REJECTED),
            (source.masked_pending, status::MASKED_PENDING),
        ];
        let set = bits.iter().filter(|(is_set, _)| *is_set);
        Ics {
            lisn,
            level,
            priority: source.priority,
            status: set.map(|(_, bit)| bit).sum(),
        }
    };
    let base = state.head.machine.xics_base;
    Xics {
        icps: state.head.servers.iter().map(icp).collect(),
        sources: claimed(state)
            .filter(|(lisn, _)| *lisn >= base)
            .map(source)
            .collect(),
    }
}

fn xive(state: &State, ram: impl Fn(u64) -> u32) -> Xive {
    let ring = |&server: &u32| {
        let ring = state.xive.rings.iter().find(|r| r.server == server);
        let mut bytes = ring.map_or(Ring::RESET, |r| r.bytes).to_be_bytes();
        bytes[AGE] = 0xff;
        bytes
    };
    let source = |(lisn, level): (u32, bool)| {
        let source = state.xive.sources.iter().find(|s| s.lisn == lisn);
        let source = source.copied();
        let source = source.unwrap_or_else(|| XiveSource::reset(lisn, true));
        let shows_queue = !source.masked;
        Eas {
            lisn,
            level,
            pq: source.pq,
            asserted: is_asserted(state, lisn),
            masked: source.masked,
            eisn: source.eisn,
            queue: shows_queue
                .then(|| queue(state, source.end, &ram))
                .flatten(),
        }
    };
    Xive {
        rings: state.head.servers.iter().map(ring).collect(),
        sources: claimed(state).map(source).collect(),
    }
}

fn queue(state: &State, end: u32, ram: impl Fn(u64) -> u32) -> Option<Queue> {
    let queue = state.xive.ends.iter().find(|e| e.end == end)?;
    let entries = 1 << (queue.size - 2);
    let before = |n: u32| queue.index.wrapping_sub(n) % entries;
    let recent = (0..6).rev().map(before);
    Some(Queue {
        server: end >> 3,
        priority: end as u8 & 7,
        index: queue.index,
        entries,
        address: queue.address,
        generation: queue.generation.into(),
        recent: recent
            .map(|slot| ram(queue.address + 4 * u64::from(slot)))
            .collect(),
    })
}
