//! Benchmarks of recovery: the time to open a queue that was closed or whose process was killed,
//! and to drain a backlog larger than memory.
//!
//! `cargo bench --bench recovery`. Child processes make the backlogs once; they take about 2.5 GiB
//! on the disk during the run. Each measurement works on a copy that shares their sealed segments.
//! The 1 GiB backlog has jobs of 1 KiB, the small one 10,000 jobs of 64 B.
//!
//! - **open**: only `Builder::open`, with the files in the page cache, as they are after a process
//!   has died. How much of a killed queue has to be scanned is printed: segments are sealed about
//!   200 ms after they are full, and as fast as the disk permits, while the child enqueues as fast
//!   as it can until it is killed.
//! - **drain**: from the first claim until the last of 1 GiB of jobs is acked, by one consumer in a
//!   child process. *cached*: all files are in the page cache. *cold*: no file is in it at first.
//!   *bounded*: as cold, with the child in a memory cgroup of 256 MiB that includes page cache;
//!   skipped with a message where no such group can be made, which usually needs root.
//!   *plain-read*: the segment files read from end to end in 1 MiB pieces under the same bound, to
//!   show what the disk alone needs.

#[path = "../common/mod.rs"]
mod common;

mod backlog;
mod bound;
mod child;

use std::cell::LazyCell;
use std::time::{Duration, Instant};

use backlog::{Backlog, Copy, End};
use bound::Bound;
use child::Role;
use common::open_in;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group};

const GIB: u64 = 1024 * 1024 * 1024;
const BOUND: u64 = 256 * 1024 * 1024;

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(1));
    for (size, jobs, payload) in [("small", 10_000, 64), ("1GiB", GIB / 1024, 1024)] {
        for (name, end) in [("closed", End::Closed), ("killed", End::Killed)] {
            let backlog = LazyCell::new(|| {
                let backlog = Backlog::new(jobs, payload, end);
                eprintln!("{size}, {name}: {}", backlog.describe());
                backlog
            });
            group.bench_function(format!("{size}/{name}"), |bencher| {
                bencher.iter_custom(|times| {
                    let one = || {
                        let copy = Copy::of(&backlog);
                        let start = Instant::now();
                        let queue = open_in(copy.path(), |builder| builder);
                        let time = start.elapsed();
                        drop(queue);
                        time
                    };
                    (0..times).map(|_| one()).sum()
                });
            });
        }
    }
    group.finish();
}

fn drain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("drain/1GiB");
    group
        .throughput(Throughput::Bytes(GIB))
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10);
    let backlog = LazyCell::new(|| Backlog::new(GIB / 1024, 1024, End::Closed));
    let bound = Bound::new(BOUND);
    if bound.is_none() {
        eprintln!("no memory cgroup can be made here, so the bounded measurements are skipped");
    }
    let cases = [
        ("cached", Role::Drain, false, None),
        ("cold", Role::Drain, true, None),
        ("bounded-256MiB", Role::Drain, true, bound.as_ref()),
        ("plain-read-256MiB", Role::Read, true, bound.as_ref()),
    ];
    for (name, role, cold, bound_of_case) in cases {
        if name.ends_with("256MiB") && bound.is_none() {
            continue;
        }
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let one = || {
                    let copy = Copy::of(&backlog);
                    if cold {
                        copy.drop_from_page_cache();
                    }
                    child::timed(role, copy.path(), bound_of_case)
                };
                (0..times).map(|_| one()).sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, open, drain);

fn main() {
    if child::play() {
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
