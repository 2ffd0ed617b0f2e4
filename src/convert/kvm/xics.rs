//! XICS, between the model and KVM's attributes (xics.md §8.4, §8.5).
//!
//! KVM has one bit "pending" where QEMU and we have REJECTED and MASKED_PENDING, and its presenters have no state
//! in which something less favoured than MFRR, or not more favoured than CPPR, is presented. What is presented
//! in such a state is put back to its source; nothing is lost but an IPI whose request was withdrawn.

use std::collections::BTreeSet;

use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;

use super::attributes::{IcpState, Xics, xics_source};
use crate::convert::{ConvertError, Notes, refused};

/// From the model, whose inputs are [settled](crate::convert::inputs::settle).
pub fn export(state: &State, notes: &mut Notes) -> Result<Xics, ConvertError> {
    let mut out = Xics::default();
    let mut put_back = Vec::new();
    for server in &state.head.servers {
        let icp = state.xics.icps.iter().find(|i| i.server == *server);
        let icp = icp.copied().unwrap_or_else(|| Icp::reset(*server));
        let bits = export_icp(&icp, &mut put_back, notes).to_bits();
        out.icps.insert(*server, bits);
    }
    let held = out
        .icps
        .values()
        .filter_map(|bits| IcpState::from_bits(*bits));
    let held: BTreeSet<u32> = held.map(|icp| icp.xisr).collect();
    let mut sources = state.xics.sources.iter().peekable();
    for run in &state.claims {
        for irq in run.first.max(state.head.machine.xics_base)..run.first + run.count {
            while let Some(other) = sources.next_if(|s| s.irq < irq) {
                notes.add(
                    format!("xics source {:#x}", other.irq),
                    "it is not claimed, and is dropped",
                );
            }
            let source = sources.next_if(|s| s.irq == irq).copied();
            let mut source = source.unwrap_or(XicsSource::reset(irq));
            let lsi = run.kind == Kind::Lsi;
            let high = state.inputs.binary_search_by_key(&irq, |i| i.lisn).is_ok();
            if put_back.contains(&irq) {
                match lsi {
                    false => source.rejected = true,
                    true if high => {}
                    true => notes.add(
                        format!("xics source {irq:#x}"),
                        "its level fell before it was taken: the interrupt is dropped",
                    ),
                }
            }
            existing_server(state, &mut source, notes)?;
            let event = if lsi {
                high
            } else {
                source.rejected || source.masked_pending
            };
            let bits = export_source(&source, lsi, event, held.contains(&irq));
            out.sources.insert(irq, bits);
        }
    }
    for other in sources {
        notes.add(
            format!("xics source {:#x}", other.irq),
            "it is not claimed, and is dropped",
        );
    }
    Ok(out)
}

/// What the kernel takes, and in `put_back` the source that is no longer presented.
fn export_icp(icp: &Icp, put_back: &mut Vec<u32>, notes: &mut Notes) -> IcpState {
    let mut out = IcpState {
        cppr: icp.cppr,
        xisr: icp.xisr,
        mfrr: icp.mfrr,
        pending_priority: icp.pending_priority,
    };
    if out.is_accepted() {
        return out;
    }
    (out.xisr, out.pending_priority) = match icp.mfrr < icp.cppr {
        true => (2, icp.mfrr),
        false => (0, 0xff),
    };
    if icp.xisr != 2 {
        put_back.push(icp.xisr);
    }
    notes.add(
        format!("icp of server {}", icp.server),
        format!(
            "XISR {:#x} of priority {:#x} at MFRR {:#x}, CPPR {:#x} becomes XISR {:#x}",
            icp.xisr, icp.pending_priority, icp.mfrr, icp.cppr, out.xisr
        ),
    );
    out
}

/// The kernel refuses a source for a vCPU that is not there, unless its priority is ff.
fn existing_server(
    state: &State,
    source: &mut XicsSource,
    notes: &mut Notes,
) -> Result<(), ConvertError> {
    let exists = state
        .head
        .servers
        .binary_search(&source.server.into())
        .is_ok();
    if exists || source.saved == 0xff {
        return Ok(());
    }
    let item = format!("xics source {:#x}", source.irq);
    let first = state
        .head
        .servers
        .first()
        .and_then(|s| u16::try_from(*s).ok());
    let first = first.ok_or_else(|| refused(item.clone(), "there is no vCPU for it"))?;
    let gone = source.server;
    notes.add(
        item,
        format!("there is no vCPU {gone}: it goes to vCPU {first}"),
    );
    source.server = first;
    Ok(())
}

fn export_source(source: &XicsSource, lsi: bool, event: bool, presented: bool) -> u64 {
    let bit = |has, bit| if has { bit } else { 0 };
    u64::from(source.server)
        | u64::from(source.saved) << xics_source::PRIORITY_SHIFT
        | bit(lsi, xics_source::LEVEL_SENSITIVE)
        | bit(source.priority == 0xff, xics_source::MASKED)
        | bit(event, xics_source::PENDING)
        // P of an LSI is its level; of an MSI: sent, and not ended yet.
        | bit(event || presented && !lsi, xics_source::PRESENTED)
}

/// Into the model, whose claims are there.
pub fn import(from: &Xics, state: &mut State) -> Result<(), ConvertError> {
    for (server, bits) in &from.icps {
        let item = || format!("ICP_STATE of server {server}");
        let icp = IcpState::from_bits(*bits).filter(IcpState::is_accepted);
        let icp = icp.ok_or_else(|| refused(item(), format!("{bits:#018x} is no state of KVM")))?;
        let icp = Icp {
            server: *server,
            cppr: icp.cppr,
            xisr: icp.xisr,
            pending_priority: icp.pending_priority,
            mfrr: icp.mfrr,
        };
        if icp != Icp::reset(*server) {
            state.xics.icps.push(icp);
        }
    }
    super::same_numbers(state, "xics", from.sources.keys().copied())?;
    let held: BTreeSet<u32> = state.xics.icps.iter().map(|icp| icp.xisr).collect();
    for (irq, bits) in &from.sources {
        let (mut source, high) = import_source(state, *irq, *bits)?;
        source.sent = state.kind(*irq) == Some(Kind::Lsi) && held.contains(irq);
        if source != XicsSource::reset(*irq) {
            state.xics.sources.push(source);
        }
        if high {
            state.inputs.push(Input {
                lisn: *irq,
                level_vmm: true,
                ..Input::default()
            });
        }
    }
    Ok(())
}

fn import_source(state: &State, irq: u32, bits: u64) -> Result<(XicsSource, bool), ConvertError> {
    let refuse = |what: &str| refused(format!("SOURCES {irq:#x}"), format!("{bits:#018x}: {what}"));
    let has = |bit| bits & bit != 0;
    if has(!xics_source::ALL) {
        return Err(refuse("a bit that is not defined"));
    }
    let lsi = state.kind(irq) == Some(Kind::Lsi);
    if has(xics_source::LEVEL_SENSITIVE) != lsi {
        return Err(refuse("level-sensitive, or not, against its claim"));
    }
    let saved = (bits >> xics_source::PRIORITY_SHIFT) as u8;
    let priority = if has(xics_source::MASKED) {
        0xff
    } else {
        saved
    };
    let server = bits as u32;
    let exists = state.head.servers.binary_search(&server).is_ok();
    if !exists && saved != 0xff {
        return Err(refuse("its server is no vCPU"));
    }
    let server = u16::try_from(server).map_err(|_| refuse("its server is out of range"))?;
    let high = lsi && has(xics_source::PENDING | xics_source::PRESENTED);
    let event = !lsi && has(xics_source::PENDING | xics_source::QUEUED);
    let source = XicsSource {
        irq,
        server,
        priority,
        saved,
        sent: false,
        rejected: event && priority != 0xff,
        masked_pending: event && priority == 0xff,
    };
    Ok((source, high))
}
