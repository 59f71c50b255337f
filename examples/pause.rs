//! Pausing: the API that the jobs call is down, so that nothing is tried until it is back.
//!
//! ```text
//! cargo run --example pause
//! ```
//!
//! Jobs are enqueued while the queue is paused, and delivered when it is resumed. The pause lasts
//! across a restart.

use std::thread::sleep;
use std::time::Duration;

use logmill::{Failure, Job, Queue};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    queue.pause()?;
    queue.enqueue_batch(&["invoice 1", "invoice 2"])?;
    queue.close()?;

    let (queue, _) = Queue::builder(dir.path()).open()?;
    let workers = queue.workers(1).run(|job: &Job<'_>| {
        println!("sending {}", String::from_utf8_lossy(job.payload()));
        Ok::<(), Failure>(())
    })?;
    sleep(Duration::from_millis(50));
    let (paused, ready) = (queue.is_paused(), queue.stats().ready);
    println!("after the restart: paused {paused}, ready {ready}");

    queue.resume()?;
    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
