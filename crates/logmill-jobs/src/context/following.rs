//! What is stored together with the completion of a job, as its handler says: jobs that follow, and the
//! results of steps.

use std::collections::HashSet;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Context, KEEP_STEPS};
use crate::Job;
use crate::backend::{Changes, Keep, KeyChange};
use crate::enqueue::Enqueue;
use crate::error::EnqueueError;
use crate::failure::{JobResult, discard};
use crate::flow::check_beside;
use crate::keys;
use crate::prepared::PreparedJob;

/// What is stored together with the completion of the job.
#[derive(Default)]
pub(super) struct Follows {
    followed: Followed,
    /// The names of steps so far.
    steps: HashSet<String>,
    /// Nothing can follow any more.
    has_ended: bool,
}

#[derive(Default)]
pub(crate) struct Followed {
    pub(crate) jobs: Vec<PreparedJob>,
    /// Jobs that are added to the flow of this one, beside it.
    pub(crate) beside: Vec<PreparedJob>,
    /// The keys of the results of steps and of progress, which the end of the job removes.
    pub(crate) steps: Vec<Vec<u8>>,
}

/// Ends an attempt that had this context; returns what is to be stored with the completion of its job, if
/// anything is.
#[inline]
pub(crate) fn followed_by(context: Option<Context>) -> Option<Followed> {
    context?.end()
}

impl Followed {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.beside.is_empty() && self.steps.is_empty()
    }
}

impl Follows {
    /// Has the end of the job remove a key. Returns false if the attempt has ended.
    pub(super) fn remove_at_end(&mut self, key: &Vec<u8>) -> bool {
        let steps = &mut self.followed.steps;
        if !self.has_ended && !steps.contains(key) {
            steps.push(key.clone());
        }
        !self.has_ended
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }
}

impl Context {
    /// Enqueues a job when this one is done, in the same step: whatever happens in between, either
    /// this job comes again and the other is not there, or this one is done and the other is there
    /// exactly once.
    ///
    /// If the attempt fails, nothing is enqueued.
    ///
    /// # Errors
    /// The arguments could not be encoded, the name of the queue is not valid, the kind is unique, or
    /// the attempt has ended: a context can outlive it.
    pub fn then<J: Job>(&self, job: J) -> Result<(), EnqueueError> {
        self.then_enqueue(self.inner.mill.job(job))
    }

    /// As [`then`](Self::then), for a job with options of its own, made by the [mill](Self::mill) of this
    /// one. A delay counts from the completion.
    ///
    /// ```
    /// # use logmill_jobs::{Context, Job, JobResult, Priority, hours};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, Job)]
    /// # #[job(kind = "trial")]
    /// # struct Trial { user: u64 }
    /// # #[derive(Serialize, Deserialize, Job)]
    /// # #[job(kind = "remind")]
    /// # struct Remind { user: u64 }
    /// fn begin_trial(job: Trial, cx: Context) -> JobResult {
    ///     let remind = cx.mill().job(Remind { user: job.user });
    ///     cx.then_enqueue(remind.after(hours(48)).priority(Priority::Low))?;
    ///     Ok(())
    /// }
    /// # let _ = begin_trial;
    /// ```
    ///
    /// # Errors
    /// As for [`then`](Self::then); and it was made by another mill.
    pub fn then_enqueue<J: Job>(&self, job: Enqueue<'_, J>) -> Result<(), EnqueueError> {
        if !job.mill.is_same(&self.inner.mill) {
            let why = "a job that follows is made by the mill of the one before it";
            return Err(EnqueueError::Invalid(why.to_owned()));
        }
        let following = job.prepare()?;
        self.follow(|followed| followed.jobs.push(following))
    }

    /// Adds a job to the flow that this one is of when this one is done, in the same step: whatever
    /// waits for this one waits for the new one as well, and takes its output with the others if it
    /// takes those of several jobs of this kind.
    ///
    /// If the attempt fails, nothing is added.
    ///
    /// # Errors
    /// As for [`then`](Self::then); and the job is of no flow, or what waits for it takes the output
    /// of this one alone, or the outputs of jobs of another kind.
    pub fn add_beside<J: Job<Inputs = ()>>(&self, job: J) -> Result<(), EnqueueError> {
        let Some(node) = self.inner.node else {
            let why = "the job is of no flow that another one could be added to";
            return Err(EnqueueError::Invalid(why.to_owned()));
        };
        let is_same_kind = J::KIND == self.kind() || J::ALIASES.contains(&self.kind());
        check_beside(&self.inner.mill, node, is_same_kind)?;
        let beside = self.inner.mill.job(job).prepare()?;
        self.follow(|followed| followed.beside.push(beside))
    }

    fn follow(&self, add: impl FnOnce(&mut Followed)) -> Result<(), EnqueueError> {
        let mut follows = self.inner.follows.lock();
        if follows.has_ended {
            let why = "the attempt has ended; enqueue the job by the mill";
            return Err(EnqueueError::Invalid(why.to_owned()));
        }
        add(&mut follows.followed);
        Ok(())
    }

    /// Runs a step of the job, once: its result is stored, and a later attempt gets it from there.
    ///
    /// If the process dies after the step and before its result is stored, the step runs again. The
    /// results of steps are removed when the job is done. A dead job that is replayed is a new one, whose
    /// steps run again.
    ///
    /// # Errors
    /// The step's own failure, in which case it runs again; a result that cannot be encoded or
    /// decoded; a failure of the storage. Two steps of the same name are a mistake of the handler,
    /// and discard the job.
    pub fn step<T>(&self, name: &str, run: impl FnOnce() -> JobResult<T>) -> JobResult<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let inner = &self.inner;
        let key = keys::of_step(&inner.id, name);
        if !inner.follows.lock().steps.insert(name.to_owned()) {
            return Err(discard(format!("the job has two steps named {name:?}")));
        }
        let name = StepName {
            follows: &inner.follows,
            name,
            is_done: false,
        };
        let mill = &inner.mill.inner;
        if let Some(stored) = mill.backend.get(&key)? {
            let result = serde_json::from_slice(&stored.value)?;
            name.end(key);
            return Ok(result);
        }
        let result = run()?;
        let value = serde_json::to_vec(&result)?;
        let put = KeyChange::Put(&key, &value, Keep::For(KEEP_STEPS));
        mill.backend.commit(&Changes {
            keys: vec![put],
            ..Changes::default()
        })?;
        name.end(key);
        Ok(result)
    }

    /// Ends the attempt; returns what is to be stored with the completion of the job, if anything is.
    fn end(&self) -> Option<Followed> {
        let inner = &self.inner;
        let running = &inner.mill.inner.running;
        running.end(&inner.id, inner.node, &inner.signals);
        let mut follows = inner.follows.lock();
        follows.has_ended = true;
        let followed = std::mem::take(&mut follows.followed);
        (!followed.is_empty()).then_some(followed)
    }
}

/// The name of a step that runs; free again if the step is not done, so that the handler may try again.
struct StepName<'a> {
    follows: &'a Mutex<Follows>,
    name: &'a str,
    is_done: bool,
}

impl StepName<'_> {
    /// The step is done, and its result is stored under this key.
    fn end(mut self, key: Vec<u8>) {
        self.is_done = true;
        self.follows.lock().followed.steps.push(key);
    }
}

impl Drop for StepName<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.follows.lock().steps.remove(self.name);
        }
    }
}
