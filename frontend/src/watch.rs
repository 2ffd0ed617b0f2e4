//! Waiting for what ends a session: death, hang-up, a broken connection, silence; or an order.
//!
//! Death and hang-up are events. Silence is found by asking: a caller that waits for long raises doubt
//! ([`Watcher::doubt`](crate::channel::Watcher)), and then a PING on the watch channel must be answered
//! within a limit. The daemon answers it at any time, inside of a machine-wide operation too. Where the
//! daemon executes, it is asked from time to time without doubt: its interrupts would stop unnoticed.
//! In mapped mode an idle guest costs nothing.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papr_intc_protocol::wire::handshake::Ping;

use crate::change::Reason;
use crate::connection::Connection;
use crate::core::Core;
use crate::error::Error;
use crate::supervisor::Session;
use crate::upgrade::Order;

/// Why the wait is over.
pub(crate) enum Over {
    /// The supervisor is to stop.
    Stop,
    /// The VMM wants something done with the daemon.
    Order(Order),
    /// The daemon is of no use any more.
    Lost(Reason),
}

/// Waits for it. An answer to a PING may take `limit`.
pub(crate) fn watch(core: &Core, session: &Session, limit: Duration) -> Over {
    loop {
        core.signals.clear();
        if core.signals.stopping() {
            return Over::Stop;
        }
        if core.signals.is_lost(session.number) {
            return Over::Lost(Reason::Broken);
        }
        if let Some(order) = core.signals.take_order() {
            return Over::Order(order);
        }
        if core.signals.take_doubt(session.number)
            && let Err(reason) = ask(core, session, limit)
        {
            return Over::Lost(reason);
        }
        match pause(core, session) {
            Paused::News => {}
            Paused::Idle => core.signals.doubt_any(),
            Paused::Over(reason) => return Over::Lost(reason),
        }
    }
}

enum Paused {
    News,
    Idle,
    Over(Reason),
}

fn pause(core: &Core, session: &Session) -> Paused {
    let mut fds = vec![
        PollFd::new(core.signals.wake_fd(), PollFlags::POLLIN),
        PollFd::new(session.connection.stream().as_fd(), PollFlags::POLLHUP),
    ];
    if let Some(pidfd) = session.process.pidfd() {
        fds.push(PollFd::new(pidfd, PollFlags::POLLIN));
    }
    let idle = core.options.watch.idle.filter(|_| core.is_remote());
    let timeout = idle.map_or(PollTimeout::NONE, |idle| {
        PollTimeout::from(u16::try_from(idle.as_millis()).unwrap_or(u16::MAX))
    });
    match poll(&mut fds, timeout) {
        Ok(0) => return Paused::Idle,
        Ok(_) | Err(Errno::EINTR) => {}
        Err(_) => return Paused::Over(Reason::Broken),
    }
    let fired = |i: usize| fds.get(i).is_some_and(|fd| fd.any().unwrap_or(false));
    match (fired(1), fired(2)) {
        (_, true) => Paused::Over(Reason::Ended),
        (true, _) => Paused::Over(Reason::HungUp),
        _ => Paused::News,
    }
}

/// PING on the watch channel.
fn ask(core: &Core, session: &Session, limit: Duration) -> Result<(), Reason> {
    let Some(watch) = &session.watch else {
        return Ok(());
    };
    let answered = core
        .signals
        .waits_on(Some(watch.stream()))
        .and_then(|()| ping(watch, core.main.next_seq(), limit));
    // Only duplicating a descriptor can fail, and there is none.
    let _ = core.signals.waits_on(None);
    match answered {
        Ok(()) => Ok(()),
        // The stop has cut it; the loop sees to that.
        Err(_) if core.signals.stopping() => Ok(()),
        Err(Error::Os { .. }) => Err(Reason::Silent(limit)),
        Err(_) => Err(Reason::Broken),
    }
}

fn ping(watch: &Connection, seq: u64, limit: Duration) -> Result<(), Error> {
    watch.set_tick(limit);
    watch.exchange(seq, 0, &Ping { cookie: seq }, &[])?;
    Ok(())
}
