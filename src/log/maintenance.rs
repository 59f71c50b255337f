//! Maintenance of a stripe's log: flushing, sealing, retiring, closing. The maintenance thread does
//! most of it; a producer that finds the disk full retires segments too.
//!
//! A power cut must not reverse the order of removal. A segment's ack file says durably that all
//! jobs are done before the segment is removed; otherwise the segment would look lost. And the
//! segment's removal is durable before its ack file is removed; otherwise its jobs would come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ack::Deliveries;
use super::graveyard::{Fate, Graveyard, Retired};
use super::record::UNIT;
use super::segment::Segment;
use super::spare::{self, Spare};
use super::zeroing;
use super::{Log, Next};
use crate::events::event;
use crate::storage::StorageError;
use crate::storage::mappings;
use crate::time;

/// How long a segment is full before it is sealed. If consumers keep up, it is complete long before
/// that, and costs no disk bandwidth.
const SEAL_DELAY: Duration = Duration::from_millis(200);

impl Log {
    /// Flushes everything appended before this call; with `acks_too`, the acks as well.
    pub(crate) fn flush(&self, acks_too: bool) -> Result<(), Arc<StorageError>> {
        #[cfg(feature = "async")]
        self.rounds.flush(|| self.flush_segments(acks_too))?;
        #[cfg(not(feature = "async"))]
        self.flush_segments(acks_too)?;
        if acks_too {
            // Acks in removed segments are durable when the removal is. This waits for a removal in
            // progress.
            let mut graveyard = self.maintenance.lock();
            if graveyard.unflushed_names {
                graveyard.flush_names(&self.names).map_err(Arc::new)?;
            }
        }
        Ok(())
    }

    /// Like [`flush`](Self::flush), for the existing segments.
    fn flush_segments(&self, acks_too: bool) -> Result<(), Arc<StorageError>> {
        // Relaxed: a hint, which orders nothing.
        self.flush_asked.store(true, Ordering::Relaxed);
        let segments = self.segments.read().to_flush(acks_too);
        for segment in segments {
            segment.flush(acks_too)?;
        }
        if acks_too {
            self.segments.write().note_flushed();
        }
        Ok(())
    }

    /// If flushes are being requested, flushes the prepared segment, so that the first flush that a
    /// caller waits for need not write all its zeros and its names.
    pub(crate) fn flush_ahead(&self) -> Result<(), Arc<StorageError>> {
        let prepared = self.next.lock().prepared.clone();
        match prepared {
            Some(prepared)
                if !prepared.was_flushed() && self.flush_asked.swap(false, Ordering::Relaxed) =>
            {
                prepared.flush(true)?;
                // Until the next flush, all of a new segment's pages are write-protected: at 50 MB a
                // second, what is filled in ten milliseconds.
                let first = prepared.make_writable_ahead(512 * 1024);
                self.leave_if_bad(&prepared, first);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Closes the log for good: no record can be appended any more.
    pub(crate) fn close(&self) {
        let mut next = self.next.lock();
        if next.closed {
            return;
        }
        next.closed = true;
        if let Some(prepared) = next.prepared.take() {
            // It is empty. If a file of it stays, the next open removes it.
            let _ = prepared.paths().segment.remove();
            let _ = prepared.paths().ack.remove();
            self.config.budget.give_back(self.config.segment_size);
        }
        let reserved = next.reserved.take();
        for spare in next.spares.drain(..).chain(reserved) {
            spare.remove();
            self.config.budget.give_back(self.config.segment_size);
        }
        let complete = self.active.load().close_now();
        drop(next);
        if complete {
            (self.config.kick)();
        }
    }

    /// Clears the running bits of all jobs, for a queue that is closed while handlers have some:
    /// however those end, that is not a crash. Marks of an earlier process are not changed.
    pub(crate) fn end_deliveries(&self) {
        let segments: Vec<_> = self.segments.read().awake().cloned().collect();
        for segment in segments {
            if !segment.is_unscanned()
                && !segment.is_complete()
                && let Some(pinned) = segment.pin()
            {
                let claimed = segment.claimed().index;
                pinned
                    .maps()
                    .acks
                    .update_running(claimed, Deliveries::ended);
                segment.deliveries_changed.note_end();
            }
        }
    }

    /// Seals full segments, oldest first.
    ///
    /// With `all`, it seals every one of them; after [`close`](Self::close) that is all there are.
    /// Otherwise it seals those that have been full for a while, and returns when the next one will
    /// have been. After a failed flush, it seals none.
    pub(crate) fn seal(&self, all: bool) -> Result<Option<Duration>, Arc<StorageError>> {
        let _maintenance = self.maintenance.lock();
        let mut next = None;
        let segments: Vec<_> = self.segments.read().awake().cloned().collect();
        for segment in segments.iter().filter(|segment| segment.closed().is_some()) {
            if self.config.poison.is_set() {
                break;
            }
            if segment.is_sealed() || segment.is_unscanned() || segment.is_complete() {
                continue;
            }
            let left = SEAL_DELAY.saturating_sub(segment.full_for());
            if !all && !left.is_zero() {
                next = Some(left);
                break;
            }
            if segment.is_committed() && segment.owes_nothing() {
                segment.seal()?;
            }
        }
        self.put_to_rest(&segments);
        Ok(next)
    }

    /// Puts to rest the sealed segments that wait to be claimed from. If there are many mappings,
    /// also unmaps the segments that wait. Does nothing while a consumer moves on or scans: a later
    /// turn does it.
    fn put_to_rest(&self, awake: &[Arc<Segment>]) {
        let Some(_step) = self.step.try_lock() else {
            return;
        };
        let is_waiting = self.is_waiting();
        let waiting: Vec<_> = awake.iter().filter(|one| is_waiting(one)).collect();
        if mappings::are_many() {
            waiting.iter().for_each(|one| one.end_wait_use());
        }
        let mut at_rest = waiting
            .iter()
            .filter(|one| one.is_sealed() && !one.is_complete());
        if let Some(first) = at_rest.next() {
            let mut segments = self.segments.write();
            segments.rest(first);
            at_rest.for_each(|one| segments.rest(one));
        }
    }

    /// Whether a full segment is kept by settlements that it owes.
    pub(crate) fn has_unsettled(&self) -> bool {
        let segments = self.segments.read();
        let mut full = segments
            .awake()
            .filter(|segment| segment.closed().is_some());
        full.any(|segment| !segment.owes_nothing())
    }

    /// Retires complete segments: removes their files or keeps them for reuse. Also unmaps segments
    /// retired earlier that are no longer read. Returns whether a segment was retired. Does nothing
    /// after a failed flush.
    pub(crate) fn reclaim(&self) -> Result<bool, StorageError> {
        let mut graveyard = self.maintenance.lock();
        let reached = u64::from(self.active().reached().units) * UNIT as u64;
        let filled = (time::now(), reached);
        let (before, last) = {
            let mut next = self.next.lock();
            let before = std::mem::replace(&mut next.filled, filled);
            (before, next.last_took)
        };
        let piece = zeroing::piece(self.config.segment_size, before, filled, last);
        self.reclaim_into(&mut graveyard, piece)
    }

    /// As [`reclaim`](Self::reclaim), zeroing at most so many bytes of each segment that is reused.
    pub(super) fn reclaim_into(
        &self,
        graveyard: &mut Graveyard,
        piece: usize,
    ) -> Result<bool, StorageError> {
        let active = self.active();
        let is_due = |segment: &Segment| segment.can_go() && segment.base() != active.base();
        let mut result = Ok(());
        let mut freed = false;
        let due: Vec<_> = {
            let segments = self.segments.read();
            let due = segments.awake().filter(|segment| is_due(segment));
            due.cloned().collect()
        };
        for segment in due {
            if !self.config.poison.is_set() {
                if let Err(error) = segment.finish(false) {
                    // The segment stays, and the next open finds that it is complete.
                    result = Err(error.retold());
                    break;
                }
                self.take_out(&segment);
                freed = true;
                let retired = if segment.is_recyclable()
                    && !segment.is_retired()
                    && self.needs_spare(graveyard)
                {
                    self.retire_to_recycle(&segment, graveyard)
                } else {
                    self.retire_to_remove(&segment, graveyard)
                };
                // If a file stays, the next open finds that the segment is complete.
                result = result.and(retired);
            }
        }
        if self.config.poison.is_set() {
            return result.map(|()| freed);
        }
        graveyard.sweep(&self.config.poison);
        self.zero(graveyard, piece);
        if freed {
            self.note_unmapped();
        }
        let leftovers = std::mem::take(&mut graveyard.leftovers);
        graveyard.remove(leftovers);
        graveyard.remove_ack_files(&self.names)?;
        result.map(|()| freed)
    }

    /// Whether to keep the files of a segment that is no longer in use.
    fn needs_spare(&self, graveyard: &Graveyard) -> bool {
        let next = self.next.lock();
        let in_use = self.segments.read().len();
        let future = graveyard.future_spares();
        let has = in_use + next.reserve() + future;
        let is_wanted = has < next.pool.wanted(in_use) || future == 0 && self.wants_reserve(&next);
        let may_be_kept = !mappings::are_many() && !self.config.budget.is_in_reserve();
        !next.closed && may_be_kept && is_wanted
    }

    fn retire_to_recycle(
        &self,
        segment: &Arc<Segment>,
        graveyard: &mut Graveyard,
    ) -> Result<(), StorageError> {
        let waiting = spare::waiting(segment.paths());
        if let Err(error) = segment.paths().segment.rename(&waiting.segment) {
            event!(debug, %error, "a segment that is done is not used again");
            return self.retire_to_remove(segment, graveyard);
        }
        graveyard.unflushed_names = true;
        let (end, maps) = (segment.closed(), segment.retire());
        // Asked at a point where no further flush can begin. If a record of the segment is relied
        // on, its acks are not touched until its name is durably gone: a power cut must not bring
        // back its jobs without their acks.
        let renamed = if segment.was_flushed() {
            graveyard.flush_names(&self.names)
        } else {
            Ok(())
        };
        let renamed = renamed.and_then(|()| segment.paths().ack.rename(&waiting.ack));
        let fate = match (&renamed, end) {
            (Ok(()), Some(end)) if maps.is_some() => Fate::Recycle(end, waiting),
            // The next open removes the files.
            (Err(_), _) if self.config.poison.is_set() => Fate::Unmap,
            _ => {
                self.config.budget.give_back(self.config.segment_size);
                let _ = waiting.segment.remove();
                graveyard.ack_files.push(segment.paths().ack.clone());
                Fate::Unmap
            }
        };
        graveyard.retired.push(Retired { maps, fate });
        renamed
    }

    fn retire_to_remove(
        &self,
        segment: &Arc<Segment>,
        graveyard: &mut Graveyard,
    ) -> Result<(), StorageError> {
        let removed = segment.paths().segment.remove();
        let kept = match &removed {
            Ok(()) => Ok(()),
            // The segment cannot be flushed from here on.
            Err(_) => segment.finish(true).map_err(|error| error.retold()),
        };
        if !segment.is_retired() {
            let maps = segment.retire();
            self.config.budget.give_back(self.config.segment_size);
            let fate = Fate::Unmap;
            graveyard.retired.push(Retired { maps, fate });
        }
        if removed.is_err() {
            graveyard.leftovers.push(segment.paths().clone());
        }
        removed.and(kept)?;
        graveyard.unflushed_names = true;
        graveyard.ack_files.push(segment.paths().ack.clone());
        Ok(())
    }

    /// When [`reclaim`](Self::reclaim) may have spares to give back, or another piece to zero.
    pub(crate) fn look_again(&self) -> Option<Duration> {
        let next = self.next.lock();
        if next.dirty > 0 && !self.config.poison.is_set() {
            return Some(zeroing::PAUSE);
        }
        if next.spares.is_empty() {
            return None;
        }
        let size = self.segments.read().len() + next.reserve();
        next.pool.look_again(size)
    }

    /// Zeroes at most so many bytes of each segment that is reused, and takes in those that are ready.
    fn zero(&self, graveyard: &mut Graveyard, piece: usize) {
        let spares = graveyard.zero(piece);
        self.next.lock().dirty = graveyard.dirty.len();
        self.take_in(spares);
    }

    /// Makes the next segments of spares, and frees the space of those that are not needed.
    pub(super) fn take_in(&self, spares: Vec<Spare>) {
        let mut next = self.next.lock();
        next.spares.extend(spares);
        if self.wants_reserve(&next) {
            next.reserved = next.spares.pop();
        }
        let in_use = self.segments.read().len();
        let is_too_many = |next: &Next| {
            let has = in_use + next.reserve();
            let is_short = mappings::are_many() || self.config.budget.is_in_reserve();
            next.closed || is_short || has > next.pool.wanted(in_use)
        };
        while is_too_many(&next)
            && let Some(spare) = next.spares.pop()
        {
            spare.remove();
            self.config.budget.give_back(self.config.segment_size);
        }
    }

    /// Takes a segment out of the list and adds it to the counts of removed ones.
    fn take_out(&self, gone: &Segment) {
        let mut segments = self.segments.write();
        segments.remove(gone);
        // With the list still locked, so that statistics count each segment once.
        let records = gone.closed().map_or(0, |end| end.index);
        if !gone.is_recovered() {
            self.retired_appended
                .fetch_add(u64::from(records), Ordering::Relaxed);
        }
        self.retired_done.fetch_add(
            u64::from(records.saturating_sub(gone.not_acked())),
            Ordering::Relaxed,
        );
    }

    /// Like [`reclaim`](Self::reclaim), for a log that is [closed](Self::close). Includes the last
    /// segment, so that the next open need not search it. Returns the flush that has failed, if one
    /// has.
    pub(crate) fn reclaim_all(&self) -> Result<(), Arc<StorageError>> {
        let mut graveyard = self.maintenance.lock();
        self.make_room(&mut graveyard, true).map_err(Arc::new)?;
        // Includes a failed flush of an emptied segment.
        self.config
            .poison
            .get()
            .map_or(Ok(()), |error| Err(Arc::clone(error)))
    }

    /// Like [`reclaim`](Self::reclaim). With `with_active`, if the active segment is full and
    /// complete, its files are emptied too and keep only their names.
    pub(super) fn make_room(
        &self,
        graveyard: &mut Graveyard,
        with_active: bool,
    ) -> Result<(), StorageError> {
        self.reclaim_into(graveyard, usize::MAX)?;
        let active = self.active();
        if !with_active || !active.can_go() || self.config.poison.is_set() {
            return Ok(());
        }
        if !active.is_retired() {
            // It is emptied when it is no longer read, and cannot be flushed from here on.
            active.finish(true).map_err(|error| error.retold())?;
            let maps = active.retire();
            self.config.budget.give_back(self.config.segment_size);
            graveyard.retired.push(Retired {
                maps,
                fate: Fate::Empty(active),
            });
            graveyard.sweep(&self.config.poison);
            self.zero(graveyard, usize::MAX);
        }
        Ok(())
    }
}
