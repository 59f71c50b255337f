//! Maintenance of the state log: settling, sealing, retiring, sweeping and cleaning.
//!
//! *Sweeping* forgets values that have expired, and marks them done. Each segment has a time for
//! it: that at which half of its values will have expired, of those that expire at all.
//!
//! *Cleaning* frees segments in which few values are still valid: it appends those again, each
//! naming the record that it replaces, as any new value of a key does. Only sealed segments are
//! cleaned: what is copied is durable, so that a power cut cannot leave the copy of one key without
//! the other keys of its transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::State;
use super::entry::{Entry, expiry_of};
use super::index::Place;
use crate::Timestamp;
use crate::events::event;
use crate::log::meta::{JobOptions, Meta};
use crate::log::pinned::Pinned;
use crate::log::record::NewRecord;
use crate::log::records::Record;
use crate::log::segment::{Segment, Unsettled};
use crate::log::{Kick, RollError};
use crate::storage::StorageError;
use crate::time;

/// Segments are cleaned once they take more than this many bytes for each byte of valid values.
const BYTES_PER_LIVE_BYTE: u64 = 2;
/// The bytes of so many segments are allowed beside that.
const SPARE_SEGMENTS: u64 = 1;
/// How many values are moved or forgotten before other callers get the log.
const AT_ONCE: usize = 64;
/// How soon an operation that failed is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Maintenance counts as recovered when nothing has failed for this long.
const WELL_AGAIN: Duration = Duration::from_secs(2);

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
        let now = time::now();
        let is_next = self.flush.lock().ask(now, interval);
        if is_next {
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
        next.into_iter().chain(self.flush.lock().at()).min()
    }

    /// Returns how soon to look again.
    fn maintain(&self) -> Result<Option<Duration>, Arc<StorageError>> {
        // Taken in any case, so that it is not due again and again after a failed flush.
        let is_due = self.flush.lock().take_due(time::now());
        if self.poison.is_set() {
            return Ok(None);
        }
        self.callers.wake(&self.debtors());
        if is_due {
            if let Err(error) = self.log.flush(true) {
                self.flush.lock().ask(time::now(), AGAIN);
                return Err(error);
            }
            self.log.make_writable_ahead();
        }
        // First: what an expired value has replaced must not come back without it.
        if self.are_keys_due() {
            self.settle_keys()?;
        }
        let next_sweep = self.sweep()?.map(|pause| self.clock.pause(pause));
        let next_seal = self.log.seal(false)?;
        let cleaned = self.clean();
        // Cleaning may have failed for want of the room that this makes.
        let unused = self.index.write().let_go();
        drop(unused);
        self.log.reclaim().map_err(Arc::new)?;
        let mut next = cleaned?.then_some(Duration::ZERO);
        if self.log.has_records() {
            self.log.warm_up();
            next = next.or(self.log.prepare());
        }
        self.log.flush_ahead()?;
        let others = [next_sweep, next_seal, self.log.look_again()];
        Ok(next.into_iter().chain(others.into_iter().flatten()).min())
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
        self.index.write().forget();
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

    /// Forgets values that have expired, and marks them done. Returns when the next ones will have.
    fn sweep(&self) -> Result<Option<Duration>, Arc<StorageError>> {
        loop {
            let now = self.clock.wall();
            let due = self.index.write().begin_sweep(now);
            let segment = match due {
                Ok(segment) => segment,
                Err(next) => return Ok(next),
            };
            let (next, result) = match self.sweep_one(&segment, now) {
                Ok(next) => (next, Ok(())),
                Err(error) => (Some(now), Err(error)),
            };
            self.index.write().end_sweep(&segment, next);
            result?;
        }
    }

    /// Forgets the values in a segment that have expired. Returns when to do it again.
    fn sweep_one(
        &self,
        segment: &Pinned,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Arc<StorageError>> {
        let mut later = Vec::new();
        let mut expired = Vec::new();
        for record in values_in(segment) {
            match expiry_of(&record) {
                Some(expiry) if expiry <= now => expired.push(place_of(segment, &record)),
                Some(expiry) => later.push(expiry),
                None => {}
            }
        }
        for some in expired.chunks(AT_ONCE) {
            {
                let _writer = self.writer.lock();
                let mut index = self.index.write();
                for &place in some {
                    if let Some(key) = index.key_at(place) {
                        #[cfg(all(test, not(loom)))]
                        swept::note();
                        index.remove(&key, place);
                    }
                }
            }
            for place in some {
                self.log.mark_done(place.record)?;
            }
        }
        // By then half of what is left has expired, so there are few sweeps of a segment, and what
        // has expired is never the larger part.
        let half = later.len() / 2;
        let next = (!later.is_empty()).then(|| *later.select_nth_unstable(half).1);
        Ok(next)
    }

    /// Frees a sealed segment if most of what these hold is not valid any more. Returns whether
    /// that was so.
    fn clean(&self) -> Result<bool, Arc<StorageError>> {
        let spare = SPARE_SEGMENTS * self.log.segment_size();
        let overhead = self.log.ack_file_bytes();
        let found = self
            .index
            .read()
            .to_clean(spare, BYTES_PER_LIVE_BYTE, overhead);
        let Some(segment) = found else {
            return Ok(false);
        };
        #[cfg(all(test, not(loom)))]
        cleaned::note();
        let values = values_in(&segment).map(|record| place_of(&segment, &record));
        let values: Vec<_> = values.collect();
        let mut expired = Vec::new();
        let mut result = Ok(());
        for some in values.chunks(AT_ONCE) {
            let mut active = self.writer.lock();
            for &place in some {
                match self.clean_one(&mut active, &segment, place) {
                    Ok(true) => {}
                    Ok(false) => expired.push(place.record),
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            if result.is_err() {
                break;
            }
        }
        for record in expired {
            self.log.mark_done(record)?;
        }
        match result {
            Ok(()) => {}
            Err(RollError::Storage(error)) => return Err(Arc::new(error)),
            Err(RollError::Closed | RollError::OverBudget(_)) => return Ok(false),
        }
        self.settle_keys()?;
        // Otherwise the same segment would be found again and again.
        Ok(!self.index.read().has_values_in(segment.segment().base()))
    }

    /// Appends a value again, unless it is replaced already. Returns false if it has expired; then
    /// the index has forgotten it.
    fn clean_one(
        &self,
        active: &mut Arc<Segment>,
        segment: &Pinned,
        place: Place,
    ) -> Result<bool, RollError> {
        let Some(record) = segment.record(place.units) else {
            return Ok(true);
        };
        let Entry::Value { key } = Entry::of(&record) else {
            return Ok(true);
        };
        if self.index.read().place_of(key) != Some(place) {
            return Ok(true);
        }
        let own = Meta::decode(record.meta());
        let expires_at = own.options.expires_at;
        if expires_at.is_some_and(|at| at <= self.clock.wall()) {
            self.index.write().remove(key, place);
            return Ok(false);
        }
        let meta = Meta {
            options: JobOptions {
                expires_at,
                ..JobOptions::default()
            },
            settles: Some(place.record),
            original: Some(own.original.unwrap_or(place.record)),
            ..Meta::default()
        };
        let meta = super::meta_of_key(key, false, &meta);
        let new = NewRecord {
            enqueued_at: record.header().enqueued_at,
            due_at: Timestamp::ZERO,
            name: b"",
            meta: &meta,
            payload: record.payload(),
        };
        let Ok(batch) = self.log.batch(std::iter::once(new)) else {
            debug_assert!(
                false,
                "a value is written only if its copy is not too large"
            );
            return Ok(true);
        };
        let (first, unsettled) = self.log.append_batch_owing(active, &batch, 1)?;
        let new_place = Place {
            record: active.sequence(first.index),
            units: first.units,
        };
        {
            let mut index = self.index.write();
            index.keep(|| active.pin(), active.base());
            index.insert(key, new_place);
        }
        self.note_cleaned(place, new_place, unsettled);
        Ok(true)
    }

    fn note_cleaned(&self, old: Place, new: Place, by: Unsettled) {
        let mut debts = self.debts.lock();
        debts.note_key(Some(old), false, new.record);
        debts.note_replaced(by);
    }
}

/// The values in a segment that are not done.
fn values_in(segment: &Pinned) -> impl Iterator<Item = Record<'_>> {
    segment
        .live_records()
        .filter(|record| matches!(Entry::of(record), Entry::Value { .. }))
}

fn place_of(segment: &Pinned, record: &Record<'_>) -> Place {
    Place {
        record: segment.segment().sequence(record.header().index),
        units: record.units(),
    }
}

/// A count of what this thread has done, for tests that must have reached it.
#[cfg(all(test, not(loom)))]
macro_rules! count {
    ($name:ident) => {
        pub(crate) mod $name {
            use std::cell::Cell;

            thread_local! {
                static COUNT: Cell<u64> = const { Cell::new(0) };
            }

            pub(in super::super) fn note() {
                COUNT.set(COUNT.get() + 1);
            }

            pub(crate) fn count() -> u64 {
                COUNT.get()
            }
        }
    };
}
#[cfg(all(test, not(loom)))]
count!(cleaned);
#[cfg(all(test, not(loom)))]
count!(swept);
