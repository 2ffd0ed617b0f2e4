//! Planned changes of the daemon: another binary in the place of the one that serves (SPEC.md §5,
//! "Planned upgrade").
//!
//! The new daemon is started beside the old one and asked everything that can be asked without taking
//! anything over (versions, machine, guest RAM, CHECK_SHM). Only if it agrees does the old one get
//! GOODBYE; the rest of the handshake follows on the connection that is open already. If the new one
//! fails after that, the old binary is started again, even if its file has been replaced meanwhile.
//! In mapped mode interrupts flow throughout.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use papr_intc_protocol::wire::handshake::Goodbye;

use crate::change::{Change, Reason};
use crate::channel::may_wait;
use crate::connection::Connection;
use crate::core::Core;
use crate::error::Error;
use crate::handshake::{self, Introduced};
use crate::intc::Intc;
use crate::outage;
use crate::process::Launcher;
use crate::supervisor::{GOODBYE_LIMIT, Session, Supervisor};
use crate::sync::lock;

/// What the VMM wants the watch thread to do.
pub(crate) enum Order {
    /// Serve by another launcher's daemon.
    Upgrade {
        launcher: Launcher,
        /// How it went.
        done: Sender<Result<Upgraded, Error>>,
    },
}

/// A planned upgrade that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgraded {
    /// From the old daemon's GOODBYE to the new one's open channels.
    pub away: Duration,
    /// Generation of the shared memory.
    pub generation: u64,
}

impl Intc {
    /// Puts another launcher's daemon in the place of the one that serves, and of those that will be started
    /// later. Interrupts flow meanwhile (in mapped mode), calls wait.
    ///
    /// # Errors
    /// Why the new daemon does not serve: one that does not fit is refused before the old one is touched;
    /// if it fails later, the old binary serves again.
    pub fn upgrade(&self, launcher: Launcher) -> Result<Upgraded, Error> {
        may_wait()?;
        let (done, result) = std::sync::mpsc::channel();
        if !self.core().signals.order(Order::Upgrade { launcher, done }) {
            return Err(self.core().main.shut_error().unwrap_or(Error::ShutDown));
        }
        // Dropped unanswered: nothing is done any more.
        result.recv().unwrap_or(Err(Error::ShutDown))
    }
}

impl Supervisor {
    /// Does what was ordered. The session that serves afterwards; `None` as for a restart.
    pub fn obey(&mut self, order: Order, session: Session) -> Option<Session> {
        let Order::Upgrade { launcher, done } = order;
        let (session, result) = self.upgrade(launcher, session);
        // Nobody may be waiting any more.
        let _ = done.send(result);
        session
    }

    fn upgrade(
        &mut self,
        launcher: Launcher,
        old: Session,
    ) -> (Option<Session>, Result<Upgraded, Error>) {
        let launched = launcher.launch(false);
        let (process, stream) = match launched {
            Ok(launched) => launched,
            Err(e) => return (Some(old), Err(e)),
        };
        let probed = self
            .core
            .signals
            .waits_on(Some(&stream))
            .and_then(|()| {
                stream
                    .try_clone()
                    .map_err(Error::os("duplicating the socket"))
            })
            .and_then(|stream| probe(&self.core, &Connection::new(stream)));
        let _ = self.core.signals.waits_on(None);
        let introduced = match probed {
            Ok(introduced) => introduced,
            Err(e) => {
                log::warn!("the new papr-intc is refused, the old one goes on: {e}");
                // Dropping the process ends it.
                return (Some(old), Err(e));
            }
        };
        let since = Instant::now();
        self.dismiss(old);
        let before = std::mem::replace(&mut self.launcher, launcher);
        match self.settle(process, stream, |_, _| Ok(introduced)) {
            Ok(session) => {
                self.previous = Some(before);
                let upgraded = self.served(&session, since.elapsed());
                (Some(session), Ok(upgraded))
            }
            Err(failed) => {
                log::warn!(
                    "the new papr-intc failed, back to the old one: {}",
                    failed.error
                );
                self.launcher = before;
                (self.roll_back(since), Err(failed.error))
            }
        }
    }

    fn served(&self, session: &Session, away: Duration) -> Upgraded {
        self.returned(session, away);
        Upgraded {
            away,
            generation: session.generation,
        }
    }

    /// The old binary again: by its descriptor, as the file may be another one by now.
    fn roll_back(&mut self, since: Instant) -> Option<Session> {
        let session = match self.try_start(true) {
            Ok(session) => Some(session),
            Err(failed) => {
                log::warn!("papr-intc could not be started: {}", failed.error);
                self.restart()
            }
        }?;
        self.returned(&session, since.elapsed());
        Some(session)
    }

    /// GOODBYE to a daemon, with whatever it is doing left to its successor; then the fence.
    fn dismiss(&self, mut old: Session) {
        let core = &self.core;
        // Callers wait for the next daemon from here on; one that waits for a reply may still get it.
        core.all_detached();
        let seq = core.main.next_seq();
        let said = old
            .connection
            .exchange_within(GOODBYE_LIMIT, seq, &Goodbye {});
        if said.is_ok() {
            let limit = GOODBYE_LIMIT.as_millis() as u16;
            old.process.has_ended(PollTimeout::from(limit));
        }
        old.connection.close();
        let ended = self.fence(&mut old.process);
        log::info!("papr-intc is replaced: {}", ended.how);
        core.kick_all();
        let reason = Reason::Replaced;
        core.show(|page, now| outage::absent(page, reason, ended.status, now));
        let how = ended.how;
        core.options.on_change.tell(&Change::Absent { reason, how });
    }
}

/// Everything that can be asked of a daemon without taking anything over.
fn probe(core: &Core, connection: &Connection) -> Result<Introduced, Error> {
    connection.set_tick(core.options.watch.message);
    let mut topology = lock(&core.topology);
    let introduced = handshake::introduce(core, &mut topology, connection)?;
    handshake::check_memory(core, &topology, connection)?;
    Ok(introduced)
}
