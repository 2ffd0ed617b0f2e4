//! Test-only: a daemon's end of a socket, played by a test.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recvmsg, sendmsg};
use papr_intc_protocol::wire::{
    HEADER_BYTES, Request, RequestHead, error_body, flag, reply_body, split_request,
};

/// One end of a stream, spoken by hand.
pub(crate) struct FakePeer {
    pub stream: UnixStream,
}

/// A request as it came.
pub(crate) struct Got {
    pub code: u32,
    pub head: RequestHead,
    pub payload: Vec<u8>,
}

impl FakePeer {
    /// A peer and the stream to speak with it.
    pub fn pair() -> (Self, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (Self { stream: a }, b)
    }

    /// The next message: code, body, number of descriptors; `None` at the end of the stream.
    pub fn raw(&mut self) -> Option<(u32, Vec<u8>, usize)> {
        let mut header = [0; HEADER_BYTES];
        let mut control = nix::cmsg_space!([RawFd; 253]);
        let (n, fds) = {
            let mut iov = [IoSliceMut::new(&mut header)];
            let fd = self.stream.as_raw_fd();
            let got = recvmsg::<UnixAddr>(fd, &mut iov, Some(&mut control), MsgFlags::empty());
            let got = got.unwrap();
            let mut count = 0;
            for c in got.cmsgs().unwrap() {
                if let nix::sys::socket::ControlMessageOwned::ScmRights(raw) = c {
                    count += raw.len();
                    raw.into_iter()
                        .for_each(|fd| nix::unistd::close(fd).unwrap());
                }
            }
            (got.bytes, count)
        };
        if n == 0 {
            return None;
        }
        self.stream.read_exact(&mut header[n..]).unwrap();
        let word = |i: usize| u32::from_ne_bytes(*header[i * 4..].first_chunk().unwrap());
        let mut body = vec![0; word(2) as usize];
        self.stream.read_exact(&mut body).unwrap();
        Some((word(0), body, fds))
    }

    /// The next PAPR request.
    pub fn request(&mut self) -> Option<Got> {
        let (code, body, _) = self.raw()?;
        let (head, payload) = split_request(&body).unwrap();
        Some(Got {
            code,
            head,
            payload: payload.to_vec(),
        })
    }

    /// The next request, which must be an `R`.
    pub fn expect<R: Request>(&mut self) -> (RequestHead, R) {
        let got = self.request().expect("the connection ended");
        assert_eq!(got.code, R::CODE);
        (got.head, R::from_bytes(&got.payload).unwrap())
    }

    /// A whole reply, sent as it is.
    pub fn send(&mut self, code: u32, flags: u32, body: &[u8]) {
        self.send_with(code, flags, body, &[]);
    }

    /// As `send`, with descriptors.
    pub fn send_with(&mut self, code: u32, flags: u32, body: &[u8], fds: &[RawFd]) {
        let mut message = Vec::new();
        for word in [code, flags, body.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let iov = [IoSlice::new(&message)];
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<UnixAddr>(fd, &iov, control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
        self.stream.write_all(&message[sent..]).unwrap();
    }

    /// Answers an `R`.
    pub fn reply<R: Request>(&mut self, seq: u64, reply: &R::Reply) {
        self.send(
            R::CODE,
            flag::VERSION | flag::REPLY,
            &reply_body(seq, reply),
        );
    }

    /// Refuses.
    pub fn refuse(&mut self, code: u32, seq: u64, errno: i32, text: &str) {
        let flags = flag::VERSION | flag::REPLY;
        self.send(code, flags, &error_body(seq, errno, text));
    }
}
