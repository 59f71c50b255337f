//! The retry of Celery's documentation: a bound task that catches an exception and raises
//! `self.retry`.
//!
//! ```python
//! @app.task(bind=True, max_retries=3)
//! def send_welcome(self, user_id):
//!     try:
//!         api.send(user_id)
//!     except api.Busy as exc:
//!         raise self.retry(exc=exc, countdown=60)
//! ```
//!
//! Here the handler returns what is to happen. Any other error is retried with the kind's backoff.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use logmill_jobs::{Context, Job, JobResult, Mill, State, Workers, retry_in, secs};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "send_welcome", max_retries = 3)]
struct SendWelcome {
    user_id: u64,
}

/// An API that is busy at first.
#[derive(Clone, Default)]
struct Api {
    calls: Arc<AtomicU32>,
}

#[derive(Debug, thiserror::Error)]
#[error("the API is busy")]
struct Busy;

impl Api {
    fn send(&self, _user_id: u64) -> Result<(), Busy> {
        match self.calls.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(Busy),
            _ => Ok(()),
        }
    }
}

/// `countdown=60` in a program that does not end so soon.
const COUNTDOWN: Duration = Duration::from_millis(50);

fn send_welcome(job: SendWelcome, State(api): State<Api>, cx: Context) -> JobResult {
    api.send(job.user_id)
        .map_err(|error| retry_in(COUNTDOWN, error))?;
    println!("sent at attempt {}", cx.attempt());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mill = Mill::open(dir.path().join("jobs"))?;
    let workers = Workers::new(Api::default()).on(send_welcome).start(&mill)?;
    mill.enqueue(SendWelcome { user_id: 42 })?.wait()?;
    assert!(workers.shutdown(secs(10)).finished_in_time);
    mill.close()?;
    Ok(())
}
