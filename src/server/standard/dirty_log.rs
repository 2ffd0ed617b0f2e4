//! The dirty log: which pages of guest memory were written, for a migration's pre-copy.
//!
//! Follows the vhost-user specification, "Migration": one bitmap for all of guest memory, one bit per 4 KiB page, shared
//! by SET_LOG_BASE; pages are marked while the feature LOG_ALL is acknowledged, and only then.
//!
//! vhost-user-backend 0.24 gives each memory region its part of the log, but loses it for regions that are added later
//! and for a new table, and takes no notice of LOG_ALL. [`LogBitmap`] wraps the crate's bitmap and mends the three: every
//! region knows the one [`DirtyLog`] of the daemon, which keeps the mapped log for regions to come and says whether to
//! mark at all.
//!
//! Written by the inner vhost-user thread (log, switch), read by whoever writes guest memory.

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vhost_user_backend::bitmap::{
    AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace, MemRegionBitmap, MmapLogReg,
};
use vm_memory::GuestMemoryRegion;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// The unit of the dirty log, in bytes.
pub(super) const LOG_PAGE: u64 = 4096;

/// The log of one daemon: the bitmap last given by SET_LOG_BASE, and whether LOG_ALL is acknowledged.
#[derive(Debug, Default)]
pub(super) struct DirtyLog {
    all: AtomicBool,
    mapped: Mutex<Option<Arc<MmapLogReg>>>,
}

impl DirtyLog {
    /// Follows the LOG_ALL bit of SET_FEATURES.
    pub(super) fn set_all(&self, on: bool) {
        // Release: pairs with the Acquire in `mark_dirty`; a writer that sees the switch sees the bitmap behind it.
        self.all.store(on, Ordering::Release);
    }

    /// Forgets the bitmap and stops marking: the VMM has gone.
    pub(super) fn clear(&self) {
        self.set_all(false);
        self.keep(None);
    }

    /// Where the bits of memory up to `end` are mapped, if there is a log: it is somebody else's file, as memory is.
    pub(super) fn mapping(&self, end: u64) -> Option<Range<usize>> {
        let mapped = self.kept()?;
        // The crate has seen to it that the log reaches to the end of memory.
        let bytes = usize::try_from(end.div_ceil(LOG_PAGE * 8)).ok()?;
        let start = ptr::from_ref(&mapped[0]).addr();
        (bytes > 0).then(|| start..start + bytes.next_multiple_of(LOG_PAGE as usize))
    }

    fn keep(&self, mapped: Option<Arc<MmapLogReg>>) {
        *self.mapped.lock().unwrap_or_else(PoisonError::into_inner) = mapped;
    }

    fn kept(&self) -> Option<Arc<MmapLogReg>> {
        self.mapped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The dirty bitmap of one memory region, as vm-memory wants it: marked after each store.
#[derive(Clone, Debug, Default)]
pub struct LogBitmap {
    pages: BitmapMmapRegion,
    // Empty until the region is published; nobody can have written to it before that.
    log: Arc<OnceLock<Arc<DirtyLog>>>,
}

impl LogBitmap {
    /// Ties a new region to the daemon's log, and to the bitmap that is already in use, if there is one. Does nothing to
    /// a region that has been tied before.
    ///
    /// # Errors
    /// The bitmap in use does not reach to the end of the region. The region stays as it was.
    pub(super) fn attach<R: GuestMemoryRegion>(
        &self,
        region: &R,
        log: &Arc<DirtyLog>,
    ) -> io::Result<()> {
        if self.log.get().is_some() {
            return Ok(());
        }
        if let Some(mapped) = log.kept() {
            self.pages.replace(AtomicBitmapMmap::new(region, mapped)?);
        }
        let _already_tied = self.log.set(Arc::clone(log));
        Ok(())
    }
}

impl Bitmap for LogBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // Acquire: pairs with the Release in `DirtyLog::set_all`.
        if self
            .log
            .get()
            .is_some_and(|log| log.all.load(Ordering::Acquire))
        {
            #[cfg(feature = "crash-points")]
            papr_intc_protocol::layout::probe::write_to_ram(offset as u64);
            // The crate sets bits with Relaxed. Release pairs with the Acquire of whoever takes a bit: what was
            // stored before is seen by the copy of the page that follows.
            fence(Ordering::Release);
            self.pages.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            pages: self.pages.slice_at(offset),
            log: Arc::clone(&self.log),
        }
    }
}

impl BitmapSlice for LogBitmap {}

impl WithBitmapSlice<'_> for LogBitmap {
    type S = Self;
}

impl NewBitmap for LogBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// One region's part of a new log, made by the crate when SET_LOG_BASE arrives.
#[derive(Debug)]
pub struct RegionLog {
    pages: AtomicBitmapMmap,
    mapped: Arc<MmapLogReg>,
}

impl MemRegionBitmap for RegionLog {
    fn new<R: GuestMemoryRegion>(region: &R, mapped: Arc<MmapLogReg>) -> io::Result<Self> {
        let pages = AtomicBitmapMmap::new(region, Arc::clone(&mapped))?;
        Ok(Self { pages, mapped })
    }
}

impl BitmapReplace for LogBitmap {
    type InnerBitmap = RegionLog;

    fn replace(&self, new: RegionLog) {
        self.pages.replace(new.pages);
        if let Some(log) = self.log.get() {
            log.keep(Some(new.mapped));
        }
    }
}
