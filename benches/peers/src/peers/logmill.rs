//! logmill itself, in the roles that the comparisons need.

use std::hint::black_box;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use logmill::{Consumer, Durability, Producer, Queue};
use tempfile::TempDir;

use super::{BURST, payload, timed_bursts};
use crate::contender::{Figures, Jobs};
use crate::statistics::quantile;
use crate::threads::{self, share};

pub const PROCESS: &str = "a job and its ack survive kill -9";
pub const SYNC: &str = "a job survives a power cut";

/// Jobs in one call of `enqueue_batch`.
const BATCH: usize = 64;

/// A queue, and its directory, which is removed after it. Users of the queue hold both.
struct Open {
    queue: Queue,
    _dir: TempDir,
}

impl Deref for Open {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

fn open(dir: TempDir, stripes: usize) -> Result<Open> {
    let (queue, _) = Queue::builder(dir.path()).stripes(stripes).open()?;
    Ok(Open { queue, _dir: dir })
}

fn drain(consumer: &Consumer, jobs: u64) -> Result<()> {
    for _ in 0..jobs {
        consumer
            .next()
            .ok_or_else(|| anyhow!("the queue was closed"))?
            .ack();
    }
    Ok(())
}

/// One producer, while nothing receives.
pub fn enqueue(dir: TempDir, size: usize) -> Result<Jobs> {
    let open = open(dir, 1)?;
    let (mut producer, consumer) = (open.producer(), open.consumer());
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let _keep = &open;
        timed_bursts(
            jobs,
            |burst| enqueue_all(&mut producer, &payload, burst),
            |burst| drain(&consumer, burst),
        )
    }))
}

fn enqueue_all(producer: &mut Producer, payload: &[u8], jobs: u64) -> Result<()> {
    for _ in 0..jobs {
        producer.enqueue(black_box(payload))?;
    }
    Ok(())
}

/// One producer that enqueues 64 jobs per call.
pub fn enqueue_batch(dir: TempDir, size: usize) -> Result<Jobs> {
    let open = open(dir, 1)?;
    let (mut producer, consumer) = (open.producer(), open.consumer());
    let payloads = vec![payload(size); BATCH];
    Ok(Box::new(move |jobs| {
        let _keep = &open;
        timed_bursts(
            jobs,
            |burst| {
                let mut left = burst as usize;
                while left > 0 {
                    let batch = left.min(BATCH);
                    producer.enqueue_batch(black_box(&payloads[..batch]))?;
                    left -= batch;
                }
                Ok(())
            },
            |burst| drain(&consumer, burst),
        )
    }))
}

/// Two producers on two stripes, each with half of the jobs. The time of a burst is from the first
/// start to the last end.
pub fn enqueue_by_two(dir: TempDir, size: usize) -> Result<Jobs> {
    let open = open(dir, 2)?;
    let mut producers = [open.producer(), open.producer()];
    let consumer = open.consumer();
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let _keep = &open;
        let mut time = Duration::ZERO;
        let mut left = jobs;
        while left > 0 {
            let burst = left.min(2 * BURST);
            time += threads::timed_two(&mut producers, |producer, thread| {
                enqueue_all(producer, &payload, share(burst, 2, thread))
            })?;
            drain(&consumer, burst)?;
            left -= burst;
        }
        Ok(time)
    }))
}

/// Enqueue, deliver, ack.
pub fn end_to_end(dir: TempDir, threads: usize, size: usize) -> Result<Jobs> {
    let open = open(dir, threads)?;
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let acked = AtomicU64::new(0);
        threads::timed(
            threads,
            |thread| {
                let jobs = share(jobs, threads, thread);
                enqueue_all(&mut open.producer(), &payload, jobs)
            },
            |_, others| {
                let consumer = open.consumer();
                let mut own = 0;
                loop {
                    while let Some(job) = consumer.next_timeout(Duration::from_micros(200)) {
                        black_box(job.payload()[size - 1]);
                        job.ack();
                        own += 1;
                    }
                    // Relaxed: only the count matters.
                    let all = acked.fetch_add(own, Ordering::Relaxed) + own;
                    own = 0;
                    if all == jobs {
                        return Ok(());
                    }
                    others.check()?;
                }
            },
        )
    }))
}

/// This many producers with `Sync` at once, which share flushes.
pub fn group_commit(dir: TempDir, stripes: usize, producers: usize, size: usize) -> Result<Jobs> {
    let (queue, _) = Queue::builder(dir.path())
        .stripes(stripes)
        .durability(Durability::Sync)
        .open()?;
    let open = Open { queue, _dir: dir };
    let consumer = open.consumer();
    let mut handles: Vec<Producer> = (0..producers).map(|_| open.producer()).collect();
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let _keep = &open;
        let took = threads::timed_each(handles.iter_mut(), |thread, producer| {
            enqueue_all(producer, &payload, share(jobs, producers, thread))
        })?;
        drain(&consumer, jobs)?;
        Ok(took)
    }))
}

/// Latency of one producer with `Sync`: median and 99th percentile over this many enqueues.
pub fn sync_latency(dir: TempDir, size: usize, enqueues: usize) -> Result<Figures> {
    let (queue, _) = Queue::builder(dir.path())
        .stripes(1)
        .durability(Durability::Sync)
        .open()?;
    let open = Open { queue, _dir: dir };
    let (mut producer, consumer) = (open.producer(), open.consumer());
    let payload = payload(size);
    Ok(Box::new(move || {
        let _keep = &open;
        let latencies = latencies(enqueues, || {
            producer.enqueue(&payload)?;
            Ok(())
        })?;
        drain(&consumer, enqueues as u64)?;
        Ok(latencies)
    }))
}

/// Median and 99th percentile of a call's time, in nanoseconds.
pub fn latencies(calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_nanos() as f64);
    }
    Ok([0.5, 0.99]
        .iter()
        .filter_map(|share| quantile(&times, *share))
        .collect())
}

/// Opens the queue in this directory and returns how long that took, without the close.
pub fn timed_open(dir: &Path) -> Result<Duration> {
    let start = Instant::now();
    let (queue, _) = Queue::builder(dir).open()?;
    let took = start.elapsed();
    queue.close()?;
    Ok(took)
}
