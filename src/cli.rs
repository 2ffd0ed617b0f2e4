//! The command line, by the conventions for vhost-user back-ends: foreground, `--socket-path` or
//! `--fd`, `--print-capabilities`, one line on stderr and an exit code when something is wrong. [`parse`] and
//! [`failed`] serve every command of the program.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};
use papr_intc_protocol::layout::geometry::{MAX_SERVERS, MAX_SOURCES};
use papr_intc_protocol::layout::{Compat, IcMode};

use crate::control::Expected;
use crate::server::event_loop::OnDisconnect;

/// Exit codes, beside 0.
pub mod exit {
    /// Serving failed.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong (clap uses the same).
    pub const USAGE: u8 = 2;
    /// The socket or descriptor cannot be used.
    pub const ENDPOINT: u8 = 3;
}

/// The command line `args`, the program's name first; or the exit code after what clap or one line on
/// stderr has said.
pub fn parse<A: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<A, ExitCode> {
    match A::try_parse_from(args) {
        Ok(args) => Ok(args),
        Err(e) if !e.use_stderr() => e.exit(),
        Err(e) => Err(failed(exit::USAGE, &one_line(&e.to_string()))),
    }
}

/// A line on stderr; nobody is left to hear that it failed.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "papr-intc: {line}");
}

/// Says why, and the code to exit with.
pub fn failed(code: u8, line: &str) -> ExitCode {
    say(line);
    ExitCode::from(code)
}

/// What clap says, without its usage text.
fn one_line(error: &str) -> String {
    let said = error.split("\n\n").next().unwrap_or(error);
    let words: Vec<&str> = said.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

/// Longest limit of `--on-disconnect wait=SECONDS`: a year.
const MAX_WAIT: u64 = 365 * 24 * 3600;

/// An sPAPR (pseries) interrupt controller, XICS and XIVE, for one guest.
#[derive(Debug, Parser)]
#[command(name = "papr-intc", version)]
#[command(group = ArgGroup::new("endpoint").required(true).args(["socket_path", "fd", "print_capabilities"]))]
pub struct Args {
    /// Create this Unix socket and wait for front-ends
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,

    /// Use this inherited descriptor: a listening socket, or a connected one
    #[arg(long, value_name = "N")]
    pub fd: Option<i32>,

    /// Print what this back-end can do as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Refuse a machine with other controllers than these
    #[arg(long, value_name = "MODE")]
    pub ic_mode: Option<CliIcMode>,

    /// Refuse a machine with another number of servers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_SERVERS as i64))]
    pub servers: Option<u32>,

    /// Refuse a machine with another number of sources
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_SOURCES as i64))]
    pub sources: Option<u32>,

    /// Refuse a machine of another compat level
    #[arg(long, value_name = "LEVEL")]
    pub compat: Option<CliCompat>,

    /// When the front-end has gone: exit, or keep the memory and wait[=SECONDS] for another [default: exit]
    #[arg(long, value_name = "WHAT", value_parser = parse_on_disconnect)]
    pub on_disconnect: Option<OnDisconnect>,

    /// Create this Unix socket for those who only look on (`papr-intc status --socket`)
    #[arg(long, value_name = "PATH")]
    pub monitor_path: Option<PathBuf>,

    /// What to log to stderr: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: log::LevelFilter,
}

/// `--ic-mode`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CliIcMode {
    /// XICS only
    Xics,
    /// XIVE only
    Xive,
    /// Both, the guest chooses
    Dual,
}

/// `--compat`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CliCompat {
    /// PAPR
    #[value(name = "papr-1")]
    Papr1,
    /// QEMU 7.2 to the letter
    #[value(name = "qemu-7.2")]
    Qemu72,
}

impl From<CliIcMode> for IcMode {
    fn from(mode: CliIcMode) -> Self {
        match mode {
            CliIcMode::Xics => Self::Xics,
            CliIcMode::Xive => Self::Xive,
            CliIcMode::Dual => Self::Dual,
        }
    }
}

impl From<CliCompat> for Compat {
    fn from(level: CliCompat) -> Self {
        match level {
            CliCompat::Papr1 => Self::Papr1,
            CliCompat::Qemu72 => Self::Qemu72,
        }
    }
}

/// `--on-disconnect`: `exit`, `wait` or `wait=SECONDS`.
fn parse_on_disconnect(text: &str) -> Result<OnDisconnect, String> {
    match text.split_once('=') {
        None if text == "exit" => Ok(OnDisconnect::Exit),
        None if text == "wait" => Ok(OnDisconnect::Wait(None)),
        Some(("wait", seconds)) => match seconds.parse() {
            Ok(n @ 1..=MAX_WAIT) => Ok(OnDisconnect::Wait(Some(Duration::from_secs(n)))),
            _ => Err(format!(
                "{seconds:?} is no number of seconds from 1 to {MAX_WAIT}"
            )),
        },
        _ => Err("exit, wait or wait=SECONDS".to_owned()),
    }
}

impl Args {
    /// What SET_MACHINE must agree with.
    pub fn expected(&self) -> Expected {
        Expected {
            ic_mode: self.ic_mode.map(CliIcMode::into),
            compat: self.compat.map(CliCompat::into),
            servers: self.servers,
            sources: self.sources,
        }
    }

    /// What to do when the front-end has gone.
    pub fn on_disconnect(&self) -> OnDisconnect {
        self.on_disconnect.unwrap_or(OnDisconnect::Exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_has_a_limit_or_none() {
        let wait = |seconds| OnDisconnect::Wait(Some(Duration::from_secs(seconds)));
        assert_eq!(parse_on_disconnect("exit"), Ok(OnDisconnect::Exit));
        assert_eq!(parse_on_disconnect("wait"), Ok(OnDisconnect::Wait(None)));
        assert_eq!(parse_on_disconnect("wait=1"), Ok(wait(1)));
        assert_eq!(parse_on_disconnect("wait=31536000"), Ok(wait(31_536_000)));
        for bad in [
            "",
            "wait=",
            "wait=0",
            "wait=-1",
            "wait=31536001",
            "exit=1",
            "wait=1s",
        ] {
            assert!(parse_on_disconnect(bad).is_err(), "{bad}");
        }
    }
}
