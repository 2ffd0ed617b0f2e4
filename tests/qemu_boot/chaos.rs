//! What is done to the daemon while the guest boots and works.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::matrix::Way;
use crate::wire::Control;

/// Between two kills.
const KILL_EVERY: Duration = Duration::from_secs(1);
/// Between two upgrades.
const UPGRADE_EVERY: Duration = Duration::from_secs(2);

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Killed(i32),
    Upgraded,
}

#[derive(Clone, Copy)]
enum What {
    Kill,
    Upgrade,
}

/// Does it again and again.
pub struct Chaos {
    what: What,
    every: Duration,
    next: Instant,
    socket: PathBuf,
    control: Option<Control>,
    daemon: PathBuf,
}

impl Chaos {
    /// What this way asks for, over the rig's control socket; `daemon` is the one to upgrade to.
    pub fn of(way: Way, socket: &Path, daemon: &Path) -> Option<Self> {
        let (what, every) = match way {
            Way::Killed => (What::Kill, KILL_EVERY),
            Way::Upgraded => (What::Upgrade, UPGRADE_EVERY),
            _ => return None,
        };
        Some(Self {
            what,
            every,
            next: Instant::now() + every,
            socket: socket.to_owned(),
            control: None,
            daemon: daemon.to_owned(),
        })
    }

    /// Until the next deed.
    pub fn due_in(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Does what is due, if anything is.
    pub fn act(&mut self) -> Result<Option<Deed>, String> {
        if !self.due_in().is_zero() {
            return Ok(None);
        }
        self.next = Instant::now() + self.every;
        if self.control.is_none() {
            self.control = Control::connect(&self.socket)?;
        }
        let Some(control) = &mut self.control else {
            return Ok(None);
        };
        match self.what {
            What::Kill => {
                let Some(pid) = control.pid()? else {
                    return Ok(None);
                };
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) => Ok(Some(Deed::Killed(pid))),
                    // It was gone before.
                    Err(Errno::ESRCH) => Ok(None),
                    Err(e) => Err(format!("kill {pid}: {e}")),
                }
            }
            What::Upgrade => {
                control.upgrade(&self.daemon)?;
                Ok(Some(Deed::Upgraded))
            }
        }
    }
}
