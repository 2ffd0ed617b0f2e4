//! The shared memory as the VMM keeps it: checked when it comes, handed to every later daemon.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use papr_intc_protocol::Versions;
use papr_intc_protocol::layout::geometry::LINE;
use papr_intc_protocol::layout::header::{self, Executor, Gate, State, word};
use papr_intc_protocol::layout::mapped::MappedStorage;
use papr_intc_protocol::layout::{Geometry, Machine, Page, Table};
use papr_intc_protocol::wire::handshake::{SetShm, ShmInfo};

use crate::error::Error;
use crate::outage::RunWords;

/// The versions of this front-end.
pub(crate) const OWN: Versions =
    Versions::current(concat!("papr-intc-frontend ", env!("CARGO_PKG_VERSION")));

/// The memfd that outlives daemons.
#[derive(Debug)]
pub(crate) struct Shm {
    pub memfd: File,
    /// Bytes.
    pub size: u64,
    pub geometry: Geometry,
}

impl Shm {
    /// Checks what GET_SHM handed out: one descriptor, sealed, of the machine's size.
    pub fn accept(info: &ShmInfo, fds: Vec<OwnedFd>, machine: &Machine) -> Result<Self, Error> {
        let layout = u16::try_from(info.layout).ok();
        let geometry = layout.and_then(|layout| machine.geometry_in(layout));
        let geometry = geometry.ok_or_else(|| {
            let (lowest, highest) = OWN.layouts();
            let found = info.layout;
            Error::Memory(format!(
                "it has layout {found}, this front-end knows {lowest} to {highest}"
            ))
        })?;
        let [memfd] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|fds| Error::Memory(format!("GET_SHM came with {} descriptors", fds.len())))?;
        let memfd = File::from(memfd);
        let needed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(Error::os("reading seals"))?;
        if !SealFlag::from_bits_retain(seals).contains(needed) {
            return Err(Error::Memory(format!(
                "it has the seals {seals:#x}, not {:#x}",
                needed.bits()
            )));
        }
        let size = memfd
            .metadata()
            .map_err(Error::os("asking its size"))?
            .len();
        if size != geometry.size() || info.size != size {
            return Err(Error::Memory(format!(
                "it has {size} bytes, the daemon says {}, the machine needs {}",
                info.size,
                geometry.size()
            )));
        }
        Ok(Self {
            memfd,
            size,
            geometry,
        })
    }

    /// As SET_SHM hands it back.
    pub fn request(&self) -> SetShm {
        SetShm {
            layout: u32::from(self.geometry.layout()),
            zero: 0,
            generation: self.generation(),
            size: self.size,
        }
    }

    /// A header word, mapped or not; 0 if it cannot be read.
    fn header(&self, w: u32) -> u64 {
        let mut bytes = [0; 8];
        let at = self.geometry.table_offset(Table::Header(w));
        match self.memfd.read_exact_at(&mut bytes, at) {
            Ok(()) => u64::from_ne_bytes(bytes),
            Err(e) => {
                log::error!("reading the shared memory's header: {e}");
                0
            }
        }
    }

    /// This front-end can run its plane on it, as far as its header says now: a later daemon may have
    /// raised a flag.
    pub fn check(&self) -> Result<(), Error> {
        let (versions, incompat) = (
            self.header(word::VERSIONS),
            self.header(word::INCOMPAT_FLAGS),
        );
        OWN.check_memory(versions, incompat)
            .map_err(|e| Error::Memory(e.to_string()))
    }

    /// Generation of the last daemon that took it, even if that one died before it could say so.
    pub fn generation(&self) -> u64 {
        self.header(word::GENERATION)
    }

    /// Who executes, as the last daemon left it; none before the first START.
    pub fn executor(&self) -> Option<Executor> {
        let state = State::from_word(self.header(word::STATE));
        (state.gate != Gate::Closed).then_some(state.executor)
    }

    /// QUIESCEs open.
    pub fn quiesce_depth(&self) -> u64 {
        self.header(word::QUIESCE_DEPTH)
    }
}

/// The run words by the memfd alone, whatever is mapped; aligned words, which only status reads meanwhile.
#[derive(Debug)]
pub(crate) struct RunPage {
    memfd: File,
    geometry: Geometry,
}

impl RunPage {
    pub fn of(shm: &Shm) -> std::io::Result<Self> {
        Ok(Self {
            memfd: shm.memfd.try_clone()?,
            geometry: shm.geometry,
        })
    }

    fn at(&self, page: Page) -> u64 {
        self.geometry.tables_size() + self.geometry.page_offset(page)
    }

    fn read(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let read = self.memfd.read_exact_at(&mut bytes, at);
        read.map_or(0, |()| u64::from_ne_bytes(bytes))
    }
}

impl RunWords for RunPage {
    fn set(&self, word: u32, value: u64) {
        let at = self.at(Page::Run(word));
        if let Err(e) = self.memfd.write_all_at(&value.to_ne_bytes(), at) {
            log::debug!("run word {word}: {e}");
        }
    }

    fn get(&self, word: u32) -> u64 {
        self.read(self.at(Page::Run(word)))
    }

    fn layout(&self) -> u16 {
        self.geometry.layout()
    }

    fn delivered(&self) -> u64 {
        let mut lines = vec![0; self.geometry.epochs() as usize * LINE as usize];
        let from = self.at(Page::Delivered(0));
        // The last line's rest is cut off: it is followed by other areas, never by the end.
        if self.memfd.read_exact_at(&mut lines, from).is_err() {
            return 0;
        }
        let daemons = self.geometry.table_offset(Table::Header(word::DELIVERED));
        lines
            .chunks(LINE as usize)
            .filter_map(|line| line.first_chunk().copied())
            .map(u64::from_ne_bytes)
            .fold(self.read(daemons), u64::wrapping_add)
    }
}

/// Maps it and checks its header.
pub(crate) fn map(shm: &Shm, machine: &Machine) -> Result<MappedStorage, Error> {
    let bad = |what: String| Error::Memory(what);
    let storage = MappedStorage::map(&shm.memfd, shm.geometry).map_err(|e| bad(e.to_string()))?;
    let found = header::check(&storage, &OWN).map_err(|e| bad(e.to_string()))?;
    let said = shm.geometry.layout();
    if found != said {
        return Err(bad(format!(
            "it has layout {found}, the daemon said {said}"
        )));
    }
    match Machine::read(&storage) {
        None => Err(bad("its machine is damaged".to_owned())),
        Some(found) => match machine.difference(&found) {
            Some(difference) => Err(bad(difference)),
            None => Ok(storage),
        },
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use papr_intc_protocol::layout::{Compat, IcMode};

    use super::*;

    fn machine() -> Machine {
        Machine::pseries(IcMode::Dual, Compat::Papr1, 2)
    }

    fn memfd(size: u64, seals: SealFlag) -> OwnedFd {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"test", flags).unwrap());
        file.set_len(size).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        OwnedFd::from(file)
    }

    fn info(size: u64) -> ShmInfo {
        ShmInfo {
            layout: OWN.layout.into(),
            zero: 0,
            generation: 1,
            size,
            tables_size: 0,
            pages_size: 0,
        }
    }

    fn all() -> SealFlag {
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
    }

    #[test]
    fn only_a_sealed_memfd_of_the_right_size_is_accepted() {
        let geometry = machine().geometry().unwrap();
        let size = geometry.size();
        assert!(Shm::accept(&info(size), vec![memfd(size, all())], &machine()).is_ok());
        for fds in [
            vec![],
            vec![memfd(size, all()), memfd(size, all())],
            vec![memfd(size, SealFlag::F_SEAL_SHRINK)],
            vec![memfd(size - 4096, all())],
        ] {
            let error = Shm::accept(&info(size), fds, &machine()).unwrap_err();
            assert!(matches!(error, Error::Memory(_)), "{error}");
        }
        let liar = Shm::accept(&info(size + 1), vec![memfd(size, all())], &machine());
        assert!(liar.is_err());
        let later = ShmInfo {
            layout: u32::from(OWN.layout) + 1,
            ..info(size)
        };
        assert!(Shm::accept(&later, vec![memfd(size, all())], &machine()).is_err());
    }

    #[test]
    fn memory_without_a_header_is_not_mapped() {
        let geometry = machine().geometry().unwrap();
        let size = geometry.size();
        let shm = Shm::accept(&info(size), vec![memfd(size, all())], &machine()).unwrap();
        let error = map(&shm, &machine()).unwrap_err();
        assert!(error.to_string().contains("PAPRINTC"), "{error}");
    }
}
