//! Jobs of which there is one at a time.

use std::time::Duration;

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

    /// What is stored with the job, which tells whether its end releases the key.
    pub(crate) fn header(&self) -> String {
        let until = match self.period {
            None => UNTIL_END,
            Some(_) => FOR_A_PERIOD,
        };
        format!("{until}{}", self.key)
    }
}

/// How the header of a job begins whose end releases its key, and of one whose end does not.
const UNTIL_END: &str = "end:";
const FOR_A_PERIOD: &str = "period:";

/// A key that is taken and whose job is not noted yet is looked at again this often: another thread
/// is between its two steps.
const LOOKS: u32 = 100_000;

/// Enqueues a job unless there is one with its key.
///
/// Takes the key and enqueues in one transaction. The number of the job is known after that, and is
/// noted in a second step.
pub(crate) fn enqueue(
    mill: &Mill,
    queue: &OpenQueue,
    kind: &str,
    unique: &Unique,
    new: &NewJob<'_>,
) -> Result<(JobId, Outcome), EnqueueError> {
    let key = keys::of_unique(kind, &unique.key);
    let keep = unique.period.map_or(Keep::Forever, Keep::For);
    let taken = Holder::Pending(queue.name.to_string()).to_value(mill.inner.epoch);
    let mut replaces = None;
    loop {
        let keys = match replaces {
            None => vec![KeyChange::Insert(&key, &taken, keep)],
            Some(version) => vec![
                KeyChange::Expect(&key, Some(version)),
                KeyChange::Put(&key, &taken, keep),
            ],
        };
        let changes = Changes {
            jobs: vec![(&*queue.name, *new)],
            keys,
            sync: new.sync,
        };
        match mill.inner.backend.commit(&changes) {
            Ok(numbers) => {
                let number = numbers.first().copied().unwrap_or_default();
                let id = JobId::new(queue.name.clone(), number);
                note(mill, &key, &taken, &id, keep)?;
                return Ok((id, Outcome::New));
            }
            Err(BackendError::Conflict(_)) => match look_up(mill, &key, unique)? {
                Found::Job(id) => return Ok((id, Outcome::Existing)),
                Found::Nobody => replaces = None,
                Found::Gone(version) => replaces = Some(version),
            },
            Err(error) => return Err(error.into()),
        }
    }
}

/// Notes which job has a key, unless the job has ended and released it by now.
fn note(mill: &Mill, key: &[u8], taken: &[u8], id: &JobId, keep: Keep) -> Result<(), EnqueueError> {
    let current = mill.inner.backend.get(key)?;
    let Some(current) = current.filter(|current| current.value == taken) else {
        return Ok(());
    };
    let value = Holder::Job(id.clone()).to_value(mill.inner.epoch);
    let changes = Changes {
        keys: vec![
            KeyChange::Expect(key, Some(current.version)),
            KeyChange::Put(key, &value, keep),
        ],
        ..Changes::default()
    };
    match mill.inner.backend.commit(&changes) {
        Ok(_) | Err(BackendError::Conflict(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the value of a key says.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// A job of this queue, whose number is not noted yet.
    Pending(String),
    Job(JobId),
}

impl Holder {
    /// The value that says it, with the process that it is of.
    fn to_value(&self, epoch: u64) -> Vec<u8> {
        match self {
            Self::Pending(queue) => format!("{epoch} {queue}"),
            Self::Job(id) => format!("{epoch} {}/{}", id.place(), id.number()),
        }
        .into_bytes()
    }

    fn parse(value: &KeyValue) -> Option<(u64, Self)> {
        let text = std::str::from_utf8(&value.value).ok()?;
        let (epoch, rest) = text.split_once(' ')?;
        let holder = match rest.contains('/') {
            true => Self::Job(rest.parse().ok()?),
            false => Self::Pending(rest.to_owned()),
        };
        Some((epoch.parse().ok()?, holder))
    }
}

/// Who has a key.
enum Found {
    Job(JobId),
    Nobody,
    /// A job that has ended without releasing it, as its process died; with the key's version.
    Gone(u64),
}

fn look_up(mill: &Mill, key: &[u8], unique: &Unique) -> Result<Found, EnqueueError> {
    let mut looks = 0;
    loop {
        let Some(value) = mill.inner.backend.get(key)? else {
            return Ok(Found::Nobody);
        };
        let Some((epoch, holder)) = Holder::parse(&value) else {
            return Ok(Found::Gone(value.version));
        };
        // A job of this process releases its key when it ends. Whether one of an earlier process
        // had the time to do so is found out by looking for it.
        let is_of_this_process = epoch == mill.inner.epoch;
        return Ok(match holder {
            Holder::Job(id) if is_of_this_process || unique.period.is_some() => Found::Job(id),
            Holder::Job(id) => {
                let queue = mill.inner.backend_queue(id.place())?;
                match queue.queue.contains(id.number())? {
                    true => Found::Job(id),
                    false => Found::Gone(value.version),
                }
            }
            Holder::Pending(_) if is_of_this_process && looks < LOOKS => {
                looks += 1;
                std::thread::yield_now();
                continue;
            }
            Holder::Pending(queue) => match search(mill, &queue, unique)? {
                Some(id) => Found::Job(id),
                None => Found::Gone(value.version),
            },
        });
    }
}

/// Looks through a queue for the job of a key: the process that enqueued it died before it had
/// noted the number.
fn search(mill: &Mill, queue: &str, unique: &Unique) -> Result<Option<JobId>, EnqueueError> {
    let queue = mill.inner.backend_queue(queue)?;
    let header = unique.header();
    let mut found = None;
    queue.queue.each(&mut |job| {
        let mut headers = job.headers.iter();
        if headers.any(|(key, value)| key == header::UNIQUE && *value == header.as_bytes()) {
            found = Some(job.number);
        }
        found.is_none()
    })?;
    Ok(found.map(|number| JobId::new(queue.name.clone(), number)))
}

/// The key that a job releases when it ends, by the header that says so.
pub(crate) fn key_to_release(kind: &str, header: Option<&[u8]>) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(header?).ok()?;
    let key = text.strip_prefix(UNTIL_END)?;
    Some(keys::of_unique(kind, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_who_has_the_key() {
        for holder in [
            Holder::Pending("mail.high".to_owned()),
            Holder::Job(JobId::new("mail.high", 17)),
        ] {
            let value = KeyValue {
                value: holder.to_value(3),
                version: 1,
            };
            assert_eq!(Holder::parse(&value), Some((3, holder)));
        }
        let unique = Unique::by("Ada");
        let header = unique.header();
        let released = key_to_release("k", Some(header.as_bytes()));
        assert_eq!(released, Some(keys::of_unique("k", "Ada")));
        let header = unique.for_at_least(Duration::from_secs(1)).header();
        assert_eq!(key_to_release("k", Some(header.as_bytes())), None);
    }
}
