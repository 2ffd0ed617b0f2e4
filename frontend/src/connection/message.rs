//! Requests made and replies looked at: bytes in buffers, no socket.

use nix::errno::Errno;
use papr_intc_protocol::wire::{
    HEADER_BYTES, MAX_BODY, Request, RequestHead, Wire, flag, split_reply,
};

use crate::error::Error;

/// A request that was sent: its number, code and name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    pub seq: u64,
    pub code: u32,
    pub name: &'static str,
}

impl Owed {
    pub fn of<R: Request>(seq: u64) -> Self {
        Self {
            seq,
            code: R::CODE,
            name: R::NAME,
        }
    }
}

/// A whole message, in place of what the buffer held.
pub(super) fn compose(out: &mut Vec<u8>, code: u32, flags: u32, body: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    [code, flags, 0].put(out);
    body(out);
    let size = (out.len() - HEADER_BYTES) as u32;
    out[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&size.to_ne_bytes());
}

pub(super) fn compose_request<R: Request>(out: &mut Vec<u8>, seq: u64, flags: u32, request: &R) {
    let head = RequestHead {
        seq,
        flags,
        zero: 0,
    };
    compose(out, R::CODE, flag::VERSION, |out| {
        head.put(out);
        request.put(out);
    });
}

/// What the body of a reply says to request `seq`.
pub(super) fn answer<R: Request>(seq: u64, body: &[u8]) -> Result<R::Reply, Error> {
    let (head, payload) = split_reply(body).map_err(|e| malformed(R::NAME, e))?;
    if head.seq != seq {
        let what = format!("it answers {}, not {seq}", head.seq);
        return Err(malformed(R::NAME, what));
    }
    if head.status != 0 {
        return Err(Error::Refused {
            request: R::NAME,
            errno: head.status.checked_neg().unwrap_or(Errno::EPROTO as i32),
            text: String::from_utf8_lossy(payload).into_owned(),
        });
    }
    R::Reply::from_bytes(payload).map_err(|e| malformed(R::NAME, e))
}

/// Size of the body that a reply's header announces.
pub(super) fn checked_size(header: &[u8; HEADER_BYTES], owed: Owed) -> Result<usize, Error> {
    let word = |i: usize| {
        let bytes = header[i * 4..].first_chunk().copied();
        bytes.map_or(0, u32::from_ne_bytes)
    };
    let (found, flags, size) = (word(0), word(1), word(2) as usize);
    let what = if found != owed.code {
        "it answers another request"
    } else if flags & flag::VERSION_MASK != flag::VERSION || flags & flag::REPLY == 0 {
        "its flags are not a reply's"
    } else if size > MAX_BODY {
        "it is too large"
    } else {
        return Ok(size);
    };
    Err(malformed(owed.name, what))
}

pub(super) fn malformed(request: &'static str, what: impl ToString) -> Error {
    Error::Malformed {
        request,
        what: what.to_string(),
    }
}
