//! A numbered line of requests to whichever daemon is alive: the main socket, or a vCPU's own.
//!
//! One request is outstanding at a time. A caller whose daemon dies keeps its turn and its sequence
//! number, waits for the supervisor to bring the channel up again, and sends the same request with
//! the REPLAY flag: it runs once (SPEC.md §1.3). Waiting needs no lock of the VMM and ends at
//! `Channel::shut`.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use papr_intc_protocol::wire::{REPLAY, Request};

use crate::connection::Connection;
use crate::error::Error;
use crate::sync::{lock, wait};

/// Called with the session whose connection ended under a request.
pub type LossReport = Arc<dyn Fn(u64) + Send + Sync>;

/// What a caller does while the daemon is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Waits for the next daemon and sends the request again.
    Persist,
    /// Fails with [`Error::Lost`]: whoever brings the next daemon up will tell it.
    ThisSession,
    /// As `ThisSession`, and does not wait for another caller either.
    Now,
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
}

/// A channel. Outlives the connections it is carried by.
pub struct Channel {
    state: Mutex<State>,
    changed: Condvar,
    report: LossReport,
}

/// A reply and the session that gave it.
pub(crate) struct Answer<T> {
    pub reply: T,
    pub fds: Vec<OwnedFd>,
    pub session: u64,
    /// Sent more than once: the reply may be one that an earlier daemon left in the journal.
    pub replayed: bool,
}

/// The right to have the one outstanding request, and its number.
struct Turn<'a> {
    channel: &'a Channel,
    seq: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.channel.state).busy = false;
        self.channel.changed.notify_all();
    }
}

impl Channel {
    /// A channel without a connection yet. `report` hears of connections that end under a request.
    pub fn new(report: LossReport) -> Self {
        Self {
            state: Mutex::new(State {
                link: Link::Absent,
                busy: false,
                last_seq: first_seq(),
            }),
            changed: Condvar::new(),
            report,
        }
    }

    /// Sends a request and waits for its reply, over as many daemons as it takes.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::ShutDown`], [`Error::GaveUp`].
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
        let turn = self.turn(patience)?;
        let mut flags = 0;
        loop {
            let (connection, session) = self.up(patience)?;
            match connection.exchange(turn.seq, flags, request, fds) {
                Ok((reply, fds)) => {
                    return Ok(Answer {
                        reply,
                        fds,
                        session,
                        replayed: flags & REPLAY != 0,
                    });
                }
                Err(e) if e.ends_connection() => {
                    log::debug!("{}: {e}", R::NAME);
                    if self.down(session) {
                        (self.report)(session);
                    }
                    if patience != Patience::Persist {
                        return Err(Error::Lost);
                    }
                    flags = REPLAY;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until no other caller has the turn, and takes it.
    fn turn(&self, patience: Patience) -> Result<Turn<'_>, Error> {
        let mut state = lock(&self.state);
        loop {
            match (&state.link, patience) {
                (Link::Shut(why), _) => return Err(why.into()),
                // The holder of the turn waits for the next daemon; this caller must not.
                (Link::Absent, Patience::ThisSession | Patience::Now) => return Err(Error::Lost),
                (_, Patience::Now) if state.busy => return Err(Error::Lost),
                _ if !state.busy => break,
                _ => state = wait(&self.changed, state),
            }
        }
        state.busy = true;
        Ok(Turn {
            channel: self,
            seq: number(&mut state),
        })
    }

    /// The connection, waited for if `patience` says so.
    fn up(&self, patience: Patience) -> Result<(Arc<Connection>, u64), Error> {
        let mut state = lock(&self.state);
        loop {
            match &state.link {
                Link::Up {
                    connection,
                    session,
                } => return Ok((Arc::clone(connection), *session)),
                Link::Shut(why) => return Err(why.into()),
                Link::Absent if patience == Patience::Persist => {
                    state = wait(&self.changed, state);
                }
                Link::Absent => return Err(Error::Lost),
            }
        }
    }

    /// Waits until the channel has a connection.
    pub(crate) fn wait_up(&self) -> Result<(), Error> {
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
        drop(state);
        self.changed.notify_all();
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
