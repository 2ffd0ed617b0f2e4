//! An IPI from one vCPU to another: both poll their lines, or both sleep on an eventfd as halted vCPUs do; beside
//! a word, or an eventfd, that the same threads hand to each other.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use papr_intc_frontend::protocol::layout::{IcMode, Page};
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::{Executor, Kick, Vcpu};

use crate::cycle::{accept_and_end, end};
use crate::hop::{self, Side, Sides};
use crate::rig::{Rig, machine, no_kick, trigger_page};
use crate::table::Row;
use crate::timing::{Budget, Sense};

const MFRR: u64 = 4;
const NONE: u64 = 0xff;

/// How a vCPU waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Polling,
    Sleeping,
}

/// The rows; each is given to `add` as soon as it is measured.
pub fn measure(budget: Budget, mut add: impl FnMut(Row)) {
    for (ic_mode, name) in [(IcMode::Xics, "H_IPI"), (IcMode::Xive, "XIVE IPI")] {
        let row = |wait, cpus, how: &str, aim| {
            let (ours, limit, turn) = sides(ic_mode, wait);
            let pairs = hop::pairs(budget, turn, cpus, ours, limit);
            Row::new(
                &format!("{name} to another vCPU, {how}"),
                pairs,
                Sense::Max,
                aim,
            )
        };
        if crate::rig::cpus() > 1 {
            add(row(Wait::Polling, [0, 1], "both polling", 1.2).gate());
            add(row(Wait::Sleeping, [0, 1], "both sleeping", 1.1));
        }
        add(row(Wait::Sleeping, [0, 0], "both sleeping, same CPU", 1.1).gate());
    }
}

fn sides(ic_mode: IcMode, wait: Wait) -> (Sides, Sides, usize) {
    match wait {
        Wait::Polling => {
            let (rig, vcpus) = start(ic_mode, no_kick());
            let limit = [0, 1].map(|me| Box::new(Word::new(&rig, me)) as Box<dyn Side>);
            let mut vcpus = vcpus.into_iter();
            let ours = [0, 1].map(|me| {
                let vcpu = vcpus.next().expect("two vCPUs");
                Box::new(Polling(Guest::new(vcpu, ic_mode, me))) as Box<dyn Side>
            });
            (ours, limit, 1000)
        }
        Wait::Sleeping => {
            let beds: [Arc<Bed>; 2] = [0, 1].map(|_| Arc::new(Bed::new()));
            let kick: Kick = {
                let beds = beds.clone();
                Arc::new(move |server| beds[server as usize].wake())
            };
            let (_, vcpus) = start(ic_mode, kick);
            let mut vcpus = vcpus.into_iter();
            let ours = [0, 1].map(|me: usize| {
                let vcpu = vcpus.next().expect("two vCPUs");
                let guest = Guest::new(vcpu, ic_mode, me as u64);
                Box::new(Sleeping(guest, Arc::clone(&beds[me]))) as Box<dyn Side>
            });
            let events = [0, 1].map(|_| Arc::new(event()));
            let limit = [0, 1].map(|me: usize| {
                let (mine, other) = (Arc::clone(&events[me]), Arc::clone(&events[1 - me]));
                Box::new(Events { mine, other }) as Box<dyn Side>
            });
            (ours, limit, 50)
        }
    }
}

fn start(ic_mode: IcMode, kick: Kick) -> (Arc<Rig>, Vec<Vcpu>) {
    let rig = Rig::start(machine(ic_mode, 64, 2), Executor::FrontEnd, kick);
    let mut rig = rig.expect("a machine");
    let vcpus = std::mem::take(&mut rig.vcpus);
    (Arc::new(rig), vcpus)
}

/// A blocking eventfd.
pub fn event() -> File {
    let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
    File::from(std::os::fd::OwnedFd::from(fd))
}

/// Adds one.
pub fn signal(mut event: &File) {
    let _ = event.write(&1u64.to_ne_bytes());
}

/// Waits for a count and takes it.
pub fn sleep_on(mut event: &File) {
    let _ = event.read(&mut [0; 8]);
}

/// What a guest does with its vCPU.
struct Guest {
    vcpu: Vcpu,
    xive: bool,
    other: u64,
}

impl Guest {
    fn new(vcpu: Vcpu, ic_mode: IcMode, me: u64) -> Self {
        Self {
            vcpu,
            xive: ic_mode == IcMode::Xive,
            other: 1 - me,
        }
    }

    fn ipi(&self, server: u64, mfrr: u64) {
        let mut args = [server, mfrr, 0, 0, 0, 0, 0, 0, 0];
        _ = self.vcpu.hcall(opcode::H_IPI, &mut args);
    }

    fn send(&self) {
        if self.xive {
            _ = self.vcpu.esb_store(trigger_page(self.other as u32), 8, 0);
        } else {
            self.ipi(self.other, MFRR);
        }
    }

    fn clean(&self) {
        if self.xive {
            end(&self.vcpu, self.vcpu.server());
        } else {
            self.ipi(self.vcpu.server().into(), NONE);
            accept_and_end(&self.vcpu);
        }
    }
}

struct Polling(Guest);

impl Side for Polling {
    fn send(&mut self) {
        self.0.send();
    }
    fn wait(&mut self) {
        while !self.0.vcpu.pending() {}
    }
    fn clean(&mut self) {
        self.0.clean();
    }
}

/// Where a halted vCPU sleeps.
struct Bed {
    asleep: AtomicBool,
    event: File,
}

impl Bed {
    fn new() -> Self {
        Self {
            asleep: AtomicBool::new(false),
            event: event(),
        }
    }

    /// A vCPU that is awake looks by itself.
    fn wake(&self) {
        // SeqCst: `Sleeping::wait` stores it and then looks at the line, which was raised before this.
        if self.asleep.swap(false, Ordering::SeqCst) {
            signal(&self.event);
        }
    }
}

struct Sleeping(Guest, Arc<Bed>);

impl Side for Sleeping {
    fn send(&mut self) {
        self.0.send();
    }
    fn wait(&mut self) {
        let Self(guest, bed) = self;
        loop {
            bed.asleep.swap(true, Ordering::SeqCst);
            if guest.vcpu.pending() && bed.asleep.swap(false, Ordering::SeqCst) {
                return;
            }
            sleep_on(&bed.event);
            if guest.vcpu.pending() {
                return;
            }
        }
    }
    fn clean(&mut self) {
        self.0.clean();
    }
}

/// A word for each side, in lines of their own.
struct Word {
    rig: Arc<Rig>,
    me: u32,
    sent: u64,
    seen: u64,
}

impl Word {
    fn new(rig: &Arc<Rig>, me: u64) -> Self {
        Self {
            rig: Arc::clone(rig),
            me: me as u32,
            sent: 0,
            seen: 0,
        }
    }
    fn word(&self, of: u32) -> &AtomicU64 {
        self.rig.word(Page::Tima(of))
    }
}

impl Side for Word {
    fn send(&mut self) {
        self.sent += 1;
        self.word(1 - self.me).store(self.sent, Ordering::Release);
    }
    fn wait(&mut self) {
        self.seen += 1;
        while self.word(self.me).load(Ordering::Acquire) < self.seen {}
    }
}

/// An eventfd for each side.
struct Events {
    mine: Arc<File>,
    other: Arc<File>,
}

impl Side for Events {
    fn send(&mut self) {
        signal(&self.other);
    }
    fn wait(&mut self) {
        sleep_on(&self.mine);
    }
}
