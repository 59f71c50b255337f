//! Retries: a handler that classifies its failures, and what happens to the job after each kind.
//!
//! ```text
//! cargo run --example retries
//! ```
//!
//! Prints each attempt with the time since the start. The job that fails twice comes back after
//! 100 ms and then 200 ms, the one that is told to wait after 500 ms, and the malformed one not at
//! all: it becomes a dead letter after a single attempt.

use std::thread::sleep;
use std::time::{Duration, Instant};

use logmill::{Failure, Jitter, Job, Queue, RetryPolicy};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    // Jitter spreads jobs that failed together. Here it is off, so that the times are easy to read.
    let policy = RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(10))
        .jitter(Jitter::None)
        .max_attempts(4);
    let (queue, _) = Queue::builder(dir.path()).retry(policy).open()?;

    for payload in ["timeout", "rate limit", "malformed"] {
        queue.enqueue(payload.as_bytes())?;
    }

    let start = Instant::now();
    let workers = queue.workers(2).run(move |job: &Job<'_>| {
        let kind = std::str::from_utf8(job.payload()).map_err(Failure::dead_letter)?;
        let at = start.elapsed().as_millis();
        println!("{at:4} ms  {kind}, attempt {}", job.attempts());
        match (kind, job.attempts()) {
            // May well work the next time: any error that is returned means a retry by the policy.
            ("timeout", 1 | 2) => Err(Failure::retry("no answer from the mail server")),
            // The other side says when to come back.
            ("rate limit", 1) => Err(Failure::retry_after(Duration::from_millis(500), "429")),
            // Will never work.
            ("malformed", _) => Err(Failure::dead_letter("not an address")),
            _ => Ok(()),
        }
    })?;

    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    workers.shutdown(Duration::from_secs(5));
    let stats = queue.stats();
    println!(
        "acked {}, retried {}, dead {}",
        stats.acked, stats.retried, stats.dead
    );
    queue.close()?;
    Ok(())
}
