//! What the inner `vhost_user_backend::VhostUserDaemon` calls: a device without queues.
//!
//! Every call comes on the inner vhost-user thread while the owner of [`super::Standard`] waits for its outcome. So what is
//! recorded here (features, events, memory) is complete when the owner goes on. Nothing here blocks.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringRwLock};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;

use super::dirty_log::{DirtyLog, LogBitmap};
use super::guest_ram::{GuestRam, Table};

/// Device feature bit 0: PAPR requests are spoken on this socket. A front-end acknowledges it before HELLO, because a stock
/// back-end drops the connection on a request it does not know.
pub const FEATURE_PAPR_MESSAGES: u64 = 1;

/// What GET_FEATURES offers.
pub const FEATURES: u64 = FEATURE_PAPR_MESSAGES
    | VhostUserVirtioFeatures::LOG_ALL.bits()
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    | 1 << VIRTIO_F_VERSION_1;

/// What GET_PROTOCOL_FEATURES offers.
pub const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::REPLY_ACK
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::DEVICE_STATE)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::BACKEND_REQ);

/// Size of the configuration block, in bytes: the identity of the daemon, read by GET_CONFIG.
pub const IDENTITY_LEN: usize = 64;

/// What a standard request did that concerns the machine. The owner acts on it before it sends the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardEvent {
    /// RESET_DEVICE: reset the machine as MACHINE_RESET does. Features stay acknowledged, LOG_ALL among them.
    DeviceReset,
    /// The memory table is another one; queue addresses have to be validated anew when next used.
    MemoryChanged,
    /// SET_FEATURES, with the bits now acknowledged.
    FeaturesAcked(u64),
    /// SET_BACKEND_REQ_FD: there is a (new) channel for notes to the VMM.
    BackChannel,
}

/// The device behind the standard requests. Shared by the inner daemon and its owner.
#[derive(Debug)]
pub(super) struct StdBackend {
    acked: AtomicU64,
    identity: Mutex<[u8; IDENTITY_LEN]>,
    events: Mutex<Vec<StandardEvent>>,
    ram: GuestRam,
    log: Arc<DirtyLog>,
    /// What is answered to the next request about device state.
    verdict: Mutex<Result<(), String>>,
    /// The channel of SET_DEVICE_STATE_FD, until the owner takes it.
    channel: Mutex<Option<StateChannel>>,
}

/// Where device state goes, or comes from.
#[derive(Debug)]
pub struct StateChannel {
    /// The state comes in; else it goes out.
    pub loads: bool,
    /// Our end.
    pub file: File,
}

impl StdBackend {
    pub(super) fn new(identity: [u8; IDENTITY_LEN]) -> Self {
        Self {
            acked: AtomicU64::new(0),
            identity: Mutex::new(identity),
            events: Mutex::new(Vec::new()),
            ram: GuestRam::new(),
            log: Arc::new(DirtyLog::default()),
            verdict: Mutex::new(Err("nobody was asked".to_owned())),
            channel: Mutex::default(),
        }
    }

    pub(super) fn set_verdict(&self, verdict: Result<(), String>) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
    }

    fn verdict(&self) -> io::Result<()> {
        let verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        verdict.clone().map_err(io::Error::other)
    }

    pub(super) fn take_channel(&self) -> Option<StateChannel> {
        self.channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Features the VMM has acknowledged, 0 before SET_FEATURES.
    pub(super) fn acked(&self) -> u64 {
        // Acquire: pairs with the Release in `acked_features`.
        self.acked.load(Ordering::Acquire)
    }

    pub(super) fn set_identity(&self, identity: [u8; IDENTITY_LEN]) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    pub(super) fn take_events(&self) -> Vec<StandardEvent> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets all that belonged to a VMM: memory, log, features, events.
    pub(super) fn forget_vmm(&self) {
        self.ram.clear();
        self.log.clear();
        // Release: as in `acked_features`.
        self.acked.store(0, Ordering::Release);
        self.take_events();
    }

    /// There is another log.
    pub(super) fn guard_log(&self) {
        self.ram.guard_log(&self.log);
    }

    pub(super) fn note(&self, event: StandardEvent) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
    }
}

impl VhostUserBackend for StdBackend {
    type Bitmap = LogBitmap;
    type Vring = VringRwLock<GuestMemoryAtomic<Table>>;

    fn num_queues(&self) -> usize {
        0
    }

    fn max_queue_size(&self) -> usize {
        0
    }

    /// No queues, no worker threads.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn acked_features(&self, features: u64) {
        self.log
            .set_all(features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0);
        // Release: pairs with the Acquire in `acked`.
        self.acked.store(features, Ordering::Release);
        self.note(StandardEvent::FeaturesAcked(features));
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES
    }

    /// Keeps the acknowledged features: the crate forgets its own copy without telling, but a reset of the machine in the
    /// middle of a migration must not stop the log.
    fn reset_device(&self) {
        self.note(StandardEvent::DeviceReset);
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// Bytes beyond the block read as zero, which in the block means absent: a front-end may know a longer block than this
    /// daemon. (The protocol's error reply, one without data, leaves the stock front-end waiting for the data.)
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let identity = *self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let (Ok(offset), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
            return Vec::new();
        };
        let mut bytes: Vec<u8> = identity.into_iter().skip(offset).take(size).collect();
        bytes.resize(size, 0);
        bytes
    }

    fn update_memory(&self, made: GuestMemoryAtomic<Table>) -> io::Result<()> {
        self.ram.publish(&made, &self.log)?;
        self.note(StandardEvent::MemoryChanged);
        Ok(())
    }

    /// Never called: there are no workers.
    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        _vrings: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        Err(io::Error::other(format!(
            "event {event} on a device without queues"
        )))
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        self.verdict()?;
        if phase != VhostTransferStatePhase::STOPPED {
            return Err(io::Error::other("state moves while the device is stopped"));
        }
        let loads = direction == VhostTransferStateDirection::LOAD;
        let channel = StateChannel { loads, file };
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
        Ok(None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        self.verdict()
    }
}
