//! What goes through the seam between jobs and what stores them: plain data.

use std::time::{Duration, SystemTime};

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
    /// A number that no other value of the key has. As far as the backend can say, it is larger than
    /// those of the values of all keys that were stored before.
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
    /// When it may begin, if that is a time to come; that of a next attempt as far as the backend knows.
    pub due: Option<SystemTime>,
    /// When it was enqueued.
    pub enqueued_at: SystemTime,
    /// Where [`Queue::each`](super::Queue::each) goes on behind it; stays valid when it has ended.
    pub cursor: u64,
}

impl Seen {
    /// A job of this number and kind that was enqueued at that time. What is not said of it is nothing;
    /// its fields can be set.
    pub fn new(number: u64, kind: impl Into<String>, enqueued_at: SystemTime) -> Self {
        Self {
            number,
            kind: kind.into(),
            payload: Vec::new(),
            headers: Vec::new(),
            failed: 0,
            is_running: false,
            due: None,
            enqueued_at,
            cursor: number.saturating_add(1),
        }
    }
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
    /// What else is stored with it.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Attempts that failed.
    pub attempts: u32,
    /// How often the process died during an attempt.
    pub crashes: u32,
    /// What went wrong, oldest first.
    pub reasons: Vec<String>,
    /// The value of its header [`FLOW_HEADER`](super::FLOW_HEADER), if it has one.
    pub flow: Option<Vec<u8>>,
    /// When it died.
    pub died_at: Option<SystemTime>,
    /// The value of its header [`UNIQUE_HEADER`](super::UNIQUE_HEADER), if it has one.
    pub unique: Option<Vec<u8>>,
}

impl DeadJob {
    /// The letter of this number, of the job of that number and kind. What is not said of it is nothing;
    /// its fields can be set.
    pub fn new(letter: u64, number: u64, kind: impl Into<String>) -> Self {
        Self {
            letter,
            number,
            kind: kind.into(),
            payload: Vec::new(),
            headers: Vec::new(),
            attempts: 0,
            crashes: 0,
            reasons: Vec::new(),
            flow: None,
            died_at: None,
            unique: None,
        }
    }
}

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
    /// The value of its header [`UNIQUE_HEADER`](super::UNIQUE_HEADER), if it has one.
    pub unique: Option<&'a [u8]>,
    /// The value of its header [`FLOW_HEADER`](super::FLOW_HEADER), if it has one.
    pub flow: Option<&'a [u8]>,
    /// The value of its header [`KEY_HEADER`](super::KEY_HEADER), if it has one.
    pub key: Option<&'a [u8]>,
    /// The value of its header [`ORDER_HEADER`](super::ORDER_HEADER), if it has one.
    pub order: Option<&'a [u8]>,
    /// How it ended.
    pub how: End<'a>,
    /// The number of its last attempt; 0 if there was none, or the backend does not say.
    pub attempt: u32,
}

/// How a job ended that was not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End<'a> {
    /// It is dead, for this reason.
    Dead(&'a str),
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
            flow: None,
            key: None,
            order: None,
            how,
            attempt: 0,
        }
    }

    /// Sets the key that limits count the job by.
    pub fn key(mut self, key: Option<&'a [u8]>) -> Self {
        self.key = key;
        self
    }

    /// Sets the place of the job in an order.
    pub fn order(mut self, order: Option<&'a [u8]>) -> Self {
        self.order = order;
        self
    }

    /// Sets the place of the job in a flow.
    pub fn flow(mut self, flow: Option<&'a [u8]>) -> Self {
        self.flow = flow;
        self
    }

    /// Says the number of its last attempt.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }
}

/// What was damaged where jobs or keys are stored, as a power cut or a failing disk leaves it; from
/// [`Mill::damage`](crate::Mill::damage).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damaged {
    /// The queue, as the backend names it; None for the keys.
    pub queue: Option<String>,
    /// What was found, a line each: the file, the place in it, and where a copy of it is.
    pub found: Vec<String>,
}

impl Damaged {
    /// Damage in a queue, or in the keys.
    pub fn new(queue: Option<String>, found: Vec<String>) -> Self {
        Self { queue, found }
    }
}

/// The figures of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Jobs that can begin, as far as the queue knows. In the engine, a job that was enqueued with a
    /// delay counts here, and not as delayed, until a worker has come to it: at once if workers are
    /// idle, and otherwise when they have taken the jobs before it; not in a queue that is paused or has
    /// no workers.
    pub ready: u64,
    /// Jobs whose time is to come, as far as a worker has come to them.
    pub delayed: u64,
    /// Jobs that handlers have.
    pub running: u64,
    /// Jobs that have left the queue's order to wait: for a limit, for those before them in an order, for
    /// the end of a pause of their kind or key, or for a handler.
    pub held: u64,
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
    /// Jobs that have ended since then: completed, dead, cancelled, expired.
    pub ended: u64,
    /// Jobs that were found damaged since then, and are gone; those that the open itself found are in
    /// [`Mill::damage`](crate::Mill::damage).
    pub lost: u64,
}

impl QueueStats {
    /// Jobs that have not ended.
    pub fn left(&self) -> u64 {
        self.ready + self.delayed + self.running + self.held
    }
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
