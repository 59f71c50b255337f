//! A delivered job, until it is settled.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::dispatch::lease_timeouts::Delivery;
use crate::engine::Engine;
use crate::engine::delivery::Attempt;
use crate::failure::Failure;
use crate::log::lease::Lease;
use crate::{JobId, Sequence};

/// A job in the hands of a consumer, until it says what became of it.
///
/// The payload is read in place, from the log. A job that is dropped is a failed attempt, so that
/// a panic or a forgotten call loses nothing: it comes back after the policy's backoff, or is
/// dead after its last attempt.
///
/// With a [lease timeout](crate::Builder::lease_timeout) a job that is held for too long is
/// delivered again, or is dead after its last attempt. Acking it late still completes it, wherever it is by
/// then: it is not delivered any more, and has no dead letter. (A letter that is written already is
/// withdrawn, unless the queue is poisoned by a failed flush; a job that a replay has made of it is another
/// one.) Failing it late has no effect.
#[must_use = "a job that is dropped is retried"]
pub struct Job<'a> {
    engine: &'a Engine,
    /// Taken by whatever settles the job.
    lease: Option<Lease>,
    attempt: Attempt,
    delivery: Delivery,
}

impl<'a> Job<'a> {
    /// Begins the delivery of a job; None if it had used up its attempts, or was done meanwhile.
    #[inline(always)]
    pub(crate) fn begin(engine: &'a Engine, lease: Lease) -> Option<Self> {
        let (attempt, delivery) = if engine.is_only_counted(&lease) {
            let failed = lease.begin_delivery().failed();
            (Attempt::new(u32::from(failed) + 1, false), Delivery::ONLY)
        } else {
            return Self::begin_slow(engine, lease);
        };
        Some(Self {
            engine,
            lease: Some(lease),
            attempt,
            delivery,
        })
    }

    #[cold]
    fn begin_slow(engine: &'a Engine, lease: Lease) -> Option<Self> {
        let (lease, attempt, delivery) = engine.begin(lease)?;
        Some(Self {
            engine,
            lease: Some(lease),
            attempt,
            delivery,
        })
    }

    /// What was enqueued.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        match &self.lease {
            Some(lease) => lease.payload(),
            None => &[],
        }
    }

    /// The job's id, the one that its enqueue returned.
    #[inline]
    pub fn id(&self) -> JobId {
        let sequence = self.lease.as_ref().map_or(Sequence::new(0), Lease::job);
        JobId::of(sequence)
    }

    /// Which attempt this is: the attempts that failed, and this one. 1 the first time. An attempt that ended
    /// with the process does not count as failed, see [`crashes`](Self::crashes). For a job with unlimited
    /// attempts the number may stop at 256.
    #[inline]
    pub fn attempts(&self) -> u32 {
        self.attempt.number()
    }

    /// How often the process died, or the power failed, while a handler had this job; at most 15.
    /// [`RetryPolicy::max_crashes`](crate::RetryPolicy::max_crashes) is the limit. Such a job is
    /// not delivered while a handler has another one, unless its delivery has [timed
    /// out](crate::Builder::lease_timeout).
    pub fn crashes(&self) -> u32 {
        self.lease.as_ref().map_or(0, Lease::crashes)
    }

    /// When the job was enqueued, to the kernel's clock tick (1 to 10 ms), or when its letter was replayed.
    pub fn enqueued_at(&self) -> SystemTime {
        match &self.lease {
            Some(lease) => lease.record().header().enqueued_at.into(),
            None => SystemTime::UNIX_EPOCH,
        }
    }

    /// Completes the job: it is not delivered again. For a first delivery this is one atomic add to mapped
    /// memory, which waits for no other thread; the kernel may stop it for a page fault.
    ///
    /// It takes a lock, and may wake a thread with a system call, if the ack completes a segment, if
    /// a producer waits for the room that it makes under `max_depth`, if the job was delivered before, or with
    /// a [lease timeout](crate::Builder::lease_timeout).
    ///
    /// Survives the death of the process at once. A power cut may undo acks since they were last
    /// [flushed](crate::Queue::flush), and then the job is delivered again.
    #[inline(always)]
    pub fn ack(mut self) {
        if let Some(lease) = self.lease.take() {
            self.engine.ack(lease, self.delivery, self.attempt);
        }
    }

    /// Fails this attempt: the job comes back after the retry policy's backoff, or is dead if
    /// this was its last attempt. The reason is kept in memory for the dead letter; the count survives the death
    /// of the process. Takes locks, and does not wait for the disk: a letter is written by another thread.
    pub fn retry(self, reason: impl fmt::Display) {
        self.fail(Failure::retry(reason));
    }

    /// As [`retry`](Self::retry), after this delay instead of the policy's. A restart of the process forgets
    /// the delay: then the policy's backoff holds.
    pub fn retry_after(self, delay: Duration, reason: impl fmt::Display) {
        self.fail(Failure::retry_after(delay, reason));
    }

    /// Fails the job for good, however many attempts it has left. If the process dies before the letter is
    /// written, a moment later, the job gets its remaining attempts all the same.
    pub fn dead_letter(self, reason: impl fmt::Display) {
        self.fail(Failure::dead_letter(reason));
    }

    /// Fails this attempt with what a handler would return. The [`Failure`] says what happens next; one that is
    /// made from any other error means a retry by the policy.
    ///
    /// ```
    /// # use logmill::{Job, RetryPolicy, Queue};
    /// # fn work(payload: &[u8]) -> Result<(), std::str::Utf8Error> {
    /// #     std::str::from_utf8(payload).map(|_| ())
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// # queue.enqueue(b"\xff")?;
    /// let consumer = queue.consumer();
    /// if let Some(job) = consumer.try_next() {
    ///     match work(job.payload()) {
    ///         Ok(()) => job.ack(),
    ///         Err(error) => job.fail(error),
    ///     }
    /// }
    /// # assert_eq!(queue.stats().retried, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fail(mut self, failure: impl Into<Failure>) {
        // With the job still in hand, so that it is settled should this panic.
        let failure = failure.into();
        if let Some(lease) = self.lease.take() {
            self.engine
                .fail(lease, self.delivery, self.attempt, failure);
        }
    }
}

impl Drop for Job<'_> {
    // Inlined, and the rest out of line with its arguments in registers: so a job that is acked
    // where it was received is never put together in memory.
    #[inline]
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            fail_dropped(self.engine, lease, self.delivery, self.attempt);
        }
    }
}

#[cold]
fn fail_dropped(engine: &Engine, lease: Lease, delivery: Delivery, attempt: Attempt) {
    let reason = if std::thread::panicking() {
        "the job was dropped by a panic"
    } else {
        "the job was dropped"
    };
    engine.fail(lease, delivery, attempt, reason.into());
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id())
            .field("attempts", &self.attempts())
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}
