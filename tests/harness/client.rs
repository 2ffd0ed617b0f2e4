//! One channel of the protocol, by hand: whatever bytes a test wants, one request at a time.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use papr_intc::server::socket::{FLAG_NEED_REPLY, RawMessage, recv_message, send_message};
use papr_intc_protocol::wire::handshake::{Hello, Ping};
use papr_intc_protocol::wire::{self, REPLAY, Request, Text, Wire};

use super::LONG;

/// A request that the daemon refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Positive.
    pub errno: i32,
    /// For people; never empty.
    pub text: String,
}

/// What a request comes to.
pub type Answer<T> = Result<T, Refusal>;

/// One end of a channel: the main socket, or a vCPU's.
pub struct Client {
    /// The socket.
    pub socket: UnixStream,
    seq: Cell<u64>,
}

impl Client {
    /// Speaks on `socket`.
    pub fn new(socket: UnixStream) -> Self {
        let seq = Cell::new(0);
        Self { socket, seq }
    }

    /// Number of the last request.
    pub fn last_seq(&self) -> u64 {
        self.seq.get()
    }

    /// The next request will have number `seq` + 1.
    pub fn go_on_from(&self, seq: u64) {
        self.seq.set(seq);
    }

    fn next_seq(&self) -> u64 {
        self.seq.set(self.seq.get() + 1);
        self.seq.get()
    }

    /// Sends anything.
    pub fn send(&self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        send_message(&self.socket, code, flags, body, fds, LONG).unwrap();
    }

    /// The next message; none if the daemon hung up.
    pub fn receive(&self) -> Option<RawMessage> {
        recv_message(&self.socket, Some(LONG)).unwrap()
    }

    /// The daemon has closed the connection.
    pub fn is_closed(&self) -> bool {
        // A reset counts: it closed with something of ours unread.
        recv_message(&self.socket, Some(LONG)).map_or(true, |m| m.is_none())
    }

    /// Sends a request and leaves the answer for [`Self::take`].
    pub fn post<R: Request>(&self, request: &R) -> u64 {
        let seq = self.next_seq();
        let body = wire::request_body(seq, 0, request);
        self.send(R::CODE, 0, &body, &[]);
        seq
    }

    /// The answer to request `seq`, which was an `R`.
    pub fn take<R: Request>(&self, seq: u64) -> Answer<(R::Reply, Vec<OwnedFd>)> {
        let message = self.receive().expect("the daemon hung up");
        assert!(message.is_reply());
        assert_eq!(message.request, R::CODE, "the reply is to another request");
        let (payload, fds) = (unpack(seq, &message.body)?, message.fds);
        let reply = R::Reply::from_bytes(&payload).expect("a well-formed reply");
        Ok((reply, fds))
    }

    /// A request and its answer.
    pub fn call<R: Request>(&self, request: &R) -> Answer<R::Reply> {
        let (reply, fds) = self.call_fds(request, &[])?;
        assert!(fds.is_empty(), "descriptors came with {}", R::NAME);
        Ok(reply)
    }

    /// A request with descriptors.
    pub fn call_fds<R: Request>(
        &self,
        request: &R,
        fds: &[BorrowedFd<'_>],
    ) -> Answer<(R::Reply, Vec<OwnedFd>)> {
        let seq = self.next_seq();
        self.send(R::CODE, 0, &wire::request_body(seq, 0, request), fds);
        self.take::<R>(seq)
    }

    /// A request sent again, as after a restart.
    pub fn replay<R: Request>(&self, seq: u64, request: &R) -> Answer<R::Reply> {
        self.seq.set(self.seq.get().max(seq));
        self.send(R::CODE, 0, &wire::request_body(seq, REPLAY, request), &[]);
        self.take::<R>(seq).map(|(reply, _)| reply)
    }

    /// Any payload under any PAPR code: the answer's payload.
    pub fn ask(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Answer<Vec<u8>> {
        let seq = self.next_seq();
        let mut body = wire::request_body(seq, 0, &Ping { cookie: 0 });
        body.truncate(16);
        body.extend_from_slice(payload);
        self.send(code, 0, &body, fds);
        let message = self.receive().expect("the daemon hung up");
        assert!(message.is_reply());
        assert_eq!(message.request, code, "the reply is to another request");
        unpack(seq, &message.body)
    }

    /// A standard request that wants an acknowledgement: 0 is yes.
    pub fn standard(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        self.send(code, FLAG_NEED_REPLY, body, fds);
        self.standard_reply(code)
    }

    /// The reply of a standard request: its first u64.
    pub fn standard_reply(&self, code: u32) -> u64 {
        let message = self.receive().expect("the daemon hung up");
        assert!(message.is_reply());
        assert_eq!(message.request, code, "the reply is to another request");
        u64::from_ne_bytes(message.body[..8].try_into().unwrap())
    }

    /// The daemon is there and in step.
    pub fn ping(&self) {
        let cookie = 0x5eed_0000 + self.last_seq();
        assert_eq!(self.call(&Ping { cookie }).unwrap().cookie, cookie);
    }

    /// The daemon has not hung up, but answers HELLO.
    pub fn is_greeted(&self) -> bool {
        let body = wire::request_body(self.next_seq(), 0, &hello());
        let sent = send_message(&self.socket, Hello::CODE, 0, &body, &[], LONG);
        sent.is_ok() && recv_message(&self.socket, Some(LONG)).is_ok_and(|m| m.is_some())
    }

    /// HELLO as a front-end of this build sends it.
    pub fn hello(&self) -> <Hello as Request>::Reply {
        self.call(&hello()).unwrap()
    }
}

/// HELLO of a front-end of this build.
pub fn hello() -> Hello {
    Hello {
        protocol_min: papr_intc_protocol::PROTOCOL_VERSION,
        protocol_max: papr_intc_protocol::PROTOCOL_VERSION,
        layout_min: papr_intc_protocol::LAYOUT_MIN,
        layout_max: papr_intc_protocol::LAYOUT_VERSION,
        plane_abi: papr_intc_protocol::PLANE_ABI,
        zero: 0,
        features: 0,
        generation: 0,
        name: Text("tests".into()),
    }
}

/// The payload of a reply, which must have the form that SPEC.md promises for every code.
fn unpack(seq: u64, body: &[u8]) -> Answer<Vec<u8>> {
    let (head, payload) = wire::split_reply(body).expect("a well-formed reply");
    assert_eq!((head.seq, head.zero), (seq, 0));
    if head.status == 0 {
        return Ok(payload.to_vec());
    }
    assert!(head.status < 0, "status {}", head.status);
    let text = String::from_utf8(payload.to_vec()).expect("the text is UTF-8");
    assert!(!text.is_empty() && text.len() <= wire::MAX_TEXT && !text.contains('\n'));
    let errno = -head.status;
    Err(Refusal { errno, text })
}

/// The errno of a refused request.
pub fn errno<T: std::fmt::Debug>(answer: Answer<T>) -> i32 {
    answer.expect_err("a refusal").errno
}

/// Borrows descriptors for a call.
pub fn borrow<F: AsFd>(fds: &[F]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}
