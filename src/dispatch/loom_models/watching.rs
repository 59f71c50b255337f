//! Loom models of a consumer that naps, and of those that sleep meanwhile.

use super::{Log, Queue};
use crate::event_count::EventCount;
use crate::sync::model::{check, concurrently};

/// Models `Source::watch`, with a single look: takes one job, or none. The handler of that job never
/// ends, so whatever else there is must be left to others.
fn watch(sleepers: &EventCount, take: impl Fn() -> bool, may_have_work: impl Fn() -> bool) -> bool {
    let Some(watch) = sleepers.watch() else {
        return false;
    };
    may_have_work();
    let has_sleepers = watch.end().has_sleepers;
    let has_taken = take();
    if has_sleepers && may_have_work() {
        sleepers.notify(1);
    }
    has_taken
}

impl Queue {
    /// Takes a job after a nap, or else after a sleep.
    fn nap(&self) {
        let has_taken = watch(
            &self.sleepers,
            || self.segment.claim(),
            || self.segment.may_have_work(),
        );
        if !has_taken {
            self.sleep();
        }
    }
}

impl Log {
    fn nap(&self) {
        let has_taken = watch(
            &self.sleepers,
            || self.claiming().claim(),
            || self.may_have_work(),
        );
        if !has_taken {
            self.sleep();
        }
    }
}

#[test]
fn a_consumer_that_sleeps_is_woken_for_what_one_that_naps_has_left() {
    check(Some(3), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [Queue::nap, Queue::sleep, |queue| {
                queue.enqueue();
                queue.enqueue();
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn of_two_consumers_that_would_nap_one_sleeps_and_is_woken() {
    check(Some(3), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [Queue::nap, Queue::nap, |queue| {
                queue.enqueue();
                queue.enqueue();
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn jobs_of_two_producers_reach_one_that_naps_and_one_that_sleeps() {
    check(Some(2), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [Queue::nap, Queue::sleep, Queue::enqueue, Queue::enqueue],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn a_watch_sees_a_roll_or_the_producers_behind_it_see_the_sleepers() {
    check(Some(3), || {
        let stripe = Log::new();
        concurrently(
            &stripe,
            [Log::nap, Log::sleep, |stripe| {
                stripe.roll();
                assert!(stripe.try_enqueue());
                assert!(stripe.try_enqueue());
            }],
        );
        assert!(stripe.sleepers.is_quiet());
    });
}
