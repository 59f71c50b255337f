//! Async handlers: tasks of a tokio runtime.
#![cfg(feature = "tokio")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use logmill_jobs::{
    Context, Job, JobResult, Mill, MillOptions, Order, StartError, State, Status, WaitError,
    Workers, rate_limited, retry_in, secs,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "call", output = u64, max_retries = 1, backoff = logmill_jobs::Backoff::fixed(Duration::ZERO))]
struct Call {
    number: u64,
}

fn mill() -> (Mill, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    (mill, dir)
}

/// How many run, and how many did at most.
#[derive(Clone, Default)]
struct Gauge(Arc<(AtomicUsize, AtomicUsize)>);

async fn call(job: Call, State(gauge): State<Gauge>, cx: Context) -> JobResult<u64> {
    let running = gauge.0.0.fetch_add(1, Ordering::SeqCst) + 1;
    gauge.0.1.fetch_max(running, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(5)).await;
    gauge.0.0.fetch_sub(1, Ordering::SeqCst);
    match (job.number, cx.attempt()) {
        (3, 1) => Err(retry_in(Duration::ZERO, "again")),
        (number, _) => Ok(number + 1),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn async_handlers_run_side_by_side_up_to_their_limit() {
    let (mill, _dir) = mill();
    let gauge = Gauge::default();
    let workers = Workers::new(gauge.clone())
        .on_async(call)
        .threads(4)
        .tasks(8);
    let pool = workers.start(&mill).unwrap();
    let handles = mill
        .enqueue_all((0..100).map(|number| Call { number }))
        .unwrap();
    for (number, handle) in (0..).zip(&handles) {
        assert_eq!(handle.wait_async().await.unwrap(), number + 1);
    }
    let most = gauge.0.1.load(Ordering::SeqCst);
    assert!((2..=8).contains(&most), "{most}");
    let ended = tokio::task::spawn_blocking(move || pool.shutdown(PATIENCE));
    assert!(ended.await.unwrap().finished_in_time);
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "slow", timeout = Duration::from_millis(20), max_retries = 1, backoff = logmill_jobs::Backoff::fixed(Duration::ZERO))]
struct Slow;

#[tokio::test]
async fn an_attempt_whose_time_is_up_is_dropped_and_has_failed() {
    let (mill, _dir) = mill();
    let dropped = Arc::new(AtomicU32::new(0));
    struct Counts(Arc<AtomicU32>);
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let counted = Arc::clone(&dropped);
    let handler = move |_: Slow| {
        let counts = Counts(Arc::clone(&counted));
        async move {
            std::future::pending::<()>().await;
            drop(counts);
            JobResult::Ok(())
        }
    };
    let pool = Workers::new(()).on_async(handler).start(&mill).unwrap();
    let handle = mill.enqueue(Slow).unwrap();
    let error = handle.wait_async().await.unwrap_err();
    assert!(
        matches!(&error, WaitError::Dead(reason) if reason.contains("too long")),
        "{error}"
    );
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
    drop(pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failed_attempt_wherever_it_happens() {
    let (mill, _dir) = mill();
    let handler = |job: Call, cx: Context| {
        assert!(job.number != 1 || cx.attempt() > 1, "before the future");
        async move {
            tokio::task::yield_now().await;
            assert!(job.number != 2 || cx.attempt() > 1, "within the future");
            JobResult::Ok(job.number)
        }
    };
    let pool = Workers::new(()).on_async(handler).start(&mill).unwrap();
    for number in [1, 2, 3] {
        let handle = mill.enqueue(Call { number }).unwrap();
        assert_eq!(handle.wait_async().await.unwrap(), number);
    }
    drop(pool);
}

#[test]
fn async_handlers_need_a_runtime_and_their_jobs_outlive_it() {
    let (mill, _dir) = mill();
    let workers = Workers::new(Gauge::default()).on_async(call);
    assert!(matches!(workers.start(&mill), Err(StartError::NoRuntime)));

    let handle = mill.enqueue(Call { number: 9 }).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let begun = Arc::new(AtomicU32::new(0));
    let begins = Arc::clone(&begun);
    let stuck = move |_: Call| {
        begins.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<JobResult<u64>>()
    };
    let pool = runtime.block_on(async { Workers::new(()).on_async(stuck).start(&mill).unwrap() });
    while begun.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(handle.status().unwrap(), Status::Running { failed: 0 });
    let report = pool.shutdown(Duration::from_millis(10));
    assert_eq!(report.still_running, [handle.id().clone()]);
    // The runtime drops the task, and the job comes back.
    runtime.shutdown_timeout(secs(10));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let workers = Workers::new(Gauge::default()).on_async(call);
    assert_eq!(
        handle.status().unwrap(),
        Status::Waiting {
            failed: 0,
            due: None
        },
        "an attempt that was interrupted has not failed"
    );
    let pool = runtime.block_on(async { workers.start(&mill).unwrap() });
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 10);
    let _ = pool.shutdown(PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_or_fewer_async_handlers_run_while_the_pool_goes_on() {
    let (mill, _dir) = mill();
    let gauge = Gauge::default();
    let inside = gauge.clone();
    let opens = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&opens);
    let handler = move |job: Call| {
        let (inside, gate) = (inside.clone(), Arc::clone(&gate));
        async move {
            inside.0.0.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            inside.0.0.fetch_sub(1, Ordering::SeqCst);
            JobResult::Ok(job.number)
        }
    };
    let workers = Workers::new(()).on_async(handler).threads(2).tasks(1);
    let pool = workers.start(&mill).unwrap();
    let handles = mill
        .enqueue_all((0..8).map(|number| Call { number }))
        .unwrap();
    let run = async |count| {
        while gauge.0.0.load(Ordering::SeqCst) != count || pool.health().tasks != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    run(1).await;
    pool.set_tasks(4).unwrap();
    run(4).await;
    pool.set_tasks(2).unwrap();
    assert_eq!(pool.health().max_tasks, 2);
    // Those that are too many end, and no others begin in their places.
    opens.add_permits(2);
    run(2).await;
    opens.add_permits(6);
    for (number, handle) in (0..).zip(&handles) {
        assert_eq!(handle.wait_async().await.unwrap(), number);
    }
    drop(pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_async_handler_that_a_shutdown_interrupts_has_not_failed() {
    let (mill, _dir) = mill();
    let begun = Arc::new(AtomicU32::new(0));
    let begins = Arc::clone(&begun);
    let handler = move |_: Call, cx: Context| {
        begins.fetch_add(1, Ordering::SeqCst);
        async move {
            while cx.check().map(|()| true)? {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            JobResult::Ok(1)
        }
    };
    let handle = mill.enqueue(Call { number: 1 }).unwrap();
    for life in 1..=3 {
        let workers = Workers::new(()).on_async::<Call, _, _>(handler.clone());
        let pool = workers.start(&mill).unwrap();
        while begun.load(Ordering::SeqCst) < life {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ended = tokio::task::spawn_blocking(move || pool.shutdown(PATIENCE));
        assert!(ended.await.unwrap().finished_in_time);
        assert_eq!(
            handle.status().unwrap(),
            Status::Waiting {
                failed: 0,
                due: None
            }
        );
    }
    assert_eq!(begun.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn middleware_is_told_how_an_async_attempt_ends_also_one_whose_time_is_up() {
    let (mill, _dir) = mill();
    let (tell, told) = std::sync::mpsc::channel();
    let watch = move |attempt: &logmill_jobs::Attempt<'_>| {
        let (kind, tell) = (attempt.kind().to_owned(), tell.clone());
        Ok(logmill_jobs::After::call(move |result| {
            let how = result
                .as_ref()
                .err()
                .map(|failure| failure.reason().to_owned());
            tell.send((kind, how)).unwrap();
            result
        }))
    };
    async fn slow(_: Slow) -> JobResult {
        tokio::time::sleep(PATIENCE).await;
        Ok(())
    }
    let workers = Workers::new(Gauge::default()).on_async(call).on_async(slow);
    let pool = workers.with(watch).start(&mill).unwrap();
    let events = mill.events(100);
    assert_eq!(
        mill.enqueue(Call { number: 1 })
            .unwrap()
            .wait_async()
            .await
            .unwrap(),
        2
    );
    assert_eq!(told.recv().unwrap(), ("call".to_owned(), None));
    let names = [
        events.recv_async().await.unwrap().what,
        events.recv_async().await.unwrap().what,
        events.recv_async().await.unwrap().what,
    ];
    let is_done = |what: &logmill_jobs::EventKind| matches!(what, logmill_jobs::EventKind::Done { ran: Some(ran) } if *ran >= Duration::from_millis(5));
    assert!(names.iter().any(is_done), "{names:?}");

    mill.enqueue(Slow).unwrap().wait_async().await.unwrap_err();
    let dropped = "the attempt was dropped before it had ended".to_owned();
    for _ in 0..2 {
        let (kind, how) = told.recv().unwrap();
        assert_eq!((kind.as_str(), how.as_ref()), ("slow", Some(&dropped)));
    }
    let stats = mill.kind_stats("slow");
    assert_eq!((stats.failed, stats.dead, stats.done), (2, 1, 0));
    assert_eq!(stats.ran.count, 2);
    let ended = tokio::task::spawn_blocking(move || pool.shutdown(PATIENCE));
    assert!(ended.await.unwrap().finished_in_time);
}

#[tokio::test(flavor = "multi_thread")]
async fn async_handlers_keep_the_order_of_a_key_through_failures_and_429s() {
    let dir = tempfile::tempdir().unwrap();
    let options = MillOptions::new().order(Order::on_kind("call"));
    let builder = Mill::builder(dir.path().join("jobs"));
    let mill = builder.options(options).open().unwrap();
    let (gauge, calls) = (Gauge::default(), Arc::new(AtomicU32::new(0)));
    let handler = move |job: Call, State(gauge): State<Gauge>| {
        let calls = Arc::clone(&calls);
        async move {
            let running = gauge.0.0.fetch_add(1, Ordering::SeqCst) + 1;
            gauge.0.1.fetch_max(running, Ordering::SeqCst);
            tokio::task::yield_now().await;
            gauge.0.0.fetch_sub(1, Ordering::SeqCst);
            let call = calls.fetch_add(1, Ordering::SeqCst);
            match call % 7 {
                2 => JobResult::Err(rate_limited(Duration::from_millis(1), "429")),
                _ => Ok(job.number * 1000 + u64::from(call)),
            }
        }
    };
    let workers = Workers::new(gauge.clone()).on_async(handler).threads(2);
    let pool = workers.start(&mill).unwrap();
    let mut handles = Vec::new();
    for number in 0..50 {
        let job = mill.job(Call { number }).key("one");
        handles.push(job.enqueue().unwrap());
    }
    let mut last = None;
    for handle in &handles {
        let call = handle.wait_async().await.unwrap() % 1000;
        assert!(last < Some(call), "{last:?} {call}");
        last = Some(call);
    }
    assert_eq!(gauge.0.1.load(Ordering::SeqCst), 1);
    let ended = tokio::task::spawn_blocking(move || pool.shutdown(PATIENCE));
    assert!(ended.await.unwrap().finished_in_time);
}
