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
/// While somebody holds a job that has a [crash](Job::crashes), no other such job is delivered: who
/// collects jobs before settling any had better not wait for ever for the next one.
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

    /// The next job, if one is due now. Does not wait for one.
    ///
    /// The first claim from a segment that an earlier process has sealed reads and checks it, which
    /// may take as long as reading it from the disk does, and the flush of what is damaged.
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
    /// Waits by looking again for a few tens of microseconds, and then sleeps. A consumer that keeps up
    /// with a fast producer may leave new jobs for up to 12 microseconds, so that both are faster.
    #[inline]
    pub fn next(&self) -> Option<Job<'_>> {
        self.next_until(|| None)
    }

    /// The next job, waiting at most this long for it, as [`next`](Self::next) does; None once the
    /// queue is closed.
    #[inline]
    pub fn next_timeout(&self, timeout: Duration) -> Option<Job<'_>> {
        // The clock is read only if there is no job at hand. A deadline past the end of time is none.
        let deadline = LazyCell::new(|| Instant::now().checked_add(timeout));
        self.next_until(|| *deadline)
    }

    /// Up to `max` jobs, waiting at most `timeout` for the first of them and not at all for the
    /// others. All of them are being delivered: they count as attempts, and with a lease timeout
    /// the clock runs for all of them.
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
