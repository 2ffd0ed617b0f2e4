//! Differences that are a row's doing and that later operations feel: proved with the slow model.
//!
//! Some points in which no compat level follows QEMU (section 2 of `docs/fidelity.md`) leave another state
//! behind, so that what is expected instead of a recorded result depends on the whole history. The model
//! knows QEMU's side of these points. A difference is known only if the model with QEMU's side of all of them
//! gives the recorded result, *and* the model without gives exactly the result that was seen. The row it is
//! counted under is the first whose QEMU side, taken away after those before it, loses the recorded result.

use super::ReplayError;
use super::guest::{Guest, Outcome, Shape};
use super::report::Verdict;
use super::rows::{self, Row};

/// Builds the model of a machine at compat level `qemu-7.2`, but with QEMU's side of these rows.
pub type Models<'a> = dyn FnMut(&Shape, &[Row]) -> Outcome<Box<dyn Guest>> + 'a;

/// Does all operations on a machine with QEMU's side of these rows.
pub type Again<'a> = dyn FnMut(&[Row]) -> Result<Vec<Verdict>, ReplayError> + 'a;

/// Puts rows and expectations to verdicts that differ, where the models prove them. `again` gives its
/// verdicts in the same order.
pub fn explain(verdicts: &mut [Verdict], again: &mut Again<'_>) -> Result<(), ReplayError> {
    if verdicts.iter().all(|v| v.want == v.got || v.odd.is_some()) {
        return Ok(());
    }
    // From all rows as in QEMU to none.
    let steps: Vec<Vec<Verdict>> = (0..=rows::WITH_STATE.len())
        .map(|taken| again(&rows::WITH_STATE[taken..]))
        .collect::<Result<_, _>>()?;
    for (i, verdict) in verdicts.iter_mut().enumerate() {
        let gives = |step: &Vec<Verdict>, what: &str| step.get(i).is_some_and(|v| v.got == what);
        let (Some(qemu), Some(ours)) = (steps.first(), steps.last()) else {
            continue;
        };
        if verdict.want == verdict.got || !gives(qemu, &verdict.want) || !gives(ours, &verdict.got)
        {
            continue;
        }
        let lost = steps.iter().position(|step| !gives(step, &verdict.want));
        if let Some(row) = lost.and_then(|step| rows::WITH_STATE.get(step.wrapping_sub(1))) {
            verdict.want.clone_from(&verdict.got);
            verdict.row = Some(row);
        }
    }
    Ok(())
}
