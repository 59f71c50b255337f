use logmill_jobs::{Job, JobResult, State, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[derive(Clone)]
struct App;

#[derive(Clone)]
struct Mailer;

#[debug_handler(state = App)]
fn welcome(_: Welcome, State(_mailer): State<Mailer>) -> JobResult {
    Ok(())
}

fn main() {}
