//! A daemon from its command line to its exit code: log, signals, limits, endpoint, serve.
//!
//! What a binary adds is its [`Versions`] and its name; the only exit is the end of its `main`.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use papr_intc_protocol::Versions;

use crate::cli::{Args, exit, failed};
use crate::memory::foreign;
use crate::server::endpoint;
use crate::server::event_loop::{Endpoint, EventLoop};
use crate::server::identity;
use crate::server::monitor::Monitor;

/// Does what the command line says, as a daemon of these versions.
pub fn main(args: &Args, versions: Versions) -> ExitCode {
    if args.print_capabilities {
        let capabilities = identity::capabilities(&versions);
        return match writeln!(std::io::stdout(), "{capabilities:#}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => failed(exit::FAILURE, &format!("stdout: {e}")),
        };
    }
    env_logger::Builder::new()
        // Everything passes the logger; SET_LOG_LEVEL moves the maximum.
        .filter_level(log::LevelFilter::Trace)
        .format_timestamp_millis()
        .init();
    log::set_max_level(args.log_level);
    match run(args, versions) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => failed(code, &line),
    }
}

/// Every vCPU takes two descriptors of ours, and a machine has up to 4,096.
fn raise_limit() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

type Failure = (u8, String);

fn run(args: &Args, versions: Versions) -> Result<(), Failure> {
    let failed = |what: &'static str| move |e| (exit::FAILURE, format!("{what}: {e}"));
    // Before any thread: all of them inherit the mask.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(failed("blocking signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).map_err(failed("signalfd"))?;

    raise_limit().map_err(failed("limit of open files"))?;
    foreign::install().map_err(failed("SIGBUS"))?;
    let endpoint = open_endpoint(args)?;
    let server = EventLoop::new(
        endpoint,
        signals,
        args.on_disconnect(),
        args.expected(),
        versions,
    );
    let monitor = args.monitor_path.as_deref().map(Monitor::bind).transpose();
    let monitor = monitor.map_err(|e| (exit::ENDPOINT, format!("--monitor-path: {e}")));
    let monitor = monitor.inspect_err(|_| unlink(args))?;
    let ended = server
        .and_then(|server| match monitor {
            Some(monitor) => server.monitored_by(monitor),
            None => Ok(server),
        })
        .and_then(EventLoop::run)
        .map_err(|e| (exit::FAILURE, e.to_string()));
    unlink(args);
    // Not in the macro: its arguments are evaluated only where the level is on.
    let ended = ended?;
    log::info!("ended: {ended:?}");
    Ok(())
}

fn unlink(args: &Args) {
    if let Some(path) = &args.socket_path {
        // Ours: `bind` would have failed had it existed. Gone already is fine.
        let _ = std::fs::remove_file(path);
    }
}

fn open_endpoint(args: &Args) -> Result<Endpoint, Failure> {
    if let Some(path) = &args.socket_path {
        let listener = UnixListener::bind(path);
        return listener.map(Endpoint::Listener).map_err(|e| {
            (
                exit::ENDPOINT,
                format!("--socket-path {}: {e}", path.display()),
            )
        });
    }
    let number = args
        .fd
        .ok_or((exit::USAGE, "neither --socket-path nor --fd".to_string()))?;
    let bad = |e: std::io::Error| (exit::ENDPOINT, format!("--fd {number}: {e}"));
    let fd: OwnedFd = endpoint::inherited(number).map_err(bad)?;
    if endpoint::is_listening(&fd).map_err(bad)? {
        endpoint::listen_anew(&fd).map_err(bad)?;
        Ok(Endpoint::Listener(UnixListener::from(fd)))
    } else {
        Ok(Endpoint::Connected(UnixStream::from(fd)))
    }
}
