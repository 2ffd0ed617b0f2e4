//! Turns, replays and waiting, against a peer played by hand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use papr_intc_protocol::wire::handshake::{Ping, PingReply};
use papr_intc_protocol::wire::source::{Claim, ClaimReply};

use super::*;
use crate::fake_peer::FakePeer;

fn channel() -> (Arc<Channel>, mpsc::Receiver<u64>) {
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let channel = Channel::new(Arc::new(move |session| {
        lock(&report).send(session).unwrap();
    }));
    (Arc::new(channel), reports)
}

fn connect(channel: &Channel, session: u64) -> FakePeer {
    let (peer, stream) = FakePeer::pair();
    channel.bring_up(Arc::new(Connection::new(stream)), session);
    peer
}

fn claim() -> Claim {
    Claim {
        first: 0x1200,
        count: 1,
        align: 1,
        flags: 0,
        low: 0,
        high: 0,
    }
}

fn claimed() -> ClaimReply {
    ClaimReply {
        first: 0x1200,
        zero: 0,
    }
}

#[test]
fn a_request_that_the_daemon_took_with_it_is_sent_again_with_its_number() {
    let (channel, reports) = channel();
    let mut peer = connect(&channel, 1);
    let caller = thread::spawn({
        let channel = Arc::clone(&channel);
        move || channel.call(&claim(), &[]).map(|(r, _)| r)
    });
    let (first, _) = peer.expect::<Claim>();
    assert_eq!(first.flags, 0);
    drop(peer);
    assert_eq!(reports.recv().unwrap(), 1);
    let mut peer = connect(&channel, 2);
    let (again, request) = peer.expect::<Claim>();
    assert_eq!((again.seq, again.flags), (first.seq, REPLAY));
    assert_eq!(request, claim());
    peer.reply::<Claim>(again.seq, &claimed());
    assert_eq!(caller.join().unwrap().unwrap(), claimed());
}

#[test]
fn a_refusal_is_an_answer_and_the_next_number_is_higher() {
    let (channel, _reports) = channel();
    let mut peer = connect(&channel, 1);
    let daemon = thread::spawn(move || {
        let (head, _) = peer.expect::<Claim>();
        peer.refuse(Claim::CODE, head.seq, 16, "0x1200 is taken");
        let (next, _) = peer.expect::<Claim>();
        assert!(next.seq > head.seq && next.flags == 0);
        peer.reply::<Claim>(next.seq, &claimed());
    });
    let refused = channel.call(&claim(), &[]).unwrap_err();
    assert_eq!(refused.errno(), 16);
    assert_eq!(refused.to_string(), "CLAIM: 0x1200 is taken (errno 16)");
    assert_eq!(channel.call(&claim(), &[]).unwrap().0, claimed());
    daemon.join().unwrap();
}

#[test]
fn shutting_wakes_a_caller_that_waits_for_a_daemon_and_one_that_waits_for_its_turn() {
    let (channel, _reports) = channel();
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let channel = Arc::clone(&channel);
            thread::spawn(move || channel.call(&claim(), &[]).map(|_| ()))
        })
        .collect();
    channel.shut(Shut::ShutDown);
    for caller in callers {
        assert!(matches!(caller.join().unwrap(), Err(Error::ShutDown)));
    }
}

#[test]
fn shutting_wakes_a_caller_in_the_middle_of_a_request() {
    let (channel, _reports) = channel();
    let mut peer = connect(&channel, 1);
    let caller = thread::spawn({
        let channel = Arc::clone(&channel);
        move || channel.call(&claim(), &[]).map(|_| ())
    });
    peer.expect::<Claim>();
    channel.shut(Shut::ShutDown);
    assert!(matches!(caller.join().unwrap(), Err(Error::ShutDown)));
}

#[test]
fn a_caller_bound_to_its_session_does_not_queue_behind_one_that_waits_for_the_next_daemon() {
    let (channel, reports) = channel();
    let mut peer = connect(&channel, 1);
    let patient = thread::spawn({
        let channel = Arc::clone(&channel);
        move || channel.call(&claim(), &[]).map(|(r, _)| r)
    });
    peer.expect::<Claim>();
    // Queues behind the patient caller, which has the turn.
    let bound = thread::spawn({
        let channel = Arc::clone(&channel);
        move || {
            channel
                .send(Patience::ThisSession, &claim(), &[])
                .map(|_| ())
        }
    });
    drop(peer);
    reports.recv().unwrap();
    assert!(matches!(bound.join().unwrap(), Err(Error::Lost)));
    let mut peer = connect(&channel, 2);
    let (head, _) = peer.expect::<Claim>();
    assert_eq!(head.flags, REPLAY);
    peer.reply::<Claim>(head.seq, &claimed());
    patient.join().unwrap().unwrap();
}

#[test]
fn a_malformed_reply_ends_the_session_and_the_request_goes_to_the_next() {
    let malformed: [fn(&mut FakePeer, u64); 5] = [
        // Another request's number.
        |p, seq| p.reply::<Claim>(seq + 1, &claimed()),
        // Another request's code.
        |p, seq| {
            p.reply::<Ping>(
                seq,
                &PingReply {
                    cookie: 0,
                    uptime_ms: 0,
                    served: 0,
                },
            );
        },
        // Not a reply.
        |p, _| p.send(Claim::CODE, 1, &[0; 24]),
        // Too short for its payload.
        |p, seq| {
            let mut body = seq.to_ne_bytes().to_vec();
            body.extend_from_slice(&[0; 8]);
            p.send(Claim::CODE, 5, &body);
        },
        // Two replies.
        |p, seq| {
            let body = papr_intc_protocol::wire::reply_body(seq, &claimed());
            let mut twice = Vec::new();
            for _ in 0..2 {
                for word in [Claim::CODE, 5, body.len() as u32] {
                    twice.extend_from_slice(&word.to_ne_bytes());
                }
                twice.extend_from_slice(&body);
            }
            std::io::Write::write_all(&mut p.stream, &twice).unwrap();
        },
    ];
    let (channel, reports) = channel();
    for (i, answer) in malformed.into_iter().enumerate() {
        let session = i as u64 * 2 + 1;
        let mut peer = connect(&channel, session);
        let caller = thread::spawn({
            let channel = Arc::clone(&channel);
            move || channel.call(&claim(), &[]).map(|_| ())
        });
        let (head, _) = peer.expect::<Claim>();
        answer(&mut peer, head.seq);
        assert_eq!(reports.recv().unwrap(), session, "answer {i}");
        let mut next = connect(&channel, session + 1);
        let (head, _) = next.expect::<Claim>();
        next.reply::<Claim>(head.seq, &claimed());
        caller.join().unwrap().unwrap();
        channel.down(u64::MAX);
    }
}

#[test]
fn requests_of_many_threads_are_outstanding_one_at_a_time_in_rising_order() {
    let (channel, _reports) = channel();
    let mut peer = connect(&channel, 1);
    let daemon = thread::spawn(move || {
        let (mut last, mut served) = (0, 0);
        while let Some(got) = peer.request() {
            assert!(got.head.seq > last);
            last = got.head.seq;
            served += 1;
            peer.stream.set_nonblocking(true).unwrap();
            let more = std::io::Read::read(&mut peer.stream, &mut [0]);
            assert!(more.is_err(), "two requests are outstanding");
            peer.stream.set_nonblocking(false).unwrap();
            peer.reply::<Claim>(got.head.seq, &claimed());
        }
        served
    });
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    channel.call(&claim(), &[]).unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    channel.shut(Shut::ShutDown);
    assert_eq!(daemon.join().unwrap(), done.into_inner());
}

#[test]
fn numbers_of_a_later_channel_are_above_those_of_an_earlier_one() {
    let (first, _reports) = channel();
    let used = (0..10).map(|_| first.next_seq()).max().unwrap();
    let (second, _reports) = channel();
    assert!(second.next_seq() > used);
}
