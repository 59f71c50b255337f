//! What the enqueue of a typed job costs, and that of a unique one.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use logmill_jobs::{JobResult, Mill, State, Unique, Workers, secs};

use crate::common::{Done, Plain, plain};

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

criterion_group!(benches, enqueue);
criterion_main!(benches);
