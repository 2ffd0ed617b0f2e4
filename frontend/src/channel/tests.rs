//! Turns, replays and waiting, against a peer played by hand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use papr_intc_protocol::wire::flag;
use papr_intc_protocol::wire::handshake::{Ping, PingReply};
use papr_intc_protocol::wire::source::{Claim, ClaimReply};

use super::*;
use crate::fake_peer::FakePeer;

/// Sends the sessions that were lost, and counts doubts.
struct Record {
    lost: Mutex<mpsc::Sender<u64>>,
    doubts: AtomicU64,
}

impl Watcher for Record {
    fn lost(&self, session: u64) {
        lock(&self.lost).send(session).unwrap();
    }
    fn doubt(&self, _session: u64) {
        self.doubts.fetch_add(1, Ordering::Relaxed);
    }
}

fn watched() -> (Arc<Channel>, mpsc::Receiver<u64>, Arc<Record>) {
    let (report, reports) = mpsc::channel();
    let record = Arc::new(Record {
        lost: Mutex::new(report),
        doubts: AtomicU64::new(0),
    });
    let channel = Channel::new(record.clone());
    (Arc::new(channel), reports, record)
}

fn channel() -> (Arc<Channel>, mpsc::Receiver<u64>) {
    let (channel, reports, _) = watched();
    (channel, reports)
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

/// A connection whose tick is a millisecond.
fn connect_ticking(channel: &Channel, session: u64) -> FakePeer {
    let (peer, stream) = FakePeer::pair();
    let connection = Connection::new(stream);
    connection.set_tick(Duration::from_millis(1));
    channel.bring_up(Arc::new(connection), session);
    peer
}

fn call_in_a_thread(
    channel: &Arc<Channel>,
    patience: Patience,
) -> thread::JoinHandle<Result<ClaimReply, Error>> {
    let channel = Arc::clone(channel);
    thread::spawn(move || channel.send(patience, &claim(), &[]).map(|a| a.reply))
}

#[test]
fn a_slow_daemon_is_doubted_and_waited_for() {
    let (channel, _reports, record) = watched();
    let mut peer = connect_ticking(&channel, 1);
    let caller = call_in_a_thread(&channel, Patience::Persist);
    let (head, _) = peer.expect::<Claim>();
    while record.doubts.load(Ordering::Relaxed) < 3 {
        thread::yield_now();
    }
    peer.reply::<Claim>(head.seq, &claimed());
    assert_eq!(caller.join().unwrap().unwrap(), claimed());
}

#[test]
fn a_cancelled_request_is_taken_up_by_the_same_one_on_the_same_connection() {
    let (channel, _reports) = channel();
    let mut peer = connect_ticking(&channel, 1);
    let caller = call_in_a_thread(&channel, Patience::Persist);
    let (head, _) = peer.expect::<Claim>();
    channel.set_cancelled(true);
    assert!(matches!(caller.join().unwrap(), Err(Error::Cancelled)));
    // A question about the line does not make it forgotten.
    let line = channel.send(Patience::Now, &Ping { cookie: 1 }, &[]);
    assert!(matches!(line, Err(Error::Lost)));
    channel.set_cancelled(false);
    let caller = call_in_a_thread(&channel, Patience::Persist);
    peer.reply::<Claim>(head.seq, &claimed());
    assert_eq!(caller.join().unwrap().unwrap(), claimed());
    peer.stream.set_nonblocking(true).unwrap();
    let more = std::io::Read::read(&mut peer.stream, &mut [0]);
    assert!(more.is_err(), "it was sent twice");
}

#[test]
fn a_request_that_waited_too_long_goes_to_the_next_daemon_with_its_number() {
    let (channel, _reports) = channel();
    let mut peer = connect_ticking(&channel, 1);
    let soon = Patience::Until(Instant::now() + Duration::from_millis(5));
    let caller = call_in_a_thread(&channel, soon);
    let (head, _) = peer.expect::<Claim>();
    assert!(matches!(caller.join().unwrap(), Err(Error::TimedOut)));
    channel.down(1);
    // Too late again: the daemon is away.
    let late = channel.send(Patience::Until(Instant::now()), &claim(), &[]);
    assert!(matches!(late.err(), Some(Error::TimedOut)));
    let mut peer = connect_ticking(&channel, 2);
    let caller = call_in_a_thread(&channel, Patience::Persist);
    let (again, _) = peer.expect::<Claim>();
    assert_eq!((again.seq, again.flags), (head.seq, REPLAY));
    peer.reply::<Claim>(again.seq, &claimed());
    caller.join().unwrap().unwrap();
}

#[test]
fn another_request_abandons_the_unanswered_one() {
    let (channel, _reports) = channel();
    let mut peer = connect_ticking(&channel, 1);
    channel.set_cancelled(true);
    let caller = call_in_a_thread(&channel, Patience::Persist);
    let (head, _) = peer.expect::<Claim>();
    caller.join().unwrap().unwrap_err();
    channel.set_cancelled(false);
    let other = Claim {
        first: 0x1300,
        ..claim()
    };
    let second = thread::spawn({
        let (channel, other) = (Arc::clone(&channel), other.clone());
        move || channel.call(&other, &[]).map(|(r, _)| r)
    });
    peer.reply::<Claim>(head.seq, &claimed());
    let (next, got) = peer.expect::<Claim>();
    assert_eq!((next.flags, got), (0, other));
    let reply = ClaimReply {
        first: 0x1300,
        zero: 0,
    };
    peer.reply::<Claim>(next.seq, &reply);
    assert_eq!(second.join().unwrap().unwrap(), reply);
}

#[test]
fn no_request_waits_for_a_daemon_while_its_channel_is_cancelled() {
    let (channel, _reports) = channel();
    let caller = call_in_a_thread(&channel, Patience::Persist);
    channel.set_cancelled(true);
    assert!(matches!(caller.join().unwrap(), Err(Error::Cancelled)));
    let again = channel.call(&claim(), &[]);
    assert!(matches!(again, Err(Error::Cancelled)));
    channel.set_cancelled(false);
    // Never sent: the next one is a new one.
    let mut peer = connect_ticking(&channel, 1);
    let caller = call_in_a_thread(&channel, Patience::Persist);
    let (head, _) = peer.expect::<Claim>();
    assert_eq!(head.flags, 0);
    peer.reply::<Claim>(head.seq, &claimed());
    caller.join().unwrap().unwrap();
}

/// GET_FEATURES as a standard request on a channel of its own thread.
fn features_in_a_thread(channel: &Arc<Channel>) -> thread::JoinHandle<Result<Vec<u8>, Error>> {
    let channel = Arc::clone(channel);
    thread::spawn(move || {
        channel.standard(|connection, go_on| {
            connection.standard("GET_FEATURES", 1, 0, &[], &[], go_on)
        })
    })
}

#[test]
fn a_standard_request_waits_for_what_is_owed_and_leaves_the_unanswered_one() {
    let (channel, _reports) = channel();
    let mut peer = connect_ticking(&channel, 1);
    channel.set_cancelled(true);
    let caller = call_in_a_thread(&channel, Patience::Persist);
    let (head, _) = peer.expect::<Claim>();
    caller.join().unwrap().unwrap_err();
    channel.set_cancelled(false);
    let standard = features_in_a_thread(&channel);
    peer.reply::<Claim>(head.seq, &claimed());
    assert_eq!(peer.raw().unwrap().0, 1);
    peer.send(1, flag::VERSION | flag::REPLY, &[7; 8]);
    assert_eq!(standard.join().unwrap().unwrap(), [7; 8]);
    // Its caller comes again: the same number, to be answered from the record.
    let caller = call_in_a_thread(&channel, Patience::Persist);
    let (again, _) = peer.expect::<Claim>();
    assert_eq!((again.seq, again.flags), (head.seq, REPLAY));
    peer.reply::<Claim>(again.seq, &claimed());
    caller.join().unwrap().unwrap();
}

#[test]
fn a_standard_request_whose_daemon_goes_is_lost_with_its_session() {
    let (channel, reports) = channel();
    assert!(matches!(
        features_in_a_thread(&channel).join().unwrap(),
        Err(Error::Lost)
    ));
    let mut peer = connect(&channel, 1);
    let standard = features_in_a_thread(&channel);
    assert_eq!(peer.raw().unwrap().0, 1);
    drop(peer);
    assert!(matches!(standard.join().unwrap(), Err(Error::Lost)));
    assert_eq!(reports.recv().unwrap(), 1);
    assert!(!channel.is_up());
}
