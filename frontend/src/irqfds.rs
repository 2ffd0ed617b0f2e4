//! irqfds, as the VMM hands them in: each is read by whoever executes, and goes along when that changes.

use papr_intc_protocol::layout::header::Executor;
use papr_intc_protocol::wire::MAX_FDS;
use papr_intc_protocol::wire::source::{ClearIrqfds, IrqfdItem, irqfd_kind};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

use crate::channel::may_wait;
use crate::core::{Topology, in_one_session};
use crate::error::Error;
use crate::event::Event;
use crate::handshake::{irqfd_item, send_irqfds};
use crate::intc::Intc;
use crate::io_thread::Irqfd;

impl Intc {
    /// Hands all irqfds to the daemon, or takes them back.
    pub(crate) fn move_irqfds(&self, to: Executor) -> Result<(), Error> {
        let core = self.core();
        let irqfds = core.intake.irqfds();
        if to == Executor::Daemon {
            return send_irqfds(&irqfds, |request, fds| {
                core.ask_session(request, fds).map(|_| ())
            });
        }
        for batch in irqfds.chunks(MAX_FDS) {
            let items = batch.iter().map(irqfd_item).collect();
            core.ask_session(&ClearIrqfds { items }, &[])?;
        }
        Ok(())
    }

    /// From now on every count of `fd` triggers the source. Replaces what the source had. `fd` is
    /// duplicated; it should be non-blocking.
    pub fn add_irqfd(&self, lisn: u32, fd: &EventFd) -> Result<(), Error> {
        self.add(Irqfd {
            lisn,
            input: 0,
            trigger: Arc::new(Event::duplicate(fd)?),
            resample: None,
        })
    }

    /// From now on a count of `trigger` raises the level of an LSI, as KVM's irqfds with a resamplefd do.
    /// The level falls when the guest ends the interrupt; then `resample` is written, and a device that
    /// still has a reason writes `trigger` again. Several inputs (any numbers) and [`Source::set_level`]
    /// share an LSI: it is asserted while one of them is.
    ///
    /// [`Source::set_level`]: crate::Source::set_level
    pub fn add_level_irqfd(
        &self,
        lisn: u32,
        input: u32,
        trigger: &EventFd,
        resample: &EventFd,
    ) -> Result<(), Error> {
        self.add(Irqfd {
            lisn,
            input,
            trigger: Arc::new(Event::duplicate(trigger)?),
            resample: Some(Arc::new(Event::duplicate(resample)?)),
        })
    }

    fn add(&self, irqfd: Irqfd) -> Result<(), Error> {
        self.source(irqfd.lisn)?;
        let core = self.core();
        if core.is_remote() {
            may_wait()?;
        }
        if core.intake.add_irqfd(irqfd.clone())? {
            return Ok(());
        }
        self.tell(|topology| match topology.irqfds_at {
            // They came back meanwhile: read here, or about to be.
            Executor::FrontEnd => Ok(()),
            Executor::Daemon => {
                let one = std::slice::from_ref(&irqfd);
                send_irqfds(one, |request, fds| {
                    core.ask_session(request, fds).map(|_| ())
                })
            }
        })
    }

    /// The irqfd of the source is not read any more, and none of its counts is on its way.
    pub fn remove_irqfd(&self, lisn: u32) -> Result<(), Error> {
        self.remove_level_irqfd(lisn, 0)
    }

    /// As [`remove_irqfd`](Self::remove_irqfd), for one input of an LSI. A level that it had raised stays
    /// until the guest has ended the interrupt.
    pub fn remove_level_irqfd(&self, lisn: u32, input: u32) -> Result<(), Error> {
        let core = self.core();
        if core.is_remote() {
            may_wait()?;
        }
        match core.intake.remove_irqfd((lisn, input)) {
            None => Err(Error::Invalid(format!(
                "LISN {lisn:#x} has no irqfd for input {input}"
            ))),
            Some(true) => Ok(()),
            Some(false) => self.tell(|topology| match topology.irqfds_at {
                Executor::FrontEnd => Ok(()),
                Executor::Daemon => {
                    // The kind is not looked at.
                    let items = vec![IrqfdItem {
                        lisn,
                        kind: irqfd_kind::EDGE,
                        input,
                        zero: 0,
                    }];
                    core.ask_session(&ClearIrqfds { items }, &[]).map(|_| ())
                }
            }),
        }
    }

    fn tell(&self, mut step: impl FnMut(&Topology) -> Result<(), Error>) -> Result<(), Error> {
        in_one_session(self.core(), |topology| step(topology))
    }
}
