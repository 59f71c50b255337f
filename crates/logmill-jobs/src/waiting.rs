//! Why a job waits, as far as that can be said without looking at every job.

use std::fmt;
use std::time::SystemTime;

use crate::JobId;
use crate::backend::BackendError;
use crate::mill::Mill;

/// What a job waits for, from [`Mill::waits_for`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitsFor {
    /// A worker came to it, and it is held for what [`Mill::why_waiting`] says: a limit, a pause, a handler.
    Held(String),
    /// Its time: that of its delay, or the end of its backoff or snooze.
    Time(SystemTime),
    /// The end of the pause of its queue.
    Resume,
    /// Workers: none of this process serve its queue.
    Workers,
    /// A worker: it can begin.
    Turn {
        /// Jobs of its queue and level of priority that can begin, itself included: at most so many
        /// come before it.
        ready: u64,
    },
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(why) => f.write_str(why),
            Self::Time(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH);
                let seconds = since.unwrap_or_default().as_secs_f64();
                write!(f, "it is due at {seconds:.3} seconds since 1970")
            }
            Self::Resume => f.write_str("its queue is paused"),
            Self::Workers => f.write_str("no workers serve its queue"),
            Self::Turn { ready } => write!(f, "it is one of {ready} jobs that wait for a worker"),
        }
    }
}

impl Mill {
    /// What a job waits for; None if it does not wait: a handler has it, it has ended, or never was.
    ///
    /// Says what is so at the moment, and only the first reason: a job of a paused queue may have to
    /// wait for a limit after that. Reads the job's record, and looks through all jobs that are held.
    ///
    /// ```
    /// use logmill_jobs::{Job, Mill, WaitsFor};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "resize")]
    /// struct Resize;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let mill = Mill::open(dir.path().join("jobs"))?;
    /// let handle = mill.enqueue(Resize)?;
    /// assert_eq!(mill.waits_for(handle.id())?, Some(WaitsFor::Workers));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The storage failed.
    pub fn waits_for(&self, id: &JobId) -> Result<Option<WaitsFor>, BackendError> {
        let id = &self.current_id(id)?;
        if let Some(why) = self.why_waiting(id) {
            return Ok(Some(WaitsFor::Held(why)));
        }
        let Some(queue) = self.inner.existing_queue(id.place())? else {
            return Ok(None);
        };
        let seen = queue.queue.look(id.number())?;
        let Some(seen) = seen.filter(|seen| !seen.is_running) else {
            return Ok(None);
        };
        Ok(Some(if let Some(due) = seen.due {
            WaitsFor::Time(due)
        } else if queue.queue.is_paused() {
            WaitsFor::Resume
        } else if !self.inner.pools.serve(id.queue()) {
            WaitsFor::Workers
        } else {
            let ready = queue.queue.stats()?.ready.max(1);
            WaitsFor::Turn { ready }
        }))
    }
}
