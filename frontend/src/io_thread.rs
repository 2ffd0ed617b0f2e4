//! The one epoll thread of the front-end: irqfds become triggers, the daemon's eventfds kicks.
//!
//! irqfds are read here while the front-end is the executor. [`Intake::pause`] stops that and
//! returns them all, to be handed to the daemon: a count that was not read stays in its eventfd and
//! belongs to whoever reads next; one that was read becomes a trigger, which finds the new executor
//! by itself. None is lost and none counted twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::{self, ThreadId};

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

/// An eventfd that triggers a source, or drives its level.
#[derive(Clone, Debug)]
pub(crate) struct Irqfd {
    pub lisn: u32,
    /// Which input of a shared level; 0 for an edge.
    pub input: u32,
    pub trigger: Arc<Event>,
    /// Of a level: written when the guest has ended the interrupt.
    pub resample: Option<Arc<Event>>,
}

impl Irqfd {
    fn key(&self) -> Key {
        (self.lisn, self.input)
    }
}

/// Source and input.
type Key = (u32, u32);

/// What the thread does with what it reads.
pub(crate) trait Sink {
    /// This irqfd had a count.
    fn trigger(&self, irqfd: &Irqfd);
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
    /// Who is in [`Intake::run`].
    thread: OnceLock<ThreadId>,
}

struct Table {
    /// With the number by which epoll knows each.
    irqfds: BTreeMap<Key, (u32, Irqfd)>,
    keys: HashMap<u32, Key>,
    /// Those with a resamplefd: few among many.
    levels: BTreeSet<Key>,
    last: u32,
    kicks: BTreeMap<u32, Arc<Event>>,
    /// The front-end reads the irqfds; otherwise the daemon does.
    reading: bool,
    /// The irqfd whose count was read and which is being served.
    handling: Option<Key>,
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
                keys: HashMap::new(),
                levels: BTreeSet::new(),
                last: 0,
                kicks: BTreeMap::new(),
                reading,
                handling: None,
            }),
            handled: Condvar::new(),
            thread: OnceLock::new(),
        })
    }

    /// Adds or replaces the irqfd of an input. `true`: it is read here; `false`: the daemon must be handed
    /// it.
    pub fn add_irqfd(&self, irqfd: Irqfd) -> Result<bool, Error> {
        let mut table = lock(&self.table);
        table.last = table.last.wrapping_add(1);
        let token = table.last;
        if table.reading {
            watch(&self.epoll, &irqfd.trigger, IRQFD | u64::from(token))?;
        }
        let key = irqfd.key();
        if irqfd.resample.is_some() {
            table.levels.insert(key);
        } else {
            table.levels.remove(&key);
        }
        if let Some((old, replaced)) = table.irqfds.insert(key, (token, irqfd)) {
            table.keys.remove(&old);
            if table.reading {
                self.unwatch(&replaced.trigger);
            }
        }
        table.keys.insert(token, key);
        Ok(table.reading)
    }

    /// Forgets the irqfd of an input. When this returns, none of its counts is being served, but by the caller
    /// itself. `None`: it had none; `Some(false)`: the daemon must be told.
    pub fn remove_irqfd(&self, key: Key) -> Option<bool> {
        let mut table = lock(&self.table);
        let (token, irqfd) = table.irqfds.remove(&key)?;
        table.keys.remove(&token);
        table.levels.remove(&key);
        if table.reading {
            self.unwatch(&irqfd.trigger);
        }
        let by_itself = self.thread.get() == Some(&thread::current().id());
        while table.handling == Some(key) && !by_itself {
            table = wait(&self.handled, table);
        }
        Some(table.reading)
    }

    /// The front-end reads no irqfd from now on. All of them, in order.
    pub fn pause(&self) -> Vec<Irqfd> {
        let mut table = lock(&self.table);
        if table.reading {
            let watched = table.irqfds.values();
            watched.for_each(|(_, irqfd)| self.unwatch(&irqfd.trigger));
            table.reading = false;
        }
        listed(&table)
    }

    /// The front-end reads the irqfds again.
    pub fn unpause(&self) -> Result<(), Error> {
        let mut table = lock(&self.table);
        if !table.reading {
            for (token, irqfd) in table.irqfds.values() {
                watch(&self.epoll, &irqfd.trigger, IRQFD | u64::from(*token))?;
            }
            table.reading = true;
        }
        Ok(())
    }

    /// All irqfds, in order.
    pub fn irqfds(&self) -> Vec<Irqfd> {
        listed(&lock(&self.table))
    }

    /// Sources with resamplefds, each once for every input.
    pub fn levels(&self) -> Vec<u32> {
        let table = lock(&self.table);
        table.levels.iter().map(|(lisn, _)| *lisn).collect()
    }

    /// Writes every resamplefd of a source.
    pub fn resample(&self, lisn: u32) {
        let table = lock(&self.table);
        let inputs = table.irqfds.range((lisn, 0)..=(lisn, u32::MAX));
        let due = inputs.filter_map(|(_, (_, irqfd))| irqfd.resample.as_ref());
        due.for_each(|fd| fd.signal());
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
        let _ = self.thread.set(thread::current().id());
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
            IRQFD => {
                if let Some(irqfd) = self.take_count(number) {
                    sink.trigger(&irqfd);
                    lock(&self.table).handling = None;
                    self.handled.notify_all();
                }
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
    fn take_count(&self, token: u32) -> Option<Irqfd> {
        let mut table = lock(&self.table);
        let key = *table.keys.get(&token).filter(|_| table.reading)?;
        let (_, irqfd) = table.irqfds.get(&key)?;
        if !irqfd.trigger.take() {
            return None;
        }
        let irqfd = irqfd.clone();
        table.handling = Some(key);
        Some(irqfd)
    }

    fn unwatch(&self, fd: &Event) {
        // An error means that it was not watched.
        let _ = self.epoll.delete(fd);
    }
}

fn listed(table: &Table) -> Vec<Irqfd> {
    let irqfds = table.irqfds.values();
    irqfds.map(|(_, irqfd)| irqfd.clone()).collect()
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
        fn trigger(&self, irqfd: &Irqfd) {
            lock(&self.0).send(Seen::Trigger(irqfd.lisn)).unwrap();
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

    fn edge(lisn: u32, trigger: Event) -> Irqfd {
        Irqfd {
            lisn,
            input: 0,
            trigger: Arc::new(trigger),
            resample: None,
        }
    }

    #[test]
    fn a_resample_reaches_every_input_of_its_source_and_no_other() {
        let intake = Intake::new(true).unwrap();
        let level = |lisn, input| {
            let (fd, device) = pair();
            let irqfd = Irqfd {
                input,
                resample: Some(Arc::new(fd)),
                ..edge(lisn, Event::new().unwrap())
            };
            intake.add_irqfd(irqfd).unwrap();
            device
        };
        let devices = [(6, 9), (7, 0), (7, 3), (8, 0)].map(|(lisn, input)| level(lisn, input));
        assert_eq!(intake.levels(), [6, 7, 7, 8]);
        intake.resample(7);
        assert_eq!(devices.map(|d| d.take()), [false, true, true, false]);
    }

    #[test]
    fn counts_become_triggers_and_kicks() {
        let (intake, seen, thread) = start(true);
        let ((irqfd, device), (kick, daemon)) = (pair(), pair());
        assert!(intake.add_irqfd(edge(0x1234, irqfd)).unwrap());
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
        intake.add_irqfd(edge(5, irqfd)).unwrap();
        let handed = intake.pause();
        assert_eq!(handed.iter().map(|i| i.lisn).collect::<Vec<_>>(), [5]);
        device.signal();
        // The daemon reads it once; a second count comes when the front-end reads again.
        assert!(handed[0].trigger.take());
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
        assert!(!intake.add_irqfd(edge(5, irqfd)).unwrap());
        device.signal();
        assert_eq!(intake.remove_irqfd((5, 0)), Some(false));
        assert_eq!(intake.remove_irqfd((5, 0)), None);
        intake.stop();
        thread.join().unwrap();
        assert!(seen.recv().is_err() && device.take());
    }

    #[test]
    fn a_replaced_irqfd_is_not_read_any_more() {
        let (intake, seen, thread) = start(true);
        let ((old, old_device), (new, new_device)) = (pair(), pair());
        intake.add_irqfd(edge(5, old)).unwrap();
        intake.add_irqfd(edge(5, new)).unwrap();
        old_device.signal();
        new_device.signal();
        assert_eq!(seen.recv().unwrap(), Seen::Trigger(5));
        intake.stop();
        thread.join().unwrap();
        assert!(seen.recv().is_err() && old_device.take());
    }
}
