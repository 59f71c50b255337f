//! A queue on a manual clock: what depends on time happens when the clock is advanced, and has
//! happened when that call returns.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use logmill::{
    Consumer, EnqueueOptions, Failure, Job, Keep, ManualClock, ObservedJob, Observer, Queue,
    Queues, RetryPolicy,
};

const HOUR: Duration = Duration::from_secs(3600);
const NEARLY: Duration = Duration::from_millis(1);

struct Set {
    _dir: tempfile::TempDir,
    clock: ManualClock,
    queue: Queue,
}

fn set(build: impl FnOnce(logmill::Builder) -> logmill::Builder) -> Set {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(SystemTime::UNIX_EPOCH + 1000 * HOUR);
    let builder = Queue::builder(dir.path()).stripes(1).clock(&clock);
    let (queue, _) = build(builder).open().unwrap();
    Set {
        _dir: dir,
        clock,
        queue,
    }
}

/// Takes a job that is there.
fn now(consumer: &Consumer) -> Option<Job<'_>> {
    consumer.next_until(Some(Instant::now()), || false)
}

#[test]
fn a_delayed_job_is_there_when_the_clock_was_advanced_and_not_before() {
    let Set { clock, queue, .. } = &set(|builder| builder);
    let options = EnqueueOptions::new();
    queue.enqueue_with(b"delay", options.delay(HOUR)).unwrap();
    let due = clock.now() + 2 * HOUR;
    queue.enqueue_with(b"due", options.due_at(due)).unwrap();
    let consumer = queue.consumer();
    assert!(now(&consumer).is_none());
    for payload in [&b"delay"[..], b"due"] {
        clock.advance(HOUR - NEARLY);
        assert!(now(&consumer).is_none());
        clock.advance(NEARLY);
        let job = now(&consumer).expect("it is due");
        assert_eq!(job.payload(), payload);
        job.ack();
    }
}

#[test]
fn the_times_of_a_job_are_those_of_the_clock() {
    let Set { clock, queue, .. } = &set(|builder| builder);
    queue.enqueue(b"plain").unwrap();
    queue.enqueue_batch(&[b"batch"]).unwrap();
    clock.advance(HOUR);
    let consumer = queue.consumer();
    for _ in 0..2 {
        let job = now(&consumer).unwrap();
        assert_eq!(job.enqueued_at(), clock.now() - HOUR);
        job.fail(Failure::dead_letter("no use"));
    }
    for letter in queue.dead_letters().iter() {
        assert_eq!(letter.last_failure(), Some(clock.now()));
    }
}

#[test]
fn a_job_that_failed_comes_back_when_its_backoff_has_passed() {
    let retry = RetryPolicy::custom(|failed| failed * HOUR);
    let Set { clock, queue, .. } = &set(|builder| builder.retry(retry));
    queue.enqueue(b"job").unwrap();
    let consumer = queue.consumer();
    for failed in 1..=3 {
        now(&consumer).unwrap().fail("busy");
        clock.advance(failed * HOUR - NEARLY);
        assert!(now(&consumer).is_none());
        clock.advance(NEARLY);
    }
    now(&consumer).expect("its time has come").snooze(HOUR);
    assert!(now(&consumer).is_none());
    clock.advance(HOUR);
    now(&consumer).expect("its time has come").ack();
}

#[test]
fn a_job_expires_by_the_clock() {
    let Set { clock, queue, .. } = &set(|builder| builder);
    let options = EnqueueOptions::new().expires_after(HOUR);
    for payload in [b"in time", b"at last"] {
        queue.enqueue_with(payload, options).unwrap();
    }
    let consumer = queue.consumer();
    clock.advance(HOUR - NEARLY);
    now(&consumer).expect("it has not expired").ack();
    clock.advance(NEARLY);
    assert!(now(&consumer).is_none());
    assert_eq!(queue.stats().expired, 1);
}

#[test]
fn a_key_expires_by_the_clock_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let queues = Queues::options(dir.path()).clock(&clock).open().unwrap();
    let keys = queues.keys();
    keys.put(b"a", b"1", Keep::For(HOUR)).unwrap();
    keys.put(b"b", b"1", Keep::Until(clock.now() + HOUR))
        .unwrap();
    clock.advance(HOUR - NEARLY);
    assert!(keys.get(b"a").is_some() && keys.get(b"b").is_some());
    clock.advance(NEARLY);
    assert!(keys.get(b"a").is_none() && keys.get(b"b").is_none());

    let queue = queues.queue("jobs").unwrap();
    let mut transaction = queues.transaction();
    transaction.enqueue_with(&queue, b"later", EnqueueOptions::new().delay(HOUR));
    transaction.commit().unwrap();
    let consumer = queue.consumer();
    assert!(now(&consumer).is_none());
    clock.advance(HOUR);
    now(&consumer).expect("it is due").ack();
}

#[test]
fn a_delay_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let open = || Queue::builder(dir.path()).clock(&clock).open().unwrap().0;
    let options = EnqueueOptions::new().delay(HOUR);
    open().enqueue_with(b"later", options).unwrap();
    clock.advance(HOUR / 2);
    let queue = open();
    let consumer = queue.consumer();
    clock.advance(HOUR / 2 - NEARLY);
    assert!(now(&consumer).is_none());
    clock.advance(NEARLY);
    now(&consumer).expect("it is due").ack();
}

#[test]
fn a_consumer_that_sleeps_is_woken_by_an_advance() {
    let Set { clock, queue, .. } = &set(|builder| builder);
    let options = EnqueueOptions::new().delay(HOUR);
    queue.enqueue_with(b"job", options).unwrap();
    let consumer = queue.consumer();
    let taken = thread::spawn(move || consumer.next().map(|job| job.payload().to_vec()));
    clock.advance(HOUR);
    assert_eq!(taken.join().unwrap().as_deref(), Some(&b"job"[..]));
}

/// Advances a clock when an attempt fails.
struct Advancing(ManualClock, Mutex<mpsc::Sender<()>>);

impl Observer for Advancing {
    fn failed(&self, _: &ObservedJob, _: &str) {
        self.0.advance(HOUR);
        let _ = self.1.lock().unwrap().send(());
    }
}

#[test]
fn a_lease_times_out_by_the_clock_and_an_observer_may_advance_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let (sender, told) = mpsc::channel();
    let retry = RetryPolicy::custom(|_| HOUR);
    let builder = Queue::builder(dir.path()).clock(&clock).retry(retry);
    let builder = builder.observer(Advancing(clock.clone(), Mutex::new(sender)));
    let (queue, _) = builder.lease_timeout(HOUR).open().unwrap();
    queue.enqueue(b"job").unwrap();
    let consumer = queue.consumer();
    let late = now(&consumer).unwrap();
    clock.advance(HOUR);
    told.recv().unwrap();
    drop(late);
    let again = queue.consumer();
    // The backoff has passed as well; the timer's thread was told of that.
    let job = again.next().unwrap();
    assert_eq!(job.attempts(), 2);
    job.ack();
}

#[test]
fn clocks_are_advanced_by_many_threads_while_jobs_are_enqueued() {
    let Set { clock, queue, .. } = &set(|builder| builder);
    let jobs = 400;
    let taken = Arc::new(Mutex::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            let taken = Arc::clone(&taken);
            scope.spawn(move || {
                let consumer = queue.consumer();
                while let Some(job) = consumer.next() {
                    job.ack();
                    let mut taken = taken.lock().unwrap();
                    *taken += 1;
                    if *taken == jobs {
                        queue.wake_consumers();
                        queue.clone().close().unwrap();
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(move || {
                for number in 0..jobs / 2 {
                    let options = EnqueueOptions::new().delay(number * NEARLY);
                    queue.enqueue_with(b"job", options).unwrap();
                    clock.advance(NEARLY);
                }
                clock.advance(jobs * NEARLY);
            });
        }
    });
    assert_eq!(*taken.lock().unwrap(), jobs);
}
