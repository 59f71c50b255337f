//! Observers: the program's own code, told of each thing that happens to a job.
//!
//! ```text
//! cargo run --example observer
//! ```
//!
//! Prints what an observer counts on the workers' threads. In a program of its own,
//! `logmill::job_events` would hand the same to another thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use logmill::{EnqueueOptions, Failure, Job, ObservedJob, Observer, Queue, RetryPolicy};

/// How often each thing happened to jobs of each name.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<String, u64>>>);

impl Counts {
    fn count(&self, what: &str, job: &ObservedJob) {
        let line = format!("{} {what}", job.name().unwrap_or("unnamed"));
        *self.0.lock().expect("no panic").entry(line).or_default() += 1;
    }
}

impl Observer for Counts {
    fn completed(&self, job: &ObservedJob) {
        self.count("completed", job);
    }

    fn failed(&self, job: &ObservedJob, _reason: &str) {
        self.count("failed", job);
    }

    fn dead(&self, job: &ObservedJob, reason: &str) {
        println!("to be looked at: {:?}, {reason}", job.name());
        self.count("dead", job);
    }
}

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let counts = Counts::default();
    let (queue, _) = Queue::builder(dir.path())
        .retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(3))
        .observer(counts.clone())
        .open()?;
    let workers = queue.workers(2).run(|job: &Job<'_>| match job.name() {
        Some("flaky") if job.attempts() == 1 => Err(Failure::retry("connection reset")),
        Some("broken") => Err(Failure::retry("no such host")),
        _ => Ok(()),
    })?;
    for name in ["good", "flaky", "flaky", "broken"] {
        queue.enqueue_with(b"", EnqueueOptions::new().name(name))?;
    }
    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    workers.shutdown(Duration::from_secs(5));
    for (what, times) in counts.0.lock().expect("no panic").iter() {
        println!("{what}: {times}");
    }
    queue.close()?;
    Ok(())
}
