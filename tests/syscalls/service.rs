//! Somebody who starts daemons that a VMM connects to: the next one when one has ended.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Of the present daemon, 0 if there is none.
    pid: AtomicI32,
}

pub struct Service {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Returns when the first one listens. `confine` is called on the thread that starts them.
    pub fn start(path: &Path, confine: impl FnOnce() + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let (kept, socket) = (Arc::clone(&shared), path.to_owned());
        let thread = thread::spawn(move || {
            confine();
            keep(&kept, &socket);
        });
        while !listens(path) {
            assert!(!thread.is_finished(), "a daemon can be started");
            thread::yield_now();
        }
        let thread = Some(thread);
        Self { shared, thread }
    }
}

fn keep(shared: &Shared, path: &PathBuf) {
    while !shared.stop.load(Ordering::Relaxed) {
        let _ = std::fs::remove_file(path);
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_papr-intc"));
        let daemon = daemon
            .args(["--log-level", "info", "--socket-path"])
            .arg(path);
        let mut daemon = daemon
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        shared
            .pid
            .store(daemon.id().cast_signed(), Ordering::Relaxed);
        let ended = daemon.wait().unwrap();
        shared.pid.store(0, Ordering::Relaxed);
        // SIGKILL comes from the walk, SIGTERM from us; SIGSYS would be a call that is not listed.
        let expected = ended.success() || ended.to_string().contains("SIGKILL");
        assert!(expected, "the daemon ended by {ended}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !thread.is_finished() {
            let pid = self.shared.pid.load(Ordering::Relaxed);
            if pid != 0 {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            thread::yield_now();
        }
        if !thread::panicking() {
            thread.join().expect("no daemon ended by itself");
        }
    }
}

/// Somebody listens there, which is more than that the file exists.
fn listens(path: &Path) -> bool {
    // Seven columns and the path; the fourth has the flag for a listener (unix(7), /proc/net/unix).
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = path.to_str().unwrap();
    let mut lines = sockets.lines().map(|l| l.split_whitespace());
    lines.any(|mut words| words.nth(3) == Some("00010000") && words.last() == Some(path))
}
