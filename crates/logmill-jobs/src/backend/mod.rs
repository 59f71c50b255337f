//! The seam between jobs and what stores them.
//!
//! Everything above talks to a [`Backend`]: kinds, handlers, retries, limits, unique jobs, results.
//! A backend stores jobs as bytes with a kind and headers, gives each to one consumer at a time, and
//! keeps small values by key, which change together with jobs. The engine that runs in this process
//! is the default one.

#[cfg(feature = "embedded")]
pub(crate) mod embedded;

use std::time::{Duration, Instant, SystemTime};

use crate::Priority;

/// Stores jobs and keys.
pub trait Backend: Send + Sync + 'static {
    /// What this backend can do.
    fn capabilities(&self) -> Capabilities;

    /// Has `tell` called with each job that ends otherwise than by its completion. Called once, before any queue is used.
    fn on_end(&self, tell: OnEnd);

    /// The queue of this name, which is created if it does not exist.
    ///
    /// # Errors
    /// The name is not valid, or the storage failed.
    fn queue(&self, name: &str) -> Result<Box<dyn Queue>, BackendError>;

    /// The names of the queues that exist.
    ///
    /// # Errors
    /// The storage failed.
    fn queue_names(&self) -> Result<Vec<String>, BackendError>;

    /// Takes jobs from these queues, whose order is their order of choice.
    ///
    /// # Errors
    /// The name of a queue is not valid, or the storage failed.
    fn consumer(
        &self,
        queues: &[Served<'_>],
        choice: Choice,
    ) -> Result<Box<dyn Consumer>, BackendError>;

    /// Has the consumers of these queues look at what their callers wait for.
    fn wake_consumers(&self, queues: &[&str]);

    /// The value of a key.
    ///
    /// # Errors
    /// The storage failed.
    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, BackendError>;

    /// The keys that begin with `prefix`, in no order, with their values.
    ///
    /// # Errors
    /// The storage failed.
    fn keys(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, KeyValue)>, BackendError>;

    /// Makes all changes, or none. Returns the numbers of the jobs that were published; None for one
    /// that is stored and enters its queue later.
    ///
    /// # Errors
    /// [`BackendError::Conflict`] if a key is not as expected; nothing has changed then.
    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError>;

    /// Makes durable what was done before.
    ///
    /// # Errors
    /// The storage failed.
    fn flush(&self) -> Result<(), BackendError>;

    /// Closes the backend. What is called after that is refused as
    /// [`BackendError::Closed`], and consumers end.
    ///
    /// # Errors
    /// What was done before may not be durable.
    fn close(&self) -> Result<(), BackendError>;
}

/// What a backend can do beside what all can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A late completion of a job that another consumer has by now is refused.
    pub fences: bool,
    /// Other processes can take jobs from the same queues.
    pub is_shared: bool,
}

impl Capabilities {
    /// A backend of these capabilities.
    pub const fn new(fences: bool, is_shared: bool) -> Self {
        Self { fences, is_shared }
    }
}

/// A queue of a backend.
pub trait Queue: Send + Sync {
    /// Stores a job. Returns its number.
    ///
    /// # Errors
    /// The queue is full, the job too large, or the storage failed.
    fn publish(&self, job: &NewJob<'_>) -> Result<u64, BackendError>;

    /// Stores jobs, all or none. Returns their numbers.
    ///
    /// # Errors
    /// As for one job.
    fn publish_all(&self, jobs: &[NewJob<'_>]) -> Result<Vec<u64>, BackendError>;

    /// Pauses or resumes the queue; stored until it is changed.
    ///
    /// # Errors
    /// The storage failed.
    fn set_paused(&self, paused: bool) -> Result<(), BackendError>;

    /// Whether the queue is paused.
    fn is_paused(&self) -> bool;

    /// Cancels a job: one that waits is gone, a handler that has one is told.
    ///
    /// # Errors
    /// The storage failed.
    fn cancel(&self, number: u64) -> Result<Cancelled, BackendError>;

    /// Looks for a job; None if it has ended or never was.
    ///
    /// # Errors
    /// The storage failed.
    fn look(&self, number: u64) -> Result<Option<Seen>, BackendError>;

    /// Whether a job has not ended.
    ///
    /// # Errors
    /// The storage failed.
    fn contains(&self, number: u64) -> Result<bool, BackendError>;

    /// Calls `see` with each job that has not ended, until it returns false. Jobs that come or end
    /// meanwhile may be missing.
    ///
    /// # Errors
    /// The storage failed.
    fn each(&self, see: &mut dyn FnMut(&Seen) -> bool) -> Result<(), BackendError>;

    /// The figures of the queue.
    ///
    /// # Errors
    /// The storage failed.
    fn stats(&self) -> Result<QueueStats, BackendError>;

    /// The dead letters, oldest first.
    ///
    /// # Errors
    /// The storage failed.
    fn dead_letters(&self) -> Result<Vec<DeadJob>, BackendError>;

    /// Enqueues a dead job anew, and removes its letter. Returns its new number; None if there is no
    /// such letter.
    ///
    /// # Errors
    /// The queue is full, or the storage failed.
    fn replay(&self, letter: u64) -> Result<Option<u64>, BackendError>;

    /// Removes a dead letter. Returns whether there was one.
    ///
    /// # Errors
    /// The storage failed.
    fn purge(&self, letter: u64) -> Result<bool, BackendError>;
}

/// A job to store.
#[derive(Clone, Copy, Debug)]
pub struct NewJob<'a> {
    /// Its kind.
    pub kind: &'a str,
    /// Its arguments, encoded.
    pub payload: &'a [u8],
    /// What else is stored with it.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// When it may begin.
    pub due: Due,
    /// When it is not started any more.
    pub expires: Option<SystemTime>,
    /// Whether the call returns once the job survives a power cut.
    pub sync: bool,
}

/// When a job may begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Due {
    /// At once.
    #[default]
    Now,
    /// After this time.
    After(Duration),
    /// When the wall clock shows this time.
    At(SystemTime),
}

/// A queue that a consumer serves.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// Its name.
    pub queue: &'a str,
    /// Its share of the consumer's turns, beside those of the others.
    pub weight: u32,
}

/// How a consumer chooses among queues that have jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first of them.
    Priority,
    /// Each in proportion to its weight.
    Weight,
}

/// Takes jobs on one thread.
pub trait Consumer: Send {
    /// Waits for a job and calls `take` with it; until the deadline, or until `stopped`. A caller
    /// that makes `stopped` true calls [`Backend::wake_consumers`].
    ///
    /// A job that `take` leaves unsettled has failed its attempt.
    fn next(
        &mut self,
        until: Option<Instant>,
        stopped: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&mut dyn Claim),
    ) -> Next;
}

/// What a call of [`Consumer::next`] ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A job was taken.
    Taken,
    /// No job came until the deadline, or the caller was stopped.
    Nothing,
    /// The backend is closed.
    Closed,
}

/// A job that a consumer has.
pub trait Claim {
    /// The queue that it was enqueued in.
    fn queue(&self) -> &str;
    /// Its number there.
    fn number(&self) -> u64;
    /// Its kind.
    fn kind(&self) -> &str;
    /// Its arguments, encoded.
    fn payload(&self) -> &[u8];
    /// The value of a header.
    fn header(&self, key: &str) -> Option<&[u8]>;
    /// The number of this attempt: 1, and one more for each that failed.
    fn attempt(&self) -> u32;
    /// How often the process died during an attempt.
    fn crashes(&self) -> u32;
    /// When it was enqueued.
    fn enqueued_at(&self) -> SystemTime;
    /// Whether it was cancelled since it was taken.
    fn is_cancelled(&self) -> bool;

    /// Ends the attempt, and what follows from it happens as well, or neither.
    ///
    /// # Errors
    /// Nothing has happened then, and the attempt has failed.
    fn settle(&mut self, settlement: Settlement<'_>) -> Result<(), BackendError>;

    /// Takes the job out of the queue's order without an attempt, to wait for something else. None if
    /// there is nothing to hold, as it was cancelled; or if the backend cannot hold jobs, and then it is
    /// not settled.
    fn hold(&mut self) -> Option<Box<dyn Held>>;

    /// The job as a value of its own, for another thread; this claim is settled then.
    fn detach(&mut self) -> Option<Box<dyn Claim + Send>>;
}

/// A job that waits outside the queue's order. Dropped, it goes back to it.
pub trait Held: Send {
    /// Its arguments, encoded.
    fn payload(&self) -> &[u8];
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
pub enum Settlement<'a> {
    /// The job is done, and this follows.
    Done(Option<&'a Changes<'a>>),
    /// The attempt has failed, and the job comes back.
    Retry {
        /// After this time.
        after: Duration,
        /// What went wrong.
        reason: &'a str,
    },
    /// The attempt does not count, and the job comes back.
    Snooze {
        /// After this time.
        after: Duration,
    },
    /// The job is dead, and kept as a dead letter.
    Dead {
        /// What went wrong.
        reason: &'a str,
    },
}

/// What happens together: jobs that are published, keys that change.
#[derive(Clone, Debug, Default)]
pub struct Changes<'a> {
    /// Jobs to publish, each with its queue.
    pub jobs: Vec<(&'a str, NewJob<'a>)>,
    /// Keys to change.
    pub keys: Vec<KeyChange<'a>>,
    /// Whether the changes are on stable storage when the call returns.
    pub sync: bool,
}

/// The change of a key.
#[derive(Clone, Copy, Debug)]
pub enum KeyChange<'a> {
    /// Gives a key a value.
    Put(&'a [u8], &'a [u8], Keep),
    /// Gives a key a value; a conflict if it has one.
    Insert(&'a [u8], &'a [u8], Keep),
    /// Removes a key.
    Remove(&'a [u8]),
    /// A conflict unless the key has the value of this version, or none.
    Expect(&'a [u8], Option<u64>),
}

/// How long a value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Until it is removed.
    Forever,
    /// For this time.
    For(Duration),
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The bytes.
    pub value: Vec<u8>,
    /// A number that no other value of the key has.
    pub version: u64,
}

/// What became of a call that cancels a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancelled {
    /// It waited, and is gone.
    Waiting,
    /// A handler has it and is told; it does not come back.
    Running,
    /// There is no such job: it has ended, or never was.
    Gone,
}

/// A job that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// Its number.
    pub number: u64,
    /// Its kind.
    pub kind: String,
    /// Its arguments, encoded.
    pub payload: Vec<u8>,
    /// What else is stored with it.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Failed attempts.
    pub failed: u32,
    /// Whether a handler has it.
    pub is_running: bool,
    /// When it may begin, if that is a time to come.
    pub due: Option<SystemTime>,
    /// When it was enqueued.
    pub enqueued_at: SystemTime,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadJob {
    /// Its number.
    pub letter: u64,
    /// The number of the job.
    pub number: u64,
    /// Its kind.
    pub kind: String,
    /// Its arguments, encoded.
    pub payload: Vec<u8>,
    /// Attempts that failed.
    pub attempts: u32,
    /// How often the process died during an attempt.
    pub crashes: u32,
    /// What went wrong, oldest first.
    pub reasons: Vec<String>,
    /// When it died.
    pub died_at: Option<SystemTime>,
}

/// What is called with jobs that have ended without being completed.
pub type OnEnd = Box<dyn Fn(&Ended<'_>) + Send + Sync>;

/// A job that has ended without being completed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ended<'a> {
    /// Its queue.
    pub queue: &'a str,
    /// Its number there.
    pub number: u64,
    /// Its kind.
    pub kind: &'a str,
    /// The value of its header [`UNIQUE_HEADER`], if it has one.
    pub unique: Option<&'a [u8]>,
    /// How it ended.
    pub how: End<'a>,
}

/// How a job ended that was not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End<'a> {
    /// It is dead, for this reason.
    Dead(&'a str),
    /// It expired before it began.
    Expired,
    /// It was cancelled: while it waited, or its handler has ended since.
    Cancelled,
}

impl<'a> Ended<'a> {
    /// A job that has ended.
    pub fn new(
        queue: &'a str,
        number: u64,
        kind: &'a str,
        unique: Option<&'a [u8]>,
        how: End<'a>,
    ) -> Self {
        Self {
            queue,
            number,
            kind,
            unique,
            how,
        }
    }
}

/// The name of the header with the key within which a job is unique, see [`Ended`].
pub const UNIQUE_HEADER: &str = crate::enqueue::header::UNIQUE;

/// The figures of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Jobs that can begin.
    pub ready: u64,
    /// Jobs whose time is to come.
    pub delayed: u64,
    /// Jobs that handlers have.
    pub running: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long the oldest ready job has been ready.
    pub oldest_ready: Option<Duration>,
    /// Jobs enqueued since the queue was opened.
    pub enqueued: u64,
    /// Jobs completed since then.
    pub completed: u64,
    /// Attempts that failed since then and were to be repeated.
    pub retried: u64,
}

/// A call of a backend failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The queue has as many jobs as it may have.
    #[error("the queue {0} is full")]
    Full(String),
    /// A key is not as expected.
    #[error("the key {0} has changed")]
    Conflict(String),
    /// The name of a queue, a size or a time is not valid.
    #[error("{0}")]
    Invalid(String),
    /// The backend is closed.
    #[error("the mill is closed")]
    Closed,
    /// Another consumer has the job by now.
    #[error("the job was taken from this attempt, which took too long")]
    Lost,
    /// It happened, and may not survive a power cut.
    #[error("stored, but not on stable storage: {0}")]
    NotDurable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The storage failed.
    #[error(transparent)]
    Storage(Box<dyn std::error::Error + Send + Sync>),
}

/// The queue of a backend that holds the jobs of a level of priority.
pub(crate) fn name_of_level(queue: &str, priority: Priority) -> String {
    match priority {
        Priority::Highest => format!("{queue}.highest"),
        Priority::High => format!("{queue}.high"),
        Priority::Normal => queue.to_owned(),
        Priority::Low => format!("{queue}.low"),
        Priority::Lowest => format!("{queue}.lowest"),
    }
}
