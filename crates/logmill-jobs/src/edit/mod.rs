//! Editing a job that waits: what may change, and what is refused.

mod moves;

use std::time::{Duration, SystemTime};

use crate::backend::{BackendError, Due, name_of_level};
use crate::codec::CodecError;
use crate::enqueue::{check_name, header};
use crate::error::EnqueueError;
use crate::mill::Mill;
use crate::{Job, JobId, Priority};

pub(crate) use moves::Moves;
use moves::{Moving, New};

/// Changes of a job that waits, from [`Mill::edit`] or [`JobHandle::edit`](crate::JobHandle::edit).
///
/// ```
/// use logmill_jobs::{Job, Mill, Priority, hours};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "remind")]
/// struct Remind {
///     text: String,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let handle = mill.job(Remind { text: "tea".to_owned() }).after(hours(2)).enqueue()?;
/// let id = mill
///     .edit(handle.id())
///     .arguments(&Remind { text: "coffee".to_owned() })
///     .priority(Priority::High)
///     .after(hours(1))
///     .apply()?;
/// assert_ne!(&id, handle.id());
/// assert_eq!(handle.status()?, mill.status(&id)?);
/// # Ok(())
/// # }
/// ```
///
/// The job gets a new id. The former one leads to it: `status`, `cancel`, `edit`, and handles that wait
/// follow, for as long as results are kept after the time that the job is due. Its failed attempts begin
/// anew. Its key, its expiry, its number of retries and its place under a unique key
/// stay.
#[must_use = "a job is changed by `apply`"]
#[derive(Debug)]
pub struct Edit<'a> {
    mill: &'a Mill,
    id: JobId,
    /// Encoded, with the kinds that they are of.
    arguments: Option<Result<Vec<u8>, EnqueueError>>,
    kinds: Vec<&'static str>,
    queue: Option<String>,
    priority: Option<Priority>,
    due: Option<Due>,
    expires_after: Option<Duration>,
}

/// A job was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// A handler has it.
    #[error("the job {0} runs, and is not changed any more")]
    Running(JobId),
    /// It is done, dead, cancelled or expired, is being cancelled, or never was.
    #[error("there is no job {0} that waits")]
    Gone(JobId),
    /// It is of a flow, or has its place in an order, which know it by its id.
    #[error("the job {0} has its place in a flow or an order, and is not edited")]
    InPlace(JobId),
    /// The arguments are those of another kind.
    #[error("the job is of the kind {0:?}, and the arguments are of another one")]
    OtherKind(String),
    /// The new form of the job cannot be enqueued.
    #[error(transparent)]
    Enqueue(EnqueueError),
    /// The storage failed.
    #[error(transparent)]
    Storage(BackendError),
}

impl From<BackendError> for EditError {
    fn from(error: BackendError) -> Self {
        match error {
            error @ (BackendError::Full(_) | BackendError::Invalid(_)) => {
                Self::Enqueue(error.into())
            }
            error => Self::Storage(error),
        }
    }
}

impl From<CodecError> for EditError {
    fn from(error: CodecError) -> Self {
        Self::Enqueue(error.into())
    }
}

impl Mill {
    /// Changes a job that waits, see [`Edit`].
    pub fn edit(&self, id: &JobId) -> Edit<'_> {
        Edit {
            mill: self,
            id: id.clone(),
            arguments: None,
            kinds: Vec::new(),
            queue: None,
            priority: None,
            due: None,
            expires_after: None,
        }
    }

    /// Has a job that waits run as soon as a worker is free. Returns its new id, see [`Edit`].
    ///
    /// # Errors
    /// See [`EditError`]; the job is as it was.
    pub fn run_now(&self, id: &JobId) -> Result<JobId, EditError> {
        self.edit(id).now().apply()
    }
}

impl Edit<'_> {
    /// Gives it these arguments, which are of its kind.
    pub fn arguments<J: Job>(mut self, job: &J) -> Self {
        self.arguments = Some(self.mill.inner.encoded(job, |bytes| Ok(bytes.to_vec())));
        self.kinds = J::ALIASES.iter().copied().chain([J::KIND]).collect();
        self
    }

    /// Moves it to this queue, with the priority that it has.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Sets its priority.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Starts it once this time has passed from now, whether that is earlier or later than before.
    pub fn after(mut self, delay: Duration) -> Self {
        self.due = Some(Due::After(delay));
        self
    }

    /// Starts it when the wall clock shows this time.
    pub fn at(mut self, time: SystemTime) -> Self {
        self.due = Some(Due::At(time));
        self
    }

    /// Starts it as soon as a worker is free.
    pub fn now(mut self) -> Self {
        self.due = Some(Due::Now);
        self
    }

    /// Does not start it any more once this time has passed from now, instead of when it would have
    /// expired.
    pub fn expires_after(mut self, after: Duration) -> Self {
        self.expires_after = Some(after);
        self
    }

    /// Changes the job. Returns its new id.
    ///
    /// Takes two transactions and three flushes. Once it has returned, the job runs in its new
    /// form and not in the former one, also after the death of the process.
    ///
    /// # Errors
    /// See [`EditError`]; the job is as it was, except after `NotDurable`.
    pub fn apply(self) -> Result<JobId, EditError> {
        let mill = self.mill;
        let arguments = self.arguments.transpose().map_err(EditError::Enqueue)?;
        let id = mill.current_id(&self.id)?;
        let _lock = mill.inner.before.moves.lock()?;
        moves::finish_earlier(mill, &self.id)?;
        // Another edit may have moved it meanwhile.
        let id = mill.current_id(&id)?;
        let Some(moving) = Moving::begin(mill, &id) else {
            return Err(EditError::Running(id));
        };
        let Some(queue) = mill.inner.existing_queue(id.place())? else {
            return Err(EditError::Gone(id));
        };
        // Asked before the job is looked for: a call that cancels it, and has not found this edit, is
        // found, or has ended the job.
        let is_cancelled = mill.inner.cancelling.reason_of(&id).is_some();
        let seen = queue.queue.look(id.number())?;
        let Some(seen) = seen else {
            return Err(EditError::Gone(id));
        };
        if seen.is_running {
            return Err(EditError::Running(id));
        }
        if is_cancelled {
            return Err(EditError::Gone(id));
        }
        let is_in_place = |key: &str| key == header::FLOW || key == header::ORDER;
        if seen.headers.iter().any(|(key, _)| is_in_place(key)) {
            return Err(EditError::InPlace(id));
        }
        if arguments.is_some() && !self.kinds.contains(&&*seen.kind) {
            return Err(EditError::OtherKind(seen.kind));
        }
        let to = place_of(&id, self.queue.as_deref(), self.priority)?;
        let to = mill.inner.backend_queue(&to)?;
        let due = self
            .due
            .or_else(|| seen.due.map(Due::At))
            .unwrap_or_default();
        let new = New {
            arguments,
            due,
            has_new_time: self.due.is_some(),
            expires_after: self.expires_after,
        };
        // Before it is stored, and so before it can end there. It is no new arrival.
        let counter = to.arrivals.of(&seen.kind);
        counter.move_by(1);
        let stored = moves::store(mill, &id, &seen, &to, new);
        match &stored {
            Ok(_) | Err(EditError::Storage(BackendError::NotDurable(_))) => {
                queue.arrivals.of(&seen.kind).move_by(-1);
            }
            Err(_) => counter.move_by(-1),
        }
        let moved = stored?;
        moving.note(moved);
        if let Err(error) = moves::finish(mill, &id, moved) {
            // The former record may still be there. It must not run, and the next process cancels it.
            std::mem::forget(moving);
            return Err(error.into());
        }
        drop(moving);
        let Some(number) = moved.number else {
            let why = "it enters its queue once the disk has room";
            return Err(EditError::Storage(BackendError::NotDurable(why.into())));
        };
        Ok(JobId::new(to.name.clone(), number))
    }
}

/// The backend's queue for a job that moves.
fn place_of(
    id: &JobId,
    queue: Option<&str>,
    priority: Option<Priority>,
) -> Result<String, EditError> {
    if let Some(queue) = queue {
        check_name(queue).map_err(EditError::Enqueue)?;
    }
    let levels = Priority::ALL.into_iter();
    let own = levels
        .into_iter()
        .find(|level| name_of_level(id.queue(), *level) == id.place());
    let level = priority.or(own).unwrap_or_default();
    Ok(name_of_level(queue.unwrap_or(id.queue()), level))
}
