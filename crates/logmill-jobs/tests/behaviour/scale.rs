//! Pools that grow and shrink with the load, on a manual clock.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use logmill_jobs::testing::ManualClock;
use logmill_jobs::{
    JobResult, Limit, Mill, MillOptions, Pool, Priority, Scale, State, Workers, secs,
};

use crate::common::{Double, Note, OnEvent, PATIENCE, note, until, wait_for_end};

/// Where handlers wait.
#[derive(Clone, Default)]
struct Gate {
    is_open: Arc<AtomicBool>,
    inside: Arc<AtomicUsize>,
}

impl Gate {
    fn pass(&self) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        until("the gate opens", || self.is_open.load(Ordering::SeqCst));
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    fn set_open(&self, is_open: bool) {
        self.is_open.store(is_open, Ordering::SeqCst);
    }
}

/// Opens the gate at the end of a test, however it ends, so that no thread is left behind.
struct Opens(Gate);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.set_open(true);
    }
}

fn passes(_: Note, State(gate): State<Gate>) -> JobResult {
    gate.pass();
    Ok(())
}

fn doubles(job: Double, State(gate): State<Gate>) -> JobResult<u64> {
    gate.pass();
    Ok(2 * job.number)
}

fn open(path: &Path, clock: &ManualClock, options: MillOptions) -> Mill {
    let options = options.clock(clock);
    Mill::builder(path).options(options).open().unwrap()
}

fn workers(gate: &Gate) -> Workers<Gate> {
    let scale = Scale::threads(1..=8).drain_within(secs(10));
    Workers::new(gate.clone()).on(passes).scale(scale)
}

fn wanted(pool: &Pool) -> usize {
    pool.health().wanted_threads
}

fn all_run(pool: &Pool, gate: &Gate) {
    until("all threads run a job", || {
        let health = pool.health();
        gate.inside() == health.wanted_threads && health.busy_threads == health.wanted_threads
    });
}

/// Lets the pool look until all its threads are wanted, with jobs for all of them.
fn grow(clock: &ManualClock, pool: &Pool, gate: &Gate) -> Vec<usize> {
    let mut counts = Vec::new();
    while wanted(pool) < 8 {
        assert!(counts.len() < 60, "{counts:?}");
        all_run(pool, gate);
        clock.advance(secs(1));
        counts.push(wanted(pool));
    }
    counts
}

#[test]
fn a_burst_has_a_pool_grow_and_an_idle_time_has_it_shrink_to_its_lower_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, gate) = (ManualClock::new(), Gate::default());
    let _opens = Opens(gate.clone());
    let mill = open(&dir.path().join("jobs"), &clock, MillOptions::new());
    let pool = workers(&gate).start(&mill).unwrap();
    assert_eq!(pool.health().scales_between, Some((1, 8)));
    clock.advance(secs(30));
    assert_eq!(wanted(&pool), 1);

    let jobs = (0..100).map(|number: u32| note(&number.to_string()));
    let handles = mill.enqueue_all(jobs).unwrap();
    let counts = grow(&clock, &pool, &gate);
    // At most twice as many at a time.
    assert!(counts.len() <= 5, "{counts:?}");
    let before = std::iter::once(&1).chain(&counts);
    assert!(before.zip(&counts).all(|(one, next)| *next <= 2 * one));
    all_run(&pool, &gate);
    for _ in 0..200 {
        clock.advance(secs(1));
        assert_eq!(wanted(&pool), 8);
    }

    gate.set_open(true);
    handles.iter().for_each(wait_for_end);
    until("all threads are idle", || pool.health().busy_threads == 0);
    for _ in 0..40 {
        clock.advance(secs(1));
        assert_eq!(wanted(&pool), 8);
    }
    let mut last = 8;
    for _ in 0..60 {
        clock.advance(secs(1));
        let next = wanted(&pool);
        assert!(next == last || next + 1 == last, "{next} after {last}");
        last = next;
    }
    assert_eq!(last, 1);
    until("the other threads end", || pool.health().threads == 1);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn all_queues_and_levels_of_a_pool_count_together() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, gate) = (ManualClock::new(), Gate::default());
    let _opens = Opens(gate.clone());
    let mill = open(&dir.path().join("jobs"), &clock, MillOptions::new());
    let pool = workers(&gate).on(doubles).start(&mill).unwrap();
    for number in 0..4 {
        let job = mill.job(note(&number.to_string())).priority(Priority::Low);
        job.enqueue().unwrap();
        mill.enqueue(Double { number }).unwrap();
    }
    // Each of the two queues alone has too few jobs for so many threads.
    grow(&clock, &pool, &gate);
    all_run(&pool, &gate);
    gate.set_open(true);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn jobs_that_wait_for_a_limit_or_a_pause_start_no_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, gate) = (ManualClock::new(), Gate::default());
    let _opens = Opens(gate.clone());
    let options = MillOptions::new().limit(Limit::on_kind("note").at_once(2));
    let mill = open(&dir.path().join("jobs"), &clock, options);
    let scale = Scale::threads(4..=8).drain_within(secs(1));
    let pool = workers(&gate).scale(scale).start(&mill).unwrap();
    for number in 0..50 {
        mill.enqueue(note(&number.to_string())).unwrap();
    }
    until("two run", || gate.inside() == 2);
    for _ in 0..30 {
        clock.advance(secs(1));
        assert_eq!(wanted(&pool), 4);
    }
    gate.set_open(true);
    let queue = mill.queue("notes").unwrap();
    until("all are done", || mill.kind_stats("note").done == 50);
    queue.pause().unwrap();
    for number in 0..50 {
        mill.enqueue(note(&number.to_string())).unwrap();
    }
    for _ in 0..30 {
        clock.advance(secs(1));
        assert_eq!(wanted(&pool), 4);
    }
    assert_eq!(queue.stats().unwrap().ready, 50);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_number_that_an_operator_sets_holds_until_it_is_reset() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, gate) = (ManualClock::new(), Gate::default());
    let _opens = Opens(gate.clone());
    let mill = open(&dir.path().join("jobs"), &clock, MillOptions::new());
    let pool = workers(&gate).threads(3).start(&mill).unwrap();
    assert_eq!(wanted(&pool), 3);
    pool.set_tasks(7).unwrap();
    assert_eq!(pool.health().scales_between, Some((1, 8)));
    pool.set_threads(2).unwrap();
    assert_eq!(pool.health().scales_between, None);
    for number in 0..100 {
        mill.enqueue(note(&number.to_string())).unwrap();
    }
    until("two run", || gate.inside() == 2);
    for _ in 0..30 {
        clock.advance(secs(1));
        assert_eq!(wanted(&pool), 2);
    }
    pool.reset_concurrency().unwrap();
    assert_eq!(pool.health().scales_between, Some((1, 8)));
    assert_eq!(wanted(&pool), 2);
    grow(&clock, &pool, &gate);

    // Beyond the bounds as well; without a restart, it is within them again.
    pool.set_threads(11).unwrap();
    all_run(&pool, &gate);
    pool.reset_concurrency().unwrap();
    assert_eq!(wanted(&pool), 8);
    gate.set_open(true);
    until("some end", || pool.health().threads == 8);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_number_that_is_stored_holds_after_a_restart_and_a_number_of_tasks_leaves_the_scale_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs");
    let (clock, gate) = (ManualClock::new(), Gate::default());
    gate.set_open(true);
    let started = |act: &dyn Fn(&Pool)| {
        let mill = open(&path, &clock, MillOptions::new());
        let pool = workers(&gate).name("notes").dynamic().start(&mill).unwrap();
        let health = pool.health();
        act(&pool);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        mill.close().unwrap();
        (
            health.scales_between,
            health.wanted_threads,
            health.max_tasks,
        )
    };
    let scales = Some((1, 8));
    assert_eq!(
        started(&|pool| pool.set_tasks(7).unwrap()),
        (scales, 1, 100)
    );
    assert_eq!(
        started(&|pool| pool.set_threads(4).unwrap()),
        (scales, 1, 7)
    );
    assert_eq!(started(&|pool| pool.set_tasks(9).unwrap()), (None, 4, 7));
    assert_eq!(
        started(&|pool| pool.reset_concurrency().unwrap()),
        (None, 4, 9)
    );
    assert_eq!(started(&|_| {}), (scales, 1, 100));
}

#[test]
fn a_pool_that_is_gone_is_not_kept_by_its_scale() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs");
    let (clock, gate) = (ManualClock::new(), Gate::default());
    gate.set_open(true);
    for _ in 0..3 {
        let mill = open(&path, &clock, MillOptions::new());
        let pool = workers(&gate).start(&mill).unwrap();
        wait_for_end(&mill.enqueue(note("x")).unwrap());
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        clock.advance(secs(5));
    }
    // Also on the system's clock.
    for _ in 0..3 {
        let mill = Mill::open(&path).unwrap();
        let pool = workers(&gate).start(&mill).unwrap();
        wait_for_end(&mill.enqueue(note("x")).unwrap());
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    }
}

#[test]
fn each_change_is_logged_and_a_subscriber_that_panics_does_not_stop_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, gate) = (ManualClock::new(), Gate::default());
    let _opens = Opens(gate.clone());
    let mill = open(&dir.path().join("jobs"), &clock, MillOptions::new());
    let pool = workers(&gate).start(&mill).unwrap();
    for number in 0..20 {
        mill.enqueue(note(&number.to_string())).unwrap();
    }
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    let panics = OnEvent(move |metadata: &tracing::Metadata<'_>| {
        let is_of_scale = metadata.target().contains("::scale::");
        if is_of_scale && *metadata.level() == tracing::Level::INFO {
            counted.fetch_add(1, Ordering::SeqCst);
            panic!("as told");
        }
    });
    let grown = tracing::subscriber::with_default(panics, || grow(&clock, &pool, &gate));
    let before = std::iter::once(&1).chain(&grown);
    let changes = before.zip(&grown).filter(|(one, next)| one != next).count();
    assert_eq!(told.load(Ordering::SeqCst), changes);
    gate.set_open(true);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

/// A state without which no thread can be started.
struct Moody(Arc<AtomicBool>);

impl Clone for Moody {
    fn clone(&self) -> Self {
        assert!(!self.0.load(Ordering::SeqCst), "as told");
        Self(Arc::clone(&self.0))
    }
}

#[test]
fn threads_that_could_not_be_started_are_started_later() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, gate) = (ManualClock::new(), Gate::default());
    let _opens = Opens(gate.clone());
    let mill = open(&dir.path().join("jobs"), &clock, MillOptions::new());
    let fails = Arc::new(AtomicBool::new(false));
    let passed = gate.clone();
    let handler = move |_: Note| {
        passed.pass();
        JobResult::Ok(())
    };
    let scale = Scale::threads(2..=8).drain_within(secs(10));
    let workers = Workers::new(Moody(Arc::clone(&fails))).on(handler);
    let pool = workers.scale(scale).start(&mill).unwrap();
    for number in 0..100 {
        mill.enqueue(note(&number.to_string())).unwrap();
    }
    all_run(&pool, &gate);
    fails.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        clock.advance(secs(1));
    }
    let health = pool.health();
    assert_eq!((health.threads, health.wanted_threads), (2, 4));
    assert!(!health.is_healthy());
    fails.store(false, Ordering::SeqCst);
    clock.advance(secs(1));
    assert_eq!(pool.health().threads, 4);
    grow(&clock, &pool, &gate);
    assert!(pool.health().is_healthy());
    gate.set_open(true);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}
