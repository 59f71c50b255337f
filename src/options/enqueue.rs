//! Options of a job, given when it is enqueued.

use std::time::{Duration, SystemTime};

use super::{Durability, MIN_FLUSH_INTERVAL, MIN_LEASE_TIMEOUT};
use crate::log::headers::{MAX_HEADER_BYTES, NewHeaders, encoded_len, is_valid_key, is_valid_name};
use crate::retry::MAX_ATTEMPTS;
use crate::time::Clock;
use crate::{EnqueueError, Timestamp};

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
    pub(crate) fn at(self, clock: &Clock) -> Timestamp {
        match self {
            Self::After(delay) => clock.wall().saturating_add(delay),
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
    /// [crashes](crate::RetryPolicy::max_crashes).
    pub fn unlimited_attempts(mut self) -> Self {
        self.max_attempts = Some(None);
        self
    }

    /// Does not deliver the job any more once `delay` has passed from now.
    ///
    /// For work that is of no use when it comes late, such as a login code. The job ends when a
    /// consumer would get it: it counts in [`Stats::expired`](crate::Stats::expired), and with
    /// [`Builder::keep_expired`](crate::Builder::keep_expired) it becomes a dead letter. Until then
    /// it takes its room. A handler that has the job at that time keeps it, and may ack it; if it
    /// fails, the job does not come back. Expiry is by the wall clock. A letter that is replayed
    /// does not expire.
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
    /// [lease timeout](crate::Builder::lease_timeout); at least 1 ms.
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
