//! papr-intc: the daemon of this version.

use std::process::ExitCode;

use papr_intc::cli::Args;
use papr_intc::daemon;
use papr_intc_protocol::Versions;

fn main() -> ExitCode {
    match daemon::parse::<Args>(std::env::args_os()) {
        Ok(args) => daemon::main(&args, Versions::current(papr_intc::BUILD)),
        Err(code) => code,
    }
}
