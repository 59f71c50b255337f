//! Observers: the program's own code, told of each thing that happens to a job.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use crate::log::headers::{Headers, headers_of};
use crate::log::lease::Lease;
use crate::log::lookup::FoundJob;
use crate::log::records::name_of;
use crate::user_code;
use crate::{JobId, Sequence};

/// Told of what happens to the jobs of a queue, see [`Builder::observer`](crate::Builder::observer).
///
/// For metrics, logs and audits. Each method does nothing unless it is implemented. It is called
/// once the thing has happened, under no lock, on the thread on which it happened: a consumer, a
/// worker, or a thread of the queue. So it may use the queue, and while it runs, it holds up that
/// thread; [`job_events`] hands events on to another one. A panic in it is caught.
///
/// A queue without an observer pays nothing; with one, each delivery takes some tens of nanoseconds
/// more, unless it does not [observe completions](Self::observes_completions). If the process dies at that moment, what has happened is not told.
///
/// ```
/// use logmill::{Observer, ObservedJob, Queue};
///
/// struct Log;
///
/// impl Observer for Log {
///     fn completed(&self, job: &ObservedJob) {
///         println!("{} {:?}: done after {} attempts", job.id(), job.name(), job.attempts());
///     }
///
///     fn dead(&self, job: &ObservedJob, reason: &str) {
///         println!("{} {:?}: dead, {reason}", job.id(), job.name());
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let (queue, _) = Queue::builder(dir.path()).observer(Log).open()?;
/// # queue.close()?;
/// # Ok(())
/// # }
/// ```
pub trait Observer: Send + Sync {
    /// Whether [`completed`](Self::completed) is to be called. Asked once, when the queue is opened.
    ///
    /// With an observer that returns false, a job that is delivered once and acked costs no more than
    /// without one. Default: true.
    fn observes_completions(&self) -> bool {
        true
    }

    /// A job was acked.
    fn completed(&self, job: &ObservedJob) {
        let _ = job;
    }

    /// An attempt failed, or its lease timed out, and the job comes back.
    fn failed(&self, job: &ObservedJob, reason: &str) {
        let _ = (job, reason);
    }

    /// A job failed for good and becomes a dead letter.
    fn dead(&self, job: &ObservedJob, reason: &str) {
        let _ = (job, reason);
    }

    /// A job expired, and does not become a dead letter.
    fn expired(&self, job: &ObservedJob) {
        let _ = job;
    }

    /// A job was [cancelled](crate::Queue::cancel): when it waited, or when its handler has ended
    /// other than by an ack.
    fn cancelled(&self, job: &ObservedJob) {
        let _ = job;
    }

    /// A handler gave a job back for this long.
    fn snoozed(&self, job: &ObservedJob, delay: Duration) {
        let _ = (job, delay);
    }
}

/// The observer of a queue, if it has one.
#[derive(Clone, Default)]
pub(crate) struct Observing {
    observer: Option<Arc<dyn Observer>>,
    /// Whether it is told of completions.
    sees_all: bool,
}

impl Observing {
    pub(crate) fn by(observer: impl Observer + 'static) -> Self {
        let sees_all = user_code::call(|| observer.observes_completions());
        Self {
            observer: Some(Arc::new(observer)),
            sees_all: sees_all.unwrap_or(true),
        }
    }

    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.observer.is_some()
    }

    /// Whether it is told of a job that is delivered once and acked.
    #[inline]
    pub(crate) fn sees_all(&self) -> bool {
        self.sees_all
    }

    /// What the observer will be told of a job, copied while there is a lease of it.
    #[inline]
    pub(crate) fn see(&self, lease: &Lease, attempts: u32) -> Option<ObservedJob> {
        self.is_on().then(|| ObservedJob::of(lease, attempts))
    }

    /// What the observer will be told of a job that waits.
    pub(crate) fn see_found(&self, job: Sequence, found: &FoundJob) -> Option<ObservedJob> {
        self.is_on().then(|| {
            let (record, meta, deliveries) = (found.record(), found.meta(), found.deliveries());
            let (failed, crashes) = (deliveries.failed().into(), deliveries.crashes().into());
            ObservedJob {
                id: JobId::of(job),
                name: record.name().to_vec(),
                headers: headers_of(record.meta()).to_vec(),
                attempts: meta.prior_attempts.saturating_add(failed),
                crashes: meta.prior_crashes.saturating_add(crashes),
                enqueued_at: record.header().enqueued_at.into(),
            }
        })
    }

    /// Tells the observer what has happened to a job. The caller holds no lock.
    pub(crate) fn tell(
        &self,
        seen: Option<ObservedJob>,
        what: impl FnOnce(&dyn Observer, &ObservedJob),
    ) {
        if let (Some(observer), Some(job)) = (&self.observer, &seen) {
            // A panic is the observer's own.
            let _ = user_code::call(|| what(&**observer, job));
        }
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        // The last clone may be dropped along with the queue, on a thread of this library.
        user_code::discard(self.observer.take());
    }
}

/// A job as an [`Observer`] is told of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ObservedJob {
    id: JobId,
    name: Vec<u8>,
    headers: Vec<u8>,
    attempts: u32,
    crashes: u32,
    enqueued_at: SystemTime,
}

impl ObservedJob {
    /// A copy of what is told of a job at this attempt.
    fn of(lease: &Lease, attempts: u32) -> Self {
        let record = lease.record();
        Self {
            id: JobId::of(lease.job()),
            name: record.name().to_vec(),
            headers: lease.headers().to_vec(),
            attempts,
            crashes: lease.crashes(),
            enqueued_at: record.header().enqueued_at.into(),
        }
    }

    /// The job's id.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// The job's name, if it has one.
    pub fn name(&self) -> Option<&str> {
        name_of(&self.name)
    }

    /// The job's headers.
    pub fn headers(&self) -> Headers<'_> {
        Headers::of(&self.headers)
    }

    /// The number of the attempt, as [`Job::attempts`](crate::Job::attempts); of a job that expired,
    /// died or was cancelled without one, how many have failed.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How often the process died while a handler had the job.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// When the job was enqueued, accurate to the kernel's clock tick (1 to 10 ms).
    pub fn enqueued_at(&self) -> SystemTime {
        self.enqueued_at
    }
}

impl fmt::Debug for ObservedJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedJob")
            .field("id", &self.id)
            .field("name", &self.name())
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

/// What has happened to a job, from [`job_events`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobEvent {
    /// See [`Observer::completed`].
    Completed(ObservedJob),
    /// See [`Observer::failed`].
    Failed(ObservedJob, String),
    /// See [`Observer::dead`].
    Dead(ObservedJob, String),
    /// See [`Observer::expired`].
    Expired(ObservedJob),
    /// See [`Observer::cancelled`].
    Cancelled(ObservedJob),
    /// See [`Observer::snoozed`].
    Snoozed(ObservedJob, Duration),
}

/// Makes an observer that keeps up to `capacity` events for another thread, and the receiving end.
///
/// It never waits: an event for which there is no room is missed, and counted.
///
/// ```
/// use logmill::{JobEvent, Queue};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let (observer, events) = logmill::job_events(1000);
/// let (queue, _) = Queue::builder(dir.path()).observer(observer).open()?;
/// queue.enqueue(b"job")?;
/// queue.consumer().next().expect("a job was enqueued").ack();
///
/// let event = events.next_timeout(Duration::from_secs(5));
/// assert!(matches!(event, Some(JobEvent::Completed(_))));
/// assert_eq!(events.missed(), 0);
/// # Ok(())
/// # }
/// ```
pub fn job_events(capacity: usize) -> (impl Observer + 'static, JobEvents) {
    // A channel without room would hand each event over, which waits.
    let (sender, received) = sync_channel(capacity.max(1));
    let missed = Arc::new(AtomicU64::new(0));
    let events = JobEvents {
        received,
        missed: Arc::clone(&missed),
    };
    (Kept { sender, missed }, events)
}

/// The events of the jobs of a queue, from [`job_events`].
pub struct JobEvents {
    received: Receiver<JobEvent>,
    missed: Arc<AtomicU64>,
}

impl JobEvents {
    /// The next event, if there is one now.
    pub fn try_next(&self) -> Option<JobEvent> {
        self.received.try_recv().ok()
    }

    /// Waits for the next event; None once the queue is gone.
    ///
    /// All handles of the queue have to be dropped for that.
    pub fn next(&self) -> Option<JobEvent> {
        self.received.recv().ok()
    }

    /// Waits for the next event for at most this long.
    pub fn next_timeout(&self, timeout: Duration) -> Option<JobEvent> {
        self.received.recv_timeout(timeout).ok()
    }

    /// How many events were missed because there was no room for them.
    pub fn missed(&self) -> u64 {
        // Relaxed: a count, which orders nothing.
        self.missed.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for JobEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobEvents")
            .field("missed", &self.missed())
            .finish_non_exhaustive()
    }
}

/// Keeps events for another thread.
struct Kept {
    sender: SyncSender<JobEvent>,
    missed: Arc<AtomicU64>,
}

impl Kept {
    fn keep(&self, event: JobEvent) {
        if self.sender.try_send(event).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Observer for Kept {
    fn completed(&self, job: &ObservedJob) {
        self.keep(JobEvent::Completed(job.clone()));
    }

    fn failed(&self, job: &ObservedJob, reason: &str) {
        self.keep(JobEvent::Failed(job.clone(), reason.to_owned()));
    }

    fn dead(&self, job: &ObservedJob, reason: &str) {
        self.keep(JobEvent::Dead(job.clone(), reason.to_owned()));
    }

    fn expired(&self, job: &ObservedJob) {
        self.keep(JobEvent::Expired(job.clone()));
    }

    fn cancelled(&self, job: &ObservedJob) {
        self.keep(JobEvent::Cancelled(job.clone()));
    }

    fn snoozed(&self, job: &ObservedJob, delay: Duration) {
        self.keep(JobEvent::Snoozed(job.clone(), delay));
    }
}
