//! Chunks in pools of threads: who runs them, and what becomes of them at the end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use logmill_jobs::testing::ManualClock;
use logmill_jobs::{
    Chunk, ChunkOptions, Job, JobResult, Mill, MillOptions, Pool, State, Status, StopCause,
    Workers, hours, minutes,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{Index, Seen, index, noting};
use crate::common::{Note, PATIENCE, note, until, wait_for_end};

/// A mill whose clock stands still until it is advanced.
pub(super) fn mill() -> (Mill, ManualClock, TempDir) {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    (open(dir.path(), &clock), clock, dir)
}

fn open(dir: &Path, clock: &ManualClock) -> Mill {
    let options = MillOptions::new().clock(clock);
    let builder = Mill::builder(dir.join("jobs")).options(options);
    builder.open().unwrap()
}

/// Where handlers wait.
#[derive(Clone, Default)]
pub(super) struct Gate {
    inside: Arc<AtomicUsize>,
    is_open: Arc<AtomicBool>,
}

impl Gate {
    pub(super) fn pass(&self) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        until("the gate opens", || self.is_open.load(Ordering::SeqCst));
    }

    pub(super) fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }

    pub(super) fn close(&self) {
        self.is_open.store(false, Ordering::SeqCst);
    }
}

/// Opens the gate at the end of a test, however it ends, so that no thread is left behind.
pub(super) struct Opens(pub(super) Gate);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Enqueues jobs, and waits until workers have them in a chunk.
pub(super) fn gather(
    mill: &Mill,
    jobs: std::ops::Range<u64>,
) -> Vec<logmill_jobs::JobHandle<Index>> {
    let handles = mill.enqueue_all(jobs.map(index)).unwrap();
    for handle in &handles {
        until("a worker has it", || {
            matches!(handle.status().unwrap(), Status::Running { failed: 0 })
        });
    }
    handles
}

pub(super) fn shut_down(pool: Pool) {
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_full_chunk_runs_at_once_and_one_that_is_not_when_its_first_job_has_waited_for_long_enough() {
    let (mill, clock, _dir) = mill();
    let seen = Seen::default();
    let pool = noting(&seen, 3).threads(2).start(&mill).unwrap();
    mill.enqueue_all((0..7).map(index)).unwrap();
    until("two are full", || seen.sizes() == [3, 3]);
    gather(&mill, 7..8);
    clock.advance(minutes(59));
    assert_eq!(seen.sizes(), [3, 3]);
    clock.advance(minutes(1));
    until("the third one has run", || seen.sizes() == [3, 3, 2]);
    shut_down(pool);
}

#[test]
fn a_thread_goes_on_to_other_jobs_while_a_chunk_waits() {
    let (mill, clock, _dir) = mill();
    let seen = Seen::default();
    let workers = noting(&seen, 10).on(|_: Note| JobResult::Ok(()));
    let pool = workers.threads(1).start(&mill).unwrap();
    gather(&mill, 0..2);
    for _ in 0..10 {
        wait_for_end(&mill.enqueue(note("another")).unwrap());
    }
    assert!(seen.sizes().is_empty());
    // A job has ended a moment before its thread says that it is idle.
    until("the thread is idle", || pool.health().busy_threads == 0);
    clock.advance(hours(1));
    until("it has run", || seen.sizes() == [2]);
    shut_down(pool);
}

#[test]
fn an_idle_thread_runs_the_chunk_that_one_has_opened_which_is_busy_by_then() {
    let (mill, clock, _dir) = mill();
    let (seen, gate) = (Seen::default(), Gate::default());
    let _opens = Opens(gate.clone());
    let passes = gate.clone();
    let workers = noting(&seen, 10).on(move |_: Note| {
        passes.pass();
        JobResult::Ok(())
    });
    let pool = workers.threads(2).start(&mill).unwrap();
    // Whichever thread it is that has opened the chunk, in some of the rounds it is the one that is
    // busy in the end.
    for round in 1..=10 {
        gate.close();
        gather(&mill, 0..1);
        let busy = mill.enqueue(note("busy")).unwrap();
        until("a thread is busy", || gate.inside() == round);
        clock.advance(hours(1));
        until("the other runs it", || seen.sizes().len() == round);
        gate.open();
        wait_for_end(&busy);
    }
    shut_down(pool);
}

#[test]
fn a_chunk_that_is_due_while_all_threads_are_busy_runs_on_the_first_that_is_free() {
    let (mill, clock, _dir) = mill();
    let (seen, gate) = (Seen::default(), Gate::default());
    let _opens = Opens(gate.clone());
    let passes = gate.clone();
    let workers = noting(&seen, 10).on(move |_: Note| {
        passes.pass();
        JobResult::Ok(())
    });
    let pool = workers.threads(1).start(&mill).unwrap();
    gather(&mill, 0..3);
    mill.enqueue_all([note("busy"), note("next")]).unwrap();
    until("the thread is busy", || gate.inside() == 1);
    clock.advance(hours(1));
    assert!(seen.sizes().is_empty());
    gate.open();
    until("it has run", || seen.sizes() == [3]);
    until("the next one also", || gate.inside() == 2);
    shut_down(pool);
}

#[test]
fn chunks_of_two_kinds_that_are_due_at_once_run_on_two_threads() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "one")]
    struct One;
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "two")]
    struct Two;
    let (mill, clock, _dir) = mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let (first, second) = (gate.clone(), gate.clone());
    let chunks = ChunkOptions::up_to(10).within(hours(1));
    let workers = Workers::new(())
        .on_chunk(
            move |_: Chunk<One>| {
                first.pass();
                JobResult::Ok(())
            },
            chunks,
        )
        .on_chunk(
            move |_: Chunk<Two>| {
                second.pass();
                JobResult::Ok(())
            },
            chunks.within(minutes(90)),
        );
    let pool = workers.threads(2).start(&mill).unwrap();
    let one = mill.enqueue(One).unwrap();
    let two = mill.enqueue(Two).unwrap();
    let has_begun = |status| matches!(status, Status::Running { .. });
    until("both wait", || {
        has_begun(one.status().unwrap()) && has_begun(two.status().unwrap())
    });
    // Again and again, as a worker may look at the clock later than its job says that it runs.
    until("both run", || {
        clock.advance(minutes(30));
        gate.inside() == 2
    });
    gate.open();
    shut_down(pool);
}

#[test]
fn a_shutdown_gives_the_jobs_of_an_open_chunk_back_without_an_attempt() {
    let (mill, clock, dir) = mill();
    let seen = Seen::default();
    let pool = noting(&seen, 10).threads(2).start(&mill).unwrap();
    let handles = gather(&mill, 0..5);
    let report = pool.shutdown(PATIENCE);
    assert!(report.finished_in_time && report.still_running.is_empty());
    for handle in &handles {
        assert_eq!(
            handle.status().unwrap(),
            Status::Waiting {
                failed: 0,
                due: None
            }
        );
    }
    assert_eq!(mill.kind_stats("index").failed, 0);
    // They keep the mill open.
    drop(handles);
    mill.close().unwrap();

    let mill = open(dir.path(), &clock);
    let attempts = |chunk: Chunk<Index>, State(seen): State<Seen>| -> JobResult {
        assert!(
            chunk
                .iter()
                .all(|one| one.attempt() == 1 && one.context().crashes() == 0)
        );
        seen.note(&chunk);
        Ok(())
    };
    let workers = Workers::new(seen.clone()).on_chunk(attempts, ChunkOptions::up_to(5));
    let pool = workers.start(&mill).unwrap();
    until("they have run", || seen.chunks() == [[0, 1, 2, 3, 4]]);
    shut_down(pool);
}

#[test]
fn a_mill_that_is_closed_does_not_wait_for_an_open_chunk() {
    let (mill, clock, dir) = mill();
    let seen = Seen::default();
    let pool = noting(&seen, 10).threads(2).start(&mill).unwrap();
    gather(&mill, 0..5);
    mill.close().unwrap();
    shut_down(pool);
    let mill = open(dir.path(), &clock);
    let pool = noting(&seen, 5).start(&mill).unwrap();
    until("they have run", || seen.sizes() == [5]);
    shut_down(pool);
}

#[test]
fn a_job_that_is_cancelled_while_its_chunk_waits_is_left_out() {
    let (mill, clock, _dir) = mill();
    let seen = Seen::default();
    let pool = noting(&seen, 10).threads(1).start(&mill).unwrap();
    let handles = gather(&mill, 0..3);
    handles[1].cancel("not needed").unwrap();
    clock.advance(hours(1));
    until("the others have run", || seen.chunks() == [[0, 2]]);
    let reason = "not needed".to_owned();
    let cancelled = Status::Cancelled { reason };
    until("it is cancelled", || {
        handles[1].status().unwrap() == cancelled
    });
    // All of them are, and the handler is not called.
    let handles = gather(&mill, 3..5);
    for handle in &handles {
        handle.cancel("not needed").unwrap();
    }
    clock.advance(hours(1));
    for handle in &handles {
        until("it is cancelled", || handle.status().unwrap() == cancelled);
    }
    assert_eq!(seen.sizes(), [2]);
    shut_down(pool);
}

#[test]
fn a_shutdown_lists_all_jobs_of_a_chunk_that_runs_and_tells_its_handler() {
    let (mill, _clock, _dir) = mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let passes = gate.clone();
    let handler = move |chunk: Chunk<Index>| {
        assert!(!chunk.is_stopping());
        passes.pass();
        let causes = chunk.iter().map(|one| one.context().stop_cause());
        assert!({ causes }.all(|cause| cause == Some(StopCause::Shutdown)));
        chunk[0].done();
        chunk.check()
    };
    let workers = Workers::new(()).on_chunk(handler, ChunkOptions::up_to(3));
    let pool = workers.threads(1).start(&mill).unwrap();
    let handles = mill.enqueue_all((0..3).map(index)).unwrap();
    until("it runs", || gate.inside() == 1);
    let report = pool.shutdown(Duration::ZERO);
    assert!(!report.finished_in_time);
    let mut running = report.still_running;
    running.sort();
    let mut ids: Vec<_> = handles.iter().map(|handle| handle.id().clone()).collect();
    ids.sort();
    assert_eq!(running, ids);
    gate.open();
    until("two are given back", || {
        let queue = mill.queue("index").unwrap().stats().unwrap();
        (queue.completed, queue.ready, queue.running) == (1, 2, 0)
    });
    until("they are counted", || mill.kind_stats("index").snoozed == 2);
}

#[test]
fn a_chunk_that_is_stuck_is_reported_once_and_its_thread_replaced() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "deaf", timeout = SOON, grace = SOON)]
    struct Deaf;
    const SOON: Duration = Duration::from_millis(10);
    let (mill, _dir) = crate::common::mill();
    let gate = Gate::default();
    let _opens = Opens(gate.clone());
    let passes = gate.clone();
    let handler = move |_: Chunk<Deaf>| {
        passes.pass();
        JobResult::Ok(())
    };
    let chunks = ChunkOptions::up_to(3).within(hours(1));
    let workers = Workers::new(()).on_chunk(handler, chunks);
    let workers = workers.on(|_: Note| JobResult::Ok(()));
    let pool = workers.threads(1).start(&mill).unwrap();
    let handles = mill.enqueue_all((0..3).map(|_| Deaf)).unwrap();
    until("it is stuck", || !pool.stuck().is_empty());
    let stuck = pool.stuck();
    assert_eq!((stuck.len(), &*stuck[0].kind), (1, "deaf"));
    assert!(handles.iter().any(|handle| *handle.id() == stuck[0].id));
    wait_for_end(&mill.enqueue(note("another")).unwrap());
    gate.open();
    handles.iter().for_each(wait_for_end);
    until("it is not stuck any more", || pool.stuck().is_empty());
    until("they are counted", || mill.kind_stats("deaf").done == 3);
    shut_down(pool);
}

#[cfg(feature = "tokio")]
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_due_runs_while_as_many_tasks_run_as_may() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "waits")]
    struct Waits;
    let (mill, clock, _dir) = mill();
    let seen = Seen::default();
    let (inside, ends) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(tokio::sync::Notify::new()),
    );
    let (entered, ended) = (Arc::clone(&inside), Arc::clone(&ends));
    let waits = move |_: Waits| {
        let (entered, ended) = (Arc::clone(&entered), Arc::clone(&ended));
        async move {
            entered.fetch_add(1, Ordering::SeqCst);
            ended.notified().await;
            JobResult::Ok(())
        }
    };
    let workers = noting(&seen, 10).on_async(waits).threads(1).tasks(1);
    let pool = workers.start(&mill).unwrap();
    tokio::task::spawn_blocking(move || {
        gather(&mill, 0..3);
        let waits = mill.enqueue(Waits).unwrap();
        until("the task runs", || inside.load(Ordering::SeqCst) == 1);
        clock.advance(hours(1));
        until("it has run", || seen.sizes() == [3]);
        ends.notify_one();
        wait_for_end(&waits);
        shut_down(pool);
    })
    .await
    .unwrap();
}

#[test]
fn chunks_of_many_threads_have_each_job_once() {
    let (mill, _dir) = crate::common::mill();
    let seen = Seen::default();
    let notes = |chunk: Chunk<Index>, State(seen): State<Seen>| -> JobResult {
        seen.note(&chunk);
        Ok(())
    };
    let chunks = ChunkOptions::up_to(7).within(Duration::from_micros(200));
    let workers = Workers::new(seen.clone()).on_chunk(notes, chunks);
    let workers = workers.on(|_: Note| JobResult::Ok(()));
    let pool = workers.threads(4).start(&mill).unwrap();
    let mut handles = Vec::new();
    for round in 0..100 {
        mill.enqueue(note("between")).unwrap();
        handles.extend(
            mill.enqueue_all((0..20).map(|at| index(20 * round + at)))
                .unwrap(),
        );
        if round % 10 == 0 {
            handles.drain(..).for_each(|handle| wait_for_end(&handle));
        }
    }
    handles.iter().for_each(wait_for_end);
    assert!(seen.sizes().iter().all(|size| (1..=7).contains(size)));
    let mut all = seen.chunks().concat();
    all.sort_unstable();
    assert_eq!(all, (0..2000).collect::<Vec<_>>());
    shut_down(pool);
}
