//! A state as a JSON object, for `papr-intc state show --json` and the documents of [`super::kvm`]. Numbers are numbers; addresses and rings, which
//! may need all 64 bits, are hexadecimal strings.

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::{IcMode, Machine};
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;
use serde_json::{Value, json};

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// Name of a controller.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Xics => "xics",
        Mode::Xive => "xive",
    }
}

/// Name of a set of controllers.
pub fn ic_mode_name(ic_mode: IcMode) -> &'static str {
    match ic_mode {
        IcMode::Xics => "xics",
        IcMode::Xive => "xive",
        IcMode::Dual => "dual",
    }
}

/// Name of a kind of claim.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Edge => "edge",
        Kind::Lsi => "lsi",
        Kind::Msi => "msi",
    }
}

fn machine(m: &Machine) -> Value {
    json!({
        "ic_mode": ic_mode_name(m.ic_mode),
        "compat": level_name(m.compat),
        "sources": m.sources,
        "xics_base": m.xics_base,
        "servers": m.servers,
        "phandle": m.phandle,
        "esb_base": hex(m.esb_base),
        "end_base": hex(m.end_base),
        "tima_base": hex(m.tima_base),
        "hv_prio": m.hv_prio,
        "store_eoi": m.store_eoi,
    })
}

/// Claims.
pub fn runs(claims: &[Claims]) -> Vec<Value> {
    let run = |run: &Claims| json!({ "first": run.first, "count": run.count, "kind": kind_name(run.kind) });
    claims.iter().map(run).collect()
}

/// The head alone.
pub fn head(head: &Head) -> Value {
    json!({
        "producer": head.producer,
        "machine": machine(&head.machine),
        "active": mode_name(head.active),
        "cas_xive": head.cas_xive,
        "ov5_byte_23": head.ov5_byte_23,
        "servers": head.servers,
        "fixed": runs(&head.fixed),
    })
}

/// Everything.
pub fn state(state: &State) -> Value {
    json!({
        "head": head(&state.head),
        "claims": runs(&state.claims),
        "inputs": state.inputs.iter().map(input).collect::<Vec<_>>(),
        "xics": {
            "sources": state.xics.sources.iter().map(xics_source).collect::<Vec<_>>(),
            "icps": state.xics.icps.iter().map(icp).collect::<Vec<_>>(),
        },
        "xive": {
            "sources": state.xive.sources.iter().map(xive_source).collect::<Vec<_>>(),
            "ends": state.xive.ends.iter().map(end).collect::<Vec<_>>(),
            "rings": state.xive.rings.iter().map(ring).collect::<Vec<_>>(),
        },
    })
}

fn input(i: &Input) -> Value {
    json!({ "lisn": i.lisn, "level_vmm": i.level_vmm, "level_irqfd": i.level_irqfd,
        "latched": i.latched, "resample_due": i.resample_due })
}

fn xics_source(s: &XicsSource) -> Value {
    json!({ "irq": s.irq, "server": s.server, "priority": s.priority, "saved": s.saved,
        "sent": s.sent, "rejected": s.rejected, "masked_pending": s.masked_pending })
}

fn icp(i: &Icp) -> Value {
    json!({ "server": i.server, "cppr": i.cppr, "xisr": i.xisr,
        "pending_priority": i.pending_priority, "mfrr": i.mfrr })
}

fn xive_source(s: &XiveSource) -> Value {
    json!({ "lisn": s.lisn, "pq": s.pq, "masked": s.masked, "end": s.end, "eisn": s.eisn })
}

fn end(e: &End) -> Value {
    json!({ "end": e.end, "address": hex(e.address), "size": e.size,
        "always_notify": e.always_notify, "generation": e.generation, "index": e.index, "esn": e.esn })
}

fn ring(r: &Ring) -> Value {
    json!({ "server": r.server, "bytes": format!("{:#018x}", r.bytes) })
}
