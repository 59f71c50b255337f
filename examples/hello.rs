//! The first job: open a queue, enqueue, run a handler on two worker threads, close.
//!
//! ```text
//! cargo run --example hello
//! ```
//!
//! Prints the id of each job as it is enqueued, and then the jobs as the workers run them.

use std::thread::sleep;
use std::time::Duration;

use logmill::{Failure, Job, Queue};

fn main() -> anyhow::Result<()> {
    // A service uses a path of its own here, such as /var/lib/shop/jobs.
    let dir = tempfile::tempdir()?;
    let (queue, report) = Queue::builder(dir.path()).open()?;
    println!("opened; {} jobs left from an earlier run", report.jobs);

    for name in ["Ada", "Edsger", "Grace"] {
        let id = queue.enqueue(format!("welcome mail to {name}").as_bytes())?;
        println!("enqueued job {id}");
    }

    // Ok acks the job. An error fails the attempt, and the job is tried again.
    let workers = queue.workers(2).run(|job: &Job<'_>| {
        let text = std::str::from_utf8(job.payload()).map_err(Failure::dead_letter)?;
        println!("job {}, attempt {}: {text}", job.id(), job.attempts());
        Ok::<(), Failure>(())
    })?;

    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    workers.shutdown(Duration::from_secs(5));
    println!("{} jobs acked", queue.stats().acked);
    queue.close()?;
    Ok(())
}
