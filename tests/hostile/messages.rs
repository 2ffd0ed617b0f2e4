//! Messages that are wrong in form: refused with EPROTO and no effect, or, where the stream itself is
//! out of step, answered by the end of the connection.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::libc;
use papr_intc::server::socket::{header, recv_message};
use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::*;
use papr_intc_protocol::wire::{
    MAX_BODY, MAX_STANDARD_BODY, REQUESTS, RESERVED, Request, RequestHead, Rest, Text, Wire,
};

use crate::harness::client::{Client, errno, hello};
use crate::harness::guest::*;
use crate::harness::{Daemon, LONG};
use crate::{Random, leaks_nothing, rounds};

const LISN: u32 = 0x1300;

/// A request that is right in form, and what of it can be cut.
struct Sample {
    code: u32,
    name: &'static str,
    payload: Vec<u8>,
    /// Bytes before a text or blob that may have any length.
    fixed: usize,
    /// The tail may have any length.
    open: bool,
    /// Descriptors that it takes.
    fds: usize,
}

fn sample<R: Request>(request: &R) -> Sample {
    let payload = request.to_bytes();
    Sample {
        code: R::CODE,
        name: R::NAME,
        fixed: payload.len(),
        payload,
        open: false,
        fds: 0,
    }
}

fn with_tail<R: Request>(request: &R, tail: usize) -> Sample {
    let whole = sample(request);
    Sample {
        fixed: whole.fixed - tail,
        open: true,
        ..whole
    }
}

fn with_fds<R: Request>(request: &R, fds: usize) -> Sample {
    Sample {
        fds,
        ..sample(request)
    }
}

/// One of each, in the order of the table in SPEC.md.
fn samples(guest: &Guest) -> Vec<Sample> {
    let (server, zero) = (1, 0);
    let item = IrqfdItem {
        lisn: LISN,
        kind: irqfd_kind::EDGE,
        input: 0,
        zero,
    };
    let shm = guest.shm_request();
    let query = Query {
        what: query::STATUS,
        zero,
        cursor: 0,
        argument: 0,
    };
    let words = guest.machine.to_words();
    let filter = Text("error".into());
    vec![
        with_tail(&hello(), 5),
        sample(&SetMachine { words }),
        sample(&GetShm {}),
        with_fds(&shm, 1),
        with_fds(&CheckShm { shm: shm.clone() }, 1),
        sample(&Start {
            executor: 2,
            flags: 0,
        }),
        sample(&Goodbye {}),
        sample(&Ping { cookie: 1 }),
        sample(&Last { channel: 0, zero }),
        sample(&query),
        with_fds(
            &VcpuConnect {
                servers: vec![1, 2],
            },
            2,
        ),
        sample(&VcpuDisconnect { server, zero }),
        sample(&VcpuReset { server, zero }),
        with_fds(&VcpuChannel { server, zero }, 1),
        sample(&VcpuLine { server, zero }),
        sample(&claim(LISN + 1, 1, claim_flag::MSI)),
        sample(&Free {
            first: LISN,
            count: 1,
        }),
        with_fds(&SetIrqfds { items: vec![item] }, 1),
        sample(&ClearIrqfds { items: vec![item] }),
        sample(&SetLevel {
            lisn: LISN,
            level: 1,
        }),
        sample(&Trigger { lisn: LISN, zero }),
        sample(&Sync { lisn: LISN, zero }),
        sample(&hcall(1, opcode::H_CPPR, &[0xff])),
        sample(&rtas(3, &[LISN], 1)),
        with_tail(&cas(1, 0x40), 27),
        sample(&tima_store(1, 0x2_0011, 1, 0xff)),
        sample(&GetFdt { mode: 0, zero }),
        sample(&MachineReset { flags: 0, zero }),
        sample(&Quiesce {
            deadline_ms: 1,
            zero,
        }),
        sample(&Resume { executor: 0, zero }),
        sample(&StateHeader { compat: 0, zero }),
        with_tail(
            &StateCheck {
                head: Rest(vec![0; 9]),
            },
            9,
        ),
        sample(&StateRead {
            offset: 0,
            length: 100,
            zero,
        }),
        sample(&StateAbort {}),
        with_tail(&SetLogLevel { filter }, 5),
        with_tail(
            &StateWrite {
                offset: 0,
                bytes: Rest(vec![0; 9]),
            },
            9,
        ),
        sample(&StateLoad { total: 9 }),
    ]
}

fn booted() -> (Daemon, Guest) {
    let (daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    (daemon, guest)
}

#[test]
fn the_samples_are_all_requests_there_are() {
    let (_daemon, guest) = booted();
    let ours: Vec<(u32, &str)> = samples(&guest).iter().map(|s| (s.code, s.name)).collect();
    assert_eq!(ours, REQUESTS);
}

#[test]
fn a_body_that_is_cut_or_too_long_is_refused_without_effect() {
    let (daemon, guest) = booted();
    let (before, fds) = (guest.words(), daemon.fds());
    let spare: Vec<_> = (0..2).map(|_| eventfd()).collect();
    for s in samples(&guest) {
        let fds: Vec<BorrowedFd<'_>> = spare[..s.fds].iter().map(AsFd::as_fd).collect();
        let refused = |payload: &[u8], what: &str| {
            let answer = guest.main.ask(s.code, payload, &fds);
            assert_eq!(errno(answer), libc::EPROTO, "{} {what}", s.name);
        };
        for cut in 0..s.fixed {
            refused(&s.payload[..cut], &format!("cut at {cut}"));
        }
        for more in [1, 4, 8, 4096, MAX_BODY - 16 - s.payload.len()] {
            if !s.open {
                let long = [&s.payload[..], &vec![0; more]].concat();
                refused(&long, &format!("with {more} bytes more"));
            }
        }
        guest.main.ping();
    }
    for tail in [&[0xff][..], &[b'x', 0xc0, 0x80], &[0xe2, 0x82]] {
        let name = [&hello().to_bytes(), tail].concat();
        assert_eq!(errno(guest.main.ask(Hello::CODE, &name, &[])), libc::EPROTO);
        let answer = guest.main.ask(SetLogLevel::CODE, tail, &[]);
        assert_eq!(errno(answer), libc::EPROTO);
    }
    // Lists that promise more than they hold.
    for code in [VcpuConnect::CODE, SetIrqfds::CODE, ClearIrqfds::CODE] {
        for (count, zero) in [(u32::MAX, 0), (2, 0), (1, 1), (0, 1)] {
            let mut list = u32::to_bytes(&count);
            zero.put(&mut list);
            list.extend([0; 4]);
            assert_eq!(errno(guest.main.ask(code, &list, &[])), libc::EPROTO);
        }
    }
    assert!(guest.words() == before, "a refused request had an effect");
    assert_eq!(daemon.fds(), fds);
}

#[test]
fn a_head_that_is_wrong_is_refused_without_effect() {
    let (_daemon, guest) = booted();
    let before = guest.words();
    for s in samples(&guest) {
        for (seq, flags, zero) in [(0, 0, 0), (9, 2, 0), (9, 1 << 31, 0), (9, 0, 1)] {
            let mut body = RequestHead { seq, flags, zero }.to_bytes();
            body.extend_from_slice(&s.payload);
            guest.main.send(s.code, 0, &body, &[]);
            expect_status(&guest.main, s.code, seq, libc::EPROTO);
        }
        // Not even a head.
        for len in 0..16 {
            guest.main.send(s.code, 0, &vec![0xff; len], &[]);
            let seq = if len < 8 { 0 } else { u64::MAX };
            expect_status(&guest.main, s.code, seq, libc::EPROTO);
        }
    }
    guest.main.ping();
    assert!(guest.words() == before);
}

fn expect_status(client: &Client, code: u32, seq: u64, errno: i32) {
    let reply = client.receive().expect("the daemon hung up");
    assert_eq!(reply.request, code);
    let (head, text) = papr_intc_protocol::wire::split_reply(&reply.body).unwrap();
    assert_eq!((head.seq, head.status), (seq, -errno));
    assert!(!text.is_empty());
}

#[test]
fn a_wrong_number_of_descriptors_is_refused_without_effect() {
    let (daemon, guest) = booted();
    let spare: Vec<_> = (0..253).map(|_| eventfd()).collect();
    let all = || {
        for s in samples(&guest) {
            for count in [0, 1, 2, 3, 253] {
                // VCPU_CONNECT takes none, too.
                let good = count == s.fds || (s.code == VcpuConnect::CODE && count == 0);
                if good {
                    continue;
                }
                let fds: Vec<BorrowedFd<'_>> = spare[..count].iter().map(AsFd::as_fd).collect();
                let answer = guest.main.ask(s.code, &s.payload, &fds);
                assert_eq!(errno(answer), libc::EPROTO, "{} with {count}", s.name);
            }
        }
        for (code, _) in RESERVED {
            let fds: Vec<BorrowedFd<'_>> = spare.iter().map(AsFd::as_fd).collect();
            let refused = errno(guest.main.ask(*code, &[], &fds));
            assert!([libc::EPROTO, libc::ENOSYS].contains(&refused));
        }
    };
    let before = guest.words();
    all();
    leaks_nothing(&daemon, all);
    assert!(guest.words() == before, "a refused request had an effect");
    guest.main.ping();
}

#[test]
fn random_bodies_get_an_answer_each() {
    let (daemon, socket) = Daemon::connected(&["--log-level", "off"]);
    let guest = Guest::boot(socket, machine());
    guest.claim_msi(LISN);
    let codes: Vec<u32> = REQUESTS
        .iter()
        .chain(RESERVED)
        .map(|(code, _)| *code)
        .chain([0x1fff, 0xffff_ffff])
        .filter(|code| *code != Goodbye::CODE)
        .collect();
    let samples = samples(&guest);
    let mut random = Random(7);
    let spare: Vec<_> = (0..3).map(|_| eventfd()).collect();
    let mut work = |count: usize| {
        for _ in 0..count {
            let code = random.pick(&codes);
            let payload = match samples.iter().find(|s| s.code == code) {
                // The right form with a few other bits.
                Some(s) if random.below(3) != 0 && !s.payload.is_empty() => {
                    let mut payload = s.payload.clone();
                    for _ in 0..1 + random.below(3) {
                        let at = random.below(payload.len() as u64) as usize;
                        payload[at] = random.pick(&[0, 1, 2, 4, 0x7f, 0x80, 0xff]);
                    }
                    payload
                }
                _ => {
                    let len = random.below(200) as usize;
                    random.bytes(len)
                }
            };
            let count = random.pick(&[0, 0, 0, 1, 2, 3]) as usize;
            let fds: Vec<BorrowedFd<'_>> = spare[..count].iter().map(AsFd::as_fd).collect();
            // Whatever it says, it says it in form: `ask` checks that.
            let _either = guest.main.ask(code, &payload, &fds);
        }
        guest.main.ping();
    };
    work(rounds(3000));
    let memory = daemon.private_kib();
    work(rounds(3000));
    // An eventfd for each of 4 vCPUs and for each (number, input) of an irqfd at most.
    assert!(daemon.fds() < 64, "{}", daemon.fds());
    assert!(daemon.private_kib() < memory + crate::SLACK_KIB);
    guest.main.call(&Goodbye {}).unwrap();
    daemon.ends_well();
}

#[test]
fn random_standard_messages_leave_the_connection_in_step() {
    let (daemon, guest) = booted();
    let mut random = Random(8);
    let ram = memfd(RAM);
    let mut work = |count: usize| {
        for _ in 0..count {
            let code = random.below(48) as u32;
            let len = random.pick(&[0, 8, 12, 16, 24, 32, 40, 72, MAX_STANDARD_BODY]);
            let mut body = vec![0; len];
            for word in body.chunks_mut(8) {
                let bytes = random.register().to_ne_bytes();
                word.copy_from_slice(&bytes[..word.len()]);
            }
            let flags = random.pick(&[0, 0, 8, 4, 12]);
            let fds = vec![ram.as_fd(); random.below(3) as usize];
            guest.main.send(code, flags, &body, &fds);
            // PAPR replies tell what came before them: in step.
            let ping = guest.main.post(&Ping { cookie: 3 });
            loop {
                let message = guest.main.receive().expect("the daemon hung up");
                if message.request == Ping::CODE {
                    let head = papr_intc_protocol::wire::split_reply(&message.body);
                    assert_eq!(head.unwrap().0.seq, ping);
                    break;
                }
                assert_eq!(message.request, code);
            }
        }
    };
    work(rounds(200));
    leaks_nothing(&daemon, || work(rounds(300)));
}

#[test]
fn a_message_may_come_in_any_pieces() {
    let (_daemon, guest) = booted();
    let other = guest.channel(2);
    let mut socket = &guest.main.socket;
    let body = papr_intc_protocol::wire::request_body(1000, 0, &Ping { cookie: 77 });
    let message = [&header(Ping::CODE, 0, body.len() as u32)[..], &body].concat();
    let reply = || {
        let reply = guest.main.receive().unwrap();
        let (head, payload) = papr_intc_protocol::wire::split_reply(&reply.body).unwrap();
        assert_eq!((head.seq, head.status), (1000, 0));
        assert_eq!(payload[..8], 77u64.to_ne_bytes());
    };
    // Byte by byte, and everybody else is served meanwhile.
    for byte in &message {
        socket.write_all(&[*byte]).unwrap();
        other.ping();
    }
    reply();
    // Ten at once, and one and a half.
    socket.write_all(&message.repeat(10)).unwrap();
    (0..10).for_each(|_| reply());
    for cut in 1..message.len() {
        let (head, tail) = message.split_at(cut);
        socket.write_all(&[&message, head].concat()).unwrap();
        reply();
        other.ping();
        socket.write_all(tail).unwrap();
        reply();
    }
}

#[test]
fn descriptors_may_come_with_any_piece_of_their_message() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;
    let (daemon, guest) = booted();
    let request = VcpuConnect { servers: vec![1] };
    let body = papr_intc_protocol::wire::request_body(1000, 0, &request);
    let message = [&header(VcpuConnect::CODE, 0, body.len() as u32)[..], &body].concat();
    let before = daemon.fds();
    for at in 0..message.len() {
        let kick = eventfd();
        let mut socket = &guest.main.socket;
        socket.write_all(&message[..at]).unwrap();
        let fds = [kick.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let piece = [IoSlice::new(&message[at..=at])];
        let none = MsgFlags::empty();
        sendmsg::<()>(socket.as_raw_fd(), &piece, &rights, none, None).unwrap();
        socket.write_all(&message[at + 1..]).unwrap();
        let reply = guest.main.receive().unwrap();
        let (head, _) = papr_intc_protocol::wire::split_reply(&reply.body).unwrap();
        assert_eq!(head.status, 0);
        assert!(was_kicked(&kick));
    }
    assert_eq!(daemon.fds(), before);
}

#[test]
fn a_stream_out_of_step_ends_its_connection_and_no_other() {
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait", "--log-level", "off"]);
    let over = MAX_BODY as u32 + 1;
    let mut bad: Vec<Vec<u8>> = vec![
        header(Hello::CODE, 0, over).to_vec(),
        header(Hello::CODE, 0, u32::MAX).to_vec(),
        header(1, 0, MAX_STANDARD_BODY as u32 + 1).to_vec(),
        header(0xffff_ffff, 0, over).to_vec(),
        vec![0; 12],
    ];
    for version in [0, 2, 3] {
        let mut bytes = header(Hello::CODE, 0, 24).to_vec();
        bytes[4] = version;
        bad.push(bytes);
    }
    let mut random = Random(9);
    bad.extend((0..rounds(50)).map(|_| random.bytes(4096)));
    let visit = |bytes: &[u8]| {
        let client = Client::new(address.connect());
        let mut socket: &UnixStream = &client.socket;
        // It may hang up while we are writing.
        let _maybe = socket.write_all(bytes);
        // Random bytes may start with a small message, and may be answered.
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        while let Ok(Some(_)) = recv_message(socket, Some(LONG)) {}
    };
    let works = || {
        let client = Client::new(address.served());
        // Cut off in the middle of the next message.
        (&client.socket)
            .write_all(&header(Hello::CODE, 0, 24))
            .unwrap();
    };
    let all = || {
        for bytes in &bad {
            visit(bytes);
            works();
        }
    };
    all();
    let last = || {
        let _client = address.served();
        (daemon.fds(), daemon.mappings())
    };
    let before = last();
    all();
    assert_eq!(last(), before);
}

#[test]
fn a_front_end_that_never_finishes_its_message_holds_up_nobody() {
    let (daemon, guest) = booted();
    let channels: Vec<Client> = (0..4).map(|server| guest.channel(server)).collect();
    let part = header(Mmio::CODE, 0, MAX_BODY as u32);
    for channel in &channels[..3] {
        (&channel.socket).write_all(&part).unwrap();
    }
    for _ in 0..100 {
        channels[3].ping();
        guest.main.ping();
    }
    // Three largest bodies, and no more.
    assert!(daemon.private_kib() < 16 << 10, "{}", daemon.private_kib());
}
