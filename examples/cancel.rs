//! Cancelling: a reminder that is not needed any more, and a handler that stops early.
//!
//! ```text
//! cargo run --example cancel
//! ```
//!
//! A job is cancelled by the id that its enqueue returned. One that waits is not delivered, also not
//! after a restart. One that a handler has is not delivered again, and the handler can ask whether
//! somebody still waits for its result.

use std::thread::sleep;
use std::time::Duration;

use logmill::{EnqueueOptions, Failure, Job, Queue};

fn handler(job: &Job<'_>) -> Result<(), Failure> {
    if job.name() == Some("remind") {
        println!("reminding somebody who has paid");
    }
    for percent in (0..100).step_by(10) {
        // Each part of the work takes a while.
        sleep(Duration::from_millis(20));
        if job.is_cancelled() {
            println!("stopped at {percent} %");
            // It does not come back, whatever the handler returns.
            return Err(Failure::retry("cancelled"));
        }
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    let tomorrow = EnqueueOptions::new().delay(Duration::from_secs(24 * 3600));
    let reminder = queue.enqueue_with(b"order 7", tomorrow.name("remind"))?;
    let report = queue.enqueue_with(b"all orders", EnqueueOptions::new().name("report"))?;

    let workers = queue.workers(1).run(handler)?;
    sleep(Duration::from_millis(50));
    println!("the reminder: {:?}", queue.cancel(reminder)?);
    println!("the report: {:?}", queue.cancel(report)?);

    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    println!("cancelled: {}", queue.stats().cancelled);
    println!("the reminder again: {:?}", queue.cancel(reminder)?);
    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
