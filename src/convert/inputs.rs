//! Inputs that only we carry, settled: QEMU and KVM know one level for each LSI, and no latch.

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::{Input, Kind, XicsSource, XiveSource};

use super::{ConvertError, Notes, refused};

/// The state as it is once what waits outside has come in: inputs are levels of the VMM's devices, nothing else.
///
/// # Errors
/// A latched event that has to be written to a queue in guest memory.
pub fn settle(state: &State, notes: &mut Notes) -> Result<State, ConvertError> {
    let mut settled = state.clone();
    settled.inputs.clear();
    for input in &state.inputs {
        let item = || format!("input {:#x}", input.lisn);
        if input.latched && state.kind(input.lisn) != Some(Kind::Lsi) {
            match state.head.active {
                Mode::Xics => trigger_xics(&mut settled, input.lisn),
                Mode::Xive => trigger_xive(&mut settled, input.lisn)?,
            }
            notes.add(
                item(),
                "the event that came while quiesced has taken effect",
            );
        }
        if input.resample_due {
            notes.add(item(), "resamplefds that are due are not carried");
        }
        if input.level_irqfd && !input.level_vmm {
            notes.add(item(), "the level of an irqfd is now the VMM's");
        }
        if input.level_irqfd || input.level_vmm {
            settled.inputs.push(Input {
                lisn: input.lisn,
                level_vmm: true,
                ..Input::default()
            });
        }
    }
    Ok(settled)
}

/// An MSI trigger that finds nobody to take it: the resend after the load presents it.
fn trigger_xics(state: &mut State, irq: u32) {
    let sources = &mut state.xics.sources;
    let at = match sources.binary_search_by_key(&irq, |s| s.irq) {
        Ok(at) => at,
        Err(at) => {
            sources.insert(at, XicsSource::reset(irq));
            at
        }
    };
    match sources[at].priority {
        0xff => sources[at].masked_pending = true,
        _ => sources[at].rejected = true,
    }
}

/// A trigger of the ESB. A forwarded event must be one that the router drops.
fn trigger_xive(state: &mut State, lisn: u32) -> Result<(), ConvertError> {
    let sources = &mut state.xive.sources;
    // As after reset it is off: nothing happens.
    let Ok(at) = sources.binary_search_by_key(&lisn, |s| s.lisn) else {
        return Ok(());
    };
    let XiveSource {
        pq, masked, end, ..
    } = sources[at];
    let routed = state
        .xive
        .ends
        .binary_search_by_key(&end, |e| e.end)
        .is_ok();
    match pq {
        0 if !masked && routed => Err(refused(
            format!("input {lisn:#x}"),
            format!(
                "an event that came while quiesced belongs into the queue of END {end:#x}: resume first"
            ),
        )),
        0 | 2 => {
            sources[at].pq = pq + if pq == 0 { 2 } else { 1 };
            Ok(())
        }
        _ => Ok(()),
    }
}
