//! Framing, descriptors and deadlines, against a peer played by hand.

use std::fs::File;
use std::io::Write;
use std::thread;

use papr_intc_protocol::wire::handshake::{GetShm, Ping, PingReply, Query, QueryReply, ShmInfo};
use papr_intc_protocol::wire::vcpu::VcpuChannel;
use papr_intc_protocol::wire::{Rest, reply_body};

use super::*;
use crate::fake_peer::FakePeer;

fn query() -> Query {
    Query {
        what: 0,
        zero: 0,
        cursor: 0,
        argument: 0,
    }
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_reply_that_drips_in_is_put_together() {
    let (mut peer, stream) = FakePeer::pair();
    let reply = QueryReply {
        next: 7,
        bytes: Rest((0..60_000u32).map(|i| i as u8).collect()),
    };
    let expected = reply.clone();
    let daemon = thread::spawn(move || {
        let (head, _) = peer.expect::<Query>();
        let body = reply_body(head.seq, &reply);
        let mut message = Vec::new();
        for word in [Query::CODE, 5, body.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(&body);
        for piece in message.chunks(7777) {
            peer.stream.write_all(piece).unwrap();
        }
        let (first, rest) = message.split_at(5);
        let (head, _) = peer.expect::<Query>();
        assert_eq!(head.seq, 1, "the same number, for the same bytes");
        peer.stream.write_all(first).unwrap();
        peer.stream.write_all(rest).unwrap();
    });
    let connection = Connection::new(stream);
    for _ in 0..2 {
        let (got, _) = connection.exchange(1, 0, &query(), &[]).unwrap();
        assert_eq!(got, expected);
    }
    daemon.join().unwrap();
}

#[test]
fn descriptors_arrive_closed_on_exec_and_too_many_are_all_closed() {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let (mut peer, stream) = FakePeer::pair();
    let connection = Connection::new(stream);
    let info = ShmInfo {
        layout: 1,
        zero: 0,
        generation: 1,
        size: 0,
        tables_size: 0,
        pages_size: 0,
    };
    let daemon = thread::spawn(move || {
        let file = File::open("/dev/null").unwrap();
        for count in [1, 100] {
            let (head, _) = peer.expect::<GetShm>();
            let fds = vec![file.as_raw_fd(); count];
            let body = reply_body(head.seq, &info);
            peer.send_with(GetShm::CODE, 5, &body, &fds);
        }
        drop(file);
        peer
    });
    let (_, fds) = connection.exchange(1, 0, &GetShm {}, &[]).unwrap();
    let flags = fcntl(&fds[0], FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    let too_many = connection.exchange(2, 0, &GetShm {}, &[]);
    assert!(matches!(too_many, Err(Error::Malformed { .. })));
    drop((fds, daemon.join().unwrap()));
    // Other tests open and close descriptors meanwhile; a hundred would show.
    assert!(open_fds() < 100 + 60, "{} descriptors are open", open_fds());
}

#[test]
fn a_silent_peer_meets_the_deadline() {
    let (_peer, stream) = FakePeer::pair();
    let connection = Connection::new(stream);
    connection.set_tick(Duration::from_millis(1));
    let error = connection.exchange(1, 0, &query(), &[]).unwrap_err();
    assert_eq!(error.errno(), Errno::ETIMEDOUT as i32);
}

#[test]
fn too_many_descriptors_are_not_sent() {
    let (_peer, stream) = FakePeer::pair();
    let connection = Connection::new(stream);
    let file = File::open("/dev/null").unwrap();
    let fds = vec![std::os::fd::AsFd::as_fd(&file); MAX_FDS + 1];
    let refused = connection.exchange(1, 0, &query(), &fds);
    assert!(matches!(refused, Err(Error::Invalid(_))));
}

#[test]
fn a_reply_whose_caller_left_goes_to_the_same_request_or_to_none() {
    let (mut peer, stream) = FakePeer::pair();
    let connection = Connection::new(stream);
    connection.set_tick(Duration::from_millis(1));
    let left = connection.exchange(7, 0, &Ping { cookie: 7 }, &[]);
    assert_eq!(left.unwrap_err().errno(), Errno::ETIMEDOUT as i32);
    let pong = |cookie| PingReply {
        cookie,
        uptime_ms: 0,
        served: 0,
    };
    peer.expect::<Ping>();
    peer.reply::<Ping>(7, &pong(70));
    // Nothing is sent again: the peer, which answers no more, has said it.
    let again = connection.exchange(7, 0, &Ping { cookie: 7 }, &[]);
    assert_eq!(again.unwrap().0, pong(70));

    connection
        .exchange(8, 0, &Ping { cookie: 8 }, &[])
        .unwrap_err();
    peer.expect::<Ping>();
    peer.reply::<Ping>(8, &pong(80));
    let daemon = thread::spawn(move || {
        assert_eq!(peer.expect::<Ping>().0.seq, 9);
        peer.reply::<Ping>(9, &pong(90));
    });
    connection.set_tick(Duration::from_secs(60));
    let other = connection.exchange(9, 0, &Ping { cookie: 9 }, &[]);
    assert_eq!(other.unwrap().0, pong(90));
    daemon.join().unwrap();
}

/// VCPU_CHANNELs of so many vCPUs, with numbers from 1.
fn channels(count: u32) -> impl Iterator<Item = Result<(u64, VcpuChannel, OwnedFd), Error>> {
    (0..count).map(|server| {
        let request = VcpuChannel { server, zero: 0 };
        let file = File::open("/dev/null").unwrap();
        Ok((u64::from(server) + 1, request, file.into()))
    })
}

#[test]
fn requests_that_are_sent_ahead_are_bounded_and_each_has_its_descriptor_and_reply() {
    let (mut peer, stream) = FakePeer::pair();
    let connection = Connection::new(stream);
    let daemon = thread::spawn(move || {
        let mut left = 2 * AHEAD + 3;
        while left > 0 {
            // Nothing is answered before as many have come as may.
            let batch = left.min(AHEAD);
            let mut replies = Vec::new();
            for _ in 0..batch {
                let (code, body, fds) = peer.raw().unwrap();
                assert_eq!((code, fds), (VcpuChannel::CODE, 1));
                let reply = reply_body(u64::from_ne_bytes(*body.first_chunk().unwrap()), &());
                for word in [code, 5, reply.len() as u32] {
                    replies.extend_from_slice(&word.to_ne_bytes());
                }
                replies.extend_from_slice(&reply);
            }
            // In pieces that end anywhere.
            for piece in replies.chunks(101) {
                peer.stream.write_all(piece).unwrap();
            }
            left -= batch;
        }
        let (head, _) = peer.expect::<Ping>();
        let pong = PingReply {
            cookie: 0,
            uptime_ms: 0,
            served: 0,
        };
        peer.reply::<Ping>(head.seq, &pong);
    });
    connection.pipeline(channels(2 * AHEAD as u32 + 3)).unwrap();
    let ping = Ping { cookie: 0 };
    connection.exchange(1000, 0, &ping, &[]).unwrap();
    daemon.join().unwrap();
}

#[test]
fn of_requests_that_are_sent_ahead_the_first_that_fails_is_the_error() {
    let refuse = |peer: &mut FakePeer| peer.refuse(VcpuChannel::CODE, 2, 2, "no such vCPU");
    let skip = |peer: &mut FakePeer| peer.reply::<VcpuChannel>(3, &());
    type Answer<'a> = &'a dyn Fn(&mut FakePeer);
    let cases: [(Answer<'_>, &str); 2] =
        [(&refuse, "no such vCPU"), (&skip, "it answers 3, not 2")];
    for (second, text) in cases {
        let (mut peer, stream) = FakePeer::pair();
        let connection = Connection::new(stream);
        peer.reply::<VcpuChannel>(1, &());
        second(&mut peer);
        peer.reply::<VcpuChannel>(3, &());
        let error = connection.pipeline(channels(3)).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
    let (mut peer, stream) = FakePeer::pair();
    let connection = Connection::new(stream);
    for seq in 1..=4 {
        peer.reply::<VcpuChannel>(seq, &());
    }
    // One reply too many.
    let error = connection.pipeline(channels(3)).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[test]
fn a_plain_connection_closes_what_descriptors_come() {
    let (mut peer, stream) = FakePeer::pair();
    let connection = Connection::plain(stream);
    let (mut reading, writing) = std::io::pipe().unwrap();
    let pong = PingReply {
        cookie: 7,
        uptime_ms: 0,
        served: 0,
    };
    let fds = [writing.as_raw_fd(); 3];
    peer.send_with(Ping::CODE, 5, &reply_body(1, &pong), &fds);
    drop(writing);
    let (got, fds) = connection.exchange(1, 0, &Ping { cookie: 7 }, &[]).unwrap();
    assert_eq!((got, fds.len()), (pong, 0));
    // Nobody can write to the pipe any more.
    assert_eq!(std::io::Read::read(&mut reading, &mut [0; 1]).unwrap(), 0);
}
