//! Results, what follows a completion, steps, cancelling.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use logmill_jobs::{
    Context, Job, JobResult, Mill, MillOptions, Status, WaitError, Workers, backend::Cancelled,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, Note, PATIENCE, mill, note, until};

fn double(job: Double) -> JobResult<u64> {
    Ok(job.number * 2)
}

#[test]
fn a_result_is_typed_and_kept_over_a_restart() {
    let (mill, dir) = mill();
    let pool = Workers::new(()).on(double).start(&mill).unwrap();
    let handle = mill.enqueue(Double { number: 21 }).unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 42);
    assert_eq!(handle.status().unwrap(), Status::Done);
    let id = handle.id().to_string();
    drop(handle);
    let _ = pool.shutdown(PATIENCE);
    mill.close().unwrap();

    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let handle = mill.handle::<Double>(id.parse().unwrap());
    assert_eq!(handle.try_result().unwrap(), Some(42));
}

#[test]
fn unknown_waiting_running_done_and_not_kept_are_told_apart() {
    let (enter, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (entered, left) = (Arc::clone(&enter), Arc::clone(&leave));
    let handler = move |job: Double| -> JobResult<u64> {
        entered.wait();
        left.wait();
        Ok(job.number)
    };
    let dir = tempfile::tempdir().unwrap();
    let keep = Duration::from_millis(300);
    let options = MillOptions::new().keep_results(keep);
    let mill = Mill::builder(dir.path().join("jobs"))
        .options(options)
        .open()
        .unwrap();
    let handle = mill.enqueue(Double { number: 1 }).unwrap();
    assert_eq!(
        handle.status().unwrap(),
        Status::Waiting {
            failed: 0,
            due: None
        }
    );
    assert_eq!(handle.try_result().unwrap(), None);
    let soon = handle.wait_timeout(Duration::from_millis(1));
    assert!(matches!(soon, Err(WaitError::TimedOut)));

    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    enter.wait();
    assert_eq!(handle.status().unwrap(), Status::Running { failed: 0 });
    leave.wait();
    until("it is done", || {
        handle.status().unwrap() != Status::Running { failed: 0 }
    });
    until("its result expires", || {
        handle.status().unwrap() == Status::Unknown
    });
    assert!(matches!(handle.wait(), Err(WaitError::NotKept)));
    let never = mill.handle::<Double>("default/999999".parse().unwrap());
    assert_eq!(never.status().unwrap(), Status::Unknown);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn many_wait_for_many_jobs_and_each_gets_its_own_result() {
    let (mill, _dir) = mill();
    let pool = Workers::new(()).on(double).start(&mill).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mill = mill.clone();
            scope.spawn(move || {
                for round in 0..500 {
                    let number = thread * 1000 + round;
                    let handle = mill.enqueue(Double { number }).unwrap();
                    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), number * 2);
                }
            });
        }
    });
    let all = (0..1000).map(|number| Double { number });
    let handles = mill.enqueue_all(all).unwrap();
    for (number, handle) in (0..).zip(handles) {
        assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), number * 2);
    }
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn what_follows_is_there_once_the_job_is_done_and_not_before() {
    let attempts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&attempts);
    let first = move |job: Note, cx: Context| -> JobResult {
        cx.then(Double { number: 4 })?;
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Err(format!("{} fails once", job.text))?,
            _ => Ok(()),
        }
    };
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    let second = move |_: Double| -> JobResult<u64> {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(0)
    };
    let (mill, _dir) = mill();
    let pool = Workers::new(()).on(first).on(second).start(&mill).unwrap();
    mill.enqueue(note("x"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    until("what follows is done", || ran.load(Ordering::SeqCst) > 0);
    let _ = pool.shutdown(PATIENCE);
    assert_eq!(
        (attempts.load(Ordering::SeqCst), ran.load(Ordering::SeqCst)),
        (2, 1)
    );
}

#[test]
fn a_step_that_is_done_is_not_run_again_by_the_next_attempt() {
    let (charged, shipped) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (charges, ships) = (Arc::clone(&charged), Arc::clone(&shipped));
    let handler = move |_: Note, cx: Context| -> JobResult {
        let receipt: u32 = cx.step("charge", || Ok(charges.fetch_add(1, Ordering::SeqCst) + 70))?;
        assert_eq!(receipt, 70);
        cx.step("ship", || match ships.fetch_add(1, Ordering::SeqCst) {
            0 => Err("no lorry")?,
            _ => Ok(()),
        })
    };
    let twice = |_: Double, cx: Context| -> JobResult<u64> {
        cx.step("a", || Ok(()))?;
        cx.step("a", || Ok(()))?;
        Ok(0)
    };
    let (mill, _dir) = mill();
    let pool = Workers::new(()).on(handler).on(twice).start(&mill).unwrap();
    mill.enqueue(note("x"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    assert_eq!(charged.load(Ordering::SeqCst), 1);
    assert_eq!(shipped.load(Ordering::SeqCst), 2);
    let error = mill
        .enqueue(Double { number: 0 })
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap_err();
    assert!(
        error.to_string().contains("two steps named \"a\""),
        "{error}"
    );
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_cancelled_job_does_not_come_back_whether_it_waited_or_ran() {
    let (mill, _dir) = mill();
    let waiting = mill.enqueue(note("waiting")).unwrap();
    assert_eq!(waiting.cancel("too late").unwrap(), Cancelled::Waiting);
    let reason = "too late".to_owned();
    assert_eq!(waiting.status().unwrap(), Status::Cancelled { reason });
    assert_eq!(waiting.cancel("again").unwrap(), Cancelled::Gone);

    let begun = Arc::new(AtomicBool::new(false));
    let begins = Arc::clone(&begun);
    let handler = move |job: Note, cx: Context| -> JobResult {
        assert_eq!(job.text, "running");
        begins.store(true, Ordering::SeqCst);
        until("it is told", || cx.is_stopping());
        assert!(cx.is_cancelled());
        Err("interrupted")?
    };
    let running = mill.enqueue(note("running")).unwrap();
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    until("it runs", || begun.load(Ordering::SeqCst));
    assert_eq!(
        running.cancel("changed my mind").unwrap(),
        Cancelled::Running
    );
    let error = running.wait_timeout(PATIENCE).unwrap_err();
    assert!(matches!(error, WaitError::Cancelled(_)), "{error}");
    let _ = pool.shutdown(PATIENCE);
}

/// Its arguments have another format than its neighbours'.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "empty", output = Vec<u8>)]
struct Empty;

#[test]
fn a_shutdown_says_what_still_runs() {
    let (mill, _dir) = mill();
    let leave = Arc::new(Barrier::new(2));
    let left = Arc::clone(&leave);
    let begun = Arc::new(AtomicBool::new(false));
    let begins = Arc::clone(&begun);
    let handler = move |_: Empty, cx: Context| -> JobResult<Vec<u8>> {
        begins.store(true, Ordering::SeqCst);
        until("it is told to stop", || cx.is_stopping());
        left.wait();
        Ok(vec![7])
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    let handle = mill.enqueue(Empty).unwrap();
    until("it runs", || begun.load(Ordering::SeqCst));
    let report = pool.shutdown(Duration::from_millis(20));
    assert!(!report.finished_in_time);
    assert_eq!(report.still_running, [handle.id().clone()]);
    leave.wait();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), [7]);
}

#[test]
fn nothing_follows_from_an_attempt_that_has_ended() {
    let (mill, _dir) = mill();
    let kept: Arc<std::sync::Mutex<Option<Context>>> = Arc::default();
    let keeps = Arc::clone(&kept);
    let handler = move |_: Note, cx: Context| -> JobResult {
        *keeps.lock().unwrap() = Some(cx);
        Ok(())
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    let handle = mill.enqueue(note("x")).unwrap();
    handle.wait_timeout(PATIENCE).unwrap();
    let cx = kept.lock().unwrap().take().unwrap();
    let refused = cx.then(Double { number: 1 }).unwrap_err().to_string();
    assert!(refused.contains("the attempt has ended"), "{refused}");
    drop(cx);
    let _ = pool.shutdown(PATIENCE);
}
