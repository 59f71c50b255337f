use logmill_jobs::{Job, JobResult, Workers};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

async fn welcome(_: Welcome) -> JobResult {
    Ok(())
}

fn main() {
    let _ = Workers::new(()).on(welcome);
}
