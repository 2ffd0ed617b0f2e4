//! What is held back: a barrier until the other channels have been served, and everything else until
//! the barrier is over (SPEC.md [W-17], [W-18]).
//!
//! The thread does not block meanwhile. It waits on an epoll of its own that sees signals, the
//! front-end's death and the watch channel; what the other sockets carry stays in them, in order.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use papr_intc_protocol::wire;
use papr_intc_protocol::wire::vcpu::WATCH;

use super::event_loop::{EventLoop, ServerError, os};
use super::serving::success;
use super::socket::RawMessage;
use super::standard::Served;
use super::token::Token;
use crate::control::Refused;

/// First pause between two looks at a barrier's grace period; each is twice the one before.
const SHORTEST: Duration = Duration::from_micros(50);
/// Longest pause: long enough to cost no CPU, short beside the shortest deadline.
const LONGEST: Duration = Duration::from_millis(2);

/// Who waits for the end of a machine-wide operation.
pub(super) enum Requester {
    /// A PAPR request.
    Papr {
        /// Its channel.
        channel: u32,
        /// Its code.
        code: u32,
        /// Its number.
        seq: u64,
    },
    /// RESET_DEVICE, with the reply that it gets if all went well.
    Device(Served),
    /// SET_DEVICE_STATE_FD, for which the machine is quiesced first.
    State(RawMessage),
    /// CHECK_DEVICE_STATE, which waits for the transfer; no longer than this.
    Check(RawMessage, Instant),
}

/// A barrier that was read, and the channels that are served before it.
struct Prelude {
    channels: VecDeque<u32>,
    barrier: (u32, RawMessage),
}

/// What is held back at this moment.
#[derive(Default)]
pub(super) struct Held {
    prelude: Option<Prelude>,
    parked: Option<Requester>,
    pause: Duration,
}

impl Held {
    /// No other message may be started.
    pub(super) fn is_busy(&self) -> bool {
        self.prelude.is_some() || self.parked.is_some()
    }
}

impl EventLoop {
    /// A barrier has arrived: whatever is readable on the other vCPUs' channels goes first.
    pub(super) fn hold(&mut self, channel: u32, message: RawMessage) {
        let others = self.channels.keys().copied();
        self.held.prelude = Some(Prelude {
            channels: others.filter(|s| s + 1 != channel && *s != WATCH).collect(),
            barrier: (channel, message),
        });
    }

    /// A machine-wide operation has begun, for this requester.
    pub(super) fn park(&mut self, requester: Requester) {
        self.held.parked = Some(requester);
        self.held.pause = SHORTEST;
    }

    /// Goes on with what is held. `true`: threads of the VMM are waited for.
    pub(super) fn go_on(&mut self) -> Result<bool, ServerError> {
        while self.ended.is_none() {
            if let Some(Requester::Check(_, until)) = self.held.parked {
                if !self.transfer_is_over(until) {
                    return Ok(true);
                }
                if let Some(Requester::Check(message, _)) = self.held.parked.take() {
                    self.serve_check(message)?;
                }
            } else if self.held.parked.is_some() {
                let Some(answer) = self.control.poll_barrier(Instant::now()) else {
                    return Ok(true);
                };
                self.unpark(answer)?;
            } else if !self.go_on_before()? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// The next step before a barrier: one message of one channel, at last its own. `false`: nothing.
    fn go_on_before(&mut self) -> Result<bool, ServerError> {
        let Some(prelude) = &mut self.held.prelude else {
            return Ok(false);
        };
        if let Some(server) = prelude.channels.pop_front() {
            if let Some(message) = self.poll_channel(server) {
                self.serve(server + 1, message)?;
            }
        } else if let Some(Prelude { barrier, .. }) = self.held.prelude.take() {
            self.serve(barrier.0, barrier.1)?;
        }
        Ok(true)
    }

    fn unpark(&mut self, answer: Result<Vec<u8>, Refused>) -> Result<(), ServerError> {
        match self.held.parked.take() {
            Some(Requester::Papr { channel, code, seq }) => {
                let body = match answer {
                    Ok(payload) => success(seq, &payload),
                    Err(e) => {
                        if let Some(more) = self.refusals.take(Instant::now()) {
                            log::warn!("{} refused: {e}{more}", wire::name(code));
                        }
                        wire::error_body(seq, e.errno(), &e.to_string())
                    }
                };
                self.reply(channel, code, &[], |out| out.extend(body))?;
            }
            Some(Requester::Device(mut served)) => {
                if let Err(e) = answer {
                    log::warn!("RESET_DEVICE: {e}");
                    served.refuse();
                }
                if let Some(reply) = served.reply {
                    self.send_main(&reply)?;
                }
            }
            Some(Requester::State(message)) => {
                self.serve_transfer(message, answer.map(drop).map_err(|e| e.to_string()))?;
            }
            // Not a barrier's.
            Some(Requester::Check(..)) | None => {}
        }
        self.after_request()
    }

    /// The front-end has gone, and with it whoever waited.
    pub(super) fn forget_held(&mut self) {
        self.held = Held::default();
    }

    /// The pause between two looks at a barrier: ends early for what is answered meanwhile.
    pub(super) fn pause(&mut self) -> Result<(), ServerError> {
        self.serve_watch_ahead()?;
        let mut fds = [PollFd::new(self.urgent.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(self.held.pause.into()), None) {
            Ok(0) => self.held.pause = LONGEST.min(self.held.pause * 2),
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(os("ppoll")(e)),
        }
        let mut events = [EpollEvent::empty(); 4];
        let count = match self.urgent.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(os("epoll_wait")(e)),
        };
        for event in &events[..count] {
            match Token::from_data(event.data()) {
                // Of the main socket only the hang-up is watched here.
                Some(Token::Main) => return self.end_connection(),
                Some(token) => self.handle(token)?,
                None => {}
            }
        }
        Ok(())
    }
}

/// What is answered while a barrier is under way: nothing of it starts one.
pub(super) fn is_urgent(token: Token) -> bool {
    matches!(
        token,
        Token::Signal | Token::Main | Token::Monitor | Token::Channel(WATCH) | Token::Transfer
    )
}
