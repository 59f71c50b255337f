//! The maintenance of a stripe's log: flushing, sealing, retiring, closing. Most of it is the
//! maintenance thread's; a producer that finds the disk full retires too.
//!
//! The order of removal is what a power cut must not turn round: a segment's ack file says durably that
//! all is done before the segment goes, or it would look lost; and the segment's removal is durable
//! before its ack file goes, or its jobs would come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ack::Deliveries;
use super::names::Names;
use super::poison::Poison;
use super::segment::{Maps, Paths, Segment};
use super::spare::{self, Spare};
use super::tail::Position;
use super::{Log, Next};
use crate::events::event;
use crate::storage::mappings;
use crate::storage::{Entry, StorageError};

/// For how long a segment is full before it is sealed. Consumers that keep up will have it
/// complete long before, and then it never costs disk bandwidth.
const SEAL_DELAY: Duration = Duration::from_millis(200);

/// What was retired and may still be read by someone, and the ack files that go later.
#[derive(Default)]
pub(super) struct Graveyard {
    /// Files that hold nothing: found by the open, or not removed yet for an error.
    leftovers: Vec<Paths>,
    retired: Vec<Retired>,
    /// Ack files whose segment's removal is not durable yet, or that could not be removed.
    ack_files: Vec<Entry>,
    /// Names were removed or changed since the directory was last flushed.
    unflushed_names: bool,
}

/// Mappings that go when nobody reads them any more.
struct Retired {
    maps: Option<Arc<Maps>>,
    fate: Fate,
}

/// What becomes of the files of a retired segment.
enum Fate {
    /// Nothing: they have no names any more.
    Unmap,
    /// They give back their space and keep their names.
    Empty(Arc<Segment>),
    /// They have these names now and are used again; the records end here.
    Recycle(Position, Paths),
}

impl Graveyard {
    /// Unmaps what nobody reads any more, and returns what can be used again.
    fn sweep(&mut self, poison: &Poison) -> Vec<Spare> {
        let mut spares = Vec::new();
        for Retired { maps, fate } in std::mem::take(&mut self.retired) {
            // Whoever holds a share got it before `retire`; no further shares can be made.
            let maps = match maps.map(Arc::try_unwrap).transpose() {
                Ok(maps) => maps,
                Err(maps) => {
                    let maps = Some(maps);
                    self.retired.push(Retired { maps, fate });
                    continue;
                }
            };
            match fate {
                Fate::Recycle(end, paths) => {
                    spares.extend(maps.map(|maps| Spare::clean(maps, end, paths)));
                }
                Fate::Empty(segment) => {
                    drop(maps);
                    if let Err(error) = segment.paths().empty().map_err(Arc::new) {
                        poison.note(&error);
                        // Another flush of one that failed would prove nothing.
                        if !error.is_failed_flush() {
                            let fate = Fate::Empty(segment);
                            self.retired.push(Retired { maps: None, fate });
                        }
                        event!(debug, %error, "a segment that is done keeps its space");
                    }
                }
                Fate::Unmap => {}
            }
        }
        spares
    }

    /// How many of the retired will be spares.
    pub(super) fn future_spares(&self) -> usize {
        let is_spare = |retired: &&Retired| matches!(retired.fate, Fate::Recycle(..));
        self.retired.iter().filter(is_spare).count()
    }

    /// Makes the removal and change of names durable.
    fn flush_names(&mut self, names: &Names) -> Result<(), StorageError> {
        names.flush().map_err(|error| error.retold())?;
        self.unflushed_names = false;
        Ok(())
    }

    /// Has files that hold nothing removed by the first turn of maintenance, for the open not to wait.
    pub(super) fn leave(&mut self, leftovers: Vec<Paths>) {
        self.leftovers.extend(leftovers);
    }

    /// Removes files that hold nothing; their ack files are left to
    /// [`remove_ack_files`](Self::remove_ack_files).
    pub(super) fn remove(&mut self, leftovers: Vec<Paths>) {
        for paths in leftovers {
            match paths.segment.remove() {
                Ok(()) => {
                    self.unflushed_names = true;
                    self.ack_files.push(paths.ack);
                }
                Err(error) => {
                    self.leftovers.push(paths);
                    event!(debug, %error, "an empty segment stays for now");
                }
            }
        }
    }

    /// Removes ack files, once the removal of their segments is durable.
    pub(super) fn remove_ack_files(&mut self, names: &Names) -> Result<(), StorageError> {
        if self.ack_files.is_empty() {
            return Ok(());
        }
        self.flush_names(names)?;
        for path in std::mem::take(&mut self.ack_files) {
            if let Err(error) = path.remove() {
                self.ack_files.push(path);
                event!(debug, %error, "an ack file stays for now");
            }
        }
        Ok(())
    }
}

impl Log {
    /// Flushes everything appended before this call; with `acks_too`, the acks as well.
    pub(crate) fn flush(&self, acks_too: bool) -> Result<(), Arc<StorageError>> {
        self.flush_segments(acks_too)?;
        if acks_too {
            // Acks in segments that are gone are durable when their removal is. Whoever is at it
            // is waited for.
            let mut graveyard = self.maintenance.lock();
            if graveyard.unflushed_names {
                graveyard.flush_names(&self.names).map_err(Arc::new)?;
            }
        }
        Ok(())
    }

    /// As [`flush`](Self::flush), of the segments that are there.
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

    /// If flushes are asked for, flushes the prepared segment, so that the first one that somebody
    /// waits for need not write all its zeros, nor the names.
    pub(crate) fn flush_ahead(&self) -> Result<(), Arc<StorageError>> {
        let prepared = self.next.lock().prepared.clone();
        match prepared {
            Some(prepared)
                if !prepared.was_flushed() && self.flush_asked.swap(false, Ordering::Relaxed) =>
            {
                prepared.flush(true)
            }
            _ => Ok(()),
        }
    }

    /// Closes the log for ever: no record can be appended any more.
    pub(crate) fn close(&self) {
        let mut next = self.next.lock();
        if next.closed {
            return;
        }
        next.closed = true;
        if let Some(prepared) = next.prepared.take() {
            // It holds nothing. What stays of it, the next open removes.
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

    /// Notes that no handler has a job any more, for a queue that is closed while some do: what
    /// becomes of these is no crash. What an earlier process left is not touched.
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
    /// With `all`, every one of them; after [`close`](Self::close) that is all there are.
    /// Otherwise those that have been full for a while, and the result says when the next one
    /// will have been. After a failed flush, none.
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

    /// Puts those to rest that are sealed and wait to be claimed from, and unmaps what waits if there
    /// are many mappings. While a consumer moves on or scans, nothing is done: a later turn does it.
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

    /// Whether a segment that is full is kept by what it owes.
    pub(crate) fn has_unsettled(&self) -> bool {
        let segments = self.segments.read();
        let mut full = segments
            .awake()
            .filter(|segment| segment.closed().is_some());
        full.any(|segment| !segment.owes_nothing())
    }

    /// Retires complete segments: deletes their files or keeps them to be used again, and unmaps
    /// those retired earlier that nobody reads any more. Returns whether there was one. After a failed
    /// flush, does nothing.
    pub(crate) fn reclaim(&self) -> Result<bool, StorageError> {
        self.reclaim_into(&mut self.maintenance.lock())
    }

    pub(super) fn reclaim_into(&self, graveyard: &mut Graveyard) -> Result<bool, StorageError> {
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
                    // It stays, and is found again, complete, by the next open.
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
                // A file that stays is found again, complete, by the next open.
                result = result.and(retired);
            }
        }
        if self.config.poison.is_set() {
            return result.map(|()| freed);
        }
        let spares = graveyard.sweep(&self.config.poison);
        self.take_in(spares);
        if freed {
            self.note_unmapped();
        }
        let leftovers = std::mem::take(&mut graveyard.leftovers);
        graveyard.remove(leftovers);
        graveyard.remove_ack_files(&self.names)?;
        result.map(|()| freed)
    }

    /// Whether the files of a segment that is not in use any more are to be kept.
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
        // Asked now that no further flush can begin. If some of it is relied on, its acks stay
        // what they are until its name is gone for good: a power cut must not bring back its jobs
        // without them.
        let renamed = if segment.was_flushed() {
            graveyard.flush_names(&self.names)
        } else {
            Ok(())
        };
        let renamed = renamed.and_then(|()| segment.paths().ack.rename(&waiting.ack));
        let fate = match (&renamed, end) {
            (Ok(()), Some(end)) if maps.is_some() => Fate::Recycle(end, waiting),
            // What is there, the next open removes.
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
            // It cannot be flushed from here on.
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

    /// After how long [`reclaim`](Self::reclaim) may have spares to give back.
    pub(crate) fn look_again(&self) -> Option<Duration> {
        let next = self.next.lock();
        if next.spares.is_empty() {
            return None;
        }
        let size = self.segments.read().len() + next.reserve();
        next.pool.look_again(size)
    }

    /// Makes spares the next segments, and gives back the space of those that are too many.
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

    /// Takes a segment out of the list, into the counts of what is gone.
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

    /// As [`reclaim`](Self::reclaim), for a log that is [closed](Self::close): with its last segment,
    /// for the next open not to look through it. Returns the flush that has failed, if one has.
    pub(crate) fn reclaim_all(&self) -> Result<(), Arc<StorageError>> {
        let mut graveyard = self.maintenance.lock();
        self.make_room(&mut graveyard, true).map_err(Arc::new)?;
        // Of what was emptied, too.
        self.config
            .poison
            .get()
            .map_or(Ok(()), |error| Err(Arc::clone(error)))
    }

    /// As [`reclaim`](Self::reclaim). `with_active`: if the active segment is full and complete
    /// its files give back their space too, and only their names stay.
    pub(super) fn make_room(
        &self,
        graveyard: &mut Graveyard,
        with_active: bool,
    ) -> Result<(), StorageError> {
        self.reclaim_into(graveyard)?;
        let active = self.active();
        if !with_active || !active.can_go() || self.config.poison.is_set() {
            return Ok(());
        }
        if !active.is_retired() {
            // It is emptied when nobody reads it any more, and cannot be flushed from here on.
            active.finish(true).map_err(|error| error.retold())?;
            let maps = active.retire();
            self.config.budget.give_back(self.config.segment_size);
            graveyard.retired.push(Retired {
                maps,
                fate: Fate::Empty(active),
            });
            self.take_in(graveyard.sweep(&self.config.poison));
        }
        Ok(())
    }
}
