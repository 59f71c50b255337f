//! What a typed job costs beside the engine and serde alone: end to end with one producer and one
//! worker, and the enqueue of a unique job, a limit.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use logmill::{EnqueueOptions, Queues};
use logmill_jobs::{Job, JobResult, Limit, Mill, MillOptions, State, Unique, Workers, secs};
use serde::{Deserialize, Serialize};

/// 64 bytes as JSON.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "touch", key = "tenant")]
struct Touch {
    tenant: String,
    user: u64,
    text: String,
}

/// The same without a key.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "plain")]
struct Plain {
    tenant: String,
    user: u64,
    text: String,
}

fn plain(user: u64) -> Plain {
    Plain {
        tenant: "Ada".to_owned(),
        user: 1_000_000 + user % 1_000_000,
        text: "twenty letters, more".to_owned(),
    }
}

fn touch(user: u64) -> Touch {
    let Plain { tenant, user, text } = plain(user);
    Touch { tenant, user, text }
}

type Done = Arc<AtomicU64>;

/// Waits until so many are done.
fn until(done: &AtomicU64, count: u64) {
    while done.load(Ordering::Relaxed) < count {
        std::hint::spin_loop();
    }
}

/// The engine with serde, as a program without this crate would use it.
fn engine(jobs: u64) -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let queues = Queues::open(dir.path().join("queues")).expect("queues");
    let queue = queues.queue("default").expect("a queue");
    let (done, stop) = (Done::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let consumer = queue.consumer();
            while let Some(job) = consumer.next_until(None, || stop.load(Ordering::Relaxed)) {
                let plain: Plain = serde_json::from_slice(job.payload()).expect("a job");
                black_box(plain.user);
                job.ack();
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut buffer = Vec::new();
        let start = Instant::now();
        for user in 0..jobs {
            buffer.clear();
            serde_json::to_writer(&mut buffer, &plain(user)).expect("JSON");
            let options = EnqueueOptions::new().name("plain");
            queue.enqueue_with(&buffer, options).expect("room");
        }
        until(&done, jobs);
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        queue.wake_consumers();
        took
    })
}

/// Typed jobs, each made by `make`.
fn typed<J: Job<Output = ()>>(
    jobs: u64,
    options: MillOptions,
    make: impl Fn(u64) -> J,
    user_of: fn(&J) -> u64,
) -> Duration {
    let done = Done::default();
    let count = Arc::clone(&done);
    let handler = move |job: J| -> JobResult {
        black_box(user_of(&job));
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    typed_on(jobs, options, make, &done, Workers::new(()).on(handler))
}

/// The same, by a handler that is given a state, of which each call has a clone.
fn typed_with_state(jobs: u64) -> Duration {
    let done = Done::default();
    let handler = |job: Plain, State(done): State<Done>| -> JobResult {
        black_box(job.user);
        done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let workers = Workers::new(Arc::clone(&done)).on(handler);
    typed_on(jobs, MillOptions::new(), plain, &done, workers)
}

/// Jobs that these workers run and count.
fn typed_on<J: Job, S: Clone + Send + Sync + 'static>(
    jobs: u64,
    options: MillOptions,
    make: impl Fn(u64) -> J,
    done: &Done,
    workers: Workers<S>,
) -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Mill::builder(dir.path().join("jobs")).options(options);
    let mill = builder.open().expect("a mill");
    let pool = workers.threads(1).start(&mill).expect("workers");
    let start = Instant::now();
    for user in 0..jobs {
        mill.enqueue(make(user)).expect("room");
    }
    until(done, jobs);
    let took = start.elapsed();
    assert!(pool.shutdown(secs(60)).finished_in_time);
    mill.close().expect("closed");
    took
}

/// Unique jobs, so many at a time, which run before the next ones are enqueued. Only the enqueues are
/// timed.
fn unique_in_bursts(jobs: u64) -> Duration {
    const BURST: u64 = 10_000;
    let dir = tempfile::tempdir().expect("a directory");
    let mill = Mill::open(dir.path().join("jobs")).expect("a mill");
    let queue = mill.queue("default").expect("a queue");
    let done = Done::default();
    let handler = |_: Plain, State(done): State<Done>| -> JobResult {
        done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let workers = Workers::new(Arc::clone(&done)).on(handler).threads(1);
    let pool = workers.start(&mill).expect("workers");
    let (mut user, mut took) = (0, Duration::ZERO);
    // The first burst makes the files that later ones use again.
    let ends = std::iter::once(BURST)
        .chain((1..=jobs.div_ceil(BURST)).map(|burst| BURST + jobs.min(burst * BURST)));
    for end in ends {
        queue.pause().expect("paused");
        let start = Instant::now();
        for user in user..end {
            let unique = Unique::by(user.to_string());
            mill.job(plain(user))
                .unique(unique)
                .enqueue()
                .expect("room");
        }
        if user > 0 {
            took += start.elapsed();
        }
        user = end;
        queue.resume().expect("resumed");
        while done.load(Ordering::Relaxed) < end {
            thread::yield_now();
        }
    }
    assert!(pool.shutdown(secs(60)).finished_in_time);
    took
}

fn end_to_end(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("end_to_end_1x1");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    group.bench_function("engine_and_serde", |bencher| bencher.iter_custom(engine));
    group.bench_function("typed", |bencher| {
        bencher.iter_custom(|jobs| typed(jobs, MillOptions::new(), plain, |job| job.user));
    });
    group.bench_function("typed_with_state", |bencher| {
        bencher.iter_custom(typed_with_state);
    });
    group.bench_function("typed_with_key", |bencher| {
        bencher.iter_custom(|jobs| typed(jobs, MillOptions::new(), touch, |job| job.user));
    });
    let by_key = || Limit::on_kind("touch").by_key();
    let limits = [
        ("limit_at_once", by_key().at_once(100)),
        (
            "limit_rate",
            by_key().rate(1_000_000_000, secs(1)).burst(1_000_000),
        ),
    ];
    for (name, limit) in limits {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|jobs| {
                let options = MillOptions::new().limit(limit.clone());
                typed(jobs, options, touch, |job| job.user)
            });
        });
    }
    group.finish();
}

fn enqueue(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let mill = Mill::open(dir.path().join("jobs")).expect("a mill");
    let mut group = criterion.benchmark_group("enqueue");
    let mut user = 0;
    group.bench_function("typed", |bencher| {
        bencher.iter(|| {
            user += 1;
            mill.enqueue(plain(user)).expect("room")
        });
    });
    group.bench_function("unique", |bencher| {
        bencher.iter(|| {
            user += 1;
            let unique = Unique::by(user.to_string());
            mill.job(plain(user))
                .unique(unique)
                .enqueue()
                .expect("room")
        });
    });
    group.bench_function("unique_in_bursts", |bencher| {
        bencher.iter_custom(unique_in_bursts)
    });
    group.bench_function("unique_existing", |bencher| {
        bencher.iter(|| {
            let unique = Unique::by("one");
            mill.job(plain(7)).unique(unique).enqueue().expect("room")
        });
    });
    group.finish();
}

criterion_group!(benches, end_to_end, enqueue);
criterion_main!(benches);
