//! XIVE, between the model and KVM's attributes (xive.md §8.2, §8.3).
//!
//! KVM has queues of 64 KiB that always notify, for priorities 0 to 6 of vCPUs that exist; NSR and PIPR of a ring
//! are the hardware's to compute, from IPB and CPPR.

use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;

use super::attributes::{
    EqConfig, Xive, XiveConfig, XiveSourceAttributes, eq_attribute, xive_source,
};
use crate::convert::{ConvertError, Notes, os_ring, refused};

/// Log2 of the bytes of every queue.
const QUEUE_SHIFT: u8 = 16;
/// `KVM_XIVE_EQ_ALWAYS_NOTIFY`.
const ALWAYS_NOTIFY: u32 = 1;
/// First priority that is not the guest's.
const RESERVED_PRIORITY: u32 = 7;

/// From the model, whose inputs are [settled](crate::convert::inputs::settle).
pub fn export(state: &State, notes: &mut Notes) -> Result<Xive, ConvertError> {
    let mut out = Xive::default();
    let exists = |end: u32| state.head.servers.binary_search(&(end >> 3)).is_ok();
    for queue in &state.xive.ends {
        let item = format!("end {:#x}", queue.end);
        if !exists(queue.end) {
            notes.add(item, "its vCPU does not exist: the queue is dropped");
            continue;
        }
        if queue.size != QUEUE_SHIFT || queue.end & 7 == RESERVED_PRIORITY {
            let what = format!(
                "KVM has no queue of 2^{} bytes for priority {}",
                queue.size,
                queue.end & 7
            );
            return Err(refused(item, what));
        }
        if !queue.always_notify {
            notes.add(item, "from now on every event notifies");
        }
        let config = EqConfig {
            flags: ALWAYS_NOTIFY,
            qshift: queue.size.into(),
            qaddr: queue.address,
            qtoggle: queue.generation.into(),
            qindex: queue.index,
        };
        out.queues.insert(eq_attribute(queue.end), config);
    }
    let mut sources = state.xive.sources.iter().peekable();
    for run in &state.claims {
        for lisn in run.first..run.first + run.count {
            while let Some(other) = sources.next_if(|s| s.lisn < lisn) {
                notes.add(
                    format!("xive source {:#x}", other.lisn),
                    "it is not claimed, and is dropped",
                );
            }
            let source = sources.next_if(|s| s.lisn == lisn).copied();
            let mut source = source.unwrap_or(XiveSource::reset(lisn, true));
            let item = || format!("xive source {lisn:#x}");
            if source.end & 7 == RESERVED_PRIORITY {
                return Err(refused(item(), "priority 7 is not the guest's in KVM"));
            }
            if !source.masked && !exists(source.end) {
                notes.add(
                    item(),
                    format!("there is no vCPU {}: it is masked", source.end >> 3),
                );
                source.masked = true;
            }
            let lsi = run.kind == Kind::Lsi;
            let high = state.inputs.binary_search_by_key(&lisn, |i| i.lisn).is_ok();
            out.sources.insert(lisn, export_source(&source, lsi, high));
        }
    }
    for other in sources {
        notes.add(
            format!("xive source {:#x}", other.lisn),
            "it is not claimed, and is dropped",
        );
    }
    for server in &state.head.servers {
        let ring = state.xive.rings.iter().find(|r| r.server == *server);
        let bytes = ring.map_or(Ring::RESET, |r| r.bytes);
        if os_ring::computed(bytes) != bytes {
            let what = format!(
                "{bytes:#018x} becomes {:#018x}, what hardware makes of IPB and CPPR",
                os_ring::computed(bytes)
            );
            notes.add(format!("ring of server {server}"), what);
        }
        let mut vp = [0; 16];
        vp[..8].copy_from_slice(&bytes.to_be_bytes());
        out.vps.insert(*server, vp);
    }
    Ok(out)
}

fn export_source(source: &XiveSource, lsi: bool, high: bool) -> XiveSourceAttributes {
    let bit = |has, bit| if has { bit } else { 0 };
    let config = XiveConfig {
        end: source.end,
        masked: source.masked,
        eisn: source.eisn,
    };
    XiveSourceAttributes {
        source: bit(lsi, xive_source::LEVEL_SENSITIVE) | bit(high, xive_source::ASSERTED),
        config: config.to_bits(),
        pq: source.pq,
    }
}

/// Into the model, whose claims are there.
pub fn import(from: &Xive, state: &mut State) -> Result<(), ConvertError> {
    for (attribute, config) in &from.queues {
        state.xive.ends.extend(import_queue(*attribute, config)?);
    }
    super::same_numbers(state, "xive", from.sources.keys().copied())?;
    for (lisn, attributes) in &from.sources {
        import_source(state, *lisn, attributes)?;
    }
    for (server, vp) in &from.vps {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&vp[..8]);
        let bytes = os_ring::computed(u64::from_be_bytes(bytes));
        if bytes != Ring::RESET {
            let server = *server;
            state.xive.rings.push(Ring { server, bytes });
        }
    }
    Ok(())
}

fn import_queue(attribute: u64, config: &EqConfig) -> Result<Option<End>, ConvertError> {
    let refuse = |what: String| refused(format!("EQ_CONFIG {attribute:#x}"), what);
    if config.qshift == 0 {
        return Ok(None);
    }
    let end = u32::try_from(attribute).map_err(|_| refuse("it is out of range".to_owned()))?;
    if config.flags != ALWAYS_NOTIFY {
        return Err(refuse(format!("flags {:#x}", config.flags)));
    }
    if config.qshift != u32::from(QUEUE_SHIFT) {
        return Err(refuse(format!("qshift {}", config.qshift)));
    }
    if config.qtoggle > 1 {
        return Err(refuse(format!("qtoggle {}", config.qtoggle)));
    }
    Ok(Some(End {
        end,
        address: config.qaddr,
        size: QUEUE_SHIFT,
        always_notify: true,
        generation: config.qtoggle == 1,
        index: config.qindex,
        esn: 0,
    }))
}

fn import_source(
    state: &mut State,
    lisn: u32,
    attributes: &XiveSourceAttributes,
) -> Result<(), ConvertError> {
    let flags = attributes.source;
    let refuse = |what: &str| refused(format!("SOURCE {lisn:#x}"), format!("{flags:#x}: {what}"));
    let lsi = state.kind(lisn) == Some(Kind::Lsi);
    if flags & !xive_source::ALL != 0 {
        return Err(refuse("a bit that is not defined"));
    }
    if (flags & xive_source::LEVEL_SENSITIVE != 0) != lsi {
        return Err(refuse("level-sensitive, or not, against its claim"));
    }
    let high = flags & xive_source::ASSERTED != 0;
    if high && !lsi {
        return Err(refuse("asserted, but no LSI"));
    }
    let config = XiveConfig::from_bits(attributes.config);
    let source = XiveSource {
        lisn,
        pq: attributes.pq,
        masked: config.masked,
        end: config.end,
        eisn: config.eisn,
    };
    if source != XiveSource::reset(lisn, true) {
        state.xive.sources.push(source);
    }
    if high {
        state.inputs.push(Input {
            lisn,
            level_vmm: true,
            ..Input::default()
        });
    }
    Ok(())
}
