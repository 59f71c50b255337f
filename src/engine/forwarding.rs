//! Jobs that come to a queue by a transaction, and settling with the state log that they come from.

use std::sync::Arc;

use super::Engine;
use super::enqueue::Place;
use crate::error::EnqueueError;
use crate::events::event;
use crate::log::RollError;
use crate::log::record::NewRecord;
use crate::log::segment::Unsettled;
use crate::options::Durability;
use crate::state::State;
use crate::state::entry::NewJob;
use crate::storage::StorageError;
use crate::tree::Tree;
use crate::{JobId, Sequence};

impl Engine {
    /// The id of this queue in a tree; None if it is not in that tree.
    pub(crate) fn id_in(&self, tree: &Tree) -> Option<u64> {
        let (state, id) = self.home.state()?;
        std::ptr::eq(state, tree.state()).then_some(id)
    }

    /// Appends a job of a transaction, for which room was taken. If there is no segment for it, it
    /// is appended later.
    pub(super) fn take_in(&self, state: &State, job: &NewJob, entry: Sequence) -> Option<JobId> {
        let meta = job.meta_in_queue(state.name_of(entry));
        match self.append_forwarded(&job.record(&meta)) {
            Ok((sequence, unsettled)) => {
                state.note_forwarded(job.queue, entry, unsettled);
                self.dispatch.sleepers.notify_fenced(1);
                Some(JobId::of(sequence))
            }
            Err(error) => {
                self.leave_room(1);
                let error = EnqueueError::from(error);
                event!(debug, %error, "a job of a transaction has to wait for room");
                state.note_waiting(job.queue, entry);
                self.signal.kick();
                None
            }
        }
    }

    fn append_forwarded(&self, job: &NewRecord<'_>) -> Result<(Sequence, Unsettled), RollError> {
        let stripe = Place::of_this_thread(self).stripe();
        stripe.append_owing(&mut stripe.active(), job)
    }

    /// Makes the records durable that this thread has appended.
    pub(super) fn flush_appended(&self) -> Result<(), Arc<StorageError>> {
        Place::of_this_thread(self).stripe().flush(false)
    }

    /// Appends the jobs of transactions that are not in the queue yet. Returns whether some have to
    /// wait on.
    pub(crate) fn take_waiting(&self) -> Result<bool, Arc<StorageError>> {
        let Err(error) = self.append_waiting()? else {
            return Ok(false);
        };
        event!(debug, %error, "jobs of transactions have to wait for room");
        Ok(true)
    }

    /// Appends the jobs of transactions that are not in the queue yet. The inner error is why some
    /// have to wait on.
    pub(super) fn append_waiting(&self) -> Result<Result<(), EnqueueError>, Arc<StorageError>> {
        let Some((state, id)) = self.home.state() else {
            return Ok(Ok(()));
        };
        if self.is_closed() || !state.has_waiting(id) {
            return Ok(Ok(()));
        }
        let mut taken = 0;
        let forwarded = state.forward(id, |job| {
            self.take_room(1)?;
            let appended = self.append_forwarded(job);
            taken += u64::from(appended.is_ok());
            appended.map(|(_, unsettled)| unsettled).map_err(|error| {
                self.leave_room(1);
                EnqueueError::from(error)
            })
        });
        if taken > 0 {
            self.dispatch.sleepers.notify_fenced(taken as usize);
        }
        if taken > 0 && self.durability() == Durability::Sync {
            // So that the ids hold after a power cut, under which handlers may store something.
            self.flush_appended()?;
        }
        match forwarded {
            Ok(()) => Ok(Ok(())),
            Err(Ok(error)) => Ok(Err(error)),
            Err(Err(error)) => Err(error),
        }
    }

    /// Settles what has gone between the state log and this queue.
    pub(crate) fn settle_elsewhere(&self) -> Result<(), Arc<StorageError>> {
        match self.home.state() {
            Some((state, id)) => state.settle(id, || self.flush_logs()),
            None => Ok(()),
        }
    }

    /// Maintenance for what the queue has to do with the state log. Returns whether jobs wait for
    /// room.
    pub(crate) fn maintain_elsewhere(&self) -> Result<bool, Arc<StorageError>> {
        let Some((state, id)) = self.home.state() else {
            return Ok(false);
        };
        if self.poison().is_none() && state.is_due(id) {
            self.settle_elsewhere()?;
        }
        self.take_waiting()
    }
}
