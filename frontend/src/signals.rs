//! What other threads tell the watch thread, and what it lets them read.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::channel::Watcher;
use crate::error::Error;
use crate::event::Event;
use crate::sync::lock;
use crate::upgrade::Order;

/// What is to be done, in order.
#[derive(Default)]
struct Orders {
    open: VecDeque<Order>,
    closed: bool,
}

pub(crate) struct Signals {
    wake: Event,
    /// Highest session whose connection ended under a request.
    lost: AtomicU64,
    /// Highest session that owes somebody something for long.
    doubted: AtomicU64,
    stop: AtomicBool,
    /// Of the present daemon, 0 if there is none.
    pub pid: AtomicU32,
    /// Daemons that reached START after the first one.
    pub restarts: AtomicU64,
    /// What the VMM wants done; none can be given any more once this is closed.
    orders: Mutex<Orders>,
    /// The stream on which the watch thread itself waits, to be cut by `stop`.
    waiting: Mutex<Option<UnixStream>>,
}

impl Signals {
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            wake: Event::new()?,
            lost: AtomicU64::new(0),
            doubted: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            pid: AtomicU32::new(0),
            restarts: AtomicU64::new(0),
            orders: Mutex::new(Orders::default()),
            waiting: Mutex::new(None),
        })
    }

    pub fn is_lost(&self, session: u64) -> bool {
        self.lost.load(Ordering::Acquire) >= session
    }

    /// Somebody doubted this session since the last time that this was asked.
    pub fn take_doubt(&self, session: u64) -> bool {
        // AcqRel pairs with `doubt`.
        self.doubted.swap(0, Ordering::AcqRel) >= session
    }

    /// Somebody waits for something that only a living daemon ends, whichever it is.
    pub fn doubt_any(&self) {
        Watcher::doubt(self, u64::MAX);
    }

    /// Gives the watch thread something to do; `false` if it does nothing any more.
    pub fn order(&self, order: Order) -> bool {
        let mut orders = lock(&self.orders);
        if orders.closed {
            return false;
        }
        orders.open.push_back(order);
        drop(orders);
        self.wake.signal();
        true
    }

    pub fn take_order(&self) -> Option<Order> {
        lock(&self.orders).open.pop_front()
    }

    /// Drops what was ordered, and whatever will be.
    pub fn refuse_orders(&self) {
        let mut orders = lock(&self.orders);
        orders.closed = true;
        orders.open.clear();
    }

    /// Ends the watch thread, out of a wait for a reply too.
    pub fn stop(&self) {
        // Release pairs with `stopping`.
        self.stop.store(true, Ordering::Release);
        self.refuse_orders();
        if let Some(stream) = lock(&self.waiting).as_ref() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.wake.signal();
    }

    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The watch thread is about to wait for replies on `stream`, or for none any more. Fails if it is not to.
    pub fn waits_on(&self, stream: Option<&UnixStream>) -> Result<(), Error> {
        let copy = stream.map(UnixStream::try_clone).transpose();
        let copy = copy.map_err(Error::os("duplicating the socket"))?;
        *lock(&self.waiting) = copy;
        // After the store above: `stop` either sees the stream or is seen here.
        if stream.is_some() && self.stopping() {
            return Err(Error::ShutDown);
        }
        Ok(())
    }

    /// Readable when something was signalled; `clear` it before looking.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub fn clear(&self) {
        self.wake.take();
    }
}

impl Watcher for Signals {
    fn lost(&self, session: u64) {
        // Release pairs with `is_lost`; the eventfd wakes the watch thread.
        self.lost.fetch_max(session, Ordering::Release);
        self.wake.signal();
    }

    fn doubt(&self, session: u64) {
        // Release pairs with `take_doubt`.
        self.doubted.fetch_max(session, Ordering::Release);
        self.wake.signal();
    }
}
