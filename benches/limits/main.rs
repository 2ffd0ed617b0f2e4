//! What each path costs beside the least that the machine and the kernel allow, measured in the same run in
//! alternating pairs: `cargo bench --bench limits`. `docs/performance.md` says how to read it.
//!
//! | option | |
//! |---|---|
//! | `--quick` | fewer pairs: 20 seconds instead of two minutes |
//! | `--json FILE` | the table for machines |
//! | `--plot FILE` | the distributions as SVG |
//! | `--only TEXT` | the groups whose name contains this: alone, ipi, irqfd, channel, state, scale, parallel, restart, rest, peer, move |
//! | `--gate` | ends with 1 if an aim is missed in a row that is a gate |

mod case;
mod channel;
mod cycle;
mod esb;
mod hop;
mod ipi;
mod irqfd;
mod json;
mod parallel;
mod peer;
mod plot;
mod presenter;
mod rest;
mod restart;
mod rig;
mod scale;
mod state;
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if is_another_process(&arguments) {
        return;
    }
    let asked = match Asked::parse(arguments.into_iter()) {
        Ok(asked) => asked,
        Err(what) => {
            eprintln!("limits: {what}");
            std::process::exit(2);
        }
    };
    let rows = measure(&asked);
    let written = [
        (&asked.json, json::document as fn(&[Row]) -> String),
        (&asked.plot, plot::svg),
    ];
    for (file, make) in written {
        if let Some(file) = file
            && let Err(e) = std::fs::write(file, make(&rows))
        {
            eprintln!("limits: {file}: {e}");
            std::process::exit(2);
        }
    }
    let missed = rows.iter().filter(|row| row.is_missed());
    println!(
        "\n{} rows, {} aims missed, {} of them in rows that are gates",
        rows.len(),
        missed.clone().count(),
        missed.clone().filter(|row| row.gate).count()
    );
    if asked.gate && missed.clone().any(|row| row.gate) {
        std::process::exit(1);
    }
}

/// This program is also the other processes that it measures.
fn is_another_process(arguments: &[String]) -> bool {
    match arguments {
        [role, ic_mode] if role == steps::STEPPED => stepped(ic_mode),
        [role, sizes @ ..] if role == channel::ECHO => channel::echo(sizes),
        [role, numbers @ ..] if role == rest::REST => rest::rest(numbers),
        [role] if role == irqfd::RELAY => irqfd::relay(),
        [role] if role == peer::HANDLER => peer::handler(),
        _ => return false,
    }
    true
}

/// Every group of paths that was asked for.
fn measure(asked: &Asked) -> Vec<Row> {
    let budget = |ms: u64, quick_ms: u64| Budget {
        time: Duration::from_millis(if asked.quick { quick_ms } else { ms }),
        least: 9,
    };
    let wanted = |group: &str| {
        asked
            .only
            .as_deref()
            .is_none_or(|only| group.contains(only))
    };
    let mut rows = Vec::new();
    rig::cpus();
    restart::raise_limit();
    let resting = wanted("rest").then(|| rest::begin(asked.quick));
    table::heading();
    if wanted("alone") {
        for ic_mode in [IcMode::Xive, IcMode::Xics] {
            alone(ic_mode, budget(500, 60), &mut rows);
        }
    }
    if wanted("ipi") {
        ipi::measure(budget(1000, 100), |row| add(&mut rows, row));
    }
    if wanted("irqfd") {
        irqfd::measure(budget(1000, 100), |row| add(&mut rows, row));
    }
    if wanted("channel") {
        channel::measure(budget(1000, 100), |row| add(&mut rows, row));
    }
    if wanted("state") {
        state::measure(budget(1000, 100), |row| add(&mut rows, row));
    }
    if wanted("scale") {
        scale::measure(budget(500, 60), |row| add(&mut rows, row));
    }
    if wanted("parallel") {
        parallel::measure(budget(1000, 100), |row| add(&mut rows, row));
    }
    if wanted("restart") {
        restart::measure(asked.quick, |row| add(&mut rows, row));
    }
    if let Some(resting) = resting {
        resting.end(|row| add(&mut rows, row));
    }
    if wanted("peer") {
        peer::measure(budget(1000, 100));
    }
    if wanted("move") {
        state::stand_still(asked.quick);
    }
    rows
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
