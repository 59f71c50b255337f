use logmill_jobs::{Context, Job, JobResult, Workers};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

fn welcome(_: Context, _: Welcome) -> JobResult {
    Ok(())
}

fn main() {
    let _ = Workers::new(()).on(welcome);
}
