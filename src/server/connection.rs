//! One accepted or handed-over socket, message by message. Bytes and descriptors are
//! [`super::socket`]'s and [`super::plain`]'s business, what the messages mean [`super::serving`]'s.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::plain::PlainReader;
use super::socket::{Progress, RawMessage, Reader, ReceiveError, send_bytes};

/// How long a reply may wait for room in a socket before its connection is dropped.
const SEND_PATIENCE: Duration = Duration::from_secs(2);

/// The main socket, with what has arrived of its next message.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    reader: Reader,
}

/// The socket of a vCPU, or the watch's: no descriptors.
pub(super) struct Channel {
    pub(super) socket: OwnedFd,
    reader: PlainReader,
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
        next(self.reader.poll_message(&self.socket))
    }
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reader: PlainReader::default(),
        }
    }

    /// As [`Connection::poll`]; the body is made of `spare`.
    pub(super) fn poll(&mut self, spare: &mut Vec<u8>) -> Result<Option<RawMessage>, ()> {
        next(self.reader.poll_message(self.socket.as_fd(), spare))
    }

    /// There may be another message that nothing will announce: it was read already.
    pub(super) fn has_more(&self) -> bool {
        self.reader.has_more()
    }
}

fn next(polled: Result<Progress, ReceiveError>) -> Result<Option<RawMessage>, ()> {
    match polled {
        Ok(Progress::Ready(message)) => Ok(Some(message)),
        Ok(Progress::Pending) => Ok(None),
        Ok(Progress::Closed) => Err(()),
        Err(e) => {
            log::warn!("dropping a connection: {e}");
            Err(())
        }
    }
}

/// Sends a whole message. `Err(())`: the connection is over; why has been logged.
pub(super) fn send(socket: impl AsFd, message: &[u8], fds: &[OwnedFd]) -> Result<(), ()> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    send_bytes(socket, message, &fds, SEND_PATIENCE).map_err(|e| {
        log::warn!("dropping a connection: {e}");
    })
}
