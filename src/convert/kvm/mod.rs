//! KVM's in-kernel controllers, as a JSON document of their device attributes and registers.
//!
//! * [`attributes`]: the values, bit by bit; [`xics`], [`xive`]: from and to the model.
//! * [`document`]: the JSON (docs/convert.md).
//!
//! KVM has the active controller only. **Untested on a host**: this project has no POWER machine; it follows
//! the documented interface and what QEMU does with it.

pub mod attributes;
pub mod document;
#[cfg(test)]
mod tests;
pub mod xics;
pub mod xive;

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::{Xics, Xive};

use self::attributes::Attributes;
use super::{ConvertError, Notes, inputs, refused};

/// What KVM has to be given for a state.
pub fn export(state: &State, notes: &mut Notes) -> Result<Attributes, ConvertError> {
    state.validate()?;
    let state = inputs::settle(state, notes)?;
    let inactive = |notes: &mut Notes, what: &str| {
        notes.add(
            what,
            "the controller is not active, and KVM does not have it: as after reset",
        );
    };
    match state.head.active {
        Mode::Xics => {
            if state.xive != Xive::default() {
                inactive(notes, "xive");
            }
            Ok(Attributes::Xics(xics::export(&state, notes)?))
        }
        Mode::Xive => {
            if state.xics != Xics::default() {
                inactive(notes, "xics");
            }
            Ok(Attributes::Xive(xive::export(&state, notes)?))
        }
    }
}

/// The state that KVM holds: `state` has machine, vCPUs and claims, the rest is as after reset.
pub fn import(from: &Attributes, mut state: State) -> Result<State, ConvertError> {
    state.validate()?;
    match (from, state.head.active) {
        (Attributes::Xics(from), Mode::Xics) => xics::import(from, &mut state)?,
        (Attributes::Xive(from), Mode::Xive) => xive::import(from, &mut state)?,
        (Attributes::Xics(_), Mode::Xive) => {
            return Err(refused("attributes", "of XICS, but XIVE is active"));
        }
        (Attributes::Xive(_), Mode::Xics) => {
            return Err(refused("attributes", "of XIVE, but XICS is active"));
        }
    }
    state.validate()?;
    Ok(state)
}

/// Sources exist in KVM for the claimed numbers, and no others.
fn same_numbers(
    state: &State,
    controller: &str,
    there: impl Iterator<Item = u32>,
) -> Result<(), ConvertError> {
    let base = match state.head.active {
        Mode::Xics => state.head.machine.xics_base,
        Mode::Xive => 0,
    };
    let runs = state.claims.iter();
    let mut claimed = runs.flat_map(|run| run.first.max(base)..run.first + run.count);
    let mut there = there;
    loop {
        let (here, there) = (claimed.next(), there.next());
        if here == there {
            if here.is_none() {
                return Ok(());
            }
            continue;
        }
        let number = here.into_iter().chain(there).min().unwrap_or(0);
        let what = match here == Some(number) {
            true => "it is claimed, and has no attributes",
            false => "it has attributes, and is not claimed",
        };
        return Err(refused(format!("{controller} source {number:#x}"), what));
    }
}
