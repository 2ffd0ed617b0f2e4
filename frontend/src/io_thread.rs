//! The one epoll thread of the front-end: irqfds become triggers, the daemon's eventfds kicks. Kicks are not read at
//! all: epoll reports each write.
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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
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
    /// How often others began to read the irqfds. Changed with the table's lock held.
    pauses: AtomicU64,
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
    handling: Option<Handling>,
    /// How many threads wait until it is over.
    waiting: u32,
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
    /// The count is read by now, and was this.
    fn settle(&mut self) -> u64 {
        if std::mem::take(&mut self.unread) {
            self.count = self.irqfd.trigger.take_count();
        }
        self.count
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
            pauses: AtomicU64::new(0),
            table: Mutex::new(Table {
                irqfds: BTreeMap::new(),
                by_token: HashMap::new(),
                levels: BTreeSet::new(),
                last: 0,
                kicks: BTreeMap::new(),
                reading,
                waiting: 0,
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
            table.waiting += 1;
            table = wait(&self.handled, table);
            table.waiting -= 1;
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
            // Relaxed: compared under the lock.
            self.pauses.fetch_add(1, Ordering::Relaxed);
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
        let _ = self.thread.set(thread::current().id());
        while !self.stop.load(Ordering::Acquire) {
            // As it was before epoll is asked: an older number than it is does no harm.
            let pauses = self.pauses.load(Ordering::Relaxed);
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
        }
    }

    fn handle(&self, token: u64, pauses: u64, sink: &dyn Sink) {
        let number = token as u32;
        match token & KIND {
            IRQFD => {
                if let Some((irqfd, early)) = self.begin(number, pauses) {
                    let done = early && sink.trigger_here(&irqfd);
                    if self.settle(done) {
                        sink.trigger(&irqfd);
                        self.end(lock(&self.table));
                    }
                }
            }
            // Nobody reads it: each write of the daemon is reported, and 2^64 of them are never made.
            KICK if lock(&self.table).kicks.contains_key(&number) => sink.kicked(number),
            _ => {}
        }
    }

    /// An irqfd that is still ours to read is being served from now on. `true`: it surely has a count, and may be
    /// triggered before that is read.
    fn begin(&self, token: u32, pauses: u64) -> Option<(Arc<Irqfd>, bool)> {
        let mut table = lock(&self.table);
        let irqfd = Arc::clone(table.by_token.get(&token).filter(|_| table.reading)?);
        let early = irqfd.resample.is_none() && self.pauses.load(Ordering::Relaxed) == pauses;
        table.handling = Some(Handling {
            irqfd: Arc::clone(&irqfd),
            unread: true,
            count: 0,
        });
        Some((irqfd, early))
    }

    /// Reads the count of what is served, if nobody has. `true`: there is to be a trigger, or after the one that was
    /// done another; otherwise it is over.
    fn settle(&self, done: bool) -> bool {
        let mut table = lock(&self.table);
        let count = table.handling.as_mut().map_or(0, Handling::settle);
        let more = count > u64::from(done);
        if !more {
            self.end(table);
        }
        more
    }

    /// What was served is not any more.
    fn end(&self, mut table: MutexGuard<'_, Table>) {
        table.handling = None;
        // A system call, waited for or not.
        if table.waiting > 0 {
            self.handled.notify_all();
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
    // A kick's count stays: each write is reported once.
    let once = match token & KIND {
        KICK => EpollFlags::EPOLLET,
        _ => EpollFlags::empty(),
    };
    let event = EpollEvent::new(EpollFlags::EPOLLIN | once, token);
    epoll
        .add(fd, event)
        .map_err(Error::os("watching an eventfd"))
}

#[cfg(test)]
mod tests;
