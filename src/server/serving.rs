//! From a message that has arrived to the reply that goes out.
//!
//! Requests of the standard half go to [`super::standard`], PAPR requests to [`crate::control`]. A
//! barrier is held first ([`super::held`]).

use std::os::fd::OwnedFd;
use std::time::Instant;

use papr_intc_protocol::wire::vcpu::WATCH;
use papr_intc_protocol::wire::{self, MAIN_CHANNEL, PAPR_CODES, ReplyHead, Request, Wire};

use super::connection::send;
use super::event_loop::{EventLoop, ServerError};
use super::held::Requester;
use super::socket::{FLAG_REPLY, RawMessage, compose};
use super::standard::{StandardEvent, is_barrier, state_request};
use crate::control::requests::Incoming;

impl EventLoop {
    /// Something is readable on the main socket.
    pub(super) fn serve_main(&mut self) -> Result<(), ServerError> {
        let Some(main) = &mut self.main else {
            return Ok(());
        };
        match main.poll() {
            Ok(None) => Ok(()),
            Err(()) => self.end_connection(),
            Ok(Some(message)) => self.arrived(MAIN_CHANNEL, message),
        }
    }

    /// Something is readable on the channel of a vCPU, or the watch's.
    pub(super) fn serve_channel(&mut self, server: u32) -> Result<(), ServerError> {
        match self.poll_channel(server) {
            Some(message) => self.arrived(server + 1, message),
            None => Ok(()),
        }
    }

    fn arrived(&mut self, channel: u32, message: RawMessage) -> Result<(), ServerError> {
        let standard = is_standard(channel, &message);
        let barrier = match standard {
            true => is_barrier(message.request),
            // On the watch channel it is refused.
            false => is_papr_barrier(&message) && channel != WATCH + 1,
        };
        if barrier {
            self.hold(channel, message);
            return Ok(());
        }
        self.serve(channel, message)
    }

    /// Serves one message, whatever it is.
    pub(super) fn serve(
        &mut self,
        channel: u32,
        mut message: RawMessage,
    ) -> Result<(), ServerError> {
        if is_standard(channel, &message) {
            return self.serve_standard(message);
        }
        let fds = std::mem::take(&mut message.fds);
        self.serve_papr(channel, &message, fds)?;
        if channel != MAIN_CHANNEL {
            self.spare = message.body;
            self.spare.clear();
        }
        Ok(())
    }

    /// The next whole message of a vCPU's channel; the channel is forgotten if it has ended.
    pub(super) fn poll_channel(&mut self, server: u32) -> Option<RawMessage> {
        let channel = self.channels.get_mut(&server)?;
        let polled = channel.poll(&mut self.spare);
        if polled.is_err() {
            self.forget_channel(server);
        } else if channel.has_more() && !self.ahead.contains(&server) {
            self.ahead.push_back(server);
        }
        polled.ok().flatten()
    }

    fn serve_papr(
        &mut self,
        channel: u32,
        message: &RawMessage,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ServerError> {
        let code = message.request;
        if message.is_reply() {
            // Never answered: two ends that answer each other's answers would not stop.
            log::debug!(
                "ignoring a reply to {} on channel {channel}",
                wire::name(code)
            );
            return Ok(());
        }
        let (head, payload) = match wire::split_request(&message.body) {
            Ok(split) => split,
            Err(e) => {
                let seq = message
                    .body
                    .first_chunk()
                    .map_or(0, |seq| u64::from_ne_bytes(*seq));
                let body = wire::error_body(seq, nix::libc::EPROTO, &format!("malformed: {e}"));
                return self.reply(channel, code, &[], |out| out.extend(body));
            }
        };
        let seq = head.seq;
        let incoming = Incoming {
            channel,
            code,
            head,
            payload,
            fds,
        };
        match self.control.serve(incoming, Instant::now()) {
            Ok(served) => {
                if let Some(effect) = served.effect {
                    self.apply(effect)?;
                }
                let Some(payload) = served.reply else {
                    self.park(Requester::Papr { channel, code, seq });
                    return Ok(());
                };
                self.reply(channel, code, &served.fds, |out| {
                    put_success(out, seq, &payload);
                })?;
            }
            Err(refused) => {
                log::debug!(
                    "{} of channel {channel} refused: {refused}",
                    wire::name(code)
                );
                let body = wire::error_body(seq, refused.errno(), &refused.to_string());
                self.reply(channel, code, &[], |out| out.extend(body))?;
            }
        }
        self.after_request()
    }

    pub(super) fn reply(
        &mut self,
        channel: u32,
        code: u32,
        fds: &[OwnedFd],
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), ServerError> {
        compose(&mut self.out, code, FLAG_REPLY, body);
        let Some(server) = channel.checked_sub(1) else {
            return self.send_out(fds);
        };
        let channel = self.channels.get(&server);
        if channel.is_some_and(|c| send(&c.socket, &self.out, fds).is_err()) {
            self.forget_channel(server);
        }
        Ok(())
    }

    /// A message to the main socket, if there still is one.
    pub(super) fn send_main(&mut self, message: &RawMessage) -> Result<(), ServerError> {
        compose(&mut self.out, message.request, message.flags, |out| {
            out.extend_from_slice(&message.body);
        });
        self.send_out(&message.fds)
    }

    /// What has been composed goes to the main socket.
    fn send_out(&mut self, fds: &[OwnedFd]) -> Result<(), ServerError> {
        match &self.main {
            Some(main) if send(&main.socket, &self.out, fds).is_err() => self.end_connection(),
            _ => Ok(()),
        }
    }

    fn serve_standard(&mut self, message: RawMessage) -> Result<(), ServerError> {
        if let Some(request) = state_request(message.request, &message.body) {
            return self.serve_state(request, message);
        }
        let mut served = self.standard.serve(message)?;
        let serving = self.control.phase() == wire::handshake::state::SERVING;
        // A machine reset, if there is a machine yet.
        if serving && served.events.contains(&StandardEvent::DeviceReset) {
            match self.control.device_reset(Instant::now()) {
                Ok(()) => {
                    self.park(Requester::Device(served));
                    return Ok(());
                }
                Err(e) => {
                    log::warn!("RESET_DEVICE: {e}");
                    served.refuse();
                }
            }
        }
        match served.reply {
            Some(reply) => self.send_main(&reply),
            None => Ok(()),
        }
    }
}

/// The body of a reply whose payload is in bytes already.
pub(super) fn success(seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put_success(&mut body, seq, payload);
    body
}

fn put_success(out: &mut Vec<u8>, seq: u64, payload: &[u8]) {
    ReplyHead {
        seq,
        status: 0,
        zero: 0,
    }
    .put(out);
    out.extend_from_slice(payload);
}

fn is_standard(channel: u32, message: &RawMessage) -> bool {
    channel == MAIN_CHANNEL && message.request < PAPR_CODES
}

fn is_papr_barrier(message: &RawMessage) -> bool {
    use wire::guest::Cas;
    use wire::machine::{MachineReset, Quiesce, Resume, StateAbort, StateLoad, StateRead};
    use wire::vcpu::VcpuDisconnect;
    match message.request {
        Cas::CODE | MachineReset::CODE | Quiesce::CODE | Resume::CODE | VcpuDisconnect::CODE => {
            true
        }
        StateLoad::CODE | StateAbort::CODE => true,
        // At offset 0 the state is taken; then it is only handed out.
        StateRead::CODE => wire::split_request(&message.body)
            .and_then(|(_, payload)| StateRead::from_bytes(payload))
            .is_ok_and(|read| read.offset == 0),
        _ => false,
    }
}
