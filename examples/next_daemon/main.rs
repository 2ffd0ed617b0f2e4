//! The daemon of "the next version", for tests of upgrade and roll back: the same code as papr-intc, with
//! other numbers.
//!
//! | number | here | what follows |
//! |---|---|---|
//! | protocol | N to N + 1 | HELLO chooses N with a front-end of today |
//! | plane ABI | N + 1, goes on with memory of N | DEMOTE to a front-end of today: remote mode |
//! | layout | with `--layout 1`: 1 | new memory has it; this and later builds go on with it |
//! | compat flag bit 63 | set in every memory that it serves | a daemon of today does not mind |
//! | features of HELLO | none | threads of a front-end make their own fences |
//! | incompat flag bit 63 | known, set with `--use-next` | a daemon of today refuses the memory from then on |
//!
//! No message and no bit means anything else than in papr-intc: what is new is that the numbers differ.

use std::process::ExitCode;

use clap::Parser;
use papr_intc::cli::{self, Args};
use papr_intc::daemon;
use papr_intc_protocol::Versions;

/// The flag that this version adds to the header: as far from those of real versions as it gets.
const NEXT_FLAG: u64 = 1 << 63;

/// papr-intc with the numbers of a next version, for tests.
#[derive(Debug, Parser)]
#[command(name = "next_daemon", version)]
struct NextArgs {
    #[command(flatten)]
    args: Args,

    /// Know no layout above this one, as a version of before
    #[arg(long, default_value_t = papr_intc_protocol::LAYOUT_VERSION)]
    layout: u16,

    /// Use what the incompat flag stands for: older daemons refuse the memory from then on
    #[arg(long)]
    use_next: bool,
}

fn versions(next: &NextArgs) -> Versions {
    let now = Versions::current("papr-intc next");
    Versions {
        protocol_max: now.protocol_max + 1,
        plane: now.plane + 1,
        compat_flags: now.compat_flags | NEXT_FLAG,
        incompat_known: now.incompat_known | NEXT_FLAG,
        incompat_used: if next.use_next { NEXT_FLAG } else { 0 },
        layout: next.layout,
        features: 0,
        ..now
    }
}

fn main() -> ExitCode {
    match cli::parse::<NextArgs>(std::env::args_os()) {
        Ok(next) => daemon::main(&next.args, versions(&next)),
        Err(code) => code,
    }
}
