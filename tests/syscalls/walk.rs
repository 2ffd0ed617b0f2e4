//! A life of a guest's interrupt controller, phase by phase, each of its threads under a name of its own: what
//! `docs/integrating.md` has rows and columns for.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use papr_intc_frontend::protocol::wire::handshake::query;
use papr_intc_frontend::{Executor, Launcher, WatchLimits};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bench::{Bench, FIRST, How, OV5_XIVE};

/// Longer than a tracer slows anything down to, short enough to wait for a stopped daemon.
const LIMITS: WatchLimits = WatchLimits {
    patience: Duration::from_millis(500),
    answer: Duration::from_secs(2),
    idle: Some(Duration::from_millis(200)),
    message: Duration::from_secs(10),
};
const LIMIT: Duration = Duration::from_secs(10);

/// Sources: an LSI with an irqfd, MSIs for XICS, MSIs for XIVE.
const LSI: u32 = FIRST;
const XICS_MSI: u32 = FIRST + 8;
const IRQFD: u32 = FIRST + 9;
const XIVE_MSI: u32 = FIRST + 16;
const XIVE_IRQFD: u32 = FIRST + 17;
const QUEUE: u64 = 0x10_0000;
const PRIORITY: u64 = 6;

/// Interrupts of each source in a load.
const ROUNDS: usize = 20;
/// Interrupts of [`Walk::alone`].
pub const ALONE: usize = 1000;

type Work = Box<dyn FnOnce() + Send>;

/// A thread of the VMM.
struct Worker(Sender<Work>);

impl Worker {
    fn new(name: &str, first: impl FnOnce() + Send + 'static) -> Self {
        let (sender, receiver) = channel::<Work>();
        let body = move || {
            first();
            receiver.into_iter().for_each(|work| work());
        };
        let thread = thread::Builder::new().name(name.to_owned());
        thread.spawn(body).unwrap();
        Self(sender)
    }

    /// Begins something; its result comes later.
    fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl FnOnce() -> T {
        let (done, result) = channel();
        let work = move || done.send(work()).unwrap();
        self.0.send(Box::new(work)).unwrap();
        move || result.recv().expect("the thread of the VMM goes on")
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.begin(work)()
    }
}

/// How the threads of the VMM begin, by their names.
pub type Confine = Arc<dyn Fn(&str) + Send + Sync>;

struct Walk<'a> {
    vmm: Worker,
    vcpu: Worker,
    device: Worker,
    bench: Arc<Bench>,
    next: &'a Launcher,
    events: Arc<[EventFd; 3]>,
    phase: &'a dyn Fn(&str),
}

/// Walks from start to shut down. `other` is the destination's; `next` what is upgraded to; `monitor` where a
/// daemon of `other` answers onlookers.
pub fn walk(
    launchers: [Launcher; 3],
    monitor: Option<&Path>,
    confine: &Confine,
    phase: &dyn Fn(&str),
) {
    let [launcher, next, other] = launchers;
    let worker = |name: &'static str| {
        let confine = Arc::clone(confine);
        Worker::new(name, move || confine(name))
    };
    let (vmm, vcpu, device) = (worker("vmm"), worker("vcpu"), worker("device"));
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let events = Arc::new([event(), event(), event()]);
    let start = |launcher| {
        vmm.run(move || {
            let options = |options: &mut papr_intc_frontend::Options| options.watch = LIMITS;
            Arc::new(Bench::start_by(
                &How::mapped(IcMode::Dual),
                launcher,
                options,
            ))
        })
    };
    phase("start");
    let (bench, destination) = (start(launcher), start(other));
    let walk = Walk {
        vmm,
        vcpu,
        device,
        bench,
        next: &next,
        events,
        phase,
    };
    walk.configuration();
    walk.rest();
    walk.alone();
    walk.load("load");
    walk.loss();
    walk.upgrade();
    walk.pause();
    walk.remote();
    walk.moves(&destination);
    if let Some(monitor) = monitor {
        walk.onlooker(monitor);
    }
    walk.end(destination);
}

impl Walk<'_> {
    fn on<T: Send + 'static>(
        &self,
        worker: &Worker,
        work: impl FnOnce(&Bench) -> T + Send + 'static,
    ) -> T {
        let bench = Arc::clone(&self.bench);
        worker.run(move || work(&bench))
    }

    fn configuration(&self) {
        (self.phase)("configuration");
        let events = Arc::clone(&self.events);
        self.on(&self.vmm, move |bench| {
            for lisn in [XICS_MSI, IRQFD, XIVE_MSI, XIVE_IRQFD] {
                bench.claim(lisn, false);
            }
            bench.claim(LSI, true);
            bench.claim(LSI + 1, true);
            bench.intc.free(LSI + 1, 1).unwrap();
            let (edges, resample) = ([&events[0], &events[1]], &events[2]);
            for (lisn, event) in [IRQFD, XIVE_IRQFD].into_iter().zip(edges) {
                bench.intc.add_irqfd(lisn, event).unwrap();
            }
            bench
                .intc
                .add_level_irqfd(LSI, 1, edges[0], resample)
                .unwrap();
            bench.intc.remove_level_irqfd(LSI, 1).unwrap();
            bench.intc.sync(XICS_MSI).unwrap();
            bench.intc.query(query::PIC, 0).unwrap();
            bench.intc.machine_reset(false).unwrap();
            let plugged = bench.intc.connect_vcpu(2).unwrap();
            plugged.disconnect().unwrap();
        });
        self.on(&self.vcpu, |bench| {
            bench.vcpus[0].reset().unwrap();
            for lisn in [XICS_MSI, IRQFD, LSI] {
                let set = bench.vcpus[0].rtas(RtasCall::SetXive, &[lisn, 0, 5], 1);
                assert_eq!(set.unwrap(), [0]);
            }
            bench.open(0);
        });
    }

    fn rest(&self) {
        (self.phase)("before rest");
        thread::sleep(Duration::from_millis(300));
        (self.phase)("rest");
        thread::sleep(Duration::from_millis(300));
    }

    /// A vCPU that nobody disturbs takes [`ALONE`] interrupts.
    fn alone(&self) {
        (self.phase)("alone");
        self.on(&self.vcpu, |bench| {
            for _ in 0..ALONE {
                assert_eq!(bench.hcall(0, opcode::H_IPI, &[0, 4]).0, 0);
                assert_eq!(bench.accept(0), 2);
                assert_eq!(bench.hcall(0, opcode::H_IPI, &[0, 0xff]).0, 0);
                bench.eoi(0, 2);
            }
        });
    }

    /// XICS, then XIVE, then back by a reset.
    fn load(&self, phase: &str) {
        (self.phase)(phase);
        for _ in 0..ROUNDS {
            for lisn in [XICS_MSI, IRQFD, LSI] {
                self.send(lisn);
                self.on(&self.vcpu, move |bench| {
                    bench.wait_for_line(0, true);
                    assert_eq!(bench.accept(0), lisn);
                    if lisn == LSI {
                        bench.intc.source(lisn).unwrap().set_level(false).unwrap();
                    }
                    bench.eoi(0, lisn);
                });
            }
        }
        (self.phase)("configuration");
        self.on(&self.vcpu, |bench| {
            bench.vcpus[0].cas(&OV5_XIVE).unwrap();
            let must = |call, inputs: &[u64]| assert_eq!(bench.hcall(0, call, inputs).0, 0);
            must(opcode::H_INT_SET_QUEUE_CONFIG, &[1, 0, PRIORITY, QUEUE, 16]);
            for lisn in [XIVE_MSI, XIVE_IRQFD].map(u64::from) {
                must(
                    opcode::H_INT_SET_SOURCE_CONFIG,
                    &[2, lisn, 0, PRIORITY, lisn],
                );
            }
            for lisn in [XIVE_MSI, XIVE_IRQFD] {
                end_of_interrupt(bench, lisn);
            }
            bench.vcpus[0].tima_store(0x2_0011, 1, 0xff).unwrap();
        });
        (self.phase)(phase);
        for _ in 0..ROUNDS {
            for lisn in [XIVE_MSI, XIVE_IRQFD] {
                self.send(lisn);
                self.on(&self.vcpu, move |bench| {
                    bench.wait_for_line(0, true);
                    bench.vcpus[0].tima_load(0x2_0810, 2).unwrap();
                    end_of_interrupt(bench, lisn);
                    bench.vcpus[0].tima_store(0x2_0011, 1, 0xff).unwrap();
                });
            }
        }
        (self.phase)("configuration");
        self.on(&self.vmm, |bench| bench.intc.machine_reset(false).unwrap());
        self.on(&self.vcpu, |bench| {
            for lisn in [XICS_MSI, IRQFD, LSI] {
                let set = bench.vcpus[0].rtas(RtasCall::SetXive, &[lisn, 0, 5], 1);
                assert_eq!(set.unwrap(), [0]);
            }
            bench.open(0);
        });
    }

    fn send(&self, lisn: u32) {
        let events = Arc::clone(&self.events);
        self.on(&self.device, move |bench| {
            let source = bench.intc.source(lisn).unwrap();
            match lisn {
                LSI => source.set_level(true).unwrap(),
                IRQFD => events[0].write(1).unwrap(),
                XIVE_IRQFD => events[1].write(1).unwrap(),
                _ => source.trigger().unwrap(),
            }
        });
    }

    /// Killed, then stopped, each time with a call of the guest that needs the daemon.
    fn loss(&self) {
        (self.phase)("loss");
        for (count, signal) in [(1, Signal::SIGKILL), (2, Signal::SIGSTOP)] {
            self.bench.signal(signal);
            self.on(&self.vcpu, |bench| {
                let set = bench.vcpus[0].rtas(RtasCall::SetXive, &[XICS_MSI, 0, 5], 1);
                assert_eq!(set.unwrap(), [0]);
            });
            self.bench.await_restarts(count);
        }
    }

    fn upgrade(&self) {
        (self.phase)("upgrade");
        let next = self.next.clone();
        self.on(&self.vmm, move |bench| bench.intc.upgrade(next).unwrap());
    }

    /// A trigger and a call of the guest while the machine is quiesced.
    fn pause(&self) {
        (self.phase)("pause");
        self.on(&self.vmm, |bench| bench.intc.quiesce(LIMIT).unwrap());
        let bench = Arc::clone(&self.bench);
        let accepted = self
            .vcpu
            .begin(move || bench.hcall(0, opcode::H_CPPR, &[0xff]).0);
        self.send(XICS_MSI);
        thread::sleep(Duration::from_millis(50));
        self.on(&self.vmm, |bench| bench.intc.resume(None).unwrap());
        assert_eq!(accepted(), 0);
        self.on(&self.vcpu, |bench| {
            bench.wait_for_line(0, true);
            assert_eq!(bench.accept(0), XICS_MSI);
            bench.eoi(0, XICS_MSI);
        });
    }

    fn remote(&self) {
        (self.phase)("switch");
        self.on(&self.vmm, |bench| bench.intc.demote().unwrap());
        self.load("remote");
        (self.phase)("remote");
        thread::sleep(Duration::from_millis(300));
        (self.phase)("switch");
        self.on(&self.vmm, |bench| bench.intc.promote().unwrap());
        assert_eq!(self.bench.intc.executor(), Executor::FrontEnd);
    }

    fn moves(&self, destination: &Arc<Bench>) {
        (self.phase)("move");
        let destination = Arc::clone(destination);
        self.on(&self.vmm, move |bench| {
            let (from, to) = (&bench.intc, &destination.intc);
            from.start_dirty_log().unwrap();
            to.state_check(&from.state_header().unwrap()).unwrap();
            from.take_dirty();
            from.quiesce(LIMIT).unwrap();
            from.take_dirty();
            let state = from.state_save().unwrap();
            to.quiesce(LIMIT).unwrap();
            to.state_load(&state).unwrap();
            to.state_abort().unwrap();
            to.resume(None).unwrap();
            from.state_abort().unwrap();
            from.stop_dirty_log().unwrap();
            from.resume(None).unwrap();
        });
    }

    /// Somebody looks on.
    fn onlooker(&self, monitor: &Path) {
        (self.phase)("monitor");
        // Under another name than the daemon's.
        let onlooker = monitor.with_extension("onlooker");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_papr-intc"), &onlooker).unwrap();
        let mut status = std::process::Command::new(onlooker);
        status.args(["status", "--socket"]).arg(monitor);
        assert!(status.output().unwrap().status.success());
    }

    fn end(self, destination: Arc<Bench>) {
        (self.phase)("end");
        let last = Mutex::new(Some((self.bench, destination)));
        self.vmm.run(move || {
            for bench in last
                .lock()
                .unwrap()
                .take()
                .into_iter()
                .flat_map(|(a, b)| [a, b])
            {
                bench.intc.shutdown();
            }
        });
        (self.phase)("over");
    }
}

/// XIVE: the source may send again.
fn end_of_interrupt(bench: &Bench, lisn: u32) {
    let management = (u64::from(lisn) << 17) + 0x1_0000;
    bench.vcpus[0].esb_load(management + 0xc00, 8).unwrap();
}
