//! Debian's QEMU boots Debian's Linux on papr-intc: the matrix of boots, and the bench beside QEMU's own.
//!
//! `tests/qemu/run` and `tests/qemu/bench` install and build what this needs and start it. A boot ([`boot`]) is a
//! QEMU ([`process`], [`machine`]) whose lines ([`lines`]) are judged ([`verdict`]); meanwhile the guest is given
//! what it wants over QMP ([`wire`]), and the daemon is killed or upgraded ([`chaos`]). [`matrix`] says which boots
//! there are.
#![allow(clippy::unwrap_used)] // tests in here say where they stop

mod boot;
mod chaos;
mod cli;
mod lines;
mod machine;
mod matrix;
mod process;
mod report;
mod verdict;
mod wire;

use std::process::ExitCode;

use clap::Parser;

use cli::{Command, Options, Run};
use matrix::Boot;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        Command::Run(run) => boots(run),
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
    let setup = run.setup.resolve(&run.work, run.reboots)?;
    println!(
        "{} boots, papr.work={}\n\n{}",
        boots.len(),
        run.work,
        report::titles()
    );
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for (n, &boot) in (1..).zip(&boots) {
        let over = one(run, &setup, boot, &format!("{n}/{}", boots.len()))?;
        let row = report::row(&over);
        println!("{row}");
        rows.push(row);
        if !over.is_good() {
            println!("{}", report::failure(&over));
            failed.push(boot);
        } else if !run.keep {
            over.folder.remove();
        }
    }
    if !failed.is_empty() {
        println!("\n{}\n{}", report::titles(), rows.join("\n"));
    }
    println!("\nboots={} failed={}", boots.len(), failed.len());
    Ok(failed.is_empty())
}

fn one(run: &Run, setup: &machine::Setup, boot: Boot, count: &str) -> Result<boot::Over, String> {
    let folder = machine::Folder::make(&boot.to_string())?;
    let mut progress = report::Progress::of(format!("{count} {boot}"));
    let over = boot::boot(setup, boot, folder, run.setup.limits(), &mut |last| {
        progress.tell(last)
    });
    progress.end();
    Ok(over)
}
