//! What a handler can learn of its attempt, and do in it.

mod following;

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use self::following::Follows;
pub(crate) use self::following::{Followed, followed_by};
use crate::JobId;
use crate::backend::Claim;
use crate::cancelling;
use crate::enqueue::header;
use crate::failure::{Failure, JobResult, snooze};
use crate::flow::{NodeId, has_ended};
use crate::handler::FromAttempt;
use crate::keys;
use crate::mill::Mill;
use crate::running::Signals;

/// The result of a step is kept for this long, in case the job never ends.
const KEEP_STEPS: Duration = Duration::from_secs(30 * 86_400);

/// The reason of an attempt whose time was up.
pub(crate) const TOO_LONG: &str = "the attempt took too long";

/// Why a handler should end, from [`Context::stop_cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopCause {
    /// The job was cancelled.
    Cancelled,
    /// The workers are being shut down.
    Shutdown,
    /// The attempt's time is up.
    TimedOut,
    /// The backend has taken the job back, as it was not heard from this process for too long: another
    /// process may run it. Only on a backend with [leases](crate::backend::Capabilities::lease).
    Lost,
}

impl StopCause {
    /// The failure that does what fits it.
    pub(crate) fn failure(self) -> Failure {
        match self {
            // A cancelled job that is given back ends, whichever attempt it was.
            Self::Shutdown | Self::Cancelled | Self::Lost => snooze(Duration::ZERO),
            Self::TimedOut => Failure::retry(TOO_LONG.to_owned()),
        }
    }
}

/// An attempt at a job, from which extractors take what they need.
pub struct Attempt<'a> {
    pub(crate) mill: &'a Mill,
    pub(crate) id: &'a JobId,
    pub(crate) claim: &'a dyn Claim,
    pub(crate) deadline: Option<Instant>,
    pub(crate) pool_stops: &'a Arc<AtomicBool>,
    /// Made when an extractor asks for it.
    pub(crate) context: OnceCell<Context>,
}

impl Attempt<'_> {
    /// The job's id.
    pub fn id(&self) -> &JobId {
        self.id
    }

    /// The kind under which the job is stored.
    pub fn kind(&self) -> &str {
        self.claim.kind()
    }

    /// The number of this attempt, see [`Context::attempt`].
    pub fn attempt(&self) -> u32 {
        self.claim.attempt()
    }

    /// The context of the attempt; the same for each call.
    pub fn context(&self) -> &Context {
        self.context.get_or_init(|| {
            let node = self.claim.header(header::FLOW).and_then(NodeId::parse);
            let signals = self.mill.inner.running.begin(self.id, node);
            // It may have been cancelled before it could be told.
            if self.claim.is_cancelled() || node.is_some_and(|node| has_ended(self.mill, node)) {
                signals.cancel();
            }
            let key = self.claim.header(header::KEY);
            Context {
                inner: Arc::new(Inner {
                    mill: self.mill.clone(),
                    id: self.id.clone(),
                    kind: self.claim.kind().to_owned(),
                    node,
                    key: key.map(|key| String::from_utf8_lossy(key).into_owned()),
                    #[cfg(feature = "schedules")]
                    schedule: self.claim.header(header::SCHEDULE).map(<[u8]>::to_vec),
                    attempt: self.claim.attempt(),
                    crashes: self.claim.crashes(),
                    enqueued_at: self.claim.enqueued_at(),
                    traceparent: self.traceparent().map(str::to_owned),
                    deadline: self.deadline,
                    pool_stops: Arc::clone(self.pool_stops),
                    signals,
                    follows: Mutex::default(),
                }),
            }
        })
    }
}

impl std::fmt::Debug for Attempt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attempt")
            .field("id", self.id)
            .finish_non_exhaustive()
    }
}

/// The attempt that a handler is called for: take it as an argument, in any place after the job.
///
/// ```
/// use logmill_jobs::{Context, Job, JobResult};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "charge", output = String)]
/// struct Charge {
///     cents: u64,
/// }
///
/// fn charge(job: Charge, cx: Context) -> JobResult<String> {
///     // Not called again if a later attempt follows a crash.
///     let receipt: String = cx.step("charge", || Ok(format!("{} cents", job.cents)))?;
///     println!("attempt {} of {}", cx.attempt(), cx.id());
///     Ok(receipt)
/// }
/// ```
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    mill: Mill,
    id: JobId,
    kind: String,
    /// Its place in a flow.
    node: Option<NodeId>,
    key: Option<String>,
    /// The header that names the schedule and the tick.
    #[cfg(feature = "schedules")]
    schedule: Option<Vec<u8>>,
    attempt: u32,
    crashes: u32,
    enqueued_at: SystemTime,
    traceparent: Option<String>,
    deadline: Option<Instant>,
    pool_stops: Arc<AtomicBool>,
    signals: Arc<Signals>,
    follows: Mutex<Follows>,
}

impl Context {
    /// The mill that the job is of.
    pub fn mill(&self) -> &Mill {
        &self.inner.mill
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.inner.id
    }

    /// The kind under which the job is stored: that of its type, or an alias.
    pub fn kind(&self) -> &str {
        &self.inner.kind
    }

    /// The key that limits count the job by.
    pub fn key(&self) -> Option<&str> {
        self.inner.key.as_deref()
    }

    /// The id of the schedule that enqueued the job, and the tick for which it did; the time of the call
    /// for [`Mill::run_schedule_now`].
    #[cfg(feature = "schedules")]
    pub fn scheduled(&self) -> Option<(&str, SystemTime)> {
        crate::schedules::parse_header(self.inner.schedule.as_deref()?)
    }

    /// The number of this attempt: 1 for the first, one more for each that failed.
    pub fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// How often the process died during an attempt at this job.
    pub fn crashes(&self) -> u32 {
        self.inner.crashes
    }

    /// When the job was enqueued.
    pub fn enqueued_at(&self) -> SystemTime {
        self.inner.enqueued_at
    }

    /// The trace context of the code that enqueued the job, as the text of a W3C `traceparent`, if
    /// there was one; see [`TraceContext`](crate::TraceContext).
    pub fn traceparent(&self) -> Option<&str> {
        self.inner.traceparent.as_deref()
    }

    /// When the attempt's time is up, if its kind has a timeout.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.deadline
    }

    /// Whether the handler should end: the job was cancelled, its time is up, or the workers are
    /// being shut down.
    ///
    /// A handler that takes long asks from time to time.
    pub fn is_stopping(&self) -> bool {
        self.stop_cause().is_some()
    }

    /// Whether the job was cancelled since the handler got it. On a backend that several processes share,
    /// this looks what the others have stored, ten times a second at most.
    pub fn is_cancelled(&self) -> bool {
        let signals = &self.inner.signals;
        signals.is_cancelled() || (self.inner.mill.is_shared() && self.looks_elsewhere())
    }

    /// Whether another process has cancelled the job; looks from time to time.
    #[cold]
    fn looks_elsewhere(&self) -> bool {
        let Inner {
            mill, id, signals, ..
        } = &*self.inner;
        if signals.looks(mill.inner.clock.now()) {
            let told = cancelling::told_by_others(mill, id);
            let has_flow_ended = || self.inner.node.is_some_and(|node| has_ended(mill, node));
            if matches!(told, Ok(Some(_))) || has_flow_ended() {
                signals.cancel();
            }
        }
        signals.is_cancelled()
    }

    /// Why the handler should end, if it should; the first of these causes.
    pub fn stop_cause(&self) -> Option<StopCause> {
        if self.is_cancelled() {
            Some(StopCause::Cancelled)
        } else if self.is_shutdown() {
            Some(StopCause::Shutdown)
        } else if self.inner.signals.is_lost() {
            Some(StopCause::Lost)
        } else {
            self.is_late().then_some(StopCause::TimedOut)
        }
    }

    /// Of the causes, the first that holds for all jobs that run together with this one.
    pub(crate) fn stop_cause_of_chunk(&self) -> Option<StopCause> {
        match self.is_shutdown() {
            true => Some(StopCause::Shutdown),
            false => self.is_late().then_some(StopCause::TimedOut),
        }
    }

    fn is_shutdown(&self) -> bool {
        self.inner.pool_stops.load(Ordering::Relaxed)
    }

    /// Ends the handler by `?` if it should end: what a handler that takes long calls from time to
    /// time.
    ///
    /// ```
    /// # use logmill_jobs::{Context, Job, JobResult};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, Job)]
    /// # #[job(kind = "digest")]
    /// # struct Digest;
    /// fn digest(_job: Digest, cx: Context) -> JobResult {
    ///     for page in 0..1000 {
    ///         cx.check()?;
    ///         println!("page {page}");
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// A failure that does what fits the cause:
    ///
    /// | cause | what becomes of the job |
    /// |---|---|
    /// | [`Shutdown`](StopCause::Shutdown) | given back without an attempt: it comes again at once, after a restart |
    /// | [`Cancelled`](StopCause::Cancelled) | it ends as cancelled, with the reason of the call |
    /// | [`Lost`](StopCause::Lost) | the backend refuses what this attempt does to it |
    /// | [`TimedOut`](StopCause::TimedOut) | the attempt has failed, and is repeated after the backoff |
    pub fn check(&self) -> JobResult {
        match self.stop_cause() {
            None => Ok(()),
            Some(cause) => Err(cause.failure()),
        }
    }

    /// Says how far the job is, for [`JobHandle::progress`](crate::JobHandle::progress): what is done,
    /// and what is to be done in all, or 0 if that is not known.
    ///
    /// Handles of this process see it at once. It is stored at most once a second, and removed at the
    /// end of the job. Call it as often as is convenient: it costs a lock and a look at the clock.
    pub fn progress(&self, done: u64, total: u64) {
        self.say_progress(done, total, None);
    }

    /// Says how far the job is, and what it does; of the note, 1024 bytes are kept.
    pub fn progress_with(&self, done: u64, total: u64, note: &str) {
        self.say_progress(done, total, Some(note));
    }

    fn say_progress(&self, done: u64, total: u64, note: Option<&str>) {
        let Inner { mill, signals, .. } = &*self.inner;
        let progress = crate::progress::now(mill, done, total, note);
        if !signals
            .progress
            .set(progress.clone(), mill.inner.clock.now())
        {
            return;
        }
        let key = keys::of_progress(&self.inner.id);
        if !self.inner.follows.lock().remove_at_end(&key) {
            return;
        }
        let mut stored = crate::progress::store(mill, &key, &progress);
        if self.inner.follows.lock().has_ended() {
            // Perhaps the end came first, and removed what was not there yet.
            stored = stored.and_then(|()| crate::progress::remove(mill, &key));
        }
        if let Err(error) = stored {
            tracing::warn!(id = %self.inner.id, %error, "the progress of a job was not stored");
        }
    }

    fn is_late(&self) -> bool {
        let deadline = self.inner.deadline;
        deadline.is_some_and(|deadline| deadline <= self.inner.mill.inner.clock.now())
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.inner.id)
            .field("attempt", &self.inner.attempt)
            .finish_non_exhaustive()
    }
}

impl<S> FromAttempt<S> for Context {
    fn from_attempt(attempt: &Attempt<'_>, _: &S) -> Result<Self, Failure> {
        Ok(attempt.context().clone())
    }
}
