//! What each path costs beside the least that the machine and the kernel allow, measured in the same run in
//! alternating pairs: `cargo bench --bench limits`. `docs/performance.md` says how to read it.
//!
//! | option | |
//! |---|---|
//! | `--quick` | fewer pairs: 20 seconds instead of two minutes |
//! | `--json FILE` | the table for machines |
//! | `--plot FILE` | the distributions as SVG |
//! | `--only TEXT` | the groups whose name contains this |
//! | `--gate` | ends with 1 if an aim is missed in a row that is a gate |

mod case;
mod cycle;
mod esb;
mod json;
mod presenter;
mod rig;
mod steps;
mod table;
mod timing;

use std::time::Duration;

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::IcMode;

use crate::case::Case;
use crate::rig::{Rig, machine, no_kick, pin};
use crate::table::Row;
use crate::timing::Budget;

/// What was asked for.
#[derive(Default)]
struct Asked {
    quick: bool,
    json: Option<String>,
    plot: Option<String>,
    only: Option<String>,
    gate: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1..) {
        Some([role, ic_mode]) if role == steps::STEPPED => return stepped(ic_mode),
        _ => {}
    }
    let asked = match Asked::parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(what) => {
            eprintln!("limits: {what}");
            std::process::exit(2);
        }
    };
    let budget = Budget {
        time: Duration::from_millis(if asked.quick { 60 } else { 500 }),
        least: 9,
    };
    let mut rows = Vec::new();
    table::heading();
    pin(0);
    for ic_mode in [IcMode::Xive, IcMode::Xics] {
        alone(ic_mode, budget, &mut rows);
    }
    if let Some(file) = &asked.json {
        std::fs::write(file, json::document(&rows)).expect("a file that can be written");
    }
    if asked.gate && rows.iter().any(|row| row.gate && row.is_missed()) {
        std::process::exit(1);
    }
}

/// A machine for what one thread does by itself.
fn small(ic_mode: IcMode) -> Rig {
    let rig = Rig::start(machine(ic_mode, 8192, 32), Executor::FrontEnd, no_kick());
    rig.expect("a machine")
}

/// What one thread does by itself: by the clock, and in instructions.
fn alone(ic_mode: IcMode, budget: Budget, rows: &mut Vec<Row>) {
    let name = format!("{ic_mode:?}");
    let counts = steps::counts(&[steps::STEPPED, &name]);
    let mut counts = counts.iter().flatten().map(|n| *n as f64);
    let rig = small(ic_mode);
    for mut case in cases(&rig) {
        let mut row = case.measure(budget);
        let batch = f64::from(case.batch);
        row.steps = counts.next().zip(counts.next());
        row.steps = row.steps.map(|(ours, limit)| (ours / batch, limit / batch));
        add(rows, row);
    }
}

/// The process whose instructions are counted.
fn stepped(ic_mode: &str) {
    pin(0);
    let ic_mode = match ic_mode {
        "Xive" => IcMode::Xive,
        _ => IcMode::Xics,
    };
    let rig = small(ic_mode);
    if steps::be_stepped() {
        steps::offer(&mut cases(&rig));
    }
}

/// The cases on such a machine.
fn cases(rig: &Rig) -> Vec<Case<'_>> {
    let groups = match rig.machine.ic_mode {
        IcMode::Xive => [esb::cases(rig), cycle::xive(rig), presenter::xive(rig)],
        _ => [Vec::new(), cycle::xics(rig), presenter::xics(rig)],
    };
    groups.into_iter().flatten().collect()
}

fn add(rows: &mut Vec<Row>, row: Row) {
    table::line(&row);
    rows.push(row);
}

impl Asked {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self::default();
        while let Some(arg) = args.next() {
            let mut file = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--quick" | "--test" => asked.quick = true,
                "--gate" => asked.gate = true,
                "--json" => asked.json = Some(file()?),
                "--plot" => asked.plot = Some(file()?),
                "--only" => asked.only = Some(file()?),
                // From cargo.
                "--bench" => {}
                other => return Err(format!("{other} is not known")),
            }
        }
        Ok(asked)
    }
}
