//! The outside of a transition that a thread of the VMM runs: queue entries go to guest RAM, kicks
//! to the VMM.
//!
//! A kick is remembered while the transition runs and given to the VMM's callback after the thread
//! has left its epoch, so that the callback may start transitions itself.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use papr_intc_protocol::plane::Host;

use crate::ram::Ram;

/// Called with a server number: look again at the line of this vCPU.
pub type Kick = Arc<dyn Fn(u32) + Send + Sync>;

const DEFERRED: usize = 8;

/// No source.
const NOTHING: u32 = u32::MAX;

/// What the transition that this thread runs owes the VMM.
struct Owed {
    /// How many of `servers` are to be kicked.
    count: Cell<usize>,
    servers: [Cell<u32>; DEFERRED],
    /// The source whose resamplefds are due; a transition ends one source at most.
    resample: Cell<u32>,
}

impl Owed {
    /// Remembers a server, once. `false`: it has to be kicked now.
    #[inline]
    fn kick(&self, server: u32) -> bool {
        if self.count.get() > 0 {
            return self.kick_too(server);
        }
        self.servers[0].set(server);
        self.count.set(1);
        true
    }

    #[cold]
    fn kick_too(&self, server: u32) -> bool {
        let count = self.count.get();
        if self.servers.iter().take(count).any(|s| s.get() == server) {
            return true;
        }
        let Some(free) = self.servers.get(count) else {
            // An error: the thread is ending.
            return MORE.try_with(|more| more.borrow_mut().push(server)).is_ok();
        };
        free.set(server);
        self.count.set(count + 1);
        true
    }
}

thread_local! {
    /// Without a destructor: it is there as long as its thread runs.
    static OWED: Owed = const {
        Owed {
            count: Cell::new(0),
            servers: [const { Cell::new(0) }; DEFERRED],
            resample: Cell::new(NOTHING),
        }
    };
    /// The servers that do not fit there.
    static MORE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// The front-end as an executor.
pub struct FrontHost {
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

    /// Gives the kicks that this thread's last transition left to the VMM, and returns the source whose resamplefds it
    /// made due. Called outside of any epoch.
    #[inline]
    pub(crate) fn deliver(&self) -> Option<u32> {
        OWED.with(|owed| {
            // Taken before the callbacks, which may start transitions of their own.
            let resample = owed.resample.replace(NOTHING);
            match owed.count.get() {
                0 => {}
                1 => {
                    owed.count.set(0);
                    (self.kick)(owed.servers[0].get());
                }
                _ => self.deliver_many(owed),
            }
            (resample != NOTHING).then_some(resample)
        })
    }

    #[cold]
    fn deliver_many(&self, owed: &Owed) {
        let servers = owed.servers.each_ref().map(Cell::get);
        let count = owed.count.replace(0);
        let more = match count {
            DEFERRED => MORE.try_with(RefCell::take).unwrap_or_default(),
            _ => Vec::new(),
        };
        for server in servers[..count].iter().chain(&more) {
            (self.kick)(*server);
        }
    }
}

impl Host for FrontHost {
    #[inline]
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        self.ram.write_u32_be(gpa, entry)
    }

    #[inline]
    fn entry_stored(&self, gpa: u64) {
        self.ram.mark_dirty(gpa);
    }

    #[inline]
    fn kick(&self, server: u32) {
        if !OWED.with(|owed| owed.kick(server)) {
            (self.kick)(server);
        }
    }

    #[inline]
    fn resample(&self, lisn: u32) {
        OWED.with(|owed| owed.resample.set(lisn));
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
        [3, 5, 3].into_iter().for_each(|s| host.kick(s));
        assert!(kicked.lock().unwrap().is_empty());
        host.deliver();
        host.deliver();
        assert_eq!(*kicked.lock().unwrap(), [3, 5]);
    }

    #[test]
    fn no_kick_is_lost_when_there_are_too_many() {
        let (host, kicked) = host();
        (0..20).for_each(|s| host.kick(s));
        assert!(kicked.lock().unwrap().is_empty());
        host.deliver();
        host.deliver();
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
