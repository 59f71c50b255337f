//! Tests that with thousands of consumers the work for a job does not grow with their number, and
//! that no job is lost.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

fn visits(dispatch: &Dispatch) -> u64 {
    dispatch.consumers.visits.swap(0, Relaxed)
}

fn take(consumer: &Source<Handle>) {
    consumer.try_next().expect("a job waits").ack();
}

fn consumers(dispatch: &Handle, count: usize) -> Vec<Source<Handle>> {
    (0..count).map(|_| Source::new(dispatch.clone())).collect()
}

#[test]
fn idle_consumers_add_no_visits() {
    let cost = |count| {
        let dir = tempfile::tempdir().unwrap();
        let dispatch = Handle(dispatch(dir.path()));
        let consumers = consumers(&dispatch, count);
        append(&dispatch.0, 200);
        // Every `count / 20`th consumer takes jobs, mostly by stealing. The others do nothing.
        for _ in 0..10 {
            consumers.iter().step_by(count / 20).for_each(take);
        }
        assert!(consumers[1].try_next().is_none());
        assert!(!dispatch.0.may_have_work());
        visits(&dispatch.0)
    };
    let few = cost(20);
    assert!(few > 0);
    assert_eq!(cost(4000), few);
}

#[test]
fn stealing_from_thousands_of_busy_consumers_takes_at_most_two_visits_a_job() {
    for count in [10, 4000] {
        let dir = tempfile::tempdir().unwrap();
        let dispatch = Handle(dispatch(dir.path()));
        let busy = consumers(&dispatch, count);
        // Each has one job in work, and one more that can be stolen.
        for consumer in &busy {
            append(&dispatch.0, 2);
            take(consumer);
        }
        let idle = Source::new(dispatch.clone());
        visits(&dispatch.0);
        for _ in 0..count {
            take(&idle);
        }
        let visits = visits(&dispatch.0);
        assert!(
            visits <= 2 * count as u64,
            "{visits} visits for {count} jobs"
        );
        assert!(idle.try_next().is_none());
    }
}

#[test]
fn consumers_that_come_and_go_leave_nothing_behind_and_take_nothing_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let mut present = consumers(&dispatch, 200);
    let mut done = 0;
    for round in 0..3000 {
        append(&dispatch.0, 2);
        take(&present[round % 200]);
        done += 1;
        // The consumer that is replaced gives its other job back for all, and its place is reused.
        present[round % 200] = Source::new(dispatch.clone());
    }
    present.truncate(1);
    while let Some(lease) = present[0].try_next() {
        lease.ack();
        done += 1;
    }
    assert_eq!(done, 6000);
    assert_eq!(dispatch.0.queued(), 0);
}
