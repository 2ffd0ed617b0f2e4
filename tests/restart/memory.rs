//! Memory that a daemon must not take: refused with a reason, and not a byte of it changed.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use papr_intc_protocol::layout::header::word;
use papr_intc_protocol::wire::handshake::*;

use crate::harness::Daemon;
use crate::harness::client::Client;
use crate::harness::guest::*;
use crate::{copy, fresh};

pub fn sealable() -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    File::from(memfd_create(c"copy", flags).unwrap())
}

fn seal(file: &File) {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A started and killed machine: its memory belongs to nobody.
fn orphan() -> Guest {
    let (daemon, guest) = Guest::new(machine());
    daemon.kill();
    guest
}

/// SET_SHM and CHECK_SHM of `file` both say `errno`, and leave it alone.
fn refused(client: &Client, request: &SetShm, file: &File, errno: i32, what: &str) {
    let before = bytes(file);
    let refusal = client.call_fds(request, &[file.as_fd()]).expect_err(what);
    assert_eq!(refusal.errno, errno, "{what}: {}", refusal.text);
    let check = CheckShm {
        shm: request.clone(),
    };
    let (checked, _) = client.call_fds(&check, &[file.as_fd()]).unwrap();
    assert_eq!(checked.errno, errno as u32, "{what}: {}", checked.text.0);
    assert!(!checked.text.0.is_empty());
    assert!(bytes(file) == before, "{what}: the memory has changed");
}

#[test]
fn damaged_foreign_or_unsealed_memory_is_refused_unchanged() {
    let guest = orphan();
    let (_daemon, client) = fresh();
    let good = guest.shm_request();
    let size = guest.info.size;

    let unsealed = copy(&guest, size);
    refused(&client, &good, &unsealed, libc::EPERM, "no seals");
    for cut in [0, 4096, size - 4096, size + 4096] {
        let file = copy(&guest, cut);
        seal(&file);
        refused(&client, &good, &file, libc::EUCLEAN, "another size");
    }
    let plain = tempfile::tempfile().unwrap();
    let refusal = client.call_fds(&good, &[plain.as_fd()]).unwrap_err();
    assert!([libc::EINVAL, libc::EPERM].contains(&refusal.errno));

    let words = [
        (word::MAGIC, 0, libc::EUCLEAN),
        (word::VERSIONS, 99, libc::EPROTONOSUPPORT),
        (word::INCOMPAT_FLAGS, 2, libc::EPROTONOSUPPORT),
        (word::MACHINE, u64::MAX, libc::EUCLEAN),
        (word::MACHINE + 1, u64::MAX, libc::EUCLEAN),
        (word::GENERATION, 7, libc::EUCLEAN),
        (word::GENERATION, 0, libc::EUCLEAN),
    ];
    for (at, value, errno) in words {
        let file = copy(&guest, size);
        file.write_all_at(&u64::to_ne_bytes(value), u64::from(at) * 8)
            .unwrap();
        seal(&file);
        refused(&client, &good, &file, errno, &format!("header word {at}"));
    }
    let message = |change: fn(&mut SetShm)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    for (request, errno) in [
        (message(|r| r.generation += 1), libc::EUCLEAN),
        (message(|r| r.generation = 0), libc::EUCLEAN),
        (message(|r| r.layout = 0), libc::EPROTONOSUPPORT),
        (message(|r| r.layout += 1), libc::EPROTONOSUPPORT),
        (message(|r| r.layout -= 1), libc::EUCLEAN),
        (message(|r| r.size -= 8), libc::EUCLEAN),
    ] {
        refused(&client, &request, &guest.shm, errno, "the message differs");
    }
    // After all this it takes the good one.
    let (taken, _) = client.call_fds(&good, &[guest.shm.as_fd()]).unwrap();
    assert_eq!(taken.generation, 2);
}

#[test]
fn memory_of_another_machine_is_refused_unchanged() {
    let guest = orphan();
    let (_daemon, client) = fresh();
    let mut other = machine();
    other.servers = 2;
    set_machine(&client, &other).unwrap();
    let request = guest.shm_request();
    refused(&client, &request, &guest.shm, libc::EEXIST, "machine");

    // The command line speaks too, also when SET_MACHINE does not.
    let (_daemon, socket) = Daemon::connected(&["--servers", "2"]);
    let client = Client::new(socket);
    client.hello();
    refused(&client, &request, &guest.shm, libc::EEXIST, "--servers");
}

#[test]
fn a_refused_memory_leaves_no_descriptor_and_no_mapping() {
    let guest = orphan();
    let (daemon, client) = fresh();
    let request = guest.shm_request();
    let unsealed = copy(&guest, guest.info.size);
    let wrong = SetShm {
        generation: 9,
        ..request
    };
    let attempt = || {
        for (request, file) in [(&wrong, &guest.shm), (&wrong, &unsealed)] {
            client.call_fds(request, &[file.as_fd()]).unwrap_err();
        }
    };
    attempt();
    let before = (daemon.fds(), daemon.mappings());
    (0..100).for_each(|_| attempt());
    assert_eq!((daemon.fds(), daemon.mappings()), before);
}
