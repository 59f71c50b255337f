//! How much is kept of jobs that have ended, and of how far those that run are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logmill_jobs::{
    Backoff, Context, Job, JobHandle, JobResult, Mill, MillOptions, Pool, Status, Workers, discard,
    secs,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::common::{Double, PATIENCE, mill, until, wait_for_end};

/// A job whose result is not kept for long.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "brief", output = u64, keep_results = Duration::from_millis(1))]
struct Brief;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "pages", max_retries = 5, backoff = Backoff::fixed(Duration::ZERO))]
struct Pages;

fn open(dir: &TempDir, options: MillOptions) -> (Mill, Pool) {
    let builder = Mill::builder(dir.path().join("jobs"));
    let mill = builder.options(options).open().unwrap();
    let pool = Workers::new(())
        .on(|job: Double| JobResult::Ok(2 * job.number))
        .on(|_: Brief| JobResult::Ok(7))
        .threads(2)
        .start(&mill)
        .unwrap();
    (mill, pool)
}

fn run(mill: &Mill, numbers: std::ops::Range<u64>) -> Vec<JobHandle<Double>> {
    let handles = numbers.map(|number| {
        let handle = mill.enqueue(Double { number }).unwrap();
        assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 2 * number);
        // Not as the one that has enqueued it.
        mill.handle(handle.id().clone())
    });
    handles.collect()
}

fn kept(handles: &[JobHandle<Double>]) -> usize {
    let is_kept = |handle: &&JobHandle<Double>| handle.try_result().is_ok();
    handles.iter().filter(is_kept).count()
}

/// Finished jobs that fill the memory.
#[test]
fn finished_jobs_are_kept_up_to_a_number_the_newest_of_them_also_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for life in 0..3 {
        // The first process keeps more than those after it.
        let most = if life == 0 { 300 } else { 4 };
        let (mill, pool) = open(&dir, MillOptions::new().max_results(most));
        let own = run(&mill, 0..10);
        ids.extend(own.iter().map(|handle| handle.id().clone()));
        let all = |ids: &[logmill_jobs::JobId]| {
            let handles = ids.iter().map(|id| mill.handle(id.clone()));
            kept(&handles.collect::<Vec<_>>())
        };
        if life == 0 {
            assert_eq!(all(&ids), 10);
        } else {
            // Those of earlier processes are found in the background.
            until("the limit is kept", || all(&ids) <= most);
            assert_eq!(kept(&own[6..]), 4);
        }
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        mill.close().unwrap();
    }
}

#[test]
fn finished_jobs_are_kept_up_to_so_many_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (mill, pool) = open(&dir, MillOptions::new().max_result_bytes(100));
    let handles = run(&mill, 0..20);
    let kept = kept(&handles);
    assert!((2..12).contains(&kept), "{kept}");
    let newest = handles.last().unwrap();
    assert_eq!(newest.status().unwrap(), Status::Done);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_result_that_somebody_waits_for_is_not_removed_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (mill, pool) = open(&dir, MillOptions::new().max_results(1));
    let queue = mill.queue("default").unwrap();
    queue.pause().unwrap();
    let handles: Vec<_> = (0..30)
        .map(|number| mill.enqueue(Double { number }).unwrap())
        .collect();
    let waiting = handles.iter().map(|handle| Box::pin(handle.wait_async()));
    let mut waiting: Vec<_> = waiting.collect();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    // From its first poll on, it waits.
    for one in &mut waiting {
        assert!(one.as_mut().poll(&mut cx).is_pending());
    }
    queue.resume().unwrap();
    until("all are done", || {
        let stats = queue.stats().unwrap();
        stats.left() == 0
    });
    // They are looked at only now.
    for (number, one) in waiting.iter_mut().enumerate() {
        let mut doubled = None;
        while doubled.is_none() {
            if let std::task::Poll::Ready(result) = one.as_mut().poll(&mut cx) {
                doubled = Some(result.unwrap());
            }
        }
        assert_eq!(doubled, Some(2 * number as u64));
    }
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_kind_says_for_how_long_its_results_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mill, pool) = open(&dir, MillOptions::new());
    let brief = mill.enqueue(Brief).unwrap();
    let other = run(&mill, 0..1);
    until("it is gone", || brief.status().unwrap() == Status::Unknown);
    assert_eq!(kept(&other), 1);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn progress_is_seen_at_once_and_gone_at_the_end() {
    let (mill, _dir) = mill();
    let goes_on = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&goes_on);
    let pages = move |_: Pages, cx: Context| {
        cx.progress(1, 8);
        cx.progress_with(2, 8, "page 2");
        until("told to go on", || seen.load(Ordering::SeqCst));
        JobResult::Ok(())
    };
    let pool = Workers::new(()).on(pages).start(&mill).unwrap();
    let handle = mill.enqueue(Pages).unwrap();
    until("it says something", || {
        handle
            .progress()
            .unwrap()
            .is_some_and(|progress| progress.done == 2)
    });
    let progress = handle.progress().unwrap().unwrap();
    assert_eq!(
        (progress.total, progress.note.as_deref()),
        (8, Some("page 2"))
    );
    assert_eq!(progress.fraction(), Some(0.25));
    goes_on.store(true, Ordering::SeqCst);
    wait_for_end(&handle);
    assert_eq!(handle.progress().unwrap(), None);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

/// Progress is stored once a second, so this takes as long.
#[test]
fn progress_is_there_after_the_attempt_and_after_a_restart_and_gone_however_the_job_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs");
    let pages = |_: Pages, cx: Context| {
        let start = std::time::Instant::now();
        for page in 1.. {
            cx.progress(page, 0);
            if start.elapsed() > secs(1) {
                cx.progress(1_000_000_000, 0);
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        match cx.attempt() {
            1 => Err(logmill_jobs::retry_in(secs(3600), "later")),
            _ => Err(discard("enough")),
        }
    };
    let id = {
        let mill = Mill::open(&path).unwrap();
        let pool = Workers::new(()).on(pages).start(&mill).unwrap();
        let handle = mill.enqueue(Pages).unwrap();
        until("it has failed", || {
            matches!(handle.status().unwrap(), Status::Waiting { failed: 1, .. })
        });
        assert!(handle.progress().unwrap().unwrap().done > 0);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
        mill.close().unwrap();
        handle.id().clone()
    };
    let mill = Mill::open(&path).unwrap();
    let handle = mill.handle::<Pages>(id);
    assert!(handle.progress().unwrap().unwrap().done > 0);
    handle.cancel("enough").unwrap();
    assert!(matches!(handle.status().unwrap(), Status::Cancelled { .. }));
    assert_eq!(handle.progress().unwrap(), None);
}

/// Progress is stored once a second, so this takes as long.
#[test]
fn progress_of_an_earlier_attempt_is_gone_at_the_end_too() {
    let (mill, _dir) = mill();
    let may_end = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&may_end);
    let pages = move |_: Pages, cx: Context| {
        if cx.attempt() > 1 {
            until("it may end", || ends.load(Ordering::SeqCst));
            return JobResult::Ok(());
        }
        cx.progress(1, 2);
        std::thread::sleep(Duration::from_millis(1050));
        cx.progress(2, 2);
        Err(logmill_jobs::retry_in(Duration::from_millis(300), "later"))
    };
    let pool = Workers::new(()).on(pages).start(&mill).unwrap();
    let handle = mill.enqueue(Pages).unwrap();
    until("it has failed", || {
        matches!(
            handle.status().unwrap(),
            Status::Waiting { failed: 1, .. } | Status::Running { failed: 1 }
        )
    });
    assert_eq!(handle.progress().unwrap().unwrap().done, 2);
    may_end.store(true, Ordering::SeqCst);
    handle.wait_timeout(PATIENCE).unwrap();
    assert_eq!(handle.progress().unwrap(), None);
    let _ = pool.shutdown(PATIENCE);
}
