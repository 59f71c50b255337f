//! A pool whose number of threads follows the load: its bounds, and how long its queues may take to
//! drain.
//!
//! ```text
//!  once a second: queues, threads ──▶ Look ──▶ Scaler: how many threads? ──▶ started, or let go
//! ```

mod decision;
#[cfg(test)]
mod simulated;
mod thread;

use std::ops::RangeInclusive;
use std::time::Duration;

pub(super) use self::thread::Scaling;
use super::concurrency::MOST_THREADS;
use crate::job::{minutes, secs};

/// Between which bounds the threads of a pool become more and fewer, for
/// [`Workers::scale`](super::Workers::scale).
///
/// ```
/// use logmill_jobs::{Job, JobResult, Mill, Scale, Workers, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "resize")]
/// struct Resize;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let mill = Mill::open(dir.path().join("jobs"))?;
/// let workers = Workers::new(()).on(|_: Resize| JobResult::Ok(()));
/// let scale = Scale::threads(2..=16).drain_within(secs(30));
/// let pool = workers.scale(scale).start(&mill)?;
/// assert_eq!(pool.health().wanted_threads, 2);
/// assert_eq!(pool.health().scales_between, Some((2, 16)));
/// # let _ = pool.shutdown(secs(30));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it is for `Workers::scale`"]
pub struct Scale {
    least: usize,
    most: usize,
    drain_within: Duration,
    shrink_after: Duration,
}

impl Scale {
    /// A pool that has at least and at most so many threads, of 1 to 1024.
    ///
    /// If the first number is the larger one, it is the only one.
    pub fn threads(threads: RangeInclusive<usize>) -> Self {
        let least = (*threads.start()).clamp(1, MOST_THREADS);
        Self {
            least,
            most: (*threads.end()).clamp(least, MOST_THREADS),
            drain_within: secs(30),
            shrink_after: minutes(1),
        }
    }

    /// Sets the time to drain that the pool aims at: it grows while its queues would take longer at
    /// the present pace until no job is ready any more. Default: 30 seconds.
    ///
    /// Rates are taken over as long a time, of 10 to 60 seconds.
    pub fn drain_within(mut self, time: Duration) -> Self {
        self.drain_within = time;
        self
    }

    /// Sets for how long fewer threads must have been enough before the pool shrinks. Default: a
    /// minute; at least 10 seconds.
    pub fn shrink_after(mut self, time: Duration) -> Self {
        self.shrink_after = time;
        self
    }

    /// The least and the most threads.
    pub(super) fn bounds(&self) -> (usize, usize) {
        (self.least, self.most)
    }
}
