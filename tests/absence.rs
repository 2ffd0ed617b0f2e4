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
use papr_intc_frontend::protocol::papr::codes::RtasCall;
use papr_intc_frontend::protocol::wire::handshake::query;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use bench::{Bench, FIRST, How, launcher};

/// Sources: the even ones are triggered by a thread of the VMM, the odd ones by eventfds.
const SOURCES: u32 = 8;
const ABSENCE: Duration = Duration::from_secs(2);

/// A busy vCPU and its devices.
struct Load<'a> {
    bench: &'a Bench,
    events: Vec<EventFd>,
    /// Interrupts that the vCPU has handled, by source. The device's next follows the handler.
    handled: Vec<AtomicU64>,
    /// Interrupts that the devices have sent, by source.
    sent: Vec<AtomicU64>,
    /// Longest time between two interrupts since it was last taken, in nanoseconds.
    gap: AtomicU64,
    done: AtomicBool,
}

impl<'a> Load<'a> {
    fn new(bench: &'a Bench) -> Self {
        bench.open(0);
        let counters = || (0..SOURCES).map(|_| AtomicU64::new(0)).collect();
        let events = (FIRST..FIRST + SOURCES).map(|lisn| {
            bench.xics_source(lisn, false, 0);
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
            if lisn % 2 == 1 {
                bench.intc.add_irqfd(lisn, &event).unwrap();
            }
            event
        });
        Self {
            bench,
            events: events.collect(),
            handled: counters(),
            sent: counters(),
            gap: AtomicU64::new(0),
            done: AtomicBool::new(false),
        }
    }

    /// The vCPU: takes what comes, until everything has come.
    fn vcpu(&self) {
        let mut last = Instant::now();
        while !self.done.load(Ordering::Relaxed) || self.outstanding() > 0 {
            if !self.bench.vcpus[0].pending() {
                // Cores are few: whoever is to send the next one needs this one.
                thread::yield_now();
                continue;
            }
            let lisn = self.bench.accept(0);
            self.bench.eoi(0, lisn);
            let gap = last.elapsed().as_nanos() as u64;
            self.gap.fetch_max(gap, Ordering::Relaxed);
            last = Instant::now();
            self.handled[(lisn - FIRST) as usize].fetch_add(1, Ordering::Relaxed);
        }
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
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("socket");
    let mut daemon = Foreign::start(&path);
    let how = How::mapped(IcMode::Xics);
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
            "absence of {time:.1?}: {all} interrupts, {by_irqfd} of them by irqfds; {} a second, before it \
             {}; longest gap {gap:?}",
            per_second(all, time),
            per_second(before, time_before)
        );
        daemon = Foreign::start(&path);
        // Configured again as soon as there is a daemon.
        let routed = bench.vcpus[1].rtas(RtasCall::GetXive, &[FIRST], 3);
        assert_eq!(routed.unwrap(), [0, 0, 5]);
        while bench.intc.restarts() == 0 {
            thread::yield_now();
        }
    });
}

#[test]
fn interrupts_flow_during_a_planned_upgrade() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    let load = Load::new(&bench);
    load.run(|| {
        let pause = Duration::from_millis(200);
        let (.., usual, ()) = load.during(|| thread::sleep(pause));
        let mut gaps = Vec::new();
        for _ in 0..5 {
            let before = bench.intc.daemon_pid();
            let (delivered, _, time, gap, upgraded) =
                load.during(|| bench.intc.upgrade(launcher()).unwrap());
            assert_ne!(bench.intc.daemon_pid(), before);
            assert!(delivered > 0, "the vCPU was busy for {time:?}");
            gaps.push((gap, upgraded.away, delivered));
        }
        gaps.sort();
        let (gap, away, delivered) = gaps[gaps.len() - 1];
        println!(
            "five planned upgrades: longest gap between two interrupts {gap:?} ({delivered} delivered \
             meanwhile, calls waited {away:?}); without an upgrade {usual:?}"
        );
    });
}

/// What `f` gives, within the promised second.
fn promptly<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let value = f();
    let took = begun.elapsed();
    println!("{what} with a stopped daemon: {took:?}");
    assert!(took < Duration::from_secs(1), "{what} took {took:?}");
    value
}

#[test]
fn pause_snapshot_and_quit_return_within_a_second_though_the_daemon_is_stopped() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        let bench = Bench::start(&how);
        bench.xics_source(FIRST, false, 0);
        bench.signal(Signal::SIGSTOP);
        promptly("pause", || {
            bench.intc.quiesce(Duration::from_secs(1)).unwrap();
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
