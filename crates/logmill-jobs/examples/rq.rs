//! The first program of RQ's documentation: a function that is enqueued and runs in a worker.
//!
//! ```python
//! queue = Queue(connection=Redis())
//! queue.enqueue('tasks.send_welcome_email', user_id=42)
//! ```
//!
//! There, a worker is a process of its own, started by `rq worker`, and a Redis stands in between.
//! Here both are in one process, and the queue is a directory.

use logmill_jobs::{Job, JobResult, Mill, Workers, secs};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "send_welcome_email")]
struct SendWelcomeEmail {
    user_id: u64,
}

fn send_welcome_email(job: SendWelcomeEmail) -> JobResult {
    println!("welcome, user {}", job.user_id);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mill = Mill::open(dir.path().join("jobs"))?;
    let workers = Workers::new(()).on(send_welcome_email).start(&mill)?;

    let job = mill.enqueue(SendWelcomeEmail { user_id: 42 })?;
    println!("enqueued {}", job.id());
    job.wait()?;

    assert!(workers.shutdown(secs(10)).finished_in_time);
    mill.close()?;
    Ok(())
}
