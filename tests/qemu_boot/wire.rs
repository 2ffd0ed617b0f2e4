//! Requests to a QEMU that runs: its monitor (QMP) and the rig's control socket. Both are lines over a Unix
//! socket, and no answer is waited for without end.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Longer than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that talks in lines.
struct Lines(BufReader<UnixStream>);

impl Lines {
    /// `None`: nobody listens there (yet).
    fn connect(path: &Path) -> Result<Option<Self>, String> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(e) => return Err(e.to_string()),
        };
        let limited = stream.set_read_timeout(Some(PATIENCE));
        limited.map_err(|e| e.to_string())?;
        let limited = stream.set_write_timeout(Some(PATIENCE));
        limited.map_err(|e| e.to_string())?;
        Ok(Some(Self(BufReader::new(stream))))
    }

    fn say(&mut self, line: &str) -> Result<(), String> {
        let said = self.0.get_mut().write_all(format!("{line}\n").as_bytes());
        said.map_err(|e| e.to_string())
    }

    fn hear(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Err("the connection ended".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(format!("no answer in {} s", PATIENCE.as_secs()))
            }
            Err(e) => Err(e.to_string()),
        }
    }
}

/// The rig's control socket.
pub struct Control(Lines);

impl Control {
    /// `None`: the rig does not listen yet.
    pub fn connect(path: &Path) -> Result<Option<Self>, String> {
        Ok(Lines::connect(path)?.map(Self))
    }

    /// The daemon that serves now; `None` between two.
    pub fn pid(&mut self) -> Result<Option<i32>, String> {
        let answer = self.ask("pid")?;
        let pid: i32 = answer.parse().map_err(|_| answer)?;
        // 0 is none; and never may it be init or a process group.
        Ok(Some(pid).filter(|pid| *pid > 1))
    }

    /// Puts the daemon of this binary in the place of the one that serves.
    pub fn upgrade(&mut self, daemon: &Path) -> Result<(), String> {
        let answer = self.ask(&format!("upgrade {}", daemon.display()))?;
        match answer.split(' ').next() {
            Some("ok") => Ok(()),
            _ => Err(answer),
        }
    }

    /// Who executes the data plane: `front-end` or `daemon`.
    pub fn executor(&mut self) -> Result<String, String> {
        let answer = self.ask("query")?;
        let said: Option<Value> = serde_json::from_str(&answer).ok();
        let executor = said.as_ref().and_then(|s| s["executor"].as_str());
        executor.map(ToOwned::to_owned).ok_or(answer)
    }

    fn ask(&mut self, request: &str) -> Result<String, String> {
        self.0.say(request)?;
        self.0.hear()
    }
}

/// QEMU's monitor.
pub struct Qmp {
    lines: Lines,
    /// vCPUs added so far.
    added: Vec<String>,
}

impl Qmp {
    /// Connects to the monitor of a QEMU that runs.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let lines = Lines::connect(path)?.ok_or("QEMU does not listen")?;
        let added = Vec::new();
        let mut qmp = Self { lines, added };
        qmp.lines.hear()?; // the greeting
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Does what the guest wants: `device_add DRIVER NAME=VALUE…`, `device_del ID`, `cpu_add`, `cpu_del`.
    pub fn order(&mut self, order: &str) -> Result<(), String> {
        match order.split_whitespace().next() {
            Some("device_add") => self.monitor(&in_one_word(order)),
            Some("device_del") => self.monitor(order),
            Some("cpu_add") => self.add_cpu(),
            Some("cpu_del") => {
                let id = self.added.pop().ok_or("no vCPU was added")?;
                self.monitor(&format!("device_del {id}"))
            }
            _ => Err("an unknown order".to_owned()),
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments});
        self.lines.say(&request.to_string())?;
        loop {
            let line = self.lines.hear()?;
            let mut answer: Value =
                serde_json::from_str(&line).map_err(|e| format!("{e}: {line}"))?;
            if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap_or(&line).to_owned());
            }
            // Otherwise an event.
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// A line for the human monitor, whose successes are silent.
    fn monitor(&mut self, line: &str) -> Result<(), String> {
        let said = self.execute("human-monitor-command", &json!({"command-line": line}))?;
        match said.as_str().map(str::trim) {
            Some("") => Ok(()),
            Some(complaint) => Err(complaint.to_owned()),
            None => Err(said.to_string()),
        }
    }

    fn add_cpu(&mut self) -> Result<(), String> {
        let slots = self.execute("query-hotpluggable-cpus", &json!({}))?;
        let slots = slots.as_array().ok_or("no list of vCPUs")?;
        // Slots are told from the last to the first.
        let empty = slots.iter().rev().find(|s| s.get("qom-path").is_none());
        let empty = empty.ok_or("no room for another vCPU")?;
        let (kind, core) = (&empty["type"], &empty["props"]["core-id"]);
        let kind = kind.as_str().ok_or("a vCPU of no type")?;
        let id = format!("added-{core}");
        self.monitor(&format!("device_add {kind},core-id={core},id={id}"))?;
        self.added.push(id);
        Ok(())
    }
}

/// The monitor has commas between a device's properties, where the guest has spaces.
fn in_one_word(order: &str) -> String {
    let mut words = order.split_whitespace();
    let command = words.next().unwrap_or_default();
    let rest: Vec<&str> = words.collect();
    format!("{command} {}", rest.join(","))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    /// A peer that answers each request with the next of these lines; gives back what it was asked.
    fn peer(path: &Path, answers: &'static [&str]) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let mut asked = Vec::new();
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                asked.push(line.trim_end().to_owned());
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            asked
        })
    }

    #[test]
    fn the_rig_is_asked_and_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        assert!(Control::connect(&path).unwrap().is_none());
        let rig = peer(
            &path,
            &[
                "0\n",
                "-1\n",
                "77\n",
                "what?\n",
                "ok 1200\n",
                "error no such file\n",
                "{\"executor\":\"daemon\"}\n",
                "error none\n",
            ],
        );
        let mut control = Control::connect(&path).unwrap().unwrap();
        assert_eq!(control.pid(), Ok(None));
        assert_eq!(control.pid(), Ok(None));
        assert_eq!(control.pid(), Ok(Some(77)));
        assert_eq!(control.pid(), Err("what?".to_owned()));
        assert_eq!(control.upgrade(Path::new("next")), Ok(()));
        let refused = control.upgrade(Path::new("gone"));
        assert_eq!(refused, Err("error no such file".to_owned()));
        assert_eq!(control.executor(), Ok("daemon".to_owned()));
        assert_eq!(control.executor(), Err("error none".to_owned()));
        let asked = rig.join().unwrap();
        assert_eq!(
            asked[3..],
            ["pid", "upgrade next", "upgrade gone", "query", "query"]
        );
        assert!(control.pid().is_err(), "it has gone");
    }

    #[test]
    fn the_monitor_hears_a_device_in_one_word() {
        assert_eq!(
            in_one_word("device_add virtio-blk-pci id=a  addr=7"),
            "device_add virtio-blk-pci,id=a,addr=7"
        );
    }
}
