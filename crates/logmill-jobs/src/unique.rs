//! Jobs of which there is one at a time.
//!
//! A key is a key of the backend whose value names the job that has it. It is taken in the same
//! transaction in which the job is stored, and released in the one in which the job is completed. The
//! number of the job is known after the first transaction, and noted in a second one. Each enqueue
//! has a random *ticket*, which the job's header and the value of its key have in common: no job
//! releases the key of another.
//!
//! In this process both go on under a lock for each key. What a process left that died in between is
//! found by the tickets: a key whose job has ended is taken over, and a job whose number is not noted
//! is looked for in its queue.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::JobId;
use crate::backend::{BackendError, Changes, Keep, KeyChange, KeyValue, NewJob};
use crate::enqueue::header;
use crate::error::EnqueueError;
use crate::handle::Outcome;
use crate::keys;
use crate::mill::{Mill, OpenQueue};

/// Within which key a job is unique among those of its kind, and for how long.
///
/// ```
/// use logmill_jobs::{Job, Mill, Outcome, Unique, minutes};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "rebuild_index", unique = "shop")]
/// struct RebuildIndex {
///     shop: u32,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let first = mill.enqueue(RebuildIndex { shop: 7 })?;
/// let second = mill.enqueue(RebuildIndex { shop: 7 })?;
/// assert_eq!(second.outcome(), Outcome::Existing);
/// assert_eq!(second.id(), first.id());
///
/// // At most one in ten minutes, however soon it is done.
/// let throttled = Unique::by("shop 8").for_at_least(minutes(10));
/// mill.job(RebuildIndex { shop: 8 }).unique(throttled).enqueue()?;
/// # Ok(())
/// # }
/// ```
///
/// A dead job that is replayed does not take its key again: it runs beside one that has it by then.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Unique {
    key: String,
    period: Option<Duration>,
}

impl Unique {
    /// One job with this key until it has ended: is done, dead, cancelled or expired.
    pub fn by(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            period: None,
        }
    }

    /// One job with this key in this period, which begins with the enqueue; whether the job has
    /// ended by then or not.
    pub fn for_at_least(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }
}

/// Keys that share a lock are those whose hashes agree in the lowest bits.
const LOCKS: usize = 256;

/// The locks under which keys are taken and released in this process.
///
/// Reentrant: the backend calls subscribers, which may enqueue.
pub(crate) struct Locks {
    hasher: RandomState,
    locks: Box<[ReentrantMutex<()>]>,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            locks: (0..LOCKS).map(|_| ReentrantMutex::new(())).collect(),
        }
    }
}

impl Locks {
    pub(crate) fn lock(&self, key: &[u8]) -> ReentrantMutexGuard<'_, ()> {
        let hash = self.hasher.hash_one(key);
        // The remainder is less than the number of locks.
        self.locks[(hash % LOCKS as u64) as usize].lock()
    }
}

/// How a ticket is written.
fn ticket() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// The header of a job with a key: its ticket, whether its end releases the key, and the key.
fn header_of(ticket: &str, unique: &Unique) -> String {
    let until = match unique.period {
        None => UNTIL_END,
        Some(_) => FOR_A_PERIOD,
    };
    format!("{ticket} {until} {}", unique.key)
}

const UNTIL_END: &str = "end";
const FOR_A_PERIOD: &str = "period";

/// Enqueues a job unless there is one with its key.
pub(crate) fn enqueue(
    mill: &Mill,
    queue: &OpenQueue,
    (kind, aliases): (&str, &[&str]),
    unique: &Unique,
    new: &NewJob<'_>,
) -> Result<(JobId, Outcome), EnqueueError> {
    for alias in aliases {
        let former = keys::of_unique(alias, &unique.key);
        if let Found::Job(id) = look_up(mill, &former)? {
            return Ok((id, Outcome::Existing));
        }
    }
    let key = keys::of_unique(kind, &unique.key);
    let keep = unique.period.map_or(Keep::Forever, Keep::For);
    let ticket = ticket();
    let header = header_of(&ticket, unique);
    let mut headers = new.headers.to_vec();
    headers.push((header::UNIQUE, header.as_bytes()));
    let new = NewJob {
        headers: &headers,
        ..*new
    };
    let mut value = Value {
        ticket,
        is_for_period: unique.period.is_some(),
        place: queue.name.to_string(),
        number: None,
    };
    let _lock = mill.inner.unique_locks.lock(&key);
    let replaces = match look_up(mill, &key)? {
        Found::Job(id) => return Ok((id, Outcome::Existing)),
        Found::Nobody => None,
        Found::Gone(version) => Some(version),
    };
    let pending = value.to_bytes();
    let changes = Changes {
        jobs: vec![(&*queue.name, new)],
        keys: vec![
            KeyChange::Expect(&key, replaces),
            KeyChange::Put(&key, &pending, keep),
        ],
        sync: new.sync,
    };
    let numbers = mill.inner.backend.commit(&changes)?;
    let Some(number) = numbers.first().copied().flatten() else {
        let why = "it enters its queue once the disk has room";
        return Err(BackendError::NotDurable(why.into()).into());
    };
    value.number = Some(number);
    note(mill, &key, &value, keep);
    let id = JobId::new(queue.name.clone(), number);
    Ok((id, Outcome::New))
}

/// Notes the number of the job that has a key, unless the job has released it by now. If that fails,
/// the job is looked for when it is needed.
fn note(mill: &Mill, key: &[u8], value: &Value, keep: Keep) {
    let bytes = value.to_bytes();
    let noted = mill.inner.backend.get(key).and_then(|current| {
        let Some(current) = current.filter(|current| value.has_ticket_of(current)) else {
            return Ok(());
        };
        let changes = Changes {
            keys: vec![
                KeyChange::Expect(key, Some(current.version)),
                KeyChange::Put(key, &bytes, keep),
            ],
            ..Changes::default()
        };
        mill.inner.backend.commit(&changes).map(|_| ())
    });
    if let Err(error) = noted {
        tracing::warn!(%error, "the number of a unique job could not be noted");
    }
}

/// What the value of a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    ticket: String,
    is_for_period: bool,
    /// The backend's queue.
    place: String,
    /// None until it is noted.
    number: Option<u64>,
}

impl Value {
    fn to_bytes(&self) -> Vec<u8> {
        let until = match self.is_for_period {
            false => UNTIL_END,
            true => FOR_A_PERIOD,
        };
        let Self { ticket, place, .. } = self;
        match self.number {
            None => format!("{ticket} {until} {place}"),
            Some(number) => format!("{ticket} {until} {place} {number}"),
        }
        .into_bytes()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(bytes).ok()?.split(' ');
        let (ticket, until, place) = (parts.next()?, parts.next()?, parts.next()?);
        let number = parts.next().map(str::parse).transpose().ok()?;
        Some(Self {
            ticket: ticket.to_owned(),
            is_for_period: until == FOR_A_PERIOD,
            place: place.to_owned(),
            number,
        })
    }

    fn has_ticket_of(&self, other: &KeyValue) -> bool {
        Self::parse(&other.value).is_some_and(|other| other.ticket == self.ticket)
    }
}

/// Who has a key.
enum Found {
    Job(JobId),
    Nobody,
    /// A job that has ended without releasing it, as its process died; with the key's version.
    Gone(u64),
}

fn look_up(mill: &Mill, key: &[u8]) -> Result<Found, BackendError> {
    let Some(current) = mill.inner.backend.get(key)? else {
        return Ok(Found::Nobody);
    };
    let Some(value) = Value::parse(&current.value) else {
        return Ok(Found::Gone(current.version));
    };
    let Some(queue) = mill.inner.existing_queue(&value.place)? else {
        return Ok(Found::Gone(current.version));
    };
    let number = match value.number {
        Some(number) if value.is_for_period || queue.queue.contains(number)? => Some(number),
        Some(_) => None,
        None => search(&queue, &value.ticket)?,
    };
    Ok(match number {
        Some(number) => Found::Job(JobId::new(queue.name.clone(), number)),
        None => Found::Gone(current.version),
    })
}

/// Looks through a queue for the job with a ticket: the process that enqueued it died before it had
/// noted the number.
fn search(queue: &OpenQueue, ticket: &str) -> Result<Option<u64>, BackendError> {
    let mut found = None;
    queue.queue.each(&mut |job| {
        let mut headers = job.headers.iter();
        let has_ticket = |value: &[u8]| {
            let rest = value.strip_prefix(ticket.as_bytes());
            rest.is_some_and(|rest| rest.starts_with(b" "))
        };
        if headers.any(|(key, value)| key == header::UNIQUE && has_ticket(value)) {
            found = Some(job.number);
        }
        found.is_none()
    })?;
    Ok(found)
}

/// The key of a job that ends, locked until it is released, if its end releases it and it has it.
pub(crate) struct Release<'a> {
    key: Vec<u8>,
    version: u64,
    _lock: ReentrantMutexGuard<'a, ()>,
}

impl<'a> Release<'a> {
    /// Finds the key of a job by its kind and its header.
    pub(crate) fn of(
        mill: &'a Mill,
        kind: &str,
        header: Option<&[u8]>,
    ) -> Result<Option<Self>, BackendError> {
        let Some((ticket, key)) = header.and_then(parse_header) else {
            return Ok(None);
        };
        let key = keys::of_unique(kind, key);
        let lock = mill.inner.unique_locks.lock(&key);
        let Some(current) = mill.inner.backend.get(&key)? else {
            return Ok(None);
        };
        let has_it = Value::parse(&current.value).is_some_and(|value| value.ticket == ticket);
        Ok(has_it.then(|| Self {
            key,
            version: current.version,
            _lock: lock,
        }))
    }

    /// What releases it.
    pub(crate) fn changes(&self) -> [KeyChange<'_>; 2] {
        [
            KeyChange::Expect(&self.key, Some(self.version)),
            KeyChange::Remove(&self.key),
        ]
    }
}

/// The ticket and the key of a job whose end releases it.
fn parse_header(header: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(header).ok()?;
    let (ticket, rest) = text.split_once(' ')?;
    let (until, key) = rest.split_once(' ')?;
    (until == UNTIL_END).then_some((ticket, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_who_has_the_key() {
        for number in [None, Some(17)] {
            let value = Value {
                ticket: ticket(),
                is_for_period: number.is_some(),
                place: "mail.high".to_owned(),
                number,
            };
            assert_eq!(Value::parse(&value.to_bytes()), Some(value));
        }
        assert_eq!(Value::parse(b"x end mail y"), None);
    }

    #[test]
    fn a_header_says_which_key_the_end_releases() {
        let unique = Unique::by("Ada Lovelace");
        let header = header_of("0a", &unique);
        assert_eq!(
            parse_header(header.as_bytes()),
            Some(("0a", "Ada Lovelace"))
        );
        let header = header_of("0a", &unique.for_at_least(Duration::from_secs(1)));
        assert_eq!(parse_header(header.as_bytes()), None);
    }
}
