//! Benchmarks of the keyed store: what each operation on a key costs.
//!
//! `cargo bench --bench keys`. Keys have 32 bytes and values 16. The store is below the build
//! directory, or in `LOGMILL_BENCH_DIR`. The group `sync` measures the disk.

mod common;

use std::cell::OnceCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{scaled, scratch};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use logmill::{Durability, Keep, Keys, Queues};
use tempfile::TempDir;

const VALUE: [u8; 16] = [7; 16];
/// Keys in a store that is read.
const KEYS: u64 = 1_000_000;
/// Changes in one timed run.
const RUN: u64 = 100_000;

/// A key of 32 bytes. Consecutive numbers give keys that have nothing to do with each other.
fn key(number: u64) -> [u8; 32] {
    let mut key = [b'k'; 32];
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key[..16].copy_from_slice(format!("{mixed:016x}").as_bytes());
    key
}

struct Opened {
    keys: Keys,
    _queues: Queues,
    _dir: TempDir,
}

/// Opens a new store with so many keys.
fn open(count: u64) -> Opened {
    let dir = scratch();
    let queues = Queues::open(dir.path().join("data")).expect("a directory of queues");
    let keys = queues.keys();
    (0..count).for_each(|number| put(&keys, number));
    Opened {
        keys,
        _queues: queues,
        _dir: dir,
    }
}

fn put(keys: &Keys, number: u64) {
    let put = keys.put(black_box(&key(number)), &VALUE, Keep::Forever);
    put.expect("put");
}

/// Times a run of changes of a store that has `before` keys.
fn timed(before: u64, changes: u64, change: impl Fn(&Keys, u64)) -> Duration {
    let opened = open(before);
    let start = Instant::now();
    (0..changes).for_each(|number| change(&opened.keys, number));
    start.elapsed()
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(format!("keys/{name}"));
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group.measurement_time(Duration::from_secs(2));
    group
}

/// Changes with `Durability::Process`.
fn changes(criterion: &mut Criterion) {
    let mut group = group(criterion, "change");
    let in_turn = |number: u64| number.wrapping_mul(7_919) % RUN;
    group.bench_function("put-new", |bencher| {
        bencher.iter_custom(|count| scaled(count, RUN, |run| timed(0, run, put)));
    });
    group.bench_function("put-over", |bencher| {
        let put = |keys: &Keys, number| put(keys, in_turn(number));
        bencher.iter_custom(|count| scaled(count, RUN, |run| timed(RUN, run, put)));
    });
    group.bench_function("insert-new", |bencher| {
        let insert = |keys: &Keys, number| {
            let inserted = keys.insert_new(black_box(&key(number)), &VALUE, Keep::Forever);
            inserted.expect("inserted");
        };
        bencher.iter_custom(|count| scaled(count, RUN, |run| timed(0, run, insert)));
    });
    group.bench_function("insert-new-conflict", |bencher| {
        let insert = |keys: &Keys, number| {
            let inserted = keys.insert_new(black_box(&key(number)), &VALUE, Keep::Forever);
            assert!(inserted.is_err());
        };
        bencher.iter_custom(|count| scaled(count, RUN, |run| timed(RUN, run, insert)));
    });
    group.bench_function("remove", |bencher| {
        let remove = |keys: &Keys, number| {
            let removed = keys.remove(black_box(&key(in_turn(number))));
            removed.expect("removed");
        };
        bencher.iter_custom(|count| scaled(count, RUN, |run| timed(RUN, run, remove)));
    });
    group.finish();
}

/// Lookups among a million keys.
fn lookups(criterion: &mut Criterion) {
    let mut group = group(criterion, "get");
    let opened = OnceCell::new();
    let opened = || &opened.get_or_init(|| open(KEYS)).keys;
    group.bench_function("hit", |bencher| {
        let keys = opened();
        let mut number = 0u64;
        bencher.iter(|| {
            number = number.wrapping_add(7_919) % KEYS;
            keys.get(black_box(&key(number))).expect("a value")
        });
    });
    group.bench_function("miss", |bencher| {
        let keys = opened();
        let mut number = KEYS;
        bencher.iter(|| {
            number += 1;
            assert!(keys.get(black_box(&key(number))).is_none());
        });
    });
    group.finish();
}

/// Changes with `Durability::Sync`: each waits for a flush.
fn sync(criterion: &mut Criterion) {
    let mut group = group(criterion, "sync");
    group.bench_function("put-new", |bencher| {
        let opened = open(0);
        let keys = opened.keys.clone().with_durability(Durability::Sync);
        let mut next = 0;
        let mut put_next = || {
            put(&keys, next);
            next += 1;
        };
        // The first flush of a new segment writes all of it.
        put_next();
        bencher.iter(&mut put_next);
    });
    group.finish();
}

criterion_group!(benches, changes, lookups, sync);
criterion_main!(benches);
