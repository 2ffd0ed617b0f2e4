//! Device state over a descriptor of the front-end: SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE (SPEC.md §6.5).
//!
//! The descriptor is a pipe, most often: it is written or read as it has room or bytes, beside everything else
//! that is served. A save has its bytes when it begins. A load takes effect at CHECK_DEVICE_STATE, when the
//! front-end has closed its end; all of it, or nothing.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use papr_intc_protocol::state::stream::MAX_STREAM;
use papr_intc_protocol::wire::handshake::state;

use super::event_loop::{EventLoop, ServerError};
use super::held::Requester;
use super::socket::RawMessage;
use super::standard::{Served, StateChannel, StateRequest, state_request};
use super::token::Token;

/// How long CHECK_DEVICE_STATE waits for the end of a transfer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes moved at once.
const PIECE: usize = 1 << 16;

/// A transfer under way, or over and not asked about yet.
pub(super) struct Transfer {
    file: Option<File>,
    loads: bool,
    /// Of a save: the state. Of a load: what has come.
    bytes: Vec<u8>,
    sent: usize,
    failed: Option<String>,
}

impl Transfer {
    /// Moves what can be moved now. `true`: that was all.
    fn go_on(&mut self) -> bool {
        let Some(file) = &mut self.file else {
            return true;
        };
        loop {
            let moved = if self.loads {
                let had = self.bytes.len();
                self.bytes.resize(had + PIECE, 0);
                let read = file.read(&mut self.bytes[had..]);
                self.bytes
                    .truncate(had + read.as_ref().copied().unwrap_or(0));
                read
            } else {
                let end = self.bytes.len().min(self.sent + PIECE);
                let written = file.write(&self.bytes[self.sent..end]);
                self.sent += written.as_ref().copied().unwrap_or(0);
                written
            };
            match moved {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) => {
                    self.failed = Some(format!("the channel: {e}"));
                    return true;
                }
                Ok(_) if self.bytes.len() > MAX_STREAM => {
                    self.failed = Some(format!("more than {MAX_STREAM} bytes"));
                    return true;
                }
                Ok(0) => {
                    if !self.loads {
                        self.failed = Some("nothing can be written".to_owned());
                    }
                    return true;
                }
                Ok(_) if !self.loads && self.sent == self.bytes.len() => return true,
                Ok(_) => {}
            }
        }
    }
}

impl EventLoop {
    /// A request about device state. It is a barrier.
    pub(super) fn serve_state(
        &mut self,
        request: StateRequest,
        message: RawMessage,
    ) -> Result<(), ServerError> {
        if request == StateRequest::Check {
            let until = Instant::now() + PATIENCE;
            self.park(Requester::Check(message, until));
            return Ok(());
        }
        let ready = match self.control.phase() {
            state::SERVING => self.control.quiesce_for_state(Instant::now()),
            _ => Ok(true),
        };
        match ready {
            Ok(true) => self.serve_transfer(message, Ok(())),
            // Quiesced first; `serve_transfer` follows.
            Ok(false) => {
                self.park(Requester::State(message));
                Ok(())
            }
            Err(e) => self.serve_transfer(message, Err(e.to_string())),
        }
    }

    /// SET_DEVICE_STATE_FD on a quiesced machine, or one that could not be quiesced.
    pub(super) fn serve_transfer(
        &mut self,
        message: RawMessage,
        quiesced: Result<(), String>,
    ) -> Result<(), ServerError> {
        self.end_transfer();
        let loads = state_request(message.request, &message.body) == Some(StateRequest::Load);
        let bytes = quiesced.and_then(|()| {
            match loads {
                true => self.control.may_load().map(|()| Vec::new()),
                false => self.control.save(),
            }
            .map_err(|e| e.to_string())
        });
        let (bytes, verdict) = match bytes {
            Ok(bytes) => (bytes, Ok(())),
            Err(why) => (Vec::new(), Err(why)),
        };
        let (served, channel) = self.answer(message, verdict)?;
        if let Some(StateChannel { loads, file }) = channel {
            self.begin_transfer(Transfer {
                file: Some(file),
                loads,
                bytes,
                sent: 0,
                failed: None,
            });
        }
        match served.reply {
            Some(reply) => self.send_main(&reply),
            None => Ok(()),
        }
    }

    /// Passes the machine's answer on. The front-end learns yes or no; why is for people.
    fn answer(
        &mut self,
        message: RawMessage,
        verdict: Result<(), String>,
    ) -> Result<(Served, Option<StateChannel>), ServerError> {
        if let Err(why) = &verdict
            && let Some(more) = self.refusals.take(Instant::now())
        {
            log::warn!("device state refused: {why}{more}");
        }
        Ok(self.standard.serve_state(message, verdict)?)
    }

    /// A descriptor that cannot be watched costs the transfer: CHECK_DEVICE_STATE says so.
    fn begin_transfer(&mut self, mut transfer: Transfer) {
        if let Some(file) = &transfer.file {
            match self.watch_transfer(file, transfer.loads) {
                Ok(()) => {}
                // A file: it is always ready, and done at once.
                Err(Errno::EPERM) => {
                    transfer.go_on();
                    transfer.file = None;
                }
                Err(e) => {
                    transfer.failed = Some(format!("watching the channel: {e}"));
                    transfer.file = None;
                }
            }
        }
        self.transfer = Some(transfer);
    }

    fn watch_transfer(&self, file: &File, loads: bool) -> Result<(), Errno> {
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let wanted = match loads {
            true => EpollFlags::EPOLLIN,
            false => EpollFlags::EPOLLOUT,
        };
        let event = || EpollEvent::new(wanted, Token::Transfer.to_data());
        self.epoll.add(file, event())?;
        self.urgent.add(file, event()).inspect_err(|_| {
            // It has just been added.
            let _ = self.epoll.delete(file);
        })
    }

    /// The channel has room, or bytes.
    pub(super) fn go_on_with_transfer(&mut self) {
        if self.transfer.as_mut().is_some_and(Transfer::go_on) {
            self.close_channel();
        }
    }

    /// Closing tells the front-end that a save is complete.
    fn close_channel(&mut self) {
        if let Some(file) = self.transfer.as_mut().and_then(|t| t.file.take()) {
            self.unwatch(&file, Token::Transfer);
        }
    }

    /// Forgets a transfer, whatever has become of it.
    pub(super) fn end_transfer(&mut self) {
        self.close_channel();
        self.transfer = None;
    }

    /// A transfer that CHECK_DEVICE_STATE asks about is complete, or has had its time.
    pub(super) fn transfer_is_over(&mut self, until: Instant) -> bool {
        self.go_on_with_transfer();
        self.transfer.as_ref().is_none_or(|t| t.file.is_none()) || Instant::now() >= until
    }

    /// CHECK_DEVICE_STATE: what has come takes effect.
    pub(super) fn serve_check(&mut self, message: RawMessage) -> Result<(), ServerError> {
        self.close_unfinished();
        let verdict = match self.transfer.take() {
            None => Err("there was no transfer".to_owned()),
            Some(Transfer {
                failed: Some(why), ..
            }) => Err(why),
            Some(t) if t.loads => self.control.load(t.bytes, None).map_err(|e| e.to_string()),
            Some(_) => Ok(()),
        };
        let (served, _) = self.answer(message, verdict)?;
        match served.reply {
            Some(reply) => self.send_main(&reply),
            None => Ok(()),
        }
    }

    fn close_unfinished(&mut self) {
        if let Some(transfer) = self.transfer.as_mut()
            && transfer.file.is_some()
        {
            let seconds = PATIENCE.as_secs();
            transfer.failed = Some(format!("the other end was not closed within {seconds} s"));
        }
        self.close_channel();
    }
}
