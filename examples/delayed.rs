//! Delays and due times: jobs that are delivered later, in the order in which they become due.
//!
//! ```text
//! cargo run --example delayed
//! ```
//!
//! Prints each job with the time that passed between its enqueue and its delivery, and at the
//! start how many jobs are ready and how many are delayed.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use logmill::{EnqueueOptions, Failure, Job, Queue};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    let workers = queue.workers(1).run(|job: &Job<'_>| {
        let waited = job.enqueued_at().elapsed().unwrap_or_default().as_millis();
        println!(
            "after {waited:4} ms: {}",
            String::from_utf8_lossy(job.payload())
        );
        Ok::<(), Failure>(())
    })?;

    // A length of time from now: waits on the monotonic clock, however the wall clock is set.
    let reminder = EnqueueOptions::new().delay(Duration::from_millis(600));
    queue.enqueue_with(b"a reminder, delayed by 600 ms", reminder)?;
    // A time by the wall clock, such as tomorrow at nine.
    let report = EnqueueOptions::new().due_at(SystemTime::now() + Duration::from_millis(300));
    queue.enqueue_with(b"a report, due at a time 300 ms ahead", report)?;
    // A due time in the past means at once.
    let late = EnqueueOptions::new().due_at(SystemTime::now() - Duration::from_secs(60));
    queue.enqueue_with(b"a report that was due a minute ago", late)?;
    queue.enqueue(b"an ordinary job")?;

    sleep(Duration::from_millis(100));
    let stats = queue.stats();
    println!("ready {}, delayed {}", stats.ready, stats.delayed);

    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
