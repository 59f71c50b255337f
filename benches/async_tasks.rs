//! Benchmarks of async tasks: durable enqueues of many tasks on one thread, beside a plain loop that
//! writes as many records and flushes once, and jobs that a task takes.
//!
//! `cargo bench --features async --bench async_tasks`. As for `durability`, the queue must be on the
//! disk that is to be measured. Jobs have 64 bytes, and the plain writes 96, the length of such a
//! job's record.

mod common;

use std::fs::OpenOptions;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use async_executor::LocalExecutor;
use common::{drain, open, scaled, scratch, share};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;
use logmill::{Durability, EnqueueOptions, Queue};

const PAYLOAD: [u8; 64] = [7; 64];
const RECORD: [u8; 96] = [7; 96];

/// Tasks on one thread with `Durability::Sync`: each waits for the flush of each of its jobs. The
/// time is per job, over all tasks.
fn sync(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sync-on-one-thread");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for tasks in [1, 8, 64, 512] {
        group.bench_function(format!("{tasks}-tasks"), |bencher| {
            let (queue, _dir) = open(|builder| builder.stripes(1).durability(Durability::Sync));
            let consumer = queue.consumer();
            bencher.iter_custom(|jobs| {
                scaled(jobs, 50 * tasks as u64, |jobs| {
                    let time = enqueue_in_tasks(&queue, tasks, jobs);
                    drain(&consumer, jobs);
                    time
                })
            });
        });
        group.bench_function(format!("{tasks}-writes-and-fdatasync"), |bencher| {
            bencher.iter_custom(|writes| {
                scaled(writes, 50 * tasks as u64, |writes| {
                    write_and_flush(tasks as u64, writes)
                })
            });
        });
    }
    group.finish();
}

fn enqueue_in_tasks(queue: &Queue, tasks: usize, jobs: u64) -> Duration {
    let executor = LocalExecutor::new();
    let start = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let mut producer = queue.producer();
            let jobs = share(jobs, tasks, task);
            executor.spawn(async move {
                for _ in 0..jobs {
                    let options = EnqueueOptions::new();
                    let enqueued = producer.enqueue_async(black_box(&PAYLOAD), options).await;
                    black_box(enqueued.expect("enqueued"));
                }
            })
        })
        .collect();
    block_on(executor.run(async {
        for task in tasks {
            task.await;
        }
    }));
    start.elapsed()
}

/// Writes records to a file whose blocks are allocated and written, with a flush after each group.
fn write_and_flush(group: u64, writes: u64) -> Duration {
    const BLOCKS: usize = 8 * 1024 * 1024;
    let dir = scratch();
    let path = dir.path().join("log");
    std::fs::write(&path, vec![0; BLOCKS]).expect("written");
    let file = OpenOptions::new().write(true).open(&path).expect("there");
    file.sync_all().expect("flushed");
    let start = Instant::now();
    for write in 1..=writes {
        let at = write as usize * RECORD.len() % (BLOCKS - RECORD.len());
        file.write_all_at(black_box(&RECORD), at as u64)
            .expect("written");
        if write % group == 0 {
            file.sync_data().expect("flushed");
        }
    }
    start.elapsed()
}

/// A backlog that one consumer takes and acks: a task on its executor, and a thread.
fn drain_backlog(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("drain");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    let (queue, _dir) = open(|builder| builder.stripes(1));
    let mut producer = queue.producer();
    let mut fill = |jobs| {
        for _ in 0..jobs {
            producer.enqueue(&PAYLOAD).expect("enqueued");
        }
    };
    group.bench_function("task", |bencher| {
        let mut consumer = queue.async_consumer();
        bencher.iter_custom(|jobs| {
            scaled(jobs, 50_000, |jobs| {
                fill(jobs);
                let start = Instant::now();
                block_on(async {
                    for _ in 0..jobs {
                        consumer.next().await.expect("a job").ack();
                    }
                });
                start.elapsed()
            })
        });
    });
    group.bench_function("thread", |bencher| {
        let consumer = queue.consumer();
        bencher.iter_custom(|jobs| {
            scaled(jobs, 50_000, |jobs| {
                fill(jobs);
                let start = Instant::now();
                drain(&consumer, jobs);
                start.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, sync, drain_backlog);
criterion_main!(benches);
