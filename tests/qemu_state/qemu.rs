//! A stock `qemu-system-ppc64`: started with a guest of ours, watched, saved, loaded, driven over QMP.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use papr_intc_protocol::layout::IcMode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::guest::{CPUS, FAULT, TURN};

/// Longer than anything takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

const CPU: &str = "power9_v2.0";
/// Speculation that this emulation does not tame; named, so that QEMU does not warn.
const MITIGATIONS: &str = "cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off";

/// The value of the machine's property `ic-mode`.
fn name(mode: IcMode) -> &'static str {
    match mode {
        IcMode::Xics => "xics",
        IcMode::Xive => "xive",
        IcMode::Dual => "dual",
    }
}

/// What a guest's machine is, as far as guests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub mode: IcMode,
    /// Server numbers from one vCPU to the next.
    pub vsmt: u32,
    /// vCPU 1 is a device of its own, made after the machine.
    pub late_vcpu: bool,
}

impl Shape {
    /// Server numbers there are.
    pub fn servers(self) -> u32 {
        CPUS as u32 * self.vsmt
    }
}

/// The binary: `$QEMU`, or what the distribution's package installs.
pub fn binary() -> OsString {
    std::env::var_os("QEMU").unwrap_or_else(|| "qemu-system-ppc64".into())
}

/// A running QEMU with its guest; killed when dropped.
pub struct Qemu {
    child: Child,
    qmp: BufReader<UnixStream>,
    folder: TempDir,
}

impl Qemu {
    /// Starts a guest with this firmware.
    pub fn boot(shape: Shape, image: &[u8]) -> Self {
        Self::start(shape, image, &[])
    }

    /// Loads a saved guest and leaves it stopped. The error is what QEMU said.
    pub fn load(shape: Shape, image: &[u8], stream: &Path) -> Result<Self, String> {
        let uri = format!("exec:cat {}", stream.display());
        let mut qemu = Self::start(shape, image, &["-incoming", &uri, "-S"]);
        let deadline = Instant::now() + LIMIT;
        loop {
            let Some(status) = qemu.try_execute("query-status", &json!({})) else {
                let _ = qemu.child.wait();
                return Err(qemu.complaint());
            };
            if status["status"] != "inmigrate" {
                return Ok(qemu);
            }
            assert!(Instant::now() < deadline, "QEMU does not finish loading");
            thread::sleep(POLL);
        }
    }

    fn start(shape: Shape, image: &[u8], more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        fs::write(inside("image"), image).unwrap();
        let (mode, vsmt) = (name(shape.mode), shape.vsmt);
        let machine = format!("pseries-7.2,ic-mode={mode},vsmt={vsmt},{MITIGATIONS}");
        let mut command = Command::new(binary());
        command
            .arg("-machine")
            .arg(machine)
            .args(["-cpu", CPU, "-m", "256M"])
            .args(["-accel", "tcg,thread=single"])
            .args(["-nodefaults", "-display", "none", "-no-user-config"])
            .arg("-bios")
            .arg(inside("image"))
            .arg("-qmp")
            .arg(format!(
                "unix:{},server=on,wait=off",
                inside("qmp").display()
            ));
        for _ in 0..6 {
            command.args(["-device", "spapr-vscsi"]);
        }
        for slot in 0..6 {
            command.args(["-device", &format!("edu,addr={slot}")]);
        }
        if shape.late_vcpu {
            let vcpu = format!("{CPU}-spapr-cpu-core,core-id=1");
            command.args(["-smp", "1,maxcpus=2", "-device", &vcpu]);
        } else {
            command.args(["-smp", "2"]);
        }
        let child = command
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(inside("stderr")).unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; see tests/qemu/state", binary().display()));
        let mut qemu = Self {
            child,
            qmp: BufReader::new(connect(&inside("qmp"))),
            folder,
        };
        let mut greeting = String::new();
        qemu.qmp.read_line(&mut greeting).unwrap();
        qemu.execute("qmp_capabilities", &json!({}));
        qemu
    }

    fn complaint(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    /// `None`: QEMU has gone.
    fn try_execute(&mut self, command: &str, arguments: &Value) -> Option<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.qmp
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .ok()?;
        loop {
            let mut line = String::new();
            if self.qmp.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let mut reply: Value = serde_json::from_str(&line).unwrap();
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            if let Some(result) = reply.get_mut("return") {
                return Some(result.take());
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_execute(command, arguments)
            .unwrap_or_else(|| panic!("{command}: QEMU has gone: {}", self.complaint()))
    }

    fn monitor(&mut self, line: &str) -> String {
        let text = self.execute("human-monitor-command", &json!({"command-line": line}));
        text.as_str().unwrap().to_owned()
    }

    fn wait(&mut self, what: &str, mut until: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !until(self) {
            assert!(Instant::now() < deadline, "{what} does not come");
            thread::sleep(POLL);
        }
    }

    fn word(&mut self, address: u64) -> u64 {
        let text = self.monitor(&format!("xp /1gx {address:#x}"));
        let value = text.split("0x").nth(1).unwrap().trim();
        u64::from_str_radix(value, 16).unwrap()
    }

    /// Waits until the guest's vCPUs have taken so many turns.
    pub fn wait_for_turn(&mut self, turn: u64) {
        self.wait(&format!("turn {turn}"), |qemu| {
            let fault = qemu.word(FAULT);
            assert_eq!(fault, 0, "an exception at {:#x}", fault.wrapping_sub(4));
            qemu.word(TURN) == turn
        });
    }

    /// The interrupt controller as the monitor shows it.
    pub fn info_pic(&mut self) -> String {
        self.monitor("info pic")
    }

    pub fn stop(&mut self) {
        self.execute("stop", &json!({}));
    }

    pub fn resume(&mut self) {
        self.execute("cont", &json!({}));
    }

    /// An NMI to every vCPU.
    pub fn inject_nmi(&mut self) {
        self.execute("inject-nmi", &json!({}));
    }

    /// Saves the stopped guest into `stream`.
    pub fn save(&mut self, stream: &Path) {
        let uri = format!("exec:cat > {}", stream.display());
        self.execute("migrate", &json!({"uri": uri}));
        self.wait("the end of saving", |qemu| {
            let status = qemu.execute("query-migrate", &json!({}));
            assert_ne!(status["status"], "failed");
            status["status"] == "completed"
        });
        // Only then may it go on.
        self.wait("the state after that", |qemu| {
            qemu.execute("query-status", &json!({}))["status"] == "postmigrate"
        });
    }

    /// Guest memory.
    pub fn memory(&mut self, address: u64, len: usize) -> Vec<u8> {
        let file: PathBuf = self.folder.path().join("memory");
        let arguments = json!({"val": address, "size": len, "filename": file});
        self.execute("pmemsave", &arguments);
        fs::read(&file).unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return stream;
            }
            Err(e) => assert!(Instant::now() < deadline, "QMP: {e}"),
        }
        thread::sleep(POLL);
    }
}
