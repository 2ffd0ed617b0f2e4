//! `papr-intc status` and `papr-intc query`: command lines, and what they exit with.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use papr_intc_protocol::wire::handshake::query;
use serde_json::{Value, json};

use super::ask::{AskError, ask};
use super::{find, report};
use crate::cli;

/// Exit codes of `status`, beside 0: every guest is served.
pub mod exit {
    /// A guest is not served.
    pub const AWAY: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// It cannot be looked at: no such process or socket, no permission.
    pub const BLIND: u8 = 3;
}

/// Looks at a papr-intc from outside.
#[derive(Debug, Parser)]
#[command(name = "papr-intc", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How a guest's interrupt controller does
    Status(Status),
    /// Details from a running daemon
    Query(Query),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("whose").required(true).args(["socket", "pid"]))]
struct Status {
    /// The daemon's monitor socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The VMM's process; works while the daemon is dead or hung
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Query {
    /// What to show
    what: What,
    /// Which vCPU
    server: Option<u64>,
    /// The daemon's monitor socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Presenters, then sources
    Pic,
    /// Claimed sources
    Sources,
    /// One vCPU
    Vcpu,
    /// The status, counters included
    Counters,
}

type Failure = (u8, String);

/// Runs the command line, the program's name first.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let Cli { command } = match cli::parse(args) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let done = match command {
        Command::Status(status) => status.run(),
        Command::Query(query) => query.run(),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err((code, line)) => cli::failed(code, &line),
    }
}

impl Status {
    fn run(&self) -> Result<u8, Failure> {
        let guests = match (&self.pid, &self.socket) {
            (Some(pid), _) => by_pid(*pid)?,
            (None, Some(path)) => vec![by_socket(path)?],
            (None, None) => return Err((exit::USAGE, "neither --socket nor --pid".to_owned())),
        };
        let all_served = guests.iter().all(|g| g["serving"] == true);
        let text = if self.json {
            format!("{:#}\n", json!({ "guests": guests }))
        } else {
            let texts: Vec<String> = guests.iter().map(report::text).collect();
            texts.join("\n")
        };
        print(&text)?;
        Ok(if all_served { 0 } else { exit::AWAY })
    }
}

impl Query {
    fn run(&self) -> Result<u8, Failure> {
        let what = match self.what {
            What::Pic => query::PIC,
            What::Sources => query::SOURCES,
            What::Vcpu => query::VCPU,
            What::Counters => query::STATUS,
        };
        let socket = connect(&self.socket)?;
        let answer = ask(&socket, what, self.server.unwrap_or(0));
        let text = answer.map_err(|e| (exit::AWAY, e.to_string()))?;
        print(&format!("{}\n", text.trim_end()))?;
        Ok(0)
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let printed = io::stdout().write_all(text.as_bytes());
    printed.map_err(|e| (exit::BLIND, format!("stdout: {e}")))
}

fn by_pid(pid: u32) -> Result<Vec<Value>, Failure> {
    let blind = |what: String| (exit::BLIND, what);
    let guests = find::guests(pid).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => blind(format!("--pid {pid}: no such process")),
        _ => blind(format!("--pid {pid}: {e}")),
    })?;
    if guests.is_empty() {
        return Err(blind(format!("--pid {pid}: it has no papr-intc memory")));
    }
    Ok(guests)
}

fn connect(path: &Path) -> Result<UnixStream, Failure> {
    let connected = UnixStream::connect(path);
    connected.map_err(|e| (exit::BLIND, format!("--socket {}: {e}", path.display())))
}

fn by_socket(path: &Path) -> Result<Value, Failure> {
    let socket = connect(path)?;
    match ask(&socket, query::STATUS, 0) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|e| (exit::BLIND, format!("--socket {}: {e}", path.display()))),
        Err(AskError::Silent(pid)) => {
            let pid = pid.and_then(|p| u32::try_from(p).ok());
            let letter = pid.and_then(find::process_state);
            let state = match letter {
                Some('T' | 't') => "stopped",
                _ => "silent",
            };
            let why = "no answer within 2 s";
            Ok(json!({ "state": state, "serving": false, "daemon_pid": pid, "why": why }))
        }
        Err(e) => Err((exit::BLIND, format!("--socket {}: {e}", path.display()))),
    }
}
