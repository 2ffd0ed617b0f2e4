//! A state for people: first what waits where, then the tables.

use std::fmt::Write;

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::words::tima;
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;

use super::json::{ic_mode_name, kind_name, mode_name};

/// Most lines of what waits; the tables have all of it.
const MAX_PENDING: usize = 20;

/// One name and value.
fn row(out: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{name:<12} {value}");
}

macro_rules! line {
    ($out:expr, $($what:tt)*) => {
        let _ = writeln!($out, $($what)*);
    };
}

/// The head alone, `from` for people.
pub fn head(head: &Head, from: &str) -> String {
    let mut out = String::new();
    let m = &head.machine;
    row(
        &mut out,
        "state",
        format!("{from}, written by {}", head.producer),
    );
    row(
        &mut out,
        "machine",
        format!(
            "ic-mode {}, level {}, {:#x} sources (XICS from {:#x}), server numbers below {}",
            ic_mode_name(m.ic_mode),
            level_name(m.compat),
            m.sources,
            m.xics_base,
            m.servers
        ),
    );
    let chosen = match (head.cas_xive, head.active) {
        (true, _) => "negotiated at CAS",
        (false, Mode::Xics) => "XIVE was not negotiated",
        (false, Mode::Xive) => "before CAS",
    };
    row(
        &mut out,
        "controller",
        format!("{}, {chosen}", mode_name(head.active).to_uppercase()),
    );
    row(
        &mut out,
        "vCPUs",
        format!("{}: servers {}", head.servers.len(), ranges(&head.servers)),
    );
    out
}

/// Everything.
pub fn state(state: &State, from: &str) -> String {
    let mut out = head(&state.head, from);
    let count = |kind| -> u32 {
        let of_kind = state.claims.iter().filter(|run| run.kind == kind);
        of_kind.map(|run| run.count).sum()
    };
    let ipis = match state.head.machine.ic_mode.has_xive() {
        true => state.head.machine.servers,
        false => 0,
    };
    row(
        &mut out,
        "claims",
        format!(
            "{} edge (IPIs: {}), {} level, {} MSIs",
            count(Kind::Edge),
            ipis,
            count(Kind::Lsi),
            count(Kind::Msi)
        ),
    );
    let high = state.inputs.iter().filter(|i| i.level_vmm || i.level_irqfd);
    let high: Vec<String> = high.map(|i| format!("{:#x}", i.lisn)).collect();
    let high = if high.is_empty() {
        "none".to_owned()
    } else {
        high.join(" ")
    };
    row(&mut out, "levels high", high);
    let waiting = waiting(state);
    match waiting.len() {
        0 => row(&mut out, "pending", "nothing"),
        n => row(&mut out, "pending", n),
    }
    for what in waiting.iter().take(MAX_PENDING) {
        line!(out, "  {what}");
    }
    if waiting.len() > MAX_PENDING {
        line!(out, "  and {} more", waiting.len() - MAX_PENDING);
    }
    tables(&mut out, state);
    out
}

/// Numbers as `0-3 8`.
fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*n) => *last = *n,
            _ => runs.push((*n, *n)),
        }
    }
    let text = |(first, last): (u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let texts: Vec<String> = runs.into_iter().map(text).collect();
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(" ")
    }
}

/// What has come and was not taken or ended, of the active controller.
fn waiting(state: &State) -> Vec<String> {
    let mut found = match state.head.active {
        Mode::Xics => waiting_xics(state),
        Mode::Xive => waiting_xive(state),
    };
    for input in state.inputs.iter().filter(|i| i.latched || i.resample_due) {
        let what = if input.latched {
            "came while quiesced"
        } else {
            "resamplefds are due"
        };
        found.push(format!("{:#x} {what}", input.lisn));
    }
    found
}

fn waiting_xics(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    for icp in &state.xics.icps {
        let server = icp.server;
        let presented = match icp.xisr {
            0 => None,
            2 => Some("the IPI".to_owned()),
            irq => Some(format!("{irq:#x}")),
        };
        if let Some(what) = presented {
            let priority = icp.pending_priority;
            found.push(format!(
                "{what} is presented to vCPU {server}, priority {priority}"
            ));
        }
        if icp.mfrr != 0xff && icp.xisr != 2 {
            let (mfrr, cppr) = (icp.mfrr, icp.cppr);
            found.push(format!(
                "an IPI of priority {mfrr} waits for vCPU {server} (CPPR {cppr})"
            ));
        }
    }
    let presented = |irq| state.xics.icps.iter().any(|icp| icp.xisr == irq);
    for source in &state.xics.sources {
        let (irq, server, priority) = (source.irq, source.server, source.priority);
        if source.masked_pending {
            found.push(format!("{irq:#x} came while masked"));
        }
        if source.rejected {
            found.push(format!(
                "{irq:#x} was refused by vCPU {server}, priority {priority}"
            ));
        }
        if source.sent && !presented(irq) {
            found.push(format!("{irq:#x} (level) was taken and not ended"));
        }
    }
    found
}

fn waiting_xive(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    for ring in &state.xive.rings {
        let (server, pipr) = (ring.server, tima::pipr(ring.bytes));
        let (ipb, cppr) = (tima::ipb(ring.bytes), tima::cppr(ring.bytes));
        if ring.bytes & tima::NSR_EO != 0 {
            found.push(format!("vCPU {server} has its line up, priority {pipr}"));
        } else if ipb != 0 {
            found.push(format!(
                "priority {pipr} waits for vCPU {server} (CPPR {cppr})"
            ));
        }
    }
    for source in &state.xive.sources {
        let (lisn, server, priority) = (source.lisn, source.end >> 3, source.end & 7);
        let to = format!("vCPU {server}, priority {priority}");
        match source.pq {
            2 if source.masked => {
                found.push(format!("{lisn:#x} came while masked, and is dropped"))
            }
            2 => found.push(format!("{lisn:#x} is in a queue or being served ({to})")),
            3 => found.push(format!("{lisn:#x} has come again before its end ({to})")),
            _ => {}
        }
    }
    found
}

/// A title and rows, if there are any.
fn table(out: &mut String, title: &str, rows: impl Iterator<Item = String>) {
    let rows: Vec<String> = rows.collect();
    if !rows.is_empty() {
        line!(out, "\n{title}\n  {}", rows.join("\n  "));
    }
}

fn tables(out: &mut String, state: &State) {
    let claims = state.claims.iter().map(|run| {
        let last = run.first + (run.count - 1);
        format!("{:#06x}-{last:#06x} {}", run.first, kind_name(run.kind))
    });
    table(out, "claims", claims);
    let free = |lisn| {
        if state.kind(lisn).is_none() {
            " (free)"
        } else {
            ""
        }
    };
    let xics = state.xics.sources.iter();
    let title = "XICS sources    server priority saved";
    table(out, title, xics.map(|s| xics_row(s, free(s.irq))));
    let title = "XICS presenters server CPPR   XISR PP MFRR";
    table(out, title, state.xics.icps.iter().map(icp_row));
    let xive = state.xive.sources.iter();
    let title = "XIVE sources    PQ mask server priority     EISN";
    table(out, title, xive.map(|s| xive_row(s, free(s.lisn))));
    let title = "XIVE queues     server priority      address size   index generation";
    table(out, title, state.xive.ends.iter().map(end_row));
    let title = "XIVE rings      server NSR CPPR IPB LSMFB ACK# INC PIPR";
    table(out, title, state.xive.rings.iter().map(ring_row));
}

fn xics_row(s: &XicsSource, free: &str) -> String {
    let (irq, server, priority, saved) = (s.irq, s.server, s.priority, s.saved);
    let flag = |is, name| if is { name } else { "" };
    let sent = flag(s.sent, " sent");
    let rejected = flag(s.rejected, " rejected");
    let masked = flag(s.masked_pending, " masked-pending");
    format!(
        "{irq:#06x}        {server:>6}       {priority:02x}    {saved:02x}{sent}{rejected}{masked}{free}"
    )
}

fn icp_row(i: &Icp) -> String {
    let (server, cppr, xisr) = (i.server, i.cppr, i.xisr);
    let (pp, mfrr) = (i.pending_priority, i.mfrr);
    format!("              {server:>6}   {cppr:02x} {xisr:06x} {pp:02x}   {mfrr:02x}")
}

fn xive_row(s: &XiveSource, free: &str) -> String {
    let (lisn, pq, server, priority, eisn) = (s.lisn, s.pq, s.end >> 3, s.end & 7, s.eisn);
    let mask = if s.masked { 'M' } else { '-' };
    format!("{lisn:#06x}        {pq:02b}    {mask} {server:>6} {priority:>8} {eisn:08x}{free}")
}

fn end_row(e: &End) -> String {
    let (server, priority, address) = (e.end >> 3, e.end & 7, e.address);
    let (size, index, generation) = (e.size, e.index, u8::from(e.generation));
    let once = if e.always_notify {
        ""
    } else {
        " notifies once"
    };
    format!(
        "              {server:>6} {priority:>8} {address:>12x} 2^{size} {index:>7} {generation}{once}"
    )
}

fn ring_row(r: &Ring) -> String {
    let [nsr, cppr, ipb, lsmfb, ack, inc, _, pipr] = r.bytes.to_be_bytes();
    let server = r.server;
    format!(
        "              {server:>6}  {nsr:02x}   {cppr:02x}  {ipb:02x}    {lsmfb:02x}   {ack:02x}  {inc:02x}   {pipr:02x}"
    )
}
