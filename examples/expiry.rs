//! Expiry: jobs that are of no use when they come late.
//!
//! ```text
//! cargo run --example expiry
//! ```
//!
//! Nobody consumes for a moment. Then one login code is sent, and the other is too old: it is not
//! delivered, and becomes a dead letter because the queue was opened so.

use std::thread::sleep;
use std::time::Duration;

use logmill::{EnqueueOptions, Failure, Job, Queue};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).keep_expired(true).open()?;

    let soon = EnqueueOptions::new().expires_after(Duration::from_millis(50));
    queue.enqueue_with(b"login code 1234", soon.name("sms"))?;
    let later = EnqueueOptions::new().expires_after(Duration::from_secs(600));
    queue.enqueue_with(b"login code 9876", later.name("sms"))?;
    sleep(Duration::from_millis(100));

    let workers = queue.workers(1).run(|job: &Job<'_>| {
        println!("sending {}", String::from_utf8_lossy(job.payload()));
        Ok::<(), Failure>(())
    })?;
    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    for letter in queue.dead_letters().iter() {
        let payload = String::from_utf8_lossy(letter.payload());
        println!("not sent: {payload}, {}", letter.reasons()[0].reason);
    }
    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
