//! What the standard half holds of the process: descriptors, threads, mappings. One test, because it counts for the whole
//! process and changes its limit of open files.

// Tests say what they mean with unwrap; clippy's own exception does not reach helpers of integration tests.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use papr_intc::server::socket::{Progress, Reader, ReceiveError, recv_message, send_message};
use papr_intc::server::standard::{FEATURES, PROTOCOL_FEATURES, Standard};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};

const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Open descriptors, threads and mapped memfds of this process.
fn held() -> (usize, usize, usize) {
    let count = |path| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memfds = maps.lines().filter(|line| line.contains("/memfd:")).count();
    (count("/proc/self/fd"), count("/proc/self/task"), memfds)
}

/// A thread that was joined is listed until the kernel has put it away, which it does soon, but not at once.
fn assert_held(expected: (usize, usize, usize)) {
    for _ in 0..100_000 {
        if held() == expected {
            return;
        }
        std::thread::yield_now();
    }
    assert_eq!(held(), expected, "descriptors, threads, mappings");
}

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("guest-ram", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn region(file: &File, gpa: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: MIB,
        userspace_addr: 0x7000_0000_0000 + gpa,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

/// A whole life of a VMM: handshake, every memory slot there is, log, channel, reset, refusals. Leaves without a word.
fn session(standard: &mut Standard) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let daemon = scope.spawn(move || {
            while let Some(message) = recv_message(&ours, None).unwrap() {
                if let Some(reply) = standard.serve(message).unwrap().reply {
                    reply.send(&ours, LONG).unwrap();
                }
            }
            standard.connection_ended().unwrap();
        });
        let mut vmm = Frontend::from_stream(theirs, 0);
        let ram = memfd(MIB);
        let log = memfd(MIB);
        vmm.set_owner().unwrap();
        vmm.get_features().unwrap();
        vmm.get_protocol_features().unwrap();
        vmm.set_protocol_features(PROTOCOL_FEATURES).unwrap();
        vmm.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        vmm.set_features(FEATURES).unwrap();
        let slots = vmm.get_max_mem_slots().unwrap();
        for slot in 0..slots {
            vmm.add_mem_region(&region(&ram, slot * MIB)).unwrap();
        }
        vmm.add_mem_region(&region(&ram, slots * MIB))
            .expect_err("one slot too many");
        let mapped = VhostUserDirtyLogRegion {
            mmap_size: MIB,
            mmap_offset: 0,
            mmap_handle: log.as_raw_fd(),
        };
        vmm.set_log_base(0, Some(mapped)).unwrap();
        vmm.set_backend_request_fd(&UnixStream::pair().unwrap().0)
            .unwrap();
        vmm.get_config(0, 64, VhostUserConfigFlags::empty(), &[0; 64])
            .unwrap();
        vmm.reset_device().unwrap();
        vmm.set_features(!0).unwrap_err();
        drop(vmm);
        daemon.join().unwrap();
    });
}

/// Descriptors that do not fit under the limit of open files: those that did arrive do not stay.
fn receive_at_the_limit() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let file = memfd(4096);
    send_message(&theirs, 0x1022, 0, &[], &[file.as_fd(); 100], LONG).unwrap();
    let before = held().0;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The descriptors in use are the lowest, give or take the one that counted them.
    setrlimit(Resource::RLIMIT_NOFILE, before as u64 + 20, hard).unwrap();
    let mut reader = Reader::new();

    let error = reader.poll_message(&ours);

    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(matches!(error, Err(ReceiveError::FdsLost)), "{error:?}");
    assert_eq!(held().0, before);
    assert!(matches!(reader.poll_message(&ours), Ok(Progress::Closed)));
}

#[test]
fn nothing_is_held_beyond_its_time() {
    receive_at_the_limit();

    let before = held();
    let mut standard = Standard::new([0; 64]).unwrap();
    let idle = held();
    assert_eq!(idle.1, before.1 + 1, "one thread");
    for _ in 0..3 {
        session(&mut standard);
        assert_held(idle);
    }
    drop(standard);
    assert_held(before);
}
