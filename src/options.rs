//! Options of a queue, given when it is opened, and of a job, given when it is enqueued.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::log::header::FILE_HEADER_BYTES;
use crate::log::headers::{MAX_HEADER_BYTES, NewHeaders, encoded_len, is_valid_key, is_valid_name};
use crate::log::recovery::RecoveryProgress;
use crate::observer::{Observer, Observing};
use crate::retry::{MAX_ATTEMPTS, MAX_CRASHES};
use crate::tree::{self, InTree};
use crate::{EnqueueError, OpenError, RetryPolicy, Timestamp};

/// Smallest segment: it needs separate pages for the header and the records, and room for a few
/// records.
const MIN_SEGMENT_SIZE: u64 = 16 * 1024;
/// Largest segment: keeps offsets, in 8-byte units, far from the end of 32 bits.
const MAX_SEGMENT_SIZE: u64 = 1024 * 1024 * 1024;
/// Three segments of this size fit a last-level cache of common size, and stay in it by being
/// reused.
pub(crate) const DEFAULT_SEGMENT_SIZE: u64 = 8 * 1024 * 1024;
/// Segments are whole pages.
const SEGMENT_SIZE_STEP: u64 = 4096;
/// The stripe is 8 bits of a sequence, of which the last value is the dead letter log's.
pub(crate) const MAX_STRIPES: usize = 64;
/// More stripes by default would cost disk space (two segments each) and gain no speed.
pub(crate) const MAX_DEFAULT_STRIPES: usize = 8;
/// A flush takes about this long, so a shorter interval would flush all the time.
const MIN_FLUSH_INTERVAL: Duration = Duration::from_millis(1);

const MIN_LEASE_TIMEOUT: Duration = Duration::from_millis(1);

/// Decides which failures a job survives once its enqueue has returned `Ok`.
///
/// Set for a queue with [`Builder::durability`], or for one job with
/// [`EnqueueOptions::durability`].
///
/// ```
/// use logmill::{Durability, EnqueueOptions, Queue};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// // A power cut loses at most the last 50 ms and the time of one flush.
/// let (queue, _) = Queue::builder(dir.path())
///     .durability(Durability::Interval(Duration::from_millis(50)))
///     .open()?;
/// queue.enqueue(b"update the search index")?;
///
/// // This job is on stable storage when the call returns.
/// queue.enqueue_with(b"charge order 7", EnqueueOptions::new().durability(Durability::Sync))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Survives the death of the process, in whatever way: panic, abort, `kill -9`.
    ///
    /// The record is in the page cache, and the kernel writes it back at a time of its own
    /// choosing. A power cut or a kernel crash may lose it.
    #[default]
    Process,
    /// As `Process`, and flushed at this interval, at least 1 ms.
    ///
    /// A power cut loses at most what was enqueued in the last interval and in the time that one
    /// flush takes.
    ///
    /// The flush covers acks too. If it fails, an event reports it, and later durable enqueues
    /// return [`EnqueueError::Poisoned`]; jobs enqueued since the previous flush may then not be
    /// durable.
    Interval(Duration),
    /// Survives a power cut: the call returns after the record is flushed to stable storage.
    ///
    /// Concurrent callers share flushes.
    ///
    /// This relies on two properties of the disk: it keeps what a flush covered, and it does not
    /// tear bytes that are rewritten with the same content ("powersafe overwrite"), because a
    /// record may share a sector with earlier ones.
    Sync,
}

impl Durability {
    /// The one of the two that loses less.
    pub(crate) fn stronger(self, other: Self) -> Self {
        match (self, other) {
            (Self::Sync, _) | (_, Self::Sync) => Self::Sync,
            (Self::Interval(one), Self::Interval(two)) => Self::Interval(one.min(two)),
            (Self::Process, weaker) | (weaker, Self::Process) => weaker,
        }
    }
}

/// Options of one job, such as a delay or a wait for room; the defaults are the queue's.
///
/// ```
/// use logmill::{EnqueueOptions, Queue};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// let options = EnqueueOptions::new()
///     .delay(Duration::from_secs(3600)) // not before an hour has passed
///     .max_attempts(2)
///     .wait(Duration::from_secs(5)); // if the queue is full, wait up to 5 s for room
/// queue.enqueue_with(b"remind Ada", options)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct EnqueueOptions<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) headers: NewHeaders<'a>,
    pub(crate) due: Due,
    pub(crate) durability: Option<Durability>,
    pub(crate) max_attempts: Option<Option<u8>>,
    pub(crate) expires: Option<Expires>,
    pub(crate) lease_timeout: Option<Duration>,
    pub(crate) wait: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Due {
    #[default]
    AtOnce,
    After(Duration),
    At(Timestamp),
}

/// When a job expires.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expires {
    After(Duration),
    At(Timestamp),
}

impl Expires {
    pub(crate) fn at(self) -> Timestamp {
        match self {
            Self::After(delay) => Timestamp::now().saturating_add(delay),
            Self::At(time) => time,
        }
    }
}

impl<'a> EnqueueOptions<'a> {
    /// Uses the queue's defaults.
    ///
    /// The job is due at once, has the queue's durability and the attempts of its retry policy, and
    /// the call does not wait for room.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the job a name, such as that of its kind: 1 to 255 bytes.
    ///
    /// [`Job::name`](crate::Job::name) returns it, also after retries and restarts, and so does
    /// [`DeadLetter::name`](crate::DeadLetter::name). The queue itself makes no use of it. A name
    /// of another length is an [`EnqueueError::InvalidOption`].
    pub fn name(mut self, name: &'a str) -> Self {
        self.name = Some(name);
        self
    }

    /// Gives the job headers: bytes by key, such as a trace context or the key of a tenant.
    ///
    /// [`Job::headers`](crate::Job::headers) returns them, also after retries and restarts, and so
    /// does [`DeadLetter::headers`](crate::DeadLetter::headers). The queue itself makes no use of
    /// them. A key has 1 to 255 bytes and may occur more than once.
    ///
    /// Each header takes 4 bytes beside its key and its value; all of them together, at most 32,768
    /// bytes. The room for a payload ([`Queue::max_payload`](crate::Queue::max_payload)) is for
    /// name, headers and payload. A key of another length, or too many bytes, are an
    /// [`EnqueueError::InvalidOption`].
    pub fn headers(mut self, headers: &'a [(&'a str, &'a [u8])]) -> Self {
        self.headers = headers;
        self
    }

    /// Delivers the job once `delay` has passed from now.
    ///
    /// Once a consumer has reached the job in the log, the rest of the delay runs on the monotonic
    /// clock. Until then the wall clock counts: if it is set forward, the delay is shorter; if it
    /// is set back, the job still waits no longer than `delay` from when a consumer reaches it.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.due = Due::After(delay);
        self
    }

    /// Delivers the job when the wall clock shows `time`; at once if that time has passed.
    ///
    /// If the clock jumps, or the machine was suspended, the delivery follows within ten seconds.
    pub fn due_at(mut self, time: SystemTime) -> Self {
        self.due = Due::At(time.into());
        self
    }

    /// Overrides the queue's durability for this job.
    ///
    /// An interval of less than 1 ms is an [`EnqueueError::InvalidOption`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Sets how many attempts at this job may fail before it is dead: 1 to [`MAX_ATTEMPTS`].
    ///
    /// Any other number is an [`EnqueueError::InvalidOption`].
    pub fn max_attempts(mut self, attempts: u8) -> Self {
        self.max_attempts = Some(Some(attempts));
        self
    }

    /// Retries this job for ever.
    ///
    /// It becomes dead only if a handler asks for that, or after too many
    /// [crashes](RetryPolicy::max_crashes).
    pub fn unlimited_attempts(mut self) -> Self {
        self.max_attempts = Some(None);
        self
    }

    /// Does not deliver the job any more once `delay` has passed from now.
    ///
    /// For work that is of no use when it comes late, such as a login code. The job ends when a
    /// consumer would get it: it counts in [`Stats::expired`](crate::Stats::expired), and with
    /// [`Builder::keep_expired`] it becomes a dead letter. Until then it takes its room. A handler
    /// that has the job at that time keeps it, and may ack it; if it fails, the job does not come
    /// back. Expiry is by the wall clock. A letter that is replayed does not expire.
    pub fn expires_after(mut self, delay: Duration) -> Self {
        self.expires = Some(Expires::After(delay));
        self
    }

    /// Does not deliver the job any more once the wall clock shows `time`.
    ///
    /// Otherwise like [`expires_after`](Self::expires_after).
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires = Some(Expires::At(time.into()));
        self
    }

    /// Lets a handler have this job for this long, instead of for the queue's
    /// [lease timeout](Builder::lease_timeout); at least 1 ms.
    ///
    /// A queue that is opened without lease timeouts has none for this job either. A shorter time
    /// is an [`EnqueueError::InvalidOption`].
    pub fn lease_timeout(mut self, timeout: Duration) -> Self {
        self.lease_timeout = Some(timeout);
        self
    }

    /// Waits up to `timeout` for room instead of returning an error at once.
    ///
    /// There is no room when the queue is at its `max_depth` or `max_bytes`, or the disk is full.
    /// The timeout does not limit the time that a flush takes.
    ///
    /// A handler that waits for room in its own queue holds up a worker and a job, which may be
    /// just what the others wait for. A handler should therefore wait briefly or not at all, and
    /// fail the attempt if there is no room ([`EnqueueError::is_full`]). A wait for ever in a
    /// handler of the same queue is refused with [`EnqueueError::WaitInHandler`] once the queue is
    /// full. Two cases are not detected: threads that take jobs with a
    /// [`Consumer`](crate::Consumer), and two queues whose handlers wait for each other.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = timeout;
        self
    }

    /// Waits for room for as long as it takes.
    ///
    /// Not allowed in a handler of the same queue, see [`wait`](Self::wait).
    pub fn wait_forever(self) -> Self {
        self.wait(Duration::MAX)
    }

    /// The name, or nothing for none, if it is valid and no other option is set.
    #[inline]
    pub(crate) fn name_alone(&self) -> Option<&'a [u8]> {
        let is_alone = self.headers.is_empty()
            && matches!(self.due, Due::AtOnce)
            && self.durability.is_none()
            && self.max_attempts.is_none()
            && self.expires.is_none()
            && self.lease_timeout.is_none()
            && self.wait.is_zero();
        match self.name {
            None if is_alone => Some(b""),
            Some(name) if is_alone && is_valid_name(name) => Some(name.as_bytes()),
            _ => None,
        }
    }

    /// How many bytes of a record these options take, those of the engine's own fields aside.
    pub(crate) fn len(&self) -> usize {
        self.name.map_or(0, str::len) + encoded_len(self.headers)
    }

    pub(crate) fn validate(&self) -> Result<(), EnqueueError> {
        let invalid = |option, why| Err(EnqueueError::InvalidOption { option, why });
        if self.name.is_some_and(|name| !is_valid_name(name)) {
            return invalid("name", "must have from 1 to 255 bytes");
        }
        if !self.headers.iter().all(|(key, _)| is_valid_key(key)) {
            return invalid("headers", "a key must have from 1 to 255 bytes");
        }
        if encoded_len(self.headers) > MAX_HEADER_BYTES {
            return invalid("headers", "must have at most 32,768 bytes together");
        }
        if self
            .lease_timeout
            .is_some_and(|timeout| timeout < MIN_LEASE_TIMEOUT)
        {
            return invalid("lease_timeout", "must be at least 1 ms");
        }
        if let Some(Some(attempts)) = self.max_attempts
            && !(1..=MAX_ATTEMPTS).contains(&attempts)
        {
            return invalid("max_attempts", "must be from 1 to 254");
        }
        if let Some(Durability::Interval(interval)) = self.durability
            && interval < MIN_FLUSH_INTERVAL
        {
            return invalid("durability", "an interval must be at least 1 ms");
        }
        Ok(())
    }
}

pub(crate) type ProgressFn = Arc<dyn Fn(RecoveryProgress) + Send + Sync>;

/// Options for opening or creating a queue, from [`Queue::builder`](crate::Queue::builder).
///
/// ```
/// use logmill::{Durability, Queue, RetryPolicy};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let (queue, report) = Queue::builder(dir.path())
///     .durability(Durability::Sync)
///     .retry(RetryPolicy::default().max_attempts(10))
///     .max_depth(100_000)
///     .max_bytes(4 << 30)
///     .lease_timeout(Duration::from_secs(300))
///     .wait_for_lock(Duration::from_secs(10))
///     .open()?;
/// assert!(report.is_clean());
/// # queue.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Builder {
    pub(crate) path: PathBuf,
    /// The tree that the queue is in, if it is in one; the path is then only for messages.
    pub(crate) in_tree: Option<InTree>,
    /// Whether stripes get their first segment with the first append, not at open.
    pub(crate) starts_idle: bool,
    pub(crate) stripes: Option<usize>,
    pub(crate) segment_size: Option<u64>,
    pub(crate) durability: Durability,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_depth: Option<u64>,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) lease_timeout: Option<Duration>,
    pub(crate) keep_expired: bool,
    pub(crate) lock_wait: Duration,
    pub(crate) file_mode: u32,
    pub(crate) progress: Option<ProgressFn>,
    pub(crate) observer: Observing,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("path", &self.path)
            .field("stripes", &self.stripes)
            .field("segment_size", &self.segment_size)
            .field("durability", &self.durability)
            .field("retry", &self.retry)
            .field("max_depth", &self.max_depth)
            .field("max_bytes", &self.max_bytes)
            .field("lease_timeout", &self.lease_timeout)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            in_tree: None,
            starts_idle: false,
            stripes: None,
            segment_size: None,
            durability: Durability::default(),
            retry: RetryPolicy::default(),
            max_depth: None,
            max_bytes: None,
            lease_timeout: None,
            keep_expired: false,
            lock_wait: Duration::ZERO,
            file_mode: 0o600,
            progress: None,
            observer: Observing::default(),
        }
    }

    /// Sets the number of stripes, the parallel logs of the queue: 1 to 64.
    ///
    /// Fixed when the queue is created. Default: one for each core, at most 8.
    ///
    /// Producers on different stripes append to separate memory, see [`Producer`](crate::Producer).
    /// With one stripe the whole queue is first in, first out, except for jobs that are delayed or
    /// come back. Each stripe keeps at least two to three segments on disk.
    pub fn stripes(mut self, stripes: usize) -> Self {
        self.stripes = Some(stripes);
        self
    }

    /// Sets the size of a segment file in bytes: 16 KiB to 1 GiB, a multiple of 4 KiB.
    ///
    /// Fixed when the queue is created. Default: 8 MiB.
    ///
    /// A payload can have about a quarter of this, at most about 16 MiB, see
    /// [`Queue::max_payload`](crate::Queue::max_payload). Space is freed in whole segments.
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = Some(bytes);
        self
    }

    /// Sets which failures a job survives once its enqueue has returned.
    ///
    /// Default: [`Durability::Process`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets what happens to jobs that fail. Default: see [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Limits how many jobs are enqueued and neither acked nor dead; at least 1.
    ///
    /// An enqueue beyond the limit returns [`EnqueueError::Full`]. Jobs found by the open count,
    /// however many they are. Default: unlimited.
    ///
    /// With a limit, every enqueue and every ack changes one shared counter.
    pub fn max_depth(mut self, jobs: u64) -> Self {
        self.max_depth = Some(jobs);
        self
    }

    /// Limits the bytes of the log's segment files, counted in whole segments.
    ///
    /// An enqueue that needs another segment beyond the limit returns [`EnqueueError::Full`]. The
    /// limit must allow at least three segments for each stripe. Default: unlimited.
    ///
    /// One of these segments is reserved for moving jobs that wait, so that a few delayed jobs in
    /// each segment do not fill the queue; enqueues get the others. Which jobs wait is known once
    /// consumers have claimed them. A queue that is opened without room for another segment refuses
    /// enqueues until consumers have made room. The exception is a stripe without any segment: it
    /// gets one at open, even beyond the limit.
    ///
    /// The dead letter log and the ack files (about 13% of a segment's size each) are not counted.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Fails an attempt whose handler has not settled the job after this long; at least 1 ms.
    ///
    /// The job is delivered again after its backoff, or is dead if it was the last attempt.
    /// Default: none, so a handler may run for ever.
    ///
    /// Both deliveries may then run at once; [`Job`](crate::Job) describes what a late ack does. A
    /// delay or a backoff is not a lease: however long it is, it never causes a second delivery.
    /// The timeout costs a lock and a table entry for each delivery.
    pub fn lease_timeout(mut self, timeout: Duration) -> Self {
        self.lease_timeout = Some(timeout);
        self
    }

    /// Makes dead letters of jobs that [expire](EnqueueOptions::expires_after).
    ///
    /// Default: they are only counted.
    pub fn keep_expired(mut self, keep: bool) -> Self {
        self.keep_expired = keep;
        self
    }

    /// Waits up to this long at open while another handle has the queue open.
    ///
    /// The other handle may be in another process, as in a deploy that starts the new process
    /// before the old one has ended, or in this one. Default: no wait; the open returns
    /// [`OpenError::Locked`] at once.
    pub fn wait_for_lock(mut self, timeout: Duration) -> Self {
        self.lock_wait = timeout;
        self
    }

    /// Sets the permissions of files that are created, less the umask. Default: `0o600`.
    ///
    /// Takes permission bits as `chmod` does; they must let the owner read and write. Directories
    /// get the right to search them along with each right to read. Existing files and directories
    /// keep their permissions. The default keeps payloads private to the owner.
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode;
        self
    }

    /// Calls `progress` after each segment that the open has processed, on the opening thread.
    pub fn on_progress(
        mut self,
        progress: impl Fn(RecoveryProgress) + Send + Sync + 'static,
    ) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Tells `observer` of each thing that happens to a job: completed, failed, dead, expired,
    /// given back.
    ///
    /// To observe with several, let one call the others. Default: none, which costs nothing.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observer = Observing::by(observer);
        self
    }

    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let invalid = |option, why: &str| {
            Err(OpenError::InvalidOption {
                option,
                why: why.to_owned(),
            })
        };
        if let Some(InTree { name, .. }) = &self.in_tree
            && !tree::is_valid_name(name)
        {
            return Err(OpenError::InvalidName { name: name.clone() });
        }
        if self.path.as_os_str().is_empty() {
            return invalid("path", "is empty; \".\" is the working directory");
        }
        if self
            .stripes
            .is_some_and(|stripes| !(1..=MAX_STRIPES).contains(&stripes))
        {
            return invalid("stripes", "must be from 1 to 64");
        }
        if let Some(size) = self.segment_size
            && !is_valid_segment_size(size)
        {
            return invalid(
                "segment_size",
                "must be a multiple of 4096 bytes from 16 KiB to 1 GiB",
            );
        }
        if let Some(limit) = self.retry.attempts_limit()
            && !(1..=MAX_ATTEMPTS).contains(&limit)
        {
            return invalid("retry", "max_attempts must be from 1 to 254");
        }
        if !(1..=MAX_CRASHES).contains(&self.retry.crashes_limit()) {
            return invalid("retry", "max_crashes must be from 1 to 15");
        }
        if let Durability::Interval(interval) = self.durability
            && interval < MIN_FLUSH_INTERVAL
        {
            return invalid("durability", "an interval must be at least 1 ms");
        }
        if self.file_mode & 0o600 != 0o600 || self.file_mode & !0o777 != 0 {
            return invalid("file_mode", "must be permission bits, 0o600 among them");
        }
        if self.max_depth == Some(0) {
            return invalid("max_depth", "must be at least 1");
        }
        if self
            .lease_timeout
            .is_some_and(|timeout| timeout < MIN_LEASE_TIMEOUT)
        {
            return invalid("lease_timeout", "must be at least 1 ms");
        }
        Ok(())
    }
}

pub(crate) fn is_valid_segment_size(size: u64) -> bool {
    (MIN_SEGMENT_SIZE..=MAX_SEGMENT_SIZE).contains(&size)
        && size.is_multiple_of(SEGMENT_SIZE_STEP)
        && size > FILE_HEADER_BYTES as u64
}
