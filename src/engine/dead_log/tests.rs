//! Tests of letters that cannot be written or flushed, and of late acks of jobs that die.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::dead_letters::DeadLetters;
use crate::dispatch::lease_timeouts::Delivery;
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::delivery::Attempt;
use crate::engine::enqueue::Place;
use crate::storage::Operation;
use crate::storage::faults::{self, Moment};
use crate::time::stopped;
use crate::{DeadLetterError, Queue, RetryPolicy};

const LEASE: Duration = Duration::from_millis(1);

fn open(dir: &TempDir) -> (Arc<Running>, u64) {
    let builder = Queue::builder(dir.path())
        .stripes(1)
        .segment_size(16 * 1024)
        .retry(RetryPolicy::none())
        .lease_timeout(LEASE);
    let (running, report) = Running::open_idle(&builder).unwrap();
    (Arc::new(running), report.jobs)
}

/// A delivery whose job is dying because its lease has timed out, while its handler still has
/// it.
fn late(
    running: &Running,
    consumer: &Source<Arc<Running>>,
    now: &mut Duration,
) -> (Lease, Attempt, Delivery) {
    let stripe = &running.dispatch().stripes()[0];
    running.enqueue(Place::on(stripe), b"job").unwrap();
    let begun = running.begin(consumer.try_next().unwrap()).unwrap();
    *now += LEASE;
    stopped::set(Some(*now));
    running.turn_timer();
    assert_eq!(running.dead().stats().letters, 1);
    begun
}

#[test]
fn a_job_that_is_acked_while_its_letter_fails_to_be_written_is_done() {
    let mut now = Duration::from_secs(1_000_000);
    stopped::set(Some(now));
    let dir = tempfile::tempdir().unwrap();
    let running = open(&dir).0;
    let consumer = Source::new(Arc::clone(&running));
    let mut late = Some(late(&running, &consumer, &mut now));
    let observer = {
        let running = Arc::clone(&running);
        move |_, _: &Path, _| {
            if let Some((lease, attempt, delivery)) = late.take() {
                running.ack(lease, delivery, attempt);
            }
            Err(io::ErrorKind::StorageFull.into())
        }
    };
    faults::observe(Some((dir.path().join("dead"), Box::new(observer))));
    assert!(running.write_letters().unwrap_err().is_full());
    faults::observe(None);
    let stats = running.stats();
    assert_eq!((stats.acked, stats.dead_lettered), (1, 0), "{stats:?}");
    assert_eq!((stats.dead, stats.depth()), (0, 0), "{stats:?}");
    running.write_letters().unwrap();
    assert_eq!(running.dead().log().stats().live, 0);
    drop(consumer);
    running.die();
    drop(running);
    assert_eq!(open(&dir).1, 0);
    stopped::set(None);
}

#[test]
fn a_letter_that_is_withdrawn_while_its_replay_fails_is_not_counted_as_withheld() {
    let mut now = Duration::from_secs(1_000_000);
    stopped::set(Some(now));
    let dir = tempfile::tempdir().unwrap();
    let running = open(&dir).0;
    let consumer = Source::new(Arc::clone(&running));
    let mut late = Some(late(&running, &consumer, &mut now));
    let letters = DeadLetters::new(Arc::clone(&running));
    let letter = letters.iter().next().unwrap().id();
    let observer = {
        let running = Arc::clone(&running);
        move |operation, _: &Path, _| {
            if operation != Operation::Flush {
                return Ok(());
            }
            if let Some((lease, attempt, delivery)) = late.take() {
                running.ack(lease, delivery, attempt);
            }
            Err(io::ErrorKind::Other.into())
        }
    };
    faults::observe(Some((dir.path().join("log"), Box::new(observer))));
    let error = letters.replay(letter).unwrap_err();
    faults::observe(None);
    assert!(
        matches!(error, DeadLetterError::NotDurable { .. }),
        "{error}"
    );
    assert_eq!((letters.len(), letters.iter().count()), (0, 0));
    stopped::set(None);
}

#[test]
fn a_late_ack_leaves_no_letter_that_is_being_written_at_that_moment() {
    let mut now = Duration::from_secs(1_000_000);
    stopped::set(Some(now));
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let running = open(&dir).0;
    let consumer = Source::new(Arc::clone(&running));
    // The ack comes close to the moment at which the writer of letters asks whether a handler has
    // the job.
    let is_flushed = Arc::new(AtomicBool::new(false));
    let observer = {
        let is_flushed = Arc::clone(&is_flushed);
        move |_, _: &Path, moment| {
            is_flushed.store(moment == Moment::After, Ordering::Release);
            Ok(())
        }
    };
    faults::observe(Some((dir.path().join("dead"), Box::new(observer))));
    for round in 0..4000 {
        let (lease, attempt, delivery) = late(&running, &consumer, &mut now);
        is_flushed.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            let handler = scope.spawn(|| {
                while !is_flushed.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                for _ in 0..round % 100 {
                    std::hint::spin_loop();
                }
                running.ack(lease, delivery, attempt);
            });
            running.write_letters().unwrap();
            handler.join().unwrap();
        });
        assert_eq!(running.dead().stats().letters, 0, "round {round}");
    }
    faults::observe(None);
    stopped::set(None);
}

#[test]
fn a_letter_is_remembered_while_another_handler_may_still_withdraw_it() {
    let mut now = Duration::from_secs(1_000_000);
    stopped::set(Some(now));
    let dir = tempfile::tempdir().unwrap();
    let running = open(&dir).0;
    let consumer = Source::new(Arc::clone(&running));
    let (lease, attempt, delivery) = late(&running, &consumer, &mut now);
    running.write_letters().unwrap();
    let leases = running.leases().unwrap();
    let has_handler = || leases.has_handler(lease.sequence());
    running.dead().end_late(lease.job(), has_handler);
    running.ack(lease, delivery, attempt);
    assert_eq!(running.dead().stats().letters, 0);
    stopped::set(None);
}

#[test]
fn late_handlers_leave_no_letter_of_a_job_that_was_acked() {
    const JOBS: usize = 12_000;
    const HANDLERS: u64 = 6;
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let policy = RetryPolicy::fixed(Duration::from_micros(300)).max_attempts(2);
    let builder = Queue::builder(dir.path()).stripes(1).retry(policy);
    let queue = builder.lease_timeout(LEASE).open().unwrap().0;
    let acked = Mutex::new(HashSet::new());
    let is_over = AtomicBool::new(false);
    let handle = &|seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let consumer = queue.consumer();
        let mut held = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            held.extend(consumer.next_timeout(LEASE / 5));
            if held.is_empty() || held.len() <= 6 && random.u8(0..4) > 0 {
                continue;
            }
            let job = held.swap_remove(random.usize(0..held.len()));
            let id = job.id();
            match random.u8(0..10) {
                0..3 => {
                    job.ack();
                    acked.lock().insert(id);
                }
                _ => job.retry("it failed"),
            }
        }
    };
    thread::scope(|scope| {
        for seed in 0..HANDLERS {
            scope.spawn(move || (*handle)(seed));
        }
        // Writes letters all the time, as each look at letters does.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                queue.dead_letters().iter().for_each(drop);
            }
        });
        for number in 0..JOBS {
            queue.enqueue(b"job").unwrap();
            if number % 20 == 0 {
                thread::sleep(LEASE / 2);
            }
        }
        while queue.stats().depth() > 0 {
            thread::sleep(LEASE);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let acked = std::mem::take(&mut *acked.lock());
    let dead: HashSet<_> = queue
        .dead_letters()
        .iter()
        .map(|one| one.job_id())
        .collect();
    assert!(dead.is_disjoint(&acked));
    assert_eq!(dead.len() + acked.len(), JOBS);
    let dead_log = queue.engine().dead();
    assert_eq!(dead_log.stats().letters, dead.len() as u64);
    let waiting = dead_log.waiting.lock();
    assert!(waiting.late.is_empty() && waiting.acked.is_empty() && waiting.dying.is_empty());
    assert_eq!((waiting.unwritten, dead_log.failures.jobs().len()), (0, 0));
}

#[test]
fn a_letter_that_is_being_written_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(&dir).0;
    let stripe = &running.dispatch().stripes()[0];
    running.enqueue(Place::on(stripe), b"job").unwrap();
    let consumer = crate::Consumer::new(Arc::clone(&running));
    consumer.try_next().unwrap().dead_letter("no use");
    let (begun, begins) = channel();
    let (go, goes_on) = channel();
    thread::scope(|scope| {
        let (dead, running) = (dir.path().join("dead"), &running);
        scope.spawn(move || {
            // The first letter has a segment made.
            let mut once = Some((begun, goes_on));
            let observer = move |_, _: &Path, _| {
                if let Some((begun, goes_on)) = once.take() {
                    begun.send(()).unwrap();
                    goes_on.recv().unwrap();
                }
                Ok(())
            };
            faults::observe(Some((dead, Box::new(observer))));
            running.write_letters().unwrap();
            faults::observe(None);
        });
        begins.recv().unwrap();
        // The writer comes no further than to its next look at this.
        let waiting = running.dead().waiting.lock();
        go.send(()).unwrap();
        while running.dead().log().stats().appended == 0 {
            thread::yield_now();
        }
        let (log, unwritten) = running.dead().counted(&waiting);
        assert_eq!((log.live, unwritten), (1, 0));
    });
    assert_eq!(running.dead().stats().letters, 1);
}
