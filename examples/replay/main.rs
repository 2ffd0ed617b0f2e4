//! Replays recordings of QEMU 7.2's interrupt controllers against papr-intc, and compares op by op.
//!
//! `cargo run --release --example replay -- [--strict] [--via mapped|remote|alternate] FILE...`
//!
//! Each file is replayed against a fresh daemon at compat level `qemu-7.2`. Per file and in total one line
//! `ops=N equal=N known=N different=N`, with `known` also by row of `docs/fidelity.md`, and the first
//! differences in full. Exit code 1 if anything differs or a file cannot be replayed to its end.

mod daemon_guest;
mod engine;
#[path = "../find_daemon/mod.rs"]
mod find_daemon;
#[path = "../../tests/model/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests, which use other parts of it"
)]
mod model;
mod model_guest;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use daemon_guest::{Compat, DaemonGuest, Way};
use engine::guest::Start;
use engine::report::Report;
use model::rules::Rules;
use model_guest::ModelGuest;

/// Replay recordings of QEMU's interrupt controllers against papr-intc.
#[derive(Parser)]
#[command(name = "replay")]
struct Options {
    /// Refuse everything that skips a comparison, but results the recording itself marks `odd:`.
    #[arg(long)]
    strict: bool,
    /// Who runs the data plane.
    #[arg(long, value_enum, default_value_t = Via::Mapped)]
    via: Via,
    /// The daemon's binary, if not the one built with this program.
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// Oracle traces, XICS state files, boot recordings; plain or xz.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Via {
    /// The front-end, on mapped pages.
    Mapped,
    /// The daemon, by messages.
    Remote,
    /// Both in turn: the executor changes every 50 operations.
    Alternate,
    /// Nobody: the slow model of tests/model, to check the replayer itself.
    Model,
}

/// How machines are built for each file.
fn starter(options: &Options) -> Result<Box<Start<'static>>, String> {
    let way = match options.via {
        Via::Model => return Ok(Box::new(|shape| ModelGuest::start(shape, Rules::QEMU_7_2))),
        Via::Mapped => Way::Mapped,
        Via::Remote => Way::Remote,
        Via::Alternate => Way::Alternate,
    };
    let daemon = match &options.daemon {
        Some(path) => path.clone(),
        None => find_daemon::find_daemon()?,
    };
    Ok(Box::new(move |shape| {
        DaemonGuest::start(shape, Compat::Qemu72, way, &daemon)
    }))
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut start = match starter(&options) {
        Ok(start) => start,
        Err(why) => {
            eprintln!("replay: {why}");
            return ExitCode::from(2);
        }
    };
    let mut total = Report::default();
    let mut failed = false;
    for path in &options.files {
        let name = path.file_name().map_or_else(
            || path.display().to_string(),
            |n| n.to_string_lossy().into_owned(),
        );
        let replayed = engine::files::read(path).and_then(|text| {
            let models = &mut ModelGuest::recorded;
            engine::replay(&name, &text, options.strict, &mut *start, models)
        });
        match replayed {
            Ok(report) => {
                println!("{name}: {report}");
                for difference in &report.first {
                    println!("  {difference}");
                }
                total.add(&report);
            }
            Err(e) => {
                println!("{name}: {e}");
                failed = true;
            }
        }
    }
    println!("total: {total}");
    ExitCode::from(u8::from(failed || total.different != 0))
}
