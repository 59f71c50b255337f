//! Batches: many jobs with one call, on the side that enqueues and on the side that consumes.
//!
//! ```text
//! cargo run --example batches
//! ```
//!
//! Prints the ids of a batch, how the jobs come out again in batches of up to four, and what a
//! batch error says when the queue has no room for all of it.

use std::time::Duration;

use logmill::{EnqueueError, Queue};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).max_depth(10).open()?;

    // One reservation in the log, and with Durability::Sync one flush, for all of them.
    let mails: Vec<String> = (1..=10).map(|number| format!("mail {number}")).collect();
    let ids = queue.enqueue_batch(&mails)?;
    println!("enqueued {} jobs, {} to {}", ids.len(), ids[0], ids[9]);

    // Many jobs for one round trip, such as a multi-row INSERT or a bulk API.
    let consumer = queue.consumer();
    loop {
        let jobs = consumer.next_batch(4, Duration::from_millis(50));
        if jobs.is_empty() {
            break;
        }
        let payloads = jobs
            .iter()
            .map(|job| String::from_utf8_lossy(job.payload()));
        println!("  one insert for {:?}", payloads.collect::<Vec<_>>());
        // Each job is settled by itself: some of a batch may be acked and others retried.
        for job in jobs {
            job.ack();
        }
    }

    // A batch is no transaction. The error says which jobs are in the queue.
    queue.enqueue(b"takes one of ten places")?;
    match queue.enqueue_batch(&mails) {
        Ok(_) => println!("room for all"),
        Err(error) => {
            println!("{error}");
            if let EnqueueError::Full { .. } = error.error {
                let left = &mails[error.enqueued.len()..];
                println!("to be enqueued when there is room: {left:?}");
            }
        }
    }
    queue.close()?;
    Ok(())
}
