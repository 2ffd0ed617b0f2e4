//! The monitor socket's other end: one QUERY, its pieces joined, with a deadline.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use papr_intc_protocol::wire::handshake::{Query, QueryReply};
use papr_intc_protocol::wire::{self, Request, Wire};

use crate::server::socket::{ReceiveError, recv_message, send_message};

/// A daemon that says nothing for so long hangs, or is stopped.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pieces of an answer at most: what says more is none of ours.
const PIECES: usize = 10_000;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing within the time; the process that made the socket, if known.
    #[error("no answer within 2 s: the daemon hangs or is stopped")]
    Silent(Option<i32>),
    /// It answered with a refusal.
    #[error("{0}")]
    Refused(String),
    /// What came is no answer.
    #[error("what answers is no papr-intc: {0}")]
    Foreign(String),
}

/// Asks on a connected monitor socket.
pub fn ask(socket: &UnixStream, what: u32, argument: u64) -> Result<String, AskError> {
    let pid = getsockopt(socket, sockopt::PeerCredentials).map(|c| c.pid());
    let foreign = |e: &dyn std::fmt::Display| AskError::Foreign(e.to_string());
    let (mut bytes, mut cursor) = (Vec::new(), 0);
    for seq in 1..PIECES as u64 {
        let request = Query {
            what,
            zero: 0,
            cursor,
            argument,
        };
        let body = wire::request_body(seq, 0, &request);
        send_message(socket, Query::CODE, 0, &body, &[], PATIENCE).map_err(|e| foreign(&e))?;
        let message = match recv_message(socket, Some(PATIENCE)) {
            Ok(Some(message)) => message,
            Ok(None) => return Err(foreign(&"it hung up")),
            Err(ReceiveError::TimedOut) => return Err(AskError::Silent(pid.ok())),
            Err(e) => return Err(foreign(&e)),
        };
        let (head, payload) = wire::split_reply(&message.body).map_err(|e| foreign(&e))?;
        if head.status != 0 {
            return Err(AskError::Refused(
                String::from_utf8_lossy(payload).into_owned(),
            ));
        }
        let piece = QueryReply::from_bytes(payload).map_err(|e| foreign(&e))?;
        bytes.extend_from_slice(&piece.bytes.0);
        // A cursor that does not rise would never end.
        if piece.next <= cursor {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        cursor = piece.next;
    }
    Err(foreign(&"the answer has no end"))
}
