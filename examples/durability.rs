//! Choosing a durability: what each one keeps, and what an enqueue costs with it on this disk.
//!
//! ```text
//! cargo run --release --example durability
//! ```
//!
//! Prints the time for each job, enqueued one by one and in a batch, which needs a single flush,
//! and with `Sync` also by sixteen threads at once, which share flushes. The queue is in the
//! temporary directory. Set TMPDIR to measure another disk: in memory (tmpfs) a flush costs
//! nothing and keeps nothing.

use std::thread;
use std::time::{Duration, Instant};

use logmill::{Durability, EnqueueError, EnqueueOptions, Queue};

const JOBS: usize = 320;
const THREADS: usize = 16;

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    queue.enqueue_batch(&[b"warms up"; JOBS])?;

    let interval = Durability::Interval(Duration::from_millis(10));
    for (durability, keeps) in [
        (Durability::Process, "survives the death of the process"),
        (interval, "and a power cut, except for about the last 10 ms"),
        (Durability::Sync, "and a power cut, once it returns"),
    ] {
        println!("{durability:?}: {keeps}");
        // For one call. Builder::durability sets it for the whole queue.
        let options = EnqueueOptions::new().durability(durability);

        let start = Instant::now();
        enqueue(&queue, JOBS, options)?;
        report("one by one", start);
        let start = Instant::now();
        queue.enqueue_batch_with(&[(b"job", options); JOBS])?;
        report("one batch", start);
    }

    let sync = EnqueueOptions::new().durability(Durability::Sync);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| enqueue(&queue, JOBS / THREADS, sync).expect("is enqueued"));
        }
    });
    report("16 threads", start);
    Ok(queue.close()?)
}

fn enqueue(queue: &Queue, jobs: usize, options: EnqueueOptions) -> Result<(), EnqueueError> {
    (0..jobs).try_for_each(|_| queue.enqueue_with(b"job", options).map(drop))
}

fn report(how: &str, start: Instant) {
    let micros = start.elapsed().as_secs_f64() * 1e6 / JOBS as f64;
    println!("  {how:10} {micros:8.1} us a job");
}
