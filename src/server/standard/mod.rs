//! The standard half of the protocol: what any vhost-user front-end may ask of any back-end.
//!
//! Follows the vhost-user specification and SPEC.md, "Standard requests". The work (features, memory table, dirty log,
//! configuration block, device state) is done by an inner [`vhost_user_backend::VhostUserDaemon`] without queues, to
//! which [`Standard::serve`] passes one request at a time. In front of it, this module makes good what version 0.24 of
//! that crate does not do:
//!
//! | the crate | here |
//! |---|---|
//! | a refused request costs the connection | the refusal is answered, the inner connection is made anew and the negotiation replayed; the VMM's connection and memory stay |
//! | SET_OWNER only once | answered here |
//! | nothing says when a set-request has taken effect | REPLY_ACK is always negotiated with the inner daemon; the next request is served after the acknowledgement, which is passed on only if the VMM asked |
//! | more than 32 descriptors hang it | refused here |
//! | the dirty log misses added regions and new tables, and ignores LOG_ALL | `dirty_log.rs` |
//! | a memory table has to be sorted, and may reach beyond the end of its files | sorted here; refused in `guest_ram.rs` |
//! | guest memory stays mapped when the VMM goes | [`Standard::connection_ended`] |
//!
//! One thread owns a [`Standard`]. It touches no socket of the VMM: the owner reads the request, acts on the events, and
//! sends the reply.

mod backend;
mod dirty_log;
mod guest_ram;
mod inner;
mod request;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, VhostUserProtocolFeatures};

pub use self::backend::{
    FEATURE_PAPR_MESSAGES, FEATURES, IDENTITY_LEN, PROTOCOL_FEATURES, StandardEvent, StateChannel,
};
pub use self::guest_ram::GuestRam;
pub use self::inner::StandardError;
pub use self::request::{StateRequest, is_barrier, state_request};

use self::backend::StdBackend;
use self::inner::Inner;
use self::request::Service;
use crate::server::socket::RawMessage;

const REPLY_ACK: u64 = VhostUserProtocolFeatures::REPLY_ACK.bits();

/// The outcome of a standard request.
#[derive(Debug)]
#[must_use]
pub struct Served {
    /// What the machine has to do about it, in this order, before the reply goes out.
    pub events: Vec<StandardEvent>,
    /// The reply, if the VMM expects one.
    pub reply: Option<RawMessage>,
}

impl Served {
    /// Turns the acknowledgement of a set-request into a refusal, because what an event asked for could not be done.
    pub fn refuse(&mut self) {
        if let Some(reply) = &mut self.reply {
            reply.body = 1u64.to_ne_bytes().to_vec();
        }
    }
}

/// What the VMM has negotiated, to be repeated to a new inner connection.
#[derive(Clone, Copy, Debug, Default)]
struct Negotiated {
    features: Option<u64>,
    protocol: u64,
}

/// The standard half. See the module.
pub struct Standard {
    backend: Arc<StdBackend>,
    inner: Inner,
    negotiated: Negotiated,
    back_channel: Option<OwnedFd>,
    logged: BTreeSet<u32>,
}

impl Standard {
    /// Starts the standard half, ready for a first VMM, with this block for GET_CONFIG.
    ///
    /// # Errors
    /// The inner daemon could not be started.
    pub fn new(identity: [u8; IDENTITY_LEN]) -> Result<Self, StandardError> {
        let backend = Arc::new(StdBackend::new(identity));
        let inner = Inner::new(&backend)?;
        let mut standard = Self {
            backend,
            inner,
            negotiated: Negotiated::default(),
            back_channel: None,
            logged: BTreeSet::new(),
        };
        standard.negotiate()?;
        Ok(standard)
    }

    /// Changes the block that GET_CONFIG returns.
    pub fn set_identity(&self, identity: [u8; IDENTITY_LEN]) {
        self.backend.set_identity(identity);
    }

    /// Guest memory, as shared by the VMM.
    #[must_use]
    pub fn ram(&self) -> GuestRam {
        self.backend.ram().clone()
    }

    /// Device features the VMM has acknowledged; 0 before SET_FEATURES. RESET_DEVICE keeps them.
    #[must_use]
    pub fn acked_features(&self) -> u64 {
        self.backend.acked()
    }

    /// Protocol features the VMM has negotiated; 0 before SET_PROTOCOL_FEATURES.
    #[must_use]
    pub fn acked_protocol_features(&self) -> u64 {
        self.negotiated.protocol
    }

    /// The channel for notes to the VMM, if it gave one (SET_BACKEND_REQ_FD).
    #[must_use]
    pub fn back_channel(&self) -> Option<BorrowedFd<'_>> {
        self.back_channel.as_ref().map(AsFd::as_fd)
    }

    /// The VMM has gone: unmaps its memory and log, closes the back channel, and is ready for the next VMM, which
    /// negotiates from the start.
    ///
    /// # Errors
    /// The inner daemon could not be started again.
    pub fn connection_ended(&mut self) -> Result<(), StandardError> {
        self.back_channel = None;
        self.negotiated = Negotiated::default();
        self.inner.renew(&self.backend)?;
        self.backend.forget_vmm();
        self.negotiate()
    }

    /// Serves SET_DEVICE_STATE_FD or CHECK_DEVICE_STATE, to which the machine has this answer. The channel that
    /// came with it, if the answer is yes.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub fn serve_state(
        &mut self,
        message: RawMessage,
        verdict: Result<(), String>,
    ) -> Result<(Served, Option<StateChannel>), StandardError> {
        self.backend.set_verdict(verdict);
        let served = self.serve(message);
        self.backend.set_verdict(Err("nobody was asked".to_owned()));
        let channel = self.backend.take_channel();
        served.map(|served| (served, channel))
    }

    /// Serves one request with a standard code. When it returns, the request has taken effect or been refused; what it
    /// means for the machine is in [`Served::events`].
    ///
    /// # Errors
    /// The inner daemon is lost. Refused requests are no error.
    pub fn serve(&mut self, mut message: RawMessage) -> Result<Served, StandardError> {
        if message.is_reply() {
            self.log_refusal(message.request, "a reply to nothing");
            return Ok(Served {
                events: Vec::new(),
                reply: None,
            });
        }
        let answer = match request::service(message.request) {
            Service::Owner => Ok(None),
            service @ (Service::Set | Service::Get) => self.pass_on(service, &mut message)?,
            Service::Unknown => Err("not served".to_owned()),
        };
        let reply = match answer {
            Ok(Some(reply)) => Some(reply),
            Ok(None) => self.acknowledge(&message, 0),
            Err(why) => {
                self.log_refusal(message.request, &why);
                match request::refusal(message.request, &message.body) {
                    Some(body) => Some(RawMessage::reply(message.request, body)),
                    None => self.acknowledge(&message, 1),
                }
            }
        };
        Ok(Served {
            events: self.backend.take_events(),
            reply,
        })
    }

    /// Passes a request to the inner daemon. Returns the reply of a get-request, nothing for a set-request, and the reason
    /// of a refusal, after which the inner connection is as good as before.
    fn pass_on(
        &mut self,
        service: Service,
        message: &mut RawMessage,
    ) -> Result<Result<Option<RawMessage>, String>, StandardError> {
        if let Err(why) = self.check(message) {
            return Ok(Err(why));
        }
        if message.request == u32::from(FrontendReq::SET_MEM_TABLE) {
            request::sort_table(&mut message.body, &mut message.fds);
        }
        let raised = with_reply_ack(message);
        let body = raised.as_ref().map_or(&message.body[..], |body| &body[..]);
        let fds: Vec<BorrowedFd<'_>> = message.fds.iter().map(AsFd::as_fd).collect();
        match self.inner.call(message.request, body, &fds)? {
            Some(reply) if service == Service::Get => {
                self.record(message);
                Ok(Ok(Some(reply)))
            }
            Some(reply) if u64_of(&reply.body) == Some(0) => {
                self.record(message);
                Ok(Ok(None))
            }
            _refused => {
                let why = self.inner.reconnect()?;
                self.negotiate()?;
                // The replay said nothing new.
                self.backend.take_events();
                Ok(Err(why))
            }
        }
    }

    /// What the crate would not survive or would not notice.
    fn check(&self, message: &RawMessage) -> Result<(), String> {
        let fds = message.fds.len();
        if fds > MAX_ATTACHED_FD_ENTRIES {
            return Err(format!(
                "{fds} descriptors, at most {MAX_ATTACHED_FD_ENTRIES} are taken"
            ));
        }
        match FrontendReq::try_from(message.request) {
            Ok(FrontendReq::SET_PROTOCOL_FEATURES) => match u64_of(&message.body) {
                Some(asked) if asked & !PROTOCOL_FEATURES.bits() != 0 => Err(format!(
                    "protocol features {asked:#x} go beyond what was offered"
                )),
                _ => Ok(()),
            },
            Ok(FrontendReq::SET_LOG_BASE) => self.check_log(message),
            _ => Ok(()),
        }
    }

    fn check_log(&self, message: &RawMessage) -> Result<(), String> {
        if self.backend.ram().regions() == 0 {
            return Err("there is no memory yet whose writes could be logged".into());
        }
        let size = u64_of(&message.body).unwrap_or(0);
        let offset = message.body.get(8..).and_then(u64_of).unwrap_or(0);
        match message
            .fds
            .first()
            .map(|log| guest_ram::reaches(log, offset, size))
        {
            Some(Ok(false)) => Err(format!(
                "the log {offset:#x}+{size:#x} is longer than its file"
            )),
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(true)) | None => Ok(()),
        }
    }

    /// Keeps what a new inner connection has to be told again, and what the inner daemon has no use for.
    fn record(&mut self, message: &mut RawMessage) {
        match FrontendReq::try_from(message.request) {
            Ok(FrontendReq::SET_FEATURES) => self.negotiated.features = u64_of(&message.body),
            Ok(FrontendReq::SET_PROTOCOL_FEATURES) => {
                self.negotiated.protocol = u64_of(&message.body).unwrap_or(0);
            }
            Ok(FrontendReq::SET_LOG_BASE) => self.backend.guard_log(),
            // The crate has checked that it is a stream socket of the Unix domain. Its own handle on it cannot send PAPR
            // notes, and was dropped.
            Ok(FrontendReq::SET_BACKEND_REQ_FD) => {
                self.back_channel = message.fds.pop();
                self.backend.note(StandardEvent::BackChannel);
            }
            _ => {}
        }
    }

    /// Tells a new inner connection what the VMM had negotiated, and that REPLY_ACK is wanted in any case.
    fn negotiate(&mut self) -> Result<(), StandardError> {
        let protocol = self.negotiated.protocol | REPLY_ACK;
        self.must(FrontendReq::GET_FEATURES, None)?;
        self.must(FrontendReq::SET_PROTOCOL_FEATURES, Some(protocol))?;
        match self.negotiated.features {
            Some(features) => self.must(FrontendReq::SET_FEATURES, Some(features)),
            None => Ok(()),
        }
    }

    fn must(&mut self, request: FrontendReq, value: Option<u64>) -> Result<(), StandardError> {
        let body = value.map_or_else(Vec::new, |value| value.to_ne_bytes().to_vec());
        let reply = self.inner.call(request.into(), &body, &[])?;
        match reply.as_ref().and_then(|reply| u64_of(&reply.body)) {
            Some(answer) if value.is_none() || answer == 0 => Ok(()),
            _ => Err(StandardError::new(
                "the negotiation was refused",
                format!("{request:?}"),
            )),
        }
    }

    /// The acknowledgement of a set-request, if it was asked for and may be sent.
    fn acknowledge(&self, message: &RawMessage, result: u64) -> Option<RawMessage> {
        let wanted = message.needs_reply() && self.negotiated.protocol & REPLY_ACK != 0;
        wanted.then(|| RawMessage::reply(message.request, result.to_ne_bytes().to_vec()))
    }

    /// Each code is reported once, however often the VMM repeats itself.
    fn log_refusal(&mut self, request: u32, why: &str) {
        let name = request::name(request);
        if self.logged.insert(request) {
            log::warn!("vhost-user request {name} refused: {why} (not reported again)");
        } else {
            log::debug!("vhost-user request {name} refused: {why}");
        }
    }
}

/// The body of SET_PROTOCOL_FEATURES for the inner daemon, which acknowledges whether or not the VMM wants it.
fn with_reply_ack(message: &RawMessage) -> Option<[u8; 8]> {
    match FrontendReq::try_from(message.request) {
        Ok(FrontendReq::SET_PROTOCOL_FEATURES) => {
            let asked = u64::from_ne_bytes(message.body[..].try_into().ok()?);
            Some((asked | REPLY_ACK).to_ne_bytes())
        }
        _ => None,
    }
}

/// The u64 a body starts with.
fn u64_of(body: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(body.get(..8)?.try_into().ok()?))
}
