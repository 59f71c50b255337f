//! Moves a fixed number of jobs through a queue on one thread, without a benchmark harness, for
//! tools that count, such as strace and callgrind.
//!
//! Jobs are enqueued in bursts, and each burst is delivered and acked before the next: `--burst 1`
//! repeats enqueue, next, ack; one burst of all jobs makes a backlog and then drains it. The two
//! halves are functions that are not inlined, so that a profile can be split at them.
//! `benches/syscalls.sh` and `benches/instructions.sh` use this program.

use std::hint::black_box;

use clap::Parser;
use logmill::{Consumer, EnqueueOptions, Producer, Queue};

#[derive(Parser)]
struct Arguments {
    /// Number of jobs.
    jobs: u64,
    /// Jobs that are enqueued before they are delivered.
    #[arg(long, default_value_t = 256)]
    burst: u64,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// Give each job this name.
    #[arg(long)]
    name: Option<String>,
    /// Leave the jobs in the queue.
    #[arg(long)]
    enqueue_only: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).stripes(1).open()?;
    let mut producer = queue.producer();
    let consumer = queue.consumer();
    let payload = vec![7; arguments.payload];
    let mut left = arguments.jobs;
    while left > 0 {
        let burst = left.min(arguments.burst.max(1));
        match &arguments.name {
            None => enqueue(&mut producer, &payload, burst)?,
            Some(name) => enqueue_named(&mut producer, name, &payload, burst)?,
        }
        if !arguments.enqueue_only {
            deliver_and_ack(&consumer, burst);
        }
        left -= burst;
    }
    Ok(())
}

#[inline(never)]
fn enqueue(producer: &mut Producer, payload: &[u8], jobs: u64) -> anyhow::Result<()> {
    for _ in 0..jobs {
        producer.enqueue(black_box(payload))?;
    }
    Ok(())
}

#[inline(never)]
fn enqueue_named(
    producer: &mut Producer,
    name: &str,
    payload: &[u8],
    jobs: u64,
) -> anyhow::Result<()> {
    for _ in 0..jobs {
        let options = EnqueueOptions::new().name(black_box(name));
        producer.enqueue_with(black_box(payload), options)?;
    }
    Ok(())
}

#[inline(never)]
fn deliver_and_ack(consumer: &Consumer, jobs: u64) {
    for _ in 0..jobs {
        let job = consumer.next().expect("the queue is not closed");
        black_box(job.payload());
        job.ack();
    }
}
