//! How many jobs there may be at a time: the room that an enqueue takes, and that a job's end gives back.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use crate::error::EnqueueError;
use crate::event_count::EventCount;

/// The jobs that are neither acked nor dead, where a limit is set on them.
pub(crate) struct DepthLimit {
    max: u64,
    jobs: AtomicU64,
}

impl DepthLimit {
    pub(super) fn new(max: u64) -> Self {
        Self {
            max,
            jobs: AtomicU64::new(0),
        }
    }

    /// Takes room for up to `wanted` jobs; returns for how many there was.
    pub(crate) fn take(&self, wanted: u64) -> u64 {
        let mut taken = 0;
        // Relaxed: a count, which orders nothing.
        let _ = self
            .jobs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |jobs| {
                taken = wanted.min(self.max.saturating_sub(jobs));
                (taken > 0).then_some(jobs + taken)
            });
        taken
    }

    /// Counts the jobs that an open has found.
    pub(super) fn start_with(&self, jobs: u64) {
        self.jobs.store(jobs, Ordering::Relaxed);
    }

    /// What an enqueue gets for which there was none.
    pub(crate) fn full(&self) -> EnqueueError {
        EnqueueError::Full {
            limit: "max_depth",
            max: self.max,
        }
    }

    /// Jobs that take room.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.jobs.load(Ordering::Relaxed)
    }

    pub(crate) fn give_back(&self, jobs: u64) {
        let before = self.jobs.fetch_sub(jobs, Ordering::Relaxed);
        debug_assert!(before >= jobs, "room was given back twice");
    }
}

#[inline(always)]
pub(super) fn give_back_room(depth: Option<&DepthLimit>, room: &EventCount, jobs: u64) {
    if let Some(depth) = depth {
        depth.give_back(jobs);
        room.notify_fenced(jobs as usize);
    }
}

impl Engine {
    /// Takes room for up to `jobs` jobs, for one at least; returns for how many there was.
    pub(crate) fn take_room(&self, jobs: u64) -> Result<u64, EnqueueError> {
        let Some(depth) = &self.depth else {
            return Ok(jobs);
        };
        match depth.take(jobs) {
            0 if self.is_closed() => Err(EnqueueError::Closed),
            0 => Err(depth.full()),
            taken => Ok(taken),
        }
    }

    /// Jobs are neither live any more nor on their way to become so.
    #[inline(always)]
    pub(crate) fn give_back_room(&self, jobs: u64) {
        give_back_room(self.depth.as_deref(), &self.room, jobs);
    }
}
