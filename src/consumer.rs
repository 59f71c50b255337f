//! Consuming by hand: a consumer asks for jobs, one or a few at a time.

use std::cell::LazyCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Job;
use crate::dispatch::source::Source;
use crate::engine::Running;

/// Takes jobs from a queue, for those who bring their own threads.
///
/// Each consumer claims runs of jobs for itself; idle consumers steal from busy ones. Use one
/// consumer for each thread. Dropping it gives the jobs it has claimed back to the others.
///
/// While somebody holds a job that has a [crash](Job::crashes), no other such job is delivered. So a
/// consumer that collects jobs before it settles any should not wait for the next one without a limit.
pub struct Consumer {
    source: Source<Arc<Running>>,
    running: Arc<Running>,
}

impl Consumer {
    pub(crate) fn new(running: Arc<Running>) -> Self {
        Self {
            source: Source::new(Arc::clone(&running)),
            running,
        }
    }

    /// The next job, if one is at hand. Does not wait for one to come.
    ///
    /// None does not mean that the queue is empty: all jobs may be in other hands, not due, behind a record
    /// that a producer is still writing, or in a segment that cannot be read. None also once the queue is
    /// closed.
    ///
    /// A call may wait for the disk and for other consumers of the stripe where a claim comes to a segment
    /// that has to be made ready: one that an earlier process has sealed is mapped, read and checked, what is
    /// damaged in it is copied to `quarantine/` and flushed, and one that was unmapped is mapped again.
    #[inline]
    pub fn try_next(&self) -> Option<Job<'_>> {
        if self.running.is_closed() {
            return None;
        }
        loop {
            let lease = self.source.try_next()?;
            if let Some(job) = Job::begin(&self.running, lease) {
                return Some(job);
            }
        }
    }

    /// The next job, waiting for it; None once the queue is closed.
    ///
    /// Looks again for a few tens of microseconds, and then sleeps. A consumer that keeps up with a fast
    /// producer may leave new jobs for up to 12 microseconds, so that both are faster.
    #[inline]
    pub fn next(&self) -> Option<Job<'_>> {
        self.next_until(|| None)
    }

    /// The next job, waiting at most this long for one to come, as [`next`](Self::next) does; None then, or
    /// once the queue is closed. As in [`try_next`](Self::try_next), a segment that has to be made ready may
    /// take longer than that.
    #[inline]
    pub fn next_timeout(&self, timeout: Duration) -> Option<Job<'_>> {
        // The clock is read only if there is no job at hand. A deadline past the end of time is none.
        let deadline = LazyCell::new(|| Instant::now().checked_add(timeout));
        self.next_until(|| *deadline)
    }

    /// Up to `max` jobs: the first as from [`next_timeout`](Self::next_timeout), the others as from
    /// [`try_next`](Self::try_next). Empty if none came in time, or once the queue is closed.
    ///
    /// All of them are being delivered: with a lease timeout the clock runs for each, and if the process dies
    /// a [crash](Job::crashes) is counted for each that is not settled.
    pub fn next_batch(&self, max: usize, timeout: Duration) -> Vec<Job<'_>> {
        let mut jobs = Vec::new();
        if max > 0 {
            jobs.extend(self.next_timeout(timeout));
        }
        while !jobs.is_empty() && jobs.len() < max {
            match self.try_next() {
                Some(job) => jobs.push(job),
                None => break,
            }
        }
        jobs
    }

    #[inline]
    fn next_until(&self, deadline: impl Fn() -> Option<Instant>) -> Option<Job<'_>> {
        loop {
            let lease = self.source.next(&deadline, || self.running.is_closed())?;
            if let Some(job) = Job::begin(&self.running, lease) {
                return Some(job);
            }
        }
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}
