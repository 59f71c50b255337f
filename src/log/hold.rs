//! A hold keeps a segment alive for the claimed records in it.

#![allow(unsafe_code)]
use std::ptr::NonNull;
use std::sync::Arc;

use super::pinned::Pinned;
use super::segment::{Maps, Segment};

/// Keeps the segment of a run or a lease alive. Either the records themselves do, because they are
/// not done, so that the segment is not complete; or a share of the mappings does, for queues in
/// which a record can have two leases (lease timeouts).
///
/// It is one word, because leases go through the deques one by one: the address of the [`Segment`],
/// or that of a [`Pinned`] owned by an `Arc`, with the lowest bit set.
pub(super) struct Hold(NonNull<()>);

const _: () = assert!(align_of::<Segment>() > 1 && align_of::<Pinned>() > 1);

/// A decoded [`Hold`].
pub(super) enum Held<'a> {
    NotDone(&'a Segment),
    Counted(&'a Pinned),
}

impl Hold {
    #[inline]
    pub(super) fn not_done(segment: &Segment) -> Self {
        Self(NonNull::from(segment).cast())
    }

    pub(super) fn counted(pinned: Arc<Pinned>) -> Self {
        let pointer = Arc::into_raw(pinned).cast_mut().cast::<()>();
        // SAFETY: an Arc's pointer is not null, and setting a bit does not make it null.
        Self(unsafe { NonNull::new_unchecked(pointer.map_addr(|address| address | 1)) })
    }

    #[inline]
    fn pinned(&self) -> Option<*const Pinned> {
        let pointer = self.0.as_ptr();
        (pointer.addr() & 1 == 1)
            .then(|| pointer.map_addr(|address| address & !1).cast_const().cast())
    }

    #[inline]
    pub(super) fn get(&self) -> Held<'_> {
        match self.pinned() {
            // SAFETY: a record that this is held for is not done while its only lease, or the run
            // before that, exists: `ack` consumes it. So the segment is not complete, and its
            // stripe holds a reference to it.
            None => Held::NotDone(unsafe { self.0.cast::<Segment>().as_ref() }),
            // SAFETY: it comes from `Arc::into_raw`, and that Arc is given back in `drop` only.
            Some(pinned) => Held::Counted(unsafe { &*pinned }),
        }
    }

    #[inline]
    pub(super) fn segment(&self) -> &Segment {
        match self.get() {
            Held::NotDone(segment) => segment,
            Held::Counted(pinned) => pinned.segment(),
        }
    }

    #[inline]
    pub(super) fn maps(&self) -> &Maps {
        match self.get() {
            // SAFETY: the record is claimed and not done, see `get`, so the segment is neither
            // waiting nor complete.
            Held::NotDone(segment) => unsafe { segment.maps_in_use() },
            Held::Counted(pinned) => pinned.maps(),
        }
    }
}

impl Clone for Hold {
    #[inline]
    fn clone(&self) -> Self {
        if let Some(pinned) = self.pinned() {
            // SAFETY: it comes from `Arc::into_raw`, and is alive, as `self` owns one of its
            // counts.
            unsafe { Arc::increment_strong_count(pinned) };
        }
        Self(self.0)
    }
}

impl Drop for Hold {
    #[inline]
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned() {
            // SAFETY: it comes from `Arc::into_raw`; each hold owns one count.
            drop(unsafe { Arc::from_raw(pinned) });
        }
    }
}

// SAFETY: a hold stands for a `&Segment` or an `Arc<Pinned>`, which are both Send and Sync; what
// keeps them alive does not depend on the thread.
unsafe impl Send for Hold {}
// SAFETY: as for Send.
unsafe impl Sync for Hold {}
