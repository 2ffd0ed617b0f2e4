//! A QEMU that runs: its lines as they come, its end, and nothing of it left afterwards.
//!
//! It is the leader of a process group, which is killed with it, and `setpriv` has the kernel kill it when this
//! program dies, however that happens. Its daemon goes when its socket closes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::lines::Stream;
use crate::verdict::End;

/// How long its children may live on after it.
const AFTERLIFE: Duration = Duration::from_secs(5);
/// Longest wait between two looks at whether it lives.
const LOOK: Duration = Duration::from_millis(100);
/// A line longer than this is cut.
const LINE: usize = 16 << 10;

/// One of its outputs.
struct Feed {
    stream: Stream,
    /// `None`: at its end.
    file: Option<File>,
    begun: Vec<u8>,
}

impl Feed {
    fn new(stream: Stream, output: Option<impl Into<OwnedFd>>) -> Self {
        Self {
            stream,
            file: output.map(|o| File::from(o.into())),
            begun: Vec::new(),
        }
    }

    /// Reads what is there; calls with each whole line.
    fn read(&mut self, hear: &mut Vec<(Stream, String)>) {
        let mut buffer = [0; 16 << 10];
        let n = match self.file.as_mut().map(|f| f.read(&mut buffer)) {
            Some(Ok(n)) => n,
            Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => return,
            _ => 0,
        };
        for &byte in &buffer[..n] {
            if byte != b'\n' {
                self.begun.push(byte);
            }
            if byte == b'\n' || self.begun.len() >= LINE {
                hear.push((self.stream, self.take_line()));
            }
        }
        if n == 0 {
            self.file = None;
            if !self.begun.is_empty() {
                hear.push((self.stream, self.take_line()));
            }
        }
    }

    fn take_line(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.begun).trim_end().to_owned();
        self.begun.clear();
        line
    }
}

/// A running QEMU.
pub struct Process {
    child: Child,
    feeds: [Feed; 2],
    exited: Option<(ExitStatus, Instant)>,
}

impl Process {
    /// Starts a program; `environment` is for it alone.
    pub fn start(
        program: &[std::ffi::OsString],
        environment: &[(&str, std::ffi::OsString)],
    ) -> Result<Self, String> {
        // A preloaded object must not get into setpriv, so that env sets it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "env"]);
        for (name, value) in environment {
            let mut setting = std::ffi::OsString::from(format!("{name}="));
            setting.push(value);
            command.arg(setting);
        }
        let mut child = command
            .args(program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("setpriv (of util-linux): {e}"))?;
        let feeds = [
            Feed::new(Stream::Console, child.stdout.take()),
            Feed::new(Stream::Errors, child.stderr.take()),
        ];
        Ok(Self {
            child,
            feeds,
            exited: None,
        })
    }

    /// Waits for lines, no longer than `limit`; there may be none.
    pub fn lines(&mut self, limit: Duration) -> Vec<(Stream, String)> {
        let mut lines = Vec::new();
        let open = self.feeds.iter_mut().filter(|f| f.file.is_some());
        let mut open: Vec<&mut Feed> = open.collect();
        let mut fds: Vec<PollFd<'_>> = open
            .iter()
            .filter_map(|f| f.file.as_ref())
            .map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN))
            .collect();
        // A millisecond more, or the last part of the wait would be spent in calls of no length.
        let limit = limit.min(LOOK) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut fds, timeout);
        let ready: Vec<bool> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
        for (feed, ready) in open.iter_mut().zip(ready) {
            if ready {
                feed.read(&mut lines);
            }
        }
        lines
    }

    /// How it ended, once it did and everything it said was read; with a complaint if its children stay.
    pub fn ended(&mut self) -> Option<(End, Option<String>)> {
        if self.exited.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.exited = Some((status, Instant::now()));
        }
        let (status, at) = self.exited?;
        let read = self.feeds.iter().all(|f| f.file.is_none());
        let stays = !read && at.elapsed() > AFTERLIFE;
        if !read && !stays {
            return None;
        }
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Signal(signal.unwrap_or_default()),
        };
        let complaint = "what QEMU started lives on without it".to_owned();
        Some((end, stays.then_some(complaint)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let program = ["sh", "-c", script].map(Into::into);
        Process::start(&program, &[("WHO", "papr".into())]).unwrap()
    }

    /// Everything it says until its end.
    fn all(mut process: Process) -> (Vec<String>, End) {
        let mut lines = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            lines.extend(process.lines(LOOK).into_iter().map(|(_, line)| line));
            if let Some((end, complaint)) = process.ended() {
                assert_eq!(complaint, None);
                lines.sort();
                return (lines, end);
            }
            assert!(Instant::now() < deadline, "{lines:?}");
        }
    }

    #[test]
    fn both_outputs_are_read_to_their_end_and_the_status_is_told() {
        let (lines, end) = all(shell("echo a $WHO; echo b >&2; printf c; exit 77"));
        assert_eq!(
            (lines, end),
            (
                vec!["a papr".into(), "b".into(), "c".into()],
                End::Exited(77)
            )
        );
        let (_, end) = all(shell("kill -SEGV $$"));
        assert_eq!(end, End::Signal(11));
    }

    #[test]
    fn waiting_for_one_that_is_silent_ends() {
        let mut process = shell("exec sleep 60");
        let start = Instant::now();
        assert!(process.lines(Duration::from_millis(20)).is_empty());
        assert!(process.ended().is_none());
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn nothing_of_it_is_left() {
        let mut process = shell("sleep 60 & echo $!; wait");
        let deadline = Instant::now() + Duration::from_secs(30);
        let pid = loop {
            if let Some((_, pid)) = process.lines(LOOK).pop() {
                break pid;
            }
            assert!(Instant::now() < deadline);
        };
        drop(process);
        // Dead; until init reaps it, a zombie.
        let gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !gone() {
            assert!(Instant::now() < deadline, "{pid} lives");
            std::thread::yield_now();
        }
    }
}
