//! What can be set: for a queue when it is opened, for a job when it is enqueued.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::log::header::FILE_HEADER_BYTES;
use crate::log::recovery::RecoveryProgress;
use crate::retry::{MAX_ATTEMPTS, MAX_CRASHES};
use crate::{EnqueueError, OpenError, RetryPolicy, Timestamp};

/// Smallest segment: a page each for the header's and for the records' sake, and room for a few.
const MIN_SEGMENT_SIZE: u64 = 16 * 1024;
/// Largest segment: keeps offsets, in 8-byte units, far from the end of 32 bits.
const MAX_SEGMENT_SIZE: u64 = 1024 * 1024 * 1024;
/// Three of these fit a last-level cache of common size, and being used again they stay in it.
pub(crate) const DEFAULT_SEGMENT_SIZE: u64 = 8 * 1024 * 1024;
/// Segments are whole pages.
const SEGMENT_SIZE_STEP: u64 = 4096;
/// The stripe is 8 bits of a sequence, of which the last value is the dead letter log's.
pub(crate) const MAX_STRIPES: usize = 64;
/// More stripes by default would cost disk space (two segments each) for no speed.
pub(crate) const MAX_DEFAULT_STRIPES: usize = 8;
/// A flush takes about this long, so that a shorter interval would be nothing but flushing.
const MIN_FLUSH_INTERVAL: Duration = Duration::from_millis(1);

/// What a returned enqueue survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process, in whatever way: panic, abort, `kill -9`. The record is in the
    /// page cache, and the kernel writes it back when it sees fit: a power cut or a crash of the
    /// kernel may lose it.
    #[default]
    Process,
    /// As `Process`, and a power cut loses at most what was enqueued in the last interval and in
    /// the time that one flush takes. At least 1 ms.
    ///
    /// The flush covers acks, too. If it fails, an event tells of it, and later durable enqueues get
    /// [`EnqueueError::Poisoned`]; what was enqueued since the flush before may then not be durable.
    Interval(Duration),
    /// A power cut: the call returns after the record has been flushed to stable storage.
    /// Concurrent callers share flushes.
    ///
    /// This rests on two properties of the disk: it keeps what a flush covered, and does not tear bytes that
    /// are written again as they were ("powersafe overwrite"), since a record may share a sector with earlier
    /// ones.
    Sync,
}

/// Options of one job. The default is the queue's.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct EnqueueOptions {
    pub(crate) due: Due,
    pub(crate) durability: Option<Durability>,
    pub(crate) max_attempts: Option<Option<u8>>,
    pub(crate) wait: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Due {
    #[default]
    AtOnce,
    After(Duration),
    At(Timestamp),
}

impl EnqueueOptions {
    /// The queue's defaults: due at once, its durability, its retry policy's attempts; and no
    /// waiting for room.
    pub fn new() -> Self {
        Self::default()
    }

    /// Delivers the job when `delay` has passed from now.
    ///
    /// Once a consumer has come to the job in the log, the rest of the delay runs on the monotonic clock. Until
    /// then it is the wall clock that counts: set forward, it shortens the delay; set back, it never makes the
    /// job wait longer than `delay` from when a consumer comes to it.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.due = Due::After(delay);
        self
    }

    /// Delivers the job when the wall clock shows `time`; at once if that has passed. If the clock jumps, or
    /// the machine was suspended, the job follows within ten seconds.
    pub fn due_at(mut self, time: SystemTime) -> Self {
        self.due = Due::At(time.into());
        self
    }

    /// What the job survives once the call has returned, instead of the queue's durability. An interval of less
    /// than 1 ms is an [`EnqueueError::InvalidOption`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// How many attempts at this job may fail before it is dead, from 1 to [`MAX_ATTEMPTS`]; anything else is
    /// an [`EnqueueError::InvalidOption`].
    pub fn max_attempts(mut self, attempts: u8) -> Self {
        self.max_attempts = Some(Some(attempts));
        self
    }

    /// Retries this job for ever: only a handler that says so makes it dead, or too many
    /// [crashes](RetryPolicy::max_crashes).
    pub fn unlimited_attempts(mut self) -> Self {
        self.max_attempts = Some(None);
        self
    }

    /// Waits up to `timeout` for room when the queue is at its `max_depth` or `max_bytes`, or the
    /// disk is full, instead of returning that error at once. A batch that is enqueued in parts waits up to
    /// that long for each of them. Durability comes on top: this is no limit for a flush.
    ///
    /// A handler that waits for room in its own queue holds up a worker and a job, which may be just what
    /// the others wait for. So it should wait briefly if at all, and fail the attempt if there is
    /// no room ([`EnqueueError::is_full`]). To wait for ever is refused there with
    /// [`EnqueueError::WaitInHandler`], once the queue is full. Not noticed are threads that take jobs with a
    /// [`Consumer`](crate::Consumer), and two queues whose handlers wait for each other.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = timeout;
        self
    }

    /// Waits for room for as long as it takes; not in a handler of the same queue, see
    /// [`wait`](Self::wait).
    pub fn wait_forever(self) -> Self {
        self.wait(Duration::MAX)
    }

    pub(crate) fn validate(&self) -> Result<(), EnqueueError> {
        let invalid = |option, why| Err(EnqueueError::InvalidOption { option, why });
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

/// Options of a queue; from [`Queue::builder`](crate::Queue::builder).
#[derive(Clone)]
#[must_use]
pub struct Builder {
    pub(crate) path: PathBuf,
    pub(crate) stripes: Option<usize>,
    pub(crate) segment_size: Option<u64>,
    pub(crate) durability: Durability,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_depth: Option<u64>,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) lease_timeout: Option<Duration>,
    pub(crate) lock_wait: Duration,
    pub(crate) file_mode: u32,
    pub(crate) progress: Option<ProgressFn>,
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
            stripes: None,
            segment_size: None,
            durability: Durability::default(),
            retry: RetryPolicy::default(),
            max_depth: None,
            max_bytes: None,
            lease_timeout: None,
            lock_wait: Duration::ZERO,
            file_mode: 0o600,
            progress: None,
        }
    }

    /// How many logs the queue has side by side, 1 to 64; fixed when the queue is created.
    /// Default: one a core, at most 8.
    ///
    /// Producers on different stripes append to memory of their own, see [`Producer`](crate::Producer). With
    /// one stripe the whole queue is first in, first out, but for jobs that are delayed or come back. Each
    /// stripe keeps two to three segments on disk at the least.
    pub fn stripes(mut self, stripes: usize) -> Self {
        self.stripes = Some(stripes);
        self
    }

    /// Bytes of a segment file: 16 KiB to 1 GiB, a multiple of 4 KiB; fixed when the queue is
    /// created. Default: 8 MiB.
    ///
    /// A payload can have about a quarter of this, at most about 16 MiB, see
    /// [`Queue::max_payload`](crate::Queue::max_payload). Space is freed by whole segments.
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = Some(bytes);
        self
    }

    /// What a job survives once its enqueue has returned. Default: [`Durability::Process`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What happens to jobs that fail. Default: see [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Most jobs that are enqueued and neither acked nor dead, at least 1; an enqueue beyond is
    /// [`EnqueueError::Full`]. Jobs that the open finds count, however many they are. Default: unlimited.
    ///
    /// Costs every enqueue and every ack a change of one shared counter.
    pub fn max_depth(mut self, jobs: u64) -> Self {
        self.max_depth = Some(jobs);
        self
    }

    /// Most bytes of segment files of the log, counted by whole segments; an enqueue that needs
    /// one more is [`EnqueueError::Full`]. At least three segments a stripe. Default: unlimited.
    ///
    /// One segment of these is kept for moving jobs that wait, so that a few delayed jobs in each segment
    /// do not fill the queue; enqueues get the others. Which jobs wait is known once consumers have claimed
    /// them. A queue that is opened without room for another segment refuses enqueues until consumers have made
    /// some. Only a stripe without any segment gets one at open all the same, though that may be beyond the limit.
    ///
    /// The dead letter log, and the ack files (about 13% of a segment's size each), are not counted.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Has an attempt fail whose handler has not said what became of the job after this long: the job is
    /// delivered again after its backoff, or dead if it was the last attempt. At least 1 ms. Default: none, a
    /// handler may take for ever.
    ///
    /// Both deliveries may then run at once; for what becomes of a late ack see [`Job`](crate::Job). A delay or
    /// a backoff is no lease: however long it is, it never causes a second delivery. Costs a lock and a table
    /// entry for each delivery.
    pub fn lease_timeout(mut self, timeout: Duration) -> Self {
        self.lease_timeout = Some(timeout);
        self
    }

    /// Has the open wait up to this long while another process, or another handle in this one, has the queue
    /// open, as in a deploy that starts the new process before the old one has ended. Default: not at all,
    /// [`OpenError::Locked`] at once.
    pub fn wait_for_lock(mut self, timeout: Duration) -> Self {
        self.lock_wait = timeout;
        self
    }

    /// The permissions of files that are created, less the umask: permission bits as `chmod` takes
    /// them, with reading and writing for the owner among them. Directories get the right to search
    /// them beside each right to read. What is there already is left as it is. Default: `0o600`, as
    /// payloads are nobody else's.
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode;
        self
    }

    /// Calls `progress` after each segment that opening the queue has looked at, on the thread that opens it.
    pub fn on_progress(
        mut self,
        progress: impl Fn(RecoveryProgress) + Send + Sync + 'static,
    ) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let invalid = |option, why: &str| {
            Err(OpenError::InvalidOption {
                option,
                why: why.to_owned(),
            })
        };
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
            .is_some_and(|timeout| timeout < Duration::from_millis(1))
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
