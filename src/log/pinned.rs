//! A segment with a share of its mappings, for code that `segment` does not allow to use them
//! without one: it walks over the records, and tells which of them are done.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ack::Deliveries;
use super::record::{HEADER_UNITS, Header, UNIT};
use super::records::{Mender, Record, SoleAccess};
use super::segment::{self, Maps, START, Segment};
use super::tail::Position;
use crate::storage::StorageError;
use crate::sync::yield_now;
use crate::{Sequence, Timestamp};

/// A segment and a share of its mappings: committed records can be read as long as this lives.
pub(crate) struct Pinned {
    segment: Arc<Segment>,
    maps: Arc<Maps>,
    /// Whether it was mapped for use, and so can be claimed from.
    is_in_use: bool,
}

impl Pinned {
    /// Whether it was mapped for use, and so can be claimed from.
    pub(super) fn is_in_use(&self) -> bool {
        self.is_in_use
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The record at `units`, if one is committed there. The segment has been scanned: before that,
    /// lengths may be damaged, and bytes may change under the reader.
    pub(crate) fn record(&self, units: u32) -> Option<Record<'_>> {
        assert!(!self.segment.is_unscanned(), "read before it is scanned");
        Record::at(&self.maps.records, units)
    }

    /// All committed records from `from` on, up to the first place without one.
    pub(crate) fn records(&self, from: Position) -> impl Iterator<Item = Record<'_>> {
        let mut units = from.units;
        std::iter::from_fn(move || {
            let record = self.record_within(units)?;
            units = record.next();
            Some(record)
        })
    }

    /// The record at `units`, if one is committed there before the end.
    fn record_within(&self, units: u32) -> Option<Record<'_>> {
        // An open segment's end bounds the walk as well: a reservation that crossed it holds no
        // record.
        let end = self.segment.closed();
        let end = end.map_or_else(|| self.maps.records.units(), |end| end.units);
        (units + HEADER_UNITS <= end)
            .then(|| self.record(units))
            .flatten()
    }

    /// All records up to the last that is reserved: waits for those that are being written, which
    /// takes their producers a moment.
    pub(crate) fn all_records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut units = START.units;
        std::iter::from_fn(move || {
            loop {
                match self.record_within(units) {
                    Some(record) => {
                        units = record.next();
                        return Some(record);
                    }
                    None if units + HEADER_UNITS > self.segment.reached().units => return None,
                    None => yield_now(),
                }
            }
        })
    }

    /// Finds a job that is not done, also behind records that are being written.
    pub(crate) fn find_live(&self, is_it: impl Fn(&Record<'_>) -> bool) -> Option<Record<'_>> {
        self.all_records().find(|record| {
            let header = record.header();
            header.is_job() && !self.is_done(header.index) && is_it(record)
        })
    }

    /// The jobs that are not done, in log order.
    pub(crate) fn live_records(&self) -> impl Iterator<Item = Record<'_>> {
        self.records(START).filter(|record| {
            let header = record.header();
            header.is_job() && !self.is_done(header.index)
        })
    }

    pub(crate) fn is_done(&self, index: u32) -> bool {
        self.maps().acks.is_done(index)
    }

    /// Another share of the same mappings.
    pub(crate) fn another(&self) -> Self {
        Self {
            segment: Arc::clone(&self.segment),
            maps: Arc::clone(&self.maps),
            is_in_use: self.is_in_use,
        }
    }

    /// Marks a record done that has no lease. Returns None if it was already done, otherwise
    /// whether that made the segment complete.
    pub(crate) fn mark_done(&self, index: u32) -> Option<bool> {
        let complete = self.set_done(index)?;
        self.segment.not_acked.fetch_add(1, Ordering::Relaxed);
        Some(complete)
    }

    pub(super) fn set_done(&self, index: u32) -> Option<bool> {
        let filled = self.maps.acks.set(index)?;
        Some(filled && self.segment.count_full_word())
    }

    /// How many records are done at this moment.
    pub(crate) fn done(&self) -> u32 {
        self.done_within(0, self.segment.reached().index)
    }

    /// How many of the records `[from, to)` are done.
    pub(crate) fn done_within(&self, from: u32, to: u32) -> u32 {
        self.maps.acks.done_within(from, to)
    }

    /// The time at which the oldest job that is not done was enqueued. `is_gone` tells of jobs that
    /// they are to be passed over: they are cancelled, and wait to be marked done.
    pub(crate) fn oldest_enqueued_at(
        &self,
        is_gone: &dyn Fn(Sequence) -> bool,
    ) -> Option<Timestamp> {
        let hint = Position {
            index: 0,
            units: self.segment.oldest.load(Ordering::Relaxed),
        };
        for record in self.records(hint) {
            let header = record.header();
            let is_live = header.is_job() && !self.maps.acks.is_done(header.index);
            if is_live && !is_gone(self.segment.sequence(header.index)) {
                return Some(header.enqueued_at);
            }
            // Relaxed: any of the values ever stored is a valid place to start.
            self.segment.oldest.store(record.next(), Ordering::Relaxed);
        }
        None
    }

    /// Since when the first job has been due that no handler of this process has had. Looks at no
    /// more than `budget` records. Jobs that such a handler has had are not counted: a handler has
    /// them, they wait in the timer, or they came back. `is_gone` is as in
    /// [`oldest_enqueued_at`](Self::oldest_enqueued_at).
    pub(crate) fn waiting_since(
        &self,
        now: Timestamp,
        budget: &mut u32,
        is_gone: &dyn Fn(Sequence) -> bool,
    ) -> Option<Timestamp> {
        let segment = &*self.segment;
        let claimed = segment.claimed().units;
        let hint = Position {
            index: 0,
            // Relaxed, here and below: any of the values ever stored is a valid place to start.
            units: segment.waiting.load(Ordering::Relaxed),
        };
        let mut is_passed = true;
        for record in self.records(hint) {
            *budget = budget.checked_sub(1)?;
            let header = record.header();
            let is_live = header.is_job()
                && !self.maps.acks.is_done(header.index)
                && !is_gone(segment.sequence(header.index));
            let is_claimed = record.units() < claimed;
            let was_delivered =
                is_claimed && self.maps.acks.deliveries(header.index) != Deliveries::default();
            if is_live && !was_delivered && header.due_at <= now {
                return Some(header.enqueued_at.max(header.due_at));
            }
            // A job that is claimed and not due is in the timer, and comes back from there.
            is_passed &= !is_live || is_claimed;
            if is_passed {
                segment.waiting.store(record.next(), Ordering::Relaxed);
            }
        }
        None
    }

    /// Access to all bytes of a segment that is unscanned.
    pub(super) fn sole_access<'a>(&'a self, mender: &'a mut Mender) -> SoleAccess<'a> {
        assert!(self.segment.is_unscanned(), "others may read it");
        mender.sole_access(&self.maps.records)
    }

    /// The first job that is not done, in a segment that is unscanned. Also None if that job is
    /// damaged, or cannot be found because of damage.
    pub(super) fn peek_first(&self, mender: &mut Mender) -> Option<Header> {
        let file = &self.maps.records.file;
        let records = self.sole_access(mender);
        let Position { index, units: end } = self.segment.closed()?;
        let mut present = 0;
        // Reads the records up to there into memory, so that a bad sector is an error and not a
        // signal.
        let mut read_in = |units: u32| {
            let len = units.min(end) as usize * UNIT;
            if len > present {
                // In growing steps: usually, the first record is enough.
                present = len.max(2 * present).min(file.len());
                file.read_in(present).ok()?;
            }
            Some(())
        };
        let mut units = segment::START.units;
        loop {
            read_in(units + HEADER_UNITS)?;
            let record = records.raw().plausible_record(units, end)?;
            let header = record.header();
            if header.is_job() && header.index >= index {
                return None;
            }
            if header.is_job() && !self.maps.acks.is_done(header.index) {
                read_in(record.next())?;
                let salt = self.segment.identity().salt;
                return Some(*records.raw().valid_record(units, end, salt)?.header());
            }
            units = record.next();
        }
    }
}

impl Segment {
    /// A share of the mappings, if the segment is mapped for use.
    pub(crate) fn pin(self: &Arc<Self>) -> Option<Pinned> {
        Some(Pinned {
            segment: Arc::clone(self),
            maps: self.maps()?,
            is_in_use: true,
        })
    }

    /// A share of the mappings, which are made temporarily if needed; None once retired.
    pub(crate) fn look(self: &Arc<Self>) -> Result<Option<Pinned>, StorageError> {
        let maps = self.maps_to_look()?;
        Ok(maps.map(|maps| Pinned {
            segment: Arc::clone(self),
            maps,
            is_in_use: false,
        }))
    }
}
