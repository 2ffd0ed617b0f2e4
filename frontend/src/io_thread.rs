//! The one epoll thread of the front-end: irqfds become triggers, the daemon's eventfds kicks.
//!
//! irqfds are read here while the front-end is the executor. [`Intake::pause`] stops that and
//! returns them all, to be handed to the daemon: a count that was not read stays in its eventfd and
//! belongs to whoever reads next; one that was read becomes a trigger, which finds the new executor
//! by itself. None is lost and none counted twice.
//!
//! An edge is on its way to the vCPU *before* its count is read, which nobody waits for. That this loses and
//! adds nothing is seen so:
//! * epoll found a count, and this thread alone reads irqfds: those of before the trigger are at least 1.
//!   (Had there been a pause since epoll was asked, another might have read it: then the count is read first.)
//! * The count is read after the trigger, by one party: this thread, or, if it comes first, who pauses, removes or
//!   replaces the irqfd, under the lock that says which ([`Handling::unread`]). Nobody is left a count that was acted on.
//! * A count of 1 was written before the trigger. Of more, the last may have been written after it, so one more trigger
//!   follows: at most as many as were written, and one after each write.
//! * The executor is another meanwhile: the trigger is not made, the count is read, and then sent where it belongs.

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
    /// Triggers the source of an edge, if that is a transition of ours at this moment, without waiting for anybody.
    fn trigger_here(&self, irqfd: &Irqfd) -> bool;
    /// This irqfd had a count, which has been read.
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
    irqfds: BTreeMap<Key, (u32, Arc<Irqfd>)>,
    by_token: HashMap<u32, Arc<Irqfd>>,
    /// Those with a resamplefd: few among many.
    levels: BTreeSet<Key>,
    last: u32,
    kicks: BTreeMap<u32, Arc<Event>>,
    /// The front-end reads the irqfds; otherwise the daemon does.
    reading: bool,
    /// How often others began to read them.
    pauses: u64,
    handling: Option<Handling>,
}

/// An irqfd that is being served.
struct Handling {
    irqfd: Arc<Irqfd>,
    /// Its count is still to be read.
    unread: bool,
    /// What it was.
    count: u64,
}

impl Table {
    /// Reads the count of this irqfd if it is being acted on, so that nobody else finds it.
    fn settle(&mut self, irqfd: &Arc<Irqfd>) {
        let same = |handling: &&mut Handling| Arc::ptr_eq(&handling.irqfd, irqfd);
        if let Some(handling) = self.handling.as_mut().filter(same) {
            handling.settle();
        }
    }
}

impl Handling {
    fn settle(&mut self) {
        if std::mem::take(&mut self.unread) {
            self.count = self.irqfd.trigger.take_count();
        }
    }
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
                by_token: HashMap::new(),
                levels: BTreeSet::new(),
                last: 0,
                kicks: BTreeMap::new(),
                reading,
                pauses: 0,
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
        let irqfd = Arc::new(irqfd);
        if let Some((old, replaced)) = table.irqfds.insert(key, (token, Arc::clone(&irqfd))) {
            table.by_token.remove(&old);
            table.settle(&replaced);
            if table.reading {
                self.unwatch(&replaced.trigger);
            }
        }
        table.by_token.insert(token, irqfd);
        Ok(table.reading)
    }

    /// Forgets the irqfd of an input. When this returns, none of its counts is being served, but by the caller
    /// itself. `None`: it had none; `Some(false)`: the daemon must be told.
    pub fn remove_irqfd(&self, key: Key) -> Option<bool> {
        let mut table = lock(&self.table);
        let (token, irqfd) = table.irqfds.remove(&key)?;
        table.by_token.remove(&token);
        table.levels.remove(&key);
        table.settle(&irqfd);
        if table.reading {
            self.unwatch(&irqfd.trigger);
        }
        let by_itself = self.thread.get() == Some(&thread::current().id());
        let is_served = |table: &Table| {
            let handling = table.handling.as_ref();
            handling.is_some_and(|handling| handling.irqfd.key() == key)
        };
        while is_served(&table) && !by_itself {
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
            table.pauses += 1;
            if let Some(handling) = &mut table.handling {
                handling.settle();
            }
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
        // As it was before epoll was asked.
        let mut pauses = lock(&self.table).pauses;
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
                self.handle(event.data(), pauses, sink);
            }
            pauses = lock(&self.table).pauses;
        }
    }

    fn handle(&self, token: u64, pauses: u64, sink: &dyn Sink) {
        let number = token as u32;
        match token & KIND {
            IRQFD => {
                if let Some((irqfd, early)) = self.begin(number, pauses) {
                    self.serve(&irqfd, early, sink);
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

    /// An irqfd that is still ours to read is being served from now on. `true`: it surely has a count, and may be
    /// triggered before that is read.
    fn begin(&self, token: u32, pauses: u64) -> Option<(Arc<Irqfd>, bool)> {
        let mut table = lock(&self.table);
        let irqfd = Arc::clone(table.by_token.get(&token).filter(|_| table.reading)?);
        let early = irqfd.resample.is_none() && table.pauses == pauses;
        table.handling = Some(Handling {
            irqfd: Arc::clone(&irqfd),
            unread: true,
            count: 0,
        });
        Some((irqfd, early))
    }

    fn serve(&self, irqfd: &Irqfd, early: bool, sink: &dyn Sink) {
        let done = early && sink.trigger_here(irqfd);
        let count = {
            let mut table = lock(&self.table);
            let handling = table.handling.as_mut();
            handling.map_or(0, |handling| {
                handling.settle();
                handling.count
            })
        };
        if count > u64::from(done) {
            sink.trigger(irqfd);
        }
    }

    fn unwatch(&self, fd: &Event) {
        // An error means that it was not watched.
        let _ = self.epoll.delete(fd);
    }
}

fn listed(table: &Table) -> Vec<Irqfd> {
    let irqfds = table.irqfds.values();
    irqfds.map(|(_, irqfd)| Irqfd::clone(irqfd)).collect()
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
        fn trigger_here(&self, irqfd: &Irqfd) -> bool {
            self.trigger(irqfd);
            true
        }
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
