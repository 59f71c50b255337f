//! Batches: jobs that run side by side, with jobs that follow when all have ended, when all are
//! done, or when the first has failed.

use super::stored::{OnFailure, Runs};
use super::{Flow, FlowHandle, JobNode};
use crate::Job;
use crate::error::EnqueueError;
use crate::mill::Mill;

/// Jobs that run side by side, from [`Mill::batch`], with jobs that follow once each: also of a batch
/// of one job, and of one of none.
///
/// ```
/// use logmill_jobs::{Job, JobResult, Mill, Workers, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "import_row")]
/// struct ImportRow(u32);
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "report", output = String)]
/// struct Report(String);
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let workers = Workers::new(())
///     .on(|_: ImportRow| JobResult::Ok(()))
///     .on(|report: Report| JobResult::Ok(report.0))
///     .start(&mill)?;
///
/// let mut batch = mill.batch("customers.csv");
/// for row in 0..100 {
///     batch.add(ImportRow(row));
/// }
/// let report = batch.on_success(Report("all rows are there".to_owned()));
/// batch.on_death(Report("a row could not be imported".to_owned()));
/// let batch = batch.enqueue()?;
/// assert_eq!(batch.result(&report)?, "all rows are there");
/// # workers.shutdown(secs(30));
/// # Ok(())
/// # }
/// ```
///
/// A batch is a flow, and has its limits and its handle. One job of each sort can follow; a further one
/// takes its place.
#[must_use = "a batch is enqueued by `enqueue`"]
#[derive(Debug)]
pub struct Batch {
    flow: Flow,
    jobs: Vec<u32>,
    followers: Vec<(u32, OnFailure)>,
}

impl Mill {
    /// A batch: jobs that run side by side. The name is for operators.
    pub fn batch(&self, name: impl Into<String>) -> Batch {
        Batch {
            flow: self.flow(name),
            jobs: Vec::new(),
            followers: Vec::new(),
        }
    }
}

impl Batch {
    /// Adds a job.
    pub fn add<J: Job<Inputs = ()>>(&mut self, job: J) -> JobNode<J> {
        let node = self.flow.add(job);
        self.jobs.push(node.node);
        node
    }

    /// Runs this job when all are done; never if one has failed.
    pub fn on_success<J: Job<Inputs = ()>>(&mut self, job: J) -> JobNode<J> {
        self.follow(job, Runs::AfterAll, OnFailure::FailAlone)
    }

    /// Runs this job when all have ended, in whatever way.
    pub fn on_complete<J: Job<Inputs = ()>>(&mut self, job: J) -> JobNode<J> {
        self.follow(job, Runs::AfterAll, OnFailure::Ignore)
    }

    /// Runs this job when the first has failed: is dead, expired or cancelled. The others go on.
    pub fn on_death<J: Job<Inputs = ()>>(&mut self, job: J) -> JobNode<J> {
        self.follow(job, Runs::AtFirstFailure, OnFailure::Continue)
    }

    fn follow<J: Job<Inputs = ()>>(
        &mut self,
        job: J,
        runs: Runs,
        on_failure: OnFailure,
    ) -> JobNode<J> {
        let prepared = self.flow.mill.job(job).prepare();
        let node = self.flow.push(prepared, runs);
        self.followers.push((node.node, on_failure));
        node
    }

    /// Enqueues the batch: all of it or nothing.
    ///
    /// # Errors
    /// As for [`Flow::enqueue`].
    pub fn enqueue(self) -> Result<FlowHandle, EnqueueError> {
        let Self {
            mut flow,
            jobs,
            followers,
        } = self;
        let id = flow.id;
        for (follower, on_failure) in followers {
            for &job in &jobs {
                flow.connect((id, job), (id, follower), on_failure);
            }
        }
        flow.enqueue()
    }
}
