//! Tests of guarantee 6 for `tracing` subscribers: they may use, close and drop the queue that
//! raises an event, and they may panic. Also tests which events jobs raise.
//!
//! A global subscriber holds for the whole process, so most of these tests run in child processes.

use std::panic::panic_any;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use logmill::{EnqueueOptions, Job, Queue, RetryPolicy};

use crate::support::*;

#[test]
fn a_subscriber_may_log_into_the_queue_that_tells_it_something() {
    play("log into the queue");
}

#[test]
fn a_subscriber_that_panics_does_no_harm() {
    play("panic at events");
}

#[test]
fn a_subscriber_may_close_the_queue_and_drop_its_last_handle_on_each_thread() {
    play("close at events");
}

fn play(role: &str) {
    let dir = tempfile::tempdir().unwrap();
    Child::start(role, dir.path()).finish();
}

/// Calls a function for each event of every thread.
fn subscribe(act: impl Fn(&tracing::Event<'_>) + Send + Sync + 'static) {
    tracing::subscriber::set_global_default(Subscriber(act)).unwrap();
}

/// The queue, for use by the subscriber.
static QUEUE: Mutex<Option<Queue>> = Mutex::new(None);
static EVENTS: AtomicU64 = AtomicU64::new(0);

fn queue() -> Option<Queue> {
    QUEUE.lock().unwrap().clone()
}

/// Makes an open queue raise as many kinds of events as possible: its directories are removed, so
/// there is no room for letters and more segments. Jobs fail, die, are acked, and are enqueued
/// until that is impossible.
fn use_a_queue_in_trouble(dir: &Path) {
    let queue = open(builder(dir.join("queue")).retry(RetryPolicy::none()));
    *QUEUE.lock().unwrap() = Some(queue.clone());
    remove_live_directory(&dir.join("queue/dead"));
    remove_live_directory(&dir.join("queue/log/00"));
    let consumer = queue.consumer();
    queue.enqueue(b"dies").unwrap();
    consumer.next_timeout(PATIENCE).unwrap().retry("no use");
    let mut refused = 0;
    for number in 0..1000 {
        refused += u64::from(queue.enqueue(&payload_of(number, 1000)).is_err());
        if number % 8 == 0 {
            queue.dead_letters().iter().count();
            // Both calls may fail.
            let _ = queue.flush();
            let waiting = EnqueueOptions::new().wait(Duration::from_micros(1));
            let _ = queue.enqueue_with(b"more", waiting);
        }
        if number % 2 == 0
            && let Some(job) = consumer.try_next()
        {
            job.ack();
        }
    }
    assert!(refused > 0);
    assert!(queue.stats().acked > 50);
    eventually("events are raised", || EVENTS.load(Ordering::Relaxed) > 10);
    drop(QUEUE.lock().unwrap().take());
    drop(consumer);
    // A clean close is impossible; it must only return.
    let _ = queue.close();
}

pub(crate) fn log_into_the_queue(dir: &Path) {
    subscribe(|event| {
        EVENTS.fetch_add(1, Ordering::Relaxed);
        let Some(queue) = queue() else { return };
        let _ = queue.enqueue(format!("{event:?}").as_bytes());
        let _ = queue.enqueue_batch(&[b"a batch"]);
        let _ = queue.flush();
        let _ = queue.verify();
        queue.stats();
        queue.dead_letters().iter().count();
        let consumer = queue.consumer();
        if let Some(job) = consumer.try_next() {
            job.retry("not this one");
        }
    });
    use_a_queue_in_trouble(dir);
}

pub(crate) fn panic_at_events(dir: &Path) {
    subscribe(|_| {
        EVENTS.fetch_add(1, Ordering::Relaxed);
        panic_any(Bomb);
    });
    use_a_queue_in_trouble(dir);
    let dir = dir.join("sound");
    let queue = open(builder(&dir).retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(2)));
    let workers = queue
        .workers(2)
        .run(|job: &Job<'_>| match job.payload() {
            b"bad" => Err("no use"),
            _ => Ok(()),
        })
        .unwrap();
    for payload in ["bad", "bad", "bad", "good"] {
        queue.enqueue(payload.as_bytes()).unwrap();
    }
    eventually("all jobs are settled", || queue.stats().depth() == 0);
    assert_eq!((queue.stats().acked, queue.dead_letters().len()), (1, 3));
    assert_eq!(workers.alive(), 2);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    queue.close().unwrap();
    open(builder(&dir));
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

type Act = fn(Queue);

/// What the subscriber does with the queue, and on which thread, once all other handles are
/// dropped.
static ACT: Mutex<Option<(&str, Act)>> = Mutex::new(None);
static IS_LAST: AtomicBool = AtomicBool::new(false);

pub(crate) fn close_at_events(dir: &Path) {
    subscribe(|_| {
        let this = thread::current().name().unwrap_or_default().to_owned();
        let act = ACT.lock().unwrap().take_if(|(thread, _)| this == *thread);
        if let Some((_, act)) = act {
            eventually("all other handles are dropped", || {
                IS_LAST.load(Ordering::Relaxed)
            });
            let queue = QUEUE.lock().unwrap().take();
            act(queue.unwrap());
        }
    });
    let acts: [Act; 3] = [
        drop,
        |queue| queue.close().unwrap(),
        |queue| {
            // One handle closes the queue, another one is dropped last.
            let other = queue.clone();
            let _ = queue.close();
            drop(other);
        },
    ];
    for (number, act) in acts.into_iter().enumerate() {
        for thread in ["logmill-timer", "logmill-maintenance", "logmill-worker-0"] {
            let dir = dir.join(format!("{thread}-{number}"));
            let queue = open(builder(&dir).lease_timeout(Duration::from_millis(20)));
            IS_LAST.store(false, Ordering::Relaxed);
            *QUEUE.lock().unwrap() = Some(queue.clone());
            *ACT.lock().unwrap() = Some((thread, act));
            queue.enqueue(b"job").unwrap();
            match thread {
                "logmill-timer" => std::mem::forget(queue.consumer().next().unwrap()),
                "logmill-maintenance" => {
                    remove_live_directory(&dir.join("dead"));
                    queue.consumer().next().unwrap().dead_letter("no use");
                }
                _ => {
                    let (begun, has_begun) = std::sync::mpsc::channel();
                    let workers = queue.workers(1).run(move |_: &Job<'_>| {
                        begun.send(()).unwrap();
                        Err::<(), _>("again")
                    });
                    has_begun.recv_timeout(PATIENCE).unwrap();
                    drop(workers);
                }
            }
            drop(queue);
            IS_LAST.store(true, Ordering::Relaxed);
            eventually("the subscriber has acted", || {
                QUEUE.lock().unwrap().is_none()
            });
            eventually("the queue is closed", || builder(&dir).open().is_ok());
        }
    }
}

/// The events that a thread raises while it runs `code`: level, message, and other fields.
fn events_of(code: impl FnOnce()) -> Vec<String> {
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&events);
    let subscriber = Subscriber(move |event: &tracing::Event<'_>| {
        let fields = fields(event);
        let text = fields
            .iter()
            .map(|(name, value)| format!(" {name}={value}"));
        let text: String = text.collect();
        told.lock()
            .unwrap()
            .push(format!("{}{text}", event.metadata().level()));
    });
    tracing::subscriber::with_default(subscriber, code);
    std::mem::take(&mut events.lock().unwrap())
}

#[test]
fn each_failure_and_each_death_raises_one_event_with_id_attempts_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(2)));
    let consumer = queue.consumer();
    let next = || consumer.next_timeout(PATIENCE).unwrap();
    let job = queue.enqueue(b"fails twice").unwrap();
    let failed = |attempts, reason, job| {
        format!("DEBUG attempts={attempts} job={job} message=an attempt failed reason={reason}")
    };
    let died = |attempts, reason, job| {
        format!("WARN attempts={attempts} job={job} message=a job is dead reason={reason}")
    };
    let events = events_of(|| next().retry("not yet"));
    assert_eq!(events, [failed(1, "not yet", job)]);
    let events = events_of(|| drop(next()));
    let reason = "the job was dropped";
    assert_eq!(events, [failed(2, reason, job), died(2, reason, job)]);
    let job = queue.enqueue(b"dies").unwrap();
    let events = events_of(|| next().dead_letter("never"));
    assert_eq!(events, [failed(1, "never", job), died(1, "never", job)]);
    queue.enqueue(b"is acked").unwrap();
    assert_eq!(events_of(|| next().ack()), [""; 0]);
}

thread_local! {
    static CONSUMER: std::cell::OnceCell<logmill::Consumer> = const { std::cell::OnceCell::new() };
}

#[test]
fn a_subscriber_may_take_jobs_with_the_consumer_that_is_looking_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..200 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    queue.close().unwrap();
    // This damage raises an event when the segment is first claimed from.
    edit(&segment_files(dir.path())[1], |bytes| bytes[500] ^= 1);
    let queue = open(builder(dir.path()));
    let taken = Arc::new(AtomicU64::new(0));
    let take = || CONSUMER.with(|one| one.get().unwrap().try_next().map(|job| job.ack()));
    let by_subscriber = Arc::clone(&taken);
    let subscriber = Subscriber(move |_: &tracing::Event<'_>| {
        if take().is_some() {
            by_subscriber.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut by_caller = 0;
    CONSUMER.with(|one| one.set(queue.consumer()).unwrap());
    tracing::subscriber::with_default(subscriber, || {
        while take().is_some() {
            by_caller += 1;
        }
    });
    let by_subscriber = taken.load(Ordering::Relaxed);
    assert!(by_subscriber > 0);
    assert_eq!((by_caller + by_subscriber, queue.stats().depth()), (199, 0));
}
