//! Batches: many jobs with one call, on the side that enqueues and on the side that consumes.
//!
//! ```text
//! cargo run --example batches
//! ```
//!
//! Prints the ids of a batch, how the jobs come out again in batches of up to four, and the errors
//! of batches for which there is no room.

use std::time::Duration;

use logmill::{EnqueueOptions, Queue};

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

    // All or none, each with its own options: the order is packed now, and its invoice sent later.
    let invoice = EnqueueOptions::new()
        .name("invoice")
        .delay(Duration::from_secs(3600));
    let jobs = [
        (b"order 7", EnqueueOptions::new().name("pack")),
        (b"order 7", invoice),
    ];
    queue.enqueue_batch_with(&jobs)?;

    // There is room for 8 more jobs. Of ten, none is enqueued.
    let error = queue.enqueue_batch(&mails).unwrap_err();
    println!("{error}");
    assert_eq!(queue.stats().depth(), 2);
    // Many jobs go in several batches, each of them all or none.
    for some in mails[..8].chunks(4) {
        queue.enqueue_batch(some)?;
    }
    queue.close()?;
    Ok(())
}
