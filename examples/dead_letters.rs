//! Dead letters: jobs that failed for good, with their reasons; replayed after a fix, or purged.
//!
//! ```text
//! cargo run --example dead_letters
//! ```
//!
//! Prints four letters with the reason of each failed attempt, replays the three that a repaired
//! mail server can deliver, and purges the one that has no recipient.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use logmill::{Failure, Job, Queue, RetryPolicy};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let policy = RetryPolicy::fixed(Duration::from_millis(20)).max_attempts(2);
    let (queue, _) = Queue::builder(dir.path()).retry(policy).open()?;

    static IS_REPAIRED: AtomicBool = AtomicBool::new(false);
    let workers = queue.workers(2).run(|job: &Job<'_>| {
        let mail = std::str::from_utf8(job.payload()).map_err(Failure::dead_letter)?;
        if !mail.contains("to:") {
            return Err(Failure::dead_letter("no recipient"));
        }
        if !IS_REPAIRED.load(Relaxed) {
            return Err(Failure::retry("the mail server is down"));
        }
        println!("  sent {mail:?}");
        Ok(())
    })?;

    queue.enqueue_batch(&["to:ada", "to:grace", "oops", "to:edsger"])?;
    wait_until_done(&queue);

    let letters = queue.dead_letters();
    println!("{} letters:", letters.len());
    for letter in letters.iter() {
        let payload = String::from_utf8_lossy(letter.payload());
        println!("  job {}, {payload:?}", letter.job_id());
        for failure in letter.reasons() {
            println!("    attempt {}: {}", failure.attempt, failure.reason);
        }
    }

    IS_REPAIRED.store(true, Relaxed);
    let replayed = letters.replay_where(|letter| letter.payload().starts_with(b"to:"))?;
    println!("replayed {} letters", replayed.len());
    wait_until_done(&queue);
    println!("purged {}", letters.purge_all()?);
    workers.shutdown(Duration::from_secs(5));
    Ok(queue.close()?)
}

fn wait_until_done(queue: &Queue) {
    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
}
