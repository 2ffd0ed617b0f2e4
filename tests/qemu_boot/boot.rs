//! One boot: started, listened to, given what it wants, disturbed, until it ends or has to be ended.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::chaos::{Chaos, Deed};
use crate::lines::{How, Said, Stream};
use crate::machine::{Folder, Setup};
use crate::matrix::{Boot, Way};
use crate::process::Process;
use crate::verdict::{Demands, End, Record};
use crate::wire::{Control, Qmp};

/// No boot is waited for longer than this.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of an exercise of the guest's, which it keeps by itself.
    pub step: Duration,
    pub silence: Duration,
    pub whole: Duration,
}

/// A boot that is over.
pub struct Over {
    pub boot: Boot,
    pub record: Record,
    pub complaints: Vec<String>,
    /// What is wrong with one that has to go wrong.
    pub noticed: Option<String>,
    pub folder: Folder,
}

impl Over {
    pub fn is_good(&self) -> bool {
        self.complaints.is_empty()
    }
}

/// Boots; calls `watch` now and then with the last line of the guest's.
pub fn boot(
    setup: &Setup,
    boot: Boot,
    folder: Folder,
    limits: Limits,
    watch: &mut dyn FnMut(&str),
) -> Over {
    let mut running = Running::new(setup, boot, &folder);
    let end = match running.run(limits, watch) {
        Ok(end) => end,
        Err(why) => End::Broken(why),
    };
    running.note(&format!("end: {end:?}"));
    let mut record = running.record;
    record.took = running.start.elapsed();
    record.end = Some(end);
    let demands = Demands {
        boot,
        reboots: setup.restarts(),
    };
    let faults = record.complaints(demands);
    let (complaints, noticed) = match boot.way {
        Way::Broken(fault) => {
            let shadow = fault.survives(boot.ic_mode);
            let noticed = if shadow {
                record.differences()
            } else {
                faults.into_iter().next()
            };
            let missed = noticed
                .is_none()
                .then(|| "the fault was not noticed".to_owned());
            (missed.into_iter().collect(), noticed)
        }
        _ => (faults, None),
    };
    Over {
        boot,
        record,
        complaints,
        noticed,
        folder,
    }
}

struct Running<'a> {
    setup: &'a Setup,
    boot: Boot,
    folder: &'a Folder,
    start: Instant,
    log: Option<File>,
    record: Record,
    qmp: Option<Qmp>,
    chaos: Option<Chaos>,
    last: String,
}

impl<'a> Running<'a> {
    fn new(setup: &'a Setup, boot: Boot, folder: &'a Folder) -> Self {
        Self {
            setup,
            boot,
            folder,
            start: Instant::now(),
            log: File::create(folder.log()).ok(),
            record: Record::default(),
            qmp: None,
            chaos: None,
            last: String::new(),
        }
    }

    fn run(&mut self, limits: Limits, watch: &mut dyn FnMut(&str)) -> Result<End, String> {
        if let Some(path) = self.setup.missing(&self.boot) {
            return Err(format!("{} is not there", path.display()));
        }
        let command = self.setup.command(&self.boot, self.folder, limits.step);
        let environment = self.setup.environment(&self.boot, self.folder);
        self.note(&format!("{environment:?} {command:?}"));
        let mut process = Process::start(&command, &environment)?;
        let socket = self.folder.control();
        self.chaos = Chaos::of(self.boot.way, &socket, &self.setup.upgrade);
        let mut heard = Instant::now();
        loop {
            let due = self.chaos.as_ref().map_or(limits.silence, Chaos::due_in);
            for (stream, line) in process.lines(due) {
                heard = Instant::now();
                if let Some(end) = self.hear(stream, &line) {
                    return Ok(end);
                }
            }
            watch(&self.last);
            if let Some((end, complaint)) = process.ended() {
                self.record.problems.extend(complaint);
                return Ok(end);
            }
            if heard.elapsed() > limits.silence {
                return Ok(End::Silent(limits.silence));
            }
            if self.start.elapsed() > limits.whole {
                return Ok(End::TooLong(limits.whole));
            }
            self.disturb();
        }
    }

    /// Takes a line; an end if nothing worth waiting for can follow.
    fn hear(&mut self, stream: Stream, line: &str) -> Option<End> {
        let at = self.start.elapsed();
        let name = match stream {
            Stream::Console => "console",
            Stream::Errors => "errors",
        };
        self.write(at, name, line);
        if stream == Stream::Console && !line.is_empty() {
            line.clone_into(&mut self.last);
        }
        match self.record.hear(at, stream, line)?.clone() {
            Said::Want(order) => self.obey(&order),
            Said::Up { .. } if self.record.ups() > self.setup.restarts() + 1 => {
                return Some(End::Loops);
            }
            Said::Up { .. } => self.look_who_executes(),
            // What comes now is the power-off: not a moment to ask QEMU for anything.
            Said::Done { .. } => self.chaos = None,
            Said::Panic(_) => return Some(End::Settled),
            Said::Difference(_)
            | Said::Step {
                how: How::Failed, ..
            } if self.has_fault() => {
                return Some(End::Settled);
            }
            _ => {}
        }
        None
    }

    /// It has to fail, and nobody wants to know more once it did.
    fn has_fault(&self) -> bool {
        matches!(self.boot.way, Way::Broken(_))
    }

    fn obey(&mut self, order: &str) {
        let done = match &mut self.qmp {
            Some(qmp) => qmp.order(order),
            none => Qmp::connect(&self.folder.qmp()).and_then(|qmp| none.insert(qmp).order(order)),
        };
        match done {
            Ok(()) => self.note(&format!("done: {order}")),
            Err(why) => self.problem(format!("{order}: {why}")),
        }
    }

    /// Asks a rig whose daemon is left alone.
    fn look_who_executes(&mut self) {
        if !matches!(self.boot.way, Way::Plain | Way::Remote) {
            return;
        }
        let control = Control::connect(&self.folder.control());
        let executor = control.and_then(|c| c.ok_or("nobody listens".to_owned())?.executor());
        match executor {
            Ok(executor) => self.record.executor = Some(executor),
            Err(why) => self.problem(format!("the rig's control socket: {why}")),
        }
    }

    fn disturb(&mut self) {
        match self.chaos.as_mut().map(Chaos::act) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(Deed::Killed(pid)))) => {
                self.record.kills += 1;
                self.note(&format!("killed the daemon, {pid}"));
            }
            Some(Ok(Some(Deed::Upgraded))) => {
                self.record.upgrades += 1;
                self.note("upgraded the daemon");
            }
            Some(Err(why)) => {
                self.chaos = None;
                self.problem(format!("the rig's control socket: {why}"));
            }
        }
    }

    fn problem(&mut self, what: String) {
        self.note(&what);
        self.record.problems.push(what);
    }

    fn note(&mut self, what: &str) {
        self.write(self.start.elapsed(), "run", what);
    }

    /// The log helps people; a boot does not fail for it.
    fn write(&mut self, at: Duration, who: &str, line: &str) {
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "{:9.3} {who}: {line}", at.as_secs_f64());
        }
    }
}
