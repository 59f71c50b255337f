use logmill_jobs::{Job, JobResult, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[debug_handler]
struct Mailer;

#[debug_handler(App)]
fn welcome(_: Welcome) -> JobResult {
    Ok(())
}

#[debug_handler(state: App)]
fn welcome_again(_: Welcome) -> JobResult {
    Ok(())
}

fn main() {}
