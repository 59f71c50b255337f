//! Who is woken when there is more work than one consumer takes.

use std::path::Path;
use std::time::{Duration, Instant};

use super::source::Source;
use super::*;
use crate::Sequence;
use crate::log::record::NewRecord;
use crate::log::recovery::{Recovery, RecoveryReport};
use crate::log::{LogConfig, SpaceBudget};

fn dispatch(dir: &Path) -> Arc<Dispatch> {
    const SEGMENT: u64 = 64 * 1024;
    let quarantine = dir.join("quarantine");
    let config = LogConfig {
        segment_size: SEGMENT,
        starts_ready: true,
        quarantine: quarantine.clone(),
        budget: Arc::new(SpaceBudget::new(None)),
        kick: Arc::new(|| ()),
        wake: Arc::new(|| ()),
    };
    let mut recovery = Recovery {
        segment_size: SEGMENT,
        quarantine: &quarantine,
        report: RecoveryReport::default(),
        progress: None,
        segments_seen: 0,
    };
    let origin = Sequence::first_of_stripe(0);
    let (stripe, _) = Stripe::open(&dir.join("log"), origin, config, &mut recovery).unwrap();
    let retry = RetryPolicy::fixed(Duration::ZERO);
    let sleepers = Arc::new(EventCount::new());
    let clock = Clock::start();
    let stripes = Box::new([stripe]);
    Arc::new(Dispatch::new(stripes, sleepers, clock, retry, false))
}

/// Appends jobs that are due at once and tells nobody.
fn append(dispatch: &Dispatch, jobs: u32) {
    append_due(dispatch, jobs, |_| Timestamp::ZERO);
}

fn append_due(dispatch: &Dispatch, jobs: u32, due_at: impl Fn(u32) -> Timestamp) {
    for at in 0..jobs {
        let job = NewRecord {
            enqueued_at: Timestamp::ZERO,
            due_at: due_at(at),
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

#[test]
fn whoever_claims_more_than_the_first_run_wakes_another_even_if_that_run_is_one_job() {
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
fn whoever_takes_several_jobs_that_came_back_wakes_another() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let first = Source::new(dispatch.clone());
    append(&dispatch.0, 64);
    let held = first.try_next().unwrap();
    // Its other jobs go back to all.
    drop(first);
    held.ack();
    let second = Source::new(dispatch.clone());
    // It looked while they were on their way from one place to the other.
    let _sleeper = dispatch.0.sleepers.register();
    second.try_next().unwrap().ack();
    assert_eq!(dispatch.0.sleepers.asleep(), 0);
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
fn who_keeps_a_distance_takes_what_came_back_and_claims_once_it_cannot_wait() {
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
