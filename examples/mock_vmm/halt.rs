//! How a vCPU thread sleeps and is woken, as H_CEDE and the VMM's run loop do it.
//!
//! A halted vCPU is woken by the controller's kick and by nothing else: there is no timeout, so a
//! wake-up that is lost stays lost and is found by the conductor's drain. `pause` is the VMM's own
//! stop (reset, end of the run): the vCPU leaves without looking at its line.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a vCPU is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Not started, stopped itself, or paused by the VMM.
    Stopped,
    /// In the guest.
    Running,
    /// Waiting for a kick.
    Asleep,
}

/// What a stopped vCPU is told.
#[derive(Debug)]
pub enum Order<T> {
    /// Run from here.
    Start(T),
    /// The run is over.
    Quit,
}

/// Why [`Halt::sleep`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The controller said: look again.
    Kick,
    /// The VMM pauses the vCPU.
    Pause,
}

#[derive(Debug)]
struct State<T> {
    doing: Doing,
    kicked: bool,
    pause: bool,
    quit: bool,
    start: Option<T>,
}

/// The sleeping place of one vCPU.
#[derive(Debug)]
pub struct Halt<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Default for Halt<T> {
    fn default() -> Self {
        let state = State {
            doing: Doing::Stopped,
            kicked: false,
            pause: false,
            quit: false,
            start: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }
}

impl<T> Halt<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller's kick: "look again at the line". A running vCPU looks before it sleeps.
    pub fn kick(&self) {
        let mut state = self.lock();
        state.kicked = true;
        if state.doing == Doing::Asleep {
            self.changed.notify_all();
        }
    }

    /// Forgets kicks: the caller looks at the line after this.
    pub fn about_to_look(&self) -> bool {
        let mut state = self.lock();
        state.kicked = false;
        state.pause
    }

    /// Sleeps until a kick that came after the last [`Self::about_to_look`], or a pause.
    pub fn sleep(&self) -> Wake {
        let mut state = self.lock();
        state.doing = Doing::Asleep;
        while !state.kicked && !state.pause {
            state = self.wait(state);
        }
        state.doing = Doing::Running;
        if state.pause { Wake::Pause } else { Wake::Kick }
    }

    /// The vCPU stops (stop-self or pause) and waits for an order.
    pub fn stop_and_wait(&self) -> Order<T> {
        let mut state = self.lock();
        state.doing = Doing::Stopped;
        self.changed.notify_all();
        loop {
            if state.quit {
                return Order::Quit;
            }
            if !state.pause
                && let Some(from) = state.start.take()
            {
                state.doing = Doing::Running;
                return Order::Start(from);
            }
            state = self.wait(state);
        }
    }

    /// RTAS start-cpu, or the VMM's start of the boot vCPU.
    pub fn start(&self, from: T) {
        let mut state = self.lock();
        state.start = Some(from);
        self.changed.notify_all();
    }

    /// The VMM pauses the vCPU: it stops at the end of what it is doing. Undone by [`Self::resume`].
    pub fn pause(&self) {
        let mut state = self.lock();
        state.pause = true;
        state.start = None;
        self.changed.notify_all();
    }

    /// A start counts again.
    pub fn resume(&self) {
        self.lock().pause = false;
    }

    /// The run is over: the thread ends when it has stopped.
    pub fn quit(&self) {
        let mut state = self.lock();
        state.quit = true;
        state.pause = true;
        self.changed.notify_all();
    }

    /// What the vCPU is doing.
    pub fn doing(&self) -> Doing {
        self.lock().doing
    }
}
