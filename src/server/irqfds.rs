//! The eventfds that devices write, where the daemon is the executor.
//!
//! They are registered with the event loop only while it is: in mapped mode the front-end reads them,
//! and two readers of one eventfd would share its counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use papr_intc_protocol::wire::source::IrqfdItem;

use super::token::Token;
use crate::control::Irqfd;

/// All irqfds of the machine, by (LISN, input).
#[derive(Default)]
pub(super) struct Irqfds {
    entries: BTreeMap<(u32, u32), Entry>,
    by_token: BTreeMap<u32, (u32, u32)>,
    watched: bool,
    next: u32,
}

struct Entry {
    item: IrqfdItem,
    trigger: File,
    resample: Option<File>,
    token: u32,
}

impl Entry {
    fn take(&self) -> bool {
        (&self.trigger).read_exact(&mut [0; 8]).is_ok()
    }
}

impl Irqfds {
    /// Adds irqfds, in place of what their (LISN, input) had.
    pub(super) fn set(&mut self, epoll: &Epoll, irqfds: Vec<Irqfd>) -> Result<(), Errno> {
        for irqfd in irqfds {
            let key = (irqfd.item.lisn, irqfd.item.input);
            self.remove(epoll, key)?;
            self.next = self.next.wrapping_add(1);
            let entry = Entry {
                item: irqfd.item,
                trigger: File::from(irqfd.trigger),
                resample: irqfd.resample.map(File::from),
                token: self.next,
            };
            if self.watched {
                add(epoll, &entry)?;
            }
            self.by_token.insert(entry.token, key);
            self.entries.insert(key, entry);
        }
        Ok(())
    }

    /// Forgets irqfds.
    pub(super) fn clear(&mut self, epoll: &Epoll, items: &[IrqfdItem]) -> Result<(), Errno> {
        items
            .iter()
            .try_for_each(|item| self.remove(epoll, (item.lisn, item.input)))
    }

    fn remove(&mut self, epoll: &Epoll, key: (u32, u32)) -> Result<(), Errno> {
        let Some(entry) = self.entries.remove(&key) else {
            return Ok(());
        };
        self.by_token.remove(&entry.token);
        if self.watched {
            forget(epoll, &entry)
        } else {
            Ok(())
        }
    }

    /// Writes every resamplefd of a source.
    pub(super) fn resample(&self, lisn: u32) {
        for (_, entry) in self.entries.range((lisn, 0)..=(lisn, u32::MAX)) {
            if let Some(mut fd) = entry.resample.as_ref() {
                // EAGAIN: the counter is full, so the device has been told already.
                let _ = fd.write(&1u64.to_ne_bytes());
            }
        }
    }

    /// Forgets all of them.
    pub(super) fn clear_all(&mut self, epoll: &Epoll) -> Result<(), Errno> {
        self.watch(epoll, false)?;
        self.entries.clear();
        self.by_token.clear();
        Ok(())
    }

    /// Reads them from now on, or leaves them to the front-end.
    pub(super) fn watch(&mut self, epoll: &Epoll, watched: bool) -> Result<(), Errno> {
        if self.watched == watched {
            return Ok(());
        }
        self.watched = watched;
        self.entries.values().try_for_each(|entry| match watched {
            true => add(epoll, entry),
            false => forget(epoll, entry),
        })
    }

    /// The irqfd behind an event, and how to take its count: `false` if there was none after all.
    pub(super) fn find(&self, token: u32) -> Option<(IrqfdItem, impl FnOnce() -> bool)> {
        let entry = self.entries.get(self.by_token.get(&token)?)?;
        Some((entry.item, || entry.take()))
    }

    /// All that are watched, as [`Self::find`] gives them.
    pub(super) fn all(&self) -> impl Iterator<Item = (IrqfdItem, impl FnOnce() -> bool)> {
        let watched = self.entries.values().filter(|_| self.watched);
        watched.map(|entry| (entry.item, || entry.take()))
    }
}

fn add(epoll: &Epoll, entry: &Entry) -> Result<(), Errno> {
    let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Irqfd(entry.token).to_data());
    match epoll.add(entry.trigger.as_fd(), event) {
        // It passed for an eventfd, and nothing can be waited for on it: the VMM's mistake, and its device's alone.
        Err(Errno::EPERM) => {
            let lisn = entry.item.lisn;
            log::error!("the irqfd of source {lisn:#x} is no eventfd: nothing will come of it");
            Ok(())
        }
        other => other,
    }
}

fn forget(epoll: &Epoll, entry: &Entry) -> Result<(), Errno> {
    match epoll.delete(entry.trigger.as_fd()) {
        // See `add`.
        Err(Errno::ENOENT | Errno::EPERM) => Ok(()),
        other => other,
    }
}
