//! The jobs of a queue that have not ended: lists page by page, and cancelling those that a filter
//! selects.

use std::time::SystemTime;

use crate::backend::{BackendError, Cancelled, Seen};
use crate::codec::CodecError;
use crate::enqueue::header;
use crate::queue::{DeadJob, JobQueue};
use crate::{Job, JobId, user_code};

/// A job of a queue that has not ended, from [`JobQueue::jobs_page`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueuedJob {
    /// Its id.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// The key that limits count it by: what [`Enqueue::key`](crate::Enqueue::key) said, or the value of the
    /// field that `#[job(key = "tenant")]` names; that of several fields is a JSON list of them.
    pub key: Option<String>,
    /// Failed attempts so far.
    pub failed: u32,
    /// Whether a handler has it.
    pub is_running: bool,
    /// When it may begin, if that is a time to come. The time of the next attempt is not known here: a
    /// job that has failed and waits for it has None.
    pub due: Option<SystemTime>,
    /// When it was enqueued.
    pub enqueued_at: SystemTime,
    pub(crate) payload: Vec<u8>,
    /// How they are encoded.
    pub(crate) tag: Option<Vec<u8>>,
}

/// Some of the jobs of a queue, from [`JobQueue::jobs_page`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobPage {
    /// The jobs: those of the highest level of priority first, and within a level in the order in which
    /// they are stored.
    pub jobs: Vec<QueuedJob>,
    /// Where the next page begins; None if this one is the last.
    pub next: Option<JobCursor>,
}

/// A place in the list of the jobs of a queue. It stays valid whatever becomes of the jobs, and across
/// restarts.
///
/// Its text, as `mail.high/17`, can be put into the address of a page, and parsed again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobCursor {
    /// The level, and the backend's cursor there.
    from: JobId,
}

impl std::fmt::Display for JobCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.from.fmt(f)
    }
}

impl std::str::FromStr for JobCursor {
    type Err = crate::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            from: text.parse()?,
        })
    }
}

/// What [`JobQueue::arguments_of`] decodes: a [`QueuedJob`] or a [`DeadJob`].
pub trait WithArguments: sealed::WithArguments {}

impl<T: sealed::WithArguments> WithArguments for T {}

mod sealed {
    pub trait WithArguments {
        /// The encoded arguments, and how they are encoded.
        fn arguments(&self) -> (&[u8], Option<&[u8]>);
    }
}

impl sealed::WithArguments for QueuedJob {
    fn arguments(&self) -> (&[u8], Option<&[u8]>) {
        (&self.payload, self.tag.as_deref())
    }
}

impl sealed::WithArguments for DeadJob {
    fn arguments(&self) -> (&[u8], Option<&[u8]>) {
        (&self.payload, self.tag.as_deref())
    }
}

/// A key as the application means it: one that is made of one field is stored as a JSON list of it.
fn text_of_key(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key).into_owned();
    match serde_json::from_slice::<[serde_json::Value; 1]>(key) {
        Ok([serde_json::Value::String(field)]) => field,
        Ok([field]) => field.to_string(),
        Err(_) => text,
    }
}

fn queued(id: JobId, seen: &Seen) -> QueuedJob {
    let header = |wanted| {
        let found = seen.headers.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| &**value)
    };
    QueuedJob {
        id,
        kind: seen.kind.clone(),
        key: header(header::KEY).map(text_of_key),
        failed: seen.failed,
        is_running: seen.is_running,
        due: seen.due,
        enqueued_at: seen.enqueued_at,
        payload: seen.payload.clone(),
        tag: header(header::CODEC).map(<[u8]>::to_vec),
    }
}

impl JobQueue {
    /// Up to `limit` jobs that have not ended, from a cursor on, or the first ones: those that wait, for
    /// whatever, and those that run.
    ///
    /// Has as many jobs in memory as it returns. It is not a picture of one moment: jobs that come or
    /// end between two pages may be missing, and one that is moved may be seen twice. A unique job whose
    /// arguments were replaced while it waits is listed with its first ones.
    ///
    /// ```
    /// # use logmill_jobs::{Job, Mill};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, Job)]
    /// # #[job(kind = "welcome", queue = "mail")]
    /// # struct Welcome {
    /// #     user: u64,
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// # mill.enqueue(Welcome { user: 7 })?;
    /// let mail = mill.queue("mail")?;
    /// let page = mail.jobs_page(None, 100)?;
    /// for job in &page.jobs {
    ///     let user = mail.arguments_of::<Welcome>(job)?.user;
    ///     println!("{} for {user}, {:?}", job.id, mill.why_waiting(&job.id));
    /// }
    /// assert_eq!((page.jobs.len(), page.next), (1, None));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The cursor is of another queue, or the storage failed.
    pub fn jobs_page(
        &self,
        from: Option<&JobCursor>,
        limit: usize,
    ) -> Result<JobPage, BackendError> {
        let limit = limit.max(1);
        let levels = self.existing_levels()?;
        let mut first = 0;
        if let Some(JobCursor { from }) = from {
            let mut places = levels.iter();
            let Some(at) = places.position(|level| &*level.name == from.place()) else {
                let why = format!("the cursor {from} is not of the queue {}", self.name());
                return Err(BackendError::Invalid(why));
            };
            first = at;
        }
        let (mut jobs, mut next) = (Vec::new(), None);
        let mut behind_last = None;
        for (at, level) in levels.iter().enumerate().skip(first) {
            let start = from.map(|cursor| cursor.from.number());
            let start = start.filter(|_| at == first).unwrap_or(0);
            level.queue.each(start, &mut |seen| {
                if jobs.len() == limit {
                    next = behind_last.take();
                    return false;
                }
                jobs.push(queued(JobId::new(level.name.clone(), seen.number), seen));
                behind_last = Some(JobId::new(level.name.clone(), seen.cursor));
                true
            })?;
            if next.is_some() {
                break;
            }
        }
        Ok(JobPage {
            jobs,
            next: next.map(|from| JobCursor { from }),
        })
    }

    /// Cancels up to `limit` of the jobs that the filter selects, in the order of
    /// [`jobs_page`](Self::jobs_page), each as [`Mill::cancel`](crate::Mill::cancel) does, and each by
    /// itself. Returns how many were cancelled; one that has ended since it was selected is not.
    ///
    /// To empty a queue, select all that do not run:
    ///
    /// ```
    /// # use logmill_jobs::Mill;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// let mail = mill.queue("mail")?;
    /// mail.cancel_where(usize::MAX, "the newsletter was withdrawn", |job| !job.is_running)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Has the ids of all that it selects in memory. Jobs that come while it selects may be missed:
    /// [pause](Self::pause) changes nothing about that, as producers go on.
    ///
    /// # Errors
    /// The storage failed; some may be cancelled by then. A filter that panics; nothing is cancelled
    /// then.
    pub fn cancel_where(
        &self,
        limit: usize,
        reason: &str,
        mut filter: impl FnMut(&QueuedJob) -> bool,
    ) -> Result<u64, BackendError> {
        let (mut selected, mut panic) = (Vec::new(), None);
        for level in self.existing_levels()? {
            if selected.len() == limit {
                break;
            }
            level.queue.each(0, &mut |seen| {
                let job = queued(JobId::new(level.name.clone(), seen.number), seen);
                match user_code::call(|| filter(&job)) {
                    Ok(true) => selected.push(job.id),
                    Ok(false) => {}
                    Err(message) => panic = Some(message),
                }
                selected.len() < limit && panic.is_none()
            })?;
            if let Some(panic) = panic {
                let why = format!("the filter of jobs panicked: {panic}");
                return Err(BackendError::Invalid(why));
            }
        }
        let mut cancelled = 0;
        for id in selected {
            let became = self.mill.cancel(&id, reason)?;
            cancelled += u64::from(became != Cancelled::Gone);
        }
        Ok(cancelled)
    }

    /// The arguments of a job, waiting or dead, decoded as its handler would have them.
    ///
    /// ```
    /// # use logmill_jobs::{Job, JobResult, Mill, Workers, discard, secs};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "resize", queue = "images")]
    /// struct Resize {
    ///     image: u64,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// # let pool = Workers::new(())
    /// #     .on(|_: Resize| JobResult::Err(discard("not an image")))
    /// #     .start(&mill)?;
    /// # let _ = mill.enqueue(Resize { image: 7 })?.wait();
    /// let images = mill.queue("images")?;
    /// for dead in images.dead_jobs()? {
    ///     if dead.kind == Resize::KIND {
    ///         println!("image {}: {}", images.arguments_of::<Resize>(&dead)?.image, dead.reason());
    ///     }
    /// }
    /// # pool.shutdown(secs(30));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The arguments are not those of a `J`, or their format or layer is not set up in this mill.
    pub fn arguments_of<J: Job>(&self, job: &impl WithArguments) -> Result<J, CodecError> {
        let (payload, tag) = job.arguments();
        // Layers and formats of arguments are the application's.
        let codec = &self.mill.inner.codec;
        let decoded = user_code::call(|| codec.decode(tag, payload));
        decoded.unwrap_or_else(|panic| Err(CodecError::new(panic)))
    }
}
