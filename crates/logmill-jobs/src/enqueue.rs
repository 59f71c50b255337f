//! How a job gets into the mill: its options, its encoding, its uniqueness.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;

use crate::backend::{Due, NewJob};
use crate::error::EnqueueError;
use crate::events::EventKind;
use crate::expiry;
use crate::handle::{JobHandle, Outcome};
use crate::middleware::{self, Extra};
use crate::mill::{Mill, OpenQueue};
use crate::prepared::PreparedJob;
use crate::unique::{self, Unique};
use crate::{Job, JobId, Priority};

/// Headers of a job, as the backend stores them.
pub(crate) mod header {
    /// How it is encoded, if not as plain JSON.
    pub(crate) const CODEC: &str = "codec";
    /// The place of the job in a flow.
    pub(crate) const FLOW: &str = "flow";
    /// When the job is not started any more, in nanoseconds since the epoch.
    pub(crate) const EXPIRES: &str = "expires";
    /// The key that limits count by.
    pub(crate) const KEY: &str = "key";
    /// How many cells of rates it takes, if not as many as the kind says.
    pub(crate) const COST: &str = "cost";
    /// Its place among the jobs of an order.
    pub(crate) const ORDER: &str = "order";
    /// How long an attempt may take, in nanoseconds, if not as long as the kind says.
    pub(crate) const TIMEOUT: &str = "timeout";
    /// The attempts that may follow the first, if not those of the kind.
    pub(crate) const RETRIES: &str = "retries";
    /// The key within which the job is unique, and for how long.
    pub(crate) const UNIQUE: &str = "unique";
    /// The schedule and the tick that it was enqueued by.
    #[cfg(feature = "schedules")]
    pub(crate) const SCHEDULE: &str = "schedule";
    /// The edit by which it got its id.
    pub(crate) const MOVED: &str = "moved";
}

/// A job that is about to be enqueued, from [`Mill::job`].
#[must_use = "a job is enqueued by `enqueue`"]
#[derive(Debug)]
pub struct Enqueue<'a, J> {
    pub(crate) mill: &'a Mill,
    job: J,
    options: Options,
    /// Makes one of the arguments of a waiting job and of this one.
    merge: Option<fn(J, J) -> J>,
}

#[derive(Clone, Debug, Default)]
struct Options {
    queue: Option<String>,
    due: Due,
    priority: Option<Priority>,
    max_retries: Option<u32>,
    expires_after: Option<Duration>,
    key: Option<String>,
    cost: Option<u32>,
    timeout: Option<Duration>,
    unique: Option<Unique>,
    sync: bool,
}

/// What a job says of its attempts where it differs from its kind, as bytes.
struct Own {
    retries: Option<[u8; 4]>,
    cost: Option<[u8; 4]>,
    timeout: Option<[u8; 8]>,
}

impl Options {
    #[inline]
    fn own(&self) -> Own {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Own {
            retries: self.max_retries.map(u32::to_le_bytes),
            cost: self.cost.map(u32::to_le_bytes),
            timeout: self.timeout.map(|timeout| nanos(timeout).to_le_bytes()),
        }
    }
}

impl Own {
    #[inline]
    fn add_to<'a>(&'a self, headers: &mut Headers<'a>) {
        let Self {
            retries,
            cost,
            timeout,
        } = self;
        headers.add(header::RETRIES, retries.as_ref().map(|bytes| &bytes[..]));
        headers.add(header::COST, cost.as_ref().map(|bytes| &bytes[..]));
        headers.add(header::TIMEOUT, timeout.as_ref().map(|bytes| &bytes[..]));
    }
}

impl<'a, J: Job> Enqueue<'a, J> {
    pub(crate) fn new(mill: &'a Mill, job: J) -> Self {
        Self {
            mill,
            job,
            options: Options::default(),
            merge: None,
        }
    }

    /// Enqueues it in this queue instead of the kind's.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.options.queue = Some(queue.into());
        self
    }

    /// Starts it once this time has passed from now, never earlier.
    pub fn after(mut self, delay: Duration) -> Self {
        self.options.due = Due::After(delay);
        self
    }

    /// Starts it when the wall clock shows this time, or at once if that has passed.
    pub fn at(mut self, time: SystemTime) -> Self {
        self.options.due = Due::At(time);
        self
    }

    /// Sets its priority among the jobs of the queue, instead of the kind's.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.options.priority = Some(priority);
        self
    }

    /// Sets how many attempts may follow the first, instead of the kind's number.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.options.max_retries = Some(retries);
        self
    }

    /// Sets how long an attempt may take, instead of what the kind says; see
    /// [`KindOptions::timeout`](crate::KindOptions::timeout). The grace after it is the kind's.
    ///
    /// A [chunk](crate::Chunk) has the time of its kind, whatever its jobs say.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Does not start it any more once this time has passed from now.
    pub fn expires_after(mut self, after: Duration) -> Self {
        self.options.expires_after = Some(after);
        self
    }

    /// Sets the key that limits count it by, such as its tenant.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.options.key = Some(key.into());
        self
    }

    /// Sets how much it counts for [rates](crate::Limit::rate), instead of what the kind says: as so
    /// many jobs; at least 1.
    ///
    /// A job that costs more than the burst of a rate waits until there is a full burst, begins, and
    /// has the others wait for the rest.
    pub fn cost(mut self, cost: u32) -> Self {
        self.options.cost = Some(cost.max(1));
        self
    }

    /// Enqueues it only if there is no other job of its kind with the same key; see [`Unique`].
    pub fn unique(mut self, unique: Unique) -> Self {
        self.options.unique = Some(unique);
        self
    }

    /// Where [`Unique`] has this call replace the arguments of a job that waits, or of one that was
    /// kept, it gets what this function makes of the old ones and the new ones instead.
    ///
    /// The function may be called several times, as other calls may be faster; only the last result
    /// counts. A panic in it is an error of the call.
    ///
    /// ```
    /// use logmill_jobs::{Job, Mill, Outcome, Unique, secs};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "notify", unique = "user")]
    /// struct Notify {
    ///     user: u64,
    ///     messages: Vec<String>,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let mill = Mill::open(dir.path().join("jobs"))?;
    /// for text in ["hello", "are you there?"] {
    ///     let job = Notify { user: 7, messages: vec![text.to_owned()] };
    ///     mill.job(job)
    ///         .unique(Unique::by("7").debounce(secs(5)).max_wait(secs(60)))
    ///         .merge(|mut old, new| {
    ///             old.messages.extend(new.messages);
    ///             old
    ///         })
    ///         .enqueue()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn merge(mut self, merge: fn(J, J) -> J) -> Self {
        self.merge = Some(merge);
        self
    }

    /// Returns only once the job survives a power cut.
    pub fn sync(mut self) -> Self {
        self.options.sync = true;
        self
    }

    /// Enqueues the job.
    ///
    /// Returns once it survives the death of the process.
    ///
    /// # Errors
    /// See [`EnqueueError`]; the job is not enqueued, except after `NotDurable`.
    pub fn enqueue(self) -> Result<JobHandle<J>, EnqueueError> {
        let parts = self.parts()?;
        let Self {
            mill,
            job,
            options,
            merge,
        } = &self;
        let (queue, unique) = (&parts.queue, &parts.unique);
        mill.inner
            .encoded(job, |payload| {
                let own = options.own();
                let expires = expiry::header_of(mill, parts.expires_after);
                let key = parts.key.as_deref();
                let extra = middleware::extra(mill, J::KIND, &queue.name, key, payload)?;
                let mut headers = headers_of(mill, key, expires.as_ref(), &extra);
                own.add_to(&mut headers);
                let new = NewJob {
                    kind: J::KIND,
                    payload,
                    headers: headers.as_slice(),
                    due: options.due,
                    sync: options.sync,
                };
                let (number, outcome) = match unique {
                    None => {
                        let publish = || queue.queue.publish(&new);
                        let number = queue.arrivals.counting(J::KIND, 1, publish)?;
                        (number, Outcome::New)
                    }
                    Some(unique) => {
                        let merge = merge.map(|merge| unique::merge_by(mill, merge, payload));
                        let call = unique::Call {
                            queue,
                            kind: J::KIND,
                            aliases: J::ALIASES,
                            unique,
                            new: &new,
                            merge: merge.as_ref().map(|merge| merge as _),
                        };
                        return unique::enqueue(mill, &call);
                    }
                };
                let id = JobId::new(queue.name.clone(), number);
                Ok((id, outcome))
            })
            .inspect(|(id, outcome)| {
                if mill.inner.events.is_on() && *outcome == Outcome::New {
                    tell(mill, id, J::KIND);
                }
            })
            .map(|(id, outcome)| JobHandle::new((*mill).clone(), id, outcome))
    }

    pub(crate) fn is_sync(&self) -> bool {
        self.options.sync
    }

    /// The job as a value of its own, to be enqueued by something else, which does not look whether
    /// it is unique.
    pub(crate) fn prepare(self) -> Result<PreparedJob, EnqueueError> {
        let parts = self.parts()?;
        let Self {
            mill, job, options, ..
        } = &self;
        if parts.unique.is_some() {
            let why = "only a job that is enqueued by itself can be unique";
            return Err(EnqueueError::Invalid(why.to_owned()));
        }
        let payload = mill.inner.encoded(job, |bytes| Ok(bytes.to_vec()))?;
        let own = options.own();
        let key = parts.key.as_deref();
        let extra = middleware::extra(mill, J::KIND, &parts.queue.name, key, &payload)?;
        let mut headers = headers_of(mill, key, None, &extra);
        own.add_to(&mut headers);
        let headers = headers.as_slice().iter();
        Ok(PreparedJob {
            place: parts.queue.name.to_string(),
            kind: J::KIND.to_owned(),
            payload,
            headers: headers
                .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
                .collect(),
            due: options.due,
            expires_after: parts.expires_after,
        })
    }

    /// What its options say, and those of its kind where they are silent.
    #[inline]
    fn parts(&self) -> Result<Parts, EnqueueError> {
        let Self {
            mill, job, options, ..
        } = self;
        let kind = J::kind_options();
        let queue = options.queue.as_deref().unwrap_or(kind.queue);
        check_name(queue)?;
        let priority = options.priority.unwrap_or(kind.priority);
        Ok(Parts {
            queue: mill.inner.queue(queue, priority)?,
            unique: match &options.unique {
                Some(unique) => Some(unique.clone()),
                None => job.unique_key()?.map(Unique::by),
            },
            key: match &options.key {
                Some(key) => Some(key.clone()),
                None => job.limit_key()?,
            },
            expires_after: options.expires_after.or(kind.expires_after),
        })
    }
}

/// Where a job goes and what is stored with it.
struct Parts {
    queue: Arc<OpenQueue>,
    unique: Option<Unique>,
    key: Option<String>,
    expires_after: Option<Duration>,
}

fn headers_of<'a>(
    mill: &'a Mill,
    key: Option<&'a str>,
    expires: Option<&'a [u8; 8]>,
    extra: &'a Extra,
) -> Headers<'a> {
    let mut headers = Headers::default();
    headers.add(header::CODEC, mill.inner.codec.tag().map(str::as_bytes));
    headers.add(header::KEY, key.map(str::as_bytes));
    headers.add(header::EXPIRES, expires.map(|bytes| &bytes[..]));
    for (name, value) in extra {
        headers.add(name, Some(value));
    }
    headers
}

/// Enqueues jobs of a kind, those of a queue in one batch.
pub(crate) fn all<J: Job>(
    mill: &Mill,
    jobs: impl IntoIterator<Item = J>,
) -> Result<Vec<JobHandle<J>>, EnqueueError> {
    let kind = J::kind_options();
    let jobs: Vec<J> = jobs.into_iter().collect();
    let keys = jobs.iter().map(Job::unique_key);
    let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
    if keys.iter().any(Option::is_some) {
        // Each finds out whether it is new, so they go one by one.
        return jobs.into_iter().map(|job| mill.enqueue(job)).collect();
    }
    check_name(kind.queue)?;
    let queue = mill.inner.queue(kind.queue, kind.priority)?;
    let encoded = jobs.iter().map(|job| {
        let payload = mill.inner.encoded(job, |bytes| Ok(bytes.to_vec()))?;
        let key = job.limit_key()?;
        let extra = middleware::extra(mill, J::KIND, &queue.name, key.as_deref(), &payload)?;
        Ok((payload, key, extra))
    });
    let encoded = encoded.collect::<Result<Vec<_>, EnqueueError>>()?;
    let expires = expiry::header_of(mill, kind.expires_after);
    let headers = encoded.iter();
    let headers =
        headers.map(|(_, key, extra)| headers_of(mill, key.as_deref(), expires.as_ref(), extra));
    let headers: Vec<_> = headers.collect();
    let new: Vec<_> = encoded
        .iter()
        .zip(&headers)
        .map(|((payload, ..), headers)| NewJob {
            kind: J::KIND,
            payload,
            headers: headers.as_slice(),
            due: Due::Now,
            sync: false,
        })
        .collect();
    let publish = || queue.queue.publish_all(&new);
    let arrivals = &queue.arrivals;
    let numbers = arrivals.counting(J::KIND, new.len() as u64, publish)?;
    let handle = |number| {
        let id = JobId::new(queue.name.clone(), number);
        if mill.inner.events.is_on() {
            tell(mill, &id, J::KIND);
        }
        JobHandle::new(mill.clone(), id, Outcome::New)
    };
    Ok(numbers.into_iter().map(handle).collect())
}

/// Tells those who listen that a job was enqueued.
#[cold]
pub(crate) fn tell(mill: &Mill, id: &JobId, kind: &str) {
    let events = &mill.inner.events;
    events.tell(mill, id, kind.into(), 0, EventKind::Enqueued);
}

/// Checks the name of a queue. A dot separates it from its level.
pub(crate) fn check_name(queue: &str) -> Result<(), EnqueueError> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if matches!(queue.len(), 1..=90) && queue.bytes().all(is_valid) {
        return Ok(());
    }
    let why = "the name of a queue has 1 to 90 letters, digits, - and _";
    Err(EnqueueError::Invalid(format!("{why}: {queue:?}")))
}

/// Headers of a job that is about to be stored.
#[derive(Default)]
struct Headers<'a>(SmallVec<[(&'a str, &'a [u8]); 4]>);

impl<'a> Headers<'a> {
    fn add(&mut self, key: &'a str, value: Option<&'a [u8]>) {
        self.0.extend(value.map(|value| (key, value)));
    }

    fn as_slice(&self) -> &[(&'a str, &'a [u8])] {
        &self.0
    }
}
