//! The vCPUs' own channels: what they may carry, for whom, and what a broken one costs.

use nix::libc;
use papr_intc::server::socket::header;
use papr_intc_protocol::papr::codes::{RtasCall, opcode};
use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::handshake::Ping;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::*;
use papr_intc_protocol::wire::{MAX_BODY, REQUESTS, Request};
use std::io::Write;

use crate::harness::client::{Client, errno};
use crate::harness::guest::*;

const LISN: u32 = 0x1300;

#[test]
fn a_channel_speaks_for_its_own_vcpu() {
    let (_daemon, guest) = Guest::new(machine());
    guest.claim_lsi(LISN);
    let channel = guest.channel(1);
    let get_xive = |server| Rtas {
        server,
        ..rtas(RtasCall::GetXive as u32, &[LISN], 3)
    };
    channel.ping();
    assert_eq!(
        channel
            .call(&hcall(1, opcode::H_CPPR, &[0xff]))
            .unwrap()
            .ret,
        0
    );
    assert_eq!(channel.call(&get_xive(1)).unwrap().written, 3);
    channel.call(&tima_load(1, 0x2_0010, 8)).unwrap();
    channel.call(&cas(1, 0)).unwrap();
    channel.call(&VcpuLine { server: 1, zero: 0 }).unwrap();
    channel.call(&VcpuReset { server: 1, zero: 0 }).unwrap();
    channel
        .call(&SetLevel {
            lisn: LISN,
            level: 0,
        })
        .unwrap();
    channel
        .call(&Trigger {
            lisn: LISN,
            zero: 0,
        })
        .unwrap();
    channel.call(&Sync { lisn: ALL, zero: 0 }).unwrap();

    let before = guest.words();
    for server in [0, 2, 4, u32::MAX] {
        let refused = [
            errno(channel.call(&hcall(server, opcode::H_CPPR, &[0xff]))),
            errno(channel.call(&get_xive(server))),
            errno(channel.call(&tima_load(server, 0x2_0010, 8))),
            errno(channel.call(&cas(server, 0x40))),
            errno(channel.call(&VcpuLine { server, zero: 0 })),
            errno(channel.call(&VcpuReset { server, zero: 0 })),
        ];
        assert_eq!(refused, [libc::EPERM; 6], "server {server}");
    }
    assert!(guest.words() == before);
}

#[test]
fn what_belongs_on_the_main_socket_is_refused_on_a_channel() {
    let (daemon, guest) = Guest::new(machine());
    let channel = guest.channel(1);
    let allowed = [
        Ping::CODE,
        VcpuReset::CODE,
        VcpuLine::CODE,
        SetLevel::CODE,
        Trigger::CODE,
        Sync::CODE,
        Hcall::CODE,
        Rtas::CODE,
        Cas::CODE,
        Mmio::CODE,
    ];
    let (before, fds) = (guest.words(), daemon.fds());
    let fd = eventfd();
    let mut refused = 0;
    for (code, name) in REQUESTS.iter().filter(|(code, _)| !allowed.contains(code)) {
        for payload in [&[][..], &[0; 8], &[0; 24]] {
            for fds in [0, 1] {
                let fds = vec![std::os::fd::AsFd::as_fd(&fd); fds];
                let answer = channel.ask(*code, payload, &fds);
                assert_eq!(errno(answer), libc::EINVAL, "{name}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, (REQUESTS.len() - allowed.len()) * 6);
    // Standard codes are no business of a vCPU either.
    for code in [1, 5, 24, 34] {
        assert_eq!(errno(channel.ask(code, &[], &[])), libc::EINVAL);
    }
    assert!(guest.words() == before && daemon.fds() == fds);
    (channel.ping(), guest.main.ping());
}

#[test]
fn each_channel_is_first_in_first_out_and_gets_its_own_replies() {
    let (_daemon, guest) = Guest::new(machine());
    let channels: Vec<Client> = (0..4).map(|server| guest.channel(server)).collect();
    let posted: Vec<Vec<u64>> = channels
        .iter()
        .enumerate()
        .map(|(server, channel)| {
            let call = |n| hcall(server as u32, opcode::H_CPPR, &[n]);
            (0..16).map(|n| channel.post(&call(n))).collect()
        })
        .collect();
    guest.main.ping();
    for (server, channel) in channels.iter().enumerate().rev() {
        for (n, seq) in (0..).zip(&posted[server]) {
            let (reply, _) = channel.take::<Hcall>(*seq).unwrap();
            assert_eq!(reply.args[0], n);
        }
        assert_eq!(guest.must(server as u32, opcode::H_XIRR, &[]), 0x0f00_0000);
    }
}

#[test]
fn a_new_channel_takes_the_place_of_the_old_one() {
    let (daemon, guest) = Guest::new(machine());
    let first = guest.channel(1);
    first.ping();
    let fds = daemon.fds();
    let second = guest.channel(1);
    assert!(first.is_closed());
    second.ping();
    assert_eq!(daemon.fds(), fds);
    let request = VcpuDisconnect { server: 1, zero: 0 };
    guest.main.call(&request).unwrap();
    let gone = second.call(&VcpuLine { server: 1, zero: 0 });
    assert_eq!(errno(gone), libc::ENOENT);
    second.ping();
    guest.connect_all();
    second.call(&VcpuLine { server: 1, zero: 0 }).unwrap();
}

#[test]
fn a_broken_channel_ends_and_nothing_else_does() {
    let (daemon, guest) = Guest::new(machine());
    let other = guest.channel(2);
    other.ping();
    let fds = daemon.fds();
    for bytes in [
        header(Ping::CODE, 0, MAX_BODY as u32 + 1).to_vec(),
        header(5, 0, 4097).to_vec(),
        vec![0; 12],
        vec![0xff; 12],
    ] {
        let channel = guest.channel(1);
        let mut socket = &channel.socket;
        socket.write_all(&bytes).unwrap();
        assert!(channel.is_closed());
        (other.ping(), guest.main.ping());
    }
    // A hang-up in the middle of a message.
    for cut in [1, 11, 12, 20] {
        let channel = guest.channel(1);
        let mut bytes = header(Ping::CODE, 0, 24).to_vec();
        bytes.resize(36, 0);
        (&channel.socket).write_all(&bytes[..cut]).unwrap();
        drop(channel);
        (other.ping(), guest.main.ping());
    }
    let fresh = guest.channel(1);
    fresh.ping();
    drop(fresh);
    guest.main.ping();
    // The hang-up of the last one is an event of its own; any later request comes after it, on a
    // thread that takes events in turn.
    other.ping();
    guest.main.ping();
    assert_eq!(daemon.fds(), fds);
}

#[test]
fn a_vcpu_that_does_not_read_its_replies_loses_its_channel_only() {
    let (_daemon, guest) = Guest::new(machine());
    guest.main.call(&claim(0x1000, 0x1000, 0)).unwrap();
    let channel = guest.channel(1);
    // More replies than any socket buffer of this system takes, none of them read.
    let body = papr_intc_protocol::wire::request_body(1, 0, &tima_load(1, 0x2_0010, 8));
    let mut sent = 0;
    let patient = std::time::Duration::from_secs(60);
    while papr_intc::server::socket::send_message(
        &channel.socket,
        Mmio::CODE,
        0,
        &body,
        &[],
        patient,
    )
    .is_ok()
    {
        sent += 1;
    }
    assert!(sent > 10, "{sent}");
    guest.main.ping();
}
