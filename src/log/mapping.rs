//! Whether a segment's files are mapped: for use, for a lookup, or not at all.
//!
//! At most one pair of mappings of a segment exists at a time, so that `retire` knows of all of
//! them.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;

use super::segment::Maps;
use crate::events::Mutex;
use crate::storage::StorageError;
use crate::storage::mappings::Purpose;

/// The mappings of a segment.
pub(super) struct Mapping {
    /// The mappings for use.
    used: ArcSwapOption<Maps>,
    /// The pointer in `used`, for callers that may follow it without a share.
    raw: AtomicPtr<Maps>,
    /// The mappings that were last shared.
    shared: Mutex<Weak<Maps>>,
    retired: AtomicBool,
}

impl Mapping {
    /// Without mappings, as if retired.
    pub(super) fn retired() -> Self {
        let mapping = Self::absent();
        mapping.retired.store(true, Ordering::Relaxed);
        mapping
    }

    /// Not mapped.
    pub(super) fn absent() -> Self {
        Self {
            used: ArcSwapOption::empty(),
            raw: AtomicPtr::new(ptr::null_mut()),
            shared: Mutex::new(Weak::new()),
            retired: AtomicBool::new(false),
        }
    }

    pub(super) fn of(maps: Maps) -> Self {
        let mapping = Self::absent();
        mapping.put(Arc::new(maps));
        mapping
    }

    /// A share of the mappings for use.
    pub(super) fn used(&self) -> Option<Arc<Maps>> {
        self.used.load_full()
    }

    pub(super) fn is_used(&self) -> bool {
        // Relaxed: a caller that needs certainty holds the lock, or asks again.
        !self.raw.load(Ordering::Relaxed).is_null()
    }

    /// The mappings for use; see `segment.rs` for who may follow the pointer.
    #[inline(always)]
    pub(super) fn raw(&self) -> *const Maps {
        // Relaxed: the holder of a reservation or of a claim got it after `put`, which published
        // the segment or, through `used`, its mappings.
        self.raw.load(Ordering::Relaxed)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// A share of the mappings, if there are any.
    pub(super) fn shared(&self) -> Option<Arc<Maps>> {
        self.used().or_else(|| self.shared.lock().upgrade())
    }

    /// A share of the mappings, which `open` makes if there are none; None once retired.
    pub(super) fn look(
        &self,
        open: impl FnOnce(Purpose) -> Result<Maps, StorageError>,
    ) -> Result<Option<Arc<Maps>>, StorageError> {
        if let Some(maps) = self.used() {
            return Ok(Some(maps));
        }
        let mut shared = self.shared.lock();
        if self.is_retired() {
            return Ok(None);
        }
        if let Some(maps) = self.used().or_else(|| shared.upgrade()) {
            return Ok(Some(maps));
        }
        let maps = Arc::new(open(Purpose::Look)?);
        *shared = Arc::downgrade(&maps);
        Ok(Some(maps))
    }

    /// Maps the segment for use from now on, unless it is retired. `open` makes the mappings if
    /// there are none, and `make_ready` prepares them.
    pub(super) fn begin_use(
        &self,
        open: impl FnOnce(Purpose) -> Result<Maps, StorageError>,
        make_ready: impl FnOnce(&Maps) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let shared = self.shared.lock();
        if self.is_retired() || self.is_used() {
            return Ok(());
        }
        let maps = match shared.upgrade() {
            Some(maps) => maps,
            None => Arc::new(open(Purpose::Use)?),
        };
        make_ready(&maps)?;
        self.put(maps);
        Ok(())
    }

    fn put(&self, maps: Arc<Maps>) {
        self.raw
            .store(Arc::as_ptr(&maps).cast_mut(), Ordering::Relaxed);
        self.used.store(Some(maps));
    }

    /// Unmaps the segment as soon as no share of the mappings is left.
    pub(super) fn end_use(&self) {
        let mut shared = self.shared.lock();
        if let Some(maps) = self.take() {
            *shared = Arc::downgrade(&maps);
        }
    }

    /// Gives the mappings up: no further shares can be made. Returns the existing ones.
    pub(super) fn retire(&self) -> Option<Arc<Maps>> {
        let shared = self.shared.lock();
        self.retired.store(true, Ordering::Release);
        self.take().or_else(|| shared.upgrade())
    }

    fn take(&self) -> Option<Arc<Maps>> {
        self.raw.store(ptr::null_mut(), Ordering::Relaxed);
        self.used.swap(None)
    }
}
