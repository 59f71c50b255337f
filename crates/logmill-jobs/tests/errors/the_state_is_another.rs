use logmill_jobs::{Job, JobResult, State, Workers};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[derive(Clone)]
struct Mailer;

fn welcome(_: Welcome, State(_mailer): State<Mailer>) -> JobResult {
    Ok(())
}

fn main() {
    let _ = Workers::new(()).on(welcome);
}
