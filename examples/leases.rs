//! Leases: handlers that hang, handlers that take long and say so, and jobs that are given back.
//!
//! ```text
//! cargo run --example leases
//! ```
//!
//! A handler has a job for 100 ms, or for as long as the job itself allows. One handler hangs, and
//! its job goes to another. One takes long and asks for more time. One meets a rate limit and gives
//! its job back, which counts as no attempt.

use std::thread::sleep;
use std::time::Duration;

use logmill::{EnqueueOptions, Failure, Job, Queue};

const MILLISECOND: Duration = Duration::from_millis(1);

fn handler(job: &Job<'_>) -> Result<(), Failure> {
    let (name, attempt) = (job.name().unwrap_or_default(), job.attempts());
    match (name, attempt) {
        ("hang", 1) => sleep(300 * MILLISECOND),
        ("transcode", 1) => {
            for _ in 0..6 {
                sleep(50 * MILLISECOND);
                // Without this, another worker would get the job after 100 ms.
                if !job.touch() {
                    return Err(Failure::retry("another worker has the job"));
                }
            }
        }
        ("call", 1) if job.enqueued_at().elapsed().unwrap_or_default() < 200 * MILLISECOND => {
            println!("{name}: the API is busy, given back");
            return Err(Failure::snooze(200 * MILLISECOND));
        }
        _ => {}
    }
    println!("{name}: done in attempt {attempt}");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let builder = Queue::builder(dir.path()).lease_timeout(100 * MILLISECOND);
    let (queue, _) = builder.open()?;
    let workers = queue.workers(4).run(handler)?;

    queue.enqueue_with(b"", EnqueueOptions::new().name("hang"))?;
    queue.enqueue_with(b"", EnqueueOptions::new().name("transcode"))?;
    queue.enqueue_with(b"", EnqueueOptions::new().name("call"))?;
    // This job may take ten minutes.
    let patient = EnqueueOptions::new().lease_timeout(Duration::from_secs(600));
    queue.enqueue_with(b"", patient.name("report"))?;

    while queue.stats().depth() > 0 {
        sleep(5 * MILLISECOND);
    }
    println!("given back {} times", queue.stats().snoozed);
    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
