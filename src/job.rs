//! A delivered job, until it is settled.

mod held;
#[cfg(feature = "async")]
mod owned;

use std::fmt;
use std::mem;
use std::time::{Duration, SystemTime};

pub use self::held::HeldJob;
#[cfg(feature = "async")]
pub use self::owned::OwnedJob;
use crate::dispatch::lease_timeouts::Delivery;
use crate::engine::Engine;
use crate::engine::delivery::Attempt;
use crate::engine::transactions::Source;
use crate::error::TransactionError;
use crate::failure::Failure;
use crate::log::headers::Headers;
use crate::log::lease::Lease;
use crate::log::records::name_of;
use crate::time::Timestamp;
use crate::transaction::{Committed, Transaction};
use crate::{JobId, Sequence};

/// A delivered job, held by a consumer or a handler until it is settled.
///
/// A worker pool settles the job with the result of the handler. With a
/// [`Consumer`](crate::Consumer), the caller settles it with [`ack`](Self::ack),
/// [`retry`](Self::retry), [`retry_after`](Self::retry_after), [`dead_letter`](Self::dead_letter)
/// or [`fail`](Self::fail).
///
/// The payload is read in place, from the log. Dropping a job fails the attempt, so a panic or a
/// forgotten call loses nothing: the job comes back after the policy's backoff, or is dead after
/// its last attempt.
///
/// With a [lease timeout](crate::Builder::lease_timeout), a job that is held for too long is
/// delivered again, or is dead after its last attempt. Acking it late still completes it, wherever
/// it is by then: it is not delivered again and has no dead letter. (A letter that is already
/// written is withdrawn, unless the queue is poisoned by a failed flush. A job that a replay has
/// made of the letter is a separate job and stays.) Failing it late has no effect.
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// let id = queue.enqueue(b"resize cat.jpg")?;
///
/// let consumer = queue.consumer();
/// let job = consumer.next().expect("a job was enqueued");
/// assert_eq!(job.id(), id);
/// assert_eq!(job.payload(), b"resize cat.jpg");
/// assert_eq!(job.attempts(), 1);
/// job.ack();
/// # assert_eq!(queue.stats().acked, 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "a job that is dropped is retried"]
pub struct Job<'a> {
    engine: &'a Engine,
    /// Taken when the job is settled.
    lease: Option<Lease>,
    attempt: Attempt,
    delivery: Delivery,
}

impl<'a> Job<'a> {
    /// Begins the delivery of a job; None if it had used up its attempts, was completed or
    /// cancelled meanwhile, or the queue is paused or closed.
    #[inline(always)]
    pub(crate) fn begin(engine: &'a Engine, lease: Lease) -> Option<Self> {
        let (attempt, delivery) = if engine.is_only_counted(&lease) {
            let failed = lease.begin_delivery().failed();
            if !engine.gate().is_open() {
                return Self::begin_checked(engine, lease, failed);
            }
            (Attempt::after(failed), Delivery::ONLY)
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

    /// Goes on with a delivery that is counted, while the gate is not open.
    #[cold]
    fn begin_checked(engine: &'a Engine, lease: Lease, failed: u8) -> Option<Self> {
        Some(Self {
            engine,
            lease: Some(engine.check_begun(lease, failed.into())?),
            attempt: Attempt::after(failed),
            delivery: Delivery::ONLY,
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

    /// The bytes that were enqueued.
    // Always inlined, as `ack` is: a call would need the job's address, and so a job in memory.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        match &self.lease {
            Some(lease) => lease.payload(),
            None => &[],
        }
    }

    /// The name of the job's queue, see [`Queue::name`](crate::Queue::name).
    pub fn queue_name(&self) -> &str {
        self.engine.name()
    }

    /// The job's name, if its producer [gave it one](crate::EnqueueOptions::name).
    #[inline]
    pub fn name(&self) -> Option<&str> {
        name_of(self.lease.as_ref()?.name())
    }

    /// The job's headers, which its producer [gave it](crate::EnqueueOptions::headers).
    #[inline]
    pub fn headers(&self) -> Headers<'_> {
        Headers::of(self.lease.as_ref().map_or(&[], Lease::headers))
    }

    /// The job's id, as its enqueue returned it.
    #[inline]
    pub fn id(&self) -> JobId {
        let sequence = self.lease.as_ref().map_or(Sequence::new(0), Lease::job);
        JobId::of(sequence)
    }

    /// The number of this attempt: 1 for the first, one more for each attempt that failed.
    ///
    /// An attempt that ended with the process does not count as failed, see
    /// [`crashes`](Self::crashes). For a job with unlimited attempts the number may stop at 256.
    #[inline]
    pub fn attempts(&self) -> u32 {
        self.attempt.number()
    }

    /// How often the process died, or the power failed, while a handler had this job; at most 15.
    ///
    /// [`RetryPolicy::max_crashes`](crate::RetryPolicy::max_crashes) sets the limit. A job with a
    /// crash is not delivered while a handler has another such job, unless the delivery of that one
    /// has [timed out](crate::Builder::lease_timeout).
    #[inline]
    pub fn crashes(&self) -> u32 {
        self.lease.as_ref().map_or(0, Lease::crashes)
    }

    /// Whether the job was [cancelled](crate::Queue::cancel) since the handler got it.
    ///
    /// Nobody waits for its result any more, so a handler that takes long looks from time to time,
    /// and returns early. However it ends, other than by an ack, the job does not come back and has
    /// no dead letter.
    ///
    /// Costs one load while no job of the queue is cancelled, and a lock otherwise.
    pub fn is_cancelled(&self) -> bool {
        let lease = self.lease.as_ref();
        lease.is_some_and(|lease| self.engine.is_cancelled(lease))
    }

    /// When the job was enqueued, or when its letter was replayed.
    ///
    /// Accurate to the kernel's clock tick (1 to 10 ms).
    pub fn enqueued_at(&self) -> SystemTime {
        match &self.lease {
            Some(lease) => lease.record().header().enqueued_at.into(),
            None => SystemTime::UNIX_EPOCH,
        }
    }

    /// Until when the job waited; None if it was enqueued without a delay.
    ///
    /// The end of a backoff or of a snooze is not told, unless it was stored with a copy of the job.
    #[inline]
    pub fn due_at(&self) -> Option<SystemTime> {
        due_at(self.lease.as_ref()?)
    }

    /// Completes the job: it is not delivered again.
    ///
    /// For a first delivery this is one atomic add to mapped memory, which waits for no other
    /// thread; the kernel may stop it for a page fault.
    ///
    /// It takes a lock, and may wake a thread with a system call, if the ack completes a segment,
    /// if a producer waits for the room that it makes under `max_depth`, if the job was delivered
    /// before, or with a [lease timeout](crate::Builder::lease_timeout).
    ///
    /// An ack survives the death of the process at once. A power cut may undo the acks since the
    /// last [flush](crate::Queue::flush); those jobs are delivered again.
    #[inline(always)]
    pub fn ack(mut self) {
        let (engine, delivery, attempt) = (self.engine, self.delivery, self.attempt);
        let lease = self.lease.take();
        // There is nothing left to drop. If the compiler had to see to that in the case of a panic,
        // it would move the whole job in memory, which costs as much as the rest of the call.
        mem::forget(self);
        if let Some(lease) = lease {
            engine.ack(lease, delivery, attempt);
        }
    }

    /// Completes the job together with what follows from it: new jobs in any queues of the same
    /// directory of queues, and changed keys, all or nothing.
    ///
    /// See [`Transaction`] for what is left after a crash.
    ///
    /// # Errors
    /// See [`TransactionError`]. Nothing has happened then, except after
    /// [`NotDurable`](TransactionError::NotDurable), and the attempt has failed: the job comes back
    /// as after [`retry`](Self::retry), with the error as the reason.
    pub fn ack_with(mut self, transaction: Transaction) -> Result<Committed, TransactionError> {
        let Some(lease) = self.lease.take() else {
            return Err(TransactionError::LeaseLost);
        };
        transaction.commit_with(Some(Source {
            engine: self.engine,
            lease,
            delivery: self.delivery,
            attempt: self.attempt,
        }))
    }

    /// Fails this attempt; the job comes back after the retry policy's backoff.
    ///
    /// If this was its last attempt, the job is dead instead. The reason is kept in memory for the
    /// dead letter; the number of failed attempts survives the death of the process. The call takes
    /// locks and does not wait for the disk: another thread writes the letter.
    pub fn retry(self, reason: impl fmt::Display) {
        self.fail(Failure::retry(reason));
    }

    /// Fails this attempt; the job comes back after this delay instead of the policy's backoff.
    ///
    /// Otherwise like [`retry`](Self::retry). A delay of a second or more survives a restart as that
    /// of [`snooze`](Self::snooze) does; after a shorter one, the policy's backoff applies.
    pub fn retry_after(self, delay: Duration, reason: impl fmt::Display) {
        self.fail(Failure::retry_after(delay, reason));
    }

    /// Gives the job back without a failed attempt; it comes back after this delay.
    ///
    /// The next attempt has the same [number](Self::attempts). For a handler that cannot begin: a
    /// rate limit, a resource that is taken. A delay of a second or more survives a restart, once
    /// the maintenance thread has stored it with a copy of the job, some 20 ms later or at a
    /// [close](crate::Queue::close); with a shorter one the job is ready at once after a restart.
    ///
    /// If the delivery has [timed out](crate::Builder::lease_timeout), this has no effect: the
    /// attempt has failed already.
    pub fn snooze(mut self, delay: Duration) {
        if let Some(lease) = self.lease.take() {
            self.engine
                .release(lease, self.delivery, self.attempt, delay);
        }
    }

    /// Lets the handler have the job for its whole [lease timeout](crate::Builder::lease_timeout)
    /// again, from now on; for handlers that take long and show that they go on.
    ///
    /// Returns false if the delivery has timed out: the attempt has failed, and another handler may
    /// have the job. Without lease timeouts this does nothing, and returns true.
    pub fn touch(&self) -> bool {
        match &self.lease {
            Some(lease) => self.engine.touch(lease, self.delivery),
            None => false,
        }
    }

    /// Fails the job for good, however many attempts it has left.
    ///
    /// If the process dies before the letter is written, a moment later, the job keeps its
    /// remaining attempts.
    pub fn dead_letter(self, reason: impl fmt::Display) {
        self.fail(Failure::dead_letter(reason));
    }

    /// Fails this attempt with an error, as if a handler had returned it.
    ///
    /// The [`Failure`] decides what happens next. A `Failure` made from any other error means a
    /// retry by the policy.
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
        // Converted while the job is still held, so that the job is settled if the conversion
        // panics.
        let failure = failure.into();
        if let Some(lease) = self.lease.take() {
            self.engine
                .fail(lease, self.delivery, self.attempt, failure);
        }
    }
}

/// When a leased job is due, if it was delayed.
#[inline]
fn due_at(lease: &Lease) -> Option<SystemTime> {
    let due = lease.record().header().due_at;
    (due != Timestamp::ZERO).then(|| due.into())
}

impl Drop for Job<'_> {
    // Inlined, with the rest out of line and its arguments in registers: a job that is acked where
    // it was received is then never assembled in memory.
    #[inline(always)]
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
            .field("name", &self.name())
            .field("attempts", &self.attempts())
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}
