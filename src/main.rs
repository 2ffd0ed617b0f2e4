//! papr-intc: the daemon of this version, and what people ask it.

use std::ffi::OsString;
use std::process::ExitCode;

use papr_intc::cli::{self, Args};
use papr_intc::{convert, daemon, monitor};
use papr_intc_protocol::Versions;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // A word of its own before the daemon's options, which all begin with dashes.
    let word = args.get(1);
    if word.is_some_and(|word| word == "status" || word == "query") {
        return monitor::command::main(args);
    }
    if word.is_some_and(|word| word == "state") {
        return convert::command::main(args);
    }
    match cli::parse::<Args>(args) {
        Ok(args) => daemon::main(&args, Versions::current(papr_intc::BUILD)),
        Err(code) => code,
    }
}
