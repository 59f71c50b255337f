//! A look at the jobs that are enqueued.

use std::time::SystemTime;

use crate::backend::{BackendError, Seen};
use crate::enqueue::header;
use crate::mill::Mill;
use crate::{Job, JobId};

/// A job that has not ended, from [`enqueued`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Enqueued<J> {
    /// Its arguments.
    pub job: J,
    /// Its id.
    pub id: JobId,
    /// When it may begin, if it was enqueued with a time that is to come.
    pub due: Option<SystemTime>,
    /// Attempts that failed.
    pub failed: u32,
    /// Its key, by which limits count it.
    pub key: Option<String>,
}

/// The jobs of a kind that have not ended, by queue, and in each in the order of their enqueues.
///
/// Jobs that wait for their time, for a retry or for a limit are among them. Looks through all jobs
/// of the mill.
///
/// # Errors
/// The storage failed, or the arguments of a job cannot be decoded.
pub fn enqueued<J: Job>(mill: &Mill) -> Result<Vec<Enqueued<J>>, BackendError> {
    let mut found = Vec::new();
    for (place, seen) in all(mill)? {
        if seen.kind != J::KIND && !J::ALIASES.contains(&&*seen.kind) {
            continue;
        }
        let tag = header_of(&seen, header::CODEC);
        let job = mill.inner.codec.decode(tag, &seen.payload);
        let id = JobId::new(place, seen.number);
        let job = job.map_err(|error| {
            let why = format!("the arguments of {id} ({:?}) cannot be decoded", seen.kind);
            BackendError::Invalid(format!("{why}: {error}"))
        })?;
        found.push(Enqueued {
            job,
            id,
            due: seen.due,
            failed: seen.failed,
            key: header_of(&seen, header::KEY).map(|key| String::from_utf8_lossy(key).into_owned()),
        });
    }
    Ok(found)
}

fn header_of<'a>(seen: &'a Seen, name: &str) -> Option<&'a [u8]> {
    let mut headers = seen.headers.iter();
    headers
        .find(|(key, _)| key == name)
        .map(|(_, value)| &value[..])
}

/// All jobs that have not ended, with their queues.
fn all(mill: &Mill) -> Result<Vec<(String, Seen)>, BackendError> {
    let mut all = Vec::new();
    let mut places = mill.inner.backend.queue_names()?;
    places.sort();
    for place in places {
        let queue = mill.inner.backend_queue(&place)?;
        queue.queue.each(0, &mut |seen| {
            all.push((place.clone(), seen.clone()));
            true
        })?;
    }
    Ok(all)
}

/// Requires that a job with these arguments has not ended, and returns it. Arguments are equal if
/// their JSON is.
///
/// ```
/// use logmill_jobs::testing::{TestMill, assert_enqueued};
/// use logmill_jobs::{Job, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "send_welcome", queue = "mail")]
/// struct SendWelcome {
///     user_id: u64,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mill = TestMill::open()?;
/// mill.job(SendWelcome { user_id: 42 }).after(secs(60)).enqueue()?;
///
/// let found = assert_enqueued(&mill, &SendWelcome { user_id: 42 });
/// assert_eq!(found.id.queue(), "mail");
/// assert_eq!(found.due, Some(mill.clock().now() + secs(60)));
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// There is none. The message lists the jobs that are enqueued.
#[track_caller]
pub fn assert_enqueued<J: Job>(mill: &Mill, job: &J) -> Enqueued<J> {
    let wanted = serde_json::to_value(job);
    let found = enqueued::<J>(mill);
    let (wanted, found) = match (wanted, found) {
        (Ok(wanted), Ok(found)) => (wanted, found),
        (Err(error), _) => panic!("the arguments cannot be encoded: {error}"),
        (_, Err(error)) => panic!("{error}"),
    };
    let mut found = found.into_iter();
    let is_it = |one: &Enqueued<J>| serde_json::to_value(&one.job).ok().as_ref() == Some(&wanted);
    if let Some(one) = found.find(is_it) {
        return one;
    }
    panic!(
        "no job {:?} with these arguments is enqueued:\n  {wanted}\n{}",
        J::KIND,
        list(mill)
    )
}

/// Requires that no job with these arguments waits or runs.
///
/// # Panics
/// There is one. The message lists the jobs that are enqueued.
#[track_caller]
pub fn assert_not_enqueued<J: Job>(mill: &Mill, job: &J) {
    let wanted = serde_json::to_value(job).ok();
    let found = match enqueued::<J>(mill) {
        Ok(found) => found,
        Err(error) => panic!("{error}"),
    };
    let is_it = |one: &&Enqueued<J>| serde_json::to_value(&one.job).ok() == wanted;
    if let Some(found) = found.iter().find(is_it) {
        let all = list(mill);
        panic!(
            "a job {:?} with these arguments is enqueued, as {}.\n{all}",
            J::KIND,
            found.id
        );
    }
}

/// The jobs that are enqueued, one a line.
fn list(mill: &Mill) -> String {
    let all = match all(mill) {
        Ok(all) if all.is_empty() => return "No job is enqueued.".to_owned(),
        Ok(all) => all,
        Err(error) => return format!("The jobs cannot be listed: {error}"),
    };
    let mut text = "These are:".to_owned();
    for (place, seen) in all {
        let arguments = String::from_utf8_lossy(&seen.payload);
        text += &format!("\n  {place}/{} {:?} {arguments}", seen.number, seen.kind);
        if let Some(due) = seen.due {
            let left = due.duration_since(mill.inner.clock.wall());
            text += &format!(", due in {:?}", left.unwrap_or_default());
        }
        if seen.failed > 0 {
            text += &format!(", failed {} times", seen.failed);
        }
    }
    text
}
