//! The inner vhost-user daemon and the private connection to it.
//!
//! `VhostUserDaemon` takes its connection from a listener, not as a descriptor. The listener is bound in a directory of
//! mode 0700 and unlinked before anything listens to it, and is reached afterwards through an O_PATH descriptor, so no
//! other process can come in. (An abstract address would be open to the whole network namespace.) Needed afterwards:
//! /proc, connect, accept and a new thread, because each refused request costs the crate its connection, and the next one
//! is made here.
//!
//! Owned by the thread that owns [`super::Standard`]; it waits in [`Inner::call`] for the inner thread.

use std::fmt::Display;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use vhost::vhost_user::Listener;
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::tempdir::TempDir;

use super::backend::StdBackend;
use super::guest_ram::Table;
use crate::server::socket::{
    FLAG_NEED_REPLY, RawMessage, SEND_DEADLINE, recv_message, send_message,
};

/// Files in memory, for everybody: a folder on a disk may be waited for until the disk has forgotten it, which a guest
/// whose daemon was killed waits for too. Not there, or not for us: the temporary folder serves as well.
const MEMORY: &str = "/dev/shm";

/// How long the inner thread may take over one request. It maps memory and no more, so this is a bug when it is reached;
/// long, because a process that was stopped for a while is not one.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// The standard half cannot go on; the daemon has to end, and a new one be started.
#[derive(Debug, thiserror::Error)]
#[error("the standard vhost-user half failed: {what}: {why}")]
pub struct StandardError {
    what: &'static str,
    why: String,
}

impl StandardError {
    pub(super) fn new(what: &'static str, why: impl Display) -> Self {
        Self {
            what,
            why: why.to_string(),
        }
    }
}

/// The private listening socket, without a name.
struct Endpoint {
    listener: Listener,
    path: OwnedFd,
}

impl Endpoint {
    fn new() -> io::Result<Self> {
        if std::env::var_os("TMPDIR").is_some() {
            return Self::within(&std::env::temp_dir());
        }
        Self::within(Path::new(MEMORY)).or_else(|_| Self::within(&std::env::temp_dir()))
    }

    fn within(place: &Path) -> io::Result<Self> {
        let directory =
            TempDir::new_with_prefix(place.join("papr-intc.")).map_err(io::Error::from)?;
        let name = directory.as_path().join("s");
        let made = Self::at(&name);
        // In any case, and by calls that need no descriptor, of which there may be none left.
        let _ = std::fs::remove_file(&name);
        let removed = std::fs::remove_dir(directory.as_path());
        let made = made?;
        removed?;
        Ok(made)
    }

    fn at(name: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(name)?;
        let path = open(name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self {
            listener: Listener::from(listener),
            path,
        })
    }

    fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/self/fd/{}", self.path.as_raw_fd()))
    }
}

/// The inner daemon with its one connection.
pub(super) struct Inner {
    daemon: VhostUserDaemon<Arc<StdBackend>>,
    endpoint: Endpoint,
    socket: UnixStream,
}

impl Inner {
    /// Starts the inner daemon, with no memory and nothing negotiated.
    pub(super) fn new(backend: &Arc<StdBackend>) -> Result<Self, StandardError> {
        let mut endpoint = Endpoint::new()
            .map_err(|e| StandardError::new("no private socket in the temporary directory", e))?;
        let mut daemon = fresh(backend)?;
        let socket = connect(&mut daemon, &mut endpoint)?;
        Ok(Self {
            daemon,
            endpoint,
            socket,
        })
    }

    /// Starts over: an inner daemon without memory, with nothing negotiated.
    pub(super) fn renew(&mut self, backend: &Arc<StdBackend>) -> Result<(), StandardError> {
        self.end()?;
        self.daemon = fresh(backend)?;
        self.socket = connect(&mut self.daemon, &mut self.endpoint)?;
        Ok(())
    }

    /// Ends the connection and makes the next one. The memory table stays; what was negotiated is forgotten. Returns why
    /// the old connection ended, in the crate's words.
    pub(super) fn reconnect(&mut self) -> Result<String, StandardError> {
        let why = self.end()?;
        self.socket = connect(&mut self.daemon, &mut self.endpoint)?;
        Ok(why)
    }

    /// Sends one request, asking for the acknowledgement, and waits for the reply. None: the inner daemon refused it by
    /// hanging up; [`Self::reconnect`] is due.
    pub(super) fn call(
        &mut self,
        request: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<RawMessage>, StandardError> {
        send_message(
            &self.socket,
            request,
            FLAG_NEED_REPLY,
            body,
            fds,
            SEND_DEADLINE,
        )
        .map_err(|e| StandardError::new("a request was not delivered", e))?;
        recv_message(&self.socket, Some(CALL_DEADLINE))
            .map_err(|e| StandardError::new("a request was not answered", e))
    }

    fn end(&mut self) -> Result<String, StandardError> {
        // Fails only if the other end has gone already, which is just as well.
        let _gone = self.socket.shutdown(Shutdown::Both);
        match self.daemon.wait() {
            Ok(()) => Ok("the connection was closed".into()),
            Err(error @ Error::WaitDaemon(_)) => Err(StandardError::new("it panicked", error)),
            Err(error) => Ok(error.to_string()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("{error}");
        }
    }
}

fn fresh(backend: &Arc<StdBackend>) -> Result<VhostUserDaemon<Arc<StdBackend>>, StandardError> {
    let memory = GuestMemoryAtomic::new(Table::new());
    VhostUserDaemon::new("vhost-user".into(), Arc::clone(backend), memory)
        .map_err(|e| StandardError::new("no inner daemon", e))
}

/// Our end first: it waits in the backlog, so the accept does not block.
fn connect(
    daemon: &mut VhostUserDaemon<Arc<StdBackend>>,
    endpoint: &mut Endpoint,
) -> Result<UnixStream, StandardError> {
    let socket = endpoint
        .connect()
        .map_err(|e| StandardError::new("no private connection", e))?;
    daemon
        .start(&mut endpoint.listener)
        .map_err(|e| StandardError::new("the inner daemon did not start", e))?;
    Ok(socket)
}
