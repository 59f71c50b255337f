//! Tests of names and headers: a job has them in every delivery, and its letter has them too.

use logmill::{DeadLetter, EnqueueError, EnqueueOptions, Headers, Job, RetryPolicy};

use crate::support::*;

const HEADERS: [(&str, &[u8]); 3] = [("tenant", b"acme"), ("trace", &[0, 0xff]), ("empty", b"")];

fn options() -> EnqueueOptions<'static> {
    EnqueueOptions::new().name("größe_ändern").headers(&HEADERS)
}

fn check(name: Option<&str>, headers: Headers<'_>, payload: &[u8]) {
    assert_eq!(name, Some("größe_ändern"));
    assert!(headers.clone().eq(HEADERS));
    assert_eq!(headers.get("trace"), Some(&[0, 0xff][..]));
    assert_eq!(headers.get("span"), None);
    assert_eq!(payload, b"cat.jpg");
}

fn check_job(job: &Job<'_>) {
    check(job.name(), job.headers(), job.payload());
}

fn check_letter(letter: &DeadLetter) {
    check(letter.name(), letter.headers(), letter.payload());
}

#[test]
fn a_job_has_its_name_and_headers_in_every_delivery_and_as_a_letter() {
    let dir = tempfile::tempdir().unwrap();
    let builder = || builder(dir.path()).retry(RetryPolicy::fixed(PATIENCE / 1_000_000));
    let mut queue = open(builder());
    let id = queue.enqueue_with(b"cat.jpg", options()).unwrap();
    for attempt in 1..=3 {
        let consumer = queue.consumer();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        check_job(&job);
        assert_eq!((job.id(), job.attempts()), (id, attempt));
        job.retry("not yet");
        drop(consumer);
        if attempt == 2 {
            queue.close().unwrap();
            queue = open(builder());
        }
    }
    let consumer = queue.consumer();
    consumer
        .next_timeout(PATIENCE)
        .unwrap()
        .dead_letter("never");
    drop(consumer);
    check_letter(&queue.dead_letters().iter().next().unwrap());
    queue.close().unwrap();

    let queue = open(builder());
    let letters = queue.dead_letters();
    let letter = letters.iter().next().unwrap();
    check_letter(&letter);
    assert_eq!(letter.job_id(), id);
    letters.replay(letter.id()).unwrap();
    let consumer = queue.consumer();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    check_job(&job);
    job.dead_letter("again");
    check_letter(&letters.iter().next().unwrap());
}

#[test]
fn jobs_without_a_name_and_headers_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let only_name = EnqueueOptions::new().name("n");
    let only_header = EnqueueOptions::new().headers(&HEADERS[..1]);
    queue.enqueue(b"plain").unwrap();
    queue.enqueue_with(b"named", only_name).unwrap();
    queue
        .enqueue_with(b"with a header", only_header.max_attempts(7))
        .unwrap();
    let mut producer = queue.producer();
    producer
        .enqueue_with(b"named", only_name.unlimited_attempts())
        .unwrap();
    let consumer = queue.consumer();
    let mut found = Vec::new();
    while let Some(job) = consumer.try_next() {
        let name = job.name().map(str::to_owned);
        found.push((name, job.headers().count(), job.payload().to_vec()));
        job.ack();
    }
    let n = || Some("n".to_owned());
    found.sort();
    assert_eq!(
        found,
        [
            (None, 0, b"plain".to_vec()),
            (None, 1, b"with a header".to_vec()),
            (n(), 0, b"named".to_vec()),
            (n(), 0, b"named".to_vec()),
        ]
    );
}

#[test]
fn names_and_headers_of_every_length_come_back_as_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let mut producer = queue.producer();
    let consumer = queue.consumer();
    for len in 1..=255 {
        let name = "n".repeat(len);
        let value = payload_of(len as u64, 8 + len * 7);
        let headers = [(name.as_str(), value.as_slice())];
        let options = EnqueueOptions::new().name(&name);
        let payload = payload_of(1000, 8 + len % 3);
        producer.enqueue_with(&payload, options).unwrap();
        producer
            .enqueue_with(&payload, options.headers(&headers))
            .unwrap();
        for has_header in [false, true] {
            let job = consumer.next_timeout(PATIENCE).unwrap();
            assert_eq!(job.name(), Some(name.as_str()));
            assert_eq!(job.headers().get(&name), has_header.then_some(&value[..]));
            assert_eq!(number_in(job.payload()), 1000);
            job.ack();
        }
    }
}

#[test]
fn names_and_headers_that_cannot_be_stored_are_refused_and_nothing_is_enqueued() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let too_long = "n".repeat(256);
    let too_large = vec![0; 32 * 1024];
    let refused = |options: EnqueueOptions<'_>| match queue.enqueue_with(b"job", options) {
        Err(EnqueueError::InvalidOption { option, .. }) => option,
        other => panic!("{other:?}"),
    };
    let new = EnqueueOptions::new;
    assert_eq!(refused(new().name("")), "name");
    assert_eq!(refused(new().name(&too_long)), "name");
    assert_eq!(refused(new().headers(&[("", b"1")])), "headers");
    assert_eq!(refused(new().headers(&[(&too_long, b"1")])), "headers");
    assert_eq!(refused(new().headers(&[("key", &too_large)])), "headers");
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn the_room_for_a_payload_is_for_its_name_and_headers_too() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let payload = vec![7; queue.max_payload() - 10];
    // 4 bytes beside key and value.
    let options = EnqueueOptions::new().name("abc").headers(&[("k", b"v!")]);
    queue.enqueue_with(&payload, options).unwrap();
    let options = options.headers(&[("k", b"v!!")]);
    match queue.enqueue_with(&payload, options).unwrap_err() {
        EnqueueError::PayloadTooLarge { len, max } => {
            assert_eq!((len, max), (queue.max_payload() + 1, queue.max_payload()));
        }
        error => panic!("{error}"),
    }
    // The job still fits the dead letter log.
    let consumer = queue.consumer();
    consumer
        .next_timeout(PATIENCE)
        .unwrap()
        .dead_letter("too large to handle");
    let letter = queue.dead_letters().iter().next().unwrap();
    assert_eq!(letter.name(), Some("abc"));
    assert_eq!(letter.headers().get("k"), Some(&b"v!"[..]));
    assert_eq!(letter.payload(), payload);
    assert_eq!(letter.reasons()[0].reason, "too large to handle");
}
