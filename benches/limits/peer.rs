//! The same kind of round trip by others: GET_FEATURES to a process that serves it by the `vhost` crate's own handler, on
//! one CPU, beside bare messages of the same sizes. A line under the table, to compare the rows of channels with.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use vhost::VhostBackend;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{
    BackendReqHandler, Error, Frontend, GpuBackend, Result, VhostUserBackendReqHandler,
};

use crate::channel::{Echo, alternate};
use crate::rig::pin;
use crate::timing::{Budget, Ratio, median};

/// Names this program as the process with the crate's handler.
pub const HANDLER: &str = "--vhost-handler";
/// A header; and a header and a number.
const SIZES: [usize; 2] = [12, 20];

/// Prints the line.
pub fn measure(budget: Budget) {
    pin(0);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let own = std::env::current_exe().expect("this program has a path");
    let mut child = Command::new(own)
        .arg(HANDLER)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("this program can be started");
    let frontend = Frontend::from_stream(ours, 1);
    let mut ask = || _ = frontend.get_features().expect("features");
    let mut pairs = alternate(budget, &mut ask, &mut Echo::start(SIZES));
    let Ratio { value, lo, hi } = pairs.ratio();
    let (peer, limit) = (median(&mut pairs.ours), median(&mut pairs.limit));
    println!(
        "peer: GET_FEATURES by the vhost crate's handler, same CPU: {peer:.0} ns, limit {limit:.0} ns, \
         {value:.2} ({lo:.2} .. {hi:.2})"
    );
    drop(frontend);
    let _ = child.wait();
}

/// The process with the crate's handler.
pub fn handler() {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let stream = UnixStream::from(socket.expect("descriptor 0"));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::new(Features));
    while handler.handle_request().is_ok() {}
}

/// A back-end that has features and nothing else.
struct Features;

macro_rules! refused {
    ($($name:ident($($of:ty),*) -> $reply:ty;)*) => {$(
        fn $name(&self, $(_: $of),*) -> Result<$reply> {
            Err(Error::InvalidOperation("not measured"))
        }
    )*};
}

impl VhostUserBackendReqHandler for Features {
    fn get_features(&self) -> Result<u64> {
        Ok(1 << 32)
    }
    fn set_mem_table(
        &self,
        _: &[VhostUserMemoryRegion],
        _: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        Err(Error::InvalidOperation("not measured"))
    }
    refused! {
        set_owner() -> ();
        reset_owner() -> ();
        reset_device() -> ();
        set_features(u64) -> ();
        set_vring_num(u32, u32) -> ();
        set_vring_addr(u32, VhostUserVringAddrFlags, u64, u64, u64, u64) -> ();
        set_vring_base(u32, u32) -> ();
        get_vring_base(u32) -> VhostUserVringState;
        set_vring_kick(u8, Option<File>) -> ();
        set_vring_call(u8, Option<File>) -> ();
        set_vring_err(u8, Option<File>) -> ();
        get_protocol_features() -> VhostUserProtocolFeatures;
        set_protocol_features(u64) -> ();
        get_queue_num() -> u64;
        set_vring_enable(u32, bool) -> ();
        get_config(u32, u32, VhostUserConfigFlags) -> Vec<u8>;
        set_config(u32, &[u8], VhostUserConfigFlags) -> ();
        set_gpu_socket(GpuBackend) -> ();
        get_shared_object(VhostUserSharedMsg) -> File;
        get_inflight_fd(&VhostUserInflight) -> (VhostUserInflight, File);
        set_inflight_fd(&VhostUserInflight, File) -> ();
        get_max_mem_slots() -> u64;
        add_mem_region(&VhostUserSingleMemoryRegion, File, Option<bool>) -> Option<vhost::VhostUserMemoryRegionBase>;
        remove_mem_region(&VhostUserSingleMemoryRegion) -> ();
        set_device_state_fd(VhostTransferStateDirection, VhostTransferStatePhase, File) -> Option<File>;
        check_device_state() -> ();
        get_shmem_config() -> VhostUserShMemConfig;
        set_log_base(&VhostUserLog, File) -> ();
    }
}
