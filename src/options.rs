//! Options of a queue, given when it is opened; those of a job are in `options/enqueue.rs`.

mod enqueue;
mod wait_strategy;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::enqueue::Due;
pub use self::enqueue::EnqueueOptions;
#[cfg(all(test, not(loom)))]
pub(crate) use self::enqueue::Expires;
pub use self::wait_strategy::WaitStrategy;
use crate::log::header::FILE_HEADER_BYTES;
use crate::log::recovery::RecoveryProgress;
use crate::observer::{Observer, Observing};
use crate::retry::{MAX_ATTEMPTS, MAX_CRASHES};
use crate::time::Clock;
use crate::tree::{self, InTree};
use crate::{OpenError, RetryPolicy};

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
    /// return [`EnqueueError::Poisoned`](crate::EnqueueError::Poisoned); jobs enqueued since the
    /// previous flush may then not be durable.
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
    pub(crate) wait_strategy: WaitStrategy,
    pub(crate) keep_expired: bool,
    pub(crate) lock_wait: Duration,
    pub(crate) file_mode: u32,
    pub(crate) progress: Option<ProgressFn>,
    pub(crate) observer: Observing,
    #[cfg(feature = "manual-clock")]
    pub(crate) clock: Option<crate::ManualClock>,
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
            wait_strategy: WaitStrategy::Sleep,
            keep_expired: false,
            lock_wait: Duration::ZERO,
            file_mode: 0o600,
            progress: None,
            observer: Observing::default(),
            #[cfg(feature = "manual-clock")]
            clock: None,
        }
    }

    /// Sets the clock of the queue, for tests. Default: the system's.
    #[cfg(feature = "manual-clock")]
    pub fn clock(mut self, clock: &crate::ManualClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    /// The clock, started.
    pub(crate) fn started_clock(&self) -> Clock {
        #[cfg(feature = "manual-clock")]
        return Clock::of(self.clock.clone());
        #[cfg(not(feature = "manual-clock"))]
        Clock::start()
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
    /// An enqueue beyond the limit returns [`EnqueueError::Full`](crate::EnqueueError::Full). Jobs
    /// found by the open count, however many they are. Default: unlimited.
    ///
    /// With a limit, every enqueue and every ack changes one shared counter.
    pub fn max_depth(mut self, jobs: u64) -> Self {
        self.max_depth = Some(jobs);
        self
    }

    /// Limits the bytes of the log's segment files, counted in whole segments.
    ///
    /// An enqueue that needs another segment beyond the limit returns
    /// [`EnqueueError::Full`](crate::EnqueueError::Full). The limit must allow at least three
    /// segments for each stripe. Default: unlimited.
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

    /// Sets how an idle consumer waits for jobs. Default: [`WaitStrategy::Sleep`].
    pub fn wait_strategy(mut self, strategy: WaitStrategy) -> Self {
        self.wait_strategy = strategy;
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
        if !self.wait_strategy.is_valid() {
            return invalid("wait_strategy", "a nap must take from 10 us to 10 ms");
        }
        Ok(())
    }
}

pub(crate) fn is_valid_segment_size(size: u64) -> bool {
    (MIN_SEGMENT_SIZE..=MAX_SEGMENT_SIZE).contains(&size)
        && size.is_multiple_of(SEGMENT_SIZE_STEP)
        && size > FILE_HEADER_BYTES as u64
}
