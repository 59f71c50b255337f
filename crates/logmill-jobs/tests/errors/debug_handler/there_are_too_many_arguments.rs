use logmill_jobs::{Context, Job, JobResult, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

type C = Context;

#[debug_handler]
fn welcome(_: Welcome, _: C, _: C, _: C, _: C, _: C, _: C, _: Vec<Context>) -> JobResult {
    Ok(())
}

#[debug_handler]
fn nothing() -> JobResult {
    Ok(())
}

fn main() {}
