//! The watch thread: keeps one daemon alive, and never two (architecture §4).
//!
//! Loss (see [`watch`](crate::watch)) → channels down → fence → the dead generation is made known →
//! every vCPU is kicked → a new daemon when [`Backoff`] says so → whole handshake → channels up, on
//! which the waiting callers send their requests again → every vCPU is kicked again. What the VMM is
//! told about it is in [`change`](crate::change); a planned change of daemons in
//! [`upgrade`](crate::upgrade).

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papr_intc_protocol::layout::words::presence;
use papr_intc_protocol::wire::Request;
use papr_intc_protocol::wire::handshake::{Goodbye, SetShm, StartReply};

use crate::backoff::{Backoff, End, GIVE_UP_AFTER};
use crate::change::{Change, Reason};
use crate::channel::{Patience, Shut};
use crate::connection::Connection;
use crate::core::Core;
use crate::error::Error;
use crate::handshake::{self, Turned};
use crate::outage;
use crate::process::{Ended, Launcher, Process};
use crate::sync::lock;
use crate::watch::{Over, watch};

/// How long a daemon may take to end by itself.
pub(crate) const GOODBYE_LIMIT: Duration = Duration::from_millis(500);

/// How long a daemon that turns the VMM away is asked again, and how often.
const ENGAGED_LIMIT: Duration = Duration::from_secs(1);
const ENGAGED_PAUSE: Duration = Duration::from_millis(1);

/// A daemon that serves.
pub(crate) struct Session {
    pub number: u64,
    pub process: Process,
    pub connection: Arc<Connection>,
    /// None if the daemon does not know the watch channel.
    pub watch: Option<Connection>,
    since: Instant,
    pub generation: u64,
    counts: StartReply,
}

/// A start that failed.
pub(crate) struct Failed {
    pub error: Error,
    /// Not the daemon's own failure: it was killed, is not there yet, or waits for another one's lock.
    excused: bool,
    slow: bool,
}

/// The watch thread's own.
pub(crate) struct Supervisor {
    pub core: Arc<Core>,
    pub launcher: Launcher,
    /// What served before the last upgrade: tried once if the new one cannot be started any more.
    pub previous: Option<Launcher>,
    pub backoff: Backoff,
    /// Of the last session.
    pub number: u64,
}

/// Starts the first daemon; the supervisor that goes on from there, and its session.
pub(crate) fn start(core: Arc<Core>, launcher: Launcher) -> Result<(Supervisor, Session), Error> {
    let mut supervisor = Supervisor {
        core,
        launcher,
        previous: None,
        backoff: Backoff::default(),
        number: 0,
    };
    let begun = Instant::now();
    loop {
        match supervisor.try_start(false) {
            Ok(session) => {
                let pid = session.process.pid();
                supervisor
                    .core
                    .show(|page, now| outage::serving(page, pid, now));
                return Ok((supervisor, session));
            }
            // It serves another VMM: one that is dead, whose end it has not noticed yet?
            Err(Failed {
                error: Error::Lost, ..
            }) if supervisor.launcher.is_foreign() && begun.elapsed() < ENGAGED_LIMIT => {
                std::thread::sleep(ENGAGED_PAUSE);
            }
            Err(failed) => return Err(failed.error),
        }
    }
}

impl Supervisor {
    /// The body of the watch thread: from the first session to the stop.
    pub fn run(mut self, mut session: Session) {
        loop {
            let limit = self.backoff.answer_limit(self.core.options.watch.answer);
            let next = match watch(&self.core, &session, limit) {
                Over::Stop => return self.finish(session),
                Over::Order(order) => self.obey(order, session),
                Over::Lost(reason) => self.replace(session, reason),
            };
            session = match next {
                Some(next) => next,
                None => return,
            };
        }
    }

    /// A daemon is lost: fences it and brings up another.
    fn replace(&mut self, mut session: Session, reason: Reason) -> Option<Session> {
        let away_since = Instant::now();
        if let Reason::Silent(_) = reason {
            log::warn!("papr-intc is fenced: {reason}");
        }
        self.core.all_down();
        let ended = self.fence(&mut session.process);
        self.core
            .show(|page, now| outage::absent(page, reason, ended.status, now));
        log::warn!("papr-intc is absent: {reason}; {}", ended.how);
        self.core.kick_all();
        let end = match reason {
            Reason::Silent(_) => End::Silent,
            _ if ended.killed => End::Killed,
            _ => End::Own,
        };
        let how = ended.how;
        self.tell(&Change::Absent { reason, how });
        self.backoff.ended(session.since.elapsed(), end);
        drop(session);
        let next = self.restart()?;
        self.returned(&next, away_since.elapsed());
        Some(next)
    }

    /// A daemon serves again.
    pub fn returned(&self, session: &Session, outage: Duration) {
        let earlier = self.core.signals.restarts.fetch_add(1, Ordering::Relaxed);
        let pid = session.process.pid();
        self.core
            .show(|page, now| outage::present(page, pid, earlier + 1, outage, now));
        log::info!("papr-intc was absent for {outage:?}");
        let counts = &session.counts;
        self.tell(&Change::Present {
            outage,
            generation: session.generation,
            redone: counts.redone,
            resignalled: counts.resignalled,
            in_doubt: counts.in_doubt,
        });
    }

    fn tell(&self, change: &Change) {
        self.core.options.on_change.tell(change);
    }

    /// Starts daemons until one serves. `None`: stopped, or given up.
    pub fn restart(&mut self) -> Option<Session> {
        let mut attempt = 0;
        loop {
            if pause(&self.core, self.backoff.delay()) {
                self.core.shut(&Shut::ShutDown);
                return None;
            }
            let failed = match self.try_any(attempt) {
                Ok(session) => return Some(session),
                Err(failed) => failed,
            };
            if self.core.signals.stopping() {
                continue;
            }
            log::warn!("papr-intc could not be started: {}", failed.error);
            self.backoff.failed(failed.excused, failed.slow);
            if self.backoff.gives_up() {
                return self.give_up(&failed.error);
            }
            attempt += 1;
        }
    }

    /// The file may have been replaced by one that does not fit: in turns with what has served, by the
    /// same launcher and by the one before the last upgrade.
    fn try_any(&mut self, attempt: u32) -> Result<Session, Failed> {
        let previous = match attempt % 3 {
            2 => self.previous.take(),
            _ => None,
        };
        let Some(previous) = previous else {
            return self.try_start(attempt % 3 == 1);
        };
        log::warn!("trying what served before the last upgrade");
        let newer = std::mem::replace(&mut self.launcher, previous);
        let tried = self.try_start(true);
        if let Err(failed) = &tried {
            let older = std::mem::replace(&mut self.launcher, newer);
            self.previous = failed.excused.then_some(older);
        }
        tried
    }

    fn give_up(&self, error: &Error) -> Option<Session> {
        let why = error.to_string();
        log::error!("no papr-intc could be started in {GIVE_UP_AFTER} attempts, giving up: {why}");
        self.core.shut(&Shut::GaveUp(why.clone()));
        self.core.signals.refuse_orders();
        self.core
            .show(|page, now| outage::over(page, presence::GAVE_UP, now));
        self.tell(&Change::GaveUp { why });
        None
    }

    /// One daemon, from its start to the open channels; `earlier`: the executable that has served before.
    pub fn try_start(&mut self, earlier: bool) -> Result<Session, Failed> {
        let launched = self.launcher.launch(earlier);
        let (process, stream) = launched.map_err(|error| Failed {
            error,
            excused: self.launcher.is_foreign(),
            slow: false,
        })?;
        self.settle(process, stream, |core, connection| {
            handshake::introduce(core, &mut lock(&core.topology), connection)
        })
    }

    /// The handshake with a daemon that was started; `introduce` says whether to map.
    pub fn settle(
        &mut self,
        mut process: Process,
        stream: UnixStream,
        introduce: impl FnOnce(&Core, &Connection) -> Result<handshake::Introduced, Error>,
    ) -> Result<Session, Failed> {
        self.number += 1;
        let core = &self.core;
        core.signals.pid.store(process.pid(), Ordering::Relaxed);
        let begun = core.signals.waits_on(Some(&stream));
        let connection = Arc::new(Connection::new(stream));
        let limit = self.backoff.message_limit(core.options.watch.message);
        let introduced = begun
            .inspect(|()| connection.set_tick(limit))
            .and_then(|()| introduce(core, &connection));
        process.prove(connection.sender());
        core.signals.pid.store(process.pid(), Ordering::Relaxed);
        let result = introduced.and_then(|introduced| self.establish(&connection, introduced));
        // Only duplicating a descriptor can fail, and there is none.
        let _ = core.signals.waits_on(None);
        match result {
            Ok((watch, generation, counts)) => {
                self.launcher.pin(&process);
                Ok(Session {
                    number: self.number,
                    process,
                    connection,
                    watch,
                    since: Instant::now(),
                    generation,
                    counts,
                })
            }
            Err(error) => {
                connection.close();
                if self.launcher.is_foreign() && lock(&core.topology).shm.is_none() {
                    // It may hold another guest's memory, or serve another VMM: not ours to kill.
                    return Err(Failed {
                        slow: false,
                        excused: true,
                        error,
                    });
                }
                let ended = self.fence(&mut process);
                let locked = matches!(&error, Error::Refused { request, errno, .. }
                    if *request == SetShm::NAME && *errno == Errno::EBUSY as i32);
                Err(Failed {
                    slow: error.errno() == Errno::ETIMEDOUT as i32,
                    excused: ended.killed || locked,
                    error,
                })
            }
        }
    }

    /// The second half of the handshake; then the channels are up.
    fn establish(
        &self,
        connection: &Arc<Connection>,
        introduced: handshake::Introduced,
    ) -> Result<(Option<Connection>, u64, StartReply), Error> {
        let core = &self.core;
        let mut topology = lock(&core.topology);
        let established = handshake::establish(core, &mut topology, connection, introduced)?;
        let tick = core.options.watch.patience;
        connection.set_tick(tick);
        if let Some(shm) = &topology.shm {
            core.show_in(shm);
        }
        for (vcpu, channel) in established.channels {
            channel.set_tick(tick);
            vcpu.channel().bring_up(channel, self.number);
        }
        core.main.bring_up(Arc::clone(connection), self.number);
        drop(topology);
        core.kick_all();
        let counts = established.counts;
        log::info!(
            "papr-intc serves, generation {}: {} steps redone, {} lines signalled again, {} in doubt",
            established.generation,
            counts.redone,
            counts.resignalled,
            counts.in_doubt
        );
        match established.turned {
            Some(Turned::Demoted) => self.tell(&Change::Demoted),
            Some(Turned::Promoted) => self.tell(&Change::Promoted),
            None => {}
        }
        Ok((established.watch, established.generation, counts))
    }

    /// Makes certain that the daemon is dead, and known to be.
    pub fn fence(&self, process: &mut Process) -> Ended {
        let ended = process.fence();
        let core = &self.core;
        core.signals.pid.store(0, Ordering::Relaxed);
        if let Some(shm) = &lock(&core.topology).shm {
            // Whoever took the memory last, even if its answer never came.
            core.bury(shm.generation());
        }
        ended
    }

    /// The end that the VMM asked for: GOODBYE if the main channel is free, then the fence.
    fn finish(&self, mut session: Session) {
        let core = &self.core;
        let goodbye = core.main.send(Patience::Now, &Goodbye {}, &[]);
        core.shut(&Shut::ShutDown);
        session.connection.close();
        if goodbye.is_ok() {
            let limit = GOODBYE_LIMIT.as_millis() as u16;
            session.process.has_ended(PollTimeout::from(limit));
        }
        let ended = self.fence(&mut session.process);
        core.show(|page, now| outage::over(page, presence::SHUT_DOWN, now));
        log::info!("papr-intc is shut down: {}", ended.how);
    }
}

/// Waits; `true` if it is time to stop.
fn pause(core: &Core, delay: Duration) -> bool {
    let until = Instant::now() + delay;
    loop {
        core.signals.clear();
        if core.signals.stopping() {
            return true;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        // Rounded up, so that the wait ends; a report of an older session only wakes it early.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(core.signals.wake_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(millis));
    }
}
