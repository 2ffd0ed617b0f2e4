//! A mock VMM: a pseries guest made of threads, its devices, and a real papr-intc daemon in charge of
//! their interrupts, which is killed meanwhile.
//!
//!     cargo run --release --example mock_vmm -- --mode dual --vcpus 4 --duration 10
//!
//! What runs: [`guest`] is a kernel that uses its interrupt controller as Linux does; [`devices`] and
//! [`device_process`] trigger its interrupts, from threads and from another process, and [`ring`] has
//! a vhost-user device do so (`examples/vhost_device`); [`conductor`] boots, drains, reboots and resets; [`chaos`] kills, stops and replaces the
//! daemon; [`moves`] moves the guest to another one; [`cells`] is the ground truth by which
//! nothing may be lost. [`real`] is the part to read for someone who wants to embed papr-intc.
//!
//! It ends with 0 if nothing was lost and nothing answered wrongly, 1 if something was, 2 if it could
//! not run. The last line of its output is for scripts.

mod board;
mod cells;
mod chaos;
mod cli;
mod conductor;
mod device_process;
mod devices;
mod faults;
#[path = "../find_daemon/mod.rs"]
mod find_daemon;
mod guest;
mod halt;
mod model;
mod moves;
mod real;
mod report;
mod ring;
mod rng;
mod setup;
mod tally;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let options = cli::Options::parse();
    if let Some(arguments) = options.child() {
        return match device_process::child(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => complain(&format!("device process: {e}")),
        };
    }
    match setup::run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(gone) => complain(&gone.to_string()),
    }
}

fn complain(what: &str) -> ExitCode {
    eprintln!("mock_vmm: {what}");
    ExitCode::from(2)
}
