//! A numbered line of requests to whichever daemon is alive: the main socket, or a vCPU's own.
//!
//! One request is outstanding at a time. A caller whose daemon dies keeps its turn and its sequence
//! number, waits for the supervisor to bring the channel up again, and sends the same request with
//! the REPLAY flag: it runs once (SPEC.md §1.3). Waiting needs no lock of the VMM and ends at
//! `Channel::shut`, or when the VMM cancels it. A request whose caller left stays the channel's unanswered
//! one: if the same comes again it takes over that number, so that it still runs once.

use std::cell::Cell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use papr_intc_protocol::wire::{REPLAY, Request};

use crate::connection::{Connection, GoOn};
use crate::error::Error;
use crate::sync::{lock, wait, wait_until};

/// Who hears how a daemon does.
pub trait Watcher: Send + Sync {
    /// The connection of this session ended under a request.
    fn lost(&self, session: u64);
    /// This session has owed a reply for one tick of its connection: does it still run?
    fn doubt(&self, session: u64);
}

/// What a caller does while the daemon is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Waits for the next daemon and sends the request again.
    Persist,
    /// Fails with [`Error::Lost`]: whoever brings the next daemon up will tell it.
    ThisSession,
    /// As `ThisSession`, and waits neither for another caller nor for more than one tick of the connection.
    Now,
    /// As `Persist`, but no longer than this.
    Until(Instant),
}

impl Patience {
    fn persists(self) -> bool {
        matches!(self, Self::Persist | Self::Until(_))
    }
}

/// Why a caller leaves a daemon that owes it a reply.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Lost,
    Cancelled,
    TimedOut,
}

impl Leave {
    fn error(self) -> Error {
        match self {
            Self::Lost => Error::Lost,
            Self::Cancelled => Error::Cancelled,
            Self::TimedOut => Error::TimedOut,
        }
    }
}

/// Why a channel will not come back.
#[derive(Clone, Debug)]
pub(crate) enum Shut {
    ShutDown,
    GaveUp(String),
}

impl From<&Shut> for Error {
    fn from(shut: &Shut) -> Self {
        match shut {
            Shut::ShutDown => Self::ShutDown,
            Shut::GaveUp(why) => Self::GaveUp(why.clone()),
        }
    }
}

#[derive(Debug)]
enum Link {
    Absent,
    Up {
        connection: Arc<Connection>,
        session: u64,
    },
    Shut(Shut),
}

#[derive(Debug)]
struct State {
    link: Link,
    /// A request has the turn, sent or waiting for a daemon.
    busy: bool,
    last_seq: u64,
    /// Threads that wait for a change: without one, to notify is a system call for nothing.
    waiting: u32,
    /// While it is set, nobody waits here for long.
    cancelled: bool,
    unanswered: Option<Unanswered>,
}

/// A request that was sent and whose caller left.
#[derive(Debug, PartialEq, Eq)]
struct Unanswered {
    seq: u64,
    code: u32,
    payload: Vec<u8>,
}

/// A channel. Outlives the connections it is carried by.
pub struct Channel {
    state: Mutex<State>,
    changed: Condvar,
    watcher: Arc<dyn Watcher>,
}

/// A reply and the session that gave it.
pub(crate) struct Answer<T> {
    pub reply: T,
    pub fds: Vec<OwnedFd>,
    pub session: u64,
    /// Sent more than once: the reply may be one that an earlier daemon left in the journal.
    pub replayed: bool,
}

/// A connection and its session.
type Up = (Arc<Connection>, u64);

impl Link {
    fn up(&self) -> Option<Up> {
        match self {
            Self::Up {
                connection,
                session,
            } => Some((Arc::clone(connection), *session)),
            Self::Absent | Self::Shut(_) => None,
        }
    }
}

/// The right to have the one outstanding request, and its number.
struct Turn<'a> {
    channel: &'a Channel,
    seq: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.channel.state);
        state.busy = false;
        let awaited = state.waiting != 0;
        drop(state);
        if awaited {
            self.channel.changed.notify_all();
        }
    }
}

impl Channel {
    /// A channel without a connection yet.
    pub fn new(watcher: Arc<dyn Watcher>) -> Self {
        Self {
            state: Mutex::new(State {
                link: Link::Absent,
                busy: false,
                waiting: 0,
                last_seq: first_seq(),
                cancelled: false,
                unanswered: None,
            }),
            changed: Condvar::new(),
            watcher,
        }
    }

    /// Sends a request and waits for its reply, over as many daemons as it takes.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::ShutDown`], [`Error::GaveUp`], [`Error::Cancelled`].
    pub fn call<R: Request>(
        &self,
        request: &R,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(R::Reply, Vec<OwnedFd>), Error> {
        self.send(Patience::Persist, request, fds)
            .map(|a| (a.reply, a.fds))
    }

    pub(crate) fn send<R: Request>(
        &self,
        patience: Patience,
        request: &R,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer<R::Reply>, Error> {
        if patience.persists() {
            may_wait()?;
        }
        let (turn, mut flags, mut now) = self.turn(patience, request)?;
        let unanswered = || Unanswered {
            seq: turn.seq,
            code: R::CODE,
            payload: request.to_bytes(),
        };
        loop {
            let (connection, session) = match now.take().map_or_else(|| self.up(patience), Ok) {
                Ok(up) => up,
                Err(e) => {
                    // With the flag it has been sent: it may have run.
                    let kept = (flags & REPLAY != 0).then(unanswered);
                    lock(&self.state).unanswered = kept;
                    return Err(e);
                }
            };
            let left = Cell::new(None);
            let go_on = || {
                self.watcher.doubt(session);
                left.set(self.leave(patience));
                left.get().is_none()
            };
            match connection.exchange_patiently(turn.seq, flags, request, fds, &go_on) {
                Ok((reply, fds)) => {
                    return Ok(Answer {
                        reply,
                        fds,
                        session,
                        replayed: flags & REPLAY != 0,
                    });
                }
                Err(Error::Os { .. }) if left.get().is_some() => {
                    lock(&self.state).unanswered = Some(unanswered());
                    return Err(left.take().map_or(Error::Lost, Leave::error));
                }
                Err(e) if e.ends_connection() => {
                    log::debug!("{}: {e}", R::NAME);
                    self.broken(session);
                    if !patience.persists() {
                        return Err(Error::Lost);
                    }
                    flags = REPLAY;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Has the connection to itself for standard requests, which have no number: a request whose caller left
    /// stays the unanswered one. As [`Patience::ThisSession`].
    pub(crate) fn standard<T>(
        &self,
        speak: impl FnOnce(&Connection, GoOn<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let patience = Patience::ThisSession;
        self.free_turn(patience)?.busy = true;
        let _turn = Turn {
            channel: self,
            seq: 0,
        };
        let (connection, session) = self.up(patience)?;
        let go_on = || {
            self.watcher.doubt(session);
            true
        };
        speak(&connection, &go_on).map_err(|e| {
            if !e.ends_connection() {
                return e;
            }
            log::debug!("a standard request: {e}");
            self.broken(session);
            Error::Lost
        })
    }

    /// A request of this session met the end of its connection.
    fn broken(&self, session: u64) {
        if self.down(session) {
            self.watcher.lost(session);
        }
    }

    /// Should a caller that has waited for a while leave?
    fn leave(&self, patience: Patience) -> Option<Leave> {
        let state = lock(&self.state);
        match patience {
            Patience::Now => Some(Leave::Lost),
            Patience::ThisSession => None,
            _ if state.cancelled => Some(Leave::Cancelled),
            Patience::Until(end) if Instant::now() >= end => Some(Leave::TimedOut),
            Patience::Until(_) | Patience::Persist => None,
        }
    }

    /// While it is set, calls that would wait for a daemon return [`Error::Cancelled`] instead, those under
    /// way too.
    pub fn set_cancelled(&self, cancelled: bool) {
        lock(&self.state).cancelled = cancelled;
        self.changed.notify_all();
    }

    /// [`set_cancelled`](Self::set_cancelled) is in force.
    pub(crate) fn is_cancelled(&self) -> bool {
        lock(&self.state).cancelled
    }

    /// Waits until no other caller has the turn.
    fn free_turn(&self, patience: Patience) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = lock(&self.state);
        while state.busy || matches!(state.link, Link::Shut(_)) {
            match &state.link {
                Link::Shut(why) => return Err(why.into()),
                // The holder of the turn waits for the next daemon; this caller must not.
                Link::Absent if !patience.persists() => return Err(Error::Lost),
                _ if patience == Patience::Now => return Err(Error::Lost),
                _ => state = self.pause(state, patience)?,
            }
        }
        if matches!(state.link, Link::Absent) && !patience.persists() {
            return Err(Error::Lost);
        }
        Ok(state)
    }

    /// Takes the turn, and gives it a number; with the flags for a first sending, and the connection if there is one.
    fn turn<R: Request>(
        &self,
        patience: Patience,
        request: &R,
    ) -> Result<(Turn<'_>, u32, Option<Up>), Error> {
        let mut state = self.free_turn(patience)?;
        let same = |u: &Unanswered| u.code == R::CODE && u.payload == request.to_bytes();
        if patience == Patience::Now && state.unanswered.as_ref().is_some_and(|u| !same(u)) {
            // It would make the unanswered one be forgotten, and run twice when its caller comes back.
            return Err(Error::Lost);
        }
        state.busy = true;
        let (seq, flags) = match state.unanswered.take().filter(same) {
            Some(again) => (again.seq, REPLAY),
            None => (number(&mut state), 0),
        };
        let turn = Turn { channel: self, seq };
        Ok((turn, flags, state.link.up()))
    }

    /// Waits for a change, as long as `patience` allows.
    fn pause<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        patience: Patience,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let left = match patience {
            Patience::ThisSession | Patience::Now => None,
            _ if state.cancelled => return Err(Error::Cancelled),
            Patience::Persist => None,
            Patience::Until(end) => {
                let left = end.checked_duration_since(Instant::now());
                Some(left.ok_or(Error::TimedOut)?)
            }
        };
        state.waiting += 1;
        let mut state = match left {
            None => wait(&self.changed, state),
            Some(left) => wait_until(&self.changed, state, left),
        };
        state.waiting -= 1;
        Ok(state)
    }

    /// The connection, waited for if `patience` says so.
    fn up(&self, patience: Patience) -> Result<Up, Error> {
        let mut state = lock(&self.state);
        loop {
            if let Some(up) = state.link.up() {
                return Ok(up);
            }
            match &state.link {
                Link::Shut(why) => return Err(why.into()),
                _ if patience.persists() => state = self.pause(state, patience)?,
                _ => return Err(Error::Lost),
            }
        }
    }

    /// Waits until the channel has a connection.
    pub(crate) fn wait_up(&self) -> Result<(), Error> {
        may_wait()?;
        self.up(Patience::Persist).map(|_| ())
    }

    /// The channel has a connection, as far as anybody knows.
    pub(crate) fn is_up(&self) -> bool {
        matches!(lock(&self.state).link, Link::Up { .. })
    }

    /// A number for a request that the handshake sends on the new connection itself.
    pub(crate) fn next_seq(&self) -> u64 {
        number(&mut lock(&self.state))
    }

    /// Requests go over `connection` from now on.
    pub(crate) fn bring_up(&self, connection: Arc<Connection>, session: u64) {
        self.change(|link| {
            if !matches!(link, Link::Shut(_)) {
                *link = Link::Up {
                    connection,
                    session,
                };
            }
        });
    }

    /// The connection of `session`, or of any with `u64::MAX`, has ended. `true` if it was in use.
    pub(crate) fn down(&self, session: u64) -> bool {
        let mut ended = None;
        self.change(|link| {
            let hit =
                matches!(link, Link::Up { session: s, .. } if session == u64::MAX || *s == session);
            if hit {
                ended = Some(std::mem::replace(link, Link::Absent));
            }
        });
        if let Some(Link::Up { connection, .. }) = &ended {
            connection.close();
        }
        ended.is_some()
    }

    /// Nothing more is sent over the connection; a reply that is waited for may still come.
    pub(crate) fn detach(&self) {
        self.change(|link| {
            if matches!(link, Link::Up { .. }) {
                *link = Link::Absent;
            }
        });
    }

    /// Ends the channel for good and wakes every caller.
    pub(crate) fn shut(&self, why: Shut) {
        let mut ended = None;
        self.change(|link| {
            if !matches!(link, Link::Shut(Shut::ShutDown)) {
                ended = Some(std::mem::replace(link, Link::Shut(why)));
            }
        });
        if let Some(Link::Up { connection, .. }) = &ended {
            connection.close();
        }
    }

    /// The error that every call will return, if the channel is shut.
    pub(crate) fn shut_error(&self) -> Option<Error> {
        match &lock(&self.state).link {
            Link::Shut(why) => Some(why.into()),
            _ => None,
        }
    }

    fn change(&self, f: impl FnOnce(&mut Link)) {
        let mut state: MutexGuard<'_, State> = lock(&self.state);
        f(&mut state.link);
        let awaited = state.waiting != 0;
        drop(state);
        if awaited {
            self.changed.notify_all();
        }
    }
}

thread_local! {
    static NEVER_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// This thread brings daemons back: if it waited for one (in a callback of the VMM), there would be none.
pub(crate) fn never_wait_here() {
    NEVER_WAIT.set(true);
}

/// An error on the thread that must not wait for a daemon.
pub(crate) fn may_wait() -> Result<(), Error> {
    match NEVER_WAIT.try_with(Cell::get).unwrap_or(false) {
        true => Err(Error::Watching),
        false => Ok(()),
    }
}

/// Where a channel's numbers begin: above those of every earlier channel for the same vCPU, of this VMM
/// or of one before it. The daemon keeps the last reply of each channel by number, and a replay must
/// not find the reply of somebody else.
fn first_seq() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

fn number(state: &mut State) -> u64 {
    state.last_seq += 1;
    state.last_seq
}

#[cfg(test)]
mod tests;
