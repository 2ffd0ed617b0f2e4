//! Every PAPR message: with good arguments, and with each of the errors of SPEC.md chapter 1.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::libc;
use papr_intc_protocol::layout::{Compat, IcMode, Machine, membarrier};
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret};
use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::*;
use papr_intc_protocol::wire::{MAX_BODY, MAX_FDS, Text};

use crate::harness::Daemon;
use crate::harness::client::{self, Client, errno};
use crate::harness::guest::*;

const LISN: u32 = 0x1300;

/// A daemon that has heard HELLO and nothing else.
fn greeted() -> (Daemon, Client) {
    let (daemon, socket) = Daemon::connected(&[]);
    let client = Client::new(socket);
    client.hello();
    (daemon, client)
}

#[test]
fn hello_tells_versions_limits_and_state() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    let hello = main.hello();
    assert_eq!(
        (hello.protocol, hello.layout, hello.verdict),
        (1, 2, verdict::MAP)
    );
    assert_eq!(
        (hello.max_body, hello.max_fds),
        (MAX_BODY as u32, MAX_FDS as u32)
    );
    assert_eq!((hello.max_sources, hello.max_servers), (1 << 20, 4096));
    assert_eq!((hello.state, hello.generation), (state::COLD, 0));
    set_machine(&main, &machine()).unwrap();
    assert_eq!(main.hello().state, state::WANTS_MEMORY);
    get_shm(&main).unwrap();
    start(&main, executor::DAEMON).unwrap();
    let hello = main.hello();
    assert_eq!((hello.state, hello.generation), (state::SERVING, 1));
}

#[test]
fn hello_answers_the_features_that_both_sides_have() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    let both = |features| {
        let hello = Hello {
            features,
            ..client::hello()
        };
        main.call(&hello).unwrap().features
    };
    assert_eq!(both(0), 0);
    let here = match membarrier::is_available() {
        true => feature::MEMBARRIER,
        false => 0,
    };
    assert_eq!(both(feature::MEMBARRIER), here);
    assert_eq!(both(!feature::MEMBARRIER), 0);
    assert_eq!(both(u32::MAX), here);
}

#[test]
fn set_machine_takes_a_machine_once() {
    let (_daemon, main) = greeted();
    let words = machine().to_words();
    for (at, word) in [
        (0, 0),
        (1, 0),
        (1, u64::MAX),
        (2, u64::MAX),
        (0, words[0] | 1 << 60),
    ] {
        let mut bad = words;
        bad[at] = word;
        assert_eq!(
            errno(main.call(&SetMachine { words: bad })),
            libc::EINVAL,
            "{at}"
        );
    }
    let private = Machine {
        ram_shared: false,
        ..machine()
    };
    assert_eq!(errno(set_machine(&main, &private)), libc::ENOTSUP);
    assert_eq!(set_machine(&main, &machine()).unwrap().words, words);
    assert_eq!(set_machine(&main, &machine()).unwrap().words, words);
    let other = Machine {
        servers: 5,
        ..machine()
    };
    let refused = set_machine(&main, &other).unwrap_err();
    assert_eq!(refused.errno, libc::EEXIST);
    for part in ["servers", "4", "5"] {
        assert!(refused.text.contains(part), "{}", refused.text);
    }
}

#[test]
fn the_command_line_fixes_the_machine() {
    for (args, field) in [
        (["--ic-mode", "xics"], "ic"),
        (["--compat", "qemu-7.2"], "compat"),
        (["--servers", "9"], "servers"),
        (["--sources", "4096"], "sources"),
    ] {
        let (_daemon, socket) = Daemon::connected(&args);
        let main = Client::new(socket);
        main.hello();
        let refused = set_machine(&main, &machine()).unwrap_err();
        assert_eq!(refused.errno, libc::EEXIST);
        assert!(refused.text.contains(field), "{}", refused.text);
    }
    let args = [
        "--ic-mode",
        "dual",
        "--compat",
        "papr-1",
        "--servers",
        "4",
        "--sources",
        "8192",
    ];
    let (_daemon, socket) = Daemon::connected(&args);
    let main = Client::new(socket);
    main.hello();
    set_machine(&main, &machine()).unwrap();
}

#[test]
fn the_largest_machine_starts() {
    let (_daemon, main) = greeted();
    let largest = Machine {
        sources: 1 << 20,
        servers: 4096,
        ..machine()
    };
    set_machine(&main, &largest).unwrap();
    let (info, shm) = get_shm(&main).unwrap();
    assert_eq!(shm.metadata().unwrap().len(), info.size);
    start(&main, executor::FRONT_END).unwrap();
    main.ping();
}

#[test]
fn get_shm_gives_the_same_memory_again() {
    use std::os::unix::fs::MetadataExt;
    let (_daemon, main) = greeted();
    assert_eq!(errno(get_shm(&main).map(|(info, _)| info)), libc::EINVAL);
    set_machine(&main, &machine()).unwrap();
    let (info, first) = get_shm(&main).unwrap();
    let (again, second) = get_shm(&main).unwrap();
    assert_eq!(info, again);
    let file = |f: &std::fs::File| f.metadata().map(|m| (m.dev(), m.ino())).unwrap();
    assert_eq!(file(&first), file(&second));
    assert_eq!(info.size, info.tables_size + info.pages_size);
    assert_eq!(info.size, first.metadata().unwrap().len());
    first.set_len(4096).expect_err("sealed");
}

#[test]
fn start_needs_memory_and_an_executor_and_happens_once() {
    let (_daemon, main) = greeted();
    assert_eq!(errno(start(&main, executor::DAEMON)), libc::EINVAL);
    set_machine(&main, &machine()).unwrap();
    assert_eq!(errno(start(&main, executor::DAEMON)), libc::EINVAL);
    get_shm(&main).unwrap();
    for executor in [executor::KEEP, 3, u32::MAX] {
        assert_eq!(errno(start(&main, executor)), libc::EINVAL);
    }
    let started = start(&main, executor::DAEMON).unwrap();
    assert_eq!((started.redone, started.in_doubt), (0, 0));
    assert_eq!(errno(start(&main, executor::DAEMON)), libc::EINVAL);
}

#[test]
fn what_needs_a_started_machine_is_refused_before_start() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let guest = Guest::prepare(socket, machine());
    let main = &guest.main;
    let refused = [
        errno(main.call(&hcall(0, opcode::H_XIRR, &[]))),
        errno(main.call(&rtas(RtasCall::IntOn as u32, &[LISN], 1))),
        errno(main.call(&tima_load(0, 0x2_0010, 8))),
        errno(main.call(&cas(0, 0))),
        errno(main.call(&claim(LISN, 1, 0))),
        errno(main.call(&Free {
            first: LISN,
            count: 1,
        })),
        errno(main.call(&Sync { lisn: ALL, zero: 0 })),
        errno(main.call(&VcpuReset { server: 0, zero: 0 })),
        errno(main.call(&VcpuDisconnect { server: 0, zero: 0 })),
        errno(main.call(&VcpuLine { server: 0, zero: 0 })),
        errno(main.call(&MachineReset { flags: 0, zero: 0 })),
        errno(main.call(&Quiesce {
            deadline_ms: 1,
            zero: 0,
        })),
        errno(main.call(&Resume {
            executor: 0,
            zero: 0,
        })),
    ];
    assert_eq!(refused, [libc::EINVAL; 13]);
    start(main, executor::DAEMON).unwrap();
    main.call(&VcpuLine { server: 0, zero: 0 }).unwrap();
}

#[test]
fn ping_last_and_log_level_answer() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    let first = main.call(&Ping { cookie: u64::MAX }).unwrap();
    let second = main.call(&Ping { cookie: 0 }).unwrap();
    assert_eq!((first.cookie, second.cookie), (u64::MAX, 0));
    assert_eq!(second.served, first.served + 1);

    guest.must(0, opcode::H_CPPR, &[0xff]);
    let seq = main.last_seq();
    let last = |channel| main.call(&Last { channel, zero: 0 });
    assert_eq!(last(0).unwrap().seq, seq);
    assert_eq!(last(4).unwrap().seq, 0);
    assert_eq!(
        (errno(last(5)), errno(last(u32::MAX))),
        (libc::ENOENT, libc::ENOENT)
    );

    let level = |text: &str| {
        let filter = Text(text.into());
        main.call(&SetLogLevel { filter })
    };
    for good in ["off", "error", "warn", "info", "debug", "trace", "warn"] {
        level(good).unwrap();
    }
    for bad in ["", "loud", "warn,papr=info"] {
        assert_eq!(errno(level(bad)), libc::EINVAL, "{bad}");
    }
}

#[test]
fn vcpus_connect_and_their_errors() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    let connect = |servers: &[u32], fds: usize| {
        let fds: Vec<_> = (0..fds).map(|_| eventfd()).collect();
        let request = VcpuConnect {
            servers: servers.to_vec(),
        };
        let answer = main.call_fds(&request, &client::borrow(&fds));
        answer.map(|(reply, _)| (reply.connected, fds))
    };
    assert_eq!(errno(connect(&[4], 1)), libc::ERANGE);
    assert_eq!(errno(connect(&[0, u32::MAX], 0)), libc::ERANGE);
    assert_eq!(errno(connect(&[0, 1], 1)), libc::EPROTO);
    assert_eq!(errno(connect(&[0], 2)), libc::EPROTO);
    assert_eq!(errno(connect(&[], 1)), libc::EPROTO);
    assert_eq!(connect(&[], 0).unwrap().0, 4);
    assert_eq!(connect(&[0, 0], 0).unwrap().0, 4);

    // Another eventfd takes the place of the first.
    guest.must(1, opcode::H_CPPR, &[0xff]);
    let (_, fds) = connect(&[1], 1).unwrap();
    assert!(was_kicked(&fds[0]), "looks once more");
    was_kicked(&guest.kicks[1]);
    guest.must(0, opcode::H_IPI, &[1, 4]);
    assert!(was_kicked(&fds[0]) && !was_kicked(&guest.kicks[1]));
}

#[test]
fn vcpus_go_and_come_back() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    guest.must(1, opcode::H_CPPR, &[0xff]);
    main.call(&VcpuDisconnect { server: 1, zero: 0 }).unwrap();
    let gone = [
        errno(main.call(&VcpuDisconnect { server: 1, zero: 0 })),
        errno(main.call(&VcpuReset { server: 1, zero: 0 })),
        errno(main.call(&VcpuLine { server: 1, zero: 0 })),
        errno(main.call(&hcall(1, opcode::H_XIRR, &[]))),
        errno(main.call(&rtas_of(1))),
        errno(main.call(&tima_load(1, 0x2_0010, 8))),
        errno(main.call(&cas(1, 0))),
    ];
    assert_eq!(gone, [libc::ENOENT; 7]);
    assert_eq!(guest.hcall(0, opcode::H_IPI, &[1, 4]).0, ret::H_PARAMETER);
    for server in [4, u32::MAX] {
        let far = main.call(&VcpuLine { server, zero: 0 });
        assert_eq!(errno(far), libc::ENOENT);
    }
    guest.connect_all();
    assert_eq!(
        guest.must(1, opcode::H_XIRR, &[]),
        0,
        "as after reset: CPPR 0"
    );
    guest.must(1, opcode::H_CPPR, &[0xff]);
    main.call(&VcpuReset { server: 1, zero: 0 }).unwrap();
    assert_eq!(guest.must(1, opcode::H_XIRR, &[]), 0);
}

fn rtas_of(server: u32) -> Rtas {
    Rtas {
        server,
        ..rtas(RtasCall::GetXive as u32, &[LISN], 3)
    }
}

#[test]
fn guest_calls_and_their_errors() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    guest.claim_msi(LISN);
    assert_eq!(guest.hcall(0, 0xdead_beef, &[]).0, ret::H_FUNCTION);
    assert_eq!(guest.hcall(0, opcode::H_INT_RESET, &[]).0, ret::H_FUNCTION);
    for server in [4, u32::MAX] {
        let far = main.call(&hcall(server, opcode::H_XIRR, &[]));
        assert_eq!(errno(far), libc::ENOENT);
    }
    assert_eq!(guest.rtas(RtasCall::IntOff, &[LISN]), 0);
    assert_eq!(guest.rtas(RtasCall::IntOn, &[LISN]), 0);
    assert_eq!(guest.rtas(RtasCall::IntOn, &[5]), -3);
    for call in [0, 5, u32::MAX] {
        assert_eq!(errno(main.call(&rtas(call, &[], 1))), libc::EINVAL);
    }
    let mut counts = rtas(RtasCall::GetXive as u32, &[LISN], 17);
    assert_eq!(errno(main.call(&counts)), libc::EINVAL);
    (counts.nret, counts.nargs) = (3, u32::MAX);
    assert_eq!(errno(main.call(&counts)), libc::EINVAL);
    counts.nargs = 1;
    assert_eq!(main.call(&counts).unwrap().written, 3);

    guest.choose_xive();
    for (change, expected) in [
        ((0, 0, 3), libc::EINVAL),
        ((2, 0, 8), libc::EINVAL),
        ((0, 2, 8), libc::EINVAL),
        ((0, 0, u32::MAX), libc::EINVAL),
    ] {
        let (space, store, size) = change;
        let access = Mmio {
            space,
            store,
            size,
            ..esb_load(LISN, 1, 0)
        };
        assert_eq!(errno(main.call(&access)), expected);
    }
    let beyond = Mmio {
        offset: u64::MAX,
        ..esb_load(LISN, 1, 0)
    };
    assert_eq!(main.call(&beyond).unwrap().value, 0);
}

#[test]
fn device_trees_come_for_the_modes_that_the_machine_has() {
    let fdt = |guest: &Guest, mode| guest.main.call(&GetFdt { mode, zero: 0 });
    let (_daemon, dual) = Guest::new(machine());
    let xics = fdt(&dual, mode::XICS).unwrap();
    assert_eq!(fdt(&dual, mode::ACTIVE).unwrap(), xics);
    let xive = fdt(&dual, mode::XIVE).unwrap();
    assert_ne!(xive, xics);
    for (tree, compatible) in [(&xics, "IBM,ppc-xicp"), (&xive, "ibm,power-ivpe")] {
        assert_eq!(tree.fdt.0[..4], 0xd00d_feedu32.to_be_bytes());
        let has = |text: &str| {
            let bytes = text.as_bytes();
            tree.fdt.0.windows(bytes.len()).any(|w| w == bytes)
        };
        assert!(has(compatible), "{compatible}");
    }
    assert_eq!(errno(fdt(&dual, 3)), libc::ENOTSUP);
    assert_eq!(dual.cas(0x40).fdt, xive.fdt);
    assert_eq!(fdt(&dual, mode::ACTIVE).unwrap(), xive);

    let only = Machine::pseries(IcMode::Xics, Compat::Papr1, 4);
    let (_daemon, xics) = Guest::new(only);
    assert_eq!(errno(fdt(&xics, mode::XIVE)), libc::ENOTSUP);
}

#[test]
fn queries_come_in_pieces_that_join() {
    let (_daemon, guest) = Guest::new(machine());
    guest.main.call(&claim(0x1000, 0x1000, 0)).unwrap();
    let query = |what, argument| {
        let (mut text, mut cursor, mut pieces) = (Vec::new(), 0, 0);
        loop {
            let request = Query {
                what,
                zero: 0,
                cursor,
                argument,
            };
            let reply = guest.main.call(&request)?;
            text.extend(reply.bytes.0);
            (cursor, pieces) = (reply.next, pieces + 1);
            if cursor == 0 {
                return Ok((String::from_utf8(text).unwrap(), pieces));
            }
        }
    };
    let (status, _) = query(query::STATUS, 0).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["sources_claimed"], 0x1004);
    assert_eq!(status["servers_connected"].as_array().unwrap().len(), 4);
    let (sources, pieces) = query(query::SOURCES, 0).unwrap();
    assert_eq!(sources.lines().count(), 0x1004);
    assert!(pieces > 2, "{pieces}");
    assert!(query(query::PIC, 0).unwrap().0.contains("CPU 3"));
    let (vcpu, _) = query(query::VCPU, 3).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&vcpu).unwrap()["server"],
        3
    );
    assert_eq!(errno(query(query::VCPU, 4)), libc::ENOENT);
    assert_eq!(errno(query(query::VCPU, u64::MAX)), libc::ENOENT);
    assert_eq!(errno(query(4, 0)), libc::EINVAL);
    let far = Query {
        what: query::STATUS,
        zero: 0,
        cursor: u64::MAX,
        argument: 0,
    };
    let far = guest.main.call(&far).unwrap();
    assert_eq!((far.next, far.bytes.0.len()), (0, 0));
}

#[test]
fn a_query_of_the_largest_machine_costs_one_piece() {
    let largest = Machine {
        sources: 1 << 20,
        servers: 4096,
        ..machine()
    };
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    main.hello();
    set_machine(&main, &largest).unwrap();
    get_shm(&main).unwrap();
    start(&main, executor::DAEMON).unwrap();
    main.call(&claim(0x1000, (1 << 20) - 0x1000, 0)).unwrap();
    let ask = |what, cursor| {
        let request = Query {
            what,
            zero: 0,
            cursor,
            argument: 0,
        };
        let reply = main.call(&request).unwrap();
        (reply.next, String::from_utf8(reply.bytes.0).unwrap())
    };
    for (what, offset) in [(query::SOURCES, 0), (query::PIC, 4096)] {
        let (next, text) = ask(what, offset + 0xf_fff0);
        assert_eq!((next, text.lines().count()), (0, 16));
        assert!(text.trim_start().starts_with("ffff0 "), "{text}");
        let (next, text) = ask(what, 0);
        let last = text
            .lines()
            .last()
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap();
        let last = u64::from_str_radix(last, 16).unwrap();
        assert_eq!(next, offset + last + 1, "goes on where it stopped");
        assert_eq!(ask(what, u64::MAX), (0, String::new()));
    }
}

#[test]
fn a_reply_is_not_answered() {
    use papr_intc_protocol::wire::{Request, flag, request_body};
    let (daemon, guest) = Guest::new(machine());
    let channel = guest.channel(1);
    let body = request_body(1, 0, &Goodbye {});
    for client in [&channel, &guest.main] {
        client.send(Goodbye::CODE, flag::REPLY, &body, &[]);
        client.send(Goodbye::CODE, flag::REPLY, &[], &[]);
        client.ping();
    }
    // Both ends of one pair as channels: whatever one gets is the other's to answer.
    let (one, two) = UnixStream::pair().unwrap();
    for (server, end) in [(2, &one), (3, &two)] {
        let request = VcpuChannel { server, zero: 0 };
        guest.main.call_fds(&request, &[end.as_fd()]).unwrap();
    }
    Client::new(one).send(Ping::CODE, 0, &request_body(1, 0, &Ping { cookie: 0 }), &[]);
    drop(two);
    let before = guest.main.call(&Ping { cookie: 0 }).unwrap().served;
    (0..50).for_each(|_| guest.main.ping());
    let after = guest.main.call(&Ping { cookie: 0 }).unwrap().served;
    assert!(after - before <= 53, "{}", after - before);
    drop(daemon);
}

#[test]
fn reserved_and_unknown_codes_are_refused() {
    use papr_intc_protocol::wire::RESERVED;
    let (_daemon, guest) = Guest::new(machine());
    let codes = RESERVED.iter().map(|(code, _)| *code);
    for code in codes.chain([0x1fff, 0x1_0000, u32::MAX]) {
        assert_eq!(
            errno(guest.main.ask(code, &[], &[])),
            libc::ENOSYS,
            "{code:#x}"
        );
    }
    guest.main.ping();
}

#[test]
fn a_vcpu_channel_is_a_socket_of_a_connected_vcpu() {
    let (daemon, guest) = Guest::new(machine());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let open = |server, fds: &[_]| {
        let request = VcpuChannel { server, zero: 0 };
        guest.main.call_fds(&request, fds).map(|_| ())
    };
    assert_eq!(errno(open(0, &[])), libc::EPROTO);
    let two = [theirs.as_fd(), theirs.as_fd()];
    assert_eq!(errno(open(0, &two)), libc::EPROTO);
    assert_eq!(errno(open(4, &[theirs.as_fd()])), libc::ERANGE);
    guest
        .main
        .call(&VcpuDisconnect { server: 3, zero: 0 })
        .unwrap();
    assert_eq!(errno(open(3, &[theirs.as_fd()])), libc::ENOENT);
    let before = (daemon.fds(), daemon.watched());

    // What is no stream socket of the Unix domain is refused, and harms nothing.
    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (ram, event) = (memfd(4096), eventfd());
    for (fd, what) in [
        (ram.as_fd(), "a file"),
        (event.as_fd(), "an eventfd"),
        (datagram.as_fd(), "a datagram socket"),
        (listener.as_fd(), "a TCP socket"),
    ] {
        assert_eq!(errno(open(0, &[fd])), libc::EINVAL, "{what}");
        guest.main.ping();
    }
    assert_eq!((daemon.fds(), daemon.watched()), before);
    open(0, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    Client::new(ours).ping();
}
