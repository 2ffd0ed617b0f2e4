//! The memory that outlives a daemon: creating it, and taking over what a predecessor left.
//!
//! The VMM keeps the memfd; a daemon holds an exclusive open-file-description lock on it while it
//! serves (architecture §4). Everything read from a memfd that came from outside is checked before use.

pub mod foreign;
mod memfd;
pub mod staged;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use papr_intc_protocol::Versions;
use papr_intc_protocol::layout::header::{self, HeaderError, word};
use papr_intc_protocol::layout::mapped::{MappedStorage, OwnedStorage};
use papr_intc_protocol::layout::{AtomicWord, Geometry, Machine, Storage, Table, TableStorage};

/// Guest memory, as far as interrupt controllers need it.
pub trait QueueMemory {
    /// As [`Host::write_queue_entry`](papr_intc_protocol::plane::Host::write_queue_entry).
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool;
    /// Marks the page of `gpa` in the dirty log, as a write to it would; nothing, if there is no RAM.
    fn mark_written(&self, gpa: u64);
    /// All of `gpa..gpa + len` is RAM.
    fn is_backed(&self, gpa: u64, len: u64) -> bool;
}

/// Why a memfd cannot be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: std::io::Error,
    },
    /// It could shrink under us.
    #[error("the memfd is not sealed against shrinking, growing and unsealing")]
    Seals,
    /// It is not as large as its machine needs.
    #[error("the memfd has {found} bytes, its machine needs {needed}")]
    Size {
        /// Bytes it has.
        found: u64,
        /// Bytes it needs.
        needed: u64,
    },
    /// Another daemon serves it.
    #[error("another daemon holds the memory")]
    Locked,
    /// Not ours, or of a version that we do not know.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The machine in the header makes no sense.
    #[error("the machine in the header is damaged")]
    Machine,
    /// Not as large as the front-end said.
    #[error("the memfd has {found} bytes, the front-end said {said}")]
    SizeSaid {
        /// Bytes it has.
        found: u64,
        /// In the message.
        said: u64,
    },
    /// Not of the layout that the front-end said.
    #[error("the header has layout {found}, the front-end said {said}")]
    LayoutSaid {
        /// In the header.
        found: u16,
        /// In the message.
        said: u32,
    },
    /// Not the memory that the front-end spoke of.
    #[error("the header has generation {found}, the front-end said {expected}")]
    Generation {
        /// In the header.
        found: u64,
        /// In the message.
        expected: u64,
    },
}

impl MemoryError {
    /// The errno of the reply.
    pub fn errno(&self) -> i32 {
        use nix::libc;
        match self {
            Self::Os { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Seals => libc::EPERM,
            Self::Size { .. } | Self::SizeSaid { .. } => libc::EUCLEAN,
            Self::Machine | Self::Generation { .. } | Self::LayoutSaid { .. } => libc::EUCLEAN,
            Self::Locked => libc::EBUSY,
            Self::Header(HeaderError::Magic(_)) => libc::EUCLEAN,
            Self::Header(_) => libc::EPROTONOSUPPORT,
        }
    }
}

/// What a front-end says about the memory that it hands in.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// Layout in the header.
    pub layout: u32,
    /// Generation in the header.
    pub generation: u64,
    /// Bytes of the memfd.
    pub size: u64,
}

/// The shared memory of one machine, locked by us.
pub struct SharedMemory {
    /// The open file description that goes to the VMM.
    file: File,
    /// Ours alone: holds the lock.
    _lock: File,
    /// Its words.
    pub storage: Arc<OwnedStorage>,
    /// Its machine.
    pub machine: Machine,
    /// Our generation.
    pub generation: u64,
}

impl SharedMemory {
    /// Makes the memory of a new machine, in a layout. Every word is zero but the header's identity and
    /// machine; the state word keeps the gate closed.
    pub fn create(machine: Machine, versions: &Versions, layout: u16) -> Result<Self, MemoryError> {
        let geometry = machine.geometry_in(layout).ok_or(MemoryError::Machine)?;
        let file = memfd::create(geometry.size())?;
        let lock = memfd::lock(&file)?;
        let storage = Arc::new(map_owned(&file, geometry)?);
        let set = |w, value| {
            // Release: the magic, stored last, publishes the rest to `header::check`.
            storage
                .table_word(Table::Header(w))
                .store(value, Ordering::Release);
        };
        set(word::VERSIONS, versions.header_word(layout));
        set(word::GENERATION, 1);
        set(word::START_COUNT, 1);
        machine.write(&storage);
        set(word::MAGIC, header::MAGIC);
        Ok(Self {
            file,
            _lock: lock,
            storage,
            machine,
            generation: 1,
        })
    }

    /// Takes over the memory that a predecessor left: locks, checks, asks `accept` about its machine,
    /// raises generation and start count. On an error the memory is as it was.
    pub fn adopt<E: From<MemoryError>>(
        fd: OwnedFd,
        said: Said,
        versions: &Versions,
        accept: impl FnOnce(&Machine) -> Result<(), E>,
    ) -> Result<Self, E> {
        let file = File::from(fd);
        memfd::check_seals(&file)?;
        let lock = memfd::lock(&file)?;
        let (machine, geometry) = inspect(&file, said, versions)?;
        accept(&machine)?;
        let storage = Arc::new(map_owned(&file, geometry)?);
        let raise = |w| {
            // Only the lock's holder writes header words; Release as in `create`.
            storage
                .table_word(Table::Header(w))
                .fetch_add(1, Ordering::Release)
                .wrapping_add(1)
        };
        let generation = raise(word::GENERATION);
        raise(word::START_COUNT);
        Ok(Self {
            file,
            _lock: lock,
            storage,
            machine,
            generation,
        })
    }

    /// What [`Self::adopt`] would say, but for the lock; writes nothing.
    pub fn check(fd: OwnedFd, said: Said, versions: &Versions) -> Result<Machine, MemoryError> {
        inspect(&File::from(fd), said, versions).map(|(machine, _)| machine)
    }

    /// The memfd, to be handed out.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A header word.
    pub fn header(&self, w: u32) -> u64 {
        self.storage.table(Table::Header(w), Ordering::Acquire)
    }

    /// Stores a header word. Release pairs with the readers' Acquire.
    pub fn set_header(&self, w: u32, value: u64) {
        self.storage
            .table_word(Table::Header(w))
            .store(value, Ordering::Release);
    }

    /// Starts since the last successful START, this one included.
    pub fn start_count(&self) -> u64 {
        self.header(word::START_COUNT)
    }
}

fn map_owned(file: &File, geometry: Geometry) -> Result<OwnedStorage, MemoryError> {
    OwnedStorage::map(file, geometry).map_err(map_error)
}

fn map_error(e: impl std::error::Error + Send + Sync + 'static) -> MemoryError {
    MemoryError::Os {
        what: "mapping the shared memory",
        source: std::io::Error::other(e),
    }
}

/// Checks seals, size, header and machine of a memfd from outside.
fn inspect(
    file: &File,
    said: Said,
    versions: &Versions,
) -> Result<(Machine, Geometry), MemoryError> {
    memfd::check_seals(file)?;
    let found = memfd::size(file)?;
    if found != said.size {
        let said = said.size;
        return Err(MemoryError::SizeSaid { found, said });
    }
    // The smallest geometry is enough to read a header; its size tells the true one.
    let smallest = Geometry::in_layout(versions.layout_min, 16, 16, 1);
    let smallest = smallest.ok_or(MemoryError::Machine)?;
    if found < smallest.size() {
        return Err(MemoryError::Size {
            found,
            needed: smallest.size(),
        });
    }
    let view = MappedStorage::map(file, smallest).map_err(map_error)?;
    let layout = header::check(&view, versions)?;
    let machine = Machine::read(&view).ok_or(MemoryError::Machine)?;
    let geometry = machine.geometry_in(layout);
    let geometry = geometry.ok_or(MemoryError::Machine)?;
    if found != geometry.size() {
        return Err(MemoryError::Size {
            found,
            needed: geometry.size(),
        });
    }
    if said.layout != u32::from(layout) {
        let (found, said) = (layout, said.layout);
        return Err(MemoryError::LayoutSaid { found, said });
    }
    let generation = view.table(Table::Header(word::GENERATION), Ordering::Acquire);
    if generation != said.generation || generation == 0 {
        return Err(MemoryError::Generation {
            found: generation,
            expected: said.generation,
        });
    }
    Ok((machine, geometry))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use papr_intc_protocol::LAYOUT_VERSION;
    use papr_intc_protocol::layout::{Compat, IcMode};

    use super::*;

    const V: Versions = Versions::current("test");

    fn machine() -> Machine {
        Machine::pseries(IcMode::Dual, Compat::Papr1, 2)
    }

    fn dup(memory: &SharedMemory) -> OwnedFd {
        memory.file.as_fd().try_clone_to_owned().unwrap()
    }

    fn said(generation: u64) -> Said {
        let size = machine().geometry().unwrap().size();
        Said {
            layout: LAYOUT_VERSION.into(),
            generation,
            size,
        }
    }

    fn adopt(fd: OwnedFd, said: Said) -> Result<SharedMemory, MemoryError> {
        SharedMemory::adopt(fd, said, &V, |_| Ok(()))
    }

    #[test]
    fn memory_of_a_live_daemon_is_refused_and_that_of_a_dead_one_taken() {
        let first = SharedMemory::create(machine(), &V, LAYOUT_VERSION).unwrap();
        // The VMM keeps what was handed out, whoever dies.
        let vmm = dup(&first);
        let again = || vmm.try_clone().unwrap();
        assert!(matches!(adopt(again(), said(1)), Err(MemoryError::Locked)));
        drop(first);
        let second = adopt(again(), said(1)).unwrap();
        assert_eq!(
            (second.generation, second.start_count(), second.machine),
            (2, 2, machine())
        );
        assert!(matches!(adopt(again(), said(2)), Err(MemoryError::Locked)));
        drop(second);
        adopt(again(), said(2)).unwrap();
    }

    #[test]
    fn memory_of_a_machine_that_is_not_wanted_is_left_as_it_was() {
        let first = SharedMemory::create(machine(), &V, LAYOUT_VERSION).unwrap();
        let vmm = dup(&first);
        drop(first);
        let refuse = |_: &Machine| Err(MemoryError::Machine);
        assert!(SharedMemory::adopt(vmm.try_clone().unwrap(), said(1), &V, refuse).is_err());
        let second = adopt(vmm, said(1)).unwrap();
        assert_eq!((second.generation, second.start_count()), (2, 2));
    }

    #[test]
    fn memory_of_another_generation_is_refused_unchanged() {
        let first = SharedMemory::create(machine(), &V, LAYOUT_VERSION).unwrap();
        let vmm = dup(&first);
        drop(first);
        assert!(matches!(
            adopt(vmm.try_clone().unwrap(), said(9)),
            Err(MemoryError::Generation { found: 1, .. })
        ));
        assert_eq!(adopt(vmm, said(1)).unwrap().generation, 2);
    }

    #[test]
    fn an_unsealed_or_short_or_foreign_memfd_is_refused() {
        let plain = tempfile::tempfile().unwrap();
        assert!(matches!(
            SharedMemory::check(plain.into(), said(1), &V),
            Err(MemoryError::Os { .. })
        ));
        let short = memfd::create(4096).unwrap();
        assert!(matches!(
            SharedMemory::check(
                short.into(),
                Said {
                    layout: LAYOUT_VERSION.into(),
                    generation: 1,
                    size: 4096
                },
                &V
            ),
            Err(MemoryError::Size { .. })
        ));
        let foreign = memfd::create(1 << 20).unwrap();
        assert!(matches!(
            SharedMemory::check(
                foreign.into(),
                Said {
                    layout: LAYOUT_VERSION.into(),
                    generation: 1,
                    size: 1 << 20
                },
                &V
            ),
            Err(MemoryError::Header(HeaderError::Magic(0)))
        ));
        let damaged = SharedMemory::create(machine(), &V, LAYOUT_VERSION).unwrap();
        damaged.set_header(word::MACHINE, 0);
        assert!(matches!(
            SharedMemory::check(dup(&damaged), said(1), &V),
            Err(MemoryError::Machine)
        ));
    }
}
