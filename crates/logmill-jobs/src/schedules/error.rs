//! Errors of schedules.

use crate::backend::BackendError;
use crate::error::EnqueueError;

/// A schedule is not valid, or was not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The cron expression cannot be parsed, or matches no date.
    #[error("{expression:?} is not a valid cron expression: {reason}")]
    Cron {
        /// The expression.
        expression: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither the system's time zone database nor the one in this program has the time zone.
    #[error("there is no time zone {0:?}; use a name such as Europe/Berlin")]
    TimeZone(String),
    /// The id of the schedule is not valid.
    #[error("the id of a schedule has 1 to 200 bytes and no control characters: {0:?}")]
    Id(String),
    /// An option is not valid for a schedule.
    #[error("{0}")]
    Invalid(String),
    /// The job cannot be enqueued as it is, or the schedule could not be stored.
    #[error(transparent)]
    Job(#[from] EnqueueError),
    /// The thread that enqueues the jobs of schedules could not be started.
    #[error("could not start the thread that runs schedules: {0}")]
    Thread(#[source] std::io::Error),
}

impl From<BackendError> for ScheduleError {
    fn from(error: BackendError) -> Self {
        Self::Job(error.into())
    }
}
