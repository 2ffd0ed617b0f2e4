//! A papr-intc that stops, or fails a system call, where a test says: for the enumeration of crash points.
//!
//! The code is the daemon's own. Every write to shared memory is announced by the library's feature
//! `crash-points`, every system call is caught by a seccomp filter ([`trap`]). Both are numbered while the
//! test has armed the [`control`] page; at the number it asks for, the process says so there and stands still
//! until it is killed, or the call fails with the error that the test asks for.
//!
//! Takes the arguments of `papr-intc`, and last `--crash FILE`, the control page.

mod control;
mod trap;

use std::ffi::OsString;
use std::process::ExitCode;

use papr_intc::cli::{self, Args};
use papr_intc::{BUILD, daemon};
use papr_intc_protocol::Versions;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let path = args.pop().unwrap_or_default();
    if args.pop().is_none_or(|option| option != "--crash") {
        eprintln!("crash_daemon: --crash FILE is expected last");
        return ExitCode::from(2);
    }
    // A test that is interrupted leaves nothing standing still.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    if let Err(e) = control::open(path.as_ref()).and_then(|()| trap::install()) {
        eprintln!("crash_daemon: {e}");
        return ExitCode::from(2);
    }
    papr_intc_protocol::layout::probe::install(|address| {
        control::point(control::Point::Write(address));
    });
    match cli::parse::<Args>(args) {
        Ok(args) => daemon::main(&args, Versions::current(BUILD)),
        Err(code) => code,
    }
}
