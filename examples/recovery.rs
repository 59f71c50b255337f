//! Recovery: processes that die in the middle of a job, and what the next one finds.
//!
//! ```text
//! cargo run --example recovery
//! ```
//!
//! The program starts itself again and again as a child process that works on one queue. One of
//! its jobs aborts the process. Each child prints what its open found. The harmless jobs are done
//! by the first child; the poisonous one is delivered three times, then it is a dead letter.

use std::env;
use std::process::{self, Command};
use std::thread::sleep;
use std::time::Duration;

use logmill::{Failure, Job, Queue};

fn main() -> anyhow::Result<()> {
    // With an argument it is the child, and the argument is the queue's directory.
    if let Some(path) = env::args().nth(1) {
        return work(&path);
    }
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    queue.enqueue_batch(&["harmless", "also harmless", "poison"])?;
    queue.close()?;

    let mut has_died = true;
    while has_died {
        let status = Command::new(env::current_exe()?).arg(dir.path()).status()?;
        println!("the process ended: {status}\n");
        has_died = !status.success();
    }
    Ok(())
}

fn work(path: &str) -> anyhow::Result<()> {
    let (queue, report) = Queue::builder(path).open()?;
    println!(
        "found {} jobs, undamaged: {}",
        report.jobs,
        report.is_clean()
    );
    let workers = queue.workers(1).run(|job: &Job<'_>| {
        let text = String::from_utf8_lossy(job.payload());
        println!("  {text}, crashes so far: {}", job.crashes());
        if text == "poison" {
            process::abort();
        }
        Ok::<(), Failure>(())
    })?;
    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    for letter in queue.dead_letters().iter() {
        let reasons: Vec<_> = letter.reasons().iter().map(|one| &one.reason).collect();
        println!("  a letter after {} crashes: {reasons:?}", letter.crashes());
    }
    workers.shutdown(Duration::from_secs(5));
    Ok(queue.close()?)
}
