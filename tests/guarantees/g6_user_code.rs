//! Tests of guarantee 6 for user code: whatever a handler, an error, a backoff function, a filter
//! or a subscriber does, it ends no thread of the queue, blocks nobody else, and leaves every job
//! settled once.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use logmill::{
    EnqueueError, EnqueueOptions, Failure, Job, OpenError, Queue, RetryPolicy, ShutdownReport,
    Workers,
};

use crate::support::*;

/// Panics when it is dropped, with a payload that panics when it is dropped, this many times.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 {
            panic_any(Self(self.0 - 1));
        }
    }
}

/// Ways in which an error or a panic misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Evil {
    DisplayFails,
    DisplayPanics,
    DropPanics,
    PanicIsABomb,
}

impl Evil {
    const ALL: [Self; 4] = [
        Self::DisplayFails,
        Self::DisplayPanics,
        Self::DropPanics,
        Self::PanicIsABomb,
    ];
}

struct Error(Evil);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("evil")?;
        match self.0 {
            Evil::DisplayFails => Err(fmt::Error),
            Evil::DisplayPanics => panic_any(Bomb(2)),
            _ => Ok(()),
        }
    }
}

impl Drop for Error {
    fn drop(&mut self) {
        if self.0 == Evil::DropPanics {
            panic_any(Bomb(2));
        }
    }
}

fn evil(evil: Evil) -> Result<(), Error> {
    match evil {
        Evil::PanicIsABomb => panic_any(Bomb(2)),
        evil => Err(Error(evil)),
    }
}

/// An error whose conversion to `Failure` panics.
struct NoFailure;

impl From<NoFailure> for Failure {
    fn from(_: NoFailure) -> Self {
        panic!("no failure")
    }
}

/// Enqueues more bad jobs than the pool has workers, then good ones. The good ones must be acked,
/// and the bad ones must become letters.
fn survives_bad_jobs<E: Into<Failure> + 'static>(
    bad: impl Fn() -> Result<(), E> + Send + Sync + 'static,
) {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::fixed(Duration::ZERO).max_attempts(2)));
    let workers = queue
        .workers(2)
        .run(move |job: &Job<'_>| match job.payload() {
            b"bad" => bad(),
            _ => Ok(()),
        })
        .unwrap();
    for payload in ["bad", "bad", "bad", "good", "good"] {
        queue.enqueue(payload.as_bytes()).unwrap();
    }
    eventually("all jobs are settled", || queue.stats().depth() == 0);
    assert_eq!((queue.stats().acked, queue.dead_letters().len()), (2, 3));
    assert!(
        queue
            .dead_letters()
            .iter()
            .all(|letter| letter.attempts() == 2)
    );
    let report = workers.shutdown(PATIENCE);
    assert!(report.finished_in_time);
    queue.close().unwrap();
    open(builder(dir.path()));
}

#[test]
fn no_error_and_no_panic_of_a_handler_ends_its_worker() {
    for kind in Evil::ALL {
        survives_bad_jobs(move || evil(kind));
    }
    survives_bad_jobs(|| Err(NoFailure));
}

#[test]
fn a_job_is_settled_as_asked_even_if_its_reason_cannot_be_displayed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    for kind in [Evil::DisplayFails, Evil::DisplayPanics, Evil::DropPanics] {
        queue.enqueue(b"job").unwrap();
        consumer.next().unwrap().retry(Error(kind));
        let job = consumer.next().unwrap();
        assert_eq!(job.attempts(), 2);
        job.retry_after(Duration::ZERO, Error(kind));
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(job.attempts(), 3);
        job.dead_letter(Error(kind));
        assert!(consumer.try_next().is_none());
    }
    let letters: Vec<_> = queue.dead_letters().iter().collect();
    assert_eq!(letters.len(), 3);
    for letter in letters {
        assert_eq!(letter.attempts(), 3);
        assert!(
            letter
                .reasons()
                .iter()
                .all(|one| one.reason.starts_with("evil")),
            "{letter:?}"
        );
    }
}

#[test]
fn a_job_whose_conversion_to_a_failure_panics_is_settled_once() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    queue.enqueue(b"job").unwrap();
    let job = consumer.next().unwrap();
    catch_unwind(AssertUnwindSafe(|| job.fail(NoFailure))).unwrap_err();
    let again = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!((again.attempts(), queue.stats().in_flight), (2, 1));
    again.ack();
    assert!(consumer.try_next().is_none());
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn the_directory_can_be_opened_again_after_every_shutdown_and_close() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let queue = open(builder(dir.path()));
        let held = (Slow, queue.clone());
        let workers = queue
            .workers(2)
            .run(move |_: &Job<'_>| {
                let _held = &held;
                Ok::<(), Failure>(())
            })
            .unwrap();
        queue.enqueue(b"job").unwrap();
        eventually("the job is done", || queue.stats().depth() == 0);
        if round % 2 == 0 {
            assert!(workers.shutdown(PATIENCE).finished_in_time);
            queue.close().unwrap();
        } else {
            queue.close().unwrap();
            assert!(workers.shutdown(PATIENCE).finished_in_time);
        }
    }
}

/// Takes a while to drop.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_pool_ends_even_if_dropping_its_handler_panics() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let held = (Bomb(2), Slow, queue.clone());
    let workers = queue
        .workers(2)
        .run(move |_: &Job<'_>| {
            let _held = &held;
            Ok::<(), Failure>(())
        })
        .unwrap();
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    queue.close().unwrap();
    open(builder(dir.path()));
}

#[test]
fn a_backoff_function_may_panic_use_the_queue_and_panic_again_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let slot: Arc<Mutex<Option<Queue>>> = Arc::default();
    let (used, bomb) = (Arc::clone(&slot), Bomb(2));
    let policy = RetryPolicy::custom(move |failed| {
        let _bomb = &bomb;
        if let Some(queue) = &*used.lock().unwrap() {
            queue.enqueue(b"good").unwrap();
            queue.flush().unwrap();
            queue.dead_letters().iter().count();
        }
        if failed == 1 {
            panic_any(Bomb(2));
        }
        Duration::ZERO
    });
    let queue = open(builder(dir.path()).retry(policy.max_attempts(3)));
    *slot.lock().unwrap() = Some(queue.clone());
    survive(&queue, |job| match job.payload() {
        b"bad" => Err("again"),
        _ => Ok(()),
    });
    assert_eq!((queue.stats().acked, queue.dead_letters().len()), (2, 1));
    drop(slot.lock().unwrap().take());
    drop(queue);
    open(builder(dir.path()));
}

/// Runs a worker until a bad job is settled.
fn survive(queue: &Queue, handler: fn(&Job<'_>) -> Result<(), &'static str>) {
    let workers = queue.workers(1).run(handler).unwrap();
    queue.enqueue(b"bad").unwrap();
    eventually("all jobs are settled", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
}

/// Runs a pool of two workers and one job. Its handler calls `act` with what `prepare` makes of the
/// queue and the pool; returns what `act` returned.
fn from_inside<T: Send + 'static, R: Send + 'static>(
    queue: Queue,
    prepare: impl FnOnce(Queue, Workers) -> T,
    act: impl Fn(T) -> R + Send + Sync + 'static,
) -> R {
    let (give, given) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let given = Mutex::new(given);
    let workers = queue
        .workers(2)
        .run(move |_: &Job<'_>| {
            let taken = given.lock().unwrap().recv().unwrap();
            tell.send(act(taken)).unwrap();
            Ok::<(), Failure>(())
        })
        .unwrap();
    queue.enqueue(b"job").unwrap();
    give.send(prepare(queue, workers)).unwrap();
    told.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn a_handler_may_drop_its_pool_and_the_last_queue() {
    let dir = tempfile::tempdir().unwrap();
    from_inside(
        open(builder(dir.path())),
        |queue, workers| (workers, queue),
        drop,
    );
    eventually_opens(dir.path());
    from_inside(
        open(builder(dir.path())),
        |queue, workers| (queue, workers),
        drop,
    );
    eventually_opens(dir.path());
}

/// Waits until the queue is closed by the last handle elsewhere; it must have been closed cleanly,
/// with no jobs left.
fn eventually_opens(path: &std::path::Path) {
    let mut opened = None;
    eventually("the queue is closed", || match builder(path).open() {
        Ok(found) => {
            opened = Some(found);
            true
        }
        Err(OpenError::Locked { .. }) => false,
        Err(error) => panic!("{error}"),
    });
    let (queue, report) = opened.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn a_handler_that_shuts_its_own_pool_down_waits_for_the_others_only() {
    let dir = tempfile::tempdir().unwrap();
    let report: ShutdownReport = from_inside(
        open(builder(dir.path())),
        |_, workers| workers,
        // It would never return if it waited for itself.
        |workers| workers.shutdown(Duration::MAX),
    );
    assert!(!report.finished_in_time);
    assert_eq!(report.still_running.len(), 1);
    eventually_opens(dir.path());
}

#[test]
fn a_handler_may_close_its_queue() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let (other, workers) = from_inside(
        queue,
        |queue, workers| (queue, workers),
        |(queue, workers)| {
            queue.clone().close().unwrap();
            (queue, workers)
        },
    );
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    drop(other);
    eventually_opens(dir.path());
}

#[test]
fn the_thread_that_notices_a_lease_timeout_may_drop_the_last_handle() {
    let dir = tempfile::tempdir().unwrap();
    let slot: Arc<Mutex<Option<Queue>>> = Arc::default();
    let (used, bomb) = (Arc::clone(&slot), Bomb(2));
    let policy = RetryPolicy::custom(move |_| {
        let _bomb = &bomb;
        drop(used.lock().unwrap().take());
        Duration::ZERO
    });
    let with_timeout = builder(dir.path()).lease_timeout(Duration::from_millis(20));
    let queue = open(with_timeout.retry(policy));
    let job = queue.enqueue(b"leaked").unwrap();
    let consumer = queue.consumer();
    std::mem::forget(consumer.next().unwrap());
    let mut held = slot.lock().unwrap();
    drop(consumer);
    *held = Some(queue);
    drop(held);
    eventually("the last handle is dropped", || {
        slot.lock().unwrap().is_none()
    });
    let mut opened = None;
    eventually("the queue is closed", || {
        opened = builder(dir.path()).open().ok();
        opened.is_some()
    });
    let (queue, report) = opened.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let found = drain(&queue);
    assert_eq!((found[0].sequence, found[0].attempts), (job, 2));
}

#[test]
fn a_pool_that_cannot_be_started_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let handler = |_: &Job<'_>| Ok::<(), Failure>(());
    let error = queue
        .workers(1)
        .thread_name("a\0b")
        .run(handler)
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    let error = queue.workers(usize::MAX).run(handler).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    queue.close().unwrap();
    open(builder(dir.path()));
}

/// A payload whose `as_ref` panics, or returns something else each time.
struct Payload {
    panics: bool,
    looks: std::cell::Cell<usize>,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        assert!(!self.panics, "no payload");
        let looks = self.looks.get();
        self.looks.set(looks + 1);
        &[7; 1000][..(10 * looks + 1)]
    }
}

#[test]
fn a_payload_that_panics_enqueues_nothing_and_one_that_changes_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).max_depth(4));
    let payloads = |panics: &[bool]| -> Vec<_> {
        let looks = std::cell::Cell::default;
        panics
            .iter()
            .map(|&panics| Payload {
                panics,
                looks: looks(),
            })
            .collect()
    };
    let bad = payloads(&[false, false, false, true]);
    catch_unwind(AssertUnwindSafe(|| queue.enqueue_batch(&bad))).unwrap_err();
    let mut producer = queue.producer();
    catch_unwind(AssertUnwindSafe(|| producer.enqueue_batch(&bad))).unwrap_err();
    assert_eq!(queue.stats().enqueued, 0);
    queue.enqueue_batch(&payloads(&[false; 4])).unwrap();
    assert_eq!(drain_payloads(&queue), [[7]; 4]);
}

#[test]
fn a_filter_of_letters_may_panic_and_may_use_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let consumer = queue.consumer();
    for number in 0..5 {
        queue.enqueue(&payload_of(number, 8)).unwrap();
        consumer.next().unwrap().dead_letter("not retryable");
    }
    let letters = queue.dead_letters();
    let on_the_fourth = |letter: &logmill::DeadLetter| {
        assert_ne!(number_in(letter.payload()), 3);
        true
    };
    catch_unwind(AssertUnwindSafe(|| letters.replay_where(on_the_fourth))).unwrap_err();
    assert_eq!((letters.len(), queue.stats().depth()), (5, 0));
    // The filter purges or replays each letter itself, so nothing is left for its caller to replay.
    let mut odd = false;
    let replayed = letters.replay_where(|letter| {
        odd = !odd;
        if odd {
            queue.dead_letters().purge(letter.id()).unwrap();
        } else {
            queue.dead_letters().replay(letter.id()).unwrap();
        }
        queue.enqueue(b"from a filter").unwrap();
        queue.flush().unwrap();
        true
    });
    assert_eq!(replayed.unwrap(), []);
    assert_eq!((letters.len(), queue.stats().depth()), (0, 2 + 5));
    queue.enqueue(b"dies").unwrap();
    while let Some(job) = consumer.try_next() {
        match job.payload() {
            b"dies" => job.dead_letter("not retryable"),
            _ => job.ack(),
        }
    }
    let panics = catch_unwind(AssertUnwindSafe(|| letters.purge_where(|_| panic!("no"))));
    panics.unwrap_err();
    assert_eq!(
        letters
            .purge_where(|_| queue.dead_letters().len() == 1)
            .unwrap(),
        1
    );
}

#[test]
fn a_progress_function_may_panic_and_may_open_the_queue_which_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    open(builder(dir.path())).enqueue(b"job").unwrap();
    let panicking = builder(dir.path()).on_progress(|_| panic!("no progress"));
    catch_unwind(AssertUnwindSafe(|| panicking.open())).unwrap_err();
    let (path, told) = (dir.path().to_path_buf(), Arc::new(Mutex::new(Vec::new())));
    let tell = Arc::clone(&told);
    let reopening = builder(dir.path()).on_progress(move |_| {
        let error = builder(&path).open().unwrap_err();
        tell.lock()
            .unwrap()
            .push(matches!(error, OpenError::Locked { .. }));
    });
    let queue = open(reopening);
    assert!(!told.lock().unwrap().is_empty());
    assert!(told.lock().unwrap().iter().all(|&locked| locked));
    assert_eq!(drain_payloads(&queue), [b"job"]);
}

#[test]
fn a_leaked_job_is_delivered_again_when_the_queue_is_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue(b"leaked").unwrap();
    let consumer = queue.consumer();
    std::mem::forget(consumer.next().unwrap());
    drop(consumer);
    assert_eq!(queue.stats().in_flight, 1);
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    // Leaking a job is not a failure, and the queue was closed, so there is no crash either.
    let consumer = queue.consumer();
    let again = consumer.next().unwrap();
    assert_eq!((again.attempts(), again.crashes()), (1, 0));
    again.ack();
}

#[test]
fn a_handler_does_not_wait_for_ever_for_room_in_its_own_queue() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let queue = open(builder(dir.path()).max_depth(2));
    let (met, enqueuing) = (Arc::new(Barrier::new(2)), queue.clone());
    let (tell, told) = mpsc::channel();
    let handler = move |job: &Job<'_>| {
        let briefly = EnqueueOptions::new().wait(Duration::from_millis(1));
        // Both workers have a job, and these two jobs fill the queue.
        met.wait();
        let results = [EnqueueOptions::new().wait_forever(), briefly].map(|options| {
            let one = enqueuing.enqueue_with(b"more", options).unwrap_err();
            let batch = enqueuing
                .enqueue_batch_with(&[(b"more", options)])
                .unwrap_err();
            assert!(one.is_full() && batch.is_full());
            [one, batch]
        });
        tell.send(results).unwrap();
        met.wait();
        match job.payload() {
            // The two ways to end a job, each of which makes room for another one.
            b"handed on" => Ok(()),
            _ => Err(Failure::dead_letter("not retryable")),
        }
    };
    queue.enqueue_batch(&[&b"handed on"[..], b"dies"]).unwrap();
    let workers = queue.workers(2).run(handler).unwrap();
    for _ in 0..2 {
        let [for_ever, briefly] = told.recv_timeout(PATIENCE).unwrap();
        for error in for_ever {
            let EnqueueError::WaitInHandler { full } = error else {
                panic!("{error}");
            };
            assert!(matches!(*full, EnqueueError::Full { max: 2, .. }), "{full}");
        }
        for error in briefly {
            assert!(
                matches!(error, EnqueueError::Full { max: 2, .. }),
                "{error}"
            );
        }
    }
    eventually("both jobs are settled", || queue.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);

    // A handler of another queue may wait for room in this one.
    let patiently = EnqueueOptions::new().wait(PATIENCE);
    let both = [(b"1", patiently), (b"2", patiently)];
    queue.enqueue_batch_with(&both).unwrap();
    let other = open(builder(other_dir.path()));
    other.enqueue(b"3").unwrap();
    let into = queue.clone();
    let workers = other
        .workers(1)
        .run(move |job: &Job<'_>| {
            let waiting = EnqueueOptions::new().wait_forever();
            into.enqueue_with(job.payload(), waiting).map(|_| ())
        })
        .unwrap();
    let consumer = queue.consumer();
    for payload in [b"1", b"2", b"3"] {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(job.payload(), payload);
        job.ack();
    }
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    assert_eq!(other.stats().acked, 1);
}
