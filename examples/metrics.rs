//! Metrics: what `Queue::stats` says while consumers fall behind, catch up, and some jobs die.
//!
//! ```text
//! cargo run --example metrics
//! ```
//!
//! Prints a line each 250 ms. In the first second jobs come faster than the two workers take
//! them: `ready` and `oldest_ready` grow. Then they shrink to nothing, while every tenth job waits
//! for a retry (`delayed`) and ends as a dead letter (`dead`).

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use logmill::{Failure, Job, Queue, RetryPolicy};

/// A service would export these as gauges and counters.
fn print_line(at: Duration, queue: &Queue) {
    let stats = queue.stats();
    let waits = stats.oldest_ready.unwrap_or_default();
    print!("{:>5} {:>6}", at.as_millis(), stats.ready);
    print!(" {:>8} {:>10}", stats.delayed, stats.in_flight);
    print!(" {:>6} {:>6}", stats.acked, stats.dead);
    println!(" {:>10} ms", waits.as_millis());
}

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let policy = RetryPolicy::fixed(Duration::from_millis(300)).max_attempts(2);
    let (queue, _) = Queue::builder(dir.path()).retry(policy).open()?;
    let workers = queue.workers(2).run(|job: &Job<'_>| {
        sleep(Duration::from_millis(10));
        match job.payload() {
            [b'0', ..] => Err(Failure::retry("cannot be done")),
            _ => Ok(()),
        }
    })?;

    println!("   ms  ready  delayed  in_flight  acked   dead  oldest_ready");
    let start = Instant::now();
    scope(|scope| {
        let producer = scope.spawn(|| -> anyhow::Result<()> {
            for number in 0..300 {
                queue.enqueue((number % 10).to_string().as_bytes())?;
                sleep(Duration::from_millis(3));
            }
            Ok(())
        });
        while !producer.is_finished() || queue.stats().depth() > 0 {
            print_line(start.elapsed(), &queue);
            sleep(Duration::from_millis(250));
        }
        producer.join().expect("the producer does not panic")
    })?;
    print_line(start.elapsed(), &queue);

    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
