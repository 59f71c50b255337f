//! Unsettled records: they name what they settle, and until that is durable, their segment is
//! neither sealed nor retired.
#![deny(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Append, Segment};
use crate::log::record::{KIND_CANCELLATION, NewRecord};

/// Records of a segment that name what they settle, while that is not durably settled. If this is
/// dropped, the segment is kept for the next open, which settles it.
#[must_use]
pub(crate) struct Unsettled {
    segment: Arc<Segment>,
    records: u64,
}

impl Unsettled {
    /// Called when what the records name is durably settled, or the records were not appended after
    /// all.
    pub(crate) fn settle(self) {
        self.segment.owed.lower(self.records);
    }

    /// Whether the segment is full, so that it can only be sealed or retired once this is settled.
    pub(crate) fn is_in_full(&self) -> bool {
        self.segment.closed().is_some()
    }

    /// Takes so many of the records out, to be settled by themselves.
    pub(crate) fn split(&mut self, records: u64) -> Self {
        debug_assert!(records <= self.records);
        self.records -= records;
        Self {
            segment: Arc::clone(&self.segment),
            records,
        }
    }

    /// Adds another one's records, if they are in the same segment.
    pub(crate) fn merge(&mut self, other: Self) -> Option<Self> {
        if !Arc::ptr_eq(&self.segment, &other.segment) {
            return Some(other);
        }
        self.records += other.records;
        None
    }
}

impl Segment {
    /// Whether it may hold records that name what they settle, such as jobs that were moved.
    pub(crate) fn may_settle(&self) -> bool {
        self.recovered || self.settles.load(Ordering::Relaxed)
    }

    /// Like [`append`](Self::append), for a record that names what it settles: until that is
    /// durable, the segment is neither sealed nor retired.
    pub(crate) fn append_owing(self: &Arc<Self>, record: &NewRecord<'_>) -> (Append, Unsettled) {
        let unsettled = self.owing(1);
        #[cfg(all(test, not(loom)))]
        crate::storage::faults::note_commit(self.paths().segment.path());
        (self.append(record), unsettled)
    }

    /// Appends a cancellation, which names the job that it settles. It is done from the start; a
    /// scan marks it done if the process dies before that.
    pub(crate) fn append_cancellation(
        self: &Arc<Self>,
        record: &NewRecord<'_>,
    ) -> (Append, Unsettled) {
        let unsettled = self.owing(1);
        let appended = self.append_as(KIND_CANCELLATION, record);
        if let Append::Done(position) = appended
            && let Some(pinned) = self.pin()
        {
            // It is not complete, or at least not retired, as long as it owes the settlement; who
            // settles that wakes the maintenance thread.
            let _ = pinned.mark_done(position.index);
        }
        (appended, unsettled)
    }

    /// Announces that this many records will be written that name what they settle.
    pub(crate) fn owing(self: &Arc<Self>, records: u64) -> Unsettled {
        self.owed.raise(records);
        // Relaxed: published by the commit of the records, which follows.
        self.settles.store(true, Ordering::Relaxed);
        Unsettled {
            segment: Arc::clone(self),
            records,
        }
    }
}
