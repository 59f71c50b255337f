//! Unsettled records: they name what they settle, and until that is durable, their segment is
//! neither sealed nor retired.
#![deny(unsafe_code)]

use std::sync::Arc;

use super::{Append, Segment};
use crate::log::record::NewRecord;

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
    /// Like [`append`](Self::append), for a record that names what it settles: until that is
    /// durable, the segment is neither sealed nor retired.
    pub(crate) fn append_owing(self: &Arc<Self>, record: &NewRecord<'_>) -> (Append, Unsettled) {
        let unsettled = self.owing(1);
        #[cfg(all(test, not(loom)))]
        crate::storage::faults::note_commit(self.paths().segment.path());
        (self.append(record), unsettled)
    }

    /// Announces that this many records will be written that name what they settle.
    pub(crate) fn owing(self: &Arc<Self>, records: u64) -> Unsettled {
        self.owed.raise(records);
        Unsettled {
            segment: Arc::clone(self),
            records,
        }
    }
}
