//! Loom models of a consumer that naps, and of those that sleep meanwhile.

use std::sync::Arc;

use super::{Log, Queue, Segment, sleep};
use crate::event_count::EventCount;
use crate::sync::model::{check, concurrently};

/// Models `Source::watch`, with a single look: takes one job, or none. The handler of that job never
/// ends, so whatever else there is must be left to others.
fn watch(
    sleepers: &EventCount,
    take: impl Fn() -> bool,
    may_have_work: impl Fn() -> bool,
    most_unclaimed: impl Fn() -> usize,
) -> bool {
    let Some(watch) = sleepers.watch() else {
        return false;
    };
    may_have_work();
    let has_sleepers = watch.end().has_sleepers;
    let has_taken = take();
    if has_sleepers {
        sleepers.notify(most_unclaimed());
    }
    has_taken
}

impl Segment {
    /// Models `Log::most_unclaimed`: here, all that it has room for.
    fn most_unclaimed(&self) -> usize {
        let left = self.commit_words.len() - self.cursor.position().index as usize;
        if self.may_have_work() { left } else { 0 }
    }
}

impl Queue {
    /// Takes a job after a nap, or else after a sleep.
    fn nap(&self) {
        let has_taken = watch(
            &self.sleepers,
            || self.segment.claim(),
            || self.segment.may_have_work(),
            || self.segment.most_unclaimed(),
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
            || usize::from(self.may_have_work()),
        );
        if !has_taken {
            self.sleep();
        }
    }
}

/// A model of a queue with two stripes, whose producers reserve on two tails.
struct Stripes {
    segments: [Segment; 2],
    sleepers: EventCount,
}

impl Stripes {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            segments: [Segment::new(1), Segment::new(1)],
            sleepers: EventCount::new(),
        })
    }

    fn enqueue(&self, stripe: usize) {
        assert!(self.segments[stripe].append());
        self.sleepers.notify(1);
    }

    fn take(&self) -> bool {
        self.segments.iter().any(Segment::claim)
    }

    /// Models `Dispatch::may_have_work`.
    fn may_have_work(&self) -> bool {
        self.segments.iter().any(Segment::may_have_work)
    }

    fn nap(&self) {
        let most_unclaimed = || self.segments.iter().map(Segment::most_unclaimed).sum();
        let has_taken = watch(
            &self.sleepers,
            || self.take(),
            || self.may_have_work(),
            most_unclaimed,
        );
        if !has_taken {
            self.sleep();
        }
    }

    fn sleep(&self) {
        sleep(&self.sleepers, || self.take(), || self.may_have_work());
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

#[test]
fn jobs_on_two_tails_reach_one_that_naps_and_one_that_sleeps() {
    check(Some(2), || {
        let stripes = Stripes::new();
        concurrently(
            &stripes,
            [
                Stripes::nap,
                Stripes::sleep,
                |stripes| stripes.enqueue(0),
                |stripes| stripes.enqueue(1),
            ],
        );
        assert!(stripes.sleepers.is_quiet());
    });
}

#[test]
fn one_producer_on_two_tails_is_seen_by_one_that_naps_and_one_that_sleeps() {
    check(Some(3), || {
        let stripes = Stripes::new();
        concurrently(
            &stripes,
            [Stripes::nap, Stripes::sleep, |stripes| {
                stripes.enqueue(1);
                stripes.enqueue(0);
            }],
        );
        assert!(stripes.sleepers.is_quiet());
    });
}

#[test]
fn two_that_sleep_are_woken_for_what_one_that_naps_has_left() {
    check(Some(2), || {
        let queue = Queue::new(3);
        concurrently(
            &queue,
            [Queue::nap, Queue::sleep, Queue::sleep, |queue| {
                queue.enqueue();
                queue.enqueue();
                queue.enqueue();
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}
