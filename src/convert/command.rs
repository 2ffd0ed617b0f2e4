//! `papr-intc state`: show, check and convert files; exit codes as of `papr-intc status`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::caps;

use super::file::{self, Content, FileError, Format, Found};
use super::qemu::sections::ByteOrder;
use super::qemu::{self, Options, stream::Stream};
use super::{ConvertError, Notes, json, show};
use crate::cli::{self, CliCompat, CliIcMode};
use crate::monitor::command::exit;

/// Looks at saved states and converts them.
#[derive(Debug, Parser)]
#[command(name = "papr-intc state", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a state holds
    Show(Show),
    /// Whether a state is sound, and fits a machine
    Check(Check),
    /// From one format to another
    Convert(Convert),
}

/// A file, and what it does not say.
#[derive(Debug, Args)]
struct Input {
    /// The state
    file: PathBuf,
    /// Its format [default: what it begins with]
    #[arg(long, value_name = "FORMAT")]
    from: Option<Format>,
    /// Server numbers of the machine; a QEMU file of a machine with XICS only does not say it
    #[arg(long, value_name = "N")]
    servers: Option<u32>,
    /// QEMU: server numbers from one vCPU to the next; a machine with XICS only does not say it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vsmt: Option<u32>,
    /// QEMU: byte order of the host whose XIVE tables are read, or with --to qemu written [default: as found]
    #[arg(long, value_name = "ORDER")]
    byte_order: Option<CliByteOrder>,
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    input: Input,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    input: Input,
    /// Would the machine with this state, or head of one, take it?
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Would a machine with these controllers?
    #[arg(long, value_name = "MODE")]
    ic_mode: Option<CliIcMode>,
    /// Would a machine of this compat level?
    #[arg(long, value_name = "LEVEL")]
    compat: Option<CliCompat>,
    /// Would a machine with so many sources?
    #[arg(long, value_name = "N")]
    sources: Option<u32>,
}

#[derive(Debug, Args)]
struct Convert {
    #[command(flatten)]
    input: Input,
    /// The format to write
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// QEMU: put it into this migration file of the same machine
    #[arg(long, value_name = "STREAM")]
    into: Option<PathBuf>,
    /// Where to
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Refuse to change anything
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliByteOrder {
    /// x86, ppc64le
    Le,
    /// ppc64
    Be,
}

type Failure = (u8, String);

/// Runs the command line, `papr-intc state` first.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args = std::iter::once("papr-intc state".into()).chain(args.into_iter().skip(2));
    let Cli { command } = match cli::parse(args) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let done = match command {
        Command::Show(show) => show.run(),
        Command::Check(check) => check.run(),
        Command::Convert(convert) => convert.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => cli::failed(code, &line),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let printed = io::stdout().write_all(text.as_bytes());
    printed.map_err(|e| (exit::BLIND, format!("stdout: {e}")))
}

/// A file's failure: what is in it is the answer no, that it cannot be read is no answer.
fn file_failure(e: FileError) -> Failure {
    let code = match e {
        FileError::Io(..) => exit::BLIND,
        FileError::Refused(..) | FileError::Unknown(_) => exit::AWAY,
    };
    (code, e.to_string())
}

impl Input {
    fn options(&self) -> Options {
        Options {
            servers: self.servers,
            vsmt: self.vsmt,
            byte_order: self.byte_order.map(|order| match order {
                CliByteOrder::Le => ByteOrder::Little,
                CliByteOrder::Be => ByteOrder::Big,
            }),
        }
    }

    fn load(&self) -> Result<Found, Failure> {
        file::load(&self.file, self.from, &self.options()).map_err(file_failure)
    }
}

impl Show {
    fn run(&self) -> Result<(), Failure> {
        let found = self.input.load()?;
        let from = found.format.name();
        let text = match (&found.content, self.json) {
            (Content::State(state), true) => format!("{:#}\n", json::state(state)),
            (Content::Head(head), true) => format!("{:#}\n", json::head(head)),
            (Content::State(state), false) => show::state(state, from),
            (Content::Head(head), false) => show::head(head, from),
        };
        found
            .notes
            .0
            .iter()
            .for_each(|note| cli::say(&note.to_string()));
        print(&text)
    }
}

impl Check {
    fn run(&self) -> Result<(), Failure> {
        let found = self.input.load()?;
        let head = found.content.head();
        let refused =
            |e: caps::Mismatch| (exit::AWAY, format!("{}: {e}", self.input.file.display()));
        let servers = self.input.servers.unwrap_or(head.machine.servers);
        let machine = Machine {
            ic_mode: self.ic_mode.map_or(head.machine.ic_mode, CliIcMode::into),
            compat: self.compat.map_or(head.machine.compat, CliCompat::into),
            sources: self.sources.unwrap_or(head.machine.sources),
            servers,
            ..head.machine
        };
        caps::accept(head, &machine, &head.servers).map_err(refused)?;
        if let Some(path) = &self.against {
            let there = file::load(path, None, &Options::default()).map_err(file_failure)?;
            let there = there.content.head();
            caps::accept(head, &there.machine, &there.servers).map_err(refused)?;
            let here: Vec<_> = caps::of_devices(&there.machine, there.fixed.clone()).collect();
            match &found.content {
                Content::State(state) => caps::accept_claims(&state.claims, &here),
                // More than a head has room for: the daemon, too, looks at the load.
                Content::Head(head) if head.fixed.is_empty() => Ok(()),
                Content::Head(head) => caps::accept_claims(&head.fixed, &here),
            }
            .map_err(refused)?;
        }
        found
            .notes
            .0
            .iter()
            .for_each(|note| cli::say(&note.to_string()));
        print("sound\n")
    }
}

impl Convert {
    fn run(&self) -> Result<(), Failure> {
        if self.into.is_some() != (self.to == Format::Qemu) {
            let what = "--into names the migration file for --to qemu, and is for nothing else";
            return Err((exit::USAGE, what.to_owned()));
        }
        let mut options = self.input.options();
        if self.to == Format::Qemu {
            options.byte_order = None;
        }
        let input = &self.input;
        let found = file::load(&input.file, input.from, &options).map_err(file_failure)?;
        let mut notes = found.notes;
        let Content::State(state) = found.content else {
            let what = format!("{}: a head alone, not a whole state", input.file.display());
            return Err((exit::AWAY, what));
        };
        match &self.into {
            Some(path) => self.put_into(&state, path, &mut notes),
            None => self.to_file(&state, &mut notes),
        }
    }

    fn to_file(&self, state: &State, notes: &mut Notes) -> Result<(), Failure> {
        let bytes = file::encode(state, self.to, notes);
        let bytes = bytes.map_err(|e| self.refused(&e))?;
        self.tell(notes)?;
        file::save(&self.out, |out| out.write_all(&bytes)).map_err(file_failure)
    }

    fn put_into(&self, state: &State, path: &Path, notes: &mut Notes) -> Result<(), Failure> {
        let refused = |e: ConvertError| (exit::AWAY, format!("{}: {e}", path.display()));
        let opened = File::open(path);
        let mut original = opened.map_err(|e| (exit::BLIND, format!("{}: {e}", path.display())))?;
        let mut stream = Stream::read(&mut original).map_err(|e| refused(e.into()))?;
        qemu::write(state, &mut stream, &self.input.options(), notes).map_err(refused)?;
        self.tell(notes)?;
        file::save(&self.out, |out| stream.write(&mut original, out)).map_err(file_failure)
    }

    fn refused(&self, e: &ConvertError) -> Failure {
        (exit::AWAY, format!("{}: {e}", self.input.file.display()))
    }

    /// Tells what was changed, or refuses it.
    fn tell(&self, notes: &Notes) -> Result<(), Failure> {
        match notes.0.first().filter(|_| self.strict) {
            Some(note) => Err((exit::AWAY, format!("--strict: {note}"))),
            None => {
                notes.0.iter().for_each(|note| cli::say(&note.to_string()));
                Ok(())
            }
        }
    }
}
