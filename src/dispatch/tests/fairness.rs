//! Tests that jobs that came back, new jobs, and jobs that a stuck consumer has claimed do not hold
//! each other up.

use super::*;

/// For each of the jobs taken, in order: whether it came back, or was new.
struct Taken(Vec<bool>);

impl Taken {
    /// Takes `jobs` jobs. Those below `first_new` count as come back.
    fn by(consumer: &Source<Handle>, jobs: usize, first_new: Sequence) -> Self {
        let take = |_| {
            let lease = consumer.try_next().expect("a job waits");
            let came_back = lease.sequence() < first_new;
            lease.ack();
            came_back
        };
        Self((0..jobs).map(take).collect())
    }

    fn came_back(&self) -> usize {
        self.0.iter().filter(|&&came_back| came_back).count()
    }

    fn alternates(&self) -> bool {
        self.0.windows(2).all(|pair| pair[0] != pair[1])
    }
}

fn take(consumer: &Source<Handle>, jobs: u32) -> Vec<Lease> {
    let leases: Vec<_> = (0..jobs).map_while(|_| consumer.try_next()).collect();
    assert_eq!(leases.len(), jobs as usize);
    leases
}

/// Appends new jobs, and returns the sequence of the first.
fn append_new(dispatch: &Dispatch, jobs: u32) -> Sequence {
    let first = dispatch.stripes()[0].active();
    let first = first.sequence(first.reached().index);
    append(dispatch, jobs);
    first
}

#[test]
fn while_both_wait_a_consumer_takes_jobs_that_came_back_and_new_jobs_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    // New jobs in all places: leases of the consumer, claimed runs, and the log.
    for claimed in [0, 10, 60, 150] {
        append(&dispatch.0, 150 + claimed);
        let back = take(&consumer, 150);
        let first_new = back.iter().map(Lease::sequence).max().unwrap().plus(1);
        append(&dispatch.0, 150 - claimed);
        dispatch.0.inject_all(back);
        let taken = Taken::by(&consumer, 300, first_new);
        assert!(taken.alternates(), "{claimed} claimed: {:?}", taken.0);
        assert!(consumer.try_next().is_none());
    }
}

#[test]
fn jobs_that_come_back_again_and_again_hold_up_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumers: Vec<_> = (0..3).map(|_| Source::new(dispatch.clone())).collect();
    append(&dispatch.0, 100);
    dispatch.0.inject_all(take(&consumers[0], 100));
    let first_new = append_new(&dispatch.0, 30);
    let mut new = 0;
    // Each consumer fails what came back, without a backoff.
    for _ in 0..20 {
        for consumer in &consumers {
            let lease = consumer.try_next().unwrap();
            if lease.sequence() < first_new {
                dispatch.0.retry(lease, 1, None, false);
            } else {
                lease.ack();
                new += 1;
            }
        }
    }
    assert_eq!(new, 30, "half of the 60 jobs taken should be new");
    for lease in take(&consumers[0], 100) {
        lease.ack();
    }
}

#[test]
fn new_jobs_that_never_end_hold_up_none_that_came_back() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumers: Vec<_> = (0..3).map(|_| Source::new(dispatch.clone())).collect();
    append(&dispatch.0, 30);
    let back = take(&consumers[0], 30);
    // Each consumer has claimed some new jobs, and there are always more.
    let first_new = append_new(&dispatch.0, 1000);
    for consumer in &consumers {
        take(consumer, 1)
            .into_iter()
            .for_each(|lease| _ = lease.ack());
    }
    dispatch.0.inject_all(back);
    for consumer in &consumers {
        let taken = Taken::by(consumer, 20, first_new);
        assert_eq!(taken.came_back(), 10, "{:?}", taken.0);
    }
}

#[test]
fn jobs_that_a_consumer_gave_back_and_new_jobs_are_taken_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    append(&dispatch.0, 101);
    let gone = Source::new(dispatch.clone());
    take(&gone, 1).into_iter().for_each(|lease| _ = lease.ack());
    drop(gone);
    let first_new = append_new(&dispatch.0, 100);
    let consumer = Source::new(dispatch.clone());
    let taken = Taken::by(&consumer, 200, first_new);
    assert!(taken.alternates(), "{:?}", taken.0);
}

#[test]
fn jobs_that_are_not_due_hold_up_none_that_came_back() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let consumer = Source::new(dispatch.clone());
    append(&dispatch.0, 2);
    let back = take(&consumer, 2);
    let later = Timestamp::now().saturating_add(Duration::from_secs(3600));
    append_due(&dispatch.0, 500, |_| later);
    dispatch.0.inject_all(back);
    for _ in 0..2 {
        consumer.try_next().unwrap().ack();
        assert!(
            dispatch.0.timer.len() < 500,
            "all jobs that are not due were claimed before it"
        );
    }
    assert!(consumer.try_next().is_none());
}

#[test]
fn jobs_claimed_by_a_stuck_consumer_do_not_wait_for_the_end_of_a_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    append(&dispatch.0, 256);
    let stuck = Source::new(dispatch.clone());
    let held = stuck.try_next().unwrap();
    let behind = held.sequence().plus(255);
    let consumers = [(); 3].map(|()| Source::new(dispatch.clone()));
    // The backlog stays far longer than one claim.
    append(&dispatch.0, 3000);
    let mut left = 255;
    for _ in 0..60_000 {
        if left == 0 {
            break;
        }
        append(&dispatch.0, 3);
        for consumer in &consumers {
            let lease = consumer.try_next().unwrap();
            left -= u32::from(lease.sequence() <= behind);
            lease.ack();
        }
    }
    assert_eq!(left, 0, "claimed jobs waited for the end of the backlog");
    held.ack();
}

#[test]
fn what_a_stuck_consumer_has_claimed_is_taken_with_and_without_a_barrier_for_its_thread() {
    for shares in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let dispatch = Handle(dispatch(dir.path()));
        dispatch.0.shares.store(shares, Ordering::Relaxed);
        let stuck = Source::new(dispatch.clone());
        let others = [Source::new(dispatch.clone()), Source::new(dispatch.clone())];
        append(&dispatch.0, 250);
        let mut taken = take(&stuck, 1);
        assert_eq!(stuck.own.at_hand.len() > 0, !shares);
        for other in others.iter().cycle() {
            match other.try_next() {
                Some(lease) => taken.push(lease),
                None => break,
            }
        }
        // One of the two may have what the other looked for.
        taken.extend(
            others
                .iter()
                .flat_map(|other| std::iter::from_fn(|| other.try_next())),
        );
        let mut sequences: Vec<_> = taken.iter().map(Lease::sequence).collect();
        sequences.sort();
        sequences.dedup();
        assert_eq!((taken.len(), sequences.len()), (250, 250));
        assert!(stuck.try_next().is_none());
        assert_eq!(dispatch.0.queued(), 0);
    }
}

#[test]
fn where_the_kernel_refuses_the_barrier_idle_consumers_sleep_and_all_leases_are_shared() {
    let dir = tempfile::tempdir().unwrap();
    let dispatch = Handle(dispatch(dir.path()));
    let (stuck, other) = (Source::new(dispatch.clone()), Source::new(dispatch.clone()));
    append(&dispatch.0, 3);
    let mut taken = take(&stuck, 1);
    dispatch.0.gate.always_fence();
    assert!(other.try_next().is_none());
    assert!(!dispatch.0.may_have_work(), "the other one would not sleep");
    assert_eq!(dispatch.0.queued(), 2);
    taken.extend(take(&stuck, 2));
    append(&dispatch.0, 3);
    taken.extend(take(&stuck, 1));
    taken.extend(take(&other, 2));
    assert_eq!(taken.len(), 6);
}
