//! One accepted or handed-over socket, message by message. Bytes and descriptors are
//! [`super::socket`]'s business, what the messages mean [`super::serving`]'s.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::socket::{Progress, RawMessage, Reader};

/// How long a reply may wait for room in a socket before its connection is dropped.
const SEND_PATIENCE: Duration = Duration::from_secs(2);

/// A socket with what has arrived of its next message.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    reader: Reader,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reader: Reader::new(),
        }
    }

    /// The next whole message. `Err(())`: the connection is over; why has been logged.
    pub(super) fn poll(&mut self) -> Result<Option<RawMessage>, ()> {
        match self.reader.poll_message(&self.socket) {
            Ok(Progress::Ready(message)) => Ok(Some(message)),
            Ok(Progress::Pending) => Ok(None),
            Ok(Progress::Closed) => Err(()),
            Err(e) => {
                log::warn!("dropping a connection: {e}");
                Err(())
            }
        }
    }

    pub(super) fn send(&self, message: &RawMessage) -> Result<(), ()> {
        message.send(&self.socket, SEND_PATIENCE).map_err(|e| {
            log::warn!("dropping a connection: {e}");
        })
    }
}
