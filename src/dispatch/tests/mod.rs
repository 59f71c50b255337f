//! Tests of which consumers are woken, of consumers that keep a distance from a producer, and of
//! compaction.

mod clock;
mod fairness;
mod thousands;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::source::Source;
use super::*;
use crate::log::record::NewRecord;
use crate::log::recovery::{Recovery, RecoveryReport};
use crate::log::{LogConfig, SpaceBudget};
use crate::runtime::Waker;
use crate::storage::faults::{self, Effect, Plan};
use crate::storage::{Directory, Operation};
use crate::time::stopped;
use crate::{Sequence, Timestamp, WaitStrategy};

fn dispatch(dir: &Path) -> Arc<Dispatch> {
    dispatch_of(dir, false)
}

fn dispatch_of(dir: &Path, counted: bool) -> Arc<Dispatch> {
    const SEGMENT: u64 = 64 * 1024;
    let queue = Arc::new(Directory::open(dir).unwrap().unwrap());
    let sleepers = Arc::new(EventCount::new());
    let config = LogConfig {
        poison: Arc::default(),
        segment_size: SEGMENT,
        starts_ready: true,
        starts_idle: false,
        is_new: false,
        queue: Arc::clone(&queue),
        budget: Arc::new(SpaceBudget::new(None, 0)),
        kick: Arc::new(|| ()),
        sleepers: Arc::clone(&sleepers),
        lost: Arc::new(|_| ()),
    };
    let mut recovery = Recovery {
        segment_size: SEGMENT,
        queue: &queue,
        report: RecoveryReport::default(),
        progress: None,
        segments_seen: 0,
    };
    let origin = Sequence::first_of_stripe(0);
    let directory = queue.create_subdirectory("log").unwrap();
    let (stripe, _) = Log::open(directory, origin, config, &mut recovery).unwrap();
    let retry = RetryPolicy::fixed(Duration::ZERO);
    let clock = Clock::start();
    let stripes = Box::new([stripe]);
    Arc::new(Dispatch::new(
        stripes,
        sleepers,
        Waker::default(),
        clock,
        retry,
        counted,
        WaitStrategy::Sleep,
    ))
}

/// Appends jobs that are due at once, and wakes no consumer.
fn append(dispatch: &Dispatch, jobs: u32) {
    append_due(dispatch, jobs, |_| Timestamp::ZERO);
}

fn append_due(dispatch: &Dispatch, jobs: u32, due_at: impl Fn(u32) -> Timestamp) {
    for at in 0..jobs {
        let job = NewRecord {
            enqueued_at: Timestamp::ZERO,
            due_at: due_at(at),
            name: b"",
            meta: b"",
            payload: b"job",
        };
        dispatch.stripes()[0].append_shared(&job).unwrap();
    }
}

#[derive(Clone)]
struct Handle(Arc<Dispatch>);

impl AsRef<Dispatch> for Handle {
    fn as_ref(&self) -> &Dispatch {
        &self.0
    }
}

/// A job so large that four fill a segment.
const LARGE: NewRecord<'_> = NewRecord {
    enqueued_at: Timestamp::ZERO,
    due_at: Timestamp::ZERO,
    name: b"",
    meta: b"",
    payload: &[7; 15_000],
};

/// Fills a segment with four jobs, delays the first by an hour and acks the others. Returns the
/// first.
fn leave_one_waiting(dispatch: &Handle, consumer: &Source<Handle>) -> Sequence {
    for _ in 0..4 {
        dispatch.0.stripes()[0].append_shared(&LARGE).unwrap();
    }
    let first = consumer.try_next().unwrap();
    let job = first.job();
    let hour = Some(Duration::from_secs(3600));
    assert!(dispatch.0.retry(first, 1, hour, false));
    while let Some(lease) = consumer.try_next() {
        lease.ack();
    }
    job
}

#[test]
fn a_consumer_that_claims_more_than_one_run_wakes_another_even_if_the_first_is_a_single_job() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    append(&dispatch.0, 63);
    for _ in 0..63 {
        consumer.try_next().unwrap().ack();
    }
    // Runs end at multiples of 64, so that the next one is a single job.
    append(&dispatch.0, 200);
    let _sleeper = dispatch.0.sleepers.register();
    consumer.try_next().unwrap().ack();
    assert_eq!(dispatch.0.sleepers.asleep(), 0);
}

#[test]
fn a_thief_that_leaves_runs_behind_wakes_another() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let busy = Source::new(dispatch.clone());
    let thief = Source::new(dispatch.clone());
    // Four runs with one job each that is not delayed.
    let later = Timestamp::now().saturating_add(Duration::from_secs(3600));
    append_due(&dispatch.0, 256, |at| match at % 64 {
        0 => Timestamp::ZERO,
        _ => later,
    });
    busy.try_next().unwrap().ack();
    let _sleeper = dispatch.0.sleepers.register();
    thief.try_next().unwrap().ack();
    assert_eq!(dispatch.0.sleepers.asleep(), 0);
}

#[test]
fn jobs_that_a_consumer_gives_back_wake_a_sleeper_each() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let goes = Source::new(dispatch.clone());
    append(&dispatch.0, 4);
    goes.try_next().unwrap().ack();
    let _sleepers = [(); 4].map(|()| dispatch.0.sleepers.register());
    drop(goes);
    assert_eq!(dispatch.0.sleepers.asleep(), 1);
}

#[test]
fn a_consumer_that_finds_one_job_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    append(&dispatch.0, 1);
    let _sleeper = dispatch.0.sleepers.register();
    consumer.try_next().unwrap().ack();
    assert!(consumer.try_next().is_none());
    assert_eq!(dispatch.0.sleepers.asleep(), 1);
}

#[test]
fn a_consumer_that_keeps_a_distance_takes_jobs_that_came_back_and_claims_when_its_time_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    let now = Instant::now();
    let for_long = Some(now + Duration::from_secs(3600));
    consumer.own.distance.set(for_long);
    append(&dispatch.0, 1);
    assert!(dispatch.0.find(&consumer.own, true).is_none());
    let other = Source::new(dispatch.clone());
    let lease = other.try_next().unwrap();
    dispatch.0.inject(lease);
    let came_back = dispatch.0.find(&consumer.own, true);
    came_back.unwrap().ack();
    append(&dispatch.0, 1);
    assert!(dispatch.0.find(&consumer.own, true).is_none());
    let at_last = consumer.next(|| Some(now), || false);
    at_last.unwrap().ack();
    append(&dispatch.0, 1);
    consumer.try_next().unwrap().ack();
    assert_eq!(consumer.own.distance.get(), for_long);
}

#[test]
fn a_claim_of_jobs_that_are_not_due_brings_back_those_that_have_become_due() {
    const SECOND: Duration = Duration::from_secs(1);
    let start = 1000 * SECOND;
    stopped::set(Some(start));
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    let append_due_at = |due: Duration| {
        append_due(&dispatch.0, 1, |_| {
            Timestamp::from_nanos(due.as_nanos() as u64)
        })
    };
    append_due_at(start + SECOND);
    assert!(consumer.try_next().is_none());
    stopped::set(Some(start + SECOND));
    // The job is due, but the timer does not run.
    assert!(consumer.try_next().is_none());
    append_due_at(start + 2 * SECOND);
    consumer.try_next().unwrap().ack();
    assert!(consumer.try_next().is_none());
    assert_eq!(dispatch.0.timer.len(), 1);
    stopped::set(None);
}

#[test]
fn a_consumer_that_finds_ten_jobs_in_each_claim_begins_to_keep_a_distance() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    let take = |jobs| {
        append(&dispatch.0, jobs);
        for _ in 0..jobs {
            consumer.try_next().unwrap().ack();
        }
        consumer.own.distance.take().is_some()
    };
    assert_eq!([10, 10, 10, 10].map(take), [false, false, false, true]);
    assert_eq!([10, 10, 10].map(take), [false; 3]);
    // The producer pauses.
    assert!(consumer.try_next().is_none());
    assert_eq!([10, 1, 10, 10, 10].map(take), [false; 5]);
    assert!(take(10));
}

#[test]
fn a_moved_job_keeps_its_failed_attempts_and_crashes_and_is_a_suspect_again() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    let stripe = &dispatch.0.stripes()[0];
    let later = dispatch.0.clock.now();
    let later = later.saturating_add(Duration::from_secs(3600));
    // As if an earlier process had moved it, with its two crashes.
    let meta = crate::log::meta::Meta {
        prior_attempts: 1,
        prior_crashes: 2,
        ..Default::default()
    };
    let meta = meta.encode(&[], 100);
    let payload = [7; 15_000];
    for _ in 0..4 {
        for at in 0..4 {
            let job = NewRecord {
                enqueued_at: Timestamp::ZERO,
                due_at: Timestamp::ZERO,
                name: b"",
                meta: if at == 0 { &meta } else { b"" },
                payload: &payload,
            };
            stripe.append_shared(&job).unwrap();
        }
        let first = consumer.try_next().unwrap();
        first.begin_delivery();
        first.count_failure(false);
        let scheduled = dispatch
            .0
            .timer
            .schedule(first, When::After(later), false, |_| false);
        assert!(matches!(scheduled, Scheduled::Waits));
        while let Some(lease) = consumer.try_next() {
            lease.ack();
        }
    }
    // Closes the last of these segments.
    append(&dispatch.0, 1);
    let large = NewRecord {
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
        name: b"",
        meta: b"",
        payload: &payload,
    };
    stripe.append_shared(&large).unwrap();
    while let Some(lease) = consumer.try_next() {
        lease.ack();
    }
    dispatch.0.compact(false).unwrap();
    assert!(consumer.try_next().is_none());
    let copies = dispatch.0.timer.take_all();
    assert_eq!((copies.len(), stripe.stats().live), (4, 4));
    for copy in copies {
        assert_eq!((copy.failed(), copy.crashes()), (2, 2));
        assert!(copy.is_suspect());
        copy.ack();
    }
}

#[test]
fn compaction_does_not_move_a_job_that_a_handler_may_still_ack() {
    let dir = tempfile::tempdir().unwrap();
    // With a lease timeout, a job that has timed out waits for its retry while a handler still has
    // it.
    let dispatch = Handle(dispatch_of(dir.path(), true));
    let consumer = Source::new(dispatch.clone());
    let stripe = &dispatch.0.stripes()[0];
    let now = dispatch.0.clock.now();
    let later = When::After(now.saturating_add(Duration::from_secs(3600)));
    // Each segment has four jobs, one of which is delayed.
    let large = NewRecord {
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
        name: b"",
        meta: b"",
        payload: &[7; 15_000],
    };
    let mut waiting = Vec::new();
    let mut late = Vec::new();
    for segment in 0..5 {
        for _ in 0..4 {
            stripe.append_shared(&large).unwrap();
        }
        let first = consumer.try_next().unwrap();
        let is_late = segment == 2;
        if is_late {
            late.extend(first.duplicate());
        } else {
            waiting.push(first.job());
        }
        let scheduled = dispatch.0.timer.schedule(first, later, is_late, |_| false);
        assert!(matches!(scheduled, Scheduled::Waits));
        while let Some(lease) = consumer.try_next() {
            lease.ack();
        }
    }
    // Closes the last of these segments.
    stripe.append_shared(&large).unwrap();
    consumer.try_next().unwrap().ack();
    let appended = stripe.stats().appended;
    assert!(dispatch.0.compact(false).unwrap());
    assert_eq!(stripe.stats().appended, appended + 4);
    assert_eq!(stripe.stats().live, 5);
    // The copies are not due either.
    assert!(consumer.try_next().is_none());
    let late = late.remove(0);
    let sequence = late.sequence();
    assert!(late.ack().first);
    assert!(dispatch.0.timer.take_late(sequence).is_some());
    let copies = dispatch.0.timer.take_all();
    let mut moved: Vec<_> = copies.iter().map(Lease::job).collect();
    moved.sort();
    assert_eq!(moved, waiting);
    assert_eq!(stripe.stats().live, 4);
}

#[test]
fn where_room_is_short_waiting_jobs_are_moved_into_the_reserve_segment() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    let stripe = &dispatch.0.stripes()[0];
    let jobs = [(); 2].map(|()| leave_one_waiting(&dispatch, &consumer));
    // The second segment is not full, but has no room for another of these jobs.
    let before = stripe.active().base();
    assert!(!dispatch.0.compact(false).unwrap());
    assert!(dispatch.0.compact(true).unwrap());
    assert!(stripe.active().base() > before);
    assert!(consumer.try_next().is_none());
    // The second segment was closed by that, so its job can move into the reserve segment, too.
    let reserved = stripe.active().base();
    assert!(dispatch.0.compact(true).unwrap());
    assert_eq!(stripe.active().base(), reserved);
    assert!(consumer.try_next().is_none());
    assert!(!dispatch.0.compact(true).unwrap());
    let mut moved = dispatch.0.timer.jobs();
    moved.sort();
    assert_eq!(moved, jobs);
    stripe.reclaim().unwrap();
    assert_eq!(stripe.stats().segments, 1);
}

#[test]
fn nothing_is_left_of_copies_whose_segment_could_not_be_renamed_whatever_the_rename_has_done() {
    let effects = [Effect::Fail(Errno::IO), Effect::FailAfter(Errno::IO)];
    for (effect, call) in effects
        .into_iter()
        .flat_map(|effect| [(effect, 0), (effect, 1)])
    {
        let dir = tempfile::tempdir().unwrap();
        let dispatch = Handle(dispatch(dir.path()));
        let consumer = Source::new(dispatch.clone());
        let stripe = &dispatch.0.stripes()[0];
        let large = NewRecord {
            enqueued_at: Timestamp::ZERO,
            due_at: Timestamp::ZERO,
            name: b"",
            meta: b"",
            payload: &[7; 15_000],
        };
        stripe.append_shared(&large).unwrap();
        let first = consumer.try_next().unwrap();
        let hour = Some(Duration::from_secs(3600));
        assert!(dispatch.0.retry(first, 1, hour, false));
        for _ in 0..7 {
            stripe.append_shared(&large).unwrap();
        }
        while let Some(lease) = consumer.try_next() {
            lease.ack();
        }
        let plan = Plan {
            operation: Operation::Rename,
            calls: call..call + 1,
            effect,
        };
        let fault = faults::watch(dir.path(), vec![plan]);
        assert!(dispatch.0.compact(true).is_err());
        // The job is still where it was, and may be acked there, so no copy of it may be left.
        assert_eq!(stripe.stray_file(), None, "{effect:?} {call}");
        assert_eq!((dispatch.0.timer.len(), stripe.stats().live), (1, 1));
        drop(fault);
    }
}

#[test]
fn copies_that_could_not_be_flushed_are_still_brought_to_a_consumer() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    let stripe = &dispatch.0.stripes()[0];
    leave_one_waiting(&dispatch, &consumer);
    stripe.append_shared(&LARGE).unwrap();
    consumer.try_next().unwrap().ack();
    let _asleep = dispatch.0.sleepers.register();
    assert_eq!(dispatch.0.sleepers.asleep(), 1);
    let fault = faults::fail_flushes(stripe.active().paths().segment.path());
    assert!(dispatch.0.compact(true).is_err());
    drop(fault);
    // Nothing else would wake a consumer to claim the copy.
    assert_eq!(dispatch.0.sleepers.asleep(), 0);
    assert!(consumer.try_next().is_none());
    assert_eq!(dispatch.0.timer.len(), 1);
}

/// A segment may be sealed at any moment, and an open does not look for settlements in a sealed
/// segment.
#[test]
fn copies_owe_a_settlement_until_the_old_records_are_durably_done() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    let stripe = &dispatch.0.stripes()[0];
    let old = stripe.active();
    leave_one_waiting(&dispatch, &consumer);
    stripe.append_shared(&LARGE).unwrap();
    consumer.try_next().unwrap().ack();
    stripe.flush(true).unwrap();
    let fault = faults::fail_flushes(old.paths().ack.path());
    assert!(dispatch.0.compact(true).is_err());
    drop(fault);
    assert!(!stripe.active().owes_nothing());
}

#[test]
fn a_roll_wakes_no_more_than_one_for_each_job() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let _sleepers = [(); 10].map(|()| dispatch.0.sleepers.register());
    let large = NewRecord {
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
        name: b"",
        meta: b"",
        payload: &[7; 15_000],
    };
    // The fifth job begins another segment.
    for _ in 0..5 {
        dispatch.0.stripes()[0].append_shared(&large).unwrap();
        dispatch.0.sleepers.notify(1);
    }
    assert_eq!(dispatch.0.sleepers.asleep(), 5);
}
