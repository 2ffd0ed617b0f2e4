//! A daemon of the next release, for tests of upgrade and roll-back: the code of this one, with other
//! numbers. It speaks one protocol more, has another plane ABI (so that it asks front-ends of this
//! release to leave the data plane to it), and marks the memory with a compat flag. With
//! `PAPR_INTC_NEXT=incompat` it also marks it with an incompat flag, after which this release must refuse
//! the memory. Takes the arguments of `papr-intc`.

use std::process::ExitCode;

use papr_intc::versions::Versions;

/// A flag that this release does not know.
const NEXT: u64 = 1 << 63;

fn main() -> ExitCode {
    let own = Versions::OWN;
    let incompat = std::env::var("PAPR_INTC_NEXT").is_ok_and(|v| v == "incompat");
    papr_intc::daemon::main(Versions {
        protocol_max: own.protocol_max + 1,
        plane: own.plane + 1,
        compat_flags: NEXT,
        incompat_flags: if incompat { NEXT } else { 0 },
        text: "papr-intc next (for tests)",
        ..own
    })
}
