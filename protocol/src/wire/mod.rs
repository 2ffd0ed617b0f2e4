//! The messages on the socket (SPEC.md chapter 1).
//!
//! A message is vhost-user's 12-byte header and a body. PAPR messages have codes from
//! [`PAPR_CODES`] up; their bodies start with a [`RequestHead`] or a [`ReplyHead`]. This module
//! encodes and decodes; sockets and descriptors are the business of its users.
//!
//! * [`bytes`]: integers, lists and texts.
//! * [`handshake`]: HELLO to GOODBYE, and queries.
//! * [`vcpu`]: connecting vCPUs and their lines.
//! * [`source`]: claims, irqfds, triggers and levels.
//! * [`guest`]: what the guest did: hcalls, RTAS, CAS, MMIO.
//! * [`machine`]: reset, quiesce, the state that moves.

pub mod bytes;
pub mod guest;
pub mod handshake;
pub mod machine;
pub mod source;
pub mod vcpu;

pub use bytes::{Malformed, Reader, Rest, Text, Wire};

use bytes::wire_structs;

/// First code of the PAPR messages.
pub const PAPR_CODES: u32 = 0x1000;
/// Feature bit 0 of the device-specific range: the back-end understands PAPR messages.
pub const FEATURE_PAPR_MESSAGES: u64 = 1 << 0;
/// Bytes of vhost-user's message header: request, flags, size, each u32.
pub const HEADER_BYTES: usize = 12;
/// Largest body of a PAPR message.
pub const MAX_BODY: usize = 65_536;
/// Largest body of a standard message.
pub const MAX_STANDARD_BODY: usize = 4_096;
/// Most descriptors with one message (the kernel's SCM_MAX_FD).
pub const MAX_FDS: usize = 253;
/// Longest text for people in an error reply.
pub const MAX_TEXT: usize = 512;
/// Channel number of the main socket; the channel of a vCPU is its server number + 1.
pub const MAIN_CHANNEL: u32 = 0;
/// Number of the watch channel: [`vcpu::WATCH`] + 1.
pub const WATCH_CHANNEL: u32 = vcpu::WATCH + 1;

/// Header flags of vhost-user.
pub mod flag {
    /// Version 1, in bits 1:0.
    pub const VERSION: u32 = 1;
    /// Bits of the version.
    pub const VERSION_MASK: u32 = 3;
    /// The message is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender of a standard message wants an acknowledgement.
    pub const NEED_REPLY: u32 = 1 << 3;
}

wire_structs! {
    /// What every PAPR request starts with.
    #[derive(Copy)]
    pub struct RequestHead {
        /// Chosen by the sender, rising on each channel; never 0.
        pub seq: u64,
        /// [`REPLAY`].
        pub flags: u32,
        /// Zero.
        pub zero: u32,
    }

    /// What every PAPR reply starts with.
    #[derive(Copy)]
    pub struct ReplyHead {
        /// The request's.
        pub seq: u64,
        /// 0, or a negative errno; then the payload is a text for people.
        pub status: i32,
        /// Zero.
        pub zero: u32,
    }
}

/// Request flag: sent again after a restart, with the number it had; it runs once.
pub const REPLAY: u32 = 1;

/// A PAPR request: its code, and what comes back.
pub trait Request: Wire {
    /// Message code.
    const CODE: u32;
    /// Name in SPEC.md.
    const NAME: &'static str;
    /// Payload of a successful reply.
    type Reply: Wire;
}

/// Ties requests to codes and replies, and lists them for the reader of a log.
macro_rules! requests {
    ($($code:literal $const_name:literal $request:ty => $reply:ty;)*) => {
        $(impl Request for $request {
            const CODE: u32 = $code;
            const NAME: &'static str = $const_name;
            type Reply = $reply;
        })*

        /// Every PAPR request: code and name, in the order of SPEC.md.
        pub const REQUESTS: &[(u32, &str)] = &[$(($code, $const_name)),*];
    };
}

requests! {
    0x1000 "HELLO" handshake::Hello => handshake::HelloReply;
    0x1001 "SET_MACHINE" handshake::SetMachine => handshake::SetMachine;
    0x1002 "GET_SHM" handshake::GetShm => handshake::ShmInfo;
    0x1003 "SET_SHM" handshake::SetShm => handshake::SetShmReply;
    0x1004 "CHECK_SHM" handshake::CheckShm => handshake::CheckShmReply;
    0x1005 "START" handshake::Start => handshake::StartReply;
    0x1006 "GOODBYE" handshake::Goodbye => ();
    0x1007 "PING" handshake::Ping => handshake::PingReply;
    0x1008 "LAST" handshake::Last => handshake::LastReply;
    0x1009 "QUERY" handshake::Query => handshake::QueryReply;
    0x1010 "VCPU_CONNECT" vcpu::VcpuConnect => vcpu::VcpuConnectReply;
    0x1011 "VCPU_DISCONNECT" vcpu::VcpuDisconnect => ();
    0x1012 "VCPU_RESET" vcpu::VcpuReset => ();
    0x1013 "VCPU_CHANNEL" vcpu::VcpuChannel => ();
    0x1014 "VCPU_LINE" vcpu::VcpuLine => vcpu::Line;
    0x1020 "CLAIM" source::Claim => source::ClaimReply;
    0x1021 "FREE" source::Free => ();
    0x1022 "SET_IRQFDS" source::SetIrqfds => ();
    0x1023 "CLEAR_IRQFDS" source::ClearIrqfds => ();
    0x1024 "SET_LEVEL" source::SetLevel => ();
    0x1025 "TRIGGER" source::Trigger => ();
    0x1026 "SYNC" source::Sync => ();
    0x1030 "HCALL" guest::Hcall => guest::HcallReply;
    0x1031 "RTAS" guest::Rtas => guest::RtasReply;
    0x1032 "CAS" guest::Cas => guest::CasReply;
    0x1033 "MMIO" guest::Mmio => guest::MmioReply;
    0x1034 "GET_FDT" guest::GetFdt => guest::FdtReply;
    0x1040 "MACHINE_RESET" machine::MachineReset => ();
    0x1041 "QUIESCE" machine::Quiesce => machine::QuiesceReply;
    0x1042 "RESUME" machine::Resume => machine::ResumeReply;
    0x1043 "STATE_HEADER" machine::StateHeader => machine::StateBytes;
    0x1044 "STATE_CHECK" machine::StateCheck => machine::StateVerdict;
    0x1045 "STATE_READ" machine::StateRead => machine::StateBytes;
    0x1046 "STATE_ABORT" machine::StateAbort => ();
    0x1047 "SET_LOG_LEVEL" machine::SetLogLevel => ();
    0x1048 "STATE_WRITE" machine::StateWrite => machine::StateWritten;
    0x1049 "STATE_LOAD" machine::StateLoad => machine::StateWritten;
}

/// Codes whose numbers are taken but which this version answers with ENOSYS.
pub const RESERVED: &[(u32, &str)] = &[(0x1080, "NOTE"), (0x1081, "DEMOTE")];

/// The body of a request.
pub fn request_body<R: Request>(seq: u64, flags: u32, request: &R) -> Vec<u8> {
    let mut body = RequestHead {
        seq,
        flags,
        zero: 0,
    }
    .to_bytes();
    request.put(&mut body);
    body
}

/// The body of a successful reply.
pub fn reply_body<T: Wire>(seq: u64, payload: &T) -> Vec<u8> {
    let mut body = ReplyHead {
        seq,
        status: 0,
        zero: 0,
    }
    .to_bytes();
    payload.put(&mut body);
    body
}

/// The body of an error reply: `errno` is positive, `text` is cut at [`MAX_TEXT`] bytes.
pub fn error_body(seq: u64, errno: i32, text: &str) -> Vec<u8> {
    let mut body = ReplyHead {
        seq,
        status: -errno,
        zero: 0,
    }
    .to_bytes();
    body.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]);
    body
}

/// Splits a request body into its head and payload.
pub fn split_request(body: &[u8]) -> Result<(RequestHead, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    let head = RequestHead::get(&mut reader)?;
    if head.zero != 0 || head.flags & !REPLAY != 0 || head.seq == 0 {
        return Err(Malformed::Reserved);
    }
    Ok((head, reader.rest()))
}

/// Splits a reply body into its head and payload.
pub fn split_reply(body: &[u8]) -> Result<(ReplyHead, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    let head = ReplyHead::get(&mut reader)?;
    Ok((head, reader.rest()))
}

/// Name of a PAPR code, for logs.
pub fn name(code: u32) -> &'static str {
    let known = REQUESTS.iter().chain(RESERVED).find(|(c, _)| *c == code);
    known.map_or("unknown", |(_, name)| name)
}

#[cfg(test)]
mod tests;
