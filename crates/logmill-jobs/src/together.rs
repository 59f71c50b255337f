//! Jobs that are enqueued in one step: all or none, of whatever kinds, each with its own options.

use crate::backend::{BackendError, Changes};
use crate::enqueue::{Enqueue, tell};
use crate::error::EnqueueError;
use crate::handle::{JobHandle, Outcome};
use crate::mill::Mill;
use crate::prepared::PreparedJob;
use crate::{Job, JobId};

/// What [`Mill::enqueue_together`] takes: a job from [`Mill::job`], a vector of such jobs, or a tuple of
/// up to eight of these.
pub trait Together: sealed::Together {}

impl<T: sealed::Together> Together for T {}

/// A step that is put together.
#[derive(Debug)]
pub struct Step<'a> {
    mill: &'a Mill,
    jobs: Vec<PreparedJob>,
    sync: bool,
}

mod sealed {
    use super::{EnqueueError, JobId, Mill, Step};

    pub trait Together {
        /// What is left of it once it is prepared.
        type Prepared;
        /// What its caller gets.
        type Handles;

        fn prepare(self, step: &mut Step<'_>) -> Result<Self::Prepared, EnqueueError>;

        /// The handles of its jobs, whose ids are next.
        fn handles(
            prepared: Self::Prepared,
            mill: &Mill,
            ids: &mut dyn Iterator<Item = JobId>,
        ) -> Option<Self::Handles>;
    }
}

impl<J: Job> sealed::Together for Enqueue<'_, J> {
    type Prepared = ();
    type Handles = JobHandle<J>;

    fn prepare(self, step: &mut Step<'_>) -> Result<(), EnqueueError> {
        if !self.mill.is_same(step.mill) {
            let why = "jobs that are enqueued together are made by the same mill";
            return Err(EnqueueError::Invalid(why.to_owned()));
        }
        step.sync |= self.is_sync();
        let mut job = Enqueue::prepare(self)?;
        job.stamp(step.mill);
        step.jobs.push(job);
        Ok(())
    }

    fn handles((): (), mill: &Mill, ids: &mut dyn Iterator<Item = JobId>) -> Option<JobHandle<J>> {
        Some(JobHandle::new(mill.clone(), ids.next()?, Outcome::New))
    }
}

impl<T: sealed::Together> sealed::Together for Vec<T> {
    type Prepared = Vec<T::Prepared>;
    type Handles = Vec<T::Handles>;

    fn prepare(self, step: &mut Step<'_>) -> Result<Self::Prepared, EnqueueError> {
        self.into_iter().map(|one| one.prepare(step)).collect()
    }

    fn handles(
        prepared: Self::Prepared,
        mill: &Mill,
        ids: &mut dyn Iterator<Item = JobId>,
    ) -> Option<Self::Handles> {
        let prepared = prepared.into_iter();
        prepared.map(|one| T::handles(one, mill, ids)).collect()
    }
}

macro_rules! tuples {
    ($($name:ident $field:tt),+) => {
        impl<$($name: sealed::Together),+> sealed::Together for ($($name,)+) {
            type Prepared = ($($name::Prepared,)+);
            type Handles = ($($name::Handles,)+);

            fn prepare(self, step: &mut Step<'_>) -> Result<Self::Prepared, EnqueueError> {
                Ok(($(self.$field.prepare(step)?,)+))
            }

            fn handles(
                prepared: Self::Prepared,
                mill: &Mill,
                ids: &mut dyn Iterator<Item = JobId>,
            ) -> Option<Self::Handles> {
                Some(($($name::handles(prepared.$field, mill, ids)?,)+))
            }
        }
    };
}

tuples!(A 0);
tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);
tuples!(A 0, B 1, C 2, D 3, E 4);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

impl Mill {
    /// Enqueues jobs in one step: all of them, or none, whatever their kinds, queues and options.
    ///
    /// Jobs of one queue and one kind are faster by [`enqueue_all`](Self::enqueue_all). Jobs that depend
    /// on each other are a [`Flow`](crate::Flow).
    ///
    /// ```
    /// use logmill_jobs::{Job, Mill, Priority, secs};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "charge")]
    /// struct Charge {
    ///     order: u64,
    /// }
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "receipt", queue = "mail")]
    /// struct Receipt {
    ///     order: u64,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let mill = Mill::open(dir.path().join("jobs"))?;
    /// let (charge, receipts) = mill.enqueue_together((
    ///     mill.job(Charge { order: 17 }).priority(Priority::High),
    ///     vec![
    ///         mill.job(Receipt { order: 17 }).after(secs(60)),
    ///         mill.job(Receipt { order: 17 }).after(secs(3600)),
    ///     ],
    /// ))?;
    /// assert_eq!(charge.id().queue(), "default");
    /// assert_eq!(receipts.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`EnqueueError`]; no job is enqueued then, except after `NotDurable`. A job that is to be
    /// unique is refused as `Invalid`, and so are more jobs than fit into one step: some two megabytes of
    /// them with the default options.
    pub fn enqueue_together<T: Together>(&self, jobs: T) -> Result<T::Handles, EnqueueError> {
        let mut step = Step {
            mill: self,
            jobs: Vec::new(),
            sync: false,
        };
        let prepared = jobs.prepare(&mut step)?;
        let ids = step.enqueue()?;
        let handles = T::handles(prepared, self, &mut ids.into_iter());
        // One id for each job that was prepared.
        handles.ok_or_else(|| EnqueueError::Invalid("a job of the step has no id".to_owned()))
    }
}

impl Step<'_> {
    fn enqueue(self) -> Result<Vec<JobId>, EnqueueError> {
        if self.jobs.is_empty() {
            return Ok(Vec::new());
        }
        let headers: Vec<_> = self.jobs.iter().map(PreparedJob::headers).collect();
        let jobs = self.jobs.iter().zip(&headers);
        let changes = Changes {
            jobs: jobs
                .map(|(job, headers)| (&*job.place, job.new_job(headers)))
                .collect(),
            keys: Vec::new(),
            sync: self.sync,
        };
        let numbers = self.mill.inner.commit(&changes)?;
        let mut ids = Vec::with_capacity(numbers.len());
        for (job, number) in self.jobs.iter().zip(numbers) {
            let Some(number) = number else {
                let why = "jobs of the step enter their queues once the disk has room";
                return Err(BackendError::NotDurable(why.into()).into());
            };
            let id = JobId::new(&*job.place, number);
            if self.mill.inner.events.is_on() {
                tell(self.mill, &id, &job.kind);
            }
            ids.push(id);
        }
        Ok(ids)
    }
}
