//! The one epoll thread of the front-end: irqfds become triggers, the daemon's eventfds kicks.
//!
//! irqfds are read here while the front-end is the executor. [`Intake::pause`] stops that and
//! returns them all, to be handed to the daemon: a count that was not read stays in its eventfd and
//! belongs to whoever reads next; one that was read becomes a trigger, which finds the new executor
//! by itself. None is lost and none counted twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::error::Error;
use crate::event::Event;
use crate::sync::{lock, wait};

const IRQFD: u64 = 0;
const KICK: u64 = 1 << 32;
const WAKE: u64 = 2 << 32;
const KIND: u64 = 0xffff_ffff << 32;
const EVENTS: usize = 64;

/// What the thread does with what it reads.
pub(crate) trait Sink {
    /// An irqfd of this source had a count.
    fn trigger(&self, lisn: u32);
    /// The daemon wrote the eventfd of this vCPU.
    fn kicked(&self, server: u32);
}

/// The descriptors that the thread watches.
pub(crate) struct Intake {
    epoll: Epoll,
    wake: Event,
    stop: AtomicBool,
    table: Mutex<Table>,
    /// `Table::handling` changed.
    handled: Condvar,
}

struct Table {
    irqfds: BTreeMap<u32, Arc<Event>>,
    kicks: BTreeMap<u32, Arc<Event>>,
    /// The front-end reads the irqfds; otherwise the daemon does.
    reading: bool,
    /// The source whose count was read and which is being triggered.
    handling: Option<u32>,
}

impl Intake {
    /// Watches nothing yet.
    pub fn new(reading: bool) -> Result<Self, Error> {
        let flags = EpollCreateFlags::EPOLL_CLOEXEC;
        let epoll = Epoll::new(flags).map_err(Error::os("making an epoll descriptor"))?;
        let wake = Event::new()?;
        watch(&epoll, &wake, WAKE)?;
        Ok(Self {
            epoll,
            wake,
            stop: AtomicBool::new(false),
            table: Mutex::new(Table {
                irqfds: BTreeMap::new(),
                kicks: BTreeMap::new(),
                reading,
                handling: None,
            }),
            handled: Condvar::new(),
        })
    }

    /// Adds or replaces the irqfd of a source. `true`: it is read here; `false`: the daemon must be
    /// handed it.
    pub fn add_irqfd(&self, lisn: u32, fd: Event) -> Result<bool, Error> {
        let mut table = lock(&self.table);
        let fd = Arc::new(fd);
        if let Some(old) = table.irqfds.remove(&lisn)
            && table.reading
        {
            self.unwatch(&old);
        }
        if table.reading {
            watch(&self.epoll, &fd, IRQFD | u64::from(lisn))?;
        }
        table.irqfds.insert(lisn, fd);
        Ok(table.reading)
    }

    /// Forgets the irqfd of a source. When this returns, none of its counts is being triggered. `None`:
    /// it had none; `Some(false)`: the daemon must be told. Not to be called by the thread itself.
    pub fn remove_irqfd(&self, lisn: u32) -> Option<bool> {
        let mut table = lock(&self.table);
        let fd = table.irqfds.remove(&lisn)?;
        if table.reading {
            self.unwatch(&fd);
        }
        while table.handling == Some(lisn) {
            table = wait(&self.handled, table);
        }
        Some(table.reading)
    }

    /// The front-end reads no irqfd from now on. All of them, in order.
    pub fn pause(&self) -> Vec<(u32, Arc<Event>)> {
        let mut table = lock(&self.table);
        if table.reading {
            table.irqfds.values().for_each(|fd| self.unwatch(fd));
            table.reading = false;
        }
        listed(&table.irqfds)
    }

    /// The front-end reads the irqfds again.
    pub fn unpause(&self) -> Result<(), Error> {
        let mut table = lock(&self.table);
        if !table.reading {
            for (lisn, fd) in &table.irqfds {
                watch(&self.epoll, fd, IRQFD | u64::from(*lisn))?;
            }
            table.reading = true;
        }
        Ok(())
    }

    /// All irqfds, in order.
    pub fn irqfds(&self) -> Vec<(u32, Arc<Event>)> {
        listed(&lock(&self.table).irqfds)
    }

    /// Watches the eventfd that the daemon writes for a vCPU.
    pub fn add_kick(&self, server: u32, fd: Arc<Event>) -> Result<(), Error> {
        let mut table = lock(&self.table);
        watch(&self.epoll, &fd, KICK | u64::from(server))?;
        table.kicks.insert(server, fd);
        Ok(())
    }

    /// Stops watching it.
    pub fn remove_kick(&self, server: u32) {
        let mut table = lock(&self.table);
        if let Some(fd) = table.kicks.remove(&server) {
            self.unwatch(&fd);
        }
    }

    /// Ends [`run`](Self::run).
    pub fn stop(&self) {
        // Release pairs with the Acquire in `run`; the eventfd wakes it.
        self.stop.store(true, Ordering::Release);
        self.wake.signal();
    }

    /// The thread.
    pub fn run(&self, sink: &dyn Sink) {
        let mut events = [EpollEvent::empty(); EVENTS];
        while !self.stop.load(Ordering::Acquire) {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    log::error!("irqfds are not served any more: epoll_wait: {e}");
                    return;
                }
            };
            for event in &events[..ready] {
                self.handle(event.data(), sink);
            }
        }
    }

    fn handle(&self, token: u64, sink: &dyn Sink) {
        let number = token as u32;
        match token & KIND {
            IRQFD if self.take_count(number) => {
                sink.trigger(number);
                lock(&self.table).handling = None;
                self.handled.notify_all();
            }
            KICK => {
                let fd = lock(&self.table).kicks.get(&number).cloned();
                // Nobody else reads it. The read comes first: what is written after it kicks again.
                if fd.is_some_and(|fd| fd.take()) {
                    sink.kicked(number);
                }
            }
            _ => {}
        }
    }

    /// Reads the count of an irqfd, if it is still ours to read.
    fn take_count(&self, lisn: u32) -> bool {
        let mut table = lock(&self.table);
        let ours = table.reading;
        let read = ours && table.irqfds.get(&lisn).is_some_and(|fd| fd.take());
        if read {
            table.handling = Some(lisn);
        }
        read
    }

    fn unwatch(&self, fd: &Event) {
        // An error means that it was not watched.
        let _ = self.epoll.delete(fd);
    }
}

fn listed(fds: &BTreeMap<u32, Arc<Event>>) -> Vec<(u32, Arc<Event>)> {
    fds.iter().map(|(n, fd)| (*n, Arc::clone(fd))).collect()
}

fn watch(epoll: &Epoll, fd: &Event, token: u64) -> Result<(), Error> {
    let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
    epoll
        .add(fd, event)
        .map_err(Error::os("watching an eventfd"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::{self, JoinHandle};

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Trigger(u32),
        Kick(u32),
    }

    struct Record(Mutex<Sender<Seen>>);

    impl Sink for Record {
        fn trigger(&self, lisn: u32) {
            lock(&self.0).send(Seen::Trigger(lisn)).unwrap();
        }
        fn kicked(&self, server: u32) {
            lock(&self.0).send(Seen::Kick(server)).unwrap();
        }
    }

    fn start(reading: bool) -> (Arc<Intake>, Receiver<Seen>, JoinHandle<()>) {
        let intake = Arc::new(Intake::new(reading).unwrap());
        let (send, seen) = channel();
        let thread = thread::spawn({
            let intake = Arc::clone(&intake);
            move || intake.run(&Record(Mutex::new(send)))
        });
        (intake, seen, thread)
    }

    /// An eventfd for the intake, and the writer's copy.
    fn pair() -> (Event, Event) {
        let fd = Event::new().unwrap();
        let copy = Event(fd.as_fd().try_clone_to_owned().unwrap());
        (fd, copy)
    }

    #[test]
    fn counts_become_triggers_and_kicks() {
        let (intake, seen, thread) = start(true);
        let ((irqfd, device), (kick, daemon)) = (pair(), pair());
        assert!(intake.add_irqfd(0x1234, irqfd).unwrap());
        intake.add_kick(7, Arc::new(kick)).unwrap();
        device.signal();
        assert_eq!(seen.recv().unwrap(), Seen::Trigger(0x1234));
        daemon.signal();
        assert_eq!(seen.recv().unwrap(), Seen::Kick(7));
        intake.stop();
        thread.join().unwrap();
    }

    #[test]
    fn a_count_written_while_paused_stays_for_the_next_reader() {
        let (intake, seen, thread) = start(true);
        let (irqfd, device) = pair();
        intake.add_irqfd(5, irqfd).unwrap();
        let handed = intake.pause();
        assert_eq!(handed.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [5]);
        device.signal();
        // The daemon reads it once; a second count comes when the front-end reads again.
        assert!(handed[0].1.take());
        device.signal();
        intake.unpause().unwrap();
        assert_eq!(seen.recv().unwrap(), Seen::Trigger(5));
        intake.stop();
        thread.join().unwrap();
        assert!(seen.recv().is_err(), "counted twice");
    }

    #[test]
    fn while_the_daemon_reads_a_new_irqfd_is_left_to_it() {
        let (intake, seen, thread) = start(false);
        let (irqfd, device) = pair();
        assert!(!intake.add_irqfd(5, irqfd).unwrap());
        device.signal();
        assert_eq!(intake.remove_irqfd(5), Some(false));
        assert_eq!(intake.remove_irqfd(5), None);
        intake.stop();
        thread.join().unwrap();
        assert!(seen.recv().is_err() && device.take());
    }

    #[test]
    fn a_replaced_irqfd_is_not_read_any_more() {
        let (intake, seen, thread) = start(true);
        let ((old, old_device), (new, new_device)) = (pair(), pair());
        intake.add_irqfd(5, old).unwrap();
        intake.add_irqfd(5, new).unwrap();
        old_device.signal();
        new_device.signal();
        assert_eq!(seen.recv().unwrap(), Seen::Trigger(5));
        intake.stop();
        thread.join().unwrap();
        assert!(seen.recv().is_err() && old_device.take());
    }
}
