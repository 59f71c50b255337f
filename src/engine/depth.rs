//! The limit on the number of jobs: an enqueue takes room, the end of a job gives it back.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use crate::error::EnqueueError;
use crate::event_count::EventCount;

/// The number of jobs that are neither acked nor dead, for a queue that limits it.
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

    /// Takes room for up to `wanted` jobs; returns how many it got room for.
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

    /// Sets the count to the number of jobs found at open.
    pub(super) fn start_with(&self, jobs: u64) {
        self.jobs.store(jobs, Ordering::Relaxed);
    }

    /// The error of an enqueue that found no room.
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
    /// Takes room for up to `jobs` jobs, but at least one; returns how many it got room for.
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

    /// Gives back the room of jobs that have ended, or that were not enqueued after all.
    #[inline(always)]
    pub(crate) fn give_back_room(&self, jobs: u64) {
        give_back_room(self.depth.as_deref(), &self.room, jobs);
    }
}
