//! Async handlers of chunks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::{
    After, Attempt, Chunk, ChunkOptions, Job, JobHandle, JobResult, StartError, State, Status,
    StopCause, Workers, discard, hours, minutes, secs,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::{Index, Seen, index};
use crate::common::{Note, PATIENCE, mill, note, until, wait_for_end};

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

async fn notes(chunk: Chunk<Index>, State(seen): State<Seen>) -> JobResult {
    tokio::task::yield_now().await;
    seen.note(&chunk);
    Ok(())
}

/// Workers whose handler notes what it is called with, and whose chunks wait for an hour.
fn noting(seen: &Seen, most: usize) -> Workers<Seen> {
    let chunks = ChunkOptions::up_to(most).within(hours(1));
    Workers::new(seen.clone()).on_chunk_async(notes, chunks)
}

/// Where handlers wait, and how many do.
#[derive(Clone)]
struct Gate {
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    opens: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Self {
        Self {
            inside: Arc::default(),
            most: Arc::default(),
            opens: Arc::new(Semaphore::new(0)),
        }
    }

    async fn pass(&self) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        self.opens.acquire().await.unwrap().forget();
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    fn let_through(&self, chunks: usize) {
        self.opens.add_permits(chunks);
    }
}

async fn passes(chunk: Chunk<Index>, State(gate): State<Gate>) -> JobResult {
    gate.pass().await;
    chunk.check()
}

fn is_running(handle: &JobHandle<Index>) -> bool {
    matches!(handle.status().unwrap(), Status::Running { failed: 0 })
}

fn is_waiting(handle: &JobHandle<Index>) -> bool {
    matches!(handle.status().unwrap(), Status::Waiting { failed: 0, .. })
}

/// Runs a chunk of jobs; returns how their attempts ended, in the order of the documents.
fn run<F>(
    mill: &TestMill,
    jobs: u64,
    handler: impl Fn(Chunk<Index>) -> F + Send + Sync + 'static,
) -> Vec<Vec<How>>
where
    F: Future<Output = JobResult> + Send + 'static,
{
    let handles = mill.enqueue_all((0..jobs).map(index)).unwrap();
    let workers = Workers::new(()).on_chunk_async(handler, ChunkOptions::up_to(100));
    let report = mill.run_until_idle(&workers).unwrap();
    let ended = handles.iter().map(|handle| {
        let attempts = report.ran.iter().filter(|ran| ran.id == *handle.id());
        attempts.map(|ran| ran.how.clone()).collect()
    });
    ended.collect()
}

fn retried(reason: &str) -> How {
    How::Retried {
        after: secs(0),
        reason: reason.to_owned(),
    }
}

fn dead(reason: &str) -> How {
    How::Dead {
        reason: reason.to_owned(),
    }
}

#[test]
fn a_chunk_is_awaited_and_each_of_its_jobs_ends_as_was_said_of_it() {
    let mill = TestMill::open().unwrap();
    let ended = run(&mill, 4, async |chunk| {
        for one in &chunk {
            match one.job.document {
                0 => one.fail(discard("no such document")),
                1 if one.attempt() == 1 => one.fail("once more"),
                _ => {}
            }
            tokio::task::yield_now().await;
            one.context().then(note("follows"))?;
        }
        Ok(())
    });
    let expected = [
        vec![dead("no such document")],
        vec![retried("once more"), How::Done],
        vec![How::Done],
        vec![How::Done],
    ];
    assert_eq!(ended, expected);
    // What follows is stored with a completion.
    let follows = mill.queue("notes").unwrap().stats().unwrap();
    assert_eq!(follows.ready, 3);
    let stats = mill.kind_stats("index");
    assert_eq!((stats.done, stats.failed, stats.dead), (3, 2, 1));
    // A retry has not waited.
    assert_eq!((stats.waited.count, stats.ran.count), (4, 5));
}

#[test]
fn an_error_or_a_panic_before_or_within_the_future_is_that_of_the_jobs_left() {
    let mill = TestMill::open().unwrap();
    let handler = |chunk: Chunk<Index>| {
        chunk[0].done();
        let document = chunk[0].job.document;
        assert!(document != 0 || chunk.len() < 3, "before the future");
        async move {
            tokio::task::yield_now().await;
            assert!(chunk.len() != 2, "within the future");
            Err("no connection".into())
        }
    };
    let mut ended = run(&mill, 3, handler);
    ended.sort_by_key(Vec::len);
    let again = vec![retried("before the future"), How::Done];
    let last = vec![retried("before the future"), dead("within the future")];
    assert_eq!(ended, [vec![How::Done], again, last]);
    let ended = run(&mill, 1, |chunk: Chunk<Index>| async move {
        drop(chunk);
        Err("no connection".into())
    });
    assert_eq!(ended, [[retried("no connection"), dead("no connection")]]);
}

/// A job whose drop panics, once it has been stored.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "bomb", timeout = minutes(5), max_retries = 0)]
struct Bomb {
    #[serde(skip, default = "armed")]
    is_armed: bool,
}

fn armed() -> bool {
    true
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.is_armed, "of the drop");
    }
}

#[test]
fn a_future_whose_time_is_up_is_dropped_and_the_jobs_of_which_it_said_nothing_have_failed() {
    let mill = TestMill::open().unwrap();
    let jobs = (0..3).map(|_| Bomb { is_armed: false });
    mill.enqueue_all(jobs).unwrap();
    let clock = mill.clock().clone();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let middleware = move |_: &Attempt<'_>| {
        let tell = Arc::clone(&tell);
        Ok(After::call(move |result| {
            tell.lock().push(result.is_ok());
            result
        }))
    };
    let handler = move |chunk: Chunk<Bomb>| {
        let clock = clock.clone();
        async move {
            assert_eq!(chunk.deadline(), chunk[0].context().deadline());
            chunk[0].done();
            chunk[1].fail(discard("not this one"));
            clock.advance(minutes(6));
            assert!(chunk.is_stopping());
            let cause = chunk[1].context().stop_cause();
            assert_eq!(cause, Some(StopCause::TimedOut));
            std::future::pending::<JobResult>().await
        }
    };
    let workers = Workers::new(()).on_chunk_async(handler, ChunkOptions::up_to(3));
    let report = mill.run_until_idle(&workers.with(middleware)).unwrap();
    assert_eq!((report.done(), report.dead()), (1, 2), "{report}");
    let text = report.to_string();
    assert!(text.contains("the attempt took too long"), "{text}");
    assert!(text.contains("not this one"), "{text}");
    let mut told = told.lock().clone();
    told.sort_unstable();
    assert_eq!(told, [false, false, true]);
}

#[test]
fn chunks_run_side_by_side_up_to_the_number_of_tasks() {
    let (mill, _dir) = mill();
    let (runtime, gate) = (runtime(), Gate::new());
    let chunks = ChunkOptions::up_to(3).within(hours(1));
    let workers = Workers::new(gate.clone()).on_chunk_async(passes, chunks);
    let workers = workers.threads(3).tasks(2);
    let pool = runtime.block_on(async { workers.start(&mill).unwrap() });
    let handles = mill.enqueue_all((0..18).map(index)).unwrap();
    until("two run", || gate.inside() == 2);
    assert_eq!(pool.health().tasks, 2);
    for ended in 1..=4 {
        gate.let_through(1);
        until("one has ended", || {
            mill.kind_stats("index").done == 3 * ended
        });
        until("another has begun", || gate.inside() == 2);
    }
    gate.let_through(2);
    handles.iter().for_each(wait_for_end);
    assert_eq!(gate.most.load(Ordering::SeqCst), 2);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_shutdown_gives_back_chunks_that_wait_for_jobs_or_for_a_task_and_lists_those_that_run() {
    let (mill, _dir) = mill();
    let (runtime, gate) = (runtime(), Gate::new());
    let chunks = ChunkOptions::up_to(3).within(hours(1));
    let workers = Workers::new(gate.clone()).on_chunk_async(passes, chunks);
    let workers = workers.threads(1).tasks(2);
    let pool = runtime.block_on(async { workers.start(&mill).unwrap() });
    let first = mill.enqueue_all((0..3).map(index)).unwrap();
    until("the first one runs", || gate.inside() == 1);
    let open = mill.enqueue_all((3..5).map(index)).unwrap();
    until("the second one waits", || open.iter().all(is_running));
    // The third job fills it, and a chunk that waits for a task is filled by three others.
    let filled = mill.enqueue_all((5..6).map(index)).unwrap();
    until("the second one runs", || gate.inside() == 2);
    pool.set_tasks(3).unwrap();
    let third = mill.enqueue_all((6..8).map(index)).unwrap();
    until("the third one waits for a job", || {
        third.iter().all(is_running)
    });
    pool.set_tasks(2).unwrap();

    let report = pool.shutdown(Duration::ZERO);
    assert!(!report.finished_in_time);
    let mut running = report.still_running;
    running.sort();
    let run = first.iter().chain(&open).chain(&filled);
    let mut ids: Vec<_> = run.map(|handle| handle.id().clone()).collect();
    ids.sort();
    assert_eq!(running, ids);
    until("the third one is given back", || {
        third.iter().all(is_waiting)
    });
    // Those that run are told, and give themselves back.
    gate.let_through(2);
    let is_idle = || {
        let stats = mill.queue("index").unwrap().stats().unwrap();
        (stats.ready, stats.running) == (8, 0)
    };
    until("all are given back", is_idle);
    assert_eq!(mill.kind_stats("index").failed, 0);

    let seen = Seen::default();
    let mut pool = None;
    until("the first pool has ended", || {
        match runtime.block_on(async { noting(&seen, 8).start(&mill) }) {
            Err(StartError::QueueServed(_)) => false,
            started => {
                pool = Some(started.unwrap());
                true
            }
        }
    });
    until("they have run", || seen.sizes() == [8]);
    assert!(pool.unwrap().shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_chunk_that_is_due_waits_for_a_task_and_is_given_back_by_a_shutdown() {
    let (mill, clock, _dir) = super::pools::mill();
    let (runtime, gate) = (runtime(), Gate::new());
    let chunks = ChunkOptions::up_to(3).within(hours(1));
    let workers = Workers::new(gate.clone()).on_chunk_async(passes, chunks);
    let workers = workers.threads(2).tasks(2);
    let pool = runtime.block_on(async { workers.start(&mill).unwrap() });
    let due = |jobs: std::ops::Range<u64>| {
        // So that they are taken while a chunk runs.
        pool.set_tasks(2).unwrap();
        let handles = mill.enqueue_all(jobs.map(index)).unwrap();
        until("they are in a chunk", || handles.iter().all(is_running));
        pool.set_tasks(1).unwrap();
        clock.advance(hours(1));
        handles
    };
    let full = mill.enqueue_all((0..3).map(index)).unwrap();
    until("a full one runs", || gate.inside() == 1);
    let second = due(3..5);
    assert_eq!((gate.inside(), pool.health().tasks), (1, 1));
    second[0].cancel("not needed").unwrap();
    gate.let_through(1);
    full.iter().for_each(wait_for_end);
    until("the due one runs", || gate.inside() == 1);
    until("it runs without what was cancelled", || {
        matches!(second[0].status().unwrap(), Status::Cancelled { .. })
    });

    let third = due(5..7);
    let report = pool.shutdown(Duration::ZERO);
    assert_eq!(report.still_running, [second[1].id().clone()]);
    until("it is given back", || third.iter().all(is_waiting));
    assert_eq!(gate.most.load(Ordering::SeqCst), 1);
    gate.let_through(1);
    until("what ran as well", || is_waiting(&second[1]));
    assert_eq!(mill.kind_stats("index").failed, 0);
}

#[test]
fn chunks_of_async_handlers_need_a_runtime_and_their_jobs_outlive_it() {
    let (mill, _dir) = mill();
    let seen = Seen::default();
    assert!(matches!(
        noting(&seen, 3).start(&mill),
        Err(StartError::NoRuntime)
    ));
    let (runtime, gate) = (runtime(), Gate::new());
    let told = Arc::new(AtomicUsize::new(0));
    let tell = Arc::clone(&told);
    let middleware = move |_: &Attempt<'_>| {
        let tell = Arc::clone(&tell);
        Ok(After::call(move |result| {
            tell.fetch_add(usize::from(result.is_err()), Ordering::SeqCst);
            result
        }))
    };
    let chunks = ChunkOptions::up_to(3).within(hours(1));
    let workers = Workers::new(gate.clone()).on_chunk_async(passes, chunks);
    let workers = workers.with(middleware);
    let pool = runtime.block_on(async { workers.start(&mill).unwrap() });
    let handles = mill.enqueue_all((0..3).map(index)).unwrap();
    until("they run", || gate.inside() == 1);
    // The runtime drops the task, and the jobs come back.
    runtime.shutdown_timeout(secs(10));
    until("they come back", || handles.iter().all(is_waiting));
    assert_eq!(told.load(Ordering::SeqCst), 3);
    until("the pool has stopped", || pool.health().is_stopping);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    assert_eq!(mill.kind_stats("index").failed, 0);

    let runtime = self::runtime();
    let pool = runtime.block_on(async { noting(&seen, 3).start(&mill).unwrap() });
    until("they have run", || seen.chunks() == [[0, 1, 2]]);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn chunks_of_blocking_and_of_async_handlers_share_a_pool() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "remove", queue = "index")]
    struct Remove;
    let (mill, _dir) = mill();
    let (runtime, seen) = (runtime(), Seen::default());
    let removed = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&removed);
    let remove = move |chunk: Chunk<Remove>| -> JobResult {
        counts.fetch_add(chunk.len(), Ordering::SeqCst);
        Ok(())
    };
    let chunks = ChunkOptions::up_to(7).within(Duration::from_micros(200));
    let workers = Workers::new(seen.clone())
        .on_chunk_async(notes, chunks)
        .on_chunk(remove, chunks)
        .on_async(async |_: Note| JobResult::Ok(()));
    let workers = workers.threads(3).tasks(2);
    let pool = runtime.block_on(async { workers.start(&mill).unwrap() });
    for round in 0..50 {
        mill.enqueue(note("between")).unwrap();
        mill.enqueue_all((0..20).map(|at| index(20 * round + at)))
            .unwrap();
        mill.enqueue_all((0..5).map(|_| Remove)).unwrap();
    }
    let done = |kind| mill.kind_stats(kind).done;
    until("all are done", || {
        [done("index"), done("remove"), done("note")] == [1000, 250, 50]
    });
    assert!(seen.sizes().iter().all(|size| (1..=7).contains(size)));
    let mut all = seen.chunks().concat();
    all.sort_unstable();
    assert_eq!(all, (0..1000).collect::<Vec<_>>());
    assert_eq!(removed.load(Ordering::SeqCst), 250);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_future_is_polled_in_no_lock_and_may_enqueue_and_cancel() {
    let mill = TestMill::open().unwrap();
    let was_cancelled = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&was_cancelled);
    let ended = run(&mill, 3, move |chunk| {
        let noted = Arc::clone(&noted);
        async move {
            let mill = chunk[0].context().mill().clone();
            tokio::task::yield_now().await;
            mill.enqueue(note("another")).unwrap();
            mill.cancel(chunk[1].id(), "not needed").unwrap();
            noted.store(chunk[1].context().is_cancelled(), Ordering::SeqCst);
            chunk[1].context().check()?;
            Ok(())
        }
    });
    assert!(was_cancelled.load(Ordering::SeqCst));
    assert_eq!(ended.len(), 3);
}
