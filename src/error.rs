//! The error types, one for each concern.
//!
//! The text of an error says what was tried, on which path, and what to do next. It is complete, so
//! no error has a [`source`](std::error::Error::source), which would be printed a second time.

use std::path::PathBuf;
use std::sync::Arc;

use crate::StorageError;
use crate::id::{JobId, LetterId};

/// Why a queue could not be opened, or [viewed](crate::View).
///
/// The directory is unchanged, except after [`Storage`](Self::Storage), [`Flush`](Self::Flush) or
/// [`Thread`](Self::Thread). After these, an existing queue is partly or wholly recovered, and the
/// next open continues from there; if there was no queue before, there is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another handle, in this process or another one, has the queue open.
    #[error("{} is in use{}, and one process at a time can open a queue: stop that process, or wait with Builder::wait_for_lock", path.display(), match pid { Some(pid) => format!(" by process {pid}"), None => String::new() })]
    Locked {
        /// The queue directory.
        path: PathBuf,
        /// The process that holds it, if it could be determined.
        pid: Option<u32>,
    },
    /// The MANIFEST file is not a manifest, or is damaged.
    #[error("{} cannot be used: {why}; restore it from a backup, or open another directory", path.display())]
    ManifestCorrupt {
        /// The MANIFEST file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The queue was written with another version of the format.
    #[error("{} has format version {found}, this library reads version {supported}", path.display())]
    ManifestVersion {
        /// The MANIFEST file.
        path: PathBuf,
        /// The version that it has.
        found: u32,
        /// The version that this library reads and writes.
        supported: u32,
    },
    /// The directory has files but no MANIFEST.
    ///
    /// Either it is not a queue, or its MANIFEST was lost.
    #[error(
        "{} has no MANIFEST, but {found:?} in it: for a new queue, give a directory that is empty or not there; for one that has lost its MANIFEST, restore that file from a backup",
        path.display()
    )]
    ManifestMissing {
        /// The queue directory.
        path: PathBuf,
        /// The name of one entry in it.
        found: String,
    },
    /// There is no queue to [view](crate::View::open): nothing is there, or an empty directory.
    #[error("{} has no queue in it: give the directory of a queue, which Builder::open creates", path.display())]
    NoQueue {
        /// The path that was given.
        path: PathBuf,
    },
    /// The path, or a part of it, is not a directory.
    #[error("{} is not a directory, and a queue is one: give another path", path.display())]
    NotADirectory {
        /// The path that is not a directory.
        path: PathBuf,
    },
    /// A queue in a directory of queues cannot have this name.
    #[error(
        "{name:?} cannot be the name of a queue: give 1 to 100 bytes of letters, digits, '-', '_' and '.', not starting with '.'"
    )]
    InvalidName {
        /// The name that was given.
        name: String,
    },
    /// A directory that is to hold queues has other files in it.
    #[error(
        "{} has no directory `queues`, but {found:?} in it: give a directory that is empty or not there, or one that Queues::open has made",
        path.display()
    )]
    NotQueues {
        /// The directory.
        path: PathBuf,
        /// The name of one entry in it.
        found: String,
    },
    /// The queue was created in a directory of queues and is opened alone, or the other way round.
    #[error("{} {why}", path.display())]
    Misplaced {
        /// The queue directory.
        path: PathBuf,
        /// What it is, and what to do.
        why: &'static str,
    },
    /// An option is out of its range.
    #[error("option {option}: {why}")]
    InvalidOption {
        /// The builder's method.
        option: &'static str,
        /// What is wrong with the value.
        why: String,
    },
    /// An option that is fixed when a queue is created was given with another value.
    #[error(
        "option {option}: the queue was created with {on_disk}, not {asked}; leave the option out to use what the queue has"
    )]
    OptionMismatch {
        /// The builder's method.
        option: &'static str,
        /// The value of the queue.
        on_disk: u64,
        /// The value that was given.
        asked: u64,
    },
    /// A file or directory operation failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What was recovered could not be flushed.
    #[error(transparent)]
    Flush(FlushError),
    /// A background thread could not be started.
    #[error("could not start a background thread: {0}")]
    Thread(std::io::Error),
}

/// Why a transaction was not committed.
///
/// Nothing of it has happened, except after [`NotDurable`](Self::NotDurable). If it was to complete
/// a job, that attempt at the job has failed, so the job comes back as after any failure; after
/// [`LeaseLost`](Self::LeaseLost) and `NotDurable` see there.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// This delivery of the job is over: its lease has timed out, so the job has gone on, or an
    /// earlier handler, whose own lease had timed out, has acked the job.
    #[error(
        "this delivery of the job is over, so the transaction is not committed: its lease has \
             timed out, or an earlier handler has acked the job"
    )]
    LeaseLost,
    /// A key does not have the version that the transaction expects, or is not new.
    #[error(
        "the key {:?} has changed, or is there already",
        String::from_utf8_lossy(key)
    )]
    Conflict {
        /// The key.
        key: Vec<u8>,
    },
    /// A key is empty or too long.
    #[error("a key of {len} bytes: keys have 1 to 1,024")]
    InvalidKey {
        /// Bytes of the key.
        len: usize,
    },
    /// The transaction can never be written as a whole. Split it.
    #[error(
        "a transaction of {size} bytes is larger than the limit of {max} bytes; split it, or raise the limit by a larger state_segment_size"
    )]
    TooLarge {
        /// Bytes of its records.
        size: u64,
        /// The most that they may have: a quarter of a segment of the state log.
        max: u64,
    },
    /// A queue, or the queue of the job, is not one of the directory of queues that the transaction
    /// is for.
    #[error("the queue is not one of the directory of queues that the transaction is for")]
    OtherTree,
    /// A queue does not take one of the jobs.
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    /// The disk, a quota, the file size limit or the process's mappings are exhausted.
    #[error("no space for the transaction: {0}")]
    StorageFull(Arc<StorageError>),
    /// A file or directory operation failed.
    #[error(transparent)]
    Storage(Arc<StorageError>),
    /// The directory of queues is being closed.
    #[error("the directory of queues is closed")]
    Closed,
    /// An earlier flush of the state log failed, so nothing more can be guaranteed to reach the disk.
    ///
    /// Close and reopen the directory of queues; the open checks what did reach it.
    #[error(
        "an earlier flush has failed, so transactions are refused until the directory of queues is reopened: {0}"
    )]
    Poisoned(Arc<StorageError>),
    /// The transaction is written, but flushing it failed.
    ///
    /// Keys have changed. The job that it completes is not delivered again by this process, and the
    /// new jobs are not delivered. The next open finds all of it done, or nothing.
    #[error("the transaction is written, but may not be durable: {0}")]
    NotDurable(Arc<StorageError>),
}

/// Why a job was not enqueued.
///
/// The job will not be delivered, except after [`NotDurable`](Self::NotDurable).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The queue is at its `max_depth` or `max_bytes`. Consumers make room.
    #[error("the queue is full: it has reached its {limit} of {max}")]
    Full {
        /// The option that set the limit: `max_depth` or `max_bytes`.
        limit: &'static str,
        /// The value of the limit: jobs, or bytes of segment files.
        max: u64,
    },
    /// A handler asked to wait for ever for room in its own queue.
    ///
    /// The wait holds up the handler's own job and worker, so it might never end.
    #[error("a handler must not wait for ever for room in its own queue: {full}")]
    WaitInHandler {
        /// Why there is no room.
        full: Box<EnqueueError>,
    },
    /// The disk, a quota, the file size limit or the process's mappings are exhausted.
    ///
    /// Enqueueing works again without a reopen once there is room: as consumers complete segments,
    /// or as other files are deleted.
    #[error("no space for another segment: {0}")]
    StorageFull(Arc<StorageError>),
    /// The payload does not fit a record of this queue, together with the job's name and headers.
    #[error(
        "a payload of {len} bytes, name and headers included, is larger than this queue's limit of {max} bytes; a larger segment_size raises it"
    )]
    PayloadTooLarge {
        /// Bytes of the payload, the name, and the headers (4 bytes more for each).
        len: usize,
        /// Most bytes that these can have together, see
        /// [`Queue::max_payload`](crate::Queue::max_payload).
        max: usize,
    },
    /// The batch can never be enqueued as a whole. Enqueue its jobs in several batches.
    #[error(
        "a batch of {size} {} is larger than this queue's limit of {max}; enqueue it in parts{}",
        if *limit == "max_depth" { "jobs" } else { "bytes of records" },
        if *limit == "max_depth" { "" } else { ", or raise the limit by a larger segment_size" }
    )]
    BatchTooLarge {
        /// The option that sets the limit: `max_depth` or `segment_size`.
        limit: &'static str,
        /// The size of the batch: jobs, or bytes of records (at least).
        size: u64,
        /// The most that it may be: jobs, or bytes of records, see
        /// [`Queue::enqueue_batch`](crate::Queue::enqueue_batch).
        max: u64,
    },
    /// An earlier flush failed, so nothing more can be guaranteed to reach the disk.
    ///
    /// Close and reopen the queue; the open checks what did reach it.
    #[error(
        "an earlier flush has failed, so durable enqueues are refused until the queue is reopened: {0}"
    )]
    Poisoned(Arc<StorageError>),
    /// The job was enqueued, or the batch of jobs, but flushing it failed.
    ///
    /// This process will deliver them, but they may not survive a power cut. Later durable enqueues
    /// return [`Poisoned`](Self::Poisoned).
    #[error("{} enqueued, but could not be flushed: {error}", match &jobs[..] { [job] => format!("job {job} is"), jobs => format!("{} jobs are", jobs.len()) })]
    NotDurable {
        /// The job, or the jobs of the batch.
        jobs: Vec<JobId>,
        /// What failed.
        error: Arc<StorageError>,
    },
    /// An option is out of its range.
    #[error("option {option}: {why}")]
    InvalidOption {
        /// The method of [`EnqueueOptions`](crate::EnqueueOptions).
        option: &'static str,
        /// What is wrong with the value.
        why: &'static str,
    },
    /// A file or directory operation failed.
    #[error(transparent)]
    Storage(Arc<StorageError>),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
}

impl EnqueueError {
    /// Whether trying again later can help, because the queue or the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Full { .. } | Self::StorageFull(_) | Self::WaitInHandler { .. }
        )
    }
}

/// Why the queue could not be flushed completely.
///
/// What was enqueued, acked or dead may not survive a power cut. It still survives the death of the
/// process.
#[derive(Clone, Debug, thiserror::Error)]
#[error("could not flush the queue: {0}")]
pub struct FlushError(pub(crate) Arc<StorageError>);

impl FlushError {
    /// The operation that failed.
    pub fn storage_error(&self) -> &StorageError {
        &self.0
    }
}

impl From<Arc<StorageError>> for FlushError {
    fn from(error: Arc<StorageError>) -> Self {
        Self(error)
    }
}

/// What became of a job that was cancelled, from [`Queue::cancel`](crate::Queue::cancel).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancelled {
    /// The job waited. It is not delivered any more.
    Waiting,
    /// A handler has the job, or is just being given it.
    ///
    /// It is told by [`Job::is_cancelled`](crate::Job::is_cancelled). When it ends, the job ends.
    Running,
    /// There is no such job: it is done, dead or cancelled, or never existed.
    ///
    /// A dead letter stays; [`DeadLetters::purge`](crate::DeadLetters::purge) deletes it.
    Gone,
}

/// Why a job could not be cancelled.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// An earlier flush failed, so a cancellation could not be made durable.
    ///
    /// No job is cancelled until the queue is reopened.
    #[error("an earlier flush has failed, so no job is cancelled until the queue is reopened: {0}")]
    Poisoned(Arc<StorageError>),
    /// The job is cancelled in this process, but that could not be flushed.
    ///
    /// It is not delivered by this process, nor after its death. After a power cut it may be.
    #[error("the job is cancelled, but that could not be flushed: {error}")]
    NotDurable {
        /// What became of the job.
        cancelled: Cancelled,
        /// What failed.
        error: Arc<StorageError>,
    },
    /// The job could not be looked for, or there is no space on the disk to note its cancellation.
    ///
    /// It is not cancelled.
    #[error("the job is not cancelled: {0}")]
    Storage(Arc<StorageError>),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
}

/// Why dead letters could not be replayed or purged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeadLetterError {
    /// There is no such letter: it was replayed or purged, or never existed.
    ///
    /// Also returned if its replay was [`NotDurable`](Self::NotDurable).
    #[error("there is no dead letter {letter}")]
    NotFound {
        /// The letter that was asked for.
        letter: LetterId,
    },
    /// The new job could not be enqueued; the letter is still there.
    #[error("the letter was not replayed: {0}")]
    Enqueue(EnqueueError),
    /// The new jobs are in the queue, but could not be flushed.
    ///
    /// This process will deliver them. Their letters are no longer shown, but not deleted either:
    /// after the death of the process or a power cut, the next open finds exactly one of job and
    /// letter for each. Close the queue, check the disk, and restart the machine.
    #[error("{} letters were replayed, but their jobs could not be flushed: {error}", replayed.len())]
    NotDurable {
        /// The new jobs.
        replayed: Vec<JobId>,
        /// What failed.
        error: Arc<StorageError>,
    },
    /// An earlier flush failed, so changes to letters could not be made durable.
    ///
    /// No letters are replayed or purged until the queue is reopened.
    #[error(
        "an earlier flush has failed, so letters are neither replayed nor purged until the queue is reopened: {0}"
    )]
    Poisoned(Arc<StorageError>),
    /// A file operation failed.
    ///
    /// Letters that were to be replayed are still there. Letters that were to be purged may be
    /// deleted; if it was a flush that failed, they are deleted, but a power cut may bring them
    /// back.
    #[error(transparent)]
    Storage(#[from] Arc<StorageError>),
    /// Some letters were replayed before an error.
    #[error("{} letters were replayed, then: {error}", replayed.len())]
    Partial {
        /// The new jobs.
        replayed: Vec<JobId>,
        /// The error that stopped the replay.
        error: Box<DeadLetterError>,
    },
}

impl From<EnqueueError> for DeadLetterError {
    fn from(error: EnqueueError) -> Self {
        Self::Enqueue(error)
    }
}
