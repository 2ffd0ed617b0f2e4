//! The memfds of a VMM and the processes of their daemons, through /proc. Read-only.
//!
//! Who serves is told by the lock on the memfd ([S-3]), which nobody can scribble over; the process id in
//! the run words is believed only if that process has the memfd open.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::decode;

/// Which file: device and inode.
type Id = (u64, u64);

/// What `status --pid` says about each papr-intc memory of a process.
pub fn guests(pid: u32) -> io::Result<Vec<Value>> {
    let directory = format!("/proc/{pid}/fd");
    let mut seen: Vec<Id> = Vec::new();
    let mut guests = Vec::new();
    for (id, file) in memfds(&directory)? {
        if !seen.contains(&id) {
            seen.push(id);
            guests.push(guest(file, id));
        }
    }
    Ok(guests)
}

/// Open papr-intc memfds of a process.
fn memfds(directory: &str) -> io::Result<Vec<(Id, File)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        if target.to_string_lossy().starts_with("/memfd:papr-intc") {
            // A descriptor that was closed meanwhile is no error.
            if let Ok(Some(one)) = open(&path) {
                found.push(one);
            }
        }
    }
    Ok(found)
}

/// Opens a regular file, whatever else may hide behind the name.
fn open(path: &Path) -> io::Result<Option<(Id, File)>> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_fifo() || kind.is_socket() || !kind.is_file() {
        return Ok(None);
    }
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    Ok(Some(((meta.dev(), meta.ino()), file)))
}

fn guest(file: File, id: Id) -> Value {
    let held = is_locked(&file);
    let mut bytes = Vec::new();
    let read = file.take(decode::LARGEST).read_to_end(&mut bytes);
    let described = read
        .map_err(|e| e.to_string())
        .and_then(|_| decode::memfd(&bytes));
    let mut guest = match described {
        Ok(guest) => guest,
        Err(why) => return json!({ "state": "unreadable", "serving": false, "why": why }),
    };
    let pid = guest["daemon_pid"].as_u64().unwrap_or(0);
    let process = u32::try_from(pid).ok().filter(|p| *p != 0);
    let process = process.filter(|p| !held || has_open(*p, id));
    let run = process.and_then(process_state);
    let state = state(&guest, held, run);
    guest["state"] = json!(state);
    guest["serving"] = json!(matches!(state, "serving" | "quiesced"));
    guest["memory_held"] = json!(held);
    guest["process_state"] = json!(run.map(String::from));
    let since = guest["since_ms"].as_u64().unwrap_or(0);
    let ago = (since != 0).then(|| now_ms().saturating_sub(since));
    guest["for_ms"] = json!(ago);
    guest
}

fn state(guest: &Value, held: bool, process: Option<char>) -> &'static str {
    let presence = guest["presence"].as_str().unwrap_or("");
    match (held, process, presence) {
        (_, Some('Z' | 'X'), _) => "zombie",
        (false, _, "gave up") => "gave up",
        (false, _, "shut down") => "shut down",
        (false, ..) => "absent",
        (true, Some('T' | 't'), _) => "stopped",
        (true, _, "absent") => "starting",
        _ if guest["gate"] == "closed" => "wants memory",
        _ if guest["quiesce_depth"] != 0 => "quiesced",
        _ => "serving",
    }
}

/// A daemon holds the lock: it lives, stopped or not.
fn is_locked(file: &File) -> bool {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short
}

fn has_open(pid: u32, id: Id) -> bool {
    memfds(&format!("/proc/{pid}/fd")).is_ok_and(|all| all.iter().any(|(other, _)| *other == id))
}

/// The letter of proc(5): R, S, D, T, t, Z or X.
pub fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in between may hold anything, brackets too.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Into::into);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
