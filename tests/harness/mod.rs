//! What the integration tests share: the real daemon in a process of its own, a client that speaks
//! raw messages, and a small machine on top of both.
//!
//! * here: the process, and what /proc says about it. It is killed on drop; a panic in it, seen on
//!   its stderr, fails the test that owns it.
//! * [`client`]: one channel, one request at a time, errors as (errno, text).
//! * [`guest`]: handshake, guest RAM, vCPUs, and the calls of a guest.
//!
//! Nothing here sleeps: every wait is a poll on a descriptor with a deadline far beyond any machine's
//! slowness ([`LONG`]).
#![allow(dead_code)] // each test binary uses a part

pub mod client;
pub mod guest;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use client::Client;

/// Longer than anything takes; reached only when something hangs.
pub const LONG: Duration = Duration::from_secs(60);

/// Spawning clears close-on-exec for a moment; no two spawns of this process may overlap, or one
/// daemon would hold the other's socket.
static SPAWN: Mutex<()> = Mutex::new(());

/// A running daemon.
pub struct Daemon {
    child: Child,
    stderr: File,
    /// Panics in the daemon are what this test is about to provoke on purpose: never.
    reaped: Option<ExitStatus>,
}

/// How a daemon ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

/// The daemon's command line, not yet run.
pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_papr-intc"))
}

impl Daemon {
    /// Runs `command`, leaving `inherited` open in the child under its number.
    fn spawn(mut command: Command, inherited: Option<OwnedFd>) -> Self {
        let stderr = tempfile::tempfile().unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone().unwrap());
        let _alone = SPAWN.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(fd) = &inherited {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        }
        let child = command.spawn().unwrap();
        drop(inherited);
        Self {
            child,
            stderr,
            reaped: None,
        }
    }

    /// Runs the daemon with these arguments and nothing else.
    pub fn run(args: &[&str]) -> Self {
        let mut command = command();
        command.args(args);
        Self::spawn(command, None)
    }

    /// Runs the daemon on `--fd`, which is `fd`.
    pub fn on_fd(fd: OwnedFd, args: &[&str]) -> Self {
        let mut command = command();
        command.arg("--fd").arg(fd.as_raw_fd().to_string());
        command.args(args);
        Self::spawn(command, Some(fd))
    }

    /// A daemon on one end of a socketpair; the other end.
    pub fn connected(args: &[&str]) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Self::on_fd(theirs.into(), args), ours)
    }

    /// A daemon on a listening socket that is bound already, so that a connect never comes too early.
    pub fn listening(args: &[&str]) -> (Self, Address) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = Self::on_fd(listener.into(), args);
        (daemon, Address { directory, path })
    }

    /// A daemon that makes its own socket, `--socket-path`. The socket appears some time later.
    pub fn on_path(path: &Path, args: &[&str]) -> Self {
        let mut command = command();
        command.arg("--socket-path").arg(path).args(args);
        Self::spawn(command, None)
    }

    /// Process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Holds all threads of the daemon; [`Self::go_on`] releases them. Returns when they stand still.
    pub fn hold(&self) {
        self.signal(Signal::SIGSTOP);
        let until = Instant::now() + LONG;
        while self.proc_field("status", "State:") != "T" {
            assert!(Instant::now() < until, "the daemon does not stop");
            std::thread::yield_now();
        }
    }

    /// See [`Self::hold`].
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.wait().signal, Some(Signal::SIGKILL as i32));
    }

    /// Waits for the daemon to end by itself.
    pub fn wait(&mut self) -> Ended {
        let mut stdout = self.child.stdout.take().unwrap();
        let mut said = Vec::new();
        let until = Instant::now() + LONG;
        // Its end of the pipe closes when it ends; nobody else has it.
        loop {
            wait_for(&stdout, PollFlags::POLLIN, until, "the daemon to end");
            let mut piece = [0; 4096];
            match stdout.read(&mut piece).unwrap() {
                0 => break,
                n => said.extend_from_slice(&piece[..n]),
            }
        }
        let status = self.child.wait().unwrap();
        self.reaped = Some(status);
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout: String::from_utf8(said).unwrap(),
            stderr: self.stderr(),
        }
    }

    /// It ends by itself with exit code 0.
    pub fn ends_well(mut self) {
        let ended = self.wait();
        assert_eq!((ended.code, ended.signal), (Some(0), None), "{ended:?}");
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        let mut file = self.stderr.try_clone().unwrap();
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn proc(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).unwrap()
    }

    /// The first word after `key` in a file of /proc/PID.
    fn proc_field(&self, name: &str, key: &str) -> String {
        let text = self.proc(name);
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    }

    /// Open descriptors.
    pub fn fds(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.pid());
        std::fs::read_dir(directory).unwrap().count()
    }

    /// Mappings.
    pub fn mappings(&self) -> usize {
        self.proc("maps").lines().count()
    }

    /// Private memory in use, in KiB.
    pub fn private_kib(&self) -> u64 {
        self.proc_field("status", "RssAnon:").parse().unwrap()
    }

    /// Descriptors that its epoll instances watch.
    pub fn watched(&self) -> usize {
        let directory = format!("/proc/{}/fdinfo", self.pid());
        std::fs::read_dir(directory)
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
            .map(|info| info.lines().filter(|l| l.starts_with("tfd:")).count())
            .sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.reaped.is_none() {
            // Fails only if it has ended already.
            let _ended = self.child.kill();
            let _status = self.child.wait();
        }
        let stderr = self.stderr();
        if std::thread::panicking() {
            eprintln!("--- the daemon's stderr:\n{stderr}---");
        } else {
            assert!(!stderr.contains("panicked at"), "the daemon: {stderr}");
        }
    }
}

/// Where a listening daemon is found.
pub struct Address {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Address {
    /// Of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new connection, which the daemon may turn away.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// A new connection that is being served. The last front-end may just have gone, or be on its way:
    /// while another test forks, the child holds a copy of its socket.
    pub fn served(&self) -> UnixStream {
        let until = Instant::now() + LONG;
        loop {
            let client = Client::new(self.connect());
            if client.is_greeted() {
                return client.socket;
            }
            assert!(Instant::now() < until, "nobody serves");
            std::thread::yield_now();
        }
    }
}

/// Waits until `fd` is ready.
pub fn wait_for(fd: impl AsFd, events: PollFlags, until: Instant, what: &str) {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited in vain for {what}");
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap();
        let mut fds = [PollFd::new(fd.as_fd(), events)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return,
            Err(e) => panic!("poll for {what}: {e}"),
        }
    }
}
