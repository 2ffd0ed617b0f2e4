//! What the framing promises, over a real socketpair. Descriptors are told apart by inode, so that tests running beside
//! each other in one process do not see each other's.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use nix::sys::stat::fstat;
use proptest::prelude::*;

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

fn memfd() -> OwnedFd {
    memfd_create("framing-test", MFdFlags::MFD_CLOEXEC).unwrap()
}

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).unwrap().st_ino
}

/// Descriptors of this process that refer to the same file as `fd`.
fn open_count(fd: impl AsFd) -> usize {
    let wanted = inode(fd);
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| std::fs::metadata(entry.unwrap().path()).ok())
        .filter(|meta| std::os::unix::fs::MetadataExt::ino(meta) == wanted)
        .count()
}

fn frame(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(request, flags, u32::try_from(body.len()).unwrap()).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// One sendmsg, as a peer that is not ours would do it.
fn raw_send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let record = [ControlMessage::ScmRights(&numbers)];
    let control = if fds.is_empty() { &[][..] } else { &record[..] };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent.unwrap(), bytes.len());
}

fn ready(progress: Result<Progress, ReceiveError>) -> RawMessage {
    match progress {
        Ok(Progress::Ready(message)) => message,
        other => panic!("no message but {other:?}"),
    }
}

fn assert_pending(progress: Result<Progress, ReceiveError>) {
    assert!(matches!(progress, Ok(Progress::Pending)), "{progress:?}");
}

#[test]
fn a_message_arrives_as_it_was_sent() {
    let (ours, theirs) = pair();
    let file = memfd();
    send_message(
        &theirs,
        0x1001,
        FLAG_NEED_REPLY,
        b"hello",
        &[file.as_fd()],
        LONG,
    )
    .unwrap();

    let message = ready(Reader::new().poll_message(&ours));

    assert_eq!(
        (message.request, message.flags),
        (0x1001, FLAG_VERSION | FLAG_NEED_REPLY)
    );
    assert_eq!(message.body, b"hello");
    assert!(message.needs_reply() && !message.is_reply());
    assert_eq!(
        message.fds.iter().map(inode).collect::<Vec<_>>(),
        [inode(&file)]
    );
}

#[test]
fn received_descriptors_are_closed_on_exec() {
    let (ours, theirs) = pair();
    send_message(&theirs, 0x1001, 0, &[], &[memfd().as_fd()], LONG).unwrap();

    let message = ready(Reader::new().poll_message(&ours));

    let flags = nix::fcntl::fcntl(&message.fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
}

#[test]
fn a_dripping_peer_never_blocks_the_reader() {
    let (ours, mut theirs) = pair();
    let mut reader = Reader::new();
    let bytes = frame(0x1002, 0, b"drip by drip");
    assert_pending(reader.poll_message(&ours));
    assert!(!reader.mid_message());

    for byte in &bytes[..bytes.len() - 1] {
        theirs.write_all(&[*byte]).unwrap();
        assert_pending(reader.poll_message(&ours));
        assert!(reader.mid_message());
    }
    theirs.write_all(&bytes[bytes.len() - 1..]).unwrap();

    assert_eq!(ready(reader.poll_message(&ours)).body, b"drip by drip");
    assert!(!reader.mid_message());
}

#[test]
fn one_poll_makes_a_bounded_number_of_reads() {
    let (ours, theirs) = pair();
    let file = memfd();
    let bytes = frame(0x1002, 0, &[7; 28]);
    // A descriptor ends a read, so each of these 40 bytes takes one of its own.
    for byte in &bytes {
        raw_send(&theirs, &[*byte], &[file.as_fd()]);
    }
    let mut reader = Reader::new();

    assert_pending(reader.poll_message(&ours));
    assert_pending(reader.poll_message(&ours));
    let message = ready(reader.poll_message(&ours));

    assert_eq!((message.body, message.fds.len()), (vec![7; 28], 40));
}

#[test]
fn messages_in_one_write_come_out_one_by_one() {
    let (ours, mut theirs) = pair();
    let bytes = [
        frame(1, 0, &[]),
        frame(0x1003, 0, b"two"),
        frame(5, 0, b"three"),
    ]
    .concat();
    theirs.write_all(&bytes).unwrap();
    let mut reader = Reader::new();

    let messages: Vec<RawMessage> = (0..3).map(|_| ready(reader.poll_message(&ours))).collect();

    assert_eq!(
        messages.iter().map(|m| m.request).collect::<Vec<_>>(),
        [1, 0x1003, 5]
    );
    assert_eq!(messages[0].body, b"");
    assert_eq!(messages[1].body, b"two");
    assert_eq!(messages[2].body, b"three");
    assert_pending(reader.poll_message(&ours));
}

#[test]
fn descriptors_stay_with_their_message_among_others() {
    let (ours, theirs) = pair();
    let (first, second) = (memfd(), memfd());
    raw_send(&theirs, &frame(1, 0, b"none"), &[]);
    raw_send(&theirs, &frame(2, 0, b"first"), &[first.as_fd()]);
    raw_send(&theirs, &frame(3, 0, b"none"), &[]);
    raw_send(&theirs, &frame(4, 0, b"second"), &[second.as_fd()]);
    let mut reader = Reader::new();

    let got: Vec<Vec<u64>> = (0..4)
        .map(|_| {
            ready(reader.poll_message(&ours))
                .fds
                .iter()
                .map(inode)
                .collect()
        })
        .collect();

    assert_eq!(
        got,
        [vec![], vec![inode(&first)], vec![], vec![inode(&second)]]
    );
}

#[test]
fn descriptors_may_come_with_the_body() {
    let (ours, theirs) = pair();
    let (first, second) = (memfd(), memfd());
    let bytes = frame(0x1004, 0, b"body");
    raw_send(&theirs, &bytes[..HEADER_LEN], &[first.as_fd()]);
    raw_send(&theirs, &bytes[HEADER_LEN..], &[second.as_fd()]);

    let message = ready(Reader::new().poll_message(&ours));

    let got: Vec<u64> = message.fds.iter().map(inode).collect();
    assert_eq!(got, [inode(&first), inode(&second)]);
}

#[test]
fn thirty_three_and_253_descriptors_arrive_whole() {
    let (ours, theirs) = pair();
    let file = memfd();
    let mut reader = Reader::new();
    for count in [33, MAX_FDS] {
        send_message(&theirs, 0x1022, 0, b"x", &vec![file.as_fd(); count], LONG).unwrap();
        assert_eq!(ready(reader.poll_message(&ours)).fds.len(), count);
    }
    assert_eq!(open_count(&file), 1);
}

#[test]
fn the_254th_descriptor_of_a_message_is_refused_and_all_are_closed() {
    let (ours, theirs) = pair();
    let file = memfd();
    let bytes = frame(0x1022, 0, b"body");
    raw_send(&theirs, &bytes[..HEADER_LEN], &[file.as_fd(); 200]);
    raw_send(&theirs, &bytes[HEADER_LEN..], &[file.as_fd(); 54]);
    let mut reader = Reader::new();

    let error = reader.poll_message(&ours).unwrap_err();

    assert!(matches!(error, ReceiveError::TooManyFds), "{error:?}");
    assert_eq!(open_count(&file), 1);
}

#[test]
fn sending_254_descriptors_is_refused_before_anything_leaves() {
    let (ours, theirs) = pair();
    let file = memfd();
    let error = send_message(&theirs, 0x1022, 0, &[], &[file.as_fd(); 254], LONG).unwrap_err();
    assert!(matches!(error, SendError::TooManyFds(254)), "{error:?}");
    assert_pending(Reader::new().poll_message(&ours));
}

#[test]
fn a_length_over_the_limit_is_refused_before_the_body_is_read() {
    for (request, size) in [
        (0x1000, u32::MAX),
        (0x1000, 65_537),
        (0xfff, 4_097),
        (5, u32::MAX),
    ] {
        let (ours, mut theirs) = pair();
        theirs.write_all(&header(request, 0, size)).unwrap();
        theirs.write_all(b"not to be read").unwrap();
        let mut reader = Reader::new();

        let error = reader.poll_message(&ours).unwrap_err();

        assert!(matches!(error, ReceiveError::Oversize { .. }), "{error:?}");
        let mut rest = [0; 14];
        std::io::Read::read_exact(&mut &ours, &mut rest).unwrap();
        assert_eq!(&rest, b"not to be read");
        assert!(matches!(reader.poll_message(&ours), Ok(Progress::Closed)));
    }
}

#[test]
fn bodies_at_the_limit_are_taken() {
    for (request, size) in [(0x1000, MAX_PAPR_BODY), (0xfff, MAX_STANDARD_BODY)] {
        let (ours, theirs) = pair();
        let sender = std::thread::spawn(move || {
            send_message(&theirs, request, 0, &vec![0x5a; size], &[], LONG).unwrap();
        });
        let message = recv_message(&ours, Some(LONG)).unwrap().unwrap();
        sender.join().unwrap();
        assert_eq!(message.body, vec![0x5a; size]);
    }
}

#[test]
fn sending_a_body_over_the_limit_is_refused_before_anything_leaves() {
    let (ours, theirs) = pair();
    let error = send_message(&theirs, 1, 0, &[0; 4097], &[], LONG).unwrap_err();
    assert!(matches!(error, SendError::Oversize(4097)), "{error:?}");
    assert_pending(Reader::new().poll_message(&ours));
}

#[test]
fn another_framing_version_is_refused() {
    for flags in [0, 2, 3] {
        let (ours, mut theirs) = pair();
        let mut bytes = frame(0x1000, 0, &[]);
        bytes[4..8].copy_from_slice(&u32::to_ne_bytes(flags));
        theirs.write_all(&bytes).unwrap();
        let error = Reader::new().poll_message(&ours).unwrap_err();
        assert!(matches!(error, ReceiveError::Version { version, .. } if version == flags));
    }
}

#[test]
fn a_hang_up_between_messages_is_an_end_and_inside_one_an_error() {
    let bytes = frame(0x1000, 0, b"body");
    for sent in 0..=bytes.len() {
        let (ours, mut theirs) = pair();
        theirs.write_all(&bytes[..sent]).unwrap();
        drop(theirs);
        let mut reader = Reader::new();
        let mut last = reader.poll_message(&ours);
        if sent == bytes.len() {
            assert_eq!(ready(last).body, b"body");
            last = reader.poll_message(&ours);
        }
        match last {
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
fn the_descriptors_of_an_unfinished_message_are_closed_when_the_peer_hangs_up() {
    let (ours, theirs) = pair();
    let file = memfd();
    raw_send(
        &theirs,
        &frame(0x1000, 0, b"body")[..13],
        &[file.as_fd(); 5],
    );
    drop(theirs);
    let mut reader = Reader::new();
    reader.poll_message(&ours).unwrap_err();
    assert_eq!(open_count(&file), 1);
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (ours, theirs) = pair();
    let within = Duration::from_millis(20);
    let error = loop {
        if let Err(error) = send_message(&theirs, 0x1000, 0, &[0; MAX_PAPR_BODY], &[], within) {
            break error;
        }
    };
    assert!(matches!(error, SendError::TimedOut), "{error:?}");
    drop(ours);
}

#[test]
fn sending_to_a_peer_that_has_gone_is_an_error_and_no_signal() {
    let (ours, theirs) = pair();
    drop(ours);
    let error = send_message(&theirs, 0x1000, 0, &[], &[], LONG).unwrap_err();
    assert!(
        matches!(error, SendError::Socket(Errno::EPIPE)),
        "{error:?}"
    );
}

#[test]
fn a_message_larger_than_the_socket_buffer_keeps_its_descriptors_once() {
    let (ours, theirs) = pair();
    setsockopt(&theirs, sockopt::SndBuf, &4096).unwrap();
    let file = memfd();
    let body: Vec<u8> = (0..MAX_PAPR_BODY).map(|i| (i % 251) as u8).collect();
    let sent = body.clone();
    let theirs_file = file.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        send_message(&theirs, 0x1000, 0, &sent, &[theirs_file.as_fd(); 3], LONG).unwrap();
    });

    let message = recv_message(&ours, Some(LONG)).unwrap().unwrap();

    sender.join().unwrap();
    assert_eq!((message.body, message.fds.len()), (body, 3));
}

#[test]
fn waiting_for_a_message_ends_with_its_time() {
    let (ours, mut theirs) = pair();
    theirs.write_all(&frame(0x1000, 0, b"body")[..14]).unwrap();
    let error = recv_message(&ours, Some(Duration::from_millis(5))).unwrap_err();
    assert!(matches!(error, ReceiveError::TimedOut), "{error:?}");
}

#[test]
fn control_records_are_parsed_as_the_kernel_writes_them() {
    let word = size_of::<usize>();
    let start = (word + 8).next_multiple_of(word);
    let record = |level: i32, kind: i32, numbers: &[i32]| {
        let mut bytes = vec![0; (start + 4 * numbers.len()).next_multiple_of(word)];
        bytes[..word].copy_from_slice(&(start + 4 * numbers.len()).to_ne_bytes());
        bytes[word..word + 4].copy_from_slice(&level.to_ne_bytes());
        bytes[word + 4..word + 8].copy_from_slice(&kind.to_ne_bytes());
        for (i, number) in numbers.iter().enumerate() {
            bytes[start + 4 * i..][..4].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    };
    let all = |bytes: &[u8]| rights(bytes).collect::<Vec<_>>();
    let fds = |numbers: &[i32]| record(libc::SOL_SOCKET, libc::SCM_RIGHTS, numbers);

    assert!(all(&[]).is_empty());
    assert!(all(&[0; 64]).is_empty());
    assert_eq!(all(&fds(&[5, 6, 7])), [5, 6, 7]);
    assert_eq!(all(&[fds(&[5]), vec![0; 64]].concat()), [5]);
    assert_eq!(
        all(&[record(libc::SOL_SOCKET, 99, &[1]), fds(&[8, 9])].concat()),
        [8, 9]
    );
    // A length beyond the buffer, or too short to be one, ends the list.
    let mut broken = fds(&[5]);
    broken[..word].copy_from_slice(&usize::MAX.to_ne_bytes());
    assert!(all(&broken).is_empty());
    broken[..word].copy_from_slice(&1usize.to_ne_bytes());
    assert!(all(&broken).is_empty());
}

/// A message and where it is cut for sending; `fds` are indices of files, sent with piece `with`.
#[derive(Clone, Debug)]
struct Plan {
    request: u32,
    body: Vec<u8>,
    fds: Vec<usize>,
    cuts: Vec<prop::sample::Index>,
    with: prop::sample::Index,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        prop_oneof![1u32..45, 0x1000u32..0x1050],
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(0usize..4, 0..6),
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(request, body, fds, cuts, with)| Plan {
            request,
            body,
            fds,
            cuts,
            with,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_sequence_in_any_pieces_arrives_equal(
        plans in prop::collection::vec(plan(), 1..8),
        polls in prop::collection::vec(any::<bool>(), 32),
    ) {
        let (ours, theirs) = pair();
        let files: Vec<File> = (0..4).map(|_| File::from(memfd())).collect();
        let mut polls = polls.into_iter().cycle();
        let mut reader = Reader::new();
        let mut got = Vec::new();
        for plan in &plans {
            let bytes = frame(plan.request, 0, &plan.body);
            let mut cuts: Vec<usize> = plan.cuts.iter().map(|c| c.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            cuts.dedup();
            let carrier = plan.with.index(cuts.len() - 1);
            for (i, piece) in cuts.windows(2).enumerate() {
                let fds: Vec<BorrowedFd<'_>> = plan.fds.iter().map(|f| files[*f].as_fd()).collect();
                let fds = if i == carrier { &fds[..] } else { &[] };
                raw_send(&theirs, &bytes[piece[0]..piece[1]], fds);
                if polls.next() == Some(true)
                    && let Progress::Ready(message) = reader.poll_message(&ours).unwrap()
                {
                    got.push(message);
                }
            }
        }
        while let Progress::Ready(message) = reader.poll_message(&ours).unwrap() {
            got.push(message);
        }
        prop_assert_eq!(got.len(), plans.len());
        for (message, plan) in got.iter().zip(&plans) {
            prop_assert_eq!(message.request, plan.request);
            prop_assert_eq!(&message.body, &plan.body);
            let want: Vec<u64> = plan.fds.iter().map(|f| inode(&files[*f])).collect();
            prop_assert_eq!(message.fds.iter().map(inode).collect::<Vec<_>>(), want);
        }
        drop(got);
        for file in &files {
            prop_assert_eq!(open_count(file), 1);
        }
    }
}
