//! Makes changes durable in the right order: letters before the jobs that they name are done, and
//! jobs that came from elsewhere before their origins are forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::StorageError;
use crate::log::segment::Unsettled;

impl Engine {
    /// Writes the letters of all jobs that have died, flushes them, and only then marks the jobs
    /// done.
    pub(crate) fn write_letters(&self) -> Result<(), Arc<StorageError>> {
        let settled = match self.poison().is_none() && self.dead.has_held() {
            true => self.settle_elsewhere(),
            false => Ok(()),
        };
        let has_handler = |job| {
            let leases = self.leases.as_ref();
            leases.is_some_and(|leases| leases.has_handler(job))
        };
        let written = self.dead.write_letters(has_handler, |lease, unsettled| {
            if self.mark_done(lease) {
                self.dead_lettered.fetch_add(1, Ordering::Relaxed);
            }
            self.note_unsettled(unsettled);
        });
        // Letters that need not wait for that are written whatever becomes of it.
        written.and(settled)
    }

    /// Moves the jobs that wait for a delay named by a handler.
    pub(crate) fn keep_delays(&self) -> Result<(), Arc<StorageError>> {
        if !self.dispatch.has_unkept() {
            return Ok(());
        }
        // Jobs that came by a transaction can only move on then.
        let settled = self.settle_elsewhere();
        self.dispatch.keep_delays().and(settled)
    }

    pub(crate) fn note_unsettled(&self, new: Unsettled) {
        let mut unsettled = self.unsettled.lock();
        // Consecutive letters are usually in the same segment.
        let rest = match unsettled.last_mut() {
            Some(last) => last.merge(new),
            None => Some(new),
        };
        unsettled.extend(rest);
    }

    /// Makes the acks of all jobs that have letters durable, so that the letters' segments can be
    /// sealed or retired. Also retries whatever else could not be settled earlier.
    pub(crate) fn settle_deaths(&self) -> Result<(), Arc<StorageError>> {
        let unsettled = self.take_unsettled();
        let mut flushed = Ok(());
        if !unsettled.is_empty() {
            flushed = self.flush_logs();
            self.settled_if(&flushed, unsettled);
        }
        flushed.and(self.settle_elsewhere())
    }

    /// Makes the records and acks of all logs durable.
    pub(super) fn flush_logs(&self) -> Result<(), Arc<StorageError>> {
        self.logs().try_for_each(|log| log.flush(true))
    }

    fn take_unsettled(&self) -> Vec<Unsettled> {
        let mut unsettled = std::mem::take(&mut *self.unsettled.lock());
        unsettled.append(&mut self.dispatch.unsettled.lock());
        unsettled
    }

    /// Handles the result of a flush of all logs.
    fn settled_if(&self, flushed: &Result<(), Arc<StorageError>>, unsettled: Vec<Unsettled>) {
        match flushed {
            Ok(()) => self.settled(unsettled),
            // The cause may be a file that could not be opened: the next flush settles these.
            Err(_) => self.unsettled.lock().extend(unsettled),
        }
    }

    pub(crate) fn settled(&self, unsettled: Vec<Unsettled>) {
        if unsettled.is_empty() {
            return;
        }
        for one in unsettled {
            one.settle();
        }
        // Segments may be freed, and letters wait for this.
        self.signal.kick();
    }

    /// Makes everything appended and acked so far durable.
    pub(crate) fn flush(&self) -> Result<(), Arc<StorageError>> {
        if let Some(error) = self.poison() {
            return Err(Arc::clone(error));
        }
        // Flushes each log regardless of errors in others: letters that do not fit on the disk, for
        // one, must not keep jobs from being flushed.
        let mut result = self.write_letters();
        let unsettled = self.take_unsettled();
        let mut flushed = Ok(());
        for log in self.logs() {
            flushed = log.flush(true).and(flushed);
        }
        self.settled_if(&flushed, unsettled);
        result = flushed.and(result);
        result
    }
}
