//! The standard half as a front-end meets it: the stock `vhost::vhost_user::Frontend`, or raw messages, over a socketpair,
//! with a thread that does what the control thread does with [`Standard`].

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostTransferStateDirection as Direction, VhostTransferStatePhase as Phase,
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};

use super::*;
use crate::server::socket::{FLAG_NEED_REPLY, recv_message, send_message};

mod logging;
mod memory;
mod model;
mod negotiation;
mod refusal;

const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

fn identity() -> [u8; IDENTITY_LEN] {
    std::array::from_fn(|i| 0x40 + i as u8)
}

/// The daemon's side: serves one connection until the VMM hangs up, and hands the standard half back.
struct Daemon {
    thread: JoinHandle<Standard>,
    events: Receiver<StandardEvent>,
    ram: GuestRam,
}

fn serve(mut standard: Standard) -> (UnixStream, Daemon) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let (sender, events) = channel();
    let ram = standard.ram();
    let thread = std::thread::spawn(move || {
        while let Some(message) = recv_message(&ours, None).unwrap() {
            let served = standard.serve(message).unwrap();
            served
                .events
                .into_iter()
                .for_each(|event| sender.send(event).unwrap());
            if let Some(reply) = served.reply {
                reply.send(&ours, LONG).unwrap();
            }
        }
        standard
    });
    (
        theirs,
        Daemon {
            thread,
            events,
            ram,
        },
    )
}

impl Daemon {
    fn events(&self) -> Vec<StandardEvent> {
        self.events.try_iter().collect()
    }

    /// After the VMM's socket has been dropped.
    fn standard(self) -> Standard {
        self.thread.join().unwrap()
    }
}

/// A stock front-end that has shaken hands and asks for acknowledgements.
fn stock() -> (Frontend, Daemon) {
    let (socket, daemon) = serve(Standard::new(identity()).unwrap());
    (shake_hands(socket, FEATURES & !LOG_ALL), daemon)
}

fn shake_hands(socket: UnixStream, features: u64) -> Frontend {
    let mut vmm = Frontend::from_stream(socket, 0);
    vmm.set_owner().unwrap();
    assert_eq!(vmm.get_features().unwrap(), FEATURES);
    let offered = vmm.get_protocol_features().unwrap();
    assert_eq!(offered, PROTOCOL_FEATURES);
    vmm.set_protocol_features(offered).unwrap();
    vmm.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    vmm.set_features(features).unwrap();
    vmm
}

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("guest-ram", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// A region whose guest address tells it apart from its file offset and its address in the VMM.
fn region(file: &File, gpa: u64, size: u64, offset: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: 0x7000_0000_0000u64.wrapping_add(gpa),
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn word_at(file: &File, offset: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Descriptors and mappings of this process that refer to `file`.
fn references(file: &File) -> usize {
    let inode = file.metadata().unwrap().ino();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds = fds.filter_map(|entry| std::fs::metadata(entry.unwrap().path()).ok());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(4)?.parse().ok());
    fds.map(|meta| meta.ino())
        .chain(mapped)
        .filter(|found| *found == inode)
        .count()
}

/// A connection on which messages are written by hand.
struct Raw(UnixStream);

impl Raw {
    fn send(&self, request: impl Into<u32>, flags: u32, body: &[u8], fds: &[&File]) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|file| file.as_fd()).collect();
        send_message(&self.0, request.into(), flags, body, &fds, LONG).unwrap();
    }

    /// The next reply, which must be to `request`.
    fn reply(&self, request: impl Into<u32>) -> Vec<u8> {
        let message = recv_message(&self.0, Some(LONG)).unwrap().unwrap();
        assert!(message.is_reply());
        assert_eq!(message.request, request.into());
        message.body
    }

    fn ask(&self, request: FrontendReq, body: &[u8]) -> Vec<u8> {
        self.send(request, 0, body, &[]);
        self.reply(request)
    }

    /// Nothing is on its way: the next message answers this question.
    fn still_works(&self) {
        assert_eq!(
            self.ask(FrontendReq::GET_FEATURES, &[]),
            FEATURES.to_ne_bytes()
        );
    }
}

fn raw() -> (Raw, Daemon) {
    let (socket, daemon) = serve(Standard::new(identity()).unwrap());
    (Raw(socket), daemon)
}

/// The body of SET_MEM_TABLE: `(gpa, size, offset)` each.
fn table_body(regions: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut body = (regions.len() as u64).to_ne_bytes().to_vec();
    for (gpa, size, offset) in regions {
        for field in [*gpa, *size, 0x7000_0000_0000 + gpa, *offset] {
            body.extend(field.to_ne_bytes());
        }
    }
    body
}
