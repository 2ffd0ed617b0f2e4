//! Shared memory written over by the VMM. What its guest then gets is the VMM's own doing; the daemon
//! must answer, end no sooner than asked, and find its way out of every loop.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use papr_intc_protocol::layout::header::word;
use papr_intc_protocol::layout::{Table, words::journal};
use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::wire::guest::{GetFdt, Rtas};
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::source::*;
use papr_intc_protocol::wire::vcpu::*;

use crate::harness::Daemon;
use crate::harness::client::{Answer, Client};
use crate::harness::guest::*;
use crate::{Random, leaks_nothing, rounds};

const LISN: u32 = 0x1300;

/// Any answer but a broken one: refusals for what scribbles can cause.
fn answered<T: std::fmt::Debug>(answer: Answer<T>) {
    if let Err(refusal) = answer {
        let known = [
            libc::EBUSY,
            libc::ENOENT,
            libc::EINVAL,
            libc::ETIMEDOUT,
            libc::ENOSPC,
        ];
        assert!(known.contains(&refusal.errno), "{refusal:?}");
    }
}

/// One of everything that touches the words.
fn everything(guest: &Guest, random: &mut Random) {
    let main = &guest.main;
    let (server, lisn) = (random.below(4) as u32, LISN + random.below(20) as u32);
    for op in [
        (opcode::H_XIRR, [0; 5]),
        (opcode::H_EOI, [0xff00_0000 | u64::from(lisn), 0, 0, 0, 0]),
        (opcode::H_CPPR, [random.below(256), 0, 0, 0, 0]),
        (opcode::H_IPI, [random.below(4), random.below(256), 0, 0, 0]),
        (
            opcode::H_INT_SET_SOURCE_CONFIG,
            [2, lisn.into(), random.below(4), random.below(7), 9],
        ),
        (
            opcode::H_INT_SET_QUEUE_CONFIG,
            [1, random.below(4), random.below(7), 0x10_0000, 12],
        ),
        (
            opcode::H_INT_GET_QUEUE_CONFIG,
            [1, random.below(4), random.below(7), 0, 0],
        ),
        (opcode::H_INT_ESB, [0, lisn.into(), 0, 0, 0]),
        (opcode::H_INT_SYNC, [0, lisn.into(), 0, 0, 0]),
    ] {
        answered(main.call(&hcall(server, op.0, &op.1)));
    }
    for call in 1..=4 {
        let nret = if call == 2 { 3 } else { 1 };
        let args = [lisn, server, random.below(256) as u32];
        let nargs = if call == 1 { 3 } else { 1 };
        let request = Rtas {
            server,
            ..rtas(call, &args[..nargs], nret)
        };
        answered(main.call(&request));
    }
    answered(main.call(&Trigger { lisn, zero: 0 }));
    let level = random.below(2) as u32;
    answered(main.call(&SetLevel { lisn, level }));
    answered(main.call(&esb_load(lisn, 1, random.below(0x1000) & !7)));
    answered(main.call(&esb_store(lisn, 0, 0)));
    answered(main.call(&tima_load(server, 0x2_0810, 2)));
    answered(main.call(&tima_store(server, 0x2_0011, 1, 0xff)));
    answered(main.call(&Sync { lisn, zero: 0 }));
    answered(main.call(&VcpuLine { server, zero: 0 }));
    answered(main.call(&VcpuReset { server, zero: 0 }));
    answered(main.call(&Free {
        first: lisn,
        count: 1,
    }));
    answered(main.call(&claim(lisn, 1, random.below(3) as u32)));
}

/// One of everything that concerns the whole machine. Barriers fail while an epoch is odd.
fn the_whole(guest: &Guest) {
    let main = &guest.main;
    for what in [query::STATUS, query::PIC, query::SOURCES, query::VCPU] {
        let request = Query {
            what,
            zero: 0,
            cursor: 0,
            argument: 1,
        };
        answered(main.call(&request));
    }
    answered(main.call(&Last {
        channel: 1,
        zero: 0,
    }));
    answered(main.call(&GetFdt { mode: 0, zero: 0 }));
    answered(main.call(&VcpuConnect {
        servers: vec![0, 1, 2, 3],
    }));
    answered(main.replay(main.last_seq(), &hcall(0, opcode::H_XIRR, &[])));
}

/// QUIESCE, RESUME and SYNC of all. Where claims, END locks and counts are scribbles too, these look at
/// each of thousands of sources for as long as a lock or a count may take.
fn stop_and_go(guest: &Guest, random: &mut Random) {
    let quiesce = Quiesce {
        deadline_ms: 1,
        zero: 0,
    };
    answered(guest.main.call(&quiesce));
    let executor = random.below(3) as u32;
    answered(guest.main.call(&Resume { executor, zero: 0 }));
    let all = Sync { lisn: ALL, zero: 0 };
    answered(guest.main.call(&all));
}

/// Epochs as a VMM at rest leaves them, or every barrier would wait for its deadline.
fn leave(guest: &Guest) {
    let g = guest.machine.geometry().unwrap();
    for epoch in 0..g.epochs() {
        let at = papr_intc_protocol::layout::Page::Epoch(epoch);
        let offset = g.tables_size() + g.page_offset(at);
        guest.shm.write_all_at(&[0; 8], offset).unwrap();
    }
}

/// Ends the fire, also when the test fails in between.
struct CeaseFire<'a>(&'a AtomicBool);

impl Drop for CeaseFire<'_> {
    fn drop(&mut self) {
        // Relaxed: only tells the thread to stop.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Works while another thread writes random words from `first` on, all over the memory.
fn under_fire(first: u64, seed: u64, executor: u32, count: usize) {
    let (daemon, socket) = Daemon::connected(&["--log-level", "error"]);
    let guest = Guest::boot_as(socket, machine(), executor);
    guest.main.call(&claim(LISN, 10, 2)).unwrap();
    guest.main.call(&claim(LISN + 10, 10, 1)).unwrap();
    let (shm, size) = (guest.shm.try_clone().unwrap(), guest.info.size);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(seed);
            // Relaxed: only tells the thread to stop.
            while !done.load(Ordering::Relaxed) {
                let at = first + random.below((size - first) / 8) * 8;
                let word = match random.below(4) {
                    0 => 0,
                    1 => u64::MAX,
                    _ => random.word(),
                };
                shm.write_all_at(&word.to_ne_bytes(), at).unwrap();
            }
        });
        let _cease_fire = CeaseFire(&done);
        let mut random = Random(seed + 1);
        for _ in 0..2 {
            everything(&guest, &mut random);
            the_whole(&guest);
        }
        leaks_nothing(&daemon, || {
            for round in 0..rounds(count) {
                everything(&guest, &mut random);
                if round % 4 == 0 {
                    leave(&guest);
                    if first >= guest.info.tables_size {
                        stop_and_go(&guest, &mut random);
                    }
                    the_whole(&guest);
                    guest.main.ping();
                }
            }
        });
    });
    leave(&guest);
    // Resets the ENDs, so that no lock is in the way of what comes after it.
    let reset = MachineReset {
        flags: reset_flag::FREE_MSIS,
        zero: 0,
    };
    answered(guest.main.call(&reset));
    answered(guest.main.call(&cas(0, 0x40)));
    guest.main.ping();
    guest.main.call(&Goodbye {}).unwrap();
    daemon.ends_well();
}

#[test]
fn pages_may_hold_anything_while_the_daemon_executes() {
    under_fire(
        machine().geometry().unwrap().tables_size(),
        11,
        executor::DAEMON,
        8,
    );
}

#[test]
fn pages_may_hold_anything_while_the_front_end_executes() {
    under_fire(
        machine().geometry().unwrap().tables_size(),
        12,
        executor::FRONT_END,
        8,
    );
}

#[test]
fn tables_may_hold_anything_too() {
    under_fire(4096, 13, executor::DAEMON, 4);
}

#[test]
fn the_whole_memory_may_hold_anything() {
    under_fire(0, 14, executor::DAEMON, 4);
}

/// A sealed memfd with these bytes.
fn sealed(bytes: &[u8]) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"garbage", flags).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file
}

/// The next daemon takes `bytes`, starts, and does one of everything.
fn adopted(bytes: &[u8], seed: u64) {
    let (daemon, socket) = Daemon::connected(&["--log-level", "error"]);
    let file = sealed(bytes);
    let machine = machine();
    let main = Client::new(socket);
    negotiate(&main);
    main.hello();
    let ram = memfd(RAM);
    share_ram(&main, &ram);
    let generation = u64::from_ne_bytes(bytes[32..40].try_into().unwrap());
    let request = SetShm {
        layout: papr_intc_protocol::LAYOUT_VERSION.into(),
        zero: 0,
        generation,
        size: bytes.len() as u64,
    };
    main.call_fds(&request, &[file.as_fd()]).unwrap();
    let (info, shm) = get_shm(&main).unwrap();
    let kicks = (0..4).map(|_| eventfd()).collect();
    let guest = Guest {
        main,
        machine,
        ram,
        shm,
        info,
        kicks,
    };
    guest.connect_all();
    answered(start(&guest.main, executor::DAEMON));
    guest.main.ping();
    let mut random = Random(seed);
    leave(&guest);
    for _ in 0..3 {
        stop_and_go(&guest, &mut random);
        the_whole(&guest);
        everything(&guest, &mut random);
    }
    guest.main.call(&Goodbye {}).unwrap();
    daemon.ends_well();
}

/// The bytes of a machine that has been used a little.
fn used() -> Vec<u8> {
    let (_daemon, guest) = Guest::new(machine());
    guest.main.call(&claim(LISN, 10, 2)).unwrap();
    guest.choose_xive();
    guest.set_queue(1, 6, 0x10_0000);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.words()
}

#[test]
fn memory_full_of_garbage_is_survived() {
    let good = used();
    let keep = 8 * (word::MACHINE as usize + 6);
    for seed in 0..rounds(6) as u64 {
        let mut random = Random(100 + seed);
        let mut bytes = random.bytes(good.len());
        bytes[..keep].copy_from_slice(&good[..keep]);
        // The state word is the daemon's to distrust as well.
        if seed % 2 == 0 {
            let at = 8 * word::STATE as usize;
            bytes[at..at + 8].copy_from_slice(&random.word().to_ne_bytes());
        }
        adopted(&bytes, seed);
    }
}

#[test]
fn a_journal_that_makes_no_sense_is_survived() {
    let good = used();
    let g = machine().geometry().unwrap();
    for seed in 0..rounds(12) as u64 {
        let mut random = Random(200 + seed);
        let mut bytes = good.clone();
        let mut set = |at, value: u64| {
            let at = g.table_offset(at) as usize;
            bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        };
        set(Table::Journal(journal::XICS), random.word());
        set(Table::Journal(journal::OPERATION), 1 + seed % 5);
        set(Table::Journal(journal::CHANNEL), random.register());
        set(Table::Journal(journal::SEQUENCE), random.word());
        for i in 0..6 {
            set(Table::Journal(journal::DETAIL + i), random.register());
        }
        if seed % 3 == 0 {
            set(Table::Journal(journal::REDO), 1 + random.below(40));
            set(Table::Journal(journal::REDO_CHANNEL), random.register());
            set(Table::Journal(journal::REDO_SEQUENCE), random.register());
            for i in 0..80 {
                let what = random.below(14) << 56 | random.register() >> random.below(64);
                set(Table::Journal(journal::REDO_FIRST + i), what);
            }
        }
        for channel in 0..=4 {
            set(Table::Reply(channel, 0), random.below(40));
            set(Table::Reply(channel, 1), random.register());
        }
        set(
            Table::Header(word::QUIESCE_DEPTH),
            random.pick(&[0, 1, u64::MAX]),
        );
        adopted(&bytes, seed);
    }
}
