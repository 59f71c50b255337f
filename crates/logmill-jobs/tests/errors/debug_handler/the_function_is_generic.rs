use logmill_jobs::{Job, JobResult, State, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[debug_handler]
fn any<J: Job>(_: J) -> JobResult {
    Ok(())
}

#[debug_handler]
fn some(_: Welcome, _: State<&'static str>, _: impl Send) -> JobResult {
    Ok(())
}

fn main() {}
