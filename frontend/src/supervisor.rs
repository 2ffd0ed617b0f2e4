//! The watch thread: keeps one daemon alive, and never two (architecture §4).
//!
//! Death (pidfd, hang-up, or a request that met a broken connection) → channels down → fence → the dead
//! generation is made known → every vCPU is kicked → a new daemon with back-off → whole handshake →
//! channels up, on which the waiting callers send their requests again → every vCPU is kicked again.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papr_intc_protocol::wire::Request;
use papr_intc_protocol::wire::handshake::{Goodbye, SetShm};

use crate::channel::{Patience, Shut};
use crate::connection::Connection;
use crate::core::Core;
use crate::error::Error;
use crate::handshake;
use crate::process::{Ended, Launcher, Process};
use crate::sync::lock;

/// A daemon that takes longer than this for one message of the handshake is given up.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a daemon may take to end by itself.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// A daemon that served for so long was no failure, whatever came then.
const SETTLED: Duration = Duration::from_millis(100);
const FIRST_DELAY: Duration = Duration::from_millis(1);
const LAST_DELAY: Duration = Duration::from_secs(1);
/// Delay at most after a daemon that did reach START.
const STARTED_DELAY: Duration = Duration::from_millis(16);
/// So many failed starts in a row, excused ones not counted, are the end.
const GIVE_UP_AFTER: u32 = 6;

/// A daemon that serves.
pub(crate) struct Session {
    number: u64,
    process: Process,
    connection: Arc<Connection>,
    since: Instant,
}

/// A start that failed.
struct Failed {
    error: Error,
    /// Not the daemon's own failure: it was killed, is not there yet, or waits for another one's lock.
    excused: bool,
}

/// Starts a daemon, shakes hands and brings the channels up.
pub(crate) fn start(core: &Core, launcher: &Launcher, number: u64) -> Result<Session, Error> {
    try_start(core, launcher, number).map_err(|failed| failed.error)
}

fn try_start(core: &Core, launcher: &Launcher, number: u64) -> Result<Session, Failed> {
    let (mut process, stream) = launcher.launch().map_err(|error| Failed {
        error,
        excused: launcher.is_foreign(),
    })?;
    core.signals.pid.store(process.pid(), Ordering::Relaxed);
    let begun = core.signals.handshake(Some(&stream));
    let connection = Arc::new(Connection::new(stream));
    let result = begun.and_then(|()| shake_hands(core, &connection, number));
    // Only duplicating a descriptor can fail, and there is none.
    let _ = core.signals.handshake(None);
    match result {
        Ok(()) => Ok(Session {
            number,
            process,
            connection,
            since: Instant::now(),
        }),
        Err(error) => {
            connection.close();
            let ended = fence(core, &mut process);
            let locked = matches!(&error, Error::Refused { request, errno, .. }
                if *request == SetShm::NAME && *errno == Errno::EBUSY as i32);
            Err(Failed {
                error,
                excused: ended.killed || locked,
            })
        }
    }
}

fn shake_hands(core: &Core, connection: &Arc<Connection>, number: u64) -> Result<(), Error> {
    connection.set_deadline(Some(HANDSHAKE_LIMIT))?;
    let mut topology = lock(&core.topology);
    let established = handshake::run(core, &mut topology, connection)?;
    connection.set_deadline(None)?;
    for (vcpu, channel) in established.channels {
        vcpu.channel().bring_up(channel, number);
    }
    core.main.bring_up(Arc::clone(connection), number);
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
    Ok(())
}

/// Makes certain that the daemon is dead, and known to be.
fn fence(core: &Core, process: &mut Process) -> Ended {
    let ended = process.fence();
    core.signals.pid.store(0, Ordering::Relaxed);
    if let Some(shm) = &lock(&core.topology).shm {
        // Whoever took the memory last, even if its answer never came.
        core.bury(shm.generation());
    }
    ended
}

/// The body of the watch thread: from the first session to the stop.
pub(crate) fn run(core: &Core, launcher: &Launcher, mut session: Session) {
    let mut delay = Duration::ZERO;
    loop {
        let reason = watch(core, &session);
        if core.signals.stopping() {
            return finish(core, session);
        }
        let away_since = Instant::now();
        core.all_down();
        let ended = fence(core, &mut session.process);
        log::warn!("papr-intc is absent: {reason}; {}", ended.how);
        core.kick_all();
        delay = if session.since.elapsed() >= SETTLED {
            Duration::ZERO
        } else {
            longer(delay).min(STARTED_DELAY)
        };
        session = match restart(core, launcher, session.number, delay) {
            Some(next) => next,
            None => return,
        };
        core.signals.restarts.fetch_add(1, Ordering::Relaxed);
        log::info!("papr-intc was absent for {:?}", away_since.elapsed());
    }
}

fn longer(delay: Duration) -> Duration {
    (delay * 2).clamp(FIRST_DELAY, LAST_DELAY)
}

/// Starts daemons until one serves. `None`: stopped, or given up.
fn restart(
    core: &Core,
    launcher: &Launcher,
    mut number: u64,
    mut delay: Duration,
) -> Option<Session> {
    let mut failures = 0;
    loop {
        if pause(core, delay) {
            core.shut(&Shut::ShutDown);
            return None;
        }
        number += 1;
        let failed = match try_start(core, launcher, number) {
            Ok(session) => return Some(session),
            Err(failed) => failed,
        };
        if core.signals.stopping() {
            continue;
        }
        log::warn!("papr-intc could not be started: {}", failed.error);
        failures += u32::from(!failed.excused);
        if failures >= GIVE_UP_AFTER {
            let why = failed.error.to_string();
            log::error!(
                "no papr-intc could be started in {GIVE_UP_AFTER} attempts, giving up: {why}"
            );
            core.shut(&Shut::GaveUp(why));
            return None;
        }
        delay = longer(delay);
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

/// Waits until the session is over, or the supervisor is to stop. Says why.
fn watch(core: &Core, session: &Session) -> &'static str {
    loop {
        core.signals.clear();
        if core.signals.stopping() {
            return "stopped";
        }
        if core.signals.is_lost(session.number) {
            return "a request met a broken connection";
        }
        let stream = session.connection.stream().as_fd();
        let hang_up = PollFlags::POLLHUP;
        let mut fds = vec![
            PollFd::new(core.signals.wake_fd(), PollFlags::POLLIN),
            PollFd::new(stream, hang_up),
        ];
        if let Some(pidfd) = session.process.pidfd() {
            fds.push(PollFd::new(pidfd, PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return "poll failed",
        }
        let fired = |i: usize| fds.get(i).is_some_and(|fd| fd.any().unwrap_or(false));
        if fired(2) {
            return "the process ended";
        }
        if fired(1) {
            return "the connection hung up";
        }
    }
}

/// The end that the VMM asked for: GOODBYE if the main channel is free, then the fence.
fn finish(core: &Core, mut session: Session) {
    let _ = session.connection.set_deadline(Some(GOODBYE_LIMIT));
    let goodbye = core.main.send(Patience::Now, &Goodbye {}, &[]);
    core.shut(&Shut::ShutDown);
    session.connection.close();
    if goodbye.is_ok() {
        let limit = GOODBYE_LIMIT.as_millis() as u16;
        session.process.has_ended(PollTimeout::from(limit));
    }
    let ended = fence(core, &mut session.process);
    log::info!("papr-intc is shut down: {}", ended.how);
}
