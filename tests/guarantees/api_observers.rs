//! Tests of observers: they are told of each thing that happens to a job, once.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use logmill::{
    EnqueueOptions, Failure, Job, JobEvent, ObservedJob, Observer, Queue, RetryPolicy, job_events,
};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);

/// What was told, in words.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn note(&self, what: &str, job: &ObservedJob, more: &str) {
        let name = job.name().unwrap_or("-");
        let tenant = job.headers().get("tenant").map_or(0, <[u8]>::len);
        let attempts = job.attempts();
        assert!(job.enqueued_at() <= SystemTime::now() && job.crashes() == 0);
        let told = format!("{what} {name} {tenant} {attempts} {more}");
        self.0.lock().unwrap().push(told.trim_end().to_owned());
    }

    fn take(&self) -> Vec<String> {
        let mut told = std::mem::take(&mut *self.0.lock().unwrap());
        told.sort();
        told
    }
}

impl Observer for Told {
    fn completed(&self, job: &ObservedJob) {
        self.note("completed", job, "");
    }

    fn failed(&self, job: &ObservedJob, reason: &str) {
        self.note("failed", job, reason);
    }

    fn dead(&self, job: &ObservedJob, reason: &str) {
        self.note("dead", job, reason);
    }

    fn expired(&self, job: &ObservedJob) {
        self.note("expired", job, "");
    }

    fn snoozed(&self, job: &ObservedJob, delay: Duration) {
        self.note("snoozed", job, &format!("{delay:?}"));
    }
}

#[test]
fn an_observer_is_told_of_each_thing_that_happens_to_a_job() {
    for with_leases in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let told = Told::default();
        let retry = RetryPolicy::fixed(Duration::ZERO).max_attempts(2);
        let mut builder = builder(dir.path()).retry(retry).observer(told.clone());
        if with_leases {
            builder = builder.lease_timeout(HOUR);
        }
        let queue = open(builder);
        let headers: [(&str, &[u8]); 1] = [("tenant", b"acme")];
        let named = EnqueueOptions::new().name("n");
        queue.enqueue(b"ok").unwrap();
        queue.enqueue_with(b"ok", named.headers(&headers)).unwrap();
        queue.enqueue_with(b"once", named).unwrap();
        queue.enqueue_with(b"never", named).unwrap();
        queue.enqueue_with(b"later", named).unwrap();
        let past = SystemTime::now() - HOUR;
        queue.enqueue_with(b"late", named.expires_at(past)).unwrap();
        let workers = queue.workers(1).run(|job: &Job<'_>| match job.payload() {
            b"ok" => Ok(()),
            b"once" if job.attempts() == 2 => Ok(()),
            b"later" => Err(Failure::snooze(HOUR)),
            _ => Err(Failure::retry("no")),
        });
        let workers = workers.unwrap();
        eventually("all has happened", || told.0.lock().unwrap().len() == 8);
        assert!(workers.shutdown(PATIENCE).finished_in_time);
        assert_eq!(
            told.take(),
            [
                "completed - 0 1",
                "completed n 0 2",
                "completed n 4 1",
                "dead n 0 2 no",
                "expired n 0 0",
                "failed n 0 1 no",
                "failed n 0 1 no",
                "snoozed n 0 3600s",
            ]
            .map(|line| line.replace("snoozed n 0 3600s", "snoozed n 0 1 3600s"))
        );
    }
}

#[test]
fn an_observer_is_told_of_a_lease_that_times_out_and_of_one_completion_after_a_late_ack() {
    let dir = tempfile::tempdir().unwrap();
    let told = Told::default();
    let lease = Duration::from_millis(1);
    let queue = open(
        builder(dir.path())
            .lease_timeout(lease)
            .observer(told.clone()),
    );
    queue.enqueue(b"slow").unwrap();
    let consumer = queue.consumer();
    let late = consumer.next_timeout(PATIENCE).unwrap();
    let again = consumer.next_timeout(PATIENCE).unwrap();
    late.ack();
    again.ack();
    eventually("the timeout was told", || told.0.lock().unwrap().len() >= 2);
    let told = told.take();
    let completed = told.iter().filter(|line| line.starts_with("completed"));
    assert_eq!(completed.count(), 1, "{told:?}");
    assert!(
        told.iter()
            .any(|line| line == "failed - 0 1 the lease timed out")
    );
}

/// Uses the queue that it observes, and panics.
struct Meddler(Mutex<Option<Queue>>);

impl Observer for Meddler {
    fn completed(&self, _: &ObservedJob) {
        let queue = self.0.lock().unwrap().clone();
        if let Some(queue) = queue
            && queue.stats().acked < 10
        {
            queue.enqueue(b"another").unwrap();
            queue.consumer().try_next().unwrap().ack();
        }
        panic!("an observer panics");
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        panic!("an observer panics when it is dropped");
    }
}

#[test]
fn an_observer_may_use_the_queue_and_panic() {
    let dir = tempfile::tempdir().unwrap();
    let meddler = Arc::new(Meddler(Mutex::default()));
    struct Shared(Arc<Meddler>);
    impl Observer for Shared {
        fn completed(&self, job: &ObservedJob) {
            self.0.completed(job);
        }
    }
    let queue = open(builder(dir.path()).observer(Shared(Arc::clone(&meddler))));
    *meddler.0.lock().unwrap() = Some(queue.clone());
    queue.enqueue(b"first").unwrap();
    queue.consumer().try_next().unwrap().ack();
    assert_eq!(queue.stats().acked, 10);
    *meddler.0.lock().unwrap() = None;
    drop(meddler);
    queue.close().unwrap();
    open(builder(dir.path()));
}

#[test]
fn events_are_kept_for_another_thread_as_long_as_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (observer, events) = job_events(3);
    let queue = open(builder(dir.path()).observer(observer));
    assert!(events.try_next().is_none());
    queue
        .enqueue_batch(&[b"1", b"2", b"3", b"4", b"5"])
        .unwrap();
    let consumer = queue.consumer();
    let ids: Vec<_> = consumer
        .next_batch(5, PATIENCE)
        .into_iter()
        .map(|job| {
            let id = job.id();
            job.ack();
            id
        })
        .collect();
    assert_eq!(events.missed(), 2);
    for id in &ids[..3] {
        match events.next_timeout(PATIENCE) {
            Some(JobEvent::Completed(job)) => assert_eq!(job.id(), *id),
            other => panic!("{other:?}"),
        }
    }
    assert!(events.next_timeout(Duration::from_millis(5)).is_none());
    drop((queue, consumer));
    assert!(events.next().is_none());
}
