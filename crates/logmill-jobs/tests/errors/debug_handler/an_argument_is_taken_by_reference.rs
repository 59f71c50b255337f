use logmill_jobs::{Context, Job, JobResult, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[debug_handler]
fn borrows(job: &Welcome, cx: &mut Context) -> JobResult {
    let _ = (job, cx);
    Ok(())
}

fn main() {}
