//! How a daemon comes to be, and how the front-end makes certain that it is gone.
//!
//! A spawned daemon gets its end of a socketpair as descriptor 0 (`--fd 0`): no other process that
//! the VMM starts meanwhile can inherit it. Death is known by a pidfd; [`Process::fence`] returns
//! only when the kernel has reported it (protocol: "fence, then recover").

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::Mode;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::Error;
use crate::outage::Status;
use crate::sync::lock;

/// Where daemons come from.
#[derive(Clone, Debug)]
pub struct Launcher {
    source: Source,
    /// The executable that has served last, even if its file is another one by now.
    pinned: Arc<Mutex<Option<OwnedFd>>>,
}

#[derive(Clone, Debug)]
enum Source {
    Spawn {
        binary: PathBuf,
        args: Vec<OsString>,
    },
    Connect {
        path: PathBuf,
    },
}

impl Launcher {
    fn new(source: Source) -> Self {
        let pinned = Arc::default();
        Self { source, pinned }
    }

    /// Each daemon is a child process: `binary --fd 0 args…`, with the socket as descriptor 0.
    pub fn spawn(binary: impl Into<PathBuf>, args: Vec<OsString>) -> Self {
        let binary = binary.into();
        Self::new(Source::Spawn { binary, args })
    }

    /// Somebody else starts daemons, which listen on `path`. One whose connection was lost is killed
    /// before the next is connected to, so the VMM must be allowed to.
    pub fn connect(path: impl Into<PathBuf>) -> Self {
        Self::new(Source::Connect { path: path.into() })
    }

    /// Somebody else may still be about to start a daemon: a failure to reach one is not its failure.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.source, Source::Connect { .. })
    }

    /// The executable of this process has served: it can be started again if its file is replaced by one
    /// that does not.
    pub(crate) fn pin(&self, process: &Process) {
        if self.is_foreign() {
            return;
        }
        let path = format!("/proc/{}/exe", process.pid());
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        if let Ok(fd) = open(path.as_str(), flags, Mode::empty()) {
            *lock(&self.pinned) = Some(fd);
        }
    }

    /// A daemon and a stream to it; `earlier`: of the executable that has served, if there is one.
    pub(crate) fn launch(&self, earlier: bool) -> Result<(Process, UnixStream), Error> {
        match &self.source {
            Source::Spawn { binary, args } => {
                let pinned = lock(&self.pinned);
                let pinned = pinned.as_ref().filter(|_| earlier);
                // Close-on-exec does not hinder: the path is looked up before.
                let pinned = pinned.map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
                let mut command = match &pinned {
                    Some(path) => Command::new(path),
                    None => Command::new(binary),
                };
                let (ours, theirs) =
                    UnixStream::pair().map_err(Error::os("making a socket pair"))?;
                let child = command
                    .arg0(binary)
                    .args(["--fd", "0"])
                    .args(args)
                    .stdin(Stdio::from(OwnedFd::from(theirs)))
                    .spawn()
                    .map_err(Error::os("starting the daemon"))?;
                Ok((Process::child(child)?, ours))
            }
            Source::Connect { path } => {
                let stream = UnixStream::connect(path).map_err(Error::os("connecting"))?;
                // Whoever answers is told apart from whoever made the socket.
                setsockopt(&stream, sockopt::PassCred, &true)
                    .map_err(Error::os("asking for credentials"))?;
                Ok((Process::foreign(), stream))
            }
        }
    }
}

impl Drop for Process {
    /// A child is never left running, nor as a zombie.
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both are without effect after `fence`.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How long a daemon that hung up may take to end by itself, in milliseconds.
const ENDING: u16 = 20;

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// For the log.
    pub how: String,
    /// The same for the run words.
    pub status: Status,
    /// By a SIGKILL that was not the front-end's.
    pub killed: bool,
}

/// A daemon's process.
#[derive(Debug)]
pub(crate) struct Process {
    child: Option<Child>,
    pid: u32,
    /// None for a foreign daemon that has not [proved](Process::prove) which process it is: then the lock on
    /// the shared memory is the only fence, and SET_SHM is refused until it is free.
    pidfd: Option<OwnedFd>,
}

impl Process {
    fn child(mut child: Child) -> Result<Self, Error> {
        let pid = child.id();
        let opened = Pid::from_raw(pid as i32)
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        match opened {
            Ok(pidfd) => Ok(Self {
                child: Some(child),
                pid,
                pidfd: Some(pidfd),
            }),
            Err(e) => {
                // Not reaped yet, so that the pid is still its own.
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::os("opening a pidfd")(e))
            }
        }
    }

    /// Which process it is, is not known yet. The socket's own peer (SO_PEERCRED, SO_PEERPIDFD) is the process
    /// that called listen(2): with socket activation that is a service manager, and nobody to be killed.
    fn foreign() -> Self {
        Self {
            child: None,
            pid: 0,
            pidfd: None,
        }
    }

    /// A foreign daemon has said something: the kernel says that `sender` sent it.
    pub fn prove(&mut self, sender: u32) {
        // A daemon inside the VMM's own process (a test, a unikernel) cannot be fenced by killing it.
        if self.child.is_some() || self.pid != 0 || sender == 0 || sender == std::process::id() {
            return;
        }
        self.pid = sender;
        let pid = Pid::from_raw(sender as i32);
        self.pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    }

    /// Its pid, 0 if unknown.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when the process has ended.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Waits up to `limit` for the process to end by itself.
    pub fn has_ended(&self, limit: PollTimeout) -> bool {
        let Some(pidfd) = self.pidfd() else {
            return false;
        };
        loop {
            let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
            match poll(&mut fds, limit) {
                Err(Errno::EINTR) => {}
                Ok(n) => return n > 0,
                Err(_) => return false,
            }
        }
    }

    /// Makes certain that the process runs no more.
    pub fn fence(&mut self) -> Ended {
        // A daemon that closed its socket is most often about to end; how it ends is worth knowing.
        let alone = self.has_ended(PollTimeout::from(ENDING));
        if !alone && let Some(pidfd) = self.pidfd() {
            // An error means that it has ended in this moment, or is not ours to kill; then we wait.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        self.has_ended(PollTimeout::NONE);
        let status = self.child.as_mut().and_then(|child| child.wait().ok());
        let how = status.map_or("it ended".to_owned(), |status| status.to_string());
        Ended {
            status: Status {
                exit: status.and_then(|s| s.code()),
                signal: status.and_then(|s| s.signal()),
            },
            killed: alone && status.and_then(|s| s.signal()) == Some(Signal::KILL.as_raw()),
            how: if alone {
                how
            } else {
                format!("{how} (by the front-end)")
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_spawned_daemon_has_its_socket_as_descriptor_0() {
        let launcher = Launcher::spawn("/bin/sh", vec![]);
        // `sh --fd 0` fails at once on an unknown option; its end of the socket closes with it.
        let (mut process, mut stream) = launcher.launch(false).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        assert!(process.has_ended(PollTimeout::NONE));
        let ended = process.fence();
        assert!(ended.how.starts_with("exit status") && !ended.killed);
    }

    #[test]
    fn a_fence_kills_what_does_not_end_by_itself() {
        let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let mut process = Process::child(child).unwrap();
        assert!(!process.has_ended(PollTimeout::ZERO));
        let ended = process.fence();
        assert!(ended.how.contains("by the front-end") && !ended.killed);
        assert!(process.has_ended(PollTimeout::ZERO));
    }

    #[test]
    fn a_missing_binary_is_an_error_with_its_errno() {
        let error = Launcher::spawn("/no/such/binary", vec![]).launch(false);
        assert_eq!(error.unwrap_err().errno(), Errno::ENOENT as i32);
    }
}
