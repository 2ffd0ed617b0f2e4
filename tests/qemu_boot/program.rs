//! Debian's QEMU boots Debian's Linux on papr-intc: the matrix of boots, and the bench beside QEMU's own.
//!
//! `tests/qemu/run` and `tests/qemu/bench` install and build what this needs and start it. A boot ([`boot`]) is a
//! QEMU ([`process`], [`machine`]) whose lines ([`lines`]) are judged ([`verdict`]); meanwhile the guest is given
//! what it wants over QMP ([`wire`]), and the daemon is killed or upgraded ([`chaos`]). [`matrix`] says which boots
//! there are.
#![allow(clippy::unwrap_used)] // tests in here say where they stop

mod bench;
mod boot;
mod chaos;
mod cli;
mod lines;
mod machine;
mod matrix;
mod process;
mod report;
mod statistics;
mod verdict;
mod wire;

use std::process::ExitCode;

use clap::Parser;

use bench::Measured;
use boot::{Limits, Over};
use cli::{Bench, Command, Options, Run};
use machine::{Folder, Setup};
use matrix::{Boot, Cpu, IcMode, Way};
use report::Progress;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        Command::Run(run) => boots(run),
        Command::Bench(bench) => pairs(bench),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

/// Boots what was asked for; whether all of it was good.
fn boots(run: &Run) -> Result<bool, String> {
    let boots = run.boots();
    if boots.is_empty() {
        return Err("no boot of this name; --list shows them".to_owned());
    }
    if run.list {
        boots.iter().for_each(|b| println!("{b}"));
        return Ok(true);
    }
    let setup = run.setup.resolve(run.work(), run.again())?;
    let all = boots.len();
    println!("{all} boots, papr.work={}\n", run.work());
    println!("{}", report::titles());
    let mut verdicts = Vec::new();
    for (n, &boot) in (1..).zip(&boots) {
        let over = one(&setup, run.setup.limits(), boot, &format!("{n}/{all}"))?;
        println!("{}", report::row(&over));
        verdicts.push((boot, over.is_good()));
        if !over.is_good() {
            println!("{}", report::failure(&over));
        } else if !run.keep {
            over.folder.remove();
        }
    }
    let failed = verdicts.iter().filter(|(_, good)| !good).count();
    println!("\n{}", report::table(&verdicts));
    println!("boots={all} failed={failed}");
    Ok(failed == 0)
}

/// Measures pairs of boots; whether all of them were good.
fn pairs(bench: &Bench) -> Result<bool, String> {
    let json = bench.json.as_deref().map(std::path::absolute).transpose();
    let json = json.map_err(|e| format!("--json: {e}"))?;
    let setup = bench.setup.resolve(&bench.work, false)?;
    println!("{}", report::titles());
    let mut all = Vec::new();
    for &mode in &bench.mode {
        let mut measured = Measured::new(mode);
        for n in 0..bench.pairs {
            let Some([stock, ours]) = pair(bench, &setup, mode, n)? else {
                return Ok(false);
            };
            measured.add(&stock, &ours);
            stock.folder.remove();
            ours.folder.remove();
        }
        all.push(measured);
    }
    println!("\n{}", bench::titles());
    for row in all.iter().flat_map(Measured::rows) {
        println!("{row}");
    }
    json.map_or(Ok(()), |path| bench::write(&path, &all))?;
    Ok(true)
}

/// Boots a pair: QEMU's and ours, whichever went first; nothing if one of them failed.
fn pair(bench: &Bench, setup: &Setup, mode: IcMode, n: u32) -> Result<Option<[Over; 2]>, String> {
    let count = format!("pair {}/{}", n + 1, bench.pairs);
    let boot = |boot| {
        let over = one(setup, bench.setup.limits(), boot, &count)?;
        println!("{}", report::row(&over));
        if !over.is_good() {
            println!("{}", report::failure(&over));
        }
        Ok::<Over, String>(over)
    };
    let [first, second] = bench::pair(mode, bench.vcpus, Cpu::Power9, n);
    let first = boot(first)?;
    if !first.is_good() {
        return Ok(None);
    }
    let second = boot(second)?;
    if !second.is_good() {
        return Ok(None);
    }
    let swapped = second.boot.way == Way::Stock;
    let (stock, ours) = if swapped {
        (second, first)
    } else {
        (first, second)
    };
    Ok(Some([stock, ours]))
}

fn one(setup: &Setup, limits: Limits, boot: Boot, count: &str) -> Result<Over, String> {
    let folder = Folder::make(&boot.to_string())?;
    let mut progress = Progress::of(format!("{count} {boot}"));
    let over = boot::boot(setup, boot, folder, limits, &mut |last| progress.tell(last));
    progress.end();
    Ok(over)
}
