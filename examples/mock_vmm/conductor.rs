//! The run: boots the guest, lets its devices work in rounds, drains after each round, reboots it in
//! every way a machine knows, until the time is over.
//!
//! A drain is where losses are found: the devices rest, and everything that was sent has to be seen
//! without any further help. What is still outstanding when patience is over is lost.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use papr_intc_protocol::layout::Compat;

use crate::board::{Gone, Numbers, Step};
use crate::cli::{Mode, Options};
use crate::devices::{Command, Devices};
use crate::guest::boot::Plan;
use crate::guest::cpu::Role;
use crate::guest::{Choice, Platform};
use crate::halt::Halt;
use crate::rng::Rng;
use crate::tally::{Kind, Tally};

/// Where MSIs are claimed.
pub const MSI_RANGE_START: u32 = 0x1300;

/// What the conductor works with.
pub struct Conductor {
    /// The machine.
    pub platform: Arc<Platform>,
    /// The eventfds of the sources that have one, by source.
    pub eventfds: Vec<(usize, vmm_sys_util::eventfd::EventFd)>,
    /// The command line.
    pub options: Options,
    /// When the run ends.
    pub end: Instant,
    /// Its choices.
    pub rng: Rng,
    /// Kernels so far.
    pub kernels: u64,
}

/// Something that was sent and never seen.
#[derive(Clone, Debug)]
pub struct Loss(pub String);

impl Conductor {
    fn devices(&self) -> &Devices {
        &self.platform.devices
    }

    fn over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Lives until the time is over; what was lost.
    pub fn conduct(&mut self) -> Step<Vec<Loss>> {
        self.attach_irqfds()?;
        let mut life = 0;
        loop {
            let plan = self.plan(life);
            self.platform.halts[0].start(Role::Firmware(plan));
            let lost = self.wait_for_kernel(plan.number)?;
            if !lost.is_empty() {
                return Ok(lost);
            }
            let lost = self.live()?;
            if !lost.is_empty() || self.over() {
                return Ok(lost);
            }
            self.reset()?;
            life += 1;
        }
    }

    fn plan(&mut self, life: u64) -> Plan {
        let choice = match self.options.mode {
            Mode::Xics => Choice::Xics,
            Mode::Xive => Choice::Xive,
            // Kernels with and without XIVE take turns.
            Mode::Dual if life % 3 == 2 => Choice::Xics,
            Mode::Dual => Choice::Xive,
        };
        self.kernels += 1;
        Plan {
            number: self.kernels,
            choice,
            firmware_interrupts: match self.options.compat.compat() {
                Compat::Papr1 => self.rng.below(20) as usize,
                // MSIs that were claimed again are not masked there (xics.md §2.4): what comes late
                // from before the reset would be in the firmware's way.
                Compat::Qemu72 => 0,
            },
            flips: self.rng.below(3) as usize,
        }
    }

    /// Rounds of work, with the orderly and the disorderly kexec between them.
    fn live(&mut self) -> Step<Vec<Loss>> {
        for _ in 0..2 + self.rng.below(3) {
            let lost = self.round()?;
            if !lost.is_empty() || self.over() {
                return Ok(lost);
            }
            let command = match self.rng.below(4) {
                0 => Command::Kexec,
                1 => Command::Kdump,
                _ => continue,
            };
            // A crashed kernel's devices know nothing and go on; an orderly one has stopped them.
            if command == Command::Kdump {
                self.devices().run()?;
            }
            self.kernels += 1;
            self.devices().tell(command)?;
            let lost = self.wait_for_kernel(self.kernels)?;
            if !lost.is_empty() {
                return Ok(lost);
            }
        }
        Ok(Vec::new())
    }

    fn round(&mut self) -> Step<Vec<Loss>> {
        self.devices().run()?;
        let round = Duration::from_millis(60 + self.rng.below(200));
        let left = self.end.saturating_duration_since(Instant::now());
        std::thread::sleep(round.min(left));
        self.devices().pause()?;
        self.drain()
    }

    fn check_failure(&self) -> Step {
        self.platform.failed().map_or(Ok(()), |why| Err(Gone(why)))
    }

    /// Waits, without helping, until `done`; false when nothing has moved for as long as patience
    /// lasts. (On a slow machine a boot or a drain may take longer than that; a loss stands still.)
    fn wait_until(&self, mut done: impl FnMut(&Self) -> bool) -> Step<bool> {
        let (mut moved, mut progress) = (Instant::now(), 0);
        while !done(self) {
            self.check_failure()?;
            let now = self.platform.tally.progress();
            if now != progress {
                (moved, progress) = (Instant::now(), now);
            } else if moved.elapsed() > self.options.patience {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(true)
    }

    fn wait_for_kernel(&self, number: u64) -> Step<Vec<Loss>> {
        let running = |c: &Self| {
            let kernel = c.platform.kernel();
            kernel.is_some_and(|k| k.number == number && k.is_ready())
        };
        if self.wait_until(running)? {
            return Ok(Vec::new());
        }
        let mut lost = vec![Loss(format!(
            "kernel {number} did not get to run; {}",
            self.vcpus()
        ))];
        lost.extend(self.losses());
        Ok(lost)
    }

    /// What every vCPU is doing, for people.
    fn vcpus(&self) -> String {
        let vcpus = self.platform.halts.iter().zip(&self.platform.cpus);
        let each = vcpus.enumerate().map(|(i, (halt, cpu))| {
            let line = u8::from(cpu.pending());
            format!("vCPU {i} {:?}, line {line}", halt.doing())
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// Everything that was sent has to be seen.
    fn drain(&self) -> Step<Vec<Loss>> {
        if self.options.compat.compat() == Compat::Qemu72 {
            // A moved MSI may wait there for the next resend, which any interrupt brings (xics.md S08).
            self.devices().tell(Command::Idle)?;
        }
        if self.wait_until(|c| c.quiet())? {
            Tally::one(&self.platform.tally.drains);
            return Ok(Vec::new());
        }
        Ok(self.losses())
    }

    fn quiet(&self) -> bool {
        let ipis = self.platform.kernel().map_or(0, |k| k.lost_ipis().len());
        ipis == 0 && self.devices().outstanding().is_empty()
    }

    /// What is outstanding, each with what its vCPU is doing.
    fn losses(&self) -> Vec<Loss> {
        let Some(kernel) = self.platform.kernel() else {
            return Vec::new();
        };
        let picture = self.platform.board.picture();
        let held = |lisn: u32| {
            let number = format!("{lisn:x} ");
            let mut lines = picture.lines();
            lines
                .find(|l| l.trim_start().starts_with(&number))
                .unwrap_or("")
                .trim()
        };
        let cpu = |server: u32| {
            let doing = self.platform.halts[server as usize].doing();
            let line = self.platform.cpus[server as usize].pending();
            format!("vCPU {server}: {doing:?}, line {}", u8::from(line))
        };
        let ipis = kernel.lost_ipis().into_iter().map(|(server, count)| {
            Loss(format!("{count} IPIs to vCPU {server} ({})", cpu(server)))
        });
        let sources = self.devices().outstanding().into_iter().map(|i| {
            let (irq, cells) = (&kernel.irqs[i], &self.devices().cells);
            let (sent, seen) = (cells.sent(i), cells.seen(i));
            let kind = self.devices().sources[i].kind.name();
            // A vCPU that hangs may hold the lock.
            let place = irq.try_lock().map_or("locked".into(), |state| {
                format!("{}; {state:?}", cpu(state.target))
            });
            Loss(format!(
                "{kind} {:#x}: sent {sent}, seen {seen} ({place}); controller: {}",
                irq.lisn,
                held(irq.lisn)
            ))
        });
        ipis.chain(sources).collect()
    }

    /// The machine's reset button, in the middle of whatever the guest does.
    fn reset(&mut self) -> Step {
        if self.rng.one_in(2) {
            // Not even the devices have come to rest.
            self.devices().run()?;
            std::thread::sleep(Duration::from_millis(self.rng.below(20)));
        }
        self.devices().pause()?;
        self.stop_vcpus()?;
        for (source, _) in &self.eventfds {
            let lisn = self.devices().sources[*source].lisn();
            self.platform.board.remove_irqfd(lisn)?;
        }
        self.platform.board.machine_reset()?;
        Tally::one(&self.platform.tally.resets);
        claim_msis(&self.platform.devices, &mut self.rng)?;
        self.attach_irqfds()?;
        self.platform.halts.iter().for_each(Halt::resume);
        Ok(())
    }

    fn stop_vcpus(&self) -> Step {
        let halts = &self.platform.halts;
        halts.iter().for_each(Halt::pause);
        let stopped = |c: &Self| {
            let mut halts = c.platform.halts.iter();
            halts.all(|h| h.doing() == crate::halt::Doing::Stopped)
        };
        if !self.wait_until(stopped)? {
            return Err(Gone("a vCPU does not stop for the reset".into()));
        }
        // Once more: one of them may have started another before it stopped.
        halts.iter().for_each(Halt::pause);
        Ok(())
    }

    fn attach_irqfds(&self) -> Step {
        for (source, event) in &self.eventfds {
            let lisn = self.devices().sources[*source].lisn();
            self.platform.board.add_irqfd(lisn, event)?;
        }
        Ok(())
    }

    /// Stops everything; false if a vCPU would not stop.
    pub fn stop(&self) -> bool {
        let _ = self.devices().pause();
        self.devices().quit();
        let stopped = self.stop_vcpus().is_ok();
        self.platform.halts.iter().for_each(Halt::quit);
        stopped
    }
}

/// ibm,change-msi of every driver: MSIs in blocks of one to four, in a new order each time.
pub fn claim_msis(devices: &Devices, rng: &mut Rng) -> Step {
    let msis: Vec<_> = devices
        .sources
        .iter()
        .skip(1)
        .filter(|s| s.kind != Kind::Lsi)
        .collect();
    let range = MSI_RANGE_START..devices.board.machine().sources;
    let mut rest = &msis[..];
    while !rest.is_empty() {
        let block = (1 << rng.below(3)).min(rest.len());
        let block = if block == 3 { 2 } else { block };
        let first = devices
            .board
            .claim(Numbers::Msis(block as u32, range.clone()))?;
        let (now, later) = rest.split_at(block);
        for (source, lisn) in now.iter().zip(first..) {
            source.lisn.store(lisn, Ordering::Relaxed);
        }
        rest = later;
    }
    Ok(())
}

/// Lives of vCPU latencies, added up.
pub fn all_latencies(platform: &Platform) -> crate::tally::Latencies {
    let mut all = crate::tally::Latencies::default();
    for one in &platform.latencies {
        all.add(&one.lock().unwrap_or_else(PoisonError::into_inner));
    }
    all
}
