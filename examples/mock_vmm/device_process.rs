//! Devices in a process of their own: they kick eventfds, as a vhost-user back-end or VFIO does.
//!
//! The example starts itself again with `--device-process`; the child inherits the memfd of the cells
//! and one eventfd per source. Between the two runs a pipe of one-letter orders, each answered with
//! the same letter: `r`un, `p`ause, `q`uit, and `i` followed by a source's number (8 bytes) to signal
//! again what no handler has read.
//!
//! The child knows nothing of the controller: it sees cells and eventfds.
#![allow(unsafe_code)] // Descriptors are passed by number to another process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use vmm_sys_util::eventfd::EventFd;

use crate::board::{Gone, Step};
use crate::cells::Cells;
use crate::rng::Rng;

/// The parent's end.
pub struct DeviceProcess {
    pipe: Mutex<Pipe>,
}

struct Pipe {
    child: Child,
    orders: ChildStdin,
    answers: ChildStdout,
}

impl DeviceProcess {
    /// Starts the child for the sources with eventfds.
    pub fn spawn(
        cells: &File,
        count: usize,
        eventfds: &[&(usize, EventFd)],
        seed: u64,
    ) -> io::Result<Self> {
        let list: Vec<String> = eventfds
            .iter()
            .map(|(source, fd)| format!("{source}:{}", fd.as_raw_fd()))
            .collect();
        let inherit = |yes| -> io::Result<()> {
            set_inheritable(cells, yes)?;
            eventfds
                .iter()
                .try_for_each(|(_, fd)| set_inheritable(fd, yes))
        };
        // Nothing else is spawned before the flags are back: the daemon starts later.
        inherit(true)?;
        let child = Command::new(std::env::current_exe()?)
            .arg("--device-process")
            .arg(cells.as_raw_fd().to_string())
            .args(["--cells", &count.to_string(), "--seed", &seed.to_string()])
            .args(["--eventfds", &list.join(",")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        inherit(false)?;
        let mut child = child?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the device process has no pipes"));
        };
        let pipe = Mutex::new(Pipe {
            child,
            orders,
            answers,
        });
        Ok(Self { pipe })
    }

    fn order(&self, order: &[u8]) -> Step {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = [0];
        pipe.orders
            .write_all(order)
            .and_then(|()| pipe.answers.read_exact(&mut answer))
            .map_err(|e| Gone(format!("device process: {e}")))
    }

    /// Lets the devices send.
    pub fn run(&self) -> Step {
        self.order(b"r")
    }

    /// Stops them; on return none is sending.
    pub fn pause(&self) -> Step {
        self.order(b"p")
    }

    /// One device signals again what no handler has read.
    pub fn reissue(&self, source: usize) -> Step {
        let mut order = vec![b'i'];
        order.extend_from_slice(&(source as u64).to_le_bytes());
        self.order(&order)
    }

    /// Ends the child and waits for it.
    pub fn quit(&self) {
        let _ = self.order(b"q");
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = pipe.child.wait();
    }
}

/// Whether a process started from here inherits the descriptor.
fn set_inheritable(fd: &impl AsRawFd, yes: bool) -> io::Result<()> {
    // SAFETY: `fd` owns the descriptor and outlives the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let flag = if yes {
        FdFlag::empty()
    } else {
        FdFlag::FD_CLOEXEC
    };
    fcntl(fd, FcntlArg::F_SETFD(flag))?;
    Ok(())
}

/// Takes over a descriptor that this process inherited.
fn inherited<T: FromRawFd>(number: RawFd) -> T {
    // SAFETY: the parent opened it for this process and named it once on the command line; nothing
    // here has used it before.
    unsafe { T::from_raw_fd(number) }
}

/// The child: what its command line says.
#[derive(Clone, Debug)]
pub struct ChildArguments {
    /// Descriptor of the cells' memfd.
    pub memfd: RawFd,
    /// How many cells there are.
    pub cells: usize,
    /// Seed of the run.
    pub seed: u64,
    /// `source:descriptor`, separated by commas.
    pub eventfds: String,
}

/// The child's life: sends until told to quit or until the parent is gone.
pub fn child(arguments: &ChildArguments) -> io::Result<()> {
    let cells = Cells::open(inherited::<File>(arguments.memfd), arguments.cells)?;
    let mut devices = Vec::new();
    for item in arguments.eventfds.split(',').filter(|s| !s.is_empty()) {
        let bad = || io::Error::other(format!("eventfd {item:?}"));
        let (source, fd) = item.split_once(':').ok_or_else(bad)?;
        let source: usize = source.parse().map_err(|_| bad())?;
        if source >= cells.len() {
            return Err(bad());
        }
        let fd = fd.parse().map_err(|_| bad())?;
        devices.push((source, inherited::<EventFd>(fd)));
    }
    let mut rng = Rng::new(arguments.seed, 0xdec);
    let mut running = false;
    loop {
        // While paused there is nothing to do but to wait for an order.
        while !running || order_waits(20 + rng.below(100))? {
            let Some(order) = next_order()? else {
                return Ok(());
            };
            match order {
                b'r' => running = true,
                b'p' => running = false,
                b'i' => reissue(&cells, &devices)?,
                _ => {}
            }
            io::stdout().write_all(&[order])?;
            io::stdout().flush()?;
            if order == b'q' {
                return Ok(());
            }
        }
        sweep(&cells, &devices, &mut rng)?;
    }
}

fn sweep(cells: &Cells, devices: &[(usize, EventFd)], rng: &mut Rng) -> io::Result<()> {
    for (source, event) in devices {
        if !cells.outstanding(*source) && !rng.one_in(3) {
            cells.post(*source);
            event.write(1)?;
        }
    }
    Ok(())
}

/// One source, named in the eight bytes that follow the order.
fn reissue(cells: &Cells, devices: &[(usize, EventFd)]) -> io::Result<()> {
    let mut number = [0; 8];
    io::stdin().read_exact(&mut number)?;
    let number = u64::from_le_bytes(number) as usize;
    match devices.iter().find(|(source, _)| *source == number) {
        Some((source, event)) if cells.outstanding(*source) => event.write(1),
        _ => Ok(()),
    }
}

/// `None`: the parent is gone.
fn next_order() -> io::Result<Option<u8>> {
    let mut order = [0];
    // `Stdin` reads ahead, but never past one order: the parent sends the next after the answer.
    Ok((io::stdin().read(&mut order)? == 1).then_some(order[0]))
}

/// Waits for an order for so many microseconds.
fn order_waits(microseconds: u64) -> io::Result<bool> {
    let time =
        nix::sys::time::TimeSpec::from_duration(std::time::Duration::from_micros(microseconds));
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut fds, Some(time), None) {
        Ok(n) => Ok(n > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
