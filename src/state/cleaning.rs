//! Maintenance of the state log: settling, sealing, retiring, and cleaning.
//!
//! Cleaning frees segments in which few values are still valid: it appends those again, each naming
//! the record that it replaces, as any new value of a key does. Values that have expired are marked
//! done on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Change, Entry};
use super::index::Place;
use super::{State, Writer, record_of};
use crate::Timestamp;
use crate::events::event;
use crate::log::meta::{JobOptions, Meta};
use crate::log::record::units_of;
use crate::log::segment::Unsettled;
use crate::log::{Kick, RollError};
use crate::storage::StorageError;
use crate::time;

/// Segments are cleaned once more than this many bytes in full ones are used for each byte of valid
/// values.
const BYTES_PER_LIVE_BYTE: u64 = 2;
/// How soon an operation that failed is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Maintenance counts as recovered when nothing has failed for this long.
const WELL_AGAIN: Duration = Duration::from_secs(2);
/// So many full segments are left alone.
const FULL_SEGMENTS: u64 = 2;

impl State {
    /// Claims the id of a queue that is opened. Returns false if another one has it: one of the two
    /// is a copy.
    pub(crate) fn claim(&self, queue: u64) -> bool {
        self.callers.claim(queue)
    }

    /// Called when the last file of a queue is closed.
    pub(crate) fn release(&self, queue: u64) {
        self.callers.release(queue);
    }

    /// Counts a queue among the open ones. `kick` wakes its maintenance.
    pub(crate) fn register(&self, queue: u64, kick: Kick) {
        self.callers.register(queue, kick);
    }

    /// Called when a queue is closed.
    pub(crate) fn leave(&self, queue: u64) {
        self.callers.leave(queue);
    }

    /// Flushes the log within this time.
    pub(crate) fn flush_within(&self, interval: Duration) {
        let Some(at) = time::now().checked_add(interval) else {
            return;
        };
        let mut flush_at = self.flush_at.lock();
        if flush_at.is_none_or(|before| at < before) {
            *flush_at = Some(at);
            drop(flush_at);
            self.task.wake();
        }
    }

    /// Does one turn of maintenance. Returns when the next one is due if nothing wakes it before.
    pub(crate) fn turn(&self) -> Option<Instant> {
        let next = self.maintain().unwrap_or_else(|error| {
            if let Some(times) = self.failures.met_error(&error) {
                event!(warn, %error, times, "maintenance of the state log fails and is tried again");
            }
            Some(AGAIN)
        });
        for failure in self.failures.over_since(WELL_AGAIN) {
            event!(info, failure, "maintenance of the state log is well again");
        }
        let next = next.map(|pause| time::now() + pause);
        next.into_iter().chain(*self.flush_at.lock()).min()
    }

    /// Returns how soon to look again.
    fn maintain(&self) -> Result<Option<Duration>, Arc<StorageError>> {
        // Taken in any case, so that it is not due again and again after a failed flush.
        let is_due = self.flush_at.lock().take_if(|at| *at <= time::now());
        if self.poison.is_set() {
            return Ok(None);
        }
        self.callers.wake(&self.debtors());
        if is_due.is_some()
            && let Err(error) = self.log.flush(true)
        {
            self.flush_at.lock().get_or_insert(time::now() + AGAIN);
            return Err(error);
        }
        if self.are_keys_due() {
            self.settle_keys()?;
        }
        let cleaned = self.clean();
        // Cleaning may have failed for want of the room that this makes.
        self.writer.lock().index.let_go();
        self.log.reclaim().map_err(Arc::new)?;
        let mut next = cleaned?.then_some(Duration::ZERO);
        if self.log.has_records() {
            self.log.warm_up();
            next = next.or(self.log.prepare());
        }
        next = next.into_iter().chain(self.log.seal(false)?).min();
        self.log.flush_ahead()?;
        Ok(next)
    }

    /// Makes all durable, and leaves the log in a state that the next open can read with the least
    /// work.
    pub(crate) fn close(&self) -> Result<(), Arc<StorageError>> {
        self.log.close();
        if let Some(error) = self.poison.get() {
            return Err(Arc::clone(error));
        }
        self.settle_keys()?;
        self.log.flush(true)?;
        self.writer.lock().index.forget();
        self.log.seal(true)?;
        self.log.reclaim_all()
    }

    /// Makes all so far durable.
    pub(crate) fn flush(&self) -> Result<(), Arc<StorageError>> {
        match self.poison.get() {
            Some(error) => Err(Arc::clone(error)),
            None => self.log.flush(true),
        }
    }

    /// Frees the oldest segment of values if most of what is in the full ones is not valid any
    /// more. Returns whether that was so.
    fn clean(&self) -> Result<bool, Arc<StorageError>> {
        let mut writer = self.writer.lock();
        let full = writer.index.full_bytes();
        let live = writer.index.live_bytes();
        let spare = FULL_SEGMENTS * self.log.segment_size();
        if full <= spare || full - spare <= live * BYTES_PER_LIVE_BYTE {
            return Ok(false);
        }
        let Some((segment, places)) = writer.index.oldest_full() else {
            return Ok(false);
        };
        let mut expired = Vec::new();
        let mut result = Ok(());
        for place in places {
            match self.clean_one(&mut writer, place) {
                Ok(true) => {}
                Ok(false) => expired.push(place.record),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            writer.index.note_cleaned(segment);
        }
        drop(writer);
        for record in expired {
            result = self.log.mark_done(record).map(|_| ()).and(result);
        }
        result?;
        self.settle_keys()?;
        Ok(true)
    }

    /// Appends a value again, unless it is replaced already. Returns false if it has expired; then
    /// the index has forgotten it.
    fn clean_one(&self, writer: &mut Writer, place: Place) -> Result<bool, Arc<StorageError>> {
        let Writer { active, index } = writer;
        let Some(record) = index.record_at(place) else {
            return Ok(true);
        };
        let Entry::Value { key } = Entry::of(&record) else {
            return Ok(true);
        };
        let key = key.to_vec();
        if index.place_of(&key) != Some(place) {
            return Ok(true);
        }
        if index.has_expired(place, Timestamp::now()) {
            index.remove(&key, place);
            return Ok(false);
        }
        let own = Meta::decode(record.meta());
        let change = Change::Put {
            value: record.payload().to_vec(),
            expires_at: own.options.expires_at,
        };
        let meta = Meta {
            options: JobOptions {
                expires_at: own.options.expires_at,
                ..JobOptions::default()
            },
            settles: Some(place.record),
            original: Some(own.original.unwrap_or(place.record)),
            ..Meta::default()
        };
        let meta = super::meta_of_key(&key, &change, &meta);
        let new = record_of(&change, &meta, record.header().enqueued_at);
        debug_assert!(units_of(new.len()) > 0);
        let records = [new];
        let Ok(batch) = self.log.batch(records.iter().copied()) else {
            // It was as long before, apart from the name of what it replaces.
            return Ok(true);
        };
        let appended = self.log.append_batch_owing(active, &batch, 1);
        let (first, unsettled) = match appended {
            Ok(appended) => appended,
            Err(RollError::Storage(error)) => return Err(Arc::new(error)),
            Err(RollError::Closed | RollError::OverBudget(_)) => return Ok(true),
        };
        let base = active.base();
        index.keep(|| active.pin(), base);
        let new_place = Place {
            record: base.plus(first.index),
            units: first.units,
        };
        index.insert(&key, new_place);
        self.note_cleaned(place, new_place, unsettled);
        Ok(true)
    }

    fn note_cleaned(&self, old: Place, new: Place, by: Unsettled) {
        let mut debts = self.debts.lock();
        debts.note_key(Some(old), false, new.record);
        debts.note_replaced(by);
    }
}
