//! Appending to the log, and the roll to the next segment.
use std::sync::Arc;

use super::record::{NewRecord, UNIT};
use super::segment::{Append, Batch, BatchRecords, Segment, Unsettled, Warm};
use super::tail::Position;
use super::{Log, Next, RollError, SPARE_WAIT, create_segment};
use crate::events::event;
use crate::{Sequence, time};

impl Log {
    /// Longest record, in bytes.
    pub(crate) fn max_record_bytes(&self) -> usize {
        super::max_record_bytes(self.config.segment_size)
    }

    /// Records to append as a whole. If there are too many of them, the error is how many bytes
    /// they take; the most is [`max_record_bytes`](Self::max_record_bytes).
    pub(crate) fn batch<'a, I: BatchRecords<'a>>(&self, records: I) -> Result<Batch<I>, u64> {
        Batch::new(records, self.max_record_bytes() / UNIT * UNIT)
    }

    pub(crate) fn active(&self) -> Arc<Segment> {
        self.active.load_full()
    }

    /// Appends a record. `cached` is the caller's view of the active segment; it is updated, and
    /// holds the record's segment afterwards.
    #[inline(always)]
    pub(crate) fn append(
        &self,
        cached: &mut Arc<Segment>,
        record: &NewRecord<'_>,
    ) -> Result<Sequence, RollError> {
        loop {
            match cached.append(record) {
                Append::Done(position) => return Ok(cached.sequence(position.index)),
                Append::Full { complete } => *cached = self.after_full(cached, complete)?,
            }
        }
    }

    /// Like [`append`](Self::append), without a cached segment: also returns the record's segment.
    #[inline]
    pub(crate) fn append_shared(
        &self,
        record: &NewRecord<'_>,
    ) -> Result<(Sequence, Option<Arc<Segment>>), RollError> {
        {
            let active = self.active.load();
            match active.append(record) {
                Append::Done(position) => return Ok((active.sequence(position.index), None)),
                Append::Full { complete } => self.after_full(&active, complete)?,
            };
        }
        let mut cached = self.active();
        let sequence = self.append(&mut cached, record)?;
        Ok((sequence, Some(cached)))
    }

    /// Like [`append`](Self::append), for a record that names another one that it settles.
    pub(crate) fn append_owing(
        &self,
        cached: &mut Arc<Segment>,
        record: &NewRecord<'_>,
    ) -> Result<(Sequence, Unsettled), RollError> {
        self.append_settling(cached, |segment| segment.append_owing(record))
    }

    /// Appends a cancellation, which names the job that it settles.
    pub(crate) fn append_cancellation(
        &self,
        cached: &mut Arc<Segment>,
        record: &NewRecord<'_>,
    ) -> Result<(Sequence, Unsettled), RollError> {
        self.append_settling(cached, |segment| segment.append_cancellation(record))
    }

    fn append_settling(
        &self,
        cached: &mut Arc<Segment>,
        append: impl Fn(&Arc<Segment>) -> (Append, Unsettled),
    ) -> Result<(Sequence, Unsettled), RollError> {
        loop {
            let (appended, unsettled) = append(cached);
            match appended {
                Append::Done(position) => {
                    return Ok((cached.sequence(position.index), unsettled));
                }
                Append::Full { complete } => {
                    // If this lets the segment go, the maintenance thread retires it; the roll
                    // wakes the thread.
                    unsettled.settle();
                    *cached = self.after_full(cached, complete)?;
                }
            }
        }
    }

    /// Appends a batch, all or none. Returns the first one's sequence; the others follow without a
    /// gap.
    pub(crate) fn append_batch<'a>(
        &self,
        cached: &mut Arc<Segment>,
        batch: &Batch<impl BatchRecords<'a>>,
    ) -> Result<Sequence, RollError> {
        loop {
            match cached.append_batch(batch) {
                Append::Done(first) => return Ok(cached.sequence(first.index)),
                Append::Full { complete } => *cached = self.after_full(cached, complete)?,
            }
        }
    }

    /// Like [`append_batch`](Self::append_batch), for records that name so many others that they
    /// settle. Returns the position of the first one, in the segment that `cached` then is.
    pub(crate) fn append_batch_owing<'a>(
        &self,
        cached: &mut Arc<Segment>,
        batch: &Batch<impl BatchRecords<'a>>,
        settlements: u64,
    ) -> Result<(Position, Unsettled), RollError> {
        loop {
            let unsettled = cached.owing(settlements);
            match cached.append_batch(batch) {
                Append::Done(first) => return Ok((first, unsettled)),
                Append::Full { complete } => {
                    unsettled.settle();
                    *cached = self.after_full(cached, complete)?;
                }
            }
        }
    }

    #[cold]
    fn after_full(&self, full: &Arc<Segment>, complete: bool) -> Result<Arc<Segment>, RollError> {
        if complete {
            self.ask_for_maintenance();
        }
        self.roll(full)
    }

    fn ask_for_maintenance(&self) {
        if !self.config.sleepers.leave_to_watcher() {
            (self.config.kick)();
        }
    }

    /// Returns the segment after `full`, making it the active one if no other thread has.
    fn roll(&self, full: &Arc<Segment>) -> Result<Arc<Segment>, RollError> {
        full.note_full();
        if self.next.lock().reserve() == 0
            && let Some(mut graveyard) = self.maintenance.try_lock_for(SPARE_WAIT)
        {
            // The maintenance thread is behind. Reusing a finished segment is faster than creating
            // a new one; if there is none, this only checks.
            let reclaimed = self.reclaim_into(&mut graveyard, usize::MAX);
            if let Err(error) = reclaimed {
                event!(debug, %error, "nothing reclaimed for a roll");
            }
        }
        match self.try_roll(full) {
            Err(RollError::Closed) => Err(RollError::Closed),
            Err(error) => {
                // If the maintenance thread holds the lock, or a replay does, the caller tries
                // again later.
                let Some(mut graveyard) = self.maintenance.try_lock() else {
                    return Err(error);
                };
                let is_disk = matches!(&error, RollError::Storage(error) if error.is_full());
                // Even after an error, it may have made some room.
                if let Err(error) = self.make_room(&mut graveyard, is_disk) {
                    event!(debug, %error, "no more room made for a roll");
                }
                drop(graveyard);
                if matches!(&error, RollError::Storage(error) if error.is_unmappable()) {
                    // Sealed segments need not stay mapped while they wait.
                    if let Err(error) = self.seal(true) {
                        event!(debug, %error, "not all sealed for a roll");
                    }
                    self.unmap_waiting();
                }
                self.try_roll(full)
            }
            rolled => rolled,
        }
    }

    fn try_roll(&self, full: &Arc<Segment>) -> Result<Arc<Segment>, RollError> {
        let mut next = self.next.lock();
        let active = self.active();
        if !Arc::ptr_eq(&active, full) {
            return Ok(active);
        }
        if next.closed {
            return Err(RollError::Closed);
        }
        let segment = match next.prepared.take() {
            Some(segment) => segment,
            // The maintenance thread is behind, or failed to prepare one.
            None => self.create_within_budget(&mut next).inspect_err(|_| {
                // Compaction may be able to make room by moving jobs.
                if self.config.budget.note_short() {
                    (self.config.kick)();
                }
            })?,
        };
        // Dropped after the lock is released.
        let _before = self.make_active(&mut next, &segment);
        drop(next);
        self.ask_for_maintenance();
        Ok(segment)
    }

    /// Makes `segment` the active one. Returns the segment that was active before.
    pub(super) fn make_active(&self, next: &mut Next, segment: &Arc<Segment>) -> Arc<Segment> {
        next.put_off = 0;
        let now = time::now();
        next.last_took = now.saturating_duration_since(next.active_since);
        next.active_since = now;
        next.filled = (now, 0);
        next.is_idle = false;
        let in_use = {
            let mut segments = self.segments.write();
            segments.push_back(Arc::clone(segment));
            segments.len()
        };
        next.pool.grow_to(in_use + 1);
        let publish = || self.active.swap(Arc::clone(segment));
        self.config.sleepers.publish(publish)
    }

    /// Creates the next segment from a spare, or else with new files.
    pub(super) fn create_within_budget(&self, next: &mut Next) -> Result<Arc<Segment>, RollError> {
        let created = self
            .keep_reserve(next)
            .and_then(|()| self.create_next(next));
        if created.is_ok() {
            self.config.budget.note_room();
        }
        created
    }

    fn create_next(&self, next: &mut Next) -> Result<Arc<Segment>, RollError> {
        // A spare is already counted in the budget.
        let spares = next.spares.len();
        if spares == 0 && !self.config.budget.take(self.config.segment_size) {
            return Err(RollError::OverBudget(self.config.budget.max()));
        }
        create_segment(&self.names, &self.config, next, Warm::All).map_err(|error| {
            // A spare that was not used is still there, and still counted.
            if spares == 0 || next.spares.len() < spares {
                self.config.budget.give_back(self.config.segment_size);
            }
            RollError::Storage(error)
        })
    }
}
