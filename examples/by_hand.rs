//! Consuming by hand: a `Consumer` on a thread of your own, which settles each job itself.
//!
//! ```text
//! cargo run --example by_hand
//! ```
//!
//! Prints what is done with each job (ack, retry, dead letter, or dropped by a forgetful caller)
//! and how often it is delivered until it is acked or dead.

use std::time::Duration;

use logmill::{Queue, RetryPolicy};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let policy = RetryPolicy::fixed(Duration::from_millis(50));
    let (queue, _) = Queue::builder(dir.path()).retry(policy).open()?;
    queue.enqueue_batch(&["ack me", "retry me", "bury me", "forget me"])?;

    // One consumer for each thread. Dropping it gives what it has claimed back to the others.
    let consumer = queue.consumer();
    // Waits up to 200 ms for a job; `next` waits until the queue is closed, `try_next` not at all.
    while let Some(job) = consumer.next_timeout(Duration::from_millis(200)) {
        let text = String::from_utf8_lossy(job.payload()).into_owned();
        print!("job {}, attempt {}: {text}: ", job.id(), job.attempts());
        match (text.as_str(), job.attempts()) {
            ("retry me", 1) => {
                println!("failed, comes back after the policy's backoff");
                job.retry("try again");
            }
            ("bury me", _) => {
                println!("failed for good");
                job.dead_letter("hopeless");
            }
            ("forget me", 1) => {
                println!("dropped without a word, which is a failed attempt");
                drop(job);
            }
            _ => {
                println!("done");
                job.ack();
            }
        }
    }

    let stats = queue.stats();
    println!(
        "acked {}, retried {}, dead {}",
        stats.acked, stats.retried, stats.dead
    );
    drop(consumer);
    queue.close()?;
    Ok(())
}
