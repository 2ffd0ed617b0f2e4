//! From the model into the sections of a stream of the same machine: sizes, vCPUs and everything that is not the
//! interrupt controllers' are the stream's.

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::words::eas;
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;

use super::controllers::{Controllers, MSI_BASE, MSIS, Xive};
use super::sections::{IcpEntry, IcsEntry, IrqMap, ics_flags, ics_status, xive_status};
use super::{OV5_XIVE, Options, end, ring, vcpus};
use crate::convert::{ConvertError, Notes, inputs, refused};

/// The sections of `into`, holding `state`.
///
/// # Errors
/// `into` is of another machine: other controllers, addresses, vCPUs or claimed numbers.
pub fn export(
    state: &State,
    into: &Controllers,
    options: &Options,
    notes: &mut Notes,
) -> Result<Controllers, ConvertError> {
    state.validate()?;
    let options = Options {
        servers: Some(state.head.machine.servers),
        ..*options
    };
    let there = super::import::import(into, &options, &mut Notes::default())?;
    same_machine(state, &there)?;
    if state.head.machine.compat != Compat::Qemu72 {
        let level = level_name(state.head.machine.compat);
        let what = format!("{level} becomes what QEMU does");
        notes.add("compat level", what);
    }
    let state = inputs::settle(state, notes)?;
    let mut out = into.clone();
    if let Some(ics) = &mut out.ics {
        xics_sources(&state, ics);
    }
    if let Some(xive) = &mut out.xive {
        xive_tables(&state, xive);
    }
    presenters(&state, into, &options, &mut out)?;
    out.ov5.set_byte(23, byte_23(&state.head));
    out.irq_map = IrqMap::EMPTY;
    for n in 0..MSIS {
        let msi = state.kind(MSI_BASE + n) == Some(Kind::Msi);
        out.irq_map.set(n, msi);
    }
    Ok(out)
}

/// With both controllers, QEMU chooses the active one by this byte at the end of a load.
fn byte_23(head: &Head) -> u8 {
    let xive = match head.machine.ic_mode {
        IcMode::Dual => head.active == Mode::Xive,
        IcMode::Xics | IcMode::Xive => head.cas_xive,
    };
    head.ov5_byte_23 & !OV5_XIVE | if xive { OV5_XIVE } else { 0 }
}

fn same_machine(state: &State, there: &State) -> Result<(), ConvertError> {
    // Levels and shared memory are not the stream's business.
    let here = Machine {
        compat: there.head.machine.compat,
        ram_shared: there.head.machine.ram_shared,
        ..state.head.machine
    };
    if let Some(difference) = here.difference(&there.head.machine) {
        return Err(refused(
            "machine",
            format!("{difference}, in the QEMU stream"),
        ));
    }
    let (ours, theirs) = (&state.head.servers, &there.head.servers);
    if ours != theirs {
        let what = format!("the state has servers {ours:?}, the QEMU stream {theirs:?}");
        return Err(refused("vCPUs", what));
    }
    let different = |lisn: &u32| state.kind(*lisn) != there.kind(*lisn);
    if let Some(lisn) = (0..here.sources).find(different) {
        let said = |kind: Option<Kind>| kind.map_or("free".to_owned(), |kind| format!("{kind:?}"));
        let (ours, theirs) = (said(state.kind(lisn)), said(there.kind(lisn)));
        let what = format!("{ours} in the state, {theirs} in the QEMU stream");
        return Err(refused(format!("claim {lisn:#x}"), what));
    }
    Ok(())
}

fn xics_sources(state: &State, ics: &mut [IcsEntry]) {
    let base = state.head.machine.xics_base;
    for (irq, entry) in (base..).zip(ics.iter_mut()) {
        *entry = IcsEntry {
            server: 0,
            priority: 0xff,
            saved: 0xff,
            status: 0,
            flags: match state.kind(irq) {
                None => ics_flags::FREE,
                Some(Kind::Lsi) => ics_flags::LSI,
                Some(Kind::Edge | Kind::Msi) => ics_flags::MSI,
            },
        };
    }
    let at = |irq: u32| (irq - base) as usize;
    for source in &state.xics.sources {
        let bit = |has, bit| if has { bit } else { 0 };
        let entry = &mut ics[at(source.irq)];
        entry.server = source.server.into();
        entry.priority = source.priority;
        entry.saved = source.saved;
        entry.status = bit(source.sent, ics_status::SENT)
            | bit(source.rejected, ics_status::REJECTED)
            | bit(source.masked_pending, ics_status::MASKED_PENDING);
    }
    if state.head.active == Mode::Xics {
        for input in &state.inputs {
            ics[at(input.lisn)].status |= ics_status::ASSERTED;
        }
    }
}

fn xive_tables(state: &State, xive: &mut Xive) {
    for (lisn, eas) in (0..).zip(xive.tables.eas.iter_mut()) {
        let claimed = state.kind(lisn).is_some();
        *eas = if claimed { eas::VALID | eas::MASKED } else { 0 };
    }
    xive.status.fill(XiveSource::reset(0, false).pq);
    for source in &state.xive.sources {
        let at = source.lisn as usize;
        let eas = eas::new(source.end, source.eisn, source.masked);
        xive.tables.eas[at] = eas & !eas::VALID | xive.tables.eas[at] & eas::VALID;
        xive.status[at] = source.pq;
    }
    if state.head.active == Mode::Xive {
        for input in &state.inputs {
            xive.status[input.lisn as usize] |= xive_status::ASSERTED;
        }
    }
    xive.tables.ends.fill(end::RESET);
    for queue in &state.xive.ends {
        xive.tables.ends[queue.end as usize] = end::write(queue);
    }
}

fn presenters(
    state: &State,
    into: &Controllers,
    options: &Options,
    out: &mut Controllers,
) -> Result<(), ConvertError> {
    for vcpu in vcpus::of(into, options.vsmt)? {
        let server = vcpu.server;
        if let Some(instance) = vcpu.icp.filter(|_| into.ics.is_some()) {
            let icp = state.xics.icps.iter().find(|i| i.server == server);
            let icp = icp.copied().unwrap_or_else(|| Icp::reset(server));
            let entry = IcpEntry {
                xirr: u32::from(icp.cppr) << 24 | icp.xisr,
                pending_priority: icp.pending_priority,
                mfrr: icp.mfrr,
            };
            out.icps.insert(instance, entry);
        }
        if let Some(instance) = vcpu.tctx {
            let ring = state.xive.rings.iter().find(|r| r.server == server);
            let ring = ring.copied().unwrap_or(Ring {
                server,
                bytes: Ring::RESET,
            });
            out.tctxs.insert(instance, ring::write(&ring));
        }
    }
    Ok(())
}
