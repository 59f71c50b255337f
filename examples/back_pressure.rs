//! Back pressure: what producers see when consumers fall behind, and how they wait for room.
//!
//! ```text
//! cargo run --example back_pressure
//! ```
//!
//! The queue takes four jobs, and its only worker needs 100 ms for each. Prints which enqueues are
//! refused at once, and how long each of the others waited for room.

use std::thread::sleep;
use std::time::{Duration, Instant};

use logmill::{EnqueueError, EnqueueOptions, Failure, Job, Queue};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).max_depth(4).open()?;
    let workers = queue.workers(1).run(|_: &Job<'_>| {
        sleep(Duration::from_millis(100));
        Ok::<(), Failure>(())
    })?;

    println!("without waiting:");
    for number in 1..=6 {
        match queue.enqueue(b"resize") {
            Ok(id) => println!("  {number}: job {id}"),
            // A web service answers 503 here, and says when to come back.
            Err(error) if error.is_full() => println!("  {number}: refused, {error}"),
            Err(error) => return Err(error.into()),
        }
    }

    println!("waiting up to 250 ms, then up to 20 ms:");
    for (number, millis) in (1..).zip([250, 250, 20, 20]) {
        let start = Instant::now();
        let patient = EnqueueOptions::new().wait(Duration::from_millis(millis));
        let result = queue.enqueue_with(b"resize", patient);
        let waited = start.elapsed().as_millis();
        match result {
            Ok(id) => println!("  {number}: job {id} after {waited} ms"),
            Err(EnqueueError::Full { limit, max }) => {
                println!("  {number}: still no room after {waited} ms ({limit} is {max})");
            }
            Err(error) => return Err(error.into()),
        }
    }

    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
