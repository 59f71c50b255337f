//! What jobs cost that wait, in heap: a million of each kind. Run by hand, as its figures are for the
//! documentation:
//!
//! ```sh
//! cargo test -p logmill-jobs --release --test memory -- --ignored --nocapture
//! ```

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use logmill_jobs::{Job, JobResult, Limit, Mill, MillOptions, Order, Workers, hours};
use serde::{Deserialize, Serialize};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const JOBS: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "keyed", key = "tenant")]
struct Keyed {
    tenant: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "single", unique = "number")]
struct Single {
    number: u64,
}

/// Held by each test, as what another one has in its heap would count.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn heap() -> i64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
}

fn report(what: &str, before: i64) {
    let each = (heap() - before) as f64 / JOBS as f64;
    println!("{what}: {each:.0} bytes of heap each");
    assert!(each < 1000.0);
}

#[test]
#[ignore = "takes a minute; for its figures"]
fn a_million_jobs_that_wait() {
    let _alone = alone();
    // The first job of a key begins, or the first of all where keys take turns, and the next ones wait for
    // an hour.
    let limit = || Limit::on_kind("keyed").rate(1, hours(1));
    for (what, keys, limit) in [
        ("of one key", 1, limit().by_key()),
        ("each of its own key", JOBS, limit().by_key()),
        ("each of its own key, in turn", JOBS, limit().in_turn()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = MillOptions::new().limit(limit);
        let builder = Mill::builder(dir.path().join("jobs"));
        let mill = builder.options(options).open().unwrap();
        let workers = Workers::new(()).on(|_: Keyed| JobResult::Ok(()));
        let pool = workers.threads(2).start(&mill).unwrap();
        let before = heap();
        let mut last = None;
        for number in 0..JOBS + keys {
            let tenant = number % keys;
            last = Some(mill.enqueue(Keyed { tenant }).unwrap());
        }
        let last = last.unwrap();
        let start = Instant::now();
        while mill.why_waiting(last.id()).is_none() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(50));
        }
        report(&format!("waiting for a limit, {what}"), before);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        drop(last);
        mill.close().unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let before = heap();
    for number in 0..JOBS {
        mill.enqueue(Single { number }).unwrap();
    }
    report("unique", before);
    let pool = Workers::new(())
        .on(|_: Keyed| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    let before = heap();
    for tenant in 0..JOBS {
        mill.job(Keyed { tenant })
            .after(hours(1))
            .enqueue()
            .unwrap();
    }
    let start = Instant::now();
    let queue = mill.queue("default").unwrap();
    while queue.stats().unwrap().delayed < JOBS {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    report("delayed", before);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

/// Keys whose jobs have begun: what a limit knows of each, and of those that are idle again.
#[test]
#[ignore = "takes a minute; for its figures"]
fn a_million_keys_of_a_limit() {
    let _alone = alone();
    for (what, period) in [
        ("known to a rate", hours(1)),
        ("idle, known to a rate", Duration::from_nanos(1)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let limit = Limit::on_kind("keyed").by_key().rate(1, period);
        let options = MillOptions::new().limit(limit);
        let builder = Mill::builder(dir.path().join("jobs"));
        let mill = builder.options(options).open().unwrap();
        let workers = Workers::new(()).on(|_: Keyed| JobResult::Ok(()));
        let pool = workers.threads(2).start(&mill).unwrap();
        let before = heap();
        let queue = mill.queue("default").unwrap();
        for tenant in 0..JOBS {
            mill.enqueue(Keyed { tenant }).unwrap();
        }
        let start = Instant::now();
        while queue.stats().unwrap().completed < JOBS {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(50));
        }
        report(what, before);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        mill.close().unwrap();
    }
}

#[test]
#[ignore = "takes a minute; for its figures"]
fn a_million_jobs_in_an_order() {
    let _alone = alone();
    for (what, keys) in [("of one key", 1), ("each of its own key", JOBS)] {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let options = MillOptions::new().order(Order::on_queue("default"));
            let builder = Mill::builder(dir.path().join("jobs"));
            builder.options(options).open().unwrap()
        };
        let mill = open();
        // Without an order, for what the engine takes.
        let plain = heap();
        mill.queue("plain").unwrap();
        for number in 0..JOBS {
            let tenant = number % keys;
            mill.job(Keyed { tenant }).queue("plain").enqueue().unwrap();
        }
        let plain = heap() - plain;
        let before = heap() + plain;
        for number in 0..JOBS {
            let tenant = number % keys;
            mill.enqueue(Keyed { tenant }).unwrap();
        }
        report(&format!("in an order, {what}"), before);
        mill.close().unwrap();
        let start = Instant::now();
        let mill = open();
        println!("opened again in {:?}", start.elapsed());
        mill.close().unwrap();
    }
}
