//! What ran: the report of a test mill.

use std::fmt;
use std::time::Duration;

use crate::JobId;
use crate::backend::{KeyChange, Settlement};
use crate::error::StartError;
use crate::keys::{self, Record};

/// What ran until a mill was idle, from [`TestMill::run_until_idle`](super::TestMill::run_until_idle).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunReport {
    /// Each attempt, in their order; and the jobs that no handler was called for, as they have to
    /// wait.
    pub ran: Vec<Ran>,
}

/// An attempt at a job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ran {
    /// The job.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// How it ended.
    pub how: How,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// The job is done.
    Done,
    /// The attempt failed, and the job comes back.
    Retried {
        /// After this time.
        after: Duration,
        /// What went wrong.
        reason: String,
    },
    /// The handler gave the job back.
    Snoozed {
        /// For this time.
        after: Duration,
    },
    /// The job is dead.
    Dead {
        /// What went wrong.
        reason: String,
    },
    /// The handler ended the job, as nobody needs it.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// The job had expired, and no handler was called.
    Expired,
    /// No handler takes the kind.
    Parked,
    /// The job waits for a limit.
    Held,
    /// How it ended could not be stored, as the process crashed.
    Lost,
}

/// Jobs could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The workers cannot serve the mill.
    #[error(transparent)]
    Start(#[from] StartError),
    /// After 100,000 attempts jobs are still due.
    #[error("jobs are still due after 100,000 attempts: some come back or make new ones each time")]
    Endless,
}

impl How {
    /// What the settlement of this job means.
    pub(super) fn of(settlement: &Settlement<'_>, id: &JobId) -> Self {
        match *settlement {
            Settlement::Done(changes) => {
                let key = keys::of_record(id);
                let keys = changes.map_or(&[][..], |changes| &changes.keys);
                let record = keys.iter().find_map(|change| match change {
                    KeyChange::Put(of, value, _) if *of == key => Record::parse(value),
                    _ => None,
                });
                match record {
                    Some(Record::Cancelled { reason }) => Self::Cancelled { reason },
                    Some(Record::Dead { reason, .. }) => Self::Dead { reason },
                    Some(Record::Expired) => Self::Expired,
                    _ => Self::Done,
                }
            }
            Settlement::Retry { after, reason } => Self::Retried {
                after,
                reason: reason.to_owned(),
            },
            Settlement::Snooze { after } => Self::Snoozed { after },
            Settlement::Dead { reason } => Self::Dead {
                reason: reason.to_owned(),
            },
        }
    }
}

impl RunReport {
    /// How many attempts completed their jobs.
    pub fn done(&self) -> usize {
        self.count(|how| matches!(how, How::Done))
    }

    /// How many attempts failed, of jobs that come back.
    pub fn retried(&self) -> usize {
        self.count(|how| matches!(how, How::Retried { .. }))
    }

    /// How many jobs were given back by their handlers.
    pub fn snoozed(&self) -> usize {
        self.count(|how| matches!(how, How::Snoozed { .. }))
    }

    /// How many jobs died.
    pub fn dead(&self) -> usize {
        self.count(|how| matches!(how, How::Dead { .. }))
    }

    /// How many jobs were ended by their handlers, as nobody needs them.
    pub fn cancelled(&self) -> usize {
        self.count(|how| matches!(how, How::Cancelled { .. }))
    }

    /// How many jobs had expired before they began.
    pub fn expired(&self) -> usize {
        self.count(|how| matches!(how, How::Expired))
    }

    /// How many jobs no handler took.
    pub fn parked(&self) -> usize {
        self.count(|how| matches!(how, How::Parked))
    }

    fn count(&self, of: impl Fn(&How) -> bool) -> usize {
        self.ran.iter().filter(|ran| of(&ran.how)).count()
    }
}

/// One line for each attempt.
impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ran in &self.ran {
            writeln!(f, "{ran}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}, attempt {}: ", self.id, self.kind, self.attempt)?;
        match &self.how {
            How::Done => f.write_str("done"),
            How::Retried { after, reason } => write!(f, "retried after {after:?}: {reason}"),
            How::Snoozed { after } => write!(f, "snoozed for {after:?}"),
            How::Dead { reason } => write!(f, "dead: {reason}"),
            How::Cancelled { reason } => write!(f, "cancelled: {reason}"),
            How::Expired => f.write_str("expired"),
            How::Parked => f.write_str("parked, as no handler takes it"),
            How::Held => f.write_str("waits for a limit"),
            How::Lost => f.write_str("its end was lost in a crash"),
        }
    }
}
