//! A queue, as operators see it: its figures, its pause, its dead jobs.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::backend::{self, BackendError, QueueStats, name_of_level};
use crate::enqueue::{check_name, header};
use crate::figures::Loads;
use crate::mill::{Mill, OpenQueue};
use crate::{JobId, Priority, unique};

/// A queue of a mill, from [`Mill::queue`]: to pause it, to look at its figures, and to replay or
/// purge what is dead.
///
/// ```
/// use logmill_jobs::{Job, JobResult, Mill, Workers, discard, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "resize", queue = "images")]
/// struct Resize;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let pool = Workers::new(())
///     .on(|_: Resize| JobResult::Err(discard("not an image")))
///     .start(&mill)?;
/// let _ = mill.enqueue(Resize)?.wait();
///
/// let images = mill.queue("images")?;
/// let dead = images.dead_jobs()?;
/// assert_eq!((dead[0].kind.as_str(), dead[0].reason()), ("resize", "not an image"));
/// images.purge(&dead[0])?;
/// assert_eq!(images.stats()?.dead, 0);
/// # pool.shutdown(secs(30));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct JobQueue {
    name: String,
    pub(crate) mill: Mill,
    pub(crate) loads: Arc<Loads>,
}

/// A dead job: its attempts have failed, or its handler gave up on it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadJob {
    /// The id that the job had.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// Its arguments, encoded.
    pub payload: Vec<u8>,
    /// Attempts that failed.
    pub attempts: u32,
    /// How often the process died during an attempt.
    pub crashes: u32,
    /// What went wrong, oldest first.
    pub reasons: Vec<String>,
    /// When the last attempt failed.
    pub died_at: Option<SystemTime>,
    /// How they are encoded.
    pub(crate) tag: Option<Vec<u8>>,
    /// Its place in a flow.
    pub(crate) flow: Option<Vec<u8>>,
    pub(crate) letter: u64,
    /// The header by which it was unique.
    pub(crate) unique: Option<Vec<u8>>,
}

impl DeadJob {
    /// What went wrong last.
    pub fn reason(&self) -> &str {
        self.reasons.last().map_or("", String::as_str)
    }
}

impl Mill {
    /// A queue, for operators. It is created if it does not exist.
    ///
    /// # Errors
    /// The name is not valid, or the storage failed.
    pub fn queue(&self, name: &str) -> Result<JobQueue, BackendError> {
        check_name(name).map_err(|error| BackendError::Invalid(error.to_string()))?;
        // Those that are used later are open from then on.
        let existing = self.inner.backend.queue_names()?;
        for level in Priority::ALL {
            let place = name_of_level(name, level);
            if level == Priority::Normal || existing.contains(&place) {
                self.inner.backend_queue(&place)?;
            }
        }
        Ok(JobQueue {
            name: name.to_owned(),
            mill: self.clone(),
            loads: Arc::clone(&self.inner.loads),
        })
    }

    /// The names of the queues that exist, sorted.
    ///
    /// # Errors
    /// The storage failed.
    pub fn queue_names(&self) -> Result<Vec<String>, BackendError> {
        let names = self.inner.backend.queue_names()?.into_iter();
        let mut names: Vec<_> = names
            .filter_map(|name| name.split('.').next().map(str::to_owned))
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

impl JobQueue {
    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pauses the queue: no worker takes a job of it, also after a restart, until it is resumed.
    ///
    /// Jobs that run go on, and jobs can be enqueued.
    ///
    /// # Errors
    /// The storage failed.
    pub fn pause(&self) -> Result<(), BackendError> {
        self.set_paused(true)
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// The storage failed.
    pub fn resume(&self) -> Result<(), BackendError> {
        self.set_paused(false)
    }

    fn set_paused(&self, paused: bool) -> Result<(), BackendError> {
        // The normal level first: one that is opened from then on looks at it.
        let normal = self.mill.inner.backend_queue(&self.name)?;
        normal.queue.set_paused(paused)?;
        let mut levels = self.existing_levels()?.into_iter();
        levels.try_for_each(|level| level.queue.set_paused(paused))
    }

    /// Those levels of priority that were ever used, also by other processes on a shared backend, of which
    /// nobody has told this one.
    pub(crate) fn existing_levels(&self) -> Result<Vec<Arc<OpenQueue>>, BackendError> {
        if self.mill.is_shared() {
            self.mill.queue(&self.name)?;
        }
        Ok(self.levels())
    }

    /// Those levels of priority that were ever used, as far as this process knows.
    fn levels(&self) -> Vec<Arc<OpenQueue>> {
        let places = Priority::ALL.map(|level| name_of_level(&self.name, level));
        let open = places
            .iter()
            .filter_map(|place| self.mill.inner.queues.get(place));
        open.collect()
    }

    /// Whether the queue is paused.
    pub fn is_paused(&self) -> bool {
        self.levels().iter().all(|level| level.queue.is_paused())
    }

    /// The figures of the queue, all levels of priority together.
    ///
    /// # Errors
    /// The storage failed.
    pub fn stats(&self) -> Result<QueueStats, BackendError> {
        let mut sum = QueueStats::default();
        for level in &self.existing_levels()? {
            let one = level.queue.stats()?;
            sum.ready += one.ready;
            sum.delayed += one.delayed;
            sum.running += one.running;
            sum.held += one.held;
            sum.dead += one.dead;
            sum.oldest_ready = sum.oldest_ready.max(one.oldest_ready);
            sum.enqueued += one.enqueued;
            sum.completed += one.completed;
            sum.retried += one.retried;
            sum.ended += one.ended;
            sum.lost += one.lost;
        }
        Ok(sum)
    }

    /// The dead jobs, oldest first within each level of priority; all of them, with their arguments.
    /// Where there may be many, [`dead_jobs_page`](Self::dead_jobs_page) returns some at a time.
    ///
    /// # Errors
    /// The storage failed.
    pub fn dead_jobs(&self) -> Result<Vec<DeadJob>, BackendError> {
        let mut dead = Vec::new();
        for level in &self.existing_levels()? {
            let letters = level.queue.dead_letters()?.into_iter();
            dead.extend(letters.map(|letter| dead_job(&self.mill, level, letter)));
        }
        Ok(dead)
    }

    /// Enqueues a dead job anew. Returns its new id; None if it is not there any more.
    ///
    /// It has all its attempts again, is due at once, and does not expire.
    ///
    /// # Errors
    /// The queue is full, or the storage failed.
    pub fn replay(&self, dead: &DeadJob) -> Result<Option<JobId>, BackendError> {
        let Some(level) = self.level_of(dead) else {
            return Ok(None);
        };
        crate::flow::note_replay(&self.mill, dead.flow.as_deref())?;
        let counter = level.arrivals.of(&dead.kind);
        counter.add(1);
        let number = level.queue.replay(dead.letter);
        if !matches!(&number, Ok(Some(_)) | Err(BackendError::NotDurable(_))) {
            counter.take_back(1);
        }
        let number = number?;
        Ok(number.map(|number| JobId::new(level.name.clone(), number)))
    }

    /// Removes a dead job. Returns whether it was there.
    ///
    /// # Errors
    /// The storage failed.
    pub fn purge(&self, dead: &DeadJob) -> Result<bool, BackendError> {
        match self.level_of(dead) {
            Some(level) => self.purge_letter(&level, dead.letter, dead.unique.as_deref()),
            None => Ok(false),
        }
    }

    /// Removes a letter, and what is kept of it if it was there: one that has been replayed needs it.
    pub(crate) fn purge_letter(
        &self,
        level: &OpenQueue,
        letter: u64,
        unique: Option<&[u8]>,
    ) -> Result<bool, BackendError> {
        let was_there = level.queue.purge(letter)?;
        if was_there {
            unique::forget_letter(&self.mill, unique)?;
        }
        Ok(was_there)
    }

    fn level_of(&self, dead: &DeadJob) -> Option<Arc<OpenQueue>> {
        let mut levels = self.levels().into_iter();
        levels.find(|level| &*level.name == dead.id.place())
    }
}

pub(crate) fn dead_job(mill: &Mill, level: &OpenQueue, letter: backend::DeadJob) -> DeadJob {
    let instead = unique::job_of_letter(mill, &letter);
    let instead = instead.unwrap_or_else(|error| {
        tracing::warn!(%error, "the arguments of a dead job could not be read");
        None
    });
    let (headers, payload) = match instead {
        Some(job) => (job.headers, job.payload),
        None => (letter.headers, letter.payload),
    };
    let mut headers = headers.into_iter();
    let tag = headers.find(|(key, _)| key == header::CODEC);
    DeadJob {
        id: JobId::new(level.name.clone(), letter.number),
        kind: letter.kind,
        payload,
        tag: tag.map(|(_, tag)| tag),
        attempts: letter.attempts,
        crashes: letter.crashes,
        reasons: letter.reasons,
        died_at: letter.died_at,
        flow: letter.flow,
        letter: letter.letter,
        unique: letter.unique,
    }
}

impl fmt::Debug for JobQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobQueue")
            .field("name", &self.name)
            .field("levels", &self.levels().len())
            .finish()
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_was_made_and_not_paused_before_its_process_died_is_paused_when_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs");
        let mill = Mill::open(&path).unwrap();
        mill.queue("notes").unwrap().pause().unwrap();
        drop(mill.inner.backend.queue("notes.high").unwrap());
        mill.close().unwrap();

        let mill = Mill::open(&path).unwrap();
        let high = mill.inner.queue("notes", Priority::High).unwrap();
        assert!(high.queue.is_paused());
        let queue = mill.queue("notes").unwrap();
        assert!(queue.is_paused());
        queue.resume().unwrap();
        assert!(!high.queue.is_paused());
    }
}
