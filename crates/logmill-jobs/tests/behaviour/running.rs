//! Pools while they run: how many threads they have, handlers that do not end, shutdowns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use logmill_jobs::{
    Backoff, Context, Job, JobResult, Mill, Pool, StartError, State, Status, StopCause, WaitError,
    Workers, secs,
};
use serde::{Deserialize, Serialize};

use crate::common::{Note, PATIENCE, mill, note, until, wait_for_end};

const SOON: Duration = Duration::from_millis(1);

/// A job whose handler goes on until it is released, and does not look whether it should.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "deaf", queue = "deaf", output = u32, timeout = SOON, grace = SOON, max_retries = 0)]
struct Deaf;

/// A job whose handler looks.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "listening", queue = "listening", max_retries = 0)]
struct Listening;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "late", queue = "late", timeout = SOON, max_retries = 1, backoff = Backoff::fixed(Duration::ZERO))]
struct Late;

/// Where handlers wait.
#[derive(Clone, Default)]
struct Gate {
    is_open: Arc<AtomicBool>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    attempts: Arc<AtomicUsize>,
}

impl Gate {
    fn pass(&self) {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        until("the gate opens", || self.is_open.load(Ordering::SeqCst));
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

/// Opens the gate at the end of a test, however it ends, so that no thread is left behind.
struct Opens(Gate);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}

fn deaf(_: Deaf, State(gate): State<Gate>) -> JobResult<u32> {
    gate.pass();
    Ok(7)
}

fn passes(_: Note, State(gate): State<Gate>) -> JobResult {
    gate.pass();
    Ok(())
}

fn listens(_: Listening, State(gate): State<Gate>, cx: Context) -> JobResult {
    gate.attempts.fetch_add(1, Ordering::SeqCst);
    gate.inside.fetch_add(1, Ordering::SeqCst);
    let ended = loop {
        if let Err(failure) = cx.check() {
            break Err(failure);
        }
        if gate.is_open.load(Ordering::SeqCst) {
            break Ok(());
        }
        std::thread::sleep(SOON);
    };
    gate.inside.fetch_sub(1, Ordering::SeqCst);
    ended
}

fn ends(pool: Pool) {
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_handler_that_is_stuck_is_reported_and_its_thread_replaced_and_what_it_returns_counts() {
    let (mill, _dir) = mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let workers = Workers::new(gate.clone())
        .on(deaf)
        .on(|_: Listening| JobResult::Ok(()));
    let pool = workers.threads(1).name("w").start(&mill).unwrap();
    let handle = mill.enqueue(Deaf).unwrap();
    until("it is stuck", || !pool.stuck().is_empty());
    let stuck = pool.stuck();
    assert_eq!(stuck.len(), 1);
    assert_eq!(
        (&stuck[0].id, stuck[0].kind.as_str()),
        (handle.id(), "deaf")
    );
    assert_eq!(stuck[0].thread, "w-0");

    // The only thread is occupied, and yet other jobs go on.
    wait_for_end(&mill.enqueue(Listening).unwrap());
    assert!(pool.health().is_healthy() && !pool.health().is_exhausted());
    assert_eq!(handle.status().unwrap(), Status::Running { failed: 0 });

    gate.open();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 7);
    until("it is not stuck any more", || pool.stuck().is_empty());
    assert_eq!(gate.attempts.load(Ordering::SeqCst), 1);
    assert_eq!(gate.most.load(Ordering::SeqCst), 1);
    until("a thread is left", || pool.health().busy_threads == 0);
    assert_eq!(pool.health().threads, 1);
    ends(pool);
}

#[test]
fn a_pool_whose_handlers_are_all_stuck_says_so_and_recovers_when_they_return() {
    let (mill, _dir) = mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let workers = Workers::new(gate.clone()).on(deaf);
    let pool = workers.threads(2).start(&mill).unwrap();
    let handles: Vec<_> = (0..6).map(|_| mill.enqueue(Deaf).unwrap()).collect();
    // Twice as many threads as asked for, and no more.
    until("it is exhausted", || pool.health().is_exhausted());
    assert_eq!((pool.stuck().len(), gate.inside()), (4, 4));
    assert!(!pool.health().is_healthy());

    gate.open();
    for handle in handles {
        assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 7);
    }
    until("it is healthy", || pool.health().is_healthy());
    assert_eq!(pool.health().threads, 2);
    ends(pool);
}

#[test]
fn a_pool_that_is_exhausted_starts_no_more_threads_than_the_number_that_is_set_allows() {
    let (mill, _dir) = mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let pool = Workers::new(gate.clone()).on(deaf).threads(2);
    let pool = pool.start(&mill).unwrap();
    let handles: Vec<_> = (0..12).map(|_| mill.enqueue(Deaf).unwrap()).collect();
    until("it is exhausted", || pool.health().is_exhausted());

    // As many as that may be stuck and replaced, and are.
    pool.set_threads(2).unwrap();
    pool.reset_concurrency().unwrap();
    pool.set_threads(1).unwrap();
    assert!(pool.health().is_exhausted(), "{:?}", pool.health());
    pool.set_threads(3).unwrap();
    until("two more are stuck", || pool.stuck().len() == 6);
    assert!(pool.health().is_exhausted());

    gate.open();
    for handle in handles {
        assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 7);
    }
    until("it is healthy", || pool.health().is_healthy());
    assert_eq!(pool.health().threads, 3);
    ends(pool);
}

#[test]
fn a_handler_that_ends_within_its_grace_is_not_stuck() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "slow", timeout = SOON, grace = secs(3600))]
    struct Slow;

    let (mill, _dir) = mill();
    let slow = |_: Slow, cx: Context| {
        until("its time is up", || cx.is_stopping());
        assert_eq!(cx.stop_cause(), Some(StopCause::TimedOut));
        JobResult::Ok(())
    };
    let pool = Workers::new(()).on(slow).threads(1).start(&mill).unwrap();
    for _ in 0..5 {
        wait_for_end(&mill.enqueue(Slow).unwrap());
        assert!(pool.stuck().is_empty());
    }
    ends(pool);
}

#[test]
fn a_check_that_is_late_fails_the_attempt() {
    let (mill, _dir) = mill();
    let late = |_: Late, cx: Context| {
        until("its time is up", || cx.is_stopping());
        cx.check()
    };
    let pool = Workers::new(()).on(late).start(&mill).unwrap();
    let handle = mill.enqueue(Late).unwrap();
    let error = handle.wait_timeout(PATIENCE).unwrap_err();
    assert!(matches!(&error, WaitError::Dead(reason) if reason == "the attempt took too long"));
    assert_eq!(
        mill.queue("late").unwrap().dead_jobs().unwrap()[0].attempts,
        2
    );
    ends(pool);
}

#[test]
fn what_a_shutdown_interrupts_is_not_failed_and_comes_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let mut id = None;
    // Its kind has no retries, and it is interrupted more often than crashes would be allowed.
    for life in 1..=6 {
        let mill = Mill::open(dir.path().join("jobs")).unwrap();
        let pool = Workers::new(gate.clone()).on(listens).start(&mill).unwrap();
        let id = id.get_or_insert_with(|| mill.enqueue(Listening).unwrap().id().clone());
        until("it runs", || gate.inside() == 1);
        assert_eq!(gate.attempts.load(Ordering::SeqCst), life);
        ends(pool);
        let status = mill.status(id).unwrap();
        assert_eq!(
            status,
            Status::Waiting {
                failed: 0,
                due: None
            }
        );
        mill.close().unwrap();
    }
    gate.open();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let pool = Workers::new(gate).on(listens).start(&mill).unwrap();
    wait_for_end(&mill.handle::<Listening>(id.unwrap()));
    assert_eq!(mill.queue("listening").unwrap().stats().unwrap().dead, 0);
    ends(pool);
}

#[test]
fn a_check_of_a_cancelled_job_ends_it_with_the_reason_of_the_call() {
    let (mill, _dir) = mill();
    let gate = Gate::default();
    let pool = Workers::new(gate.clone()).on(listens).start(&mill).unwrap();
    let handle = mill.enqueue(Listening).unwrap();
    until("it runs", || gate.inside() == 1);
    handle.cancel("nobody needs it").unwrap();
    let error = handle.wait_timeout(PATIENCE).unwrap_err();
    assert!(matches!(&error, WaitError::Cancelled(reason) if reason == "nobody needs it"));
    assert_eq!(gate.attempts.load(Ordering::SeqCst), 1);
    ends(pool);
}

#[test]
fn a_pool_grows_and_shrinks_while_it_runs() {
    let (mill, _dir) = mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let pool = Workers::new(gate.clone())
        .on(passes)
        .threads(1)
        .start(&mill)
        .unwrap();
    for number in 0..20 {
        mill.enqueue(note(&number.to_string())).unwrap();
    }
    until("one runs", || gate.inside() == 1);
    pool.set_threads(4).unwrap();
    until("four run", || gate.inside() == 4);
    assert_eq!(pool.health().threads, 4);

    // Those that run go on, and their threads end after that.
    pool.set_threads(2).unwrap();
    assert_eq!(gate.inside(), 4);
    gate.open();
    until("two are left", || pool.health().threads == 2);
    gate.is_open.store(false, Ordering::SeqCst);
    until("all are done", || {
        let stats = mill.queue("notes").unwrap().stats().unwrap();
        gate.open();
        stats.left() == 0
    });
    // Idle ones end as well, and grow again.
    pool.set_threads(1).unwrap();
    until("one is left", || pool.health().threads == 1);
    gate.is_open.store(false, Ordering::SeqCst);
    gate.most.store(0, Ordering::SeqCst);
    pool.set_threads(3).unwrap();
    for number in 0..6 {
        mill.enqueue(note(&number.to_string())).unwrap();
    }
    until("three run", || gate.inside() == 3);
    gate.open();
    ends(pool);
    assert_eq!(gate.most.load(Ordering::SeqCst), 3);
}

#[test]
fn what_an_operator_sets_outlives_a_deploy_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs");
    let workers = || {
        Workers::new(Gate::default())
            .on(passes)
            .name("notes")
            .threads(2)
            .tasks(5)
    };
    {
        let mill = Mill::open(&path).unwrap();
        let pool = workers().dynamic().start(&mill).unwrap();
        assert_eq!(pool.health().wanted_threads, 2);
        pool.set_threads(3).unwrap();
        pool.set_tasks(9).unwrap();
        ends(pool);
        mill.close().unwrap();
    }
    let mill = Mill::open(&path).unwrap();
    // Who does not ask for it gets what the code says.
    let pool = workers().start(&mill).unwrap();
    assert_eq!(
        (pool.health().wanted_threads, pool.health().max_tasks),
        (2, 5)
    );
    ends(pool);
    let pool = workers().dynamic().start(&mill).unwrap();
    assert_eq!(
        (pool.health().wanted_threads, pool.health().max_tasks),
        (3, 9)
    );
    assert_eq!(pool.health().threads, 3);

    let other = Workers::new(Gate::default())
        .on(deaf)
        .name("notes")
        .dynamic()
        .start(&mill);
    assert!(matches!(other, Err(StartError::PoolName(name)) if name == "notes"));

    pool.reset_concurrency().unwrap();
    assert_eq!(
        (pool.health().wanted_threads, pool.health().max_tasks),
        (2, 5)
    );
    ends(pool);
    let pool = workers().dynamic().start(&mill).unwrap();
    assert_eq!(pool.health().wanted_threads, 2);
    ends(pool);
}

#[test]
fn once_a_pool_was_shut_down_another_one_may_serve_its_queues() {
    // More threads than cores, so that one that ends is interrupted anywhere.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let (mill, _dir) = mill();
                for _ in 0..1000 {
                    let workers = Workers::new(Gate::default()).on(passes).threads(1);
                    ends(workers.start(&mill).unwrap());
                }
            });
        }
    });
}

/// Workers that go idle for ever after their connection was interrupted.
#[test]
fn workers_go_on_after_panics_pauses_and_an_idle_time_and_a_health_check_says_so() {
    let (mill, _dir) = mill();
    let workers = Workers::new(()).on(|job: Note| match job.text.as_str() {
        "panic" => panic!("as told"),
        _ => JobResult::Ok(()),
    });
    let pool = workers.threads(2).start(&mill).unwrap();
    let queue = mill.queue("notes").unwrap();
    for round in 0..5 {
        let handle = mill.enqueue(note("panic")).unwrap();
        assert!(handle.wait_timeout(PATIENCE).is_err());
        queue.pause().unwrap();
        let handle = mill.enqueue(note(&round.to_string())).unwrap();
        queue.resume().unwrap();
        wait_for_end(&handle);
        assert!(pool.health().is_healthy());
        assert_eq!(pool.health().threads, 2);
    }
    let health = pool.health();
    assert_eq!((health.stuck, health.is_stopping), (0, false));
    mill.clone().close().unwrap();
    until("the pool says that it has ended", || {
        !pool.health().is_healthy()
    });
    ends(pool);
}

#[cfg(feature = "testing")]
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "patient", timeout = logmill_jobs::hours(1), grace = logmill_jobs::hours(1))]
struct Patient;

#[cfg(feature = "testing")]
#[test]
fn a_handler_is_stuck_once_a_manual_clock_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let clock = logmill_jobs::testing::ManualClock::new();
    let options = logmill_jobs::MillOptions::new().clock(&clock);
    let builder = Mill::builder(dir.path().join("jobs")).options(options);
    let mill = builder.open().unwrap();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let handler = |_: Patient, State(gate): State<Gate>| {
        gate.pass();
        JobResult::Ok(())
    };
    let workers = Workers::new(gate.clone()).on(handler);
    let pool = workers.threads(1).start(&mill).unwrap();
    let handle = mill.enqueue(Patient).unwrap();
    until("it runs", || gate.inside() == 1);
    clock.advance(logmill_jobs::hours(1));
    assert!(pool.stuck().is_empty());
    clock.advance(logmill_jobs::hours(1));
    until("it is stuck", || pool.stuck().len() == 1);
    gate.open();
    wait_for_end(&handle);
    ends(pool);
}

/// State of which there are so many at most.
struct Few(Arc<AtomicU32>);

impl Clone for Few {
    fn clone(&self) -> Self {
        let left = self.0.fetch_sub(1, Ordering::SeqCst);
        assert!(left > 0, "no more of it");
        Self(Arc::clone(&self.0))
    }
}

#[test]
fn a_stored_number_of_threads_that_cannot_be_had_does_not_keep_a_pool_from_starting() {
    let (mill, _dir) = mill();
    let start = |few: u32, threads| {
        let handler = |_: Note, State(_): State<Few>| JobResult::Ok(());
        let workers = Workers::new(Few(Arc::new(AtomicU32::new(few)))).on(handler);
        workers.threads(threads).dynamic().start(&mill)
    };
    let pool = start(100, 1).unwrap();
    pool.set_threads(4).unwrap();
    ends(pool);

    let pool = start(2, 1).unwrap();
    let health = pool.health();
    assert_eq!((health.threads, health.wanted_threads), (2, 4));
    assert!(!health.is_healthy());
    ends(pool);
    // What the application itself asks for is an error, and so is a pool without a thread.
    assert!(start(2, 4).is_err());
    assert!(start(0, 1).is_err());
}

#[cfg(feature = "testing")]
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "flaky", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Flaky;

#[cfg(feature = "testing")]
#[test]
fn a_job_that_has_failed_often_runs_soon_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let clock = logmill_jobs::testing::ManualClock::new();
    let open = || {
        let options = logmill_jobs::MillOptions::new().clock(&clock);
        let builder = Mill::builder(dir.path().join("jobs")).options(options);
        builder.open().unwrap()
    };
    let attempts = Arc::new(AtomicU32::new(0));
    let handler = |_: Flaky, State(attempts): State<Arc<AtomicU32>>| -> JobResult {
        match attempts.fetch_add(1, Ordering::SeqCst) {
            // Stored: it is still to wait at the restart.
            12 => Err(logmill_jobs::retry_in(secs(5), "failed")),
            0..12 => Err("failed".into()),
            _ => Ok(()),
        }
    };
    let mill = open();
    let pool = Workers::new(Arc::clone(&attempts))
        .on(handler)
        .start(&mill)
        .unwrap();
    let id = mill.enqueue(Flaky).unwrap().id().clone();
    until("it has failed", || attempts.load(Ordering::SeqCst) == 13);
    ends(pool);
    mill.close().unwrap();

    let mill = open();
    let pool = Workers::new(attempts).on(handler).start(&mill).unwrap();
    let handle = mill.handle::<Flaky>(id);
    let queue = mill.queue("default").unwrap();
    until("a worker has come to it", || {
        let stats = queue.stats().unwrap();
        (stats.ready, stats.delayed) == (0, 1)
    });
    clock.advance(secs(31));
    let _ = handle.wait_timeout(PATIENCE);
    assert_eq!(mill.kind_stats("flaky").done, 1);
    ends(pool);
}
