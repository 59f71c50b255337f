//! Latency: what an enqueue takes, and how soon a handler begins, with each way to wait for jobs.
//!
//! ```text
//! cargo run --release --example latency
//! ```
//!
//! Jobs come at random times, 10,000 a second on average, as the requests of many users do. A consumer
//! that sleeps must be woken for most of them, which takes the producer a system call. One that naps
//! or spins is awake.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use logmill::{Failure, Job, Queue, WaitStrategy};

const JOBS: usize = 5_000;
const MEAN_GAP: Duration = Duration::from_micros(100);

/// Enqueues jobs at random times. Returns how long each call took.
fn enqueue_all(queue: &Queue, start: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut producer = queue.producer();
    let mut time = Duration::ZERO;
    let mut calls = Vec::with_capacity(JOBS);
    for _ in 0..JOBS {
        // Exponentially distributed gaps.
        time += MEAN_GAP.mul_f64(-(1.0 - fastrand::f64()).ln());
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
        let begun = start.elapsed();
        producer.enqueue(&(begun.as_nanos() as u64).to_le_bytes())?;
        calls.push(start.elapsed() - begun);
    }
    Ok(calls)
}

fn p50_and_p99(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |quantile: usize| times[times.len() * quantile / 100];
    format!("{:>10.1?} {:>10.1?}", at(50), at(99))
}

fn main() -> anyhow::Result<()> {
    println!(
        "{:16} {:>21}   {:>21}",
        "", "enqueue: p50, p99", "to handler: p50, p99"
    );
    let strategies = [
        ("sleeps", WaitStrategy::Sleep),
        (
            "naps of 50 µs",
            WaitStrategy::Nap(Duration::from_micros(50)),
        ),
        ("spins", WaitStrategy::Spin),
    ];
    for (name, strategy) in strategies {
        let dir = tempfile::tempdir()?;
        let builder = Queue::builder(dir.path()).stripes(1);
        let (queue, _) = builder.wait_strategy(strategy).open()?;
        let start = Instant::now();
        let (sender, waited) = mpsc::channel();
        let workers = queue.workers(1).run(move |job: &Job<'_>| {
            let now = start.elapsed();
            let begun: [u8; 8] = job.payload().try_into().map_err(Failure::dead_letter)?;
            let _ =
                sender.send(now.saturating_sub(Duration::from_nanos(u64::from_le_bytes(begun))));
            Ok::<(), Failure>(())
        })?;
        let calls = enqueue_all(&queue, start)?;
        let waited = waited.iter().take(JOBS).collect();
        println!("{name:16} {}   {}", p50_and_p99(calls), p50_and_p99(waited));
        workers.shutdown(Duration::from_secs(5));
        queue.close()?;
    }
    Ok(())
}
