use logmill_jobs::{Context, Job, JobResult, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

struct NoJob;

#[debug_handler]
fn no_job(_: NoJob) -> JobResult {
    Ok(())
}

#[debug_handler]
fn not_first(_: Context, _: Welcome) -> JobResult {
    Ok(())
}

/// Has the compiler write `logmill_jobs::Job`, whatever else is named so in the crates that are there.
pub mod another {
    pub struct Job;
}

fn main() {}
