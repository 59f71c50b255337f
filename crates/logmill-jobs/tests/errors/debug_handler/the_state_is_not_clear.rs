use logmill_jobs::{FromAttempt, Job, JobResult, State, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[derive(Clone)]
struct App;

#[derive(Clone)]
struct Mailer;

struct Tenant;

impl FromAttempt<App> for Tenant {
    fn from_attempt(_: &logmill_jobs::Attempt<'_>, _: &App) -> JobResult<Self> {
        Ok(Self)
    }
}

#[debug_handler]
fn several(_: Welcome, State(_): State<App>, State(_): State<Mailer>) -> JobResult {
    Ok(())
}

#[debug_handler]
fn none(_: Welcome, _: Tenant) -> JobResult {
    Ok(())
}

fn main() {}
