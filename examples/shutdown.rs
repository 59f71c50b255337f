//! Shutdown and restart: running jobs get time to finish, and nothing that waits is lost.
//!
//! ```text
//! cargo run --example shutdown
//! ```
//!
//! Prints how two workers end: one finishes its job within the deadline, the other is still
//! running one. Then the queue is opened again, as the next process would, and the jobs that were
//! not acked are delivered.

use std::thread::sleep;
use std::time::Duration;

use logmill::{Failure, Job, Queue};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).stripes(1).open()?;
    for millis in ["100", "2000", "0", "0", "0"] {
        queue.enqueue(millis.as_bytes())?;
    }
    let workers = queue.workers(2).run(work)?;
    sleep(Duration::from_millis(50));

    println!("shutting down, with 500 ms for the jobs that run");
    let report = workers.shutdown(Duration::from_millis(500));
    println!("all finished: {}", report.finished_in_time);
    println!("still running: {:?}", report.still_running);
    let path = queue.path().to_path_buf();
    queue.close()?;

    // The worker that is still busy keeps the directory locked until its handler ends. In a real
    // restart the old process exits instead, which unlocks the directory as well.
    println!("opening again, waiting for the lock");
    let (queue, report) = Queue::builder(path)
        .wait_for_lock(Duration::from_secs(10))
        .open()?;
    println!("{} jobs left from the run before", report.jobs);
    let workers = queue.workers(2).run(work)?;
    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}

/// Takes as many milliseconds as the payload says.
fn work(job: &Job<'_>) -> Result<(), Failure> {
    let millis = std::str::from_utf8(job.payload())?.parse()?;
    println!("  job {} begins, {millis} ms", job.id());
    sleep(Duration::from_millis(millis));
    println!("  job {} ends", job.id());
    Ok(())
}
