use logmill_jobs::{Job, JobResult, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome", output = String)]
struct Welcome;

#[debug_handler]
fn number(_: Welcome) -> JobResult<u64> {
    Ok(7)
}

#[debug_handler]
async fn nothing(_: Welcome) -> JobResult {
    Ok(())
}

#[debug_handler]
fn future(_: Welcome) -> impl Future<Output = JobResult<u64>> {
    std::future::ready(Ok(7))
}

fn main() {}
