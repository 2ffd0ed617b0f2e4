//! The monitor socket: any number of onlookers, who may PING and QUERY and nothing else.
//!
//! The control thread serves them, so none of them may hold it: one message for each time that the event
//! loop comes by, at most [`MOST`] connections (a ninth takes the place of the one that has been quiet for
//! longest), and an answer that does not fit into the socket at once ends its connection. An epoll
//! instance of its own holds all of it, so that the event loop watches one descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::{Mode, umask};
use papr_intc_protocol::wire;

use super::serving::success;
use super::socket::{Progress, RawMessage, Reader};
use crate::control::Refused;

/// Connections at a time.
pub const MOST: usize = 8;
/// Epoll data of the listener; connections count from 1.
const LISTENER: u64 = 0;

struct Onlooker {
    number: u64,
    socket: OwnedFd,
    reader: Reader,
}

/// The socket and its connections. The file goes with it.
pub struct Monitor {
    path: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    /// The one that spoke last is last.
    onlookers: Vec<Onlooker>,
    accepted: u64,
}

impl Monitor {
    /// Makes the socket, for its owner alone (0600). A path that exists is refused.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        // No thread runs yet that could make a file meanwhile.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(named)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(named)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            epoll,
            onlookers: Vec::new(),
            accepted: 0,
        })
    }

    /// One step for whoever is ready: a new connection, or one message. `look` answers it.
    pub fn serve(&mut self, look: impl FnOnce(u32, &[u8]) -> Result<Vec<u8>, Refused>) {
        let mut event = [EpollEvent::empty()];
        match self.epoll.wait(&mut event, EpollTimeout::ZERO) {
            Ok(1) if event[0].data() == LISTENER => self.accept(),
            Ok(1) => self.step(event[0].data(), look),
            _ => {}
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if self.onlookers.len() == MOST {
            self.onlookers.remove(0);
        }
        self.accepted += 1;
        let number = self.accepted;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        if self.epoll.add(&stream, event).is_ok() {
            self.onlookers.push(Onlooker {
                number,
                socket: stream.into(),
                reader: Reader::new(),
            });
        }
    }

    fn step(&mut self, number: u64, look: impl FnOnce(u32, &[u8]) -> Result<Vec<u8>, Refused>) {
        let Some(at) = self.onlookers.iter().position(|o| o.number == number) else {
            return;
        };
        let mut onlooker = self.onlookers.remove(at);
        let goes_on = match onlooker.reader.poll_message(&onlooker.socket) {
            Ok(Progress::Ready(message)) => onlooker.answer(&message, look),
            Ok(Progress::Pending) => true,
            Ok(Progress::Closed) | Err(_) => false,
        };
        if goes_on {
            self.onlookers.push(onlooker);
        } else {
            // Nobody else has the description: closing would do, but for a child that inherited it.
            let _ = self.epoll.delete(&onlooker.socket);
        }
    }
}

impl Onlooker {
    /// `false`: it is to go.
    fn answer(
        &self,
        message: &RawMessage,
        look: impl FnOnce(u32, &[u8]) -> Result<Vec<u8>, Refused>,
    ) -> bool {
        let Ok((head, payload)) = wire::split_request(&message.body) else {
            return false;
        };
        if message.is_reply() || !message.fds.is_empty() {
            return false;
        }
        let body = match look(message.request, payload) {
            Ok(payload) => success(head.seq, &payload),
            Err(e) => wire::error_body(head.seq, e.errno(), &e.to_string()),
        };
        let reply = RawMessage::reply(message.request, body);
        // No waiting: what does not fit now is somebody who does not read.
        reply.send(&self.socket, Duration::ZERO).is_ok()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Ours: `bind` would have failed had it existed. Gone already is fine.
        let _ = std::fs::remove_file(&self.path);
    }
}
