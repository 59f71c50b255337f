//! Observers: they are told of what happens to owned jobs, as of what happens to others.

use std::time::Duration;

use logmill::{EnqueueOptions, JobEvent, JobEvents, Queue, RetryPolicy, job_events};
use tempfile::TempDir;

use super::{LONG, queue_with};

const HOUR: Duration = Duration::from_secs(3600);

fn observed(lease_timeout: Option<Duration>) -> (Queue, JobEvents, TempDir) {
    let (observer, events) = job_events(100);
    let (queue, dir) = queue_with(|builder| {
        let policy = RetryPolicy::fixed(HOUR).max_attempts(2);
        let builder = builder.retry(policy).observer(observer);
        match lease_timeout {
            Some(timeout) => builder.lease_timeout(timeout),
            None => builder,
        }
    });
    (queue, events, dir)
}

/// An event in words.
fn next(events: &JobEvents) -> String {
    let event = events.next_timeout(LONG).expect("an event");
    let (what, job, more) = match event {
        JobEvent::Completed(job) => ("completed", job, String::new()),
        JobEvent::Failed(job, reason) => ("failed", job, reason),
        JobEvent::Dead(job, reason) => ("dead", job, reason),
        JobEvent::Snoozed(job, delay) => ("snoozed", job, format!("{delay:?}")),
        other => panic!("{other:?}"),
    };
    let name = job.name().unwrap_or("-");
    let told = format!("{what} {name} {} {more}", job.attempts());
    told.trim_end().to_owned()
}

#[test]
fn an_observer_is_told_what_a_task_does_with_its_jobs() {
    for lease_timeout in [None, Some(HOUR)] {
        let (queue, events, _dir) = observed(lease_timeout);
        let mut consumer = queue.async_consumer();
        let mut take = || {
            let options = EnqueueOptions::new().name("n");
            queue.enqueue_with(b"job", options).expect("enqueued");
            let job = futures_lite::future::block_on(consumer.next());
            job.expect("a job")
        };
        take().ack();
        assert_eq!(next(&events), "completed n 1");
        take().retry("why");
        assert_eq!(next(&events), "failed n 1 why");
        take().retry_after(HOUR, "later");
        assert_eq!(next(&events), "failed n 1 later");
        take().fail(logmill::Failure::snooze(HOUR));
        assert_eq!(next(&events), "snoozed n 1 3600s");
        take().snooze(HOUR);
        assert_eq!(next(&events), "snoozed n 1 3600s");
        take().dead_letter("no use");
        assert_eq!(next(&events), "dead n 1 no use");
        drop(take());
        assert_eq!(next(&events), "failed n 1 the job was dropped");
        assert!(events.try_next().is_none());
    }
}

#[test]
fn an_observer_is_told_once_of_an_owned_job_that_is_acked_late() {
    let (queue, events, _dir) = observed(Some(Duration::from_millis(20)));
    queue.enqueue(b"job").expect("enqueued");
    let job = queue.consumer().try_next().expect("a job").into_owned();
    assert_eq!(next(&events), "failed - 1 the lease timed out");
    std::thread::spawn(|| job.ack()).join().expect("no panic");
    assert_eq!(next(&events), "completed - 1");
    assert!(events.try_next().is_none());
}

#[test]
fn an_observer_is_told_of_a_job_that_was_the_last_handle() {
    let (queue, events, dir) = observed(None);
    queue.enqueue(b"job").expect("enqueued");
    let job = queue.consumer().try_next().expect("a job").into_owned();
    drop(queue);
    job.ack();
    assert_eq!(next(&events), "completed - 1");
    assert!(events.next().is_none());
    let (_, report) = Queue::builder(dir.path()).open().expect("opened");
    assert_eq!(report.jobs, 0);
}
