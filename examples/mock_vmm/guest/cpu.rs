//! A vCPU: waits, takes its interrupts, runs their handlers, and between them does what the rest of a
//! kernel does to its interrupts: IPIs, affinity changes, masking, CPU hot-plug.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::boot::{self, Plan};
use super::chip::{Chip, Vector};
use super::hotplug;
use super::xics::Xics;
use super::xive::Xive;
use super::{Choice, Kernel, Platform};
use crate::board::{Cpu, Step};
use crate::devices::{Command, EVENTS};
use crate::halt::{Halt, Order, Wake};
use crate::rng::Rng;
use crate::tally::{Found, Kind, Tally};

/// Where a started vCPU begins.
pub enum Role {
    /// The boot vCPU after a machine reset.
    Firmware(Plan),
    /// RTAS start-cpu by a kernel that has prepared everything.
    Secondary(Arc<Kernel>),
}

/// Why a vCPU left its kernel.
pub enum Left {
    /// It stopped itself, or the VMM paused it.
    Stopped,
    /// It is the one that goes on with the next kernel.
    NextKernel,
}

/// What a vCPU has at hand.
pub struct Core {
    /// Its index.
    pub me: u32,
    /// The machine.
    pub platform: Arc<Platform>,
    /// Its kernel.
    pub kernel: Arc<Kernel>,
    /// Its way to the controller.
    pub cpu: Arc<dyn Cpu>,
    /// The driver.
    pub chip: Box<dyn Chip>,
    /// Its choices.
    pub rng: Rng,
    command: Option<Command>,
}

impl Core {
    /// vCPU `me` in `kernel`.
    pub fn new(kernel: Arc<Kernel>, me: u32, rng: Rng) -> Self {
        let platform = kernel.platform.clone();
        let cpu = platform.cpus[me as usize].clone();
        let chip: Box<dyn Chip> = match kernel.choice {
            Choice::Xics => Box::new(Xics::new(kernel.clone(), cpu.clone(), me)),
            Choice::Xive => Box::new(Xive::new(kernel.clone(), cpu.clone(), me)),
        };
        Self {
            me,
            platform,
            kernel,
            cpu,
            chip,
            rng,
            command: None,
        }
    }

    /// Counters.
    pub fn tally(&self) -> &Tally {
        &self.platform.tally
    }

    fn halt(&self) -> &Halt<Role> {
        &self.platform.halts[self.me as usize]
    }

    /// Runs until the vCPU stops or its kernel ends.
    pub fn live(&mut self) -> Step<Left> {
        loop {
            if self.halt().about_to_look() {
                return Ok(Left::Stopped);
            }
            if !self.cpu.pending() {
                if self.halt().sleep() == Wake::Pause {
                    return Ok(Left::Stopped);
                }
                continue;
            }
            // What is left after a batch announces itself no more: the vCPU looks without being told.
            while {
                let more = self.interrupt()?;
                if let Some(left) = self.rest()? {
                    return Ok(left);
                }
                more
            } {}
        }
    }

    /// One interrupt entry and a few that follow without another. True if more wait that no new
    /// entry will announce.
    pub fn interrupt(&mut self) -> Step<bool> {
        let mut batch = 4;
        let mut next = self.chip.next()?;
        if next.is_none() {
            Tally::one(&self.tally().empty);
        }
        while let Some(vector) = next {
            let source_too = match vector {
                Vector::Ipi => {
                    self.chip.begin_ipi()?;
                    let found = self.kernel.mail[self.me as usize].read();
                    self.ran(Kind::Ipi, found);
                    true
                }
                Vector::Irq(i) => self.handle(i)?,
            };
            self.chip.end(vector, source_too)?;
            let more = self.chip.more()?;
            batch -= 1;
            if batch == 0 || !more {
                return Ok(more);
            }
            next = self.chip.next()?;
        }
        Ok(false)
    }

    /// A handler ran.
    pub fn ran(&self, kind: Kind, found: Found) {
        self.tally().ran(kind, found);
        if let Found::New(age) = found {
            let mine = &self.platform.latencies[self.me as usize];
            mine.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .record(kind, age);
        }
    }

    /// Whether the source's own end of interrupt is due.
    fn handle(&mut self, i: usize) -> Step<bool> {
        let kernel = self.kernel.clone();
        let irq = &kernel.irqs[i];
        let mut state = irq.lock();
        if !state.started {
            Tally::one(&self.tally().strays);
            return Ok(false);
        }
        if state.disabled {
            // Disabled lazily: it is masked now that it has come, and ended when it is enabled.
            if !state.came {
                state.came = true;
                self.chip.mask(irq, &mut state)?;
            }
            return Ok(false);
        }
        // A threaded handler: masked until the thread has run.
        let threaded = irq.lsi && !state.masked && self.rng.one_in(8);
        if threaded {
            self.chip.mask(irq, &mut state)?;
        }
        let found = self.platform.devices.handler_reads(i)?;
        if threaded {
            self.chip.unmask(irq, &mut state)?;
        }
        drop(state);
        self.ran(self.platform.devices.sources[i].kind, found);
        if i == EVENTS {
            // An entry for nothing does not take back what one of the same batch has fetched.
            let command = self.platform.devices.take_command();
            self.command = match command {
                Command::Idle => self.command,
                other => Some(other),
            };
        }
        Ok(true)
    }

    /// What the kernel does between interrupts.
    fn rest(&mut self) -> Step<Option<Left>> {
        let kernel = self.kernel.clone();
        let mail = &kernel.mail[self.me as usize];
        if mail.take_stop() {
            return hotplug::stop_for_next_kernel(self).map(Some);
        }
        if mail.take_go_off() && hotplug::go_off(self)? {
            return Ok(Some(Left::Stopped));
        }
        match self.command.take() {
            Some(Command::Kexec) => return hotplug::next_kernel(self, false).map(Some),
            Some(Command::Kdump) => return hotplug::next_kernel(self, true).map(Some),
            Some(Command::Idle) | None => {}
        }
        if !kernel.is_ready() || !self.platform.devices.busy() {
            return Ok(None);
        }
        match self.rng.below(4096) {
            0..1000 => self.send_ipi(),
            1000..1060 => self.move_irq(),
            1060..1090 => self.mask_irq(),
            1090..1100 => self.restart_irq(),
            1100..1120 => self.check_irq(),
            1120..1123 => hotplug::change(self),
            _ => Ok(()),
        }
        .map(|()| None)
    }

    fn send_ipi(&mut self) -> Step {
        let kernel = self.kernel.clone();
        let topology = kernel.online();
        let ending = kernel.ending.load(Ordering::Acquire);
        let to = topology.pick(&mut self.rng, Some(self.me));
        if let (false, Some(to)) = (ending, to) {
            kernel.mail[to as usize].post();
            self.chip.send_ipi(to)?;
        }
        Ok(())
    }

    fn random_irq(&mut self) -> usize {
        self.rng.below(self.kernel.irqs.len() as u64) as usize
    }

    /// Affinity, while the interrupt is wherever it is.
    fn move_irq(&mut self) -> Step {
        let kernel = self.kernel.clone();
        let topology = kernel.online();
        let i = self.random_irq();
        let (irq, to) = (&kernel.irqs[i], topology.pick(&mut self.rng, None));
        let mut state = irq.lock();
        if let (true, Some(to)) = (state.started, to) {
            state.target = to;
            self.chip.route(irq, &mut state)?;
            Tally::one(&self.tally().moves);
        }
        Ok(())
    }

    /// Masks for a moment, as the controller permits: at once where triggers are kept meanwhile,
    /// lazily where they are not.
    fn mask_irq(&mut self) -> Step {
        let kernel = self.kernel.clone();
        let i = self.random_irq();
        let irq = &kernel.irqs[i];
        let at_once = self.chip.masked_triggers_are_kept();
        {
            let mut state = irq.lock();
            if !state.started || state.masked || state.disabled {
                return Ok(());
            }
            if at_once {
                state.masked = true;
                self.chip.mask(irq, &mut state)?;
            } else {
                state.disabled = true;
            }
        }
        self.pass_time();
        let mut state = irq.lock();
        if at_once {
            state.masked = false;
            self.chip.unmask(irq, &mut state)?;
            if kernel.drops_masked() {
                self.platform.devices.reissue(i)?;
            }
        } else {
            state.disabled = false;
            if std::mem::take(&mut state.came) {
                self.chip.unmask(irq, &mut state)?;
                self.chip.resend(irq)?;
            }
        }
        Tally::one(&self.tally().masks);
        Ok(())
    }

    /// A driver frees its interrupt and requests it again.
    fn restart_irq(&mut self) -> Step {
        let kernel = self.kernel.clone();
        let i = self.random_irq();
        let irq = &kernel.irqs[i];
        {
            let mut state = irq.lock();
            if i == EVENTS || !state.started || state.masked || state.disabled {
                return Ok(());
            }
            self.chip.shutdown(irq, &mut state)?;
            state.started = false;
        }
        self.pass_time();
        let topology = kernel.online();
        let mut state = irq.lock();
        state.target = topology.pick(&mut self.rng, None).unwrap_or(self.me);
        self.chip.startup(irq, &mut state)?;
        state.started = true;
        drop(state);
        Tally::one(&self.tally().restarts);
        self.signal_again(i)
    }

    /// A driver has started: what its device had signalled before comes now. The device is
    /// initialised and signals again; or, for a level, the guest only makes sure that it is looked at,
    /// and it is the controller that has to know the level still.
    pub fn signal_again(&mut self, i: usize) -> Step {
        let kernel = self.kernel.clone();
        let (irq, devices) = (&kernel.irqs[i], self.platform.devices.clone());
        if !irq.lsi || self.rng.one_in(2) {
            return devices.reissue(i);
        }
        let state = irq.lock();
        if state.started && !state.disabled {
            devices.allow_repeat(i);
            self.chip.resend(irq)?;
        }
        Ok(())
    }

    fn check_irq(&mut self) -> Step {
        let kernel = self.kernel.clone();
        let irq = &kernel.irqs[self.random_irq()];
        let state = irq.lock();
        if state.started && !state.masked && !state.disabled {
            self.chip.check(irq, &state)?;
        }
        Ok(())
    }

    /// The vCPU is busy elsewhere.
    fn pass_time(&mut self) {
        std::thread::sleep(Duration::from_micros(self.rng.below(150)));
    }
}

/// The thread of one vCPU, for the whole run.
pub fn thread(platform: &Arc<Platform>, me: u32, seed: u64) {
    let halt = &platform.halts[me as usize];
    let mut rng = Rng::new(seed, 0x100 + u64::from(me));
    while let Order::Start(role) = halt.stop_and_wait() {
        if let Err(gone) = one_life(platform, me, role, &mut rng) {
            platform.fail(format!("vCPU {me}: {gone}"));
            return;
        }
    }
}

fn one_life(platform: &Arc<Platform>, me: u32, role: Role, rng: &mut Rng) -> Step {
    let rng = Rng::new(rng.next(), 0);
    let mut core = match role {
        Role::Firmware(plan) => boot::firmware(platform, me, &plan, rng)?,
        Role::Secondary(kernel) => {
            let mut core = Core::new(kernel, me, rng);
            core.chip.open()?;
            core
        }
    };
    while let Left::NextKernel = core.live()? {
        let kernel = Kernel::new(platform, core.kernel.number + 1, core.kernel.choice);
        core = boot::start_kernel(Arc::new(kernel), me, core.rng.clone())?;
    }
    Ok(())
}
