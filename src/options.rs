//! What can be set: for a queue when it is opened, for a job when it is enqueued.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::log::header::HEADER_BYTES;
use crate::log::manifest::Manifest;
use crate::log::recovery::RecoveryProgress;
use crate::retry::{MAX_ATTEMPTS, MAX_CRASHES};
use crate::{EnqueueError, OpenError, Queue, RecoveryReport, RetryPolicy, Timestamp};

/// Smallest segment: a page each for the header's and for the records' sake, and room for a few.
const MIN_SEGMENT_SIZE: u64 = 16 * 1024;
/// Largest segment: keeps offsets, in 8-byte units, far from the end of 32 bits.
const MAX_SEGMENT_SIZE: u64 = 1024 * 1024 * 1024;
/// Three of these fit a last-level cache of common size, and being used again they stay in it.
const DEFAULT_SEGMENT_SIZE: u64 = 8 * 1024 * 1024;
/// Segments are whole pages.
const SEGMENT_SIZE_STEP: u64 = 4096;
/// The stripe is 8 bits of a sequence, of which the last value is the dead letter log's.
const MAX_STRIPES: usize = 64;
/// More stripes by default would cost disk space (two segments each) for no speed.
const MAX_DEFAULT_STRIPES: usize = 8;
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
    Interval(Duration),
    /// A power cut: the call returns after the record has been flushed to stable storage.
    /// Concurrent callers share one flush.
    ///
    /// As far as the disk keeps what was flushed, and does not tear bytes that are written again as they
    /// were ("powersafe overwrite"): records share sectors with earlier ones.
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

    /// Delivers the job no earlier than `delay` from now.
    ///
    /// Once a consumer has come to the job, the delay runs on the monotonic clock. It is found in the
    /// log by the wall clock: one that was set forward meanwhile shortens the delay; one that was set
    /// back never makes it longer than `delay`, counted from when a consumer comes to it.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.due = Due::After(delay);
        self
    }

    /// Delivers the job when the wall clock shows `time`; at once if that has passed. Follows the
    /// clock: where it jumps, or the machine was suspended, within ten seconds.
    pub fn due_at(mut self, time: SystemTime) -> Self {
        self.due = Due::At(time.into());
        self
    }

    /// What the call survives once it has returned.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// How many attempts at this job may fail before it is dead, from 1 to [`MAX_ATTEMPTS`].
    pub fn max_attempts(mut self, attempts: u8) -> Self {
        self.max_attempts = Some(Some(attempts));
        self
    }

    /// Retries this job for ever.
    pub fn unlimited_attempts(mut self) -> Self {
        self.max_attempts = Some(None);
        self
    }

    /// Waits up to `timeout` for room when the queue is at its `max_depth` or `max_bytes`, or the
    /// disk is full, instead of returning that error at once.
    ///
    /// A handler that waits for room in its own queue holds up a worker and a job, and it may be them
    /// that the others wait for. So it should wait briefly if at all, and fail the attempt if there is
    /// no room ([`EnqueueError::is_full`]). To wait for ever is refused there with
    /// [`EnqueueError::WaitInHandler`], once the queue is full. Threads that take jobs with a
    /// [`Consumer`](crate::Consumer) are not known to be handlers, and neither are two queues whose
    /// handlers wait for each other.
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

/// Options of a queue; from [`Queue::builder`].
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
    /// Two producers on two stripes do not slow each other down. With one stripe the whole queue
    /// is first in, first out. Each stripe keeps two to three segments on disk at the least.
    pub fn stripes(mut self, stripes: usize) -> Self {
        self.stripes = Some(stripes);
        self
    }

    /// Bytes of a segment file: 16 KiB to 1 GiB, a multiple of 4 KiB; fixed when the queue is
    /// created. Default: 8 MiB.
    ///
    /// A payload can have about a quarter of this. Space is freed by whole segments.
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = Some(bytes);
        self
    }

    /// What an enqueue survives once it has returned. Default: [`Durability::Process`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What happens to jobs that fail. Default: see [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Most jobs that are enqueued and neither acked nor dead; an enqueue beyond is
    /// [`EnqueueError::Full`]. Default: unlimited.
    ///
    /// Costs every enqueue and every ack an atomic add on one shared counter.
    pub fn max_depth(mut self, jobs: u64) -> Self {
        self.max_depth = Some(jobs);
        self
    }

    /// Most bytes of segment files of the log, counted by whole segments; an enqueue that needs
    /// one more is [`EnqueueError::Full`]. At least three segments a stripe. Default: unlimited.
    ///
    /// One segment of these is kept for moving jobs that wait, so that a few delayed jobs in each segment
    /// do not fill the queue; enqueues get the others. Which jobs wait is known once consumers have claimed
    /// them. A queue that is opened without room for another segment refuses enqueues until then.
    ///
    /// The dead letter log, and the ack files (about 13% of a segment's size each), are not counted.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Delivers a job again whose handler has not said what became of it after this long; the
    /// attempt counts as failed. At least 1 ms. Default: none, a handler may take for ever.
    ///
    /// Both deliveries may then run at once. A delay or a backoff is no lease: however long it
    /// is, it never causes a second delivery. Costs a lock and a table entry for each delivery.
    pub fn lease_timeout(mut self, timeout: Duration) -> Self {
        self.lease_timeout = Some(timeout);
        self
    }

    /// Waits up to this long for another process, or handle, that has the queue open, as it does for a
    /// moment in a deploy that starts the new process before the old one has ended. Default: not at all,
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

    /// Calls `progress` after each segment that opening the queue has looked at.
    pub fn on_progress(
        mut self,
        progress: impl Fn(RecoveryProgress) + Send + Sync + 'static,
    ) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Opens the queue, creating it if the directory is empty or does not exist, and recovers
    /// what an earlier process left.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage to segments or ack files is no error: it is in the report.
    pub fn open(self) -> Result<(Queue, RecoveryReport), OpenError> {
        Queue::open(&self)
    }

    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let invalid = |option, why: &str| {
            Err(OpenError::InvalidOption {
                option,
                why: why.to_owned(),
            })
        };
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

    /// The manifest of a new queue with these options.
    pub(crate) fn new_manifest(&self) -> Manifest {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Manifest {
            stripes: self.stripes.unwrap_or(cores.min(MAX_DEFAULT_STRIPES)) as u32,
            segment_size: self.segment_size.unwrap_or(DEFAULT_SEGMENT_SIZE),
            created_at: Timestamp::now(),
        }
    }

    /// Checks the options against the manifest that is in force.
    pub(crate) fn check_against(&self, manifest: &Manifest) -> Result<(), OpenError> {
        let fixed = [
            (
                "stripes",
                u64::from(manifest.stripes),
                self.stripes.map(|stripes| stripes as u64),
            ),
            ("segment_size", manifest.segment_size, self.segment_size),
        ];
        for (option, on_disk, asked) in fixed {
            if let Some(asked) = asked
                && asked != on_disk
            {
                return Err(OpenError::OptionMismatch {
                    option,
                    on_disk,
                    asked,
                });
            }
        }
        let least = 3 * u64::from(manifest.stripes) * manifest.segment_size;
        if self.max_bytes.is_some_and(|max| max < least) {
            return Err(OpenError::InvalidOption {
                option: "max_bytes",
                why: format!("must be at least three segments a stripe, {least} bytes"),
            });
        }
        Ok(())
    }
}

/// Whether a manifest's values are within what this library can have written.
pub(crate) fn is_valid(manifest: &Manifest) -> bool {
    (1..=MAX_STRIPES).contains(&(manifest.stripes as usize))
        && is_valid_segment_size(manifest.segment_size)
}

fn is_valid_segment_size(size: u64) -> bool {
    (MIN_SEGMENT_SIZE..=MAX_SEGMENT_SIZE).contains(&size)
        && size.is_multiple_of(SEGMENT_SIZE_STEP)
        && size > HEADER_BYTES as u64
}
