//! Calls that go to the daemon, on one CPU with it, beside messages of the same sizes that a process which does
//! nothing sends back over the same kind of socket.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use papr_intc_frontend::protocol::wire::guest::{Hcall, Mmio, Rtas};
use papr_intc_frontend::protocol::wire::{HEADER_BYTES, Request, Wire, reply_body, request_body};

use crate::rig::{PRIORITY, Rig, machine, management, no_kick, pin};
use crate::table::Row;
use crate::timing::{Budget, Pairs, Sense, timed};

/// Names this program as the process that does nothing.
pub const ECHO: &str = "--echo";
/// Round trips in a row.
const TURN: usize = 20;

/// The rows; each is given to `add` as soon as it is measured.
pub fn measure(budget: Budget, mut add: impl FnMut(Row)) {
    pin(0);
    let mut row = |path: &str, sizes: [usize; 2], ours: &mut dyn FnMut()| {
        let pairs = alternate(budget, ours, &mut Echo::start(sizes));
        add(Row::new(path, pairs, Sense::Max, 1.25).gate());
    };
    {
        let rig = start(IcMode::Xive, Executor::FrontEnd);
        let lisn = u64::from(rig.first());
        let mut turn = 0;
        row(
            "H_INT_SET_SOURCE_CONFIG, same CPU",
            hcall_sizes(),
            &mut || {
                turn ^= 1;
                let mut args = [0, lisn, 0, PRIORITY.into(), turn, 0, 0, 0, 0];
                let done = rig.vcpus[0].hcall(opcode::H_INT_SET_SOURCE_CONFIG, &mut args);
                assert_eq!(done.ok(), Some(0), "H_INT_SET_SOURCE_CONFIG");
            },
        );
    }
    {
        let rig = start(IcMode::Xics, Executor::FrontEnd);
        let cells = [rig.first(), 0, PRIORITY.into()];
        row("ibm,set-xive, same CPU", rtas_sizes(), &mut || {
            let done = rig.vcpus[0].rtas(RtasCall::SetXive, &cells, 1);
            assert_eq!(done.ok(), Some(vec![0]), "ibm,set-xive");
        });
    }
    let rig = start(IcMode::Xive, Executor::Daemon);
    let offset = management(rig.first());
    row(
        "remote ESB load, set PQ, same CPU",
        mmio_sizes(),
        &mut || {
            _ = rig.vcpus[0].esb_load(offset + 0xd00, 8);
        },
    );
    row(
        "remote H_INT_GET_SOURCE_CONFIG, same CPU",
        hcall_sizes(),
        &mut || {
            let mut args = [0, u64::from(rig.first()), 0, 0, 0, 0, 0, 0, 0];
            let done = rig.vcpus[0].hcall(opcode::H_INT_GET_SOURCE_CONFIG, &mut args);
            assert_eq!(done.ok(), Some(0), "H_INT_GET_SOURCE_CONFIG");
        },
    );
}

/// Round trips of `ours` and of `echo`, in turns.
pub fn alternate(budget: Budget, ours: &mut dyn FnMut(), echo: &mut Echo) -> Pairs {
    let mut pairs = Pairs::in_turns(TURN);
    let begun = std::time::Instant::now();
    while begun.elapsed() < budget.time || pairs.ours.len() < TURN {
        pairs.ours.extend((0..TURN).map(|_| timed(&mut *ours)));
        let back = (0..TURN).map(|_| timed(|| echo.round_trip()));
        pairs.limit.extend(back);
    }
    pairs
}

fn start(ic_mode: IcMode, executor: Executor) -> Rig {
    Rig::start(machine(ic_mode, 64, 1), executor, no_kick()).expect("a machine")
}

/// Bytes of a request and of its reply.
fn sizes<R: Request>(request: &R) -> [usize; 2]
where
    R::Reply: Wire,
{
    // A reply of zero bytes is that of its shape: all fields are numbers.
    let zeros = vec![0; 4096];
    let reply = (0..zeros.len()).find_map(|n| R::Reply::from_bytes(&zeros[..n]).ok());
    let reply = reply.expect("a reply of numbers");
    [
        HEADER_BYTES + request_body(1, 0, request).len(),
        HEADER_BYTES + reply_body(1, &reply).len(),
    ]
}

fn hcall_sizes() -> [usize; 2] {
    sizes(&Hcall {
        server: 0,
        zero: 0,
        opcode: 0,
        args: [0; 9],
        time_base: 0,
    })
}

fn rtas_sizes() -> [usize; 2] {
    sizes(&Rtas {
        server: 0,
        call: 1,
        nargs: 3,
        nret: 1,
        args: [0; 16],
    })
}

fn mmio_sizes() -> [usize; 2] {
    sizes(&Mmio {
        server: 0,
        space: 0,
        offset: 0,
        size: 8,
        store: 0,
        value: 0,
    })
}

/// The process that does nothing, and our end of its socket.
pub struct Echo {
    child: Child,
    stream: Option<UnixStream>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Echo {
    /// It runs where the caller runs.
    pub fn start(sizes: [usize; 2]) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let own = std::env::current_exe().expect("this program has a path");
        let child = Command::new(own)
            .arg(ECHO)
            .args(sizes.map(|n| n.to_string()))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("this program can be started");
        Self {
            child,
            stream: Some(ours),
            request: vec![1; sizes[0]],
            reply: vec![0; sizes[1]],
        }
    }

    /// There and back.
    pub fn round_trip(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.write_all(&self.request).expect("bytes there");
            stream.read_exact(&mut self.reply).expect("bytes back");
        }
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Its end of file.
        drop(self.stream.take());
        let _ = self.child.wait();
    }
}

/// The process itself.
pub fn echo(sizes: &[String]) {
    let size = |i: usize| sizes.get(i).and_then(|s| s.parse().ok()).unwrap_or(1);
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let mut stream = UnixStream::from(socket.expect("descriptor 0"));
    let (mut request, reply) = (vec![0; size(0)], vec![0; size(1)]);
    while stream.read_exact(&mut request).is_ok() {
        if stream.write_all(&reply).is_err() {
            return;
        }
    }
}
