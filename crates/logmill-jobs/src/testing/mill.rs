//! A mill for tests, in a directory of its own.

use std::ops::Deref;
use std::time::Duration;

use super::stage::{Crashed, Stage};
use super::storage::Storage;
use super::{ManualClock, RunError, RunReport};
use crate::error::OpenError;
use crate::workers::Workers;
use crate::{Mill, MillOptions};

/// How many steps a time is divided into.
const STEPS: u32 = 64;

/// A mill for tests: in a temporary directory, which is removed with it, on a manual clock, with
/// workers that run when they are told to.
///
/// It is used as the [`Mill`] that it is. The directory is in `/dev/shm`, in memory, if 512 MiB are
/// free there, else where the system has temporary files. Payloads may have up to 256 KiB, less than in other mills.
///
/// ```
/// use logmill_jobs::testing::TestMill;
/// use logmill_jobs::{Job, JobResult, Workers, retry_in, secs};
/// use serde::{Deserialize, Serialize};
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::sync::Arc;
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "send_welcome", output = String)]
/// struct SendWelcome {
///     user_id: u64,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let is_down = Arc::new(AtomicBool::new(true));
/// let down = is_down.clone();
/// let workers = Workers::new(()).on(move |job: SendWelcome| match down.load(Ordering::Relaxed) {
///     true => Err(retry_in(secs(60), "no connection")),
///     false => JobResult::Ok(format!("mail to user {}", job.user_id)),
/// });
///
/// let mill = TestMill::open()?;
/// let handle = mill.enqueue(SendWelcome { user_id: 42 })?;
/// assert_eq!(mill.run_until_idle(&workers)?.retried(), 1);
/// is_down.store(false, Ordering::Relaxed);
///
/// mill.advance(secs(59));
/// assert_eq!(mill.run_until_idle(&workers)?.ran, []);
/// mill.advance(secs(1));
/// assert_eq!(mill.run_until_idle(&workers)?.done(), 1);
/// assert_eq!(handle.try_result()?.as_deref(), Some("mail to user 42"));
/// # Ok(())
/// # }
/// ```
///
/// As no other thread runs jobs, [`JobHandle::wait`](crate::JobHandle::wait) waits for ever for a job
/// that has not run yet, in a test and in a handler; use
/// [`try_result`](crate::JobHandle::try_result) after a run.
pub struct TestMill {
    stage: Stage,
}

impl TestMill {
    /// A mill with the defaults, and a clock that starts now.
    ///
    /// # Errors
    /// The directory could not be made.
    pub fn open() -> Result<Self, OpenError> {
        Self::with_options(MillOptions::new())
    }

    /// A mill with these options. The clock is that of the options, or one that starts now.
    ///
    /// # Errors
    /// The directory could not be made.
    pub fn with_options(options: MillOptions) -> Result<Self, OpenError> {
        let clock = options.clock.as_manual().cloned().unwrap_or_default();
        let options = options.clock(&clock);
        let stage = Stage::new(clock, options, Storage::default(), &[])?;
        Ok(Self { stage })
    }

    /// The clock of the mill.
    pub fn clock(&self) -> &ManualClock {
        &self.stage.clock
    }

    /// Lets this time pass. No job runs by that.
    pub fn advance(&self, time: Duration) {
        self.stage.advance(time);
    }

    /// Runs all jobs that are due on this thread, one after the other, and what follows from them,
    /// until nothing is due.
    ///
    /// Async handlers run on this thread as well, in a runtime of their own.
    ///
    /// # Errors
    /// The workers cannot serve this mill, or their jobs make more and more jobs.
    pub fn run_until_idle<S: Clone + Send + Sync + 'static>(
        &self,
        workers: &Workers<S>,
    ) -> Result<RunReport, RunError> {
        // Nothing crashes this mill while it runs.
        let ran = self.stage.run(workers)?;
        Ok(ran.unwrap_or_else(|Crashed| RunReport::default()))
    }

    /// Lets this time pass in 64 steps, and runs before each and in the end what is due.
    ///
    /// A job whose time comes within a step runs at the end of that.
    ///
    /// # Errors
    /// As for [`run_until_idle`](Self::run_until_idle).
    pub fn run_for<S: Clone + Send + Sync + 'static>(
        &self,
        time: Duration,
        workers: &Workers<S>,
    ) -> Result<RunReport, RunError> {
        let mut report = self.run_until_idle(workers)?;
        for step in steps(time) {
            self.advance(step);
            report.ran.extend(self.run_until_idle(workers)?.ran);
        }
        Ok(report)
    }

    /// Ends the process of the mill as a kill would, and begins another one on the same files: what
    /// is in memory only is gone. The clock stands still meanwhile.
    ///
    /// Handles and clones of the mill are of the former one, and return errors.
    ///
    /// # Errors
    /// The files could not be copied or opened.
    pub fn crash(&mut self) -> Result<(), OpenError> {
        self.stage.restart()
    }
}

/// The steps of a time, which are as long as the time together.
pub(super) fn steps(time: Duration) -> impl Iterator<Item = Duration> {
    let step = time / STEPS;
    let last = time.saturating_sub(step * (STEPS - 1));
    let steps = std::iter::repeat_n(step, STEPS as usize - 1);
    steps.chain([last])
}

impl Deref for TestMill {
    type Target = Mill;

    fn deref(&self) -> &Mill {
        &self.stage.mill
    }
}

impl std::fmt::Debug for TestMill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestMill")
            .field("clock", self.clock())
            .finish_non_exhaustive()
    }
}
