//! A queue of the store, as a process uses it.

use std::sync::Arc;

use logmill_jobs::backend::{BackendError, Cancelled, DeadJob, NewJob, Queue, QueueStats, Seen};

use super::Process;
use super::jobs::{Jobs, Over};

pub(super) struct MemoryQueue {
    pub(super) process: Arc<Process>,
    pub(super) name: String,
}

impl MemoryQueue {
    fn read<T>(&self, read: impl FnOnce(&Jobs) -> T) -> Result<T, BackendError> {
        let found = self
            .process
            .read(|state| state.queue(&self.name).map(read))?;
        found.ok_or(BackendError::Closed)
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Jobs, &mut Vec<Over>) -> T,
    ) -> Result<T, BackendError> {
        self.process.change_if_open(|state, ends| {
            let queue = state.queue_mut(&self.name);
            let changed = queue.map(|queue| change(queue, ends));
            changed.ok_or(BackendError::Closed)
        })
    }
}

impl Queue for MemoryQueue {
    fn publish(&self, job: &NewJob<'_>) -> Result<u64, BackendError> {
        self.change(|queue, _| queue.publish(job))
    }

    fn publish_all(&self, jobs: &[NewJob<'_>]) -> Result<Vec<u64>, BackendError> {
        self.change(|queue, _| jobs.iter().map(|job| queue.publish(job)).collect())
    }

    fn set_paused(&self, paused: bool) -> Result<(), BackendError> {
        self.change(|queue, _| queue.is_paused = paused)
    }

    fn is_paused(&self) -> bool {
        self.read(|queue| queue.is_paused).unwrap_or_default()
    }

    fn cancel(&self, number: u64) -> Result<Cancelled, BackendError> {
        self.change(|queue, ends| queue.cancel(number, ends))
    }

    fn look(&self, number: u64) -> Result<Option<Seen>, BackendError> {
        self.read(|queue| queue.look(number))
    }

    fn contains(&self, number: u64) -> Result<bool, BackendError> {
        Ok(self.look(number)?.is_some())
    }

    fn each(&self, from: u64, see: &mut dyn FnMut(&Seen) -> bool) -> Result<(), BackendError> {
        // A copy, as who sees one may call back.
        let _ = self.read(|queue| queue.all_from(from))?.iter().all(see);
        Ok(())
    }

    fn stats(&self) -> Result<QueueStats, BackendError> {
        self.read(Jobs::stats)
    }

    fn dead_letters(&self) -> Result<Vec<DeadJob>, BackendError> {
        self.read(|queue| queue.letters.values().cloned().collect())
    }

    fn dead_letter(&self, letter: u64) -> Result<Option<DeadJob>, BackendError> {
        self.read(|queue| queue.letters.get(&letter).cloned())
    }

    fn replay(&self, letter: u64) -> Result<Option<u64>, BackendError> {
        self.change(|queue, _| queue.replay(letter))
    }

    fn purge(&self, letter: u64) -> Result<bool, BackendError> {
        self.change(|queue, _| queue.letters.remove(&letter).is_some())
    }
}
