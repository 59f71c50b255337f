//! A delivered job that borrows nothing.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{HeldJob, Job, due_at};
use crate::dispatch::lease_timeouts::Delivery;
use crate::engine::Running;
use crate::engine::delivery::Attempt;
use crate::error::TransactionError;
use crate::failure::Failure;
use crate::log::headers::Headers;
use crate::log::lease::Lease;
use crate::log::records::name_of;
use crate::transaction::{Committed, Transaction};
use crate::{JobId, Sequence};

/// A [`Job`] that borrows nothing, so that it can move to another task or thread.
///
/// An [`AsyncConsumer`](crate::AsyncConsumer) gives out such jobs, and [`Job::into_owned`] makes one
/// of a borrowed job. It settles as a `Job` does, and its attempt fails when it is dropped.
///
/// An owned job is a handle of the queue: as long as it lives, the queue stays open, and its
/// directory locked. After [`Queue::close`](crate::Queue::close) it can still be settled. If it is
/// the last handle, settling or dropping it closes the queue, which waits for the disk; so close the
/// queue before, on a thread that may wait.
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// # queue.enqueue(b"resize cat.jpg")?;
/// let consumer = queue.consumer();
/// let job = consumer.next().expect("a job was enqueued").into_owned();
/// drop(consumer);
/// let worker = std::thread::spawn(move || {
///     println!("resizing {}", String::from_utf8_lossy(job.payload()));
///     job.ack();
/// });
/// worker.join().expect("no panic");
/// assert_eq!(queue.stats().acked, 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "a job that is dropped is retried"]
pub struct OwnedJob {
    /// Taken when the job is settled.
    lease: Option<Lease>,
    attempt: Attempt,
    delivery: Delivery,
    /// Dropped last: it keeps what the lease is of.
    running: Arc<Running>,
}

impl Job<'_> {
    /// Lets go of what the job borrows, such as its consumer, and keeps the queue open instead.
    pub fn into_owned(self) -> OwnedJob {
        let running = self.engine.running();
        OwnedJob::new(self, &running)
    }
}

impl OwnedJob {
    /// The same delivery as `job`, of the engine that is `running`.
    pub(crate) fn new(mut job: Job<'_>, running: &Arc<Running>) -> Self {
        Self {
            // The borrowed job has nothing to settle any more.
            lease: job.lease.take(),
            attempt: job.attempt,
            delivery: job.delivery,
            running: Arc::clone(running),
        }
    }

    /// The same delivery as a borrowed job, which settles it.
    fn take(&mut self) -> Job<'_> {
        Job {
            engine: &self.running,
            lease: self.lease.take(),
            attempt: self.attempt,
            delivery: self.delivery,
        }
    }

    /// The bytes that were enqueued.
    pub fn payload(&self) -> &[u8] {
        self.lease.as_ref().map_or(&[], Lease::payload)
    }

    /// The name of the job's queue, see [`Job::queue_name`].
    pub fn queue_name(&self) -> &str {
        self.running.name()
    }

    /// The job's name, see [`Job::name`].
    pub fn name(&self) -> Option<&str> {
        name_of(self.lease.as_ref()?.name())
    }

    /// The job's headers, see [`Job::headers`].
    pub fn headers(&self) -> Headers<'_> {
        Headers::of(self.lease.as_ref().map_or(&[], Lease::headers))
    }

    /// The job's id, as its enqueue returned it.
    pub fn id(&self) -> JobId {
        let sequence = self.lease.as_ref().map_or(Sequence::new(0), Lease::job);
        JobId::of(sequence)
    }

    /// The number of this attempt, see [`Job::attempts`].
    pub fn attempts(&self) -> u32 {
        self.attempt.number()
    }

    /// How often the process died while a handler had this job, see [`Job::crashes`].
    pub fn crashes(&self) -> u32 {
        self.lease.as_ref().map_or(0, Lease::crashes)
    }

    /// Whether the job was cancelled since the handler got it, see [`Job::is_cancelled`].
    pub fn is_cancelled(&self) -> bool {
        let lease = self.lease.as_ref();
        lease.is_some_and(|lease| self.running.is_cancelled(lease))
    }

    /// When the job was enqueued, see [`Job::enqueued_at`].
    pub fn enqueued_at(&self) -> SystemTime {
        let lease = self.lease.as_ref();
        lease.map_or(SystemTime::UNIX_EPOCH, |lease| {
            lease.record().header().enqueued_at.into()
        })
    }

    /// Until when the job waited, see [`Job::due_at`].
    pub fn due_at(&self) -> Option<SystemTime> {
        due_at(self.lease.as_ref()?)
    }

    /// Completes the job, see [`Job::ack`].
    pub fn ack(mut self) {
        self.take().ack();
    }

    /// Completes the job together with what follows from it, see [`Job::ack_with`].
    ///
    /// # Errors
    /// See [`TransactionError`].
    pub fn ack_with(mut self, transaction: Transaction) -> Result<Committed, TransactionError> {
        self.take().ack_with(transaction)
    }

    /// Fails this attempt; the job comes back after the policy's backoff, see [`Job::retry`].
    pub fn retry(mut self, reason: impl fmt::Display) {
        self.take().retry(reason);
    }

    /// Fails this attempt; the job comes back after this delay, see [`Job::retry_after`].
    pub fn retry_after(mut self, delay: Duration, reason: impl fmt::Display) {
        self.take().retry_after(delay, reason);
    }

    /// Gives the job back without a failed attempt; it comes back after this delay, see
    /// [`Job::snooze`].
    pub fn snooze(mut self, delay: Duration) {
        self.take().snooze(delay);
    }

    /// Takes the job out of the queue's order without an attempt, see [`Job::hold`].
    pub fn hold(mut self) -> HeldJob {
        self.take().hold()
    }

    /// Lets the handler have the job for its whole [lease timeout](crate::Builder::lease_timeout)
    /// again. Returns false if the delivery has timed out, see [`Job::touch`].
    pub fn touch(&self) -> bool {
        let lease = self.lease.as_ref();
        lease.is_some_and(|lease| self.running.touch(lease, self.delivery))
    }

    /// Fails the job for good, see [`Job::dead_letter`].
    pub fn dead_letter(mut self, reason: impl fmt::Display) {
        self.take().dead_letter(reason);
    }

    /// Fails this attempt as a handler's error does, see [`Job::fail`].
    pub fn fail(mut self, failure: impl Into<Failure>) {
        self.take().fail(failure);
    }
}

impl Drop for OwnedJob {
    fn drop(&mut self) {
        // Fails the attempt, unless it is settled.
        drop(self.take());
    }
}

impl fmt::Debug for OwnedJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedJob")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("attempts", &self.attempts())
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}
