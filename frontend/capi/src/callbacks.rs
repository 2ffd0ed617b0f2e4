//! The VMM's functions, as the front-end calls them.
#![allow(unsafe_code)] // the VMM's pointer goes through our threads; its change struct has a size

use std::collections::BTreeMap;
use std::ffi::{CString, c_int};
use std::os::fd::OwnedFd;
use std::sync::{PoisonError, RwLock};

use papr_intc_frontend::{Change, Reason};

use crate::boundary::{Fail, storing};
use crate::pointers::Growing;
use crate::types;

// SAFETY: `repr(C)`, begins with `size: u32`; NULL and no function are its zeros.
unsafe impl Growing for types::Callbacks {
    const NAME: &'static str = "papr_intc_callbacks";
    const LEAST: usize = size_of::<types::Callbacks>();
}

/// The functions, and the eventfds that stand in for `kick`.
pub struct Callbacks {
    theirs: types::Callbacks,
    kick_fds: RwLock<BTreeMap<u32, OwnedFd>>,
}

// SAFETY: `opaque` is not read here; the header says on which threads the functions are called with it.
unsafe impl Send for Callbacks {}
// SAFETY: as above.
unsafe impl Sync for Callbacks {}

impl Callbacks {
    /// Those that the VMM gave, or why they will not do.
    pub fn new(theirs: types::Callbacks) -> Result<Self, Fail> {
        if theirs.write_u32.is_none() {
            return Err(Fail::invalid("papr_intc_callbacks.write_u32 is NULL"));
        }
        let kick_fds = RwLock::default();
        Ok(Self { theirs, kick_fds })
    }

    /// The line of a vCPU may have changed.
    pub fn kick(&self, server: u32) {
        {
            let fds = self.kick_fds.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(fd) = fds.get(&server) {
                // A counter that is full is as good as one more.
                let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
            }
        }
        if let Some(kick) = self.theirs.kick {
            kick(self.theirs.opaque, server);
        }
    }

    /// From now on `fd` counts the kicks of a vCPU; none: nothing does.
    pub fn set_kick_fd(&self, server: u32, fd: Option<OwnedFd>) {
        let mut fds = self
            .kick_fds
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match fd {
            Some(fd) => fds.insert(server, fd),
            None => fds.remove(&server),
        };
    }

    /// Stores a queue entry; `false`: there is no RAM.
    pub fn write_u32(&self, gpa: u64, value: u32) -> bool {
        let write = self.theirs.write_u32;
        write.is_some_and(|write| storing(|| write(self.theirs.opaque, gpa, value)) == 0)
    }

    /// How to read the guest's time base, if the VMM knows.
    pub fn time_base(&self) -> Option<impl Fn(u32) -> u64 + '_> {
        let read = self.theirs.time_base?;
        Some(move |server| read(self.theirs.opaque, server))
    }

    /// A thread of the front-end's begins or ends.
    pub fn thread(&self, begins: bool) {
        if let Some(thread) = self.theirs.thread {
            thread(self.theirs.opaque, c_int::from(begins));
        }
    }

    /// The daemon changed.
    pub fn changed(&self, change: &Change) {
        let Some(changed) = self.theirs.changed else {
            return;
        };
        let text = match change {
            Change::Absent { reason, how } => format!("{reason}: {how}"),
            Change::GaveUp { why } => why.clone(),
            _ => String::new(),
        };
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        let mut told = types::Change {
            size: size_of::<types::Change>() as u32,
            what: 0,
            reason: 0,
            redone: 0,
            resignalled: 0,
            in_doubt: 0,
            outage_ns: 0,
            generation: 0,
            text: text.as_ptr(),
        };
        match change {
            Change::Absent { reason, .. } => {
                told.what = types::PAPR_INTC_LOST;
                told.reason = reason_code(*reason);
            }
            Change::Present {
                outage,
                generation,
                redone,
                resignalled,
                in_doubt,
            } => {
                told.what = types::PAPR_INTC_BACK;
                told.outage_ns = outage.as_nanos() as u64;
                told.generation = *generation;
                told.redone = *redone;
                told.resignalled = *resignalled;
                told.in_doubt = *in_doubt;
            }
            Change::Demoted => told.what = types::PAPR_INTC_DEMOTED,
            Change::Promoted => told.what = types::PAPR_INTC_PROMOTED,
            Change::GaveUp { .. } => told.what = types::PAPR_INTC_GAVE_UP,
            // A change that this library has no number for.
            _ => return,
        }
        changed(self.theirs.opaque, &raw const told);
    }
}

fn reason_code(reason: Reason) -> u32 {
    match reason {
        Reason::Ended => types::PAPR_INTC_REASON_ENDED,
        Reason::HungUp => types::PAPR_INTC_REASON_HUNG_UP,
        Reason::Silent(_) => types::PAPR_INTC_REASON_SILENT,
        Reason::Replaced => types::PAPR_INTC_REASON_REPLACED,
        // Also what may come later.
        _ => types::PAPR_INTC_REASON_BROKEN,
    }
}
