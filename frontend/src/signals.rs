//! What other threads tell the supervisor, and what it lets them read.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::error::Error;
use crate::event::Event;
use crate::sync::lock;

#[derive(Debug)]
pub(crate) struct Signals {
    wake: Event,
    /// Highest session whose connection ended under a request.
    lost: AtomicU64,
    stop: AtomicBool,
    /// Of the present daemon, 0 if there is none.
    pub pid: AtomicU32,
    /// Daemons that reached START after the first one.
    pub restarts: AtomicU64,
    /// The stream of the handshake under way, to be cut by `stop`.
    handshake: Mutex<Option<UnixStream>>,
}

impl Signals {
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            wake: Event::new()?,
            lost: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            pid: AtomicU32::new(0),
            restarts: AtomicU64::new(0),
            handshake: Mutex::new(None),
        })
    }

    /// A connection of `session` ended.
    pub fn lost(&self, session: u64) {
        // Release pairs with `is_lost`; the eventfd wakes the supervisor.
        self.lost.fetch_max(session, Ordering::Release);
        self.wake.signal();
    }

    pub fn is_lost(&self, session: u64) -> bool {
        self.lost.load(Ordering::Acquire) >= session
    }

    /// Ends the supervisor, out of a handshake too.
    pub fn stop(&self) {
        // Release pairs with `stopping`.
        self.stop.store(true, Ordering::Release);
        if let Some(stream) = lock(&self.handshake).as_ref() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.wake.signal();
    }

    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// A handshake begins on `stream`, or none is under way. Fails if there is to be none.
    pub fn handshake(&self, stream: Option<&UnixStream>) -> Result<(), Error> {
        let copy = stream.map(UnixStream::try_clone).transpose();
        let copy = copy.map_err(Error::os("duplicating the socket"))?;
        *lock(&self.handshake) = copy;
        // After the store above: `stop` either sees the stream or is seen here.
        if stream.is_some() && self.stopping() {
            return Err(Error::ShutDown);
        }
        Ok(())
    }

    /// Readable when something was signalled; `clear` it before looking.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub fn clear(&self) {
        self.wake.take();
    }
}
