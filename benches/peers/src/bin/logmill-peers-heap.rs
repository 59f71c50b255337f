//! Drains a backlog with an allocator that counts, and prints the peak of the heap in bytes.
//!
//! It is a program of its own because counting would slow down contenders that allocate for each
//! message.

use std::hint::black_box;

use anyhow::{Context, Result};
use logmill::Queue;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("usage: DIR BACKLOG PAYLOAD");
    let dir = next()?;
    let backlog: u64 = next()?.parse()?;
    let size: usize = next()?.parse()?;

    let jobs = backlog / size as u64;
    let (queue, _) = Queue::builder(&dir).open()?;
    let payload = vec![7; size];
    for _ in 0..jobs {
        queue.enqueue(&payload)?;
    }
    queue.close()?;

    HEAP.reset_peak_usage();
    let (queue, _) = Queue::builder(&dir).open()?;
    let consumer = queue.consumer();
    for _ in 0..jobs {
        let job = consumer.try_next().context("a job is missing")?;
        black_box(job.payload()[size - 1]);
        job.ack();
    }
    println!("{}", HEAP.peak_usage());
    Ok(())
}
