//! A virtio queue between the guest and `examples/vhost_device`: the guest's driver, and the VMM as
//! vhost-user front-end. The device calls on an eventfd that is the irqfd of the source.
//!
//! The ground truth is in the ring: the device publishes a buffer as used, then calls. A handler that
//! never runs leaves buffers that nobody has taken back, however well the device works.
//!
//! | at | what |
//! |---|---|
//! | 0 | descriptors: slot `i` has number `2i` (the request, read) and `2i + 1` (the answer, written) |
//! | 0x1000 | available ring |
//! | 0x2000 | used ring |
//! | 0x3000 | buffers, 32 bytes a slot: request (its number), time of sending, answer |

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use papr_intc_frontend::GuestRam;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::board::{Gone, Step};
use crate::cells::now;

/// Bytes of guest RAM that it takes.
pub const SIZE: u64 = 0x4000;

const SLOTS: u64 = 16;
/// Two descriptors a slot.
const QUEUE_SIZE: u16 = 2 * SLOTS as u16;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x3000;
/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A queue, its driver and its device.
pub struct Ring {
    ram: Arc<GuestRam>,
    at: u64,
    kick: EventFd,
    call: EventFd,
    driver: Mutex<Driver>,
    device: Mutex<Child>,
    /// The connection: the device ends with it.
    _front_end: Frontend,
}

/// What the driver remembers.
#[derive(Debug, Default)]
struct Driver {
    /// Buffers made available.
    sent: u64,
    /// Buffers taken back.
    taken: u64,
}

/// A buffer that the device has completed and the handler has taken back.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Its number, from 1.
    pub number: u64,
    /// When it was made available, in nanoseconds of [`now`].
    pub stamp: u64,
}

impl Ring {
    /// Starts the device `binary` on a ring at `at`; it will write `call`.
    pub fn start(binary: &Path, ram: Arc<GuestRam>, at: u64, call: EventFd) -> io::Result<Self> {
        let place = tempfile::tempdir()?;
        let path = place.path().join("vhost");
        let listener = UnixListener::bind(&path)?;
        let device = Command::new(binary)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .spawn()?;
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let front_end = Frontend::connect(&path, 1)
            .and_then(|mut front_end| {
                introduce(&mut front_end, &ram, at, &kick, &call)?;
                Ok(front_end)
            })
            .map_err(io::Error::other)?;
        Ok(Self {
            ram,
            at,
            kick,
            call,
            driver: Mutex::default(),
            device: Mutex::new(device),
            _front_end: front_end,
        })
    }

    fn word(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.at + offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Step {
        let written = self.ram.memory().write_slice(bytes, self.word(offset));
        written.map_err(|e| Gone(format!("the ring: {e}")))
    }

    fn read<const N: usize>(&self, offset: u64) -> Step<[u8; N]> {
        let mut bytes = [0; N];
        let read = self.ram.memory().read_slice(&mut bytes, self.word(offset));
        read.map_err(|e| Gone(format!("the ring: {e}")))?;
        Ok(bytes)
    }

    /// There is room for another buffer.
    pub fn has_room(&self) -> bool {
        let driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        driver.sent - driver.taken < SLOTS
    }

    /// Makes buffer `number` available, the one after the last, and kicks the device. There is room.
    pub fn send(&self, number: u64) -> Step {
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (number - 1) % SLOTS;
        let buffer = BUFFERS + slot * 32;
        let (head, gpa) = (2 * slot as u16, self.at + buffer);
        self.write(buffer, &number.to_le_bytes())?;
        self.write(buffer + 8, &now().to_le_bytes())?;
        self.write(buffer + 16, &[0; 8])?;
        self.describe(head, gpa, VRING_DESC_F_NEXT as u16)?;
        self.describe(head + 1, gpa + 16, VRING_DESC_F_WRITE as u16)?;
        let place = driver.sent % u64::from(QUEUE_SIZE);
        self.write(AVAILABLE + 4 + 2 * place, &head.to_le_bytes())?;
        driver.sent += 1;
        // Release: pairs with the device's Acquire load of the index; it finds the buffer written.
        let index = (driver.sent as u16).to_le();
        let stored = self
            .ram
            .memory()
            .store(index, self.word(AVAILABLE + 2), Ordering::Release);
        stored.map_err(|e| Gone(format!("the ring: {e}")))?;
        drop(driver);
        self.kick
            .write(1)
            .map_err(|e| Gone(format!("the kick: {e}")))
    }

    fn describe(&self, index: u16, gpa: u64, flags: u16) -> Step {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&gpa.to_le_bytes());
        descriptor[8..12].copy_from_slice(&8u32.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&(index + 1).to_le_bytes());
        self.write(16 * u64::from(index), &descriptor)
    }

    /// The handler takes back everything that is used; the last of it.
    ///
    /// # Errors
    /// The device did not do what it is for.
    pub fn take(&self) -> Step<Option<Taken>> {
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        // Acquire: pairs with the device's Release store of the index; the answers are there.
        let used = self.ram.memory();
        let used: u16 = used
            .load(self.word(USED + 2), Ordering::Acquire)
            .map_err(|e| Gone(format!("the ring: {e}")))?;
        let used = u16::from_le(used);
        let mut last = None;
        while driver.taken as u16 != used && driver.taken < driver.sent {
            let place = driver.taken % u64::from(QUEUE_SIZE);
            let number = driver.taken + 1;
            let buffer = BUFFERS + (driver.taken % SLOTS) * 32;
            let head = u32::from_le_bytes(self.read(USED + 4 + 8 * place)?);
            let answer = u64::from_le_bytes(self.read(buffer + 16)?);
            if u64::from(head) != 2 * (driver.taken % SLOTS) || answer != !number {
                return Err(Gone(format!(
                    "buffer {number} came back as descriptor {head} with {answer:#x}"
                )));
            }
            let stamp = u64::from_le_bytes(self.read(buffer + 8)?);
            last = Some(Taken { number, stamp });
            driver.taken += 1;
        }
        Ok(last)
    }

    /// The device calls again, as one that was just initialised may.
    pub fn call_again(&self) -> Step {
        let called = self.call.write(1);
        called.map_err(|e| Gone(format!("the call: {e}")))
    }

    /// Ends the device. It must have lived until now.
    pub fn quit(&self) -> Step {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = device.try_wait();
        let _ = device.kill();
        let _ = device.wait();
        match ended {
            Ok(None) => Ok(()),
            other => Err(Gone(format!("the vhost-user device has ended: {other:?}"))),
        }
    }
}

impl Drop for Ring {
    /// Never left running, nor as a zombie.
    fn drop(&mut self) {
        let _ = self.quit();
    }
}

/// What a VMM tells a vhost-user device: features, memory, the queue.
fn introduce(
    front_end: &mut Frontend,
    ram: &GuestRam,
    at: u64,
    kick: &EventFd,
    call: &EventFd,
) -> Result<(), vhost::Error> {
    let features = 1 << VIRTIO_F_VERSION_1 | PROTOCOL_FEATURES;
    front_end.set_owner()?;
    front_end.set_features(front_end.get_features()? & features)?;
    let offered = front_end.get_protocol_features()?;
    front_end.set_protocol_features(offered & VhostUserProtocolFeatures::REPLY_ACK)?;
    let regions: Vec<_> = ram
        .memory()
        .iter()
        .map(VhostUserMemoryRegionInfo::from_guest_region)
        .collect::<Result<_, _>>()?;
    front_end.set_mem_table(&regions)?;
    // The ring is in the first region, which begins at 0.
    let base = regions.first().map_or(0, |r| r.userspace_addr) + at;
    front_end.set_vring_num(0, QUEUE_SIZE)?;
    front_end.set_vring_addr(
        0,
        &VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: base,
            used_ring_addr: base + USED,
            avail_ring_addr: base + AVAILABLE,
            log_addr: None,
        },
    )?;
    front_end.set_vring_base(0, 0)?;
    front_end.set_vring_call(0, call)?;
    front_end.set_vring_kick(0, kick)?;
    front_end.set_vring_enable(0, true)?;
    Ok(())
}
