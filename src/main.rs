//! papr-intc.

use std::process::ExitCode;

use papr_intc::versions::Versions;

fn main() -> ExitCode {
    papr_intc::daemon::main(Versions::OWN)
}
