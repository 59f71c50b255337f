//! What users of other systems complain about, and what happens here instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use logmill_jobs::backend::Cancelled;
use logmill_jobs::{Context, Job, JobResult, Mill, State, Status, Workers, secs};
use serde::{Deserialize, Serialize};

use crate::common::{Double, PATIENCE, mill, note, until};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "slow", timeout = Duration::from_millis(20), max_retries = 5)]
struct Slow;

/// Celery: a delay that is longer than the visibility timeout delivers the job again and again.
#[test]
fn a_delay_that_is_longer_than_the_timeout_of_an_attempt_runs_the_job_once() {
    let (mill, _dir) = mill();
    let runs = Arc::new(AtomicU32::new(0));
    let pool = Workers::new(Arc::clone(&runs))
        .on(|_: Slow, State(runs): State<Arc<AtomicU32>>, cx: Context| {
            runs.fetch_add(1, Ordering::SeqCst);
            assert_eq!(cx.attempt(), 1);
            JobResult::Ok(())
        })
        .start(&mill)
        .unwrap();
    let delayed = mill.job(Slow).after(Duration::from_millis(300)).enqueue();
    delayed.unwrap().wait_timeout(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let _ = pool.shutdown(secs(30));
}

/// BullMQ: the lock of a job that takes long runs out, and another worker runs it as well.
#[test]
fn a_job_that_takes_long_is_not_run_by_another_worker_meanwhile() {
    let (mill, _dir) = mill();
    let runs = Arc::new(AtomicU32::new(0));
    let pool = Workers::new(Arc::clone(&runs))
        .on(|_: Slow, State(runs): State<Arc<AtomicU32>>| {
            assert_eq!(runs.fetch_add(1, Ordering::SeqCst), 0, "it runs twice");
            // Ten times as long as it is meant to take.
            std::thread::sleep(Duration::from_millis(200));
            JobResult::Ok(())
        })
        .threads(3)
        .start(&mill)
        .unwrap();
    mill.enqueue(Slow).unwrap().wait_timeout(PATIENCE).unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let _ = pool.shutdown(secs(30));
}

/// Celery: a revoked job runs after a restart, as revokes are in memory.
#[test]
fn a_cancelled_job_does_not_run_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs");
    let mill = Mill::open(&path).unwrap();
    let handle = mill.enqueue(note("never")).unwrap();
    let other = mill.enqueue(note("after it")).unwrap().id().clone();
    assert_eq!(handle.cancel("revoked").unwrap(), Cancelled::Waiting);
    let id = handle.id().clone();
    drop(handle);
    mill.close().unwrap();

    let mill = Mill::open(&path).unwrap();
    let pool = Workers::new(())
        .on(|job: crate::common::Note| {
            assert_eq!(job.text, "after it");
            JobResult::Ok(())
        })
        .start(&mill)
        .unwrap();
    until("the other job", || {
        mill.status(&other).unwrap() == Status::Unknown
    });
    let reason = "revoked".to_owned();
    assert_eq!(mill.status(&id).unwrap(), Status::Cancelled { reason });
    assert_eq!(mill.queue("notes").unwrap().dead_jobs().unwrap(), []);
    let _ = pool.shutdown(secs(30));
}

/// Celery: PENDING also means that nobody knows the job.
#[test]
fn unknown_waiting_and_done_are_different_answers() {
    let (mill, _dir) = mill();
    let handle = mill.enqueue(Double { number: 4 }).unwrap();
    let (failed, due) = (0, None);
    assert_eq!(handle.status().unwrap(), Status::Waiting { failed, due });
    for unknown in ["default/9999999", "nowhere/1"] {
        let id = unknown.parse().unwrap();
        assert_eq!(mill.status(&id).unwrap(), Status::Unknown, "{unknown}");
        assert!(mill.handle::<Double>(id).wait_timeout(PATIENCE).is_err());
    }
    let pool = Workers::new(())
        .on(|job: Double| JobResult::Ok(job.number * 2))
        .start(&mill)
        .unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 8);
    assert_eq!(handle.status().unwrap(), Status::Done);
    let _ = pool.shutdown(secs(30));
}

/// BullMQ: delayed jobs sleep until another job is added.
#[test]
fn a_delayed_job_begins_though_nothing_else_happens() {
    let (mill, _dir) = mill();
    let pool = Workers::new(())
        .on(|job: Double| JobResult::Ok(job.number * 2))
        .start(&mill)
        .unwrap();
    // The workers sleep by then.
    std::thread::sleep(Duration::from_millis(200));
    let delayed = mill
        .job(Double { number: 1 })
        .after(Duration::from_millis(200));
    assert_eq!(
        delayed.enqueue().unwrap().wait_timeout(PATIENCE).unwrap(),
        2
    );
    let _ = pool.shutdown(secs(30));
}
