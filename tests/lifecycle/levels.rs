//! Level irqfds: a count raises the level, the guest's EOI lowers it and writes the resamplefds, a device
//! that still has a reason raises it again; shared with the VMM's own level; with every executor, across
//! hand-overs and kills.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::IcMode;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bench::{Bench, FIRST, How};

const LSI: u32 = FIRST + 0x200;

/// A device on one input.
struct Device {
    trigger: EventFd,
    resample: EventFd,
}

impl Device {
    fn on(bench: &Bench, input: u32) -> Self {
        let [trigger, resample] = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        let device = Self { trigger, resample };
        let Self { trigger, resample } = &device;
        bench
            .intc
            .add_level_irqfd(LSI, input, trigger, resample)
            .unwrap();
        device
    }
}

impl Device {
    /// Waits until the resamplefd has been written; how often.
    fn resampled(&self) -> u64 {
        loop {
            match self.resample.read() {
                Ok(count) => return count,
                Err(_) => thread::yield_now(),
            }
        }
    }
}

fn bench(how: &How) -> Bench {
    let bench = Bench::start(how);
    bench.open(0);
    bench.xics_source(LSI, true, 0);
    bench
}

/// The guest's handler up to its end.
fn accept(bench: &Bench) {
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), LSI);
}

#[test]
fn an_end_lowers_the_level_and_tells_every_device() {
    for how in How::all(IcMode::Xics) {
        let bench = bench(&how);
        let (a, b) = (Device::on(&bench, 0), Device::on(&bench, 7));
        a.trigger.write(1).unwrap();
        accept(&bench);
        bench.eoi(0, LSI);
        assert_eq!((a.resampled(), b.resampled()), (1, 1));
        assert!(!bench.vcpus[0].pending(), "the level has fallen");
        // Both have a reason: one interrupt, and after its end another for the one that still has.
        a.trigger.write(1).unwrap();
        b.trigger.write(1).unwrap();
        accept(&bench);
        bench.eoi(0, LSI);
        assert_eq!((a.resampled(), b.resampled()), (1, 1));
        b.trigger.write(1).unwrap();
        accept(&bench);
        bench.eoi(0, LSI);
        assert_eq!((a.resampled(), b.resampled()), (1, 1));
        assert!(!bench.vcpus[0].pending());
        bench.intc.remove_level_irqfd(LSI, 7).unwrap();
        assert!(bench.intc.remove_level_irqfd(LSI, 7).is_err());
    }
}

#[test]
fn the_level_of_the_vmm_is_kept_beside_that_of_irqfds() {
    for how in How::all(IcMode::Xics) {
        let bench = bench(&how);
        let device = Device::on(&bench, 0);
        let source = bench.intc.source(LSI).unwrap();
        device.trigger.write(1).unwrap();
        bench.wait_for_line(0, true);
        source.set_level(true).unwrap();
        accept(&bench);
        bench.eoi(0, LSI);
        device.resampled();
        // The VMM's is still high.
        accept(&bench);
        source.set_level(false).unwrap();
        bench.eoi(0, LSI);
        assert!(!bench.vcpus[0].pending());
    }
}

#[test]
fn a_level_irqfd_on_an_msi_is_refused_where_somebody_can_tell() {
    let bench = Bench::start(&How::remote(IcMode::Xics));
    bench.xics_source(FIRST, false, 0);
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    let refused = bench.intc.add_level_irqfd(FIRST, 0, &fd, &fd).unwrap_err();
    assert!(refused.to_string().contains("MSI"), "{refused}");
}

/// Ends the devices when the test panics too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A device whose reason is a counter: it asserts while the guest has seen less than it has done, and does
/// more only when the guest has caught up.
fn work(device: &Device, done: &AtomicUsize, seen: &AtomicUsize, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        done.fetch_add(1, Ordering::Relaxed);
        // At most once for each resample, as a device does.
        while seen.load(Ordering::Relaxed) < done.load(Ordering::Relaxed) {
            device.trigger.write(1).unwrap();
            device.resampled();
            if over.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

fn under_fire(how: &How, disturb: impl Fn(&Bench, usize)) {
    let bench = bench(how);
    let devices = [Device::on(&bench, 0), Device::on(&bench, 1)];
    let (done, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for device in &devices {
            scope.spawn(|| work(device, &done, &seen, &over));
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if bench.vcpus[0].pending() && bench.accept(0) == LSI {
                    // The handler: it looks at both devices, then ends.
                    seen.store(done.load(Ordering::Relaxed), Ordering::Relaxed);
                    bench.eoi(0, LSI);
                }
            }
            // Nobody waits for a resample any more.
            devices.iter().for_each(|d| d.resample.write(1).unwrap());
        });
        let _end = End(&over);
        for n in 0..30 {
            let before = seen.load(Ordering::Relaxed);
            disturb(&bench, n);
            while seen.load(Ordering::Relaxed) < before + 10 {
                thread::yield_now();
            }
        }
    });
}

#[test]
fn kills_lose_no_level_and_no_resample() {
    for how in How::all(IcMode::Xics) {
        under_fire(&how, |bench, _| bench.kill_and_wait());
    }
}

#[test]
fn hand_overs_lose_no_level_and_no_resample() {
    for how in [How::mapped(IcMode::Xics), How::remote(IcMode::Xics)] {
        under_fire(&how, |bench, n| {
            let to = [Executor::Daemon, Executor::FrontEnd][n % 2];
            bench.intc.quiesce(Duration::from_secs(10)).unwrap();
            bench.intc.resume(Some(to)).unwrap();
            if n % 5 == 0 {
                bench.kill_and_wait();
            }
        });
    }
}
