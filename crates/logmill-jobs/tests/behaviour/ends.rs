//! However a job ends, those who wait for it learn that, and its key is free.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use logmill_jobs::{
    Backoff, Context, EnqueueError, Job, JobResult, Outcome, Status, WaitError, Workers,
    backend::Cancelled, discard,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, PATIENCE, mill};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "flaky", unique, max_retries = 1000, backoff = Backoff::fixed(Duration::ZERO))]
struct Flaky(u32);

#[test]
fn a_cancel_that_meets_a_failing_attempt_is_told_and_releases_the_key() {
    let (mill, _dir) = mill();
    let pool = Workers::new(())
        .on(|_: Flaky| JobResult::Err("fails".into()))
        .threads(2)
        .start(&mill)
        .unwrap();
    for number in 0..100 {
        let handle = mill.enqueue(Flaky(number)).unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(number) * 7 % 300));
        let cancelled = handle.cancel("enough").unwrap();
        // Without a timeout: at its end, a wait looks once more.
        let (told, ended) = channel();
        let waits = handle.clone();
        std::thread::spawn(move || told.send(waits.wait()));
        let ended = ended.recv_timeout(PATIENCE).expect("the wait ends");
        let error = ended.unwrap_err();
        match cancelled {
            Cancelled::Gone => assert!(matches!(error, WaitError::Dead(_)), "{error}"),
            _ => assert!(
                matches!(&error, WaitError::Cancelled(why) if why == "enough"),
                "{error}"
            ),
        }
        let again = mill.enqueue(Flaky(number)).unwrap();
        assert_eq!(
            again.outcome(),
            Outcome::New,
            "{number}, after {cancelled:?}"
        );
        again.cancel("enough").unwrap();
    }
    let _ = pool.shutdown(PATIENCE);
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "doomed")]
struct Doomed;

#[test]
fn a_wait_for_a_job_that_has_just_died_ends() {
    let (mill, _dir) = mill();
    let (died, deaths) = channel();
    let handler = move |_: Doomed, cx: Context| -> JobResult {
        died.send(cx.id().clone()).unwrap();
        Err(discard("no use"))
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(2)
        .start(&mill)
        .unwrap();
    for pause in (0..300_u64).map(|number| number * 7 % 400) {
        let handle = mill.enqueue(Doomed).unwrap();
        assert_eq!(deaths.recv_timeout(PATIENCE).as_ref(), Ok(handle.id()));
        // It is dead before its letter is written, which takes a flush.
        std::thread::sleep(Duration::from_micros(pause));
        let (told, ends) = channel();
        std::thread::spawn(move || told.send(handle.wait().unwrap_err()));
        let error = ends.recv_timeout(PATIENCE).expect("an end");
        assert!(matches!(error, WaitError::Dead(_)), "{error}");
    }
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn tuples_are_told_apart_by_their_fields() {
    let (mill, _dir) = mill();
    let (one, two) = (
        mill.enqueue(Flaky(1)).unwrap(),
        mill.enqueue(Flaky(2)).unwrap(),
    );
    assert_eq!((one.outcome(), two.outcome()), (Outcome::New, Outcome::New));
    assert_eq!(mill.enqueue(Flaky(1)).unwrap().id(), one.id());
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "huge", output = String, max_retries = 2, backoff = Backoff::fixed(Duration::ZERO))]
struct Huge;

#[test]
fn a_completion_that_cannot_be_stored_is_not_tried_for_ever() {
    let (mill, _dir) = mill();
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let handler = move |_: Huge| -> JobResult<String> {
        count.fetch_add(1, Ordering::SeqCst);
        Ok("x".repeat(16 << 20))
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    let error = mill
        .enqueue(Huge)
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap_err();
    assert!(error.to_string().contains("could not be stored"), "{error}");
    assert_eq!(runs.load(Ordering::SeqCst), 4);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_unique_job_is_refused_where_it_would_not_be_unique() {
    let (mill, _dir) = mill();
    let handler = |job: Double, cx: Context| -> JobResult<u64> {
        let refused = cx.then(Flaky(1));
        assert!(matches!(refused, Err(EnqueueError::Invalid(_))));
        Ok(job.number)
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    let handle = mill.enqueue(Double { number: 1 }).unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 1);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn to_look_for_a_job_creates_no_queue() {
    let (mill, _dir) = mill();
    let id = "elsewhere/7".parse().unwrap();
    assert_eq!(mill.status(&id).unwrap(), Status::Unknown);
    assert_eq!(mill.cancel(&id, "").unwrap(), Cancelled::Gone);
    assert!(matches!(
        mill.handle::<Double>(id).wait(),
        Err(WaitError::NotKept)
    ));
    assert_eq!(mill.queue_names().unwrap(), [""; 0]);
}
