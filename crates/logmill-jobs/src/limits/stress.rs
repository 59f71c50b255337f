//! Producers, failures, cancels, pauses and shutdowns at the same time: whatever happens, no place at a
//! limit and no job in a line is left behind, and each job ends once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Counts, Limit};
use crate::{
    Backoff, CodecError, Context, Job, JobHandle, JobResult, KindOptions, Mill, MillOptions, Order,
    Pool, Priority, State, WaitError, Workers, discard, rate_limited, snooze,
};

const PATIENCE: Duration = Duration::from_secs(60);
const JOBS: u64 = 400;
const PRODUCERS: u64 = 3;

#[derive(Serialize, Deserialize)]
struct Task {
    number: u64,
}

impl Job for Task {
    type Output = ();
    type Inputs = ();
    const KIND: &'static str = "task";

    fn kind_options() -> KindOptions {
        let options = KindOptions::new().max_retries(200).cost(2);
        options.backoff(Backoff::fixed(Duration::ZERO))
    }

    fn limit_key(&self) -> Result<Option<String>, CodecError> {
        Ok((!self.number.is_multiple_of(11)).then(|| (self.number % 5).to_string()))
    }
}

/// How often each job was done.
#[derive(Clone, Default)]
struct Done(Arc<Mutex<HashMap<u64, u32>>>);

fn run(job: Task, State(done): State<Done>, cx: Context) -> JobResult {
    if fastrand::u8(..) < 8 {
        std::thread::sleep(Duration::from_micros(fastrand::u64(..500)));
    }
    match (fastrand::u8(..), job.number % 29) {
        (0..24, _) => Err("failed")?,
        (24..34, _) => panic!("a bug"),
        (34..44, _) => Err(snooze(Duration::from_micros(200))),
        (44..54, _) => Err(rate_limited(Duration::from_micros(300), "429")),
        (_, 7) => Err(discard("no use")),
        _ => {
            assert!(cx.attempt() < 200);
            *done.0.lock().unwrap().entry(job.number).or_default() += 1;
            Ok(())
        }
    }
}

fn start(mill: &Mill, done: &Done) -> Pool {
    let begun = Instant::now();
    loop {
        let workers = Workers::new(done.clone()).on(run).threads(4);
        match workers.start(mill) {
            Ok(pool) => return pool,
            // The threads of the pool before have not ended yet.
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::yield_now();
    }
}

/// Enqueues, and cancels some of what all have enqueued.
fn produce(mill: &Mill, handles: &Mutex<Vec<JobHandle<Task>>>, next: &AtomicU64) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= JOBS {
            return;
        }
        let level = Priority::ALL[fastrand::usize(..5)];
        let job = mill.job(Task { number }).priority(level);
        let job = match number % 13 {
            3 => job.cost(50),
            4 => job.after(Duration::from_micros(fastrand::u64(..2000))),
            5 => job.expires_after(Duration::from_micros(fastrand::u64(..5000))),
            _ => job,
        };
        let handle = job.enqueue().unwrap();
        let mut handles = handles.lock().unwrap();
        handles.push(handle);
        let other = handles[fastrand::usize(..handles.len())].clone();
        drop(handles);
        if fastrand::u8(..) < 50 {
            other.cancel("enough").unwrap();
        }
    }
}

/// Pauses the queue and ends its workers now and then, until there are no more producers.
fn disturb(mill: &Mill, done: &Done, is_over: &AtomicBool) -> Pool {
    let queue = mill.queue("default").unwrap();
    let mut pool = start(mill, done);
    while !is_over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(2));
        queue.pause().unwrap();
        if fastrand::bool() {
            let _ = pool.shutdown(PATIENCE);
            pool = start(mill, done);
        }
        queue.resume().unwrap();
    }
    pool
}

fn stress(options: MillOptions) {
    let dir = tempfile::tempdir().unwrap();
    let builder = Mill::builder(dir.path().join("jobs"));
    let mill = builder.options(options).open().unwrap();
    let (done, handles) = (Done::default(), Mutex::default());
    let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let pool = std::thread::scope(|scope| {
        let disturbed = scope.spawn(|| disturb(&mill, &done, &is_over));
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| scope.spawn(|| produce(&mill, &handles, &next)))
            .collect();
        for producer in producers {
            producer.join().unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
        disturbed.join().unwrap()
    });
    let queue = mill.queue("default").unwrap();
    let begun = Instant::now();
    // What is dead would block its key.
    loop {
        for dead in queue.dead_jobs().unwrap() {
            queue.purge(&dead).unwrap();
        }
        let stats = queue.stats().unwrap();
        if stats.left() + stats.dead == 0 {
            break;
        }
        let handles = handles.lock().unwrap();
        let open = handles
            .iter()
            .find(|one| one.try_result().is_ok_and(|it| it.is_none()));
        let why = open.map(|open| (open.id().clone(), mill.why_waiting(open.id())));
        drop(handles);
        assert!(begun.elapsed() < PATIENCE, "{stats:?}, {why:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    for (number, times) in &*done.0.lock().unwrap() {
        assert_eq!(*times, 1, "job {number}");
    }
    for handle in &*handles.lock().unwrap() {
        match handle.wait_timeout(PATIENCE) {
            Ok(()) | Err(WaitError::Cancelled(_) | WaitError::Dead(_) | WaitError::Expired) => {}
            Err(error) => panic!("{}: {error}", handle.id()),
        }
    }
    let _ = pool.shutdown(PATIENCE);
    let begun = Instant::now();
    // Keys that were held back are forgotten by the timer.
    while mill.inner.limits.counts() != Counts::default() {
        let counts = mill.inner.limits.counts();
        assert!(begun.elapsed() < PATIENCE, "{counts:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(mill.inner.orders.counts(), (0, 0));
}

#[test]
fn no_place_is_left_behind_whatever_happens() {
    for _ in 0..3 {
        let rate = Limit::on_queue("default").by_key();
        stress(
            MillOptions::new()
                .limit(Limit::on_kind("task").at_once(3))
                .limit(Limit::on_queue("default").by_key().at_once(1))
                .limit(rate.rate(20_000, Duration::from_secs(1)).burst(20)),
        );
    }
}

#[test]
fn no_key_is_left_held_back_without_limits() {
    for _ in 0..3 {
        stress(MillOptions::new());
    }
}

#[test]
fn no_job_is_left_in_an_order_whatever_happens() {
    for _ in 0..3 {
        stress(
            MillOptions::new()
                .order(Order::on_queue("default"))
                .limit(Limit::on_kind("task").at_once(2)),
        );
    }
}
