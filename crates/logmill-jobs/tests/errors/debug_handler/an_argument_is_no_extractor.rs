use logmill_jobs::{Job, JobResult, State, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[derive(Clone)]
struct Mailer;

#[debug_handler]
fn welcome(_: Welcome, mailer: Mailer) -> JobResult {
    let _ = mailer;
    Ok(())
}

#[debug_handler]
async fn later(_: Welcome, State(_): State<Mailer>, _: Vec<String>) -> JobResult {
    Ok(())
}

fn main() {}
