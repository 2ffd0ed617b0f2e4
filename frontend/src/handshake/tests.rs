//! What a daemon is told, in which order, and which daemons are refused; against a peer played by hand.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::wire::handshake::{SetShm, SetShmReply, ShmInfo};
use papr_intc_protocol::wire::vcpu::VcpuConnectReply;
use papr_intc_protocol::wire::{FEATURE_PAPR_MESSAGES, Wire, flag, reply_body};

use super::*;
use crate::core::Options;
use crate::dirty_log::SharedLog;
use crate::fake_peer::FakePeer;
use crate::guest_ram::GuestRam;
use crate::standard::VIRTIO_F_VERSION_1;
use crate::sync::{lock, write};

/// How the peer behaves.
#[derive(Clone, Copy)]
struct Behaviour {
    features: u64,
    protocol_features: u64,
    layout: u16,
    verdict: u32,
    papr_features: u32,
    sealed: bool,
}

const GOOD: Behaviour = Behaviour {
    features: FEATURE_PAPR_MESSAGES | 1 << 30 | VIRTIO_F_VERSION_1 | 1 << 26,
    protocol_features: 1 << 3 | 1 << 9,
    layout: OWN.layout,
    verdict: verdict::MAP,
    papr_features: 0,
    sealed: true,
};

/// A code and how many descriptors came with it; START's executor in place of its descriptors.
type Told = Vec<(u32, usize)>;

/// VCPU_CHANNEL for the watch.
const WATCH_CHANNEL: (u32, usize) = (0x1013, 1);

fn core(executor: Executor) -> Core {
    let options = Options {
        executor,
        ..Options::new(Machine::pseries(IcMode::Dual, Compat::Papr1, 4))
    };
    let ram = Arc::new(GuestRam::new(&[(0, 0x10000), (0x100000, 0x10000)]).unwrap());
    Core::new(options, ram, Arc::new(|_| ())).unwrap()
}

fn edge(lisn: u32) -> Irqfd {
    Irqfd {
        lisn,
        input: 0,
        trigger: Arc::new(Event::new().unwrap()),
        resample: None,
    }
}

fn memfd(size: u64, sealed: bool) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"test", flags).unwrap());
    file.set_len(size).unwrap();
    if sealed {
        let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(all)).unwrap();
    }
    file
}

fn papr_reply(code: u32, seq: u64, how: Behaviour, memfd: &File) -> Option<Vec<u8>> {
    let size = memfd.metadata().unwrap().len();
    Some(match code {
        Hello::CODE => reply_body(
            seq,
            &HelloReply {
                protocol: OWN.protocol_max,
                layout: how.layout,
                verdict: how.verdict,
                features: how.papr_features,
                max_body: 65536,
                max_fds: 253,
                max_sources: 1 << 20,
                max_servers: 4096,
                state: 0,
                generation: 0,
                version: Text("a test".to_owned()),
            },
        ),
        SetMachine::CODE => {
            let words = core(Executor::Daemon).options.machine.to_words();
            reply_body(seq, &SetMachine { words })
        }
        GetShm::CODE => reply_body(
            seq,
            &ShmInfo {
                layout: OWN.layout.into(),
                zero: 0,
                generation: 1,
                size,
                tables_size: 0,
                pages_size: 0,
            },
        ),
        SetShm::CODE => reply_body(
            seq,
            &SetShmReply {
                generation: 2,
                start_count: 1,
            },
        ),
        VcpuConnect::CODE => reply_body(
            seq,
            &VcpuConnectReply {
                connected: 0,
                zero: 0,
            },
        ),
        VcpuChannel::CODE | SetIrqfds::CODE => reply_body(seq, &()),
        Start::CODE => reply_body(
            seq,
            &StartReply {
                redone: 0,
                resignalled: 0,
                in_doubt: 0,
                zero: 0,
            },
        ),
        _ => return None,
    })
}

/// Answers until the stream ends; what it was told.
fn serve(mut peer: FakePeer, how: Behaviour, memfd: File) -> Told {
    let mut told = Vec::new();
    let reply = flag::VERSION | flag::REPLY;
    while let Some((code, body, fds)) = peer.raw() {
        told.push((code, fds));
        if code < 0x1000 {
            let value = match code {
                1 => how.features.to_bytes(),
                15 => how.protocol_features.to_bytes(),
                5 => 0u64.to_bytes(),
                // The first SET_FEATURES is not acknowledged.
                2 if u64::from_bytes(&body).unwrap() & LOG_ALL != 0 => 0u64.to_bytes(),
                6 => body,
                _ => continue,
            };
            peer.send(code, reply, &value);
            continue;
        }
        let (head, payload) = papr_intc_protocol::wire::split_request(&body).unwrap();
        if code == Start::CODE {
            let start = Start::from_bytes(payload).unwrap();
            told.pop();
            told.push((code, start.executor as usize));
        }
        let answer = papr_reply(code, head.seq, how, &memfd).expect("an unexpected request");
        let fds = if code == GetShm::CODE {
            vec![memfd.as_raw_fd()]
        } else {
            vec![]
        };
        peer.send_with(code, reply, &answer, &fds);
    }
    told
}

/// One handshake; its result and what the peer was told.
fn shake(core: &Core, how: Behaviour) -> (Result<(), Error>, Told) {
    let (peer, stream) = FakePeer::pair();
    let memfd = memfd(core.geometry.size(), how.sealed);
    let peer = thread::spawn(move || serve(peer, how, memfd));
    let connection = Connection::new(stream);
    let mut topology = lock(&core.topology);
    let result = introduce(core, &mut topology, &connection)
        .and_then(|introduced| establish(core, &mut topology, &connection, introduced))
        .map(|_| ());
    drop(topology);
    connection.close();
    (result, peer.join().unwrap())
}

#[test]
fn the_first_handshake_has_the_order_of_the_specification() {
    let (result, told) = shake(&core(Executor::Daemon), GOOD);
    result.unwrap();
    let start = (0x1005, executor::DAEMON as usize);
    let standard = [(3, 0), (1, 0), (2, 0), (15, 0), (16, 0)];
    let papr = [
        (0x1000, 0),
        (0x1001, 0),
        (5, 2),
        (0x1002, 0),
        WATCH_CHANNEL,
        start,
    ];
    assert_eq!(told, [&standard[..], &papr].concat());
}

#[test]
fn a_later_daemon_is_handed_the_memory_the_vcpus_and_the_irqfds() {
    let core = core(Executor::Daemon);
    shake(&core, GOOD).0.unwrap();
    for server in [0, 2] {
        let vcpu = VcpuState::new(server, core.watcher()).unwrap();
        write(&core.vcpus).insert(server, Arc::new(vcpu));
    }
    for lisn in 0..300 {
        core.intake.add_irqfd(edge(0x1000 + lisn)).unwrap();
    }
    let (result, told) = shake(&core, GOOD);
    result.unwrap();
    let expected = [
        (0x1003, 1),
        (0x1010, 2),
        (0x1013, 1),
        (0x1013, 1),
        WATCH_CHANNEL,
        (0x1022, 253),
        (0x1022, 47),
        (0x1005, executor::DAEMON as usize),
    ];
    assert_eq!(told[8..], expected);
}

/// Can log dirty pages.
const LOGGING: Behaviour = Behaviour {
    protocol_features: 1 << 3 | 1 << 1,
    ..GOOD
};

fn start_logging(core: &Core) {
    *lock(&core.log) = Some(Arc::new(SharedLog::new(&*core.ram).unwrap()));
}

#[test]
fn while_pages_are_logged_every_daemon_is_given_the_log_after_memory_and_before_start() {
    let core = core(Executor::Daemon);
    start_logging(&core);
    for get_or_set_shm in [(0x1002, 0), (0x1003, 1)] {
        let (result, told) = shake(&core, LOGGING);
        result.unwrap();
        let start = (0x1005, executor::DAEMON as usize);
        let expected = [(5, 2), (6, 1), (2, 0), get_or_set_shm, WATCH_CHANNEL, start];
        assert_eq!(told[7..], expected);
    }
    *lock(&core.log) = None;
    let (result, told) = shake(&core, LOGGING);
    result.unwrap();
    assert!(told.iter().all(|(code, _)| *code != 6));
}

#[test]
fn while_pages_are_logged_a_daemon_that_cannot_is_refused_before_it_takes_the_memory() {
    let without_log_all = Behaviour {
        features: GOOD.features & !LOG_ALL,
        ..LOGGING
    };
    for how in [without_log_all, GOOD] {
        let core = core(Executor::Daemon);
        shake(&core, how).0.unwrap();
        start_logging(&core);
        let (result, told) = shake(&core, how);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("cannot log"), "{error}");
        assert!(told.iter().all(|(code, _)| *code != SetShm::CODE));
    }
}

#[test]
fn misfits_are_refused_with_what_is_missing() {
    let cases = [
        (
            Behaviour {
                features: 1 << 30,
                ..GOOD
            },
            "0x1",
        ),
        (
            Behaviour {
                features: 1,
                ..GOOD
            },
            "0x40000000",
        ),
        (
            Behaviour {
                protocol_features: 0,
                ..GOOD
            },
            "REPLY_ACK",
        ),
        (Behaviour { layout: 9, ..GOOD }, "layout 9"),
        (
            Behaviour {
                sealed: false,
                ..GOOD
            },
            "seals",
        ),
    ];
    for (how, says) in cases {
        let (result, told) = shake(&core(Executor::Daemon), how);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(told.iter().all(|(code, _)| *code != Start::CODE));
    }
}

#[test]
fn a_daemon_that_distrusts_our_plane_becomes_the_executor() {
    let core = core(Executor::FrontEnd);
    // Remote mode would be the way to a first start; here the memory is known already.
    let info = ShmInfo {
        layout: OWN.layout.into(),
        zero: 0,
        generation: 1,
        size: core.geometry.size(),
        tables_size: 0,
        pages_size: 0,
    };
    let fds = vec![OwnedFd::from(memfd(core.geometry.size(), true))];
    lock(&core.topology).shm = Some(Shm::accept(&info, fds, &core.options.machine).unwrap());
    core.intake.add_irqfd(edge(0x1000)).unwrap();
    let (result, told) = shake(
        &core,
        Behaviour {
            verdict: verdict::DEMOTE,
            ..GOOD
        },
    );
    result.unwrap();
    assert_eq!(
        told[9..],
        [
            WATCH_CHANNEL,
            (0x1022, 1),
            (0x1005, executor::DAEMON as usize)
        ]
    );
    assert!(!core.intake.add_irqfd(edge(0x1001)).unwrap());
}

#[test]
fn fences_are_left_to_a_daemon_that_says_so_and_to_no_other() {
    let core = core(Executor::Daemon);
    let (_, told) = shake(&core, GOOD);
    assert!(!core.fences.are_left(), "{told:x?}");
    let how = Behaviour {
        papr_features: feature::MEMBARRIER,
        ..GOOD
    };
    shake(&core, how).0.unwrap();
    assert_eq!(core.fences.are_left(), core.fences.features() != 0);
    shake(&core, GOOD).0.unwrap();
    assert!(!core.fences.are_left());
}
