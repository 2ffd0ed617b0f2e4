//! Command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use papr_intc_protocol::layout::{Compat, IcMode};

use crate::chaos::{Rates, What};
use crate::device_process::ChildArguments;

/// Runs a mock pseries guest on a real papr-intc daemon, kills the daemon meanwhile, and counts
/// whether every interrupt arrived.
#[derive(Clone, Debug, Parser)]
#[command(name = "mock_vmm", version)]
pub struct Options {
    /// Which interrupt controllers the machine has
    #[arg(long, value_enum, default_value = "dual")]
    pub mode: Mode,
    /// vCPUs
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub vcpus: u32,
    /// Distance of the vCPUs' server numbers (QEMU: vsmt)
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub stride: u32,
    /// Interrupt sources: half of them device threads, the rest eventfds and a few levels
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(4..=2048))]
    pub sources: u32,
    /// How long
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub duration: Duration,
    /// Choices of devices, guest and conductor follow from it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Map nothing: the daemon runs the data plane
    #[arg(long)]
    pub remote: bool,
    /// Send every call of the guest to the daemon, also those that the front-end can answer
    #[arg(long)]
    pub forward_all: bool,
    /// Kill the daemon (SIGKILL) at this moment
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with_all = ["kills", "no_kill"])]
    pub kill_at: Option<Duration>,
    /// Kill the daemon so many times, at moments that follow from the seed [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "no_kill")]
    pub kills: Option<u32>,
    /// What happens to the daemon, and how often a second: any of kill, stop, hang, upgrade, switch, plug
    #[arg(long, value_name = "NAME=HZ,...", conflicts_with_all = ["kills", "kill_at", "no_kill", "model"])]
    pub chaos: Option<Rates>,
    /// Move the guest to another daemon this often; some of the moves are given up on the way
    #[arg(long, value_name = "SECONDS", value_parser = period, conflicts_with = "model")]
    pub migrate_every: Option<Duration>,
    /// Let the daemon live
    #[arg(long)]
    pub no_kill: bool,
    /// Break something on purpose, to see that it is noticed
    #[arg(long = "break", value_enum, value_name = "WHAT")]
    pub fault: Option<Fault>,
    /// The daemon [default: papr-intc of the same build]
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,
    /// Whose behaviour the controller has
    #[arg(long, value_enum, default_value = "papr-1")]
    pub compat: Level,
    /// How long nothing may move before what is still under way counts as lost
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub patience: Duration,
    /// Run on a plain model in this process instead of a daemon: checks the guest itself
    #[arg(long, hide = true)]
    pub model: bool,
    #[command(flatten)]
    pub child: Child,
}

/// The command line of the device process.
#[derive(Clone, Debug, clap::Args)]
pub struct Child {
    #[arg(long, hide = true, value_name = "FD")]
    device_process: Option<i32>,
    #[arg(long, hide = true, default_value_t = 0)]
    cells: usize,
    #[arg(long, hide = true, default_value = "")]
    eventfds: String,
}

impl Options {
    /// How many kills at seeded moments.
    pub fn seeded_kills(&self) -> u32 {
        self.kills.unwrap_or(1)
    }

    /// The daemon is replaced by the next release's.
    pub fn upgrades(&self) -> bool {
        let chaos = self.chaos.as_ref();
        chaos.is_some_and(|rates| rates.has(What::Upgrade))
    }

    /// What the device process is to do, if this is one.
    pub fn child(&self) -> Option<ChildArguments> {
        self.child.device_process.map(|memfd| ChildArguments {
            memfd,
            cells: self.child.cells,
            seed: self.seed,
            eventfds: self.child.eventfds.clone(),
        })
    }
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// XICS only
    Xics,
    /// XIVE only
    Xive,
    /// Both: XICS until the guest chooses at CAS
    Dual,
}

impl Mode {
    /// As the machine has it.
    pub fn ic_mode(self) -> IcMode {
        match self {
            Self::Xics => IcMode::Xics,
            Self::Xive => IcMode::Xive,
            Self::Dual => IcMode::Dual,
        }
    }
}

/// `--compat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// PAPR, where QEMU 7.2 is wrong
    #[value(name = "papr-1")]
    Papr1,
    /// QEMU 7.2 to the letter
    #[value(name = "qemu-7.2")]
    Qemu72,
}

impl Level {
    /// As the machine has it.
    pub fn compat(self) -> Compat {
        match self {
            Self::Papr1 => Compat::Papr1,
            Self::Qemu72 => Compat::Qemu72,
        }
    }
}

/// `--break`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Some triggers are swallowed
    Forward,
    /// Some kicks don't reach the vCPU
    Kick,
    /// Some interrupts that came while in service are not sent again
    Resend,
    /// Events sent while the guest is between two daemons are swallowed
    Move,
    /// Some queue entries get the wrong generation bit
    Generation,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

fn period(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("it has to be above 0".to_owned()),
        period => Ok(period),
    }
}
