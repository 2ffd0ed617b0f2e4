//! The command line, by the conventions for vhost-user back-ends: foreground, `--socket-path` or
//! `--fd`, `--print-capabilities`, one line on stderr and an exit code when something is wrong.

use std::path::PathBuf;

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

    /// When the front-end has gone: end, or keep the memory and wait for another [default: exit]
    #[arg(long, value_name = "WHAT")]
    pub on_disconnect: Option<CliOnDisconnect>,

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

/// `--on-disconnect`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CliOnDisconnect {
    /// End
    Exit,
    /// Wait for another front-end
    Wait,
}

impl Args {
    /// What SET_MACHINE must agree with.
    pub fn expected(&self) -> Expected {
        Expected {
            ic_mode: self.ic_mode.map(|mode| match mode {
                CliIcMode::Xics => IcMode::Xics,
                CliIcMode::Xive => IcMode::Xive,
                CliIcMode::Dual => IcMode::Dual,
            }),
            compat: self.compat.map(|level| match level {
                CliCompat::Papr1 => Compat::Papr1,
                CliCompat::Qemu72 => Compat::Qemu72,
            }),
            servers: self.servers,
            sources: self.sources,
        }
    }

    /// What to do when the front-end has gone.
    pub fn on_disconnect(&self) -> OnDisconnect {
        match self.on_disconnect {
            Some(CliOnDisconnect::Wait) => OnDisconnect::Wait,
            Some(CliOnDisconnect::Exit) | None => OnDisconnect::Exit,
        }
    }
}
