//! The guest's devices: threads that trigger MSIs, level-sensitive devices, and the reading side of
//! the devices in other processes.
//!
//! Each source has one device. Most wait for their handler before they send again (like a device with
//! a status register); some send bursts; some send their next number from inside the handler (a
//! doorbell that is answered at once). All of that may meet the source in service: it has to be
//! remembered and delivered again.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::board::{Board, Gone, Step};
use crate::cells::{Cells, now};
use crate::device_process::DeviceProcess;
use crate::ring::Ring;
use crate::rng::Rng;
use crate::tally::{Found, Kind};

/// The source that carries the VMM's events to the guest (hot-plug, shutdown), as pseries has it.
pub const EVENTS: usize = 0;

/// When a device sends its next number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// After its handler has read the last one.
    Polite,
    /// Up to three at once.
    Burst,
    /// From inside the handler.
    Doorbell,
    /// When the conductor says so.
    Asked,
}

/// One interrupt source and its device.
#[derive(Debug)]
pub struct Source {
    /// Its number; MSIs get a new one after a reset.
    pub lisn: AtomicU32,
    /// What sends it.
    pub kind: Kind,
    /// How.
    pub style: Style,
    /// Level of the device's output (LSI); taken around every change of it.
    level: Mutex<bool>,
    /// Triggers that found their number read already and may each give one more handler run.
    credit: AtomicU64,
}

impl Source {
    /// A source that has not been used.
    pub fn new(lisn: u32, kind: Kind, style: Style) -> Self {
        Self {
            lisn: AtomicU32::new(lisn),
            kind,
            style,
            level: Mutex::new(false),
            credit: AtomicU64::new(0),
        }
    }

    /// Its number.
    pub fn lisn(&self) -> u32 {
        self.lisn.load(Ordering::Relaxed)
    }

    fn level(&self) -> MutexGuard<'_, bool> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the conductor tells the guest by an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing: the event itself was the point.
    Idle,
    /// Shut the kernel down in order and start the next one in its place.
    Kexec,
    /// The kernel has crashed: start the next one without tidying up.
    Kdump,
}

/// All devices.
pub struct Devices {
    /// The machine they are in.
    pub board: Arc<dyn Board>,
    /// The ground truth.
    pub cells: Cells,
    /// Number [`EVENTS`] is the VMM's event source.
    pub sources: Vec<Source>,
    process: Option<DeviceProcess>,
    /// Of the source that has one.
    ring: Option<Ring>,
    running: RwLock<bool>,
    quit: AtomicBool,
    command: Mutex<Command>,
}

impl Devices {
    /// Devices at rest.
    pub fn new(
        board: Arc<dyn Board>,
        cells: Cells,
        sources: Vec<Source>,
        process: Option<DeviceProcess>,
        ring: Option<Ring>,
    ) -> Self {
        Self {
            board,
            cells,
            sources,
            process,
            ring,
            running: RwLock::new(false),
            quit: AtomicBool::new(false),
            command: Mutex::new(Command::Idle),
        }
    }

    fn is_running(&self) -> bool {
        *self.running.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// New work may be started: the devices are not being drained.
    pub fn busy(&self) -> bool {
        self.is_running()
    }

    /// Starts the devices.
    pub fn run(&self) -> Step {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = true;
        self.process.as_ref().map_or(Ok(()), DeviceProcess::run)
    }

    /// Stops the devices; returns when none is inside a trigger.
    pub fn pause(&self) -> Step {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = false;
        self.process.as_ref().map_or(Ok(()), DeviceProcess::pause)
    }

    /// The run is over.
    pub fn quit(&self) {
        self.quit.store(true, Ordering::Relaxed);
        if let Some(process) = &self.process {
            process.quit();
        }
        if let Some(ring) = &self.ring
            && let Err(gone) = ring.quit()
        {
            eprintln!("{gone}");
        }
    }

    /// Sources whose last number no handler has read.
    pub fn outstanding(&self) -> Vec<usize> {
        (0..self.sources.len())
            .filter(|&i| self.cells.outstanding(i))
            .collect()
    }

    /// The device sends its next number.
    pub fn send(&self, i: usize, times: u64) -> Step {
        let source = &self.sources[i];
        let mut level = source.level();
        if let (Kind::Ring, Some(ring)) = (source.kind, &self.ring) {
            // A queue: the next does not wait for the last.
            for _ in 0..times {
                if ring.has_room() {
                    self.cells.post(i);
                    ring.send(self.cells.sent(i))?;
                }
            }
            return Ok(());
        }
        if self.cells.outstanding(i) {
            return Ok(());
        }
        for _ in 0..times {
            self.cells.post(i);
            match source.kind {
                Kind::Lsi => {
                    *level = true;
                    self.board.set_level(source.lisn(), true)?;
                }
                _ => self.board.trigger(source.lisn())?,
            }
        }
        Ok(())
    }

    /// The guest's driver has initialised the device again, after a reset, kexec or shutdown of the
    /// interrupt: what no handler has read is signalled again.
    pub fn reissue(&self, i: usize) -> Step {
        let source = &self.sources[i];
        self.allow_repeat(i);
        if source.kind == Kind::Eventfd {
            return self.process.as_ref().map_or(Ok(()), |p| p.reissue(i));
        }
        if source.kind == Kind::Ring {
            return self.ring.as_ref().map_or(Ok(()), Ring::call_again);
        }
        let mut level = source.level();
        if !self.cells.outstanding(i) {
            return Ok(());
        }
        if source.kind == Kind::Lsi {
            // An initialised device lets go of its line first.
            self.board.set_level(source.lisn(), false)?;
            *level = true;
            self.board.set_level(source.lisn(), true)
        } else {
            self.board.trigger(source.lisn())
        }
    }

    /// The guest makes the source come again: one more handler run is accounted for.
    pub fn allow_repeat(&self, i: usize) {
        self.sources[i].credit.fetch_add(1, Ordering::Relaxed);
    }

    /// The handler reads its device. An LSI's device lowers its line here.
    pub fn handler_reads(&self, i: usize) -> Step<Found> {
        let source = &self.sources[i];
        if let (Kind::Ring, Some(ring)) = (source.kind, &self.ring) {
            let taken = ring.take()?;
            return Ok(taken.map_or_else(
                || Self::without_news(&source.credit),
                |taken| self.news(i, taken.number, taken.stamp),
            ));
        }
        let sent = if source.kind == Kind::Lsi {
            let mut level = source.level();
            if *level {
                *level = false;
                self.board.set_level(source.lisn(), false)?;
            }
            self.note(i, &source.credit)
        } else {
            self.note(i, &source.credit)
        };
        // Not for ever: a vCPU has other things to do.
        let rings = source.style == Style::Doorbell && !self.cells.sent(i).is_multiple_of(4);
        if rings && self.is_running() {
            self.send(i, 1)?;
        }
        Ok(sent)
    }

    /// Under the guest's lock of this interrupt.
    fn note(&self, i: usize, credit: &AtomicU64) -> Found {
        let (seen, sent) = (self.cells.seen(i), self.cells.sent(i));
        if sent > seen {
            self.news(i, sent, self.cells.stamp(i))
        } else {
            Self::without_news(credit)
        }
    }

    /// Everything up to `number` is new; the triggers before the last may each give one more handler run.
    fn news(&self, i: usize, number: u64, stamp: u64) -> Found {
        let before = number.saturating_sub(self.cells.seen(i) + 1);
        self.sources[i].credit.fetch_add(before, Ordering::Relaxed);
        self.cells.saw(i, number);
        Found::New(now().saturating_sub(stamp))
    }

    fn without_news(credit: &AtomicU64) -> Found {
        if credit.load(Ordering::Relaxed) > 0 {
            credit.fetch_sub(1, Ordering::Relaxed);
            Found::Repeat
        } else {
            Found::Nothing
        }
    }

    /// The VMM has something to tell.
    pub fn tell(&self, command: Command) -> Step {
        *self.command.lock().unwrap_or_else(PoisonError::into_inner) = command;
        self.send(EVENTS, 1)
    }

    /// The guest's event handler fetches the command.
    pub fn take_command(&self) -> Command {
        let mut command = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *command, Command::Idle)
    }

    /// A device thread: works on every `of`-th source, beginning with `nth`, until the run is over.
    pub fn work(&self, nth: usize, of: usize, mut rng: Rng) -> Step {
        while !self.quit.load(Ordering::Relaxed) {
            {
                let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
                if *running {
                    self.sweep(nth, of, &mut rng)?;
                }
            }
            std::thread::sleep(Duration::from_micros(20 + rng.below(100)));
        }
        Ok(())
    }

    fn sweep(&self, nth: usize, of: usize, rng: &mut Rng) -> Result<(), Gone> {
        for i in (1 + nth..self.sources.len()).step_by(of) {
            let source = &self.sources[i];
            if source.kind == Kind::Eventfd || rng.one_in(3) {
                continue;
            }
            let times = match source.style {
                Style::Asked => continue,
                Style::Burst => 1 + rng.below(3),
                Style::Polite | Style::Doorbell => 1,
            };
            self.send(i, times)?;
        }
        Ok(())
    }
}
