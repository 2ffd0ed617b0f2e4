//! The machine that boots: QEMU's command line, the rig's environment, the files of one boot.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::matrix::{Boot, Way};

/// What is booted, and by what. Paths are absolute.
#[derive(Clone, Debug)]
pub struct Setup {
    pub qemu: OsString,
    /// Folder of `vmlinux` and `initramfs.gz`.
    pub guest: PathBuf,
    pub rig: PathBuf,
    /// The rig with faults.
    pub broken: PathBuf,
    pub daemon: PathBuf,
    /// The daemon to upgrade to.
    pub upgrade: PathBuf,
    /// `papr.work` of the guest.
    pub work: String,
    /// Whether the guest starts again, once by reboot and once by kexec.
    pub again: bool,
    /// Filter of the rig's and daemon's log.
    pub log: String,
}

const RAM: &str = "512M";

/// Speculation that this emulation does not tame; named, so that QEMU does not warn.
const MITIGATIONS: &str = "cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off";

/// What tests/qemu/guest/README.md asks for. Slots whose numbers have the same remainder by 4 share a
/// level-triggered line; slot 7 is for what is plugged.
const DEVICES: [&str; 7] = [
    "virtio-blk-pci,drive=main,serial=papr-main,addr=1",
    "virtio-blk-pci,drive=lsi,serial=papr-lsi,vectors=0,addr=2",
    "virtio-net-pci,netdev=net0,addr=3,romfile=",
    "virtio-blk-pci,drive=kernel,serial=papr-kernel,addr=4",
    "e1000,netdev=net1,addr=6,romfile=",
    "spapr-vscsi,id=vscsi",
    "scsi-hd,bus=vscsi.0,drive=scsi",
];

/// Names in the folder of a boot. The folder is QEMU's and this program's working folder's child, and sockets
/// are named from there: their paths may not be long.
pub const LOG: &str = "log";
const QMP: &str = "qmp";
const CONTROL: &str = "control";

/// Disks of the guest. The last is for a device that the guest asks for.
const DISKS: [&str; 4] = ["main", "lsi", "scsi", "papr-plugged"];
/// Their size; nothing is stored of what is not written.
const DISK_BYTES: u64 = 64 << 20;

/// The folder of one boot, from the working folder.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes it, empty but for the guest's disks.
    pub fn make(boot: &str) -> Result<Self, String> {
        let folder = Self(PathBuf::from(boot));
        let made = || {
            match fs::remove_dir_all(&folder.0) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            fs::create_dir_all(&folder.0)?;
            for name in DISKS {
                File::create(folder.0.join(name))?.set_len(DISK_BYTES)?;
            }
            Ok(())
        };
        made().map_err(|e| format!("folder {boot}: {e}"))?;
        Ok(folder)
    }

    /// Removes it, as nobody needs to look into it.
    pub fn remove(self) {
        let _ = fs::remove_dir_all(self.0);
    }

    pub fn qmp(&self) -> PathBuf {
        self.0.join(QMP)
    }

    pub fn control(&self) -> PathBuf {
        self.0.join(CONTROL)
    }

    pub fn log(&self) -> PathBuf {
        self.0.join(LOG)
    }
}

impl Setup {
    /// QEMU's command line.
    pub fn command(&self, boot: &Boot, folder: &Folder, step: Duration) -> Vec<OsString> {
        let mut words = vec![self.qemu.clone()];
        words.extend(["-nodefaults", "-no-user-config", "-display", "none"].map(OsString::from));
        let options = machine(boot)
            .into_iter()
            .chain(connections(folder))
            .chain(self.devices(folder));
        for (name, value) in options {
            words.extend([name.into(), value.into()]);
        }
        for (name, file) in [("-kernel", "vmlinux"), ("-initrd", "initramfs.gz")] {
            words.extend([name.into(), self.guest.join(file).into()]);
        }
        words.extend(["-append".into(), self.kernel_line(step).into()]);
        words
    }

    fn devices(&self, folder: &Folder) -> Vec<(&'static str, String)> {
        let kernel = self.guest.join("vmlinux").display().to_string();
        let drive = |name, file, more| {
            let drive = format!("if=none,id={name},format=raw,file={file},{more}");
            ("-drive", drive)
        };
        let mut options: Vec<(&str, String)> = DISKS
            .map(|name| {
                drive(
                    name,
                    folder.0.join(name).display().to_string(),
                    "cache=unsafe",
                )
            })
            .to_vec();
        options.push(drive("kernel", kernel, "readonly=on"));
        options.push(("-netdev", "user,id=net0".to_owned()));
        options.push(("-netdev", "user,id=net1,net=10.0.3.0/24".to_owned()));
        options.extend(DEVICES.map(|device| ("-device", device.to_owned())));
        options
    }

    /// With dynamic DMA windows, the e1000 would have none that it can use after kexec.
    fn kernel_line(&self, step: Duration) -> String {
        let (work, again, limit) = (&self.work, u8::from(self.again), step.as_secs());
        format!(
            "console=hvc0 panic=-1 disable_ddw papr.work={work} papr.limit={limit} \
             papr.reboots={again} papr.kexec={again} papr.before=plain"
        )
    }

    /// How often the guest starts again.
    pub fn restarts(&self) -> u32 {
        2 * u32::from(self.again)
    }

    /// What the rig reads.
    pub fn environment(&self, boot: &Boot, folder: &Folder) -> Vec<(&'static str, OsString)> {
        let mode = match boot.way {
            Way::Stock => return Vec::new(),
            Way::Plain | Way::Killed | Way::Upgraded => "mapped",
            Way::Remote => "remote",
            Way::Shadow => "shadow",
            Way::Broken(fault) if fault.survives(boot.ic_mode) => "shadow",
            Way::Broken(_) => "mapped",
        };
        let mut environment: Vec<(&str, OsString)> = vec![
            ("LD_PRELOAD", self.rig_of(boot).into()),
            ("PAPR_INTC_DAEMON", self.daemon.clone().into()),
            ("PAPR_INTC_MODE", mode.into()),
            ("PAPR_INTC_CONTROL", folder.control().into()),
            ("PAPR_INTC_LOG", self.log.clone().into()),
        ];
        if mode == "shadow" {
            environment.push(("PAPR_INTC_SHADOW", folder.0.join("difference").into()));
        }
        if let Way::Broken(fault) = boot.way {
            environment.push(("PAPR_INTC_BREAK", fault.name().into()));
        }
        environment
    }

    fn rig_of(&self, boot: &Boot) -> &Path {
        match boot.way {
            Way::Broken(_) => &self.broken,
            _ => &self.rig,
        }
    }

    /// What this boot needs and is not there.
    pub fn missing(&self, boot: &Boot) -> Option<&Path> {
        let files = [self.rig_of(boot), &self.daemon, &self.upgrade];
        let ours = files.into_iter().filter(|_| boot.way != Way::Stock);
        let mut all = ours.chain([self.guest.as_path()]);
        all.find(|path| !path.exists())
    }
}

/// Options that say which machine it is.
fn machine(boot: &Boot) -> Vec<(&'static str, String)> {
    let (mode, vcpus) = (boot.ic_mode.name(), boot.vcpus);
    let machine = format!("pseries,ic-mode={mode},memory-backend=ram,{MITIGATIONS}");
    let ram = format!("memory-backend-memfd,id=ram,share=on,size={RAM}");
    vec![
        ("-machine", machine),
        ("-object", ram),
        ("-m", RAM.to_owned()),
        ("-cpu", boot.cpu.name().to_owned()),
        // Room for a CPU that the guest asks for.
        ("-smp", format!("{vcpus},maxcpus={}", vcpus + 1)),
        ("-accel", "tcg,thread=multi".to_owned()),
    ]
}

/// Options that connect it to this program.
fn connections(folder: &Folder) -> Vec<(&'static str, String)> {
    let qmp = format!("unix:{},server=on,wait=off", folder.qmp().display());
    vec![
        ("-chardev", "stdio,id=console,signal=off".to_owned()),
        ("-serial", "chardev:console".to_owned()),
        ("-qmp", qmp),
    ]
}
