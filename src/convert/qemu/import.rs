//! From QEMU's sections to the model, on the machine that QEMU 7.2's pseries is.
//!
//! What the sections do not say comes from the machine's constants ([`Machine::pseries`]), from the length
//! of the END table (servers), or from the options. Everything else is checked: xics.md §8.7, the layout of
//! END words (xive.md §3.1), claims said twice.

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::words::eas;
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;

use super::controllers::{Controllers, MSI_BASE, MSIS, Xive};
use super::sections::{IcsEntry, ics_flags, ics_status, xive_status};
use super::vcpus::{self, Vcpu};
use super::{OV5_XIVE, Options, PRODUCER, end, ring};
use crate::convert::{ConvertError, Notes, refused};

/// Numbers of PCI INTx, all level-sensitive; XIVE's sections do not say it.
const INTX: std::ops::Range<u32> = 0x1200..0x1280;

/// The state that the sections hold.
pub fn import(
    from: &Controllers,
    options: &Options,
    notes: &mut Notes,
) -> Result<State, ConvertError> {
    let vcpus = vcpus::of(from, options.vsmt)?;
    let machine = machine(from, &vcpus, options)?;
    let cas_xive = from.ov5.byte(23) & OV5_XIVE != 0;
    if cas_xive && !machine.ic_mode.has_xive() {
        let what = "XIVE was negotiated, on a machine with XICS only";
        return Err(refused("spapr_option_vector_ov5_cas", what));
    }
    let mut head = Head {
        cas_xive,
        ov5_byte_23: from.ov5.byte(23),
        servers: vcpus.iter().map(|v| v.server).collect(),
        ..Head::new(PRODUCER, machine)
    };
    if cas_xive {
        head.active = Mode::Xive;
    }
    let mut state = State::reset(head);
    state.claims = claims(from, &machine)?;
    state.head.fixed = fixed(&state.claims);
    check_msis(from, &state)?;
    if let Some(ics) = &from.ics {
        xics(&mut state, ics, from, &vcpus)?;
    }
    if let Some(xive) = &from.xive {
        tables(&mut state, xive)?;
        for vcpu in &vcpus {
            let regs = vcpu.tctx.and_then(|instance| from.tctxs.get(&instance));
            if let Some(ring) = regs.and_then(|regs| ring::read(vcpu.server, regs, notes)) {
                state.xive.rings.push(ring);
            }
        }
    }
    state.validate()?;
    Ok(state)
}

fn machine(from: &Controllers, vcpus: &[Vcpu], options: &Options) -> Result<Machine, ConvertError> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (ic_mode, servers) = match (&from.ics, &from.xive) {
        (None, None) => return Err(refused("stream", "it has no interrupt controller")),
        (Some(_), None) => {
            let last = vcpus.last().map_or(0, |v| v.server);
            (IcMode::Xics, last.saturating_add(options.vsmt.unwrap_or(1)))
        }
        (None, Some(xive)) => (IcMode::Xive, count(xive.tables.ends.len() / 8)),
        (Some(_), Some(xive)) => (IcMode::Dual, count(xive.tables.ends.len() / 8)),
    };
    let wanted = options.servers.unwrap_or(servers);
    if ic_mode.has_xive() && wanted != servers {
        let what = format!("{wanted} are asked for, the END table is of {servers}");
        return Err(refused("servers", what));
    }
    let machine = Machine::pseries(ic_mode, Compat::Qemu72, wanted);
    let (all, xics) = (machine.sources, machine.sources - machine.xics_base);
    let sizes = [
        ("ics", from.ics.as_ref().map(Vec::len), xics),
        (
            "xive-source",
            from.xive.as_ref().map(|x| x.status.len()),
            all,
        ),
        (
            "spapr-xive",
            from.xive.as_ref().map(|x| x.tables.eas.len()),
            all,
        ),
    ];
    for (section, there, here) in sizes {
        if let Some(there) = there.filter(|n| *n != here as usize) {
            let what = format!("nr_irqs is {there:#x}, of a pseries from 3.1 on it is {here:#x}");
            return Err(refused(format!("section {section}"), what));
        }
    }
    Ok(machine)
}

/// Claimed numbers: XICS by its flags, XIVE by its valid bits; with both they agree.
fn claims(from: &Controllers, machine: &Machine) -> Result<Vec<Claims>, ConvertError> {
    let mut runs: Vec<Claims> = Vec::new();
    for lisn in 0..machine.sources {
        let index = lisn.checked_sub(machine.xics_base).map(|i| i as usize);
        let entry = from.ics.as_ref().zip(index).and_then(|(ics, i)| ics.get(i));
        let eas = from
            .xive
            .as_ref()
            .and_then(|x| x.tables.eas.get(lisn as usize));
        let kind = kind(from, lisn, entry, eas.map(|eas| eas & eas::VALID != 0))?;
        let Some(kind) = kind else { continue };
        match runs.last_mut() {
            Some(run) if run.kind == kind && run.first + run.count == lisn => run.count += 1,
            _ => runs.push(Claims {
                first: lisn,
                count: 1,
                kind,
            }),
        }
    }
    Ok(runs)
}

fn kind(
    from: &Controllers,
    lisn: u32,
    entry: Option<&IcsEntry>,
    valid: Option<bool>,
) -> Result<Option<Kind>, ConvertError> {
    let flags = entry.map(|e| e.flags);
    let lsi = match (flags, valid) {
        (Some(ics_flags::FREE), Some(true)) | (Some(ics_flags::LSI..), Some(false)) => {
            let what = format!(
                "XICS has flags {}, XIVE valid {}",
                flags.unwrap_or(0),
                valid == Some(true)
            );
            return Err(refused(format!("claim {lisn:#x}"), what));
        }
        (Some(ics_flags::FREE), _) | (None, Some(false) | None) => return Ok(None),
        (Some(ics_flags::LSI), _) => true,
        (Some(ics_flags::MSI), _) => false,
        (Some(other), _) => {
            let what = format!("flags {other:#x} are not defined");
            return Err(refused(format!("ics {lisn:#x}"), what));
        }
        (None, Some(true)) => INTX.contains(&lisn),
    };
    let msi = lisn
        .checked_sub(MSI_BASE)
        .is_some_and(|n| from.irq_map.bit(n));
    match (lsi, msi) {
        (true, true) => Err(refused(
            format!("claim {lisn:#x}"),
            "an LSI, and allocated as an MSI",
        )),
        (true, false) => Ok(Some(Kind::Lsi)),
        (false, true) => Ok(Some(Kind::Msi)),
        (false, false) => Ok(Some(Kind::Edge)),
    }
}

/// Allocated MSIs are what the host bridges use and what is claimed.
fn check_msis(from: &Controllers, state: &State) -> Result<(), ConvertError> {
    let mut used = vec![false; MSIS as usize];
    for (first, count) in &from.msi_blocks {
        let start = first.checked_sub(MSI_BASE).map(|n| n as usize);
        let end = start.and_then(|start| start.checked_add(*count as usize));
        let block = start
            .zip(end)
            .and_then(|(start, end)| used.get_mut(start..end));
        let block = block.ok_or_else(|| {
            let what = format!("an MSI block of {count} is not in the numbers for MSIs");
            refused(format!("spapr_pci {first:#x}"), what)
        })?;
        block.fill(true);
    }
    for (n, used) in (0..).zip(used) {
        let (mapped, kind) = (from.irq_map.bit(n), state.kind(MSI_BASE + n));
        if mapped != used || mapped != kind.is_some() {
            let what = format!(
                "allocated in the irq map: {mapped}, used by a host bridge: {used}, claimed: {}",
                kind.is_some()
            );
            return Err(refused(format!("MSI {:#x}", MSI_BASE + n), what));
        }
    }
    Ok(())
}

fn xics(
    state: &mut State,
    ics: &[IcsEntry],
    from: &Controllers,
    vcpus: &[Vcpu],
) -> Result<(), ConvertError> {
    for (irq, entry) in (state.head.machine.xics_base..).zip(ics) {
        let source = xics_source(state, irq, entry)?;
        if source != XicsSource::reset(irq) {
            state.xics.sources.push(source);
        }
        if state.head.active == Mode::Xics && entry.status & ics_status::ASSERTED != 0 {
            state.inputs.push(level(irq));
        }
    }
    for vcpu in vcpus {
        let Some(entry) = vcpu.icp.and_then(|instance| from.icps.get(&instance)) else {
            continue;
        };
        let icp = Icp {
            server: vcpu.server,
            cppr: (entry.xirr >> 24) as u8,
            xisr: entry.xirr & 0xff_ffff,
            pending_priority: entry.pending_priority,
            mfrr: entry.mfrr,
        };
        if icp != Icp::reset(vcpu.server) {
            state.xics.icps.push(icp);
        }
    }
    Ok(())
}

fn xics_source(state: &State, irq: u32, entry: &IcsEntry) -> Result<XicsSource, ConvertError> {
    let item = || format!("ics {irq:#x}");
    let status = entry.status;
    let has = |bits| status & bits != 0;
    if has(!ics_status::ALL) {
        return Err(refused(
            item(),
            format!("status {status:#x} is not defined"),
        ));
    }
    let lsi = state.kind(irq) == Some(Kind::Lsi);
    let foreign = match lsi {
        true => ics_status::REJECTED | ics_status::MASKED_PENDING,
        false => ics_status::ASSERTED | ics_status::SENT,
    };
    if has(foreign) {
        let kind = if lsi { "an LSI" } else { "no LSI" };
        return Err(refused(item(), format!("status {status:#x} on {kind}")));
    }
    let exists = state.head.servers.binary_search(&entry.server).is_ok();
    if entry.priority != 0xff && !exists {
        let what = format!("goes to server {}, and there is no such vCPU", entry.server);
        return Err(refused(item(), what));
    }
    let server = u16::try_from(entry.server);
    let server = server.map_err(|_| refused(item(), format!("server {:#x}", entry.server)))?;
    // A KVM source that was triggered again while in service; here it is one that was refused.
    let queued = !lsi && has(ics_status::QUEUED);
    let masked = entry.priority == 0xff;
    Ok(XicsSource {
        irq,
        server,
        priority: entry.priority,
        saved: entry.saved,
        sent: has(ics_status::SENT),
        rejected: has(ics_status::REJECTED) || queued && !masked,
        masked_pending: has(ics_status::MASKED_PENDING) || queued && masked,
    })
}

fn level(lisn: u32) -> Input {
    Input {
        lisn,
        level_vmm: true,
        ..Input::default()
    }
}

fn tables(state: &mut State, xive: &Xive) -> Result<(), ConvertError> {
    for (lisn, (status, eas)) in (0..).zip(xive.status.iter().zip(&xive.tables.eas)) {
        let kind = state.kind(lisn);
        let item = || format!("xive source {lisn:#x}");
        if status & !(xive_status::PQ | xive_status::ASSERTED) != 0 {
            return Err(refused(
                item(),
                format!("status {status:#x} is not defined"),
            ));
        }
        let asserted = status & xive_status::ASSERTED != 0;
        if asserted && kind.is_some_and(|kind| kind != Kind::Lsi) {
            return Err(refused(item(), format!("status {status:#x} on no LSI")));
        }
        if eas >> 56 & 0x7f != 0 {
            return Err(refused(
                item(),
                format!("EAS {eas:#018x} has bits that are not defined"),
            ));
        }
        let source = XiveSource {
            lisn,
            pq: status & xive_status::PQ,
            masked: eas & eas::MASKED != 0,
            end: eas::end(*eas),
            eisn: eas::eisn(*eas),
        };
        if source != XiveSource::reset(lisn, kind.is_some()) {
            state.xive.sources.push(source);
        }
        if state.head.active == Mode::Xive && asserted && kind.is_some() {
            state.inputs.push(level(lisn));
        }
    }
    for (index, words) in (0..).zip(&xive.tables.ends) {
        state.xive.ends.extend(end::read(index, words)?);
    }
    Ok(())
}
