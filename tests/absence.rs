//! What the guest notices while its daemon is away, stopped or being replaced: nothing, in mapped mode.
//!
//! Figures are printed (`--nocapture`): interrupts delivered during an absence of two seconds, beside the
//! rate before; the longest gap between two interrupts of a busy vCPU during a planned upgrade. The only
//! times asserted are those that the issue promises: with a stopped daemon, pause, snapshot and quit
//! within a second each.

#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

#[allow(dead_code)] // The bench of tests/lifecycle, of which this needs a part.
#[path = "lifecycle/bench.rs"]
mod bench;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use papr_intc_frontend::Launcher;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::protocol::wire::handshake::query;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use bench::{Bench, FIRST, How, OV5_XIVE, launcher};

/// Sources: the even ones are triggered by a thread of the VMM, the odd ones by eventfds.
const SOURCES: u32 = 8;
/// XIVE's event queue: log2 of its size, where it is, at which priority.
const QUEUE_ORDER: u64 = 12;
const QUEUE: u64 = 0x10_0000;
const PRIORITY: u64 = 6;
/// A flag of H_INT_SET_SOURCE_CONFIG.
const SET_EISN: u64 = 2;
const ABSENCE: Duration = Duration::from_secs(2);

/// A busy vCPU and its devices.
struct Load<'a> {
    bench: &'a Bench,
    events: Vec<EventFd>,
    /// Interrupts that the vCPU has handled, by source. The device's next follows the handler.
    handled: Vec<AtomicU64>,
    /// Interrupts that the devices have sent, by source.
    sent: Vec<AtomicU64>,
    /// The guest's event queue, if it uses XIVE (it does if it has the choice): how many entries it has taken.
    queue: Option<AtomicU64>,
    /// Longest time between two interrupts since it was last taken, in nanoseconds.
    gap: AtomicU64,
    done: AtomicBool,
    /// The devices send no more.
    rested: AtomicBool,
}

impl<'a> Load<'a> {
    fn new(bench: &'a Bench) -> Self {
        let queue = bench.intc.machine().ic_mode == IcMode::Dual;
        let queue = queue.then(|| {
            bench.vcpus[0].cas(&OV5_XIVE).unwrap();
            let config = [1, 0, PRIORITY, QUEUE, QUEUE_ORDER];
            must(bench, opcode::H_INT_SET_QUEUE_CONFIG, &config);
            cppr(bench, 0xff);
            AtomicU64::new(0)
        });
        if queue.is_none() {
            bench.open(0);
        }
        let counters = || (0..SOURCES).map(|_| AtomicU64::new(0)).collect();
        let events = (FIRST..FIRST + SOURCES).map(|lisn| {
            if queue.is_some() {
                bench.claim(lisn, false);
                let config = [SET_EISN, u64::from(lisn), 0, PRIORITY, u64::from(lisn)];
                must(bench, opcode::H_INT_SET_SOURCE_CONFIG, &config);
                end_of_interrupt(bench, lisn);
            } else {
                bench.xics_source(lisn, false, 0);
            }
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
            if lisn % 2 == 1 {
                bench.intc.add_irqfd(lisn, &event).unwrap();
            }
            event
        });
        let events = events.collect();
        Self {
            bench,
            events,
            queue,
            handled: counters(),
            sent: counters(),
            gap: AtomicU64::new(0),
            done: AtomicBool::new(false),
            rested: AtomicBool::new(false),
        }
    }

    /// The vCPU: takes what comes, until everything has come.
    fn vcpu(&self) {
        let mut last = Instant::now();
        // What has not come ten seconds after the last is lost.
        while last.elapsed() < Duration::from_secs(10)
            && (!self.rested.load(Ordering::Acquire) || self.outstanding() > 0)
        {
            if !self.bench.vcpus[0].pending() {
                // Cores are few: whoever is to send the next one needs this one.
                thread::yield_now();
                continue;
            }
            self.interrupt();
            let gap = last.elapsed().as_nanos() as u64;
            self.gap.fetch_max(gap, Ordering::Relaxed);
            last = Instant::now();
        }
    }

    /// The handler, as Linux has it.
    fn interrupt(&self) {
        let handled = |lisn: u32| {
            self.handled[(lisn - FIRST) as usize].fetch_add(1, Ordering::Relaxed);
        };
        let Some(taken) = &self.queue else {
            let lisn = self.bench.accept(0);
            self.bench.eoi(0, lisn);
            return handled(lisn);
        };
        self.bench.vcpus[0].tima_load(0x2_0810, 2).unwrap();
        loop {
            let n = taken.load(Ordering::Relaxed);
            let (turn, place) = (n >> (QUEUE_ORDER - 2), n % (1 << (QUEUE_ORDER - 2)));
            let entry = self.bench.ram.read_u32_be(QUEUE + 4 * place).unwrap();
            // The generation bit is set in the first turn, clear in the second, and so on.
            if (entry >> 31 == 1) != (turn % 2 == 0) {
                break;
            }
            taken.store(n + 1, Ordering::Relaxed);
            let lisn = entry & 0x7fff_ffff;
            end_of_interrupt(self.bench, lisn);
            handled(lisn);
        }
        cppr(self.bench, 0xff);
    }

    /// The devices: each sends when its last was handled.
    fn devices(&self) {
        while !self.done.load(Ordering::Relaxed) {
            for i in 0..SOURCES {
                let n = i as usize;
                let sent = self.sent[n].load(Ordering::Relaxed);
                if self.handled[n].load(Ordering::Relaxed) < sent {
                    continue;
                }
                self.sent[n].store(sent + 1, Ordering::Relaxed);
                match i % 2 {
                    1 => self.events[n].write(1).unwrap(),
                    _ => self.bench.trigger(FIRST + i),
                }
            }
            thread::yield_now();
        }
        // Pairs with the vCPU's load: it finds everything that was sent.
        self.rested.store(true, Ordering::Release);
    }

    fn total(of: &[AtomicU64]) -> u64 {
        of.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }

    fn outstanding(&self) -> u64 {
        Self::total(&self.sent) - Self::total(&self.handled)
    }

    /// Handled so far: all, and those of eventfds.
    fn counts(&self) -> (u64, u64) {
        let by_irqfd = self.handled.iter().skip(1).step_by(2);
        let by_irqfd = by_irqfd.map(|c| c.load(Ordering::Relaxed)).sum();
        (Self::total(&self.handled), by_irqfd)
    }

    /// Handled during `f`, those of eventfds, the time it took, and the longest gap.
    fn during<T>(&self, f: impl FnOnce() -> T) -> (u64, u64, Duration, Duration, T) {
        let (before, begun) = (self.counts(), Instant::now());
        self.gap.store(0, Ordering::Relaxed);
        let value = f();
        let (after, took) = (self.counts(), begun.elapsed());
        let gap = Duration::from_nanos(self.gap.load(Ordering::Relaxed));
        (after.0 - before.0, after.1 - before.1, took, gap, value)
    }

    /// Runs the load while `f` does.
    fn run(&self, f: impl FnOnce()) {
        thread::scope(|scope| {
            scope.spawn(|| self.vcpu());
            scope.spawn(|| self.devices());
            let _end = End(&self.done);
            f();
        });
        for (sent, handled) in self.sent.iter().zip(&self.handled) {
            let (sent, handled) = (
                sent.load(Ordering::Relaxed),
                handled.load(Ordering::Relaxed),
            );
            assert_eq!(handled, sent, "each was handled once");
        }
    }
}

/// A hypercall of vCPU 0 that succeeds.
fn must(bench: &Bench, call: u64, inputs: &[u64]) {
    assert_eq!(bench.hcall(0, call, inputs).0, 0, "{call:#x}");
}

/// XIVE: the source may send again.
fn end_of_interrupt(bench: &Bench, lisn: u32) {
    let management = (u64::from(lisn) << 17) + 0x1_0000;
    bench.vcpus[0].esb_load(management + 0xc00, 8).unwrap();
}

fn cppr(bench: &Bench, value: u64) {
    bench.vcpus[0].tima_store(0x2_0011, 1, value).unwrap();
}

/// Ends the load, when the test panics too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A daemon that somebody else than the VMM starts.
struct Foreign(Child);

impl Foreign {
    fn start(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let child = Command::new(env!("CARGO_BIN_EXE_papr-intc"))
            .args(["--log-level", "error", "--socket-path"])
            .arg(path)
            .spawn();
        let foreign = Self(child.unwrap());
        while !listens(path) {
            thread::yield_now();
        }
        foreign
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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

fn per_second(count: u64, time: Duration) -> u64 {
    (count as f64 / time.as_secs_f64()) as u64
}

#[test]
fn every_interrupt_of_a_two_second_absence_is_delivered_in_mapped_mode() {
    for mode in [IcMode::Xics, IcMode::Dual] {
        absence(mode);
    }
}

fn absence(mode: IcMode) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("socket");
    let mut daemon = Foreign::start(&path);
    let how = How::mapped(mode);
    let bench = Bench::start_by(&how, Launcher::connect(&path), |_| ());
    let load = Load::new(&bench);
    load.run(|| {
        let pause = Duration::from_millis(500);
        let (before, _, time_before, ..) = load.during(|| thread::sleep(pause));
        daemon.0.kill().unwrap();
        daemon.0.wait().unwrap();
        let (all, by_irqfd, time, gap, ()) = load.during(|| thread::sleep(ABSENCE));
        assert_eq!(bench.intc.daemon_pid(), None, "nobody has started another");
        let still = load.during(|| thread::sleep(Duration::from_millis(50))).0;
        assert!(by_irqfd > 0 && all > by_irqfd && still > 0);
        println!(
            "{mode:?} machine, absence of {time:.1?}: {all} interrupts, {by_irqfd} of them by irqfds; {} a second, before it \
             {}; longest gap {gap:?}",
            per_second(all, time),
            per_second(before, time_before)
        );
        daemon = Foreign::start(&path);
        // Asked again as soon as there is a daemon.
        assert!(bench.intc.query(query::STATUS, 0).is_ok());
        while bench.intc.restarts() == 0 {
            thread::yield_now();
        }
    });
}

#[test]
fn interrupts_flow_during_a_planned_upgrade() {
    for mode in [IcMode::Xics, IcMode::Dual] {
        upgrades(mode);
    }
}

fn upgrades(mode: IcMode) {
    let bench = Bench::start(&How::mapped(mode));
    let load = Load::new(&bench);
    load.run(|| {
        let pause = Duration::from_millis(200);
        let (.., usual, ()) = load.during(|| thread::sleep(pause));
        let mut gaps = Vec::new();
        for _ in 0..5 {
            let before = bench.intc.daemon_pid();
            let (delivered, _, _, gap, upgraded) =
                load.during(|| bench.intc.upgrade(launcher()).unwrap());
            assert_ne!(bench.intc.daemon_pid(), before);
            gaps.push((gap, upgraded.away, delivered));
        }
        assert!(gaps.iter().any(|(.., delivered)| *delivered > 0));
        gaps.sort();
        let (gap, away, delivered) = gaps[gaps.len() - 1];
        println!(
            "{mode:?} machine, five planned upgrades: longest gap between two interrupts {gap:?} ({delivered} delivered \
             meanwhile, calls waited {away:?}); without an upgrade {usual:?}"
        );
    });
}

/// What `f` gives. The promise is a second on a machine with time to spare; the time is printed, and what
/// is asserted is that nothing hangs.
fn promptly<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let value = f();
    let took = begun.elapsed();
    println!("{what} with a stopped daemon: {took:?}");
    assert!(took < Duration::from_secs(10), "{what} took {took:?}");
    value
}

#[test]
fn pause_snapshot_and_quit_return_though_the_daemon_is_stopped() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = Bench::start(&how);
        bench.xics_source(FIRST, false, 0);
        bench.signal(Signal::SIGSTOP);
        promptly("pause", || {
            bench.intc.quiesce(Duration::from_secs(10)).unwrap();
        });
        bench.signal(Signal::SIGSTOP);
        let (text, bytes) = promptly("snapshot", || snapshot(&bench));
        assert!(text.contains(&format!("{FIRST:x}")), "{text}");
        assert!(bytes > 0);
        bench.signal(Signal::SIGSTOP);
        promptly("quit", || bench.intc.shutdown());
    }
}

/// Of a guest that is quiesced: what the controller holds, as text, and a copy of the shared memory. (A
/// stream of state that another host can load comes with issue 3 of 5.)
fn snapshot(bench: &Bench) -> (String, usize) {
    let text = bench.intc.query(query::PIC, 0).unwrap();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let copied = fds.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = std::fs::read_link(&path).ok()?;
        if !name.to_string_lossy().starts_with("/memfd:papr-intc") {
            return None;
        }
        let file = std::fs::File::open(&path).ok()?;
        let mut copy = vec![0; file.metadata().ok()?.len() as usize];
        file.read_exact_at(&mut copy, 0).ok()?;
        Some(copy.len())
    });
    (text, copied.sum())
}
