//! Command line.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::boot::Limits;
use crate::machine::Setup;
use crate::matrix::{self, Boot, IcMode, Way};

/// Boots Linux in QEMU with papr-intc in the place of QEMU's interrupt controllers.
#[derive(Debug, Parser)]
#[command(name = "qemu_boot", version)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boots of the matrix, each with a verdict; the 12 that gate if nothing else is asked for
    Run(Run),
    /// The same boot on QEMU's controllers and on ours, in turns: what ours cost
    Bench(Bench),
}

/// Whose controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Controller {
    /// papr-intc's.
    Ours,
    /// QEMU's own.
    Qemu,
}

#[derive(Debug, Args)]
pub struct Run {
    /// All 72 boots
    #[arg(long, conflicts_with_all = ["quick", "shadow", "broken"])]
    pub full: bool,
    /// Four boots: one of each ic-mode, and one with kills
    #[arg(long, conflicts_with_all = ["shadow", "broken"])]
    pub quick: bool,
    /// QEMU's controllers serve, ours follow and compare: one boot of each ic-mode
    #[arg(long, conflicts_with = "broken")]
    pub shadow: bool,
    /// Our controllers with faults put in: each boot has to notice
    #[arg(long)]
    pub broken: bool,
    /// Of these boots, those whose name has this in it (repeated: any of them)
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// Name the boots and do nothing
    #[arg(long)]
    pub list: bool,
    /// Keep the folders of good boots as well: log, disks
    #[arg(long)]
    pub keep: bool,
    /// Who serves; QEMU's own is the baseline, without us
    #[arg(long, value_enum, default_value = "ours")]
    pub controller: Controller,
    /// What the guest does: plain (each device once) or stress [default: stress, but plain if --quick]
    #[arg(long, value_name = "WORK")]
    pub work: Option<String>,
    /// The guest starts but once; otherwise it does `plain` work, reboots, does it again, starts a kernel by kexec,
    /// and does its work there (not if --quick)
    #[arg(long)]
    pub once: bool,
    #[command(flatten)]
    pub setup: Parts,
}

impl Run {
    /// What the guest does.
    pub fn work(&self) -> &str {
        let usual = if self.quick { "plain" } else { "stress" };
        self.work.as_deref().unwrap_or(usual)
    }

    /// Whether the guest starts again, both ways.
    pub fn again(&self) -> bool {
        !(self.once || self.quick || self.broken)
    }

    /// The boots that are meant.
    pub fn boots(&self) -> Vec<Boot> {
        let boots = match (self.full, self.quick, self.shadow, self.broken) {
            (true, ..) => matrix::full(),
            (_, true, ..) => matrix::quick(),
            (_, _, true, _) => matrix::in_each_mode(Way::Shadow),
            (.., true) => matrix::broken(),
            _ => matrix::gating(),
        };
        let boots = match self.controller {
            Controller::Ours => boots,
            Controller::Qemu => matrix::on_stock(&boots),
        };
        let meant = |boot: &Boot| {
            let name = boot.to_string();
            self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
        };
        boots.into_iter().filter(meant).collect()
    }
}

#[derive(Debug, Args)]
pub struct Bench {
    /// Pairs of boots in each ic-mode
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// The ic-modes
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "xics,xive",
        value_name = "MODE,..."
    )]
    pub mode: Vec<IcMode>,
    /// vCPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub vcpus: u32,
    /// What the guest does
    #[arg(long, default_value = "bench", value_name = "WORK")]
    pub work: String,
    /// Write every measurement to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub setup: Parts,
}

/// Where the parts are, and how long to wait.
#[derive(Debug, Args)]
pub struct Parts {
    /// The guest: a folder with vmlinux and initramfs.gz
    #[arg(long, value_name = "DIR")]
    pub guest: PathBuf,
    /// The rig: the object that is loaded into QEMU
    #[arg(long, value_name = "PATH")]
    pub rig: PathBuf,
    /// The same with faults in it
    #[arg(long, value_name = "PATH")]
    pub broken_rig: PathBuf,
    /// The daemon
    #[arg(long, value_name = "PATH")]
    pub daemon: PathBuf,
    /// The daemon to upgrade to [default: the same]
    #[arg(long, value_name = "PATH")]
    pub upgrade_to: Option<PathBuf>,
    /// Where the boots' folders are made
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// QEMU
    #[arg(long, default_value = "qemu-system-ppc64", value_name = "PROGRAM")]
    pub qemu: OsString,
    /// Longest exercise of the guest's; a silence may be a little longer, a whole boot ten times as long
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub limit: u64,
    /// What the rig and the daemon log
    #[arg(long, default_value = "warn", value_name = "FILTER")]
    pub log: String,
}

impl Parts {
    pub fn limits(&self) -> Limits {
        Limits {
            step: Duration::from_secs(self.limit),
            silence: Duration::from_secs(self.limit + 30),
            whole: Duration::from_secs(self.limit * 10),
        }
    }

    /// Goes to the folder of the boots; from there, sockets have short names, and the parts absolute ones.
    pub fn resolve(&self, work: &str, again: bool) -> Result<Setup, String> {
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()));
        let daemon = absolute(&self.daemon)?;
        let upgrade = self
            .upgrade_to
            .as_deref()
            .map_or(Ok(daemon.clone()), absolute)?;
        let setup = Setup {
            qemu: self.qemu.clone(),
            guest: absolute(&self.guest)?,
            rig: absolute(&self.rig)?,
            broken: absolute(&self.broken_rig)?,
            daemon,
            upgrade,
            work: work.to_owned(),
            again,
            log: self.log.clone(),
        };
        let out = &self.out;
        std::fs::create_dir_all(out)
            .and_then(|()| env::set_current_dir(out))
            .map_err(|e| format!("{}: {e}", out.display()))?;
        Ok(setup)
    }
}
