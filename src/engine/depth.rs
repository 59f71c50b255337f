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

    /// Takes room for so many jobs; returns whether there was room for all of them.
    pub(crate) fn take(&self, wanted: u64) -> bool {
        // Relaxed: a count, which orders nothing.
        let taken = self
            .jobs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |jobs| {
                let jobs = jobs.checked_add(wanted)?;
                (jobs <= self.max).then_some(jobs)
            });
        taken.is_ok()
    }

    /// Takes room whether there is any or not.
    fn force(&self, jobs: u64) {
        self.jobs.fetch_add(jobs, Ordering::Relaxed);
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
    /// Takes room for so many jobs, all or none.
    pub(crate) fn take_room(&self, jobs: u64) -> Result<(), EnqueueError> {
        match &self.depth {
            Some(depth) if !depth.take(jobs) => Err(match self.is_closed() {
                true => EnqueueError::Closed,
                false => depth.full(),
            }),
            _ => Ok(()),
        }
    }

    /// Like [`take_room`](Self::take_room); with `by_force`, whether there is any or not.
    pub(super) fn take_room_of(&self, jobs: u64, by_force: bool) -> Result<(), EnqueueError> {
        match &self.depth {
            Some(depth) if by_force => {
                depth.force(jobs);
                Ok(())
            }
            _ => self.take_room(jobs),
        }
    }

    /// Whether there can ever be room for so many jobs at once.
    pub(super) fn check_batch_depth(&self, jobs: u64) -> Result<(), EnqueueError> {
        match &self.depth {
            Some(depth) if jobs > depth.max => Err(EnqueueError::BatchTooLarge {
                limit: "max_depth",
                size: jobs,
                max: depth.max,
            }),
            _ => Ok(()),
        }
    }

    /// Gives back room that was taken for jobs that could not be appended. Wakes nobody: the caller
    /// may be one of those who wait for room, and would wake itself again and again.
    #[cold]
    pub(crate) fn leave_room(&self, jobs: u64) {
        if let Some(depth) = &self.depth {
            depth.give_back(jobs);
        }
    }

    /// Gives back the room of jobs that have ended.
    #[inline(always)]
    pub(crate) fn give_back_room(&self, jobs: u64) {
        give_back_room(self.depth.as_deref(), &self.room, jobs);
    }
}
