//! From a device's write of its eventfd to the vCPU: until the VMM's kick is called with the line up, which is all
//! that a running vCPU needs; or until a halted vCPU's thread is awake. Beside raw eventfds that take the same hops,
//! with threads and processes on the same CPUs.
//!
//! | executor | hops | limit |
//! |---|---|---|
//! | mapped, kick | device → thread of the front-end | one eventfd |
//! | mapped, halted vCPU | and → vCPU | one eventfd; an eventfd, a relay thread, an eventfd |
//! | remote, kick | device → daemon → thread of the front-end | an eventfd, a relay process, an eventfd |

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::{Executor, Kick};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::cycle::end;
use crate::hop::now;
use crate::ipi::{event, signal, sleep_on};
use crate::rig::{Rig, cpus, io_threads, machine, pin, pin_task};
use crate::table::Row;
use crate::timing::{Budget, Pairs, Sense, clock_cost};

/// Names this program as the relay process.
pub const RELAY: &str = "--relay";
const TURN: usize = 50;

/// The rows; each is given to `add` as soon as it is measured.
pub fn measure(budget: Budget, mut add: impl FnMut(Row)) {
    let places: &[(usize, &str)] = match cpus() {
        1 => &[(0, ", same CPU")],
        _ => &[(0, ", same CPU"), (1, ", 2 CPUs")],
    };
    for (other, place) in places {
        let mut row = |path: &str, ours: &dyn Way, limit: &dyn Way| {
            let pairs = pairs(budget, ours, limit);
            let row = Row::new(&format!("{path}{place}"), pairs, Sense::Max, 1.1);
            add(if *other == 0 { row.gate() } else { row });
        };
        let hop = Direct::start(*other, false);
        {
            let mapped = Irqfd::start(Executor::FrontEnd, *other, false);
            row("irqfd to kick, mapped / one eventfd", &mapped, &hop);
            let by_epoll = Direct::start(*other, true);
            row(
                "irqfd to kick, mapped / eventfd by epoll",
                &mapped,
                &by_epoll,
            );
        }
        {
            let halted = Irqfd::start(Executor::FrontEnd, *other, true);
            row("irqfd to halted vCPU, mapped / one eventfd", &halted, &hop);
            row(
                "irqfd to halted vCPU, mapped / relay thread",
                &halted,
                &Relayed::thread(*other),
            );
        }
        let remote = Irqfd::start(Executor::Daemon, *other, false);
        row(
            "irqfd to kick, remote / relay process",
            &remote,
            &Relayed::process(*other),
        );
    }
}

/// A way from an eventfd to a stamp.
trait Way {
    /// Makes ready and begins; the stamp is taken by another thread, which then writes `done`.
    fn write(&self);
    fn seen(&self) -> &Seen;
    /// What was sent has arrived.
    fn is_here(&self) -> bool {
        true
    }
    fn look_again(&self) {}
    fn clean(&self) {}
}

/// When it arrived, and that it did.
struct Seen {
    at: AtomicU64,
    done: File,
}

impl Seen {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            at: AtomicU64::new(0),
            done: event(),
        })
    }
    fn stamp(&self) {
        // Release, by way of the eventfd.
        self.at.store(now(), Ordering::Release);
        signal(&self.done);
    }
}

fn pairs(budget: Budget, ours: &dyn Way, limit: &dyn Way) -> Pairs {
    let mut pairs = Pairs::in_turns(TURN);
    let begun = Instant::now();
    let once = |way: &dyn Way| {
        let sent = now();
        way.write();
        let at = loop {
            sleep_on(&way.seen().done);
            let at = way.seen().at.load(Ordering::Acquire);
            if at >= sent && way.is_here() {
                break at;
            }
            // Something else made the VMM look.
            way.look_again();
        };
        way.clean();
        (at - sent) as f64 - clock_cost()
    };
    let _ = (once(ours), once(limit));
    while begun.elapsed() < budget.time || pairs.ours.len() < TURN {
        pairs.ours.extend((0..TURN).map(|_| once(ours)));
        pairs.limit.extend((0..TURN).map(|_| once(limit)));
    }
    pairs
}

/// A thread that stamps what it reads, on `cpu`; it asks epoll first, if `by_epoll`, as one that serves many must.
fn stamper(from: Arc<File>, seen: Arc<Seen>, cpu: usize, by_epoll: bool) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll descriptor");
    let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
    epoll.add(&*from, event).expect("an eventfd to watch");
    let body = move || {
        pin(cpu);
        // As long as there is somebody to write.
        while Arc::strong_count(&from) > 1 {
            if by_epoll {
                let _ = epoll.wait(&mut [EpollEvent::empty(); 64], EpollTimeout::NONE);
            }
            sleep_on(&from);
            seen.stamp();
        }
    };
    std::thread::spawn(body);
}

/// The raw hop: a write that wakes a reader.
struct Direct {
    event: Arc<File>,
    seen: Arc<Seen>,
}

impl Direct {
    fn start(cpu: usize, by_epoll: bool) -> Self {
        let (event, seen) = (Arc::new(event()), Seen::new());
        stamper(Arc::clone(&event), Arc::clone(&seen), cpu, by_epoll);
        Self { event, seen }
    }
}

impl Way for Direct {
    fn write(&self) {
        signal(&self.event);
    }
    fn seen(&self) -> &Seen {
        &self.seen
    }
}

/// Two raw hops: somebody reads one eventfd and writes another.
struct Relayed {
    first: Arc<File>,
    /// Kept for its reader.
    _second: Arc<File>,
    seen: Arc<Seen>,
    process: Option<Child>,
}

impl Relayed {
    /// The relay runs on `cpu`, the last reader with the device.
    fn thread(cpu: usize) -> Self {
        let (first, second, seen) = (Arc::new(event()), Arc::new(event()), Seen::new());
        stamper(Arc::clone(&second), Arc::clone(&seen), 0, false);
        let (from, to) = (Arc::clone(&first), Arc::clone(&second));
        std::thread::spawn(move || {
            pin(cpu);
            while Arc::strong_count(&from) > 1 {
                sleep_on(&from);
                signal(&to);
            }
        });
        Self {
            first,
            _second: second,
            seen,
            process: None,
        }
    }

    fn process(cpu: usize) -> Self {
        let (first, second, seen) = (Arc::new(event()), Arc::new(event()), Seen::new());
        let pass = |file: &File| {
            let copy = file.try_clone().expect("a descriptor");
            Stdio::from(OwnedFd::from(copy))
        };
        let own = std::env::current_exe().expect("this program has a path");
        let child = Command::new(own)
            .arg(RELAY)
            .stdin(pass(&first))
            .stdout(pass(&second))
            .spawn()
            .expect("this program can be started");
        pin_task(child.id() as i32, cpu);
        stamper(Arc::clone(&second), Arc::clone(&seen), 0, false);
        Self {
            first,
            _second: second,
            seen,
            process: Some(child),
        }
    }
}

impl Way for Relayed {
    fn write(&self) {
        signal(&self.first);
    }
    fn seen(&self) -> &Seen {
        &self.seen
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The relay process.
pub fn relay() {
    use std::io::{Read, Write};
    let (mut from, mut to) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut count = [0; 8];
    while from.read_exact(&mut count).is_ok() {
        let _ = to.write_all(&1u64.to_ne_bytes());
        let _ = to.flush();
    }
}

/// Ours: an irqfd of a source of vCPU 0.
struct Irqfd {
    rig: Rig,
    device: EventFd,
    seen: Arc<Seen>,
    armed: Arc<AtomicBool>,
    kicks: Arc<AtomicU64>,
}

impl Irqfd {
    /// The thread of the front-end (mapped) or the daemon (remote) runs on `cpu`, everything else with the device.
    fn start(executor: Executor, cpu: usize, halted: bool) -> Self {
        let (seen, armed) = (Seen::new(), Arc::new(AtomicBool::new(false)));
        let kicks = Arc::new(AtomicU64::new(0));
        let bed = Arc::new(event());
        if halted {
            stamper(Arc::clone(&bed), Arc::clone(&seen), 0, false);
        }
        let kick: Kick = {
            let (seen, armed) = (Arc::clone(&seen), Arc::clone(&armed));
            let kicks = Arc::clone(&kicks);
            Arc::new(move |_| {
                match armed.swap(false, Ordering::AcqRel) {
                    true if halted => signal(&bed),
                    true => seen.stamp(),
                    // The acknowledge kicks too.
                    false => _ = kicks.fetch_add(1, Ordering::AcqRel),
                }
            })
        };
        pin(0);
        let before = io_threads();
        let rig = Rig::start(machine(IcMode::Xive, 64, 1), executor, kick).expect("a machine");
        match executor {
            Executor::FrontEnd => {
                let own = io_threads().into_iter().filter(|t| !before.contains(t));
                own.for_each(|thread| pin_task(thread, cpu));
            }
            Executor::Daemon => {
                let daemon = rig.intc.daemon_pid().expect("a daemon that serves");
                pin_task(daemon as i32, cpu);
            }
        }
        let device = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd");
        rig.intc
            .add_irqfd(rig.first(), &device)
            .expect("an irqfd of a source");
        Self {
            rig,
            device,
            seen,
            armed,
            kicks,
        }
    }
}

impl Way for Irqfd {
    fn write(&self) {
        self.armed.store(true, Ordering::Release);
        let _ = self.device.write(1);
    }
    fn seen(&self) -> &Seen {
        &self.seen
    }
    fn is_here(&self) -> bool {
        self.rig.vcpus[0].pending()
    }
    fn look_again(&self) {
        self.armed.store(true, Ordering::SeqCst);
        if self.is_here() && self.armed.swap(false, Ordering::SeqCst) {
            // Its kick came before this: too late a stamp, but one.
            self.seen.stamp();
        }
    }
    fn clean(&self) {
        let before = self.kicks.load(Ordering::Acquire);
        end(&self.rig.vcpus[0], self.rig.first());
        // The acknowledge's kick, which is not to be taken for the next event's, comes soon.
        for _ in 0..100 {
            if self.kicks.load(Ordering::Acquire) != before {
                return;
            }
            std::thread::yield_now();
        }
    }
}
