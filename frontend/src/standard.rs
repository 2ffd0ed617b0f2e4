//! The few standard vhost-user requests that this front-end sends (SPEC.md §1.9), in a handshake and
//! while a daemon serves: what they look like, and what their answers mean.

use std::os::fd::BorrowedFd;

use papr_intc_protocol::wire::{FEATURE_PAPR_MESSAGES, Wire, flag};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use crate::connection::{Connection, GoOn};
use crate::error::Error;
use crate::ram::{Ram, shared};

/// Bit 32: every vhost-user device of today.
pub(crate) const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Mark the pages that are written.
pub(crate) const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// A daemon that is spoken to in standard requests.
pub(crate) struct Standard<'a> {
    pub connection: &'a Connection,
    /// How long one answer is waited for.
    pub go_on: GoOn<'a>,
}

impl Standard<'_> {
    fn get(&self, name: &'static str, code: FrontendReq) -> Result<u64, Error> {
        let reply = self.ask(name, code, 0, &[], &[])?;
        value(name, &reply)
    }

    fn ask(
        &self,
        name: &'static str,
        code: FrontendReq,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Error> {
        self.connection
            .standard(name, code as u32, flags, body, fds, self.go_on)
    }

    /// A request without an answer.
    fn tell(&self, code: FrontendReq, body: &[u8]) -> Result<(), Error> {
        self.connection
            .standard_unanswered(code as u32, body, self.go_on)
    }

    /// A request that is acknowledged, as REPLY_ACK has it.
    fn set(
        &self,
        name: &'static str,
        code: FrontendReq,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let reply = self.ask(name, code, flag::NEED_REPLY, body, fds)?;
        match value(name, &reply)? {
            0 => Ok(()),
            n => Err(Error::Unfit(format!("{name} was refused with {n}"))),
        }
    }

    /// SET_OWNER, and the features: does the other side understand PAPR messages at all? The features that
    /// are acknowledged, and LOG_ALL, which is not yet, if it is offered.
    pub fn negotiate(&self) -> Result<u64, Error> {
        self.tell(FrontendReq::SET_OWNER, &[])?;
        let offered = self.get("GET_FEATURES", FrontendReq::GET_FEATURES)?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let needed = FEATURE_PAPR_MESSAGES | protocol;
        if offered & needed != needed {
            return Err(Error::Unfit(format!(
                "it offers the features {offered:#x}, which lack {:#x}",
                needed & !offered
            )));
        }
        let acked = offered & (needed | VIRTIO_F_VERSION_1);
        self.tell(FrontendReq::SET_FEATURES, &acked.to_bytes())?;

        let get = FrontendReq::GET_PROTOCOL_FEATURES;
        let protocol = self.get("GET_PROTOCOL_FEATURES", get)?;
        let ack = VhostUserProtocolFeatures::REPLY_ACK.bits();
        if protocol & ack == 0 {
            return Err(Error::Unfit("it does not offer REPLY_ACK".to_owned()));
        }
        let log = protocol & VhostUserProtocolFeatures::LOG_SHMFD.bits();
        let set = FrontendReq::SET_PROTOCOL_FEATURES;
        self.tell(set, &(ack | log).to_bytes())?;
        let can_log = if log != 0 { offered & LOG_ALL } else { 0 };
        Ok(acked | can_log)
    }

    /// SET_FEATURES, acknowledged.
    pub fn set_features(&self, features: u64) -> Result<(), Error> {
        let code = FrontendReq::SET_FEATURES;
        self.set("SET_FEATURES", code, &features.to_bytes(), &[])
    }

    /// SET_MEM_TABLE: when it returns, the daemon has mapped the guest's RAM.
    pub fn set_mem_table(&self, ram: &dyn Ram) -> Result<(), Error> {
        let regions = shared(ram)?;
        let mut body = Vec::new();
        (regions.len() as u32).put(&mut body);
        0u32.put(&mut body);
        for (r, _) in &regions {
            [r.gpa, r.len, r.user, r.offset].put(&mut body);
        }
        let fds: Vec<_> = regions.iter().map(|(_, file)| *file).collect();
        self.set("SET_MEM_TABLE", FrontendReq::SET_MEM_TABLE, &body, &fds)
    }

    /// SET_LOG_BASE: `bytes` of `log` from its start.
    pub fn set_log_base(&self, log: BorrowedFd<'_>, bytes: u64) -> Result<(), Error> {
        let name = "SET_LOG_BASE";
        let body = [bytes, 0].to_bytes();
        let reply = self.ask(name, FrontendReq::SET_LOG_BASE, 0, &body, &[log])?;
        // The specification knows no refusal; our daemon says no with a log of size 0 (SPEC.md §1.9).
        match reply == body {
            true => Ok(()),
            false => Err(Error::Unfit(format!("{name} was refused"))),
        }
    }
}

fn value(name: &'static str, reply: &[u8]) -> Result<u64, Error> {
    u64::from_bytes(reply).map_err(|e| Error::Malformed {
        request: name,
        what: e.to_string(),
    })
}
