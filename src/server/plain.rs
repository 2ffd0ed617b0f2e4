//! Framing on a vCPU's channel: the messages of [`super::socket`], without descriptors.
//!
//! Where a descriptor may come, a message is read up to its end and no further, or it would not be certain whose
//! it is: two system calls a message. These channels take none, so one `recvfrom` takes whatever has arrived. What
//! is read too much stays here, and the event loop asks for it before it sleeps ([`PlainReader::has_more`]). A
//! descriptor that is sent all the same is closed by the kernel, since there is no room for it.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::socket::{
    HEADER_LEN, Header, Progress, READS_PER_POLL, RawMessage, ReceiveError, errno,
};

/// Bytes asked for at once: four requests of a vCPU. No channel holds back more than this of what it read too much.
const WINDOW: usize = 512;

/// The receiving half of a vCPU's channel.
#[derive(Debug, Default)]
pub(super) struct PlainReader {
    /// What has arrived of the messages that come next.
    rest: Vec<u8>,
}

impl PlainReader {
    /// The next message, as [`Reader::poll_message`](super::socket::Reader::poll_message). Its body takes the place
    /// of `spare`, a buffer of no content that all channels share.
    pub(super) fn poll_message(
        &mut self,
        socket: BorrowedFd<'_>,
        spare: &mut Vec<u8>,
    ) -> Result<Progress, ReceiveError> {
        let mut bytes = match self.rest.is_empty() {
            true => std::mem::take(spare),
            false => std::mem::take(&mut self.rest),
        };
        let found = fill(&mut bytes, socket)?;
        Ok(match found {
            Found::Message(header) => {
                let end = HEADER_LEN + header.size;
                self.rest.extend_from_slice(&bytes[end..]);
                bytes.truncate(end);
                bytes.drain(..HEADER_LEN);
                Progress::Ready(RawMessage {
                    request: header.request,
                    flags: header.flags,
                    body: bytes,
                    fds: Vec::new(),
                })
            }
            Found::Part if bytes.is_empty() => {
                *spare = bytes;
                Progress::Pending
            }
            Found::Part => {
                self.rest = bytes;
                Progress::Pending
            }
            Found::End => Progress::Closed,
        })
    }

    /// A whole message is here already, or something that is none: nothing more need arrive.
    pub(super) fn has_more(&self) -> bool {
        !matches!(whole(&self.rest), Ok(None))
    }
}

enum Found {
    Message(Header),
    Part,
    End,
}

/// Reads until there is a message, or nothing more for now.
fn fill(bytes: &mut Vec<u8>, socket: BorrowedFd<'_>) -> Result<Found, ReceiveError> {
    for _ in 0..READS_PER_POLL {
        if let Some(header) = whole(bytes)? {
            return Ok(Found::Message(header));
        }
        let (have, missing) = (bytes.len(), missing(bytes)?);
        bytes.resize(have + missing.max(WINDOW), 0);
        let read = recv(socket, &mut bytes[have..], RecvFlags::DONTWAIT);
        let read = read.map(|(read, _)| read);
        bytes.truncate(have + read.unwrap_or(0));
        match read {
            Ok(0) | Err(Errno::CONNRESET) if have == 0 => return Ok(Found::End),
            Ok(0) | Err(Errno::CONNRESET) => return Err(ReceiveError::Truncated { missing }),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Found::Part),
            Err(error) => return Err(errno(error).into()),
        }
    }
    Ok(match whole(bytes)? {
        Some(header) => Found::Message(header),
        None => Found::Part,
    })
}

/// The header of the message that these bytes begin with, if all of it is there.
fn whole(bytes: &[u8]) -> Result<Option<Header>, ReceiveError> {
    let Some(header) = bytes.first_chunk() else {
        return Ok(None);
    };
    let header = Header::parse(header)?;
    Ok((bytes.len() >= HEADER_LEN + header.size).then_some(header))
}

/// Bytes that are still to come: of the header, or of the body.
fn missing(bytes: &[u8]) -> Result<usize, ReceiveError> {
    let end = match bytes.first_chunk() {
        Some(header) => HEADER_LEN + Header::parse(header)?.size,
        None => HEADER_LEN,
    };
    Ok(end.saturating_sub(bytes.len()))
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;
    use crate::server::socket::{MAX_PAPR_BODY, header};

    /// A channel with both its ends, and what the event loop keeps for it.
    struct Pair {
        ours: UnixStream,
        theirs: UnixStream,
        reader: PlainReader,
        spare: Vec<u8>,
    }

    impl Pair {
        fn new() -> Self {
            let (ours, theirs) = UnixStream::pair().unwrap();
            Self {
                ours,
                theirs,
                reader: PlainReader::default(),
                spare: Vec::new(),
            }
        }
        fn poll(&mut self) -> Result<Progress, ReceiveError> {
            self.reader.poll_message(self.ours.as_fd(), &mut self.spare)
        }
        fn ready(&mut self) -> RawMessage {
            match self.poll() {
                Ok(Progress::Ready(message)) => message,
                other => panic!("no message but {other:?}"),
            }
        }
        fn is_pending(&mut self) -> bool {
            matches!(self.poll(), Ok(Progress::Pending))
        }
    }

    fn frame(request: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = header(request, 0, body.len() as u32).to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn messages_in_any_pieces_come_out_one_by_one() {
        let bodies = [0, 1, 112, 0, WINDOW, 4 * WINDOW, 28].map(|n| vec![n as u8; n]);
        let stream: Vec<u8> = bodies.iter().flat_map(|b| frame(0x1030, b)).collect();
        for piece in [1, 2, 11, 12, 13, 500, WINDOW, stream.len()] {
            let mut pair = Pair::new();
            let mut got = Vec::new();
            for part in stream.chunks(piece) {
                (&pair.theirs).write_all(part).unwrap();
                loop {
                    match pair.poll().unwrap() {
                        Progress::Ready(message) => got.push(message.body),
                        Progress::Pending => break,
                        Progress::Closed => panic!("nobody closed it"),
                    }
                }
            }
            assert_eq!(got, bodies, "pieces of {piece}");
            assert!(!pair.reader.has_more() && pair.reader.rest.is_empty());
        }
    }

    #[test]
    fn what_was_read_too_much_is_announced_until_it_is_taken() {
        let mut pair = Pair::new();
        let all = [frame(1, b"one"), frame(2, b""), frame(3, b"cut")].concat();
        let (now, later) = all.split_at(all.len() - 1);
        (&pair.theirs).write_all(now).unwrap();
        assert!(!pair.reader.has_more());
        assert_eq!((pair.ready().request, pair.reader.has_more()), (1, true));
        assert_eq!((pair.ready().request, pair.reader.has_more()), (2, false));
        assert!(pair.is_pending() && !pair.reader.has_more());
        (&pair.theirs).write_all(later).unwrap();
        assert_eq!(pair.ready().body, b"cut");
    }

    #[test]
    fn a_header_that_breaks_a_limit_ends_the_channel_even_if_it_was_read_too_early() {
        for bad in [header(0x1030, 0, MAX_PAPR_BODY as u32 + 1), [0; HEADER_LEN]] {
            let mut pair = Pair::new();
            let bytes = [&frame(1, b"good")[..], &bad].concat();
            (&pair.theirs).write_all(&bytes).unwrap();
            assert_eq!(pair.ready().body, b"good");
            assert!(pair.reader.has_more());
            pair.poll().unwrap_err();
        }
    }

    #[test]
    fn a_hang_up_is_an_end_between_messages_and_an_error_inside_one() {
        let bytes = frame(0x1030, b"body");
        for sent in 0..=bytes.len() {
            let mut pair = Pair::new();
            (&pair.theirs).write_all(&bytes[..sent]).unwrap();
            pair.theirs.shutdown(std::net::Shutdown::Both).unwrap();
            if sent == bytes.len() {
                assert_eq!(pair.ready().body, b"body");
            }
            match pair.poll() {
                Ok(Progress::Closed) => assert!(sent == 0 || sent == bytes.len()),
                Err(ReceiveError::Truncated { missing }) => {
                    let end = if sent < HEADER_LEN {
                        HEADER_LEN
                    } else {
                        bytes.len()
                    };
                    assert_eq!(missing, end - sent);
                }
                other => panic!("{sent} bytes, then a hang-up: {other:?}"),
            }
        }
    }

    #[test]
    fn a_descriptor_that_comes_all_the_same_is_closed_and_the_message_served() {
        let mut pair = Pair::new();
        let (mut reading, writing) = std::io::pipe().unwrap();
        let fds = [writing.as_raw_fd(); 3];
        let bytes = frame(0x1007, b"body");
        let sent = sendmsg::<()>(
            pair.theirs.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        );
        assert_eq!(sent.unwrap(), bytes.len());
        drop(writing);
        let message = pair.ready();
        assert_eq!((&message.body[..], message.fds.len()), (&b"body"[..], 0));
        // Nobody can write to the pipe any more.
        assert_eq!(reading.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn the_buffer_is_used_again() {
        let mut pair = Pair::new();
        let mut place = None;
        for _ in 0..3 {
            (&pair.theirs).write_all(&frame(0x1030, &[7; 112])).unwrap();
            let body = pair.ready().body;
            assert_eq!(*place.get_or_insert(body.as_ptr()), body.as_ptr());
            pair.spare = body;
            pair.spare.clear();
        }
    }
}
