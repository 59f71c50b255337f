//! `OwnedJob`: jobs that keep their queue open.

use std::time::Duration;

use logmill::{AsyncConsumer, OpenError, OwnedJob, Queue, Ticket};

use super::{LONG, queue, queue_with, until};

fn take(queue: &Queue, payload: &[u8]) -> OwnedJob {
    queue.enqueue(payload).expect("enqueued");
    queue.consumer().try_next().expect("a job").into_owned()
}

#[test]
fn owned_jobs_consumers_and_tickets_can_move_between_threads() {
    fn is_send<T: Send + 'static>() {}
    fn is_sync<T: Sync>() {}
    is_send::<OwnedJob>();
    is_sync::<OwnedJob>();
    is_send::<AsyncConsumer>();
    is_send::<Ticket>();
    is_sync::<Ticket>();
    fn future_is_send<F: Future + Send>(_: F) {}
    let (queue, _dir) = queue();
    future_is_send(queue.async_consumer().next());
    let options = logmill::EnqueueOptions::new();
    future_is_send(queue.enqueue_async(b"job", options));
    future_is_send(queue.enqueue_batch_async(&[(b"job", options)]));
    future_is_send(queue.producer().enqueue_async(b"job", options));
    future_is_send(queue.producer().enqueue_batch_async(&[(b"job", options)]));
}

#[test]
fn an_owned_job_is_the_job_that_it_was_made_of() {
    let (queue, _dir) = queue();
    let headers = [("trace", &b"7"[..])];
    let options = logmill::EnqueueOptions::new()
        .name("resize")
        .headers(&headers);
    let id = queue.enqueue_with(b"cat.jpg", options).expect("enqueued");
    let consumer = queue.consumer();
    let borrowed = consumer.try_next().expect("a job");
    let seen = (borrowed.id(), borrowed.attempts(), borrowed.crashes());
    let enqueued_at = borrowed.enqueued_at();
    let owned = borrowed.into_owned();
    assert_eq!(queue.stats().in_flight, 1);
    assert_eq!((owned.id(), owned.payload()), (id, &b"cat.jpg"[..]));
    assert_eq!((owned.id(), owned.attempts(), owned.crashes()), seen);
    assert_eq!(owned.enqueued_at(), enqueued_at);
    assert_eq!(owned.name(), Some("resize"));
    assert_eq!(owned.headers().get("trace"), Some(&b"7"[..]));
    owned.ack();
    assert_eq!((queue.stats().acked, queue.stats().retried), (1, 0));
}

#[test]
fn each_way_to_settle_an_owned_job_is_that_of_a_job() {
    let (queue, _dir) = queue();
    let take_again = || {
        let job = queue.consumer().try_next().expect("back").into_owned();
        assert_eq!(job.attempts(), 2);
        job
    };
    take(&queue, b"ack").ack();
    drop(take(&queue, b"dropped"));
    take_again().ack();
    take(&queue, b"retry").retry("why");
    take_again().ack();
    take(&queue, b"later").retry_after(Duration::from_secs(3600), "why");
    take(&queue, b"dead").dead_letter("why");
    take(&queue, b"failed").fail(logmill::Failure::dead_letter("why"));
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.retried), (3, 3));
    assert_eq!((stats.depth(), stats.dead), (1, 2));
}

#[test]
fn an_owned_job_that_is_given_back_has_not_failed_an_attempt() {
    let (queue, _dir) = queue();
    take(&queue, b"now").snooze(Duration::ZERO);
    let consumer = queue.consumer();
    let job = consumer.try_next().expect("back at once").into_owned();
    assert_eq!((job.payload(), job.attempts()), (&b"now"[..], 1));
    job.snooze(Duration::from_secs(3600));
    let stats = queue.stats();
    assert_eq!((stats.snoozed, stats.retried), (2, 0));
    assert_eq!(stats.depth(), 1);
}

#[test]
fn an_owned_job_that_is_touched_has_its_whole_lease_again() {
    let (queue, _dir) = queue_with(|builder| builder.lease_timeout(LONG));
    let touched = take(&queue, b"job");
    assert!(touched.touch());
    touched.ack();
    let short = logmill::EnqueueOptions::new().lease_timeout(Duration::from_millis(20));
    queue.enqueue_with(b"job", short).expect("enqueued");
    let late = queue.consumer().try_next().expect("a job").into_owned();
    until("timed out", || queue.stats().retried == 1);
    assert!(!late.touch());
    late.ack();
    // Without lease timeouts there is nothing to extend.
    let (queue, _dir) = super::queue();
    let job = take(&queue, b"job");
    assert!(job.touch());
    job.ack();
}

#[test]
fn an_owned_job_has_every_method_of_a_job() {
    fn methods(source: &str) -> Vec<&str> {
        let names = source.split("\n    pub fn ").skip(1);
        let mut names: Vec<_> = names.filter_map(|rest| rest.split('(').next()).collect();
        names.sort_unstable();
        names
    }
    let mut of_job = methods(include_str!("../../src/job.rs"));
    // In a file of its own.
    of_job.push("hold");
    of_job.sort_unstable();
    let mut of_owned = methods(include_str!("../../src/job/owned.rs"));
    // It makes an owned job of a borrowed one.
    of_owned.retain(|name| *name != "into_owned");
    assert!(of_job.len() >= 14);
    assert_eq!(of_owned, of_job);
}

#[test]
fn an_owned_job_keeps_the_queue_open_until_it_is_settled() {
    let (queue, dir) = queue();
    let (acked, dead) = (take(&queue, b"acked"), take(&queue, b"dead"));
    drop(queue);
    let reopen = || Queue::builder(dir.path()).open();
    assert!(matches!(reopen(), Err(OpenError::Locked { .. })));
    // The last handles, on other threads than the first.
    std::thread::spawn(|| acked.ack()).join().expect("no panic");
    assert!(matches!(reopen(), Err(OpenError::Locked { .. })));
    std::thread::spawn(|| dead.dead_letter("why"))
        .join()
        .expect("no panic");
    let (queue, report) = reopen().expect("opened");
    assert!(report.is_clean());
    assert_eq!((report.jobs, queue.stats().dead), (0, 1));
}

#[test]
fn an_owned_job_can_be_settled_after_the_queue_was_closed() {
    let (queue, dir) = queue();
    let job = take(&queue, b"job");
    let failed = take(&queue, b"failed");
    queue.close().expect("closed");
    job.ack();
    drop(failed);
    let (_, report) = Queue::builder(dir.path()).open().expect("opened");
    assert_eq!(report.jobs, 1);
}

#[test]
fn a_late_ack_of_an_owned_job_completes_it() {
    let timeout = Duration::from_millis(20);
    let (queue, _dir) = queue_with(|builder| builder.lease_timeout(timeout));
    let late = take(&queue, b"job");
    until("timed out", || queue.stats().retried == 1);
    late.ack();
    let consumer = queue.consumer();
    assert!(consumer.next_timeout(Duration::from_millis(50)).is_none());
    assert_eq!(queue.stats().acked, 1);
}

#[test]
fn a_job_that_is_never_settled_comes_back_after_the_lease_timeout() {
    let timeout = Duration::from_millis(20);
    let (queue, _dir) = queue_with(|builder| builder.lease_timeout(timeout));
    let held = take(&queue, b"job");
    let consumer = queue.consumer();
    let again = consumer.next_timeout(LONG).expect("delivered again");
    assert_eq!((again.id(), again.attempts()), (held.id(), 2));
    again.ack();
}
