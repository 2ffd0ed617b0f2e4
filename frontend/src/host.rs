//! The outside of a transition that a thread of the VMM runs: queue entries go to guest RAM, kicks
//! to the VMM.
//!
//! A kick is remembered while the transition runs and given to the VMM's callback after the thread
//! has left its epoch, so that the callback may start transitions itself. [`FrontHost`] is what all transitions
//! share, [`Running`] one of them.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use papr_intc_protocol::plane::Host;

use crate::ram::Ram;

/// Called with a server number: look again at the line of this vCPU.
pub type Kick = Arc<dyn Fn(u32) + Send + Sync>;

/// No server, no source.
const NOTHING: u32 = u32::MAX;
/// Servers that a transition kicks beside the first, without an allocation.
const FEW: usize = 8;

/// Servers to be kicked beside the first: a transition seldom has any.
struct Others {
    count: Cell<usize>,
    few: [Cell<u32>; FEW],
    many: RefCell<Vec<u32>>,
}

impl Others {
    /// Remembers a server, once.
    fn add(&self, server: u32) {
        let count = self.count.get();
        if self.few.iter().take(count).any(|s| s.get() == server) {
            return;
        }
        match self.few.get(count) {
            Some(free) => {
                free.set(server);
                self.count.set(count + 1);
            }
            None => self.many.borrow_mut().push(server),
        }
    }

    /// Forgets them all and gives each to `kick`, which may start transitions of its own.
    fn take(&self, kick: &Kick) {
        let (count, few) = (self.count.take(), self.few.each_ref().map(Cell::get));
        let many = self.many.take();
        few.iter().take(count).chain(&many).for_each(|s| kick(*s));
    }
}

thread_local! {
    static OTHERS: Others = const {
        Others {
            count: Cell::new(0),
            few: [const { Cell::new(0) }; FEW],
            many: RefCell::new(Vec::new()),
        }
    };
}

/// The front-end as an executor.
pub(crate) struct FrontHost {
    ram: Arc<dyn Ram>,
    kick: Kick,
    /// Highest generation known dead, the same as the shared word DEAD_GENERATION; a copy of our own,
    /// so that nobody who scribbles over the pages makes us break the lock of a living daemon.
    dead: Arc<AtomicU64>,
    /// How often a thread found a living daemon's lock.
    met: AtomicU64,
    doubt: Arc<dyn Fn() + Send + Sync>,
}

/// A thread that has looked so often at the lock of a daemon asks whether it still runs.
const LOOKS: u64 = 4096;

impl FrontHost {
    pub(crate) fn new(
        ram: Arc<dyn Ram>,
        kick: Kick,
        dead: Arc<AtomicU64>,
        doubt: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            ram,
            kick,
            dead,
            met: AtomicU64::new(0),
            doubt,
        }
    }

    /// A transition begins.
    #[inline]
    pub(crate) fn run(&self) -> Running<'_> {
        Running {
            front: self,
            first: Cell::new(NOTHING),
            others: Cell::new(false),
            resample: Cell::new(NOTHING),
        }
    }

    fn is_dead(&self, generation: u16) -> bool {
        // Relaxed: the supervisor raised it after the kernel had reported the death, which orders
        // everything the daemon did before it. A thread that reads an older value tries again.
        let dead = self.dead.load(Ordering::Relaxed);
        // Generations rise by one and the lock word has 16 bits of them: a dead one is at most half the
        // circle behind.
        if dead != 0 && (dead as u16).wrapping_sub(generation) < 0x8000 {
            return true;
        }
        // Relaxed: a count of no consequence.
        if self.met.fetch_add(1, Ordering::Relaxed) % LOOKS == LOOKS - 1 {
            (self.doubt)();
        }
        false
    }
}

/// One transition of the front-end, and what it owes the VMM.
pub(crate) struct Running<'a> {
    front: &'a FrontHost,
    /// The server to be kicked.
    first: Cell<u32>,
    /// There are more, in the thread's [`OTHERS`].
    others: Cell<bool>,
    /// The source whose resamplefds are due; a transition ends one source at most.
    resample: Cell<u32>,
}

impl Running<'_> {
    /// Gives its kicks to the VMM, and returns the source whose resamplefds are due. Called outside of any epoch.
    #[inline]
    pub(crate) fn deliver(self) -> Option<u32> {
        let first = self.first.get();
        if first != NOTHING {
            (self.front.kick)(first);
            if self.others.get() {
                // An error: the thread is ending, and they were kicked at once.
                let _ = OTHERS.try_with(|others| others.take(&self.front.kick));
            }
        }
        let lisn = self.resample.get();
        (lisn != NOTHING).then_some(lisn)
    }

    #[cold]
    fn kick_too(&self, server: u32) {
        if server == self.first.get() {
            return;
        }
        self.others.set(true);
        if OTHERS.try_with(|others| others.add(server)).is_err() {
            (self.front.kick)(server);
        }
    }
}

impl Host for Running<'_> {
    #[inline]
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        self.front.ram.write_u32_be(gpa, entry)
    }

    #[inline]
    fn entry_stored(&self, gpa: u64) {
        self.front.ram.mark_dirty(gpa);
    }

    #[inline]
    fn kick(&self, server: u32) {
        if self.first.get() != NOTHING {
            return self.kick_too(server);
        }
        self.first.set(server);
    }

    #[inline]
    fn resample(&self, lisn: u32) {
        self.resample.set(lisn);
    }

    fn is_dead(&self, generation: u16) -> bool {
        self.front.is_dead(generation)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::guest_ram::GuestRam;

    fn host() -> (FrontHost, Arc<Mutex<Vec<u32>>>) {
        let kicked = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&kicked);
        let kick: Kick = Arc::new(move |s| sink.lock().unwrap().push(s));
        let ram = Arc::new(GuestRam::new(&[(0, 0x1000)]).unwrap());
        (
            FrontHost::new(ram, kick, Arc::new(AtomicU64::new(0)), Arc::new(|| ())),
            kicked,
        )
    }

    #[test]
    fn kicks_wait_for_the_end_of_the_transition_and_come_once() {
        let (host, kicked) = host();
        let running = host.run();
        [3, 5, 3].into_iter().for_each(|s| running.kick(s));
        assert!(kicked.lock().unwrap().is_empty());
        assert_eq!(running.deliver(), None);
        assert_eq!(*kicked.lock().unwrap(), [3, 5]);
    }

    #[test]
    fn no_kick_is_lost_when_there_are_too_many() {
        let (host, kicked) = host();
        let running = host.run();
        (0..20).for_each(|s| running.kick(s));
        assert!(kicked.lock().unwrap().is_empty());
        running.deliver();
        let mut all = kicked.lock().unwrap().clone();
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn only_generations_up_to_the_dead_one_are_dead() {
        let (host, _) = host();
        assert!(!host.is_dead(0) && !host.is_dead(1));
        host.dead.store(7, Ordering::Relaxed);
        assert!(host.is_dead(7) && host.is_dead(1) && !host.is_dead(8));
        host.dead.store(0x1_0002, Ordering::Relaxed);
        assert!(host.is_dead(2) && host.is_dead(0xffff) && !host.is_dead(3));
    }
}
