//! What an attempt does with a service: readiness, call, answer, and a panic in each of them.

use std::future::{Pending, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use logmill_jobs::{Failure, Job, JobRequest, JobResult, WaitError, Workers};
use serde::{Deserialize, Serialize};
use tower::Service;

use crate::{Call, call, death, end, mill};

/// Where a [`Bomb`] panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Clone,
    Ready,
    Call,
    DropOfTheClone,
    Poll,
    DropOfTheFuture,
}

/// A service that panics once in each of the places that are armed, and demands the protocol of
/// `tower`: whoever is called was ready.
struct Bomb {
    armed: Arc<Mutex<Vec<At>>>,
    is_ready: bool,
}

fn goes_off(armed: &Mutex<Vec<At>>, at: At) {
    let mut armed = armed.lock().unwrap();
    if let Some(index) = armed.iter().position(|other| *other == at) {
        armed.remove(index);
        drop(armed);
        panic!("armed at {at:?}");
    }
}

impl Clone for Bomb {
    fn clone(&self) -> Self {
        goes_off(&self.armed, At::Clone);
        Self {
            armed: Arc::clone(&self.armed),
            is_ready: false,
        }
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        goes_off(&self.armed, At::DropOfTheClone);
    }
}

impl Service<JobRequest<Call>> for Bomb {
    type Response = u32;
    type Error = Failure;
    type Future = Fuse;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        goes_off(&self.armed, At::Ready);
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: JobRequest<Call>) -> Fuse {
        assert!(
            std::mem::take(&mut self.is_ready),
            "called before it was ready"
        );
        goes_off(&self.armed, At::Call);
        Fuse {
            armed: Arc::clone(&self.armed),
            attempt: request.context.attempt(),
        }
    }
}

struct Fuse {
    armed: Arc<Mutex<Vec<At>>>,
    attempt: u32,
}

impl Future for Fuse {
    type Output = JobResult<u32>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<JobResult<u32>> {
        goes_off(&self.armed, At::Poll);
        Poll::Ready(Ok(self.attempt))
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        goes_off(&self.armed, At::DropOfTheFuture);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_anywhere_in_a_service_is_a_failed_attempt_and_no_worker_is_lost() {
    let (mill, _dir) = mill();
    let armed = Arc::new(Mutex::new(Vec::new()));
    let bomb = Bomb {
        armed: Arc::clone(&armed),
        is_ready: false,
    };
    let workers = Workers::new(()).on_service(bomb);
    let pool = workers.threads(1).start(&mill).unwrap();
    let places: [&[At]; 9] = [
        &[At::Clone],
        &[At::Ready],
        &[At::Call],
        &[At::DropOfTheClone],
        &[At::Poll],
        &[At::DropOfTheFuture],
        // The drop that follows a panic panics as well.
        &[At::Ready, At::DropOfTheClone],
        &[At::Call, At::DropOfTheClone],
        &[At::Poll, At::DropOfTheFuture],
    ];
    for (number, at) in (1..).zip(places) {
        armed.lock().unwrap().extend(at);
        assert_eq!(call(&mill, number).wait_async().await.unwrap(), 2, "{at:?}");
        assert_eq!(*armed.lock().unwrap(), [], "{at:?}");
    }
    // What was thrown is the reason, and that of the drop is not.
    for at in [At::Ready, At::Poll] {
        let twice = [at, at, At::DropOfTheClone, At::DropOfTheFuture];
        armed.lock().unwrap().extend(twice);
        assert_eq!(death(&call(&mill, 0)).await, format!("armed at {at:?}"));
        armed.lock().unwrap().clear();
    }
    let health = pool.health();
    assert!(health.is_healthy());
    assert_eq!(health.threads, 1);
    end(pool).await;
    assert_eq!(mill.kind_stats("call").failed, 9 + 2 * 2);
}

/// A service that is never ready, or answers never.
#[derive(Clone)]
struct Never {
    is_ready: bool,
    begun: Arc<AtomicBool>,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "short", timeout = Duration::from_millis(20), max_retries = 0)]
struct Short;

impl Service<JobRequest<Short>> for Never {
    type Response = ();
    type Error = Failure;
    type Future = Pending<JobResult>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self.is_ready {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    fn call(&mut self, _: JobRequest<Short>) -> Self::Future {
        self.begun.store(true, Ordering::SeqCst);
        pending()
    }
}

#[tokio::test]
async fn the_timeout_of_the_kind_covers_the_wait_for_readiness() {
    for is_ready in [false, true] {
        let (mill, _dir) = mill();
        let begun = Arc::new(AtomicBool::new(false));
        let service = Never {
            is_ready,
            begun: Arc::clone(&begun),
        };
        let workers = Workers::new(()).on_service(service);
        let pool = workers.start(&mill).unwrap();
        let error = mill.enqueue(Short).unwrap().wait_async().await.unwrap_err();
        let is_too_long = |reason: &str| reason.contains("too long");
        assert!(
            matches!(&error, WaitError::Dead(reason) if is_too_long(reason)),
            "{error}"
        );
        assert_eq!(begun.load(Ordering::SeqCst), is_ready);
        end(pool).await;
    }
}

/// A service that has broken down.
#[derive(Clone)]
struct Broken;

impl Service<JobRequest<Call>> for Broken {
    type Response = u32;
    type Error = &'static str;
    type Future = Pending<Result<u32, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Err("no connection"))
    }

    fn call(&mut self, _: JobRequest<Call>) -> Self::Future {
        unreachable!("it is not ready")
    }
}

#[tokio::test]
async fn a_service_that_fails_to_become_ready_is_not_called() {
    let (mill, _dir) = mill();
    let workers = Workers::new(()).on_service(Broken);
    let pool = workers.start(&mill).unwrap();
    assert_eq!(death(&call(&mill, 1)).await, "no connection");
    end(pool).await;
    assert_eq!(mill.kind_stats("call").failed, 2);
}
