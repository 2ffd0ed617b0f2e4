//! A small vhost-user device, in a process of its own: the production topology of an interrupt. Its
//! VRING_CALL eventfd *is* an irqfd of papr-intc: the device writes it, the front-end (mapped mode) or the
//! daemon (remote mode) reads it, and the VMM is not in between.
//!
//!     vhost_device --socket-path PATH
//!
//! The device has one queue and inverts bits: of each chain it reads a word of eight bytes and writes its
//! complement behind it, into the part that the driver made writable. It calls after every buffer. It
//! knows nothing of interrupt controllers; a daemon of theirs may die as it likes. Serves one VMM, and ends
//! with it. The mock VMM starts it (`examples/mock_vmm/ring.rs` is the driver's side).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, RwLock};

use clap::Parser;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{
    Error, VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringState, VringT,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{
    Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;

/// Its only queue.
const QUEUE: u16 = 0;
/// Descriptors of the queue at most.
const QUEUE_SIZE: usize = 256;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// Inverts what a guest hands it, on a vhost-user connection.
#[derive(Debug, Parser)]
#[command(name = "vhost_device", version)]
struct Options {
    /// Create this socket and wait for a VMM [default: standard input is a listening socket]
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,
}

fn main() -> ExitCode {
    match serve(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("vhost_device: {what}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), String> {
    let listener = match &options.socket_path {
        Some(path) => UnixListener::bind(path),
        None => io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map(UnixListener::from),
    };
    let mut listener = Listener::from(listener.map_err(|e| format!("the socket: {e}"))?);
    let memory = Memory::new(GuestMemoryMmap::new());
    let device = Arc::new(RwLock::new(Inverter {
        memory: memory.clone(),
    }));
    let mut daemon =
        VhostUserDaemon::new("vhost_device".into(), device, memory).map_err(|e| e.to_string())?;
    daemon.start(&mut listener).map_err(|e| e.to_string())?;
    let ended = match daemon.wait() {
        // The VMM has gone.
        Err(Error::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => Ok(()),
        other => other.map_err(|e| e.to_string()),
    };
    // Its queue thread waits for kicks that will not come; to drop it would be to wait for that thread.
    std::mem::forget(daemon);
    ended
}

/// The device.
struct Inverter {
    memory: Memory,
}

impl Inverter {
    /// Every buffer that the driver has made available, one call each.
    fn process(&self, vring: &mut VringState<Memory>) -> io::Result<()> {
        let memory = self.memory.memory();
        while let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            // A chain that makes no sense is handed back without an answer.
            let written = invert(chain).unwrap_or(0);
            vring.add_used(head, written).map_err(io::Error::other)?;
            vring.signal_used_queue()?;
        }
        Ok(())
    }
}

/// Bytes written.
fn invert(chain: Chain) -> Option<u32> {
    let memory = chain.memory();
    let from = chain.clone().readable().next()?;
    let to = chain.clone().writable().next()?;
    let word: u64 = memory.read_obj(from.addr()).ok()?;
    memory.write_obj(!word, to.addr()).ok()?;
    Some(8)
}

impl VhostUserBackendMut for Inverter {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
    }

    /// VIRTIO_F_EVENT_IDX is not offered.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(
        &mut self,
        device_event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        match vrings.get(usize::from(device_event)) {
            Some(vring) if device_event == QUEUE => self.process(&mut vring.get_mut()),
            _ => Err(io::Error::other("an event of no queue")),
        }
    }
}
