//! Lookups in a log outside of claiming: segment by segment, or by the sequence of a record.
//! Segments that are not mapped are mapped for the duration of the lookup.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Log;
use super::ack::Deliveries;
use super::meta::{self, Meta};
use super::records::Record;
use super::recovery::Quarantined;
use super::segment::Segment;
use crate::Sequence;
use crate::log::pinned::Pinned;
use crate::storage::StorageError;

/// The record of a job that is not done, or was not when it was found.
pub(crate) struct FoundJob {
    pub(crate) pinned: Pinned,
    units: u32,
}

impl FoundJob {
    pub(crate) fn record(&self) -> Record<'_> {
        Record::committed(&self.pinned.maps().records, self.units)
    }

    fn segment(&self) -> &Segment {
        self.pinned.segment()
    }

    pub(crate) fn segment_base(&self) -> Sequence {
        self.segment().base()
    }

    pub(crate) fn index(&self) -> u32 {
        self.record().header().index
    }

    pub(crate) fn sequence(&self) -> Sequence {
        self.segment().sequence(self.index())
    }

    pub(crate) fn is_done(&self) -> bool {
        self.pinned.is_done(self.index())
    }

    pub(crate) fn deliveries(&self) -> Deliveries {
        self.pinned.maps().acks.deliveries(self.index())
    }

    pub(crate) fn meta(&self) -> Meta {
        Meta::decode(self.record().meta())
    }

    /// Whether the record settles another one, and that is not known to be durable.
    pub(crate) fn may_not_be_durable_yet(&self) -> bool {
        meta::settles_another(self.record().meta()) && !self.segment().owes_nothing()
    }
}

/// The id of the job that was moved to this place, if one was.
fn moved_from(record: &Record<'_>) -> Option<Sequence> {
    meta::original_of(record.meta())
}

/// Whether this record is the one that a job was enqueued in. One that was moved there is another
/// job's.
fn is_own(pinned: &Pinned, record: &Record<'_>, job: Sequence) -> bool {
    pinned.segment().sequence(record.header().index) == job
        && moved_from(record).is_none_or(|id| id == job)
}

impl Log {
    /// The segment of the record with this sequence, if there is one that is not done.
    pub(crate) fn pin_live(&self, sequence: Sequence) -> Result<Option<Pinned>, Arc<StorageError>> {
        let pinned = self.pin_containing(sequence)?;
        Ok(pinned.filter(|pinned| {
            let index = sequence.offset_from(pinned.segment().base());
            index < pinned.segment().reached().index && !pinned.is_done(index)
        }))
    }

    /// Finds the record of a job that is not done, which compaction may have moved, by its id.
    ///
    /// Walks over the records of the job's segment. If the job is not there any more, walks over the
    /// live records of all later segments that may hold moved jobs; a segment found at open may.
    pub(crate) fn find_job(&self, job: Sequence) -> Result<Option<FoundJob>, Arc<StorageError>> {
        if let Some(pinned) = self.pin_live(job)? {
            let own = pinned.find_live(|record| is_own(&pinned, record, job));
            if let Some(units) = own.map(|record| record.units()) {
                return Ok(Some(FoundJob { pinned, units }));
            }
        }
        let mut segment = self
            .segment_containing(job)
            .or_else(|| self.segment_after(Some(job)));
        while let Some(one) = segment {
            if one.may_settle()
                && let Some(pinned) = self.pin_scanned(&one)?
            {
                let moved = pinned.find_live(|record| moved_from(record) == Some(job));
                if let Some(units) = moved.map(|record| record.units()) {
                    return Ok(Some(FoundJob { pinned, units }));
                }
            }
            segment = self.segment_after(Some(one.base()));
        }
        Ok(None)
    }

    /// Like [`find_job`](Self::find_job), while jobs are being moved: one may be done where it was
    /// moved to, and not be marked yet where it was. Of the records of a job the last one counts.
    ///
    /// Walks over all records of these segments.
    pub(crate) fn find_last(&self, job: Sequence) -> Result<Option<FoundJob>, Arc<StorageError>> {
        let mut found = None;
        let first = self.segment_containing(job);
        let mut segment = first.clone().or_else(|| self.segment_after(Some(job)));
        while let Some(one) = segment {
            let is_first = first.as_ref().is_some_and(|first| Arc::ptr_eq(first, &one));
            if (is_first || one.may_settle())
                && let Some(pinned) = self.pin_scanned(&one)?
            {
                let is_it = |record: &Record<'_>| {
                    record.header().is_job()
                        && (is_own(&pinned, record, job) || moved_from(record) == Some(job))
                };
                let last = pinned.all_records().filter(is_it).last();
                if let Some(units) = last.map(|record| record.units()) {
                    found = Some(FoundJob { pinned, units });
                }
            }
            segment = self.segment_after(Some(one.base()));
        }
        Ok(found)
    }

    /// The segments, oldest first. Each is mapped and scanned when the iterator reaches it.
    pub(crate) fn pins(&self) -> impl Iterator<Item = Result<Pinned, Arc<StorageError>>> {
        let mut after = None;
        std::iter::from_fn(move || self.next_pin(&mut after, None))
    }

    /// The base of the last segment, if there is one.
    pub(crate) fn last_base(&self) -> Option<Sequence> {
        self.segments.read().back().map(|last| last.base())
    }

    /// The first segment behind `after`, which is then set to it; None if there is none up to
    /// `last`.
    pub(crate) fn next_pin(
        &self,
        after: &mut Option<Sequence>,
        last: Option<Sequence>,
    ) -> Option<Result<Pinned, Arc<StorageError>>> {
        loop {
            let segment = self.segment_after(*after)?;
            if last.is_some_and(|last| segment.base() > last) {
                return None;
            }
            *after = Some(segment.base());
            // A segment that is gone is skipped.
            if let Some(pinned) = self.pin_scanned(&segment).transpose() {
                return Some(pinned);
            }
        }
    }

    /// Whether there is a segment that has been appended to, other than as a placeholder.
    pub(crate) fn has_records(&self) -> bool {
        !self.segments.read().is_empty()
    }

    /// The first sequence that a record can have which is not in a full segment.
    pub(crate) fn open_from(&self) -> Sequence {
        let active = self.active();
        match active.closed() {
            Some(end) => active.sequence(end.index),
            None => active.base(),
        }
    }

    pub(super) fn segment_after(&self, after: Option<Sequence>) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let is_before = |segment: &Arc<Segment>| after.is_some_and(|after| segment.base() <= after);
        let at = segments.partition_point(is_before);
        segments.get(at).cloned()
    }

    /// The segment that contains a sequence, scanned.
    pub(crate) fn pin_containing(
        &self,
        sequence: Sequence,
    ) -> Result<Option<Pinned>, Arc<StorageError>> {
        match self.segment_containing(sequence) {
            Some(segment) => self.pin_scanned(&segment),
            None => Ok(None),
        }
    }

    /// A segment with a share of its mappings, scanned; None if it is gone.
    pub(super) fn pin_scanned(
        &self,
        segment: &Arc<Segment>,
    ) -> Result<Option<Pinned>, Arc<StorageError>> {
        if segment.is_unscanned() {
            let mut step = self.step.lock();
            self.scan(segment, &mut step)?;
        }
        segment.look().map_err(Arc::new)
    }

    pub(super) fn segment_containing(&self, sequence: Sequence) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.base() <= sequence);
        segments.get(after.checked_sub(1)?).cloned()
    }

    /// The damage found in segments scanned since the queue was opened.
    pub(crate) fn damage(&self) -> Vec<Quarantined> {
        self.damage.lock().clone()
    }

    pub(crate) fn damaged_regions(&self) -> u64 {
        self.damage.lock().len() as u64
    }

    /// Marks a record done that can have no lease: before any claim, or in a log that is not
    /// claimed from. Returns whether it was found and not done.
    pub(crate) fn mark_done(&self, sequence: Sequence) -> Result<bool, Arc<StorageError>> {
        let Some(segment) = self.segment_containing(sequence) else {
            return Ok(false);
        };
        let Some(pinned) = segment.look().map_err(Arc::new)? else {
            return Ok(false);
        };
        // With `step` locked, no other thread puts the segment to rest in the meantime.
        let _step = self.step.lock();
        self.segments.write().wake(&segment);
        let index = sequence.offset_from(segment.base());
        if index >= segment.reached().index {
            return Ok(false);
        }
        let marked = pinned.mark_done(index);
        if marked == Some(true) {
            (self.config.kick)();
        }
        Ok(marked.is_some())
    }

    /// Whether no thread is making a segment ready or keeping segments as they are.
    #[cfg(test)]
    pub(crate) fn is_step_free(&self) -> bool {
        self.step.try_lock().is_some()
    }

    /// Whether a record with this sequence can only be in this log.
    pub(crate) fn is_home_of(&self, record: Sequence) -> bool {
        record.stripe() == self.origin.stripe()
    }

    /// Marks records done, durably, that are named by records found at open. Returns how many were
    /// not done before.
    ///
    /// Records that are already marked are flushed too: a process that died in between leaves a
    /// mark that only the page cache has. If a segment is gone, its removal is made durable.
    pub(crate) fn settle(&self, records: &[Sequence]) -> Result<u64, Arc<StorageError>> {
        let mut marked = 0;
        let mut segments = BTreeMap::new();
        let mut is_any_gone = false;
        for &record in records {
            marked += u64::from(self.mark_done(record)?);
            match self.segment_containing(record) {
                Some(segment) if record < segment.sequence(segment.reached().index) => {
                    segments.insert(segment.base(), segment);
                }
                _ => is_any_gone = true,
            }
        }
        if is_any_gone {
            self.names.flush()?;
        }
        for segment in segments.into_values() {
            segment.flush(true)?;
        }
        Ok(marked)
    }
}
