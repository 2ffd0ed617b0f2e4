//! Claims, triggers, levels, irqfds: with good arguments, and with each of the errors of SPEC.md §1.6.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::libc;
use papr_intc_protocol::wire::handshake::executor;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::VcpuConnect;

use crate::harness::Daemon;
use crate::harness::client::{self, errno};
use crate::harness::guest::*;

const LISN: u32 = 0x1300;

#[test]
fn claims_are_granted_whole_or_refused_whole() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    main.call(&claim(LISN, 4, claim_flag::MSI)).unwrap();
    let taken = main.call(&claim(LISN - 2, 4, claim_flag::LSI)).unwrap_err();
    assert_eq!(taken.errno, libc::EBUSY);
    assert!(taken.text.contains("0x1300"), "{}", taken.text);
    for (first, count) in [
        (0, 1),
        (0xfff, 2),
        (0x1fff, 2),
        (0x2000, 1),
        (0x1000, u32::MAX),
    ] {
        assert_eq!(
            errno(main.call(&claim(first, count, 0))),
            libc::ERANGE,
            "{first:#x}"
        );
    }
    for (count, flags) in [(0, 0), (1, 3), (1, 4)] {
        let refused = main.call(&claim(LISN + 8, count, flags));
        assert_eq!(errno(refused), libc::EINVAL);
    }
    let any = |count, align, low, high| {
        let request = Claim {
            first: ANY,
            count,
            align,
            flags: claim_flag::MSI,
            low,
            high,
        };
        main.call(&request).map(|reply| reply.first)
    };
    assert_eq!(any(4, 4, 0x1300, 0x1320).unwrap(), 0x1304);
    assert_eq!(any(16, 16, 0x1300, 0x1320).unwrap(), 0x1310);
    assert_eq!(errno(any(16, 16, 0x1300, 0x1320)), libc::ENOSPC);
    assert_eq!(errno(any(u32::MAX, 1, 0x1300, 0x1320)), libc::ENOSPC);
    assert_eq!(errno(any(1, 1 << 31, 0x1300, 0x1320)), libc::ENOSPC);
    for (align, low, high, expected) in [
        (0, 0x1300, 0x1320, libc::EINVAL),
        (3, 0x1300, 0x1320, libc::EINVAL),
        (1, 0x1320, 0x1320, libc::EINVAL),
        (1, 0x1321, 0x1320, libc::EINVAL),
        (1, 0, 0x2000, libc::ERANGE),
        (1, 0x1300, u32::MAX, libc::ERANGE),
    ] {
        assert_eq!(errno(any(1, align, low, high)), expected);
    }

    let free = |first, count| main.call(&Free { first, count });
    assert_eq!(errno(free(LISN - 1, 2)), libc::ENOENT);
    assert_eq!(errno(free(0x1ffe, 2)), libc::ENOENT);
    assert_eq!(errno(free(0, 1)), libc::ERANGE);
    assert_eq!(errno(free(0x1000, u32::MAX)), libc::ERANGE);
    free(LISN, 4).unwrap();
    assert_eq!(errno(free(LISN, 4)), libc::ENOENT);
    main.call(&claim(LISN - 2, 4, claim_flag::LSI)).unwrap();
}

#[test]
fn sources_are_triggered_levelled_and_synced_and_their_errors() {
    let (_daemon, guest) = Guest::new(machine());
    let main = &guest.main;
    let (msi, lsi) = (LISN, LISN + 1);
    guest.claim_msi(msi);
    guest.claim_lsi(lsi);
    let trigger = |lisn| main.call(&Trigger { lisn, zero: 0 });
    let level = |lisn, level| main.call(&SetLevel { lisn, level });
    let sync = |lisn| main.call(&Sync { lisn, zero: 0 });
    for lisn in [msi, lsi] {
        trigger(lisn).unwrap();
        sync(lisn).unwrap();
    }
    level(lsi, 1).unwrap();
    level(lsi, 0).unwrap();
    sync(ALL).unwrap();
    for lisn in [LISN + 2, 0x2000, ALL - 1] {
        assert_eq!(errno(trigger(lisn)), libc::ENOENT);
        assert_eq!(errno(level(lisn, 1)), libc::ENOENT);
        assert_eq!(errno(sync(lisn)), libc::ENOENT);
    }
    assert_eq!(errno(trigger(ALL)), libc::ENOENT);
    assert_eq!(errno(level(msi, 1)), libc::EINVAL);
    assert_eq!(errno(level(lsi, 2)), libc::EINVAL);
}

#[test]
fn irqfds_are_set_as_a_whole_batch_or_not_at_all() {
    let (daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.claim_lsi(LISN + 1);
    let before = daemon.fds();
    let item = |lisn, kind| IrqfdItem {
        lisn,
        kind,
        input: 0,
        zero: 0,
    };
    let (edge, level) = (irqfd_kind::EDGE, irqfd_kind::LEVEL);
    let set = |items: &[IrqfdItem], fds: usize| {
        let fds: Vec<_> = (0..fds).map(|_| eventfd()).collect();
        let request = SetIrqfds {
            items: items.to_vec(),
        };
        let answer = guest.main.call_fds(&request, &client::borrow(&fds));
        answer.map(|_| ())
    };
    let good = item(LISN, edge);
    assert_eq!(errno(set(&[good, item(LISN + 2, edge)], 2)), libc::ENOENT);
    assert_eq!(errno(set(&[good, item(u32::MAX, edge)], 2)), libc::ENOENT);
    assert_eq!(errno(set(&[good, item(LISN + 1, 2)], 2)), libc::EINVAL);
    let msi = set(&[item(LISN, level)], 2);
    assert_eq!(errno(msi), libc::EINVAL, "an MSI has no level");
    let mixed = set(&[good, item(LISN + 1, level)], 3);
    assert_eq!(errno(mixed), libc::EINVAL);
    let no_resample = set(&[item(LISN + 1, level)], 1);
    assert_eq!(errno(no_resample), libc::EPROTO);
    assert_eq!(errno(set(&[good], 0)), libc::EPROTO);
    assert_eq!(errno(set(&[good], 3)), libc::EPROTO);
    assert_eq!(errno(set(&[], 1)), libc::EPROTO);
    assert_eq!(errno(set(&[good], 2)), libc::EPROTO);
    assert_eq!(daemon.fds(), before);
    let second = IrqfdItem { input: 1, ..good };
    set(&[good, second], 2).unwrap();
    assert_eq!(daemon.fds(), before + 2);
    set(&[good, good, second], 3).unwrap();
    assert_eq!(daemon.fds(), before + 2, "replaced");
    let clear = ClearIrqfds {
        items: vec![good, second, item(7, 9)],
    };
    guest.main.call(&clear).unwrap();
    assert_eq!(daemon.fds(), before);
}

#[test]
fn to_be_looked_at_leaves_the_count_of_an_eventfd_as_it_is() {
    // A daemon that is not the executor reads no irqfd.
    let (_daemon, socket) = Daemon::connected(&[]);
    let guest = Guest::boot_as(socket, machine(), executor::FRONT_END);
    guest.claim_msi(LISN);
    let device = eventfd();
    nix::unistd::write(&device, &3u64.to_ne_bytes()).unwrap();
    let items = vec![IrqfdItem {
        lisn: LISN,
        kind: irqfd_kind::EDGE,
        input: 0,
        zero: 0,
    }];
    let set = guest.main.call_fds(&SetIrqfds { items }, &[device.as_fd()]);
    set.unwrap();
    let mut count = [0; 8];
    assert_eq!(nix::unistd::read(&device, &mut count), Ok(8));
    assert_eq!(u64::from_ne_bytes(count), 3);
}

#[test]
fn what_is_no_eventfd_is_refused_as_kick_and_irqfd() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::epoll::{Epoll, EpollCreateFlags};
    use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
    let (daemon, guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    let before = (daemon.fds(), daemon.watched());
    let file = memfd(4096);
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let blocking = nix::sys::eventfd::EventFd::new().unwrap();
    // These share an inode with eventfds.
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    fcntl(&epoll.0, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).unwrap();
    for (fd, what) in [
        (file.as_fd(), "a file"),
        (reader.as_fd(), "a pipe"),
        (writer.as_fd(), "a pipe's other end"),
        (socket.as_fd(), "a socket"),
        (blocking.as_fd(), "an eventfd that blocks"),
        (epoll.0.as_fd(), "an epoll"),
        (timer.as_fd(), "a timer"),
    ] {
        let connect = VcpuConnect { servers: vec![0] };
        let refused = guest.main.call_fds(&connect, &[fd]).map(|_| ());
        assert_eq!(errno(refused), libc::EINVAL, "{what} as a kick");
        let items = vec![IrqfdItem {
            lisn: LISN,
            kind: irqfd_kind::EDGE,
            input: 0,
            zero: 0,
        }];
        let refused = guest.main.call_fds(&SetIrqfds { items }, &[fd]).map(|_| ());
        assert_eq!(errno(refused), libc::EINVAL, "{what} as an irqfd");
        guest.main.ping();
    }
    assert_eq!((daemon.fds(), daemon.watched()), before);
}
