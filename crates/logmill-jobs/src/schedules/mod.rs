//! Schedules: jobs that are enqueued again and again.
//!
//! A schedule is one key of the backend: its definition, its prepared job and its next tick. A thread
//! sleeps until the next tick and does it in one transaction, which puts the state after the tick and
//! publishes the job. What runs the job is the same as for all others, so a schedule depends on neither
//! workers nor the ends of its jobs.
//!
//! - `schedule`: what its user says; `cron`: the ticks of a cron expression in a time zone.
//! - `plan`: the stored value, and the decision what is due, misfires included.
//! - `store`: the transactions. `ticker`: the thread. `manage`: the calls of users.

mod cron;
mod error;
mod manage;
mod plan;
mod schedule;
mod store;
mod ticker;

#[cfg(test)]
mod tests;

pub use self::error::ScheduleError;
pub(crate) use self::manage::kinds;
pub use self::manage::{ScheduleInfo, Scheduled};
pub use self::schedule::{Misfire, Schedule, Tick};
pub(crate) use self::store::parse_header;
pub(crate) use self::ticker::Schedules;

use crate::mill::Mill;

/// Has the schedules that a mill finds stored run from now on.
pub(crate) fn open(mill: &Mill) {
    // If that cannot be read, the thread tries again.
    // Another process may set up the first one, and nobody would say so here.
    if (mill.is_shared() || store::has_any(mill).unwrap_or(true))
        && let Err(error) = mill.inner.schedules.start(mill)
    {
        tracing::error!(%error, "could not start the thread that runs schedules");
    }
}
