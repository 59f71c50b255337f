//! Benchmarks of transactions: what it costs that a job's completion and the jobs that follow from it
//! are all or nothing, compared with the same calls one by one, which a crash can separate.
//!
//! `cargo bench --bench transactions`. The group `sync` measures the disk, so the queues must be on
//! one: they are below the build directory, or in `LOGMILL_BENCH_DIR`. Jobs have 64 bytes.

mod common;

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use common::scratch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logmill::{Consumer, Durability, EnqueueOptions, Keep, Queue, Queues};
use tempfile::TempDir;

const PAYLOAD: [u8; 64] = [7; 64];
/// Jobs that are passed on in one timed run.
const RUN: u64 = 20_000;

struct Opened {
    queues: Queues,
    first: Queue,
    second: Queue,
    _dir: TempDir,
}

fn open() -> Opened {
    let dir = scratch();
    let queues = Queues::open(dir.path().join("data")).expect("a directory of queues");
    let one = |name| {
        let builder = queues.builder(name).stripes(1);
        builder.open().expect("a queue").0
    };
    Opened {
        first: one("first"),
        second: one("second"),
        queues,
        _dir: dir,
    }
}

fn fill(queue: &Queue, jobs: u64) {
    for _ in 0..jobs {
        queue.enqueue(&PAYLOAD).expect("enqueued");
    }
}

fn drain(queue: &Queue) {
    let consumer = queue.consumer();
    while let Some(job) = consumer.try_next() {
        job.ack();
    }
}

/// Times `jobs` jobs that go from the first queue to the second.
fn timed(opened: &Opened, jobs: u64, pass_on: impl Fn(&Consumer)) -> Duration {
    let mut time = Duration::ZERO;
    let mut left = jobs;
    while left > 0 {
        let run = left.min(RUN);
        fill(&opened.first, run);
        let consumer = opened.first.consumer();
        let start = Instant::now();
        for _ in 0..run {
            pass_on(&consumer);
        }
        time += start.elapsed();
        drop(consumer);
        drain(&opened.second);
        left -= run;
    }
    time
}

/// A job is taken, completed, and another one enqueued into the next queue.
fn pass_on(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transactions/pass-on");
    group.throughput(Throughput::Elements(1));
    let opened = open();
    let Opened { queues, second, .. } = &opened;
    group.bench_function("one-by-one", |bencher| {
        bencher.iter_custom(|jobs| {
            timed(&opened, jobs, |consumer| {
                let job = consumer.try_next().expect("a job");
                second.enqueue(black_box(job.payload())).expect("enqueued");
                job.ack();
            })
        });
    });
    group.bench_function("transaction", |bencher| {
        bencher.iter_custom(|jobs| {
            timed(&opened, jobs, |consumer| {
                let job = consumer.try_next().expect("a job");
                let mut transaction = queues.transaction();
                transaction.enqueue(second, black_box(job.payload()));
                job.ack_with(transaction).expect("committed");
            })
        });
    });
    group.bench_function("transaction-with-key", |bencher| {
        let number = Cell::new(0_u64);
        bencher.iter_custom(|jobs| {
            timed(&opened, jobs, |consumer| {
                let job = consumer.try_next().expect("a job");
                let mut transaction = queues.transaction();
                number.set((number.get() + 1) % 100_000);
                transaction.enqueue(second, black_box(job.payload())).put(
                    &number.get().to_le_bytes(),
                    b"done",
                    Keep::Forever,
                );
                job.ack_with(transaction).expect("committed");
            })
        });
    });
    group.finish();
}

/// Two jobs into two queues, durable when the call returns.
fn sync(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transactions/sync");
    group.sample_size(10);
    let opened = open();
    let Opened {
        queues,
        first,
        second,
        ..
    } = &opened;
    group.bench_function("two-enqueues", |bencher| {
        let durable = EnqueueOptions::new().durability(Durability::Sync);
        bencher.iter(|| {
            first.enqueue_with(&PAYLOAD, durable).expect("enqueued");
            second.enqueue_with(&PAYLOAD, durable).expect("enqueued");
        });
        drain(first);
        drain(second);
    });
    group.bench_function("transaction", |bencher| {
        bencher.iter(|| {
            let mut transaction = queues.transaction();
            transaction
                .durability(Durability::Sync)
                .enqueue(first, &PAYLOAD)
                .enqueue(second, &PAYLOAD);
            transaction.commit().expect("committed")
        });
        drain(first);
        drain(second);
    });
    group.finish();
}

criterion_group!(benches, pass_on, sync);
criterion_main!(benches);
