//! A handle for taking jobs one or a few at a time, on threads of the caller's own.

use std::cell::LazyCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Job;
use crate::dispatch::source::Source;
use crate::engine::Running;

/// Takes jobs from a queue on a thread of your own, in place of a worker pool.
///
/// Each consumer claims runs of jobs for itself; idle consumers steal from busy ones. Use one
/// consumer for each thread. Dropping it returns the jobs that it has claimed to the others.
///
/// While anyone holds a job that has a [crash](Job::crashes), no other such job is delivered. A
/// consumer that collects several jobs before it settles any should therefore wait for the next one
/// with a timeout.
///
/// ```
/// use logmill::Queue;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// queue.enqueue(b"41")?;
/// queue.enqueue(b"forty-two")?;
///
/// let consumer = queue.consumer();
/// while let Some(job) = consumer.next_timeout(Duration::from_millis(10)) {
///     match std::str::from_utf8(job.payload())?.parse::<u32>() {
///         Ok(number) => {
///             println!("{number}");
///             job.ack();
///         }
///         Err(error) => job.dead_letter(error),
///     }
/// }
/// assert_eq!((queue.stats().acked, queue.stats().dead), (1, 1));
/// # Ok(())
/// # }
/// ```
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

    /// Returns the next job if one is available, without waiting for one.
    ///
    /// None does not mean that the queue is empty. All jobs may be held by others, claimed by a
    /// consumer that is taking them at this moment, not due, behind a record that a producer is still
    /// writing, or in a segment that cannot be read. Also returns None once the queue is closed.
    ///
    /// The call may wait for the disk and for other consumers of the stripe when it claims from a
    /// segment that has to be prepared first. A segment that an earlier process sealed is mapped,
    /// read and checked, and damaged bytes in it are copied to `quarantine/` and flushed. A segment
    /// that was unmapped is mapped again.
    #[inline]
    pub fn try_next(&self) -> Option<Job<'_>> {
        match self.at_hand() {
            Some(job) => Some(job),
            None => self.find(),
        }
    }

    fn find(&self) -> Option<Job<'_>> {
        loop {
            let lease = self.source.try_next()?;
            if let Some(job) = Job::begin(&self.running, lease) {
                return Some(job);
            }
            if self.running.is_resting() {
                return None;
            }
        }
    }

    /// Waits for the next job; None once the queue is closed.
    ///
    /// Polls for a few tens of microseconds, then sleeps. A consumer that keeps up with a fast
    /// producer may leave new jobs in the log for up to 12 microseconds, which makes both faster.
    #[inline]
    pub fn next(&self) -> Option<Job<'_>> {
        match self.at_hand() {
            Some(job) => Some(job),
            None => self.wait(|| None, || false),
        }
    }

    /// Waits for the next job for at most this long.
    ///
    /// Returns None after the timeout, or once the queue is closed. Waits as [`next`](Self::next)
    /// does. As with [`try_next`](Self::try_next), preparing a segment may take longer than the
    /// timeout.
    #[inline]
    pub fn next_timeout(&self, timeout: Duration) -> Option<Job<'_>> {
        match self.at_hand() {
            Some(job) => Some(job),
            None => self.next_within(timeout),
        }
    }

    /// Waits for the next job until the deadline, or until `stopped` returns true; for threads of your
    /// own that must end while they wait.
    ///
    /// `stopped` is called each time that the consumer is about to sleep or was woken. Whoever makes
    /// it true calls [`Queue::wake_consumers`](crate::Queue::wake_consumers). A job that is found at
    /// once is returned all the same. Without a deadline, None means that the consumer was stopped
    /// or the queue closed.
    ///
    /// ```
    /// use logmill::Queue;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// let stopping = AtomicBool::new(false);
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         let consumer = queue.consumer();
    ///         while let Some(job) = consumer.next_until(None, || stopping.load(Ordering::Relaxed)) {
    ///             job.ack();
    ///         }
    ///     });
    ///     stopping.store(true, Ordering::Relaxed);
    ///     queue.wake_consumers();
    /// });
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn next_until(
        &self,
        deadline: Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> Option<Job<'_>> {
        match self.at_hand() {
            Some(job) => Some(job),
            None => self.wait(|| deadline, stopped),
        }
    }

    /// Returns up to `max` jobs.
    ///
    /// The first is taken as with [`next_timeout`](Self::next_timeout), the others as with
    /// [`try_next`](Self::try_next). Empty if no job came in time, or once the queue is closed.
    ///
    /// All of them count as being delivered: a lease timeout runs for each, and if the process
    /// dies, a [crash](Job::crashes) is counted for each that is not settled.
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

    /// The next job, if the consumer has claimed it already.
    // Always inlined, so that a job that its caller acks need not be assembled in memory.
    #[inline(always)]
    fn at_hand(&self) -> Option<Job<'_>> {
        Job::begin(&self.running, self.source.at_hand()?)
    }

    fn next_within(&self, timeout: Duration) -> Option<Job<'_>> {
        // The clock is read only if no job is available. A deadline that overflows means no
        // deadline.
        let deadline = LazyCell::new(|| Instant::now().checked_add(timeout));
        self.wait(|| *deadline, || false)
    }

    fn wait(
        &self,
        deadline: impl Fn() -> Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> Option<Job<'_>> {
        let ends = || stopped() || self.running.is_resting();
        loop {
            if let Some(lease) = self.source.next(&deadline, ends) {
                if let Some(job) = Job::begin(&self.running, lease) {
                    return Some(job);
                }
                if !self.running.is_resting() {
                    continue;
                }
            }
            // Paused, or resumed since: then the wait goes on.
            if !self.running.wait_for_resume(deadline(), &stopped)
                || stopped()
                || deadline().is_some_and(|deadline| deadline <= Instant::now())
            {
                return None;
            }
        }
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use crate::dispatch::gate::Gate;
    use crate::{Failure, Queue};

    /// Toggles what a pause changes in memory, which takes far less time than its file.
    #[test]
    fn a_pause_that_ends_at_any_moment_ends_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, _) = Queue::builder(dir.path()).open().unwrap();
        let stopping = AtomicBool::new(false);
        let stopped = || stopping.load(Ordering::SeqCst);
        let pool = queue.workers(1).run(|_| Ok::<(), Failure>(())).unwrap();
        thread::scope(|scope| {
            let wait = || {
                assert!(queue.consumer().next_until(None, stopped).is_none());
                assert!(stopped(), "the wait ended by itself");
            };
            let waiter = scope.spawn(wait);
            let running = queue.consumer().running;
            for _ in 0..20_000 {
                running.gate().set(Gate::PAUSED);
                running.wake_consumers();
                running.gate().clear(Gate::PAUSED);
                running.wake_consumers();
            }
            stopping.store(true, Ordering::SeqCst);
            queue.wake_consumers();
            waiter.join().unwrap();
        });
        assert_eq!(pool.alive(), 1);
    }
}
