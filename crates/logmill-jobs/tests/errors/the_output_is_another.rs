use logmill_jobs::{Job, JobResult, Workers};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome", output = String)]
struct Welcome;

fn welcome(_: Welcome) -> JobResult<u64> {
    Ok(7)
}

fn main() {
    let _ = Workers::new(()).on(welcome);
}
