//! A machine with two vCPUs on a daemon that can be cut, and what its guest sees in the end.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex, Once};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use papr_intc_frontend::protocol::wire::handshake::query;
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};
use papr_intc_frontend::{Executor, GuestRam, Intc, Launcher, Options, Vcpu};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::Control;

/// Sources of both controllers: two MSIs and an LSI.
pub const A: u32 = 0x20;
pub const B: u32 = 0x21;
pub const L: u32 = 0x18;
/// Claimed by nobody.
pub const FREE: u32 = 0x28;
/// The queues, one for each server, all at priority 6; and where one may be moved to.
pub const QUEUES: u64 = 0x10_0000;
pub const ELSEWHERE: u64 = 0x20_0000;
const CPPR: u64 = 0x2_0011;
const ACK: u64 = 0x2_0810;

/// The daemon that can be cut, built with its feature.
fn crash_daemon() -> std::path::PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--features",
            "crash-points",
            "--example",
            "crash_daemon",
        ]);
        build.args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
    });
    let exe = std::env::current_exe().unwrap();
    exe.ancestors()
        .nth(2)
        .unwrap()
        .join("examples/crash_daemon")
}

/// A launcher of it.
pub fn launcher(control: &Control) -> Launcher {
    let args = ["--log-level", &level(), "--crash"].map(Into::into);
    let mut args = Vec::from(args);
    args.push(control.path().into());
    Launcher::spawn(crash_daemon(), args)
}

fn level() -> String {
    std::env::var("PAPR_INTC_LOG").unwrap_or_else(|_| "off".to_owned())
}

/// What is claimed, routed and pending from outside of the guest.
pub struct Guest {
    pub intc: Intc,
    pub vcpus: Vec<Vcpu>,
    pub ram: Arc<GuestRam>,
    pub irqfd: EventFd,
    /// Accepted so far, by server and number.
    pub seen: Mutex<Vec<(u32, u32)>>,
    /// What a migration has sent of the RAM, if there is one.
    pub sent: Mutex<Option<Vec<u8>>>,
}

impl Guest {
    /// A dual machine in which everything is claimed and nothing configured.
    pub fn start(control: &Control, executor: Executor) -> Self {
        // Small: a reset writes every source, and each write is a point.
        let machine = Machine {
            xics_base: 0x10,
            sources: 0x30,
            ..Machine::pseries(IcMode::Dual, Compat::Papr1, 3)
        };
        let ram = Arc::new(GuestRam::new(&[(0, 4 << 20)]).unwrap());
        let mut options = Options {
            executor,
            ..Options::new(machine)
        };
        // A daemon that stands still is killed by the test, not by the front-end.
        options.watch.answer = std::time::Duration::from_secs(60);
        options.watch.message = std::time::Duration::from_secs(60);
        options.watch.idle = None;
        let intc = Intc::start(options, launcher(control), ram.clone(), Arc::new(|_| ())).unwrap();
        let vcpus = [0, 1].map(|s| intc.connect_vcpu(s).unwrap()).into();
        let guest = Self {
            intc,
            vcpus,
            ram,
            irqfd: EventFd::new(EFD_NONBLOCK).unwrap(),
            seen: Mutex::default(),
            sent: Mutex::default(),
        };
        guest.claim(A, claim_flag::MSI);
        guest.claim(B, claim_flag::MSI);
        guest.claim(L, claim_flag::LSI);
        guest
    }

    /// CLAIM; its errno, 0 for none.
    pub fn claim(&self, first: u32, flags: u32) -> i64 {
        let claim = Claim {
            first,
            count: 1,
            align: 1,
            flags,
            low: 0,
            high: 0,
        };
        self.intc
            .claim(&claim)
            .map_or_else(|e| e.errno().into(), |_| 0)
    }

    pub fn hcall(&self, server: usize, opcode: u64, inputs: &[u64]) -> (i64, [u64; 9]) {
        let mut args = [0; 9];
        args[..inputs.len()].copy_from_slice(inputs);
        let ret = self.vcpus[server].hcall(opcode, &mut args).unwrap();
        (ret, args)
    }

    pub fn rtas(&self, call: RtasCall, args: &[u32]) -> i64 {
        let cells = self.vcpus[0].rtas(call, args, 1).unwrap();
        i64::from(cells[0] as i32)
    }

    pub fn trigger(&self, lisn: u32) {
        // An error: a reset or FREE has taken the number away.
        let _ = self.intc.source(lisn).unwrap().trigger();
    }

    pub fn level(&self, level: bool) {
        let _ = self.intc.source(L).unwrap().set_level(level);
    }

    /// Both vCPUs accept everything.
    pub fn open_xics(&self) {
        for server in [0, 1] {
            self.hcall(server, opcode::H_CPPR, &[0xff]);
        }
    }

    /// A and L to server 0, B to server 1.
    pub fn route_xics(&self) {
        for (lisn, server) in [(A, 0), (L, 0), (B, 1)] {
            assert_eq!(self.rtas(RtasCall::SetXive, &[lisn, server, 5]), 0);
        }
        self.open_xics();
    }

    /// XIVE chosen, a queue for each server, everything routed as by `route_xics`, and on.
    pub fn route_xive(&self) {
        let mut ov5 = [0; 27];
        (ov5[0], ov5[23]) = (25, 0x40);
        assert_eq!(self.vcpus[0].cas(&ov5).unwrap().ret, 0);
        for server in [0u64, 1] {
            let queue = [1, server, 6, QUEUES + server * 0x1000, 12];
            assert_eq!(self.hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &queue).0, 0);
            self.vcpus[server as usize]
                .tima_store(CPPR, 1, 0xff)
                .unwrap();
        }
        for (lisn, server) in [(A, 0), (L, 0), (B, 1)] {
            let source = [2, u64::from(lisn), server, 6, u64::from(lisn)];
            assert_eq!(self.hcall(0, opcode::H_INT_SET_SOURCE_CONFIG, &source).0, 0);
            self.esb(lisn, 0xc00);
        }
    }

    /// A load in a source's management page.
    pub fn esb(&self, lisn: u32, offset: u64) -> u64 {
        let at = (u64::from(lisn) << 17) + 0x1_0000 + offset;
        self.vcpus[0].esb_load(at, 8).unwrap()
    }

    /// H_XIRR: what was accepted, 0 for nothing.
    pub fn accept(&self, server: usize) -> u32 {
        let (ret, args) = self.hcall(server, opcode::H_XIRR, &[]);
        let xisr = args[0] as u32 & 0xff_ffff;
        if ret != 0 || xisr == 0 {
            return 0;
        }
        self.saw(server as u32, xisr);
        xisr
    }

    fn saw(&self, server: u32, number: u32) {
        self.seen.lock().unwrap().push((server, number));
    }

    pub fn eoi(&self, server: usize, xisr: u32) -> i64 {
        let xirr = 0xff00_0000 | u64::from(xisr);
        self.hcall(server, opcode::H_EOI, &[xirr]).0
    }

    /// The acknowledge cycle: NSR, 0x80 if there was something.
    pub fn acknowledge(&self, server: usize) -> u64 {
        self.vcpus[server].tima_load(ACK, 2).unwrap() >> 8
    }

    pub fn store_cppr(&self, server: usize, cppr: u64) {
        self.vcpus[server].tima_store(CPPR, 1, cppr).unwrap();
    }

    fn mode(&self) -> &'static str {
        let status = self.intc.query(query::STATUS, 0).unwrap();
        if status.contains("\"mode\":\"xive\"") {
            "xive"
        } else {
            "xics"
        }
    }

    /// Takes everything that is or becomes pending, and writes down all that a guest can see.
    pub fn view(&self) -> Vec<String> {
        // Until both controllers are at rest.
        self.level(false);
        let mode = self.mode();
        for _ in 0..8 {
            match mode {
                "xics" => self.drain_xics(),
                _ => self.drain_xive(),
            }
        }
        let mut seen = self.seen.lock().unwrap().clone();
        seen.sort_unstable();
        let lines: Vec<bool> = self.vcpus.iter().map(Vcpu::pending).collect();
        let mut view = vec![
            format!("{mode}, lines {lines:?}"),
            format!("accepted {seen:x?}"),
            format!("queues {:x?}", self.entries()),
        ];
        let picture = self.intc.query(query::PIC, 0).unwrap();
        view.extend(picture.lines().map(str::to_owned));
        view.extend(self.unsent());
        view
    }

    fn drain_xics(&self) {
        for server in 0..self.vcpus.len() {
            self.hcall(server, opcode::H_CPPR, &[0xff]);
            while let xisr @ 1.. = self.accept(server) {
                // The IPI is taken back before its end.
                if xisr == 2 {
                    self.hcall(server, opcode::H_IPI, &[server as u64, 0xff]);
                }
                self.eoi(server, xisr);
            }
        }
        // What a dead H_XIRR took along would never be ended: a guest always ends what it accepted.
        for lisn in [A, B, L] {
            self.eoi(0, lisn);
        }
    }

    fn drain_xive(&self) {
        for server in 0..self.vcpus.len() {
            while self.acknowledge(server) & 0x80 != 0 {
                self.store_cppr(server, 0xff);
            }
            self.store_cppr(server, 0xff);
        }
        for lisn in [A, B, L] {
            // P: its event is in a queue, which the guest looks through.
            if self.esb(lisn, 0x800) & 2 != 0 && self.esb(lisn, 0) & 1 != 0 {
                self.trigger(lisn);
            }
        }
    }

    /// Every entry in every queue: event data by how often.
    fn entries(&self) -> BTreeMap<(u64, u32), u32> {
        let mut found = BTreeMap::new();
        for queue in [QUEUES, QUEUES + 0x1000, ELSEWHERE] {
            for i in 0..64 {
                let entry = self.ram.read_u32_be(queue + i * 4).unwrap();
                if entry != 0 {
                    *found.entry((queue, entry & 0x7fff_ffff)).or_default() += 1;
                }
            }
        }
        found
    }

    /// SIGKILL to the daemon that stands still. It may do so before the front-end knows its pid.
    pub fn kill(&self) {
        let pid = loop {
            match self.intc.daemon_pid() {
                Some(pid) => break pid,
                None => std::thread::yield_now(),
            }
        };
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    }
}
