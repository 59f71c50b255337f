//! Handlers that are services of `tower`, alone and with layers around them.

mod protocol;

use std::future::{Ready, pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use logmill_jobs::{
    Failure, Job, JobRequest, JobResult, Mill, Pool, Status, WaitError, Workers, discard, retry_in,
    snooze,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tower::load_shed::error::Overloaded;
use tower::retry::Policy;
use tower::{BoxError, Service, ServiceBuilder, service_fn};

const PATIENCE: Duration = Duration::from_secs(60);

/// A job that returns the number of the attempt that completed it.
#[derive(Clone, Serialize, Deserialize, Job)]
#[job(kind = "call", output = u32, max_retries = 1, backoff = logmill_jobs::Backoff::fixed(Duration::ZERO))]
struct Call {
    number: u32,
}

fn mill() -> (Mill, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    (mill, dir)
}

fn call(mill: &Mill, number: u32) -> logmill_jobs::JobHandle<Call> {
    mill.enqueue(Call { number }).unwrap()
}

/// The reason of the death that the job must come to.
async fn death(handle: &logmill_jobs::JobHandle<Call>) -> String {
    match handle.wait_async().await.unwrap_err() {
        WaitError::Dead(reason) => reason,
        error => panic!("{error}"),
    }
}

async fn end(pool: Pool) {
    let ended = tokio::task::spawn_blocking(move || pool.shutdown(PATIENCE));
    assert!(ended.await.unwrap().finished_in_time);
}

async fn until(what: &str, is_true: impl Fn() -> bool) {
    let looks = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looks).await;
    found.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_layer_fails_the_attempt_and_the_job_is_retried() {
    let (mill, _dir) = mill();
    async fn slow_at_first(request: JobRequest<Call>) -> JobResult<u32> {
        if request.context.attempt() == 1 || request.job.number == 2 {
            pending::<()>().await;
        }
        Ok(request.context.attempt())
    }
    let service = ServiceBuilder::new()
        .timeout(Duration::from_millis(20))
        .service_fn(slow_at_first);
    let workers = Workers::new(()).on_service(service);
    let pool = workers.start(&mill).unwrap();
    assert_eq!(call(&mill, 1).wait_async().await.unwrap(), 2);
    assert_eq!(death(&call(&mill, 2)).await, "request timed out");
    end(pool).await;
    let stats = mill.kind_stats("call");
    assert_eq!((stats.done, stats.failed, stats.dead), (1, 3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_concurrency_limit_is_one_for_all_attempts() {
    let (mill, _dir) = mill();
    let (running, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (inside, opens) = (Arc::clone(&running), Arc::clone(&gate));
    let work = service_fn(move |request: JobRequest<Call>| {
        let (inside, opens) = (Arc::clone(&inside), Arc::clone(&opens));
        async move {
            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
            opens.acquire().await.unwrap().forget();
            inside.fetch_sub(1, Ordering::SeqCst);
            JobResult::Ok(request.context.attempt())
        }
    });
    let service = ServiceBuilder::new().concurrency_limit(2).service(work);
    let workers = Workers::new(()).on_service(service);
    let pool = workers.threads(2).tasks(8).start(&mill).unwrap();
    let handles: Vec<_> = (0..20).map(|number| call(&mill, number)).collect();
    // Six attempts wait until their clones are ready.
    until("two run, eight have begun", || {
        running.load(Ordering::SeqCst) == 2 && pool.health().tasks == 8
    })
    .await;
    gate.add_permits(20);
    for handle in &handles {
        assert_eq!(handle.wait_async().await.unwrap(), 1);
    }
    end(pool).await;
}

/// What job 1 waits for in [`gated`], and whether it does.
struct Gate {
    opens: Semaphore,
    is_reached: AtomicBool,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            opens: Semaphore::new(0),
            is_reached: AtomicBool::new(false),
        })
    }
}

/// A service that runs job 1 until the gate opens, and others at once.
fn gated(
    gate: &Arc<Gate>,
) -> impl Service<JobRequest<Call>, Response = u32, Error = Failure, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    let gate = Arc::clone(gate);
    service_fn(move |request: JobRequest<Call>| {
        let gate = Arc::clone(&gate);
        async move {
            if request.job.number == 1 {
                gate.is_reached.store(true, Ordering::SeqCst);
                gate.opens.acquire().await.unwrap().forget();
            }
            JobResult::Ok(request.context.attempt())
        }
    })
}

/// Has job 1 take the only place of the limit.
async fn first_at(gate: &Gate, mill: &Mill) -> logmill_jobs::JobHandle<Call> {
    let first = call(mill, 1);
    until("it runs", || gate.is_reached.load(Ordering::SeqCst)).await;
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_shed_has_failed() {
    let (mill, _dir) = mill();
    let gate = Gate::new();
    let service = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(1)
        .service(gated(&gate));
    let workers = Workers::new(()).on_service(service);
    let pool = workers.threads(1).start(&mill).unwrap();
    let first = first_at(&gate, &mill).await;
    let reason = death(&call(&mill, 2)).await;
    assert!(reason.contains("overloaded"), "{reason}");
    gate.opens.add_permits(1);
    assert_eq!(first.wait_async().await.unwrap(), 1);
    end(pool).await;
    assert_eq!(mill.kind_stats("call").failed, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_layer_can_be_made_a_failure_of_another_kind() {
    let (mill, _dir) = mill();
    let (gate, shed) = (Gate::new(), Arc::new(AtomicU32::new(0)));
    let counts = Arc::clone(&shed);
    let service = ServiceBuilder::new()
        .map_err(move |error: BoxError| match error.is::<Overloaded>() {
            true => {
                counts.fetch_add(1, Ordering::SeqCst);
                snooze(Duration::from_millis(1))
            }
            false => Failure::from(error),
        })
        .load_shed()
        .concurrency_limit(1)
        .service(gated(&gate));
    let workers = Workers::new(()).on_service(service);
    let pool = workers.threads(1).start(&mill).unwrap();
    let first = first_at(&gate, &mill).await;
    let second = call(&mill, 2);
    until("it is shed more often than it may fail", || {
        shed.load(Ordering::SeqCst) > 3
    })
    .await;
    gate.opens.add_permits(1);
    assert_eq!(first.wait_async().await.unwrap(), 1);
    assert_eq!(second.wait_async().await.unwrap(), 1);
    end(pool).await;
    assert_eq!(mill.kind_stats("call").failed, 0);
}

#[tokio::test]
async fn failures_keep_their_meaning_also_through_layers_that_box_them() {
    let (mill, _dir) = mill();
    async fn fails(request: JobRequest<Call>) -> JobResult<u32> {
        match (request.job.number, request.context.attempt()) {
            (1, _) => Err(discard("no such address")),
            (2, 1) => Err(retry_in(Duration::ZERO, "busy")),
            (2, attempt) => Ok(attempt),
            _ => Err("7x".parse::<u32>().unwrap_err().into()),
        }
    }
    let plain = service_fn(fails);
    let layered = ServiceBuilder::new().timeout(PATIENCE).service_fn(fails);
    for is_layered in [false, true] {
        let workers = Workers::new(());
        let workers = match is_layered {
            false => workers.on_service(plain),
            true => workers.on_service(layered.clone()),
        };
        let before = mill.kind_stats("call").failed;
        let pool = workers.start(&mill).unwrap();
        assert_eq!(death(&call(&mill, 1)).await, "no such address");
        assert_eq!(call(&mill, 2).wait_async().await.unwrap(), 2);
        let reason = death(&call(&mill, 3)).await;
        assert_eq!(reason, "invalid digit found in string");
        end(pool).await;
        // One of the first job, which is discarded, one of the second, and two of the third.
        assert_eq!(mill.kind_stats("call").failed - before, 4);
    }
}

/// Retries twice, as part of the attempt.
#[derive(Clone)]
struct Twice(u32);

impl Policy<JobRequest<Call>, u32, Failure> for Twice {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut JobRequest<Call>,
        result: &mut Result<u32, Failure>,
    ) -> Option<Ready<()>> {
        self.0 = self.0.checked_sub(u32::from(result.is_err()))?;
        result.is_err().then(|| ready(()))
    }

    fn clone_request(&mut self, request: &JobRequest<Call>) -> Option<JobRequest<Call>> {
        Some(request.clone())
    }
}

#[tokio::test]
async fn a_retry_layer_repeats_the_call_within_the_attempt() {
    let (mill, _dir) = mill();
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let service =
        ServiceBuilder::new()
            .retry(Twice(2))
            .service_fn(move |request: JobRequest<Call>| {
                match count.fetch_add(1, Ordering::SeqCst) {
                    0 | 1 => ready(JobResult::Err("not yet".into())),
                    _ => ready(Ok(request.context.attempt())),
                }
            });
    let workers = Workers::new(()).on_service(service);
    let pool = workers.start(&mill).unwrap();
    assert_eq!(call(&mill, 1).wait_async().await.unwrap(), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    end(pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_a_shutdown_interrupts_has_not_failed() {
    let (mill, _dir) = mill();
    let begun = Arc::new(AtomicU32::new(0));
    let begins = Arc::clone(&begun);
    let service = service_fn(move |request: JobRequest<Call>| {
        begins.fetch_add(1, Ordering::SeqCst);
        async move {
            while request.context.check().map(|()| true)? {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            JobResult::Ok(0)
        }
    });
    let handle = call(&mill, 1);
    for life in 1..=2 {
        let workers = Workers::new(()).on_service(service.clone());
        let pool = workers.start(&mill).unwrap();
        until("it runs", || begun.load(Ordering::SeqCst) == life).await;
        end(pool).await;
        let waits = Status::Waiting {
            failed: 0,
            due: None,
        };
        assert_eq!(handle.status().unwrap(), waits);
    }
}

#[cfg(feature = "testing")]
#[test]
fn a_service_is_called_for_one_job_without_a_queue() {
    use logmill_jobs::testing::{How, TestMill, attempt};
    let mill = TestMill::open().unwrap();
    let service = ServiceBuilder::new().concurrency_limit(1).service_fn(
        |request: JobRequest<Call>| async move {
            match request.context.attempt() {
                1 => Err(Failure::from("not yet")),
                attempt => Ok(request.job.number + attempt),
            }
        },
    );
    let mut job = attempt(&mill, Call { number: 40 }).unwrap();
    let first = job.run_service(service.clone()).unwrap();
    assert!(matches!(first.how, How::Retried { reason, .. } if reason == "not yet"));
    let second = job.run_service(service).unwrap();
    assert_eq!((second.how, second.output), (How::Done, Some(42)));
}
