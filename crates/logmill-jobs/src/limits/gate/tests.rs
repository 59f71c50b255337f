//! What a gate lets through, and what it remembers.

use std::time::Duration;

use super::*;
use crate::secs;

fn new(limit: Limit) -> Gate {
    Gate::new(limit, Weights::default(), Clock::default(), Arc::default())
}

/// Takes places until there is none, and returns how many there were.
fn places(gate: &Gate, key: u64, now: Instant) -> u32 {
    let mut state = gate.state.lock();
    let bucket = state.bucket(key, &gate.limit, now);
    let mut places = 0;
    while bucket.refusal(&gate.limit, now, 1).is_none() && places < 1000 {
        bucket.take(&gate.limit, now, 1);
        places += 1;
    }
    places
}

#[test]
fn a_rate_lets_through_what_it_says_in_any_period() {
    let gate = new(Limit::on_queue("q").rate(10, secs(1)).burst(3));
    let start = Instant::now();
    assert_eq!(places(&gate, 0, start), 3);
    let mut later = 0;
    for tick in 1..=1000 {
        later += places(&gate, 0, start + Duration::from_millis(tick));
    }
    assert_eq!(later, 10);
    // After a long pause, no more than the burst.
    assert_eq!(places(&gate, 0, start + secs(100)), 3);
}

#[test]
fn a_number_at_once_is_one_of_each_key() {
    let gate = new(Limit::on_queue("q").by_key().at_once(2));
    let now = Instant::now();
    assert_eq!((places(&gate, 1, now), places(&gate, 2, now)), (2, 2));
    gate.give_back(1, 1, Ended::Begun);
    assert_eq!((places(&gate, 1, now), places(&gate, 2, now)), (1, 0));
}

#[test]
fn keys_that_are_idle_are_forgotten() {
    let gate = new(Limit::on_queue("q").by_key().rate(1, secs(1)));
    let start = Instant::now();
    for key in 0..100_000 {
        let now = start + Duration::from_millis(key);
        assert_eq!(places(&gate, key, now), 1);
    }
    let left = gate.state.lock().buckets.len();
    assert!(left < 5000, "{left}");
}

#[test]
fn a_place_that_is_given_back_does_not_open_a_key_that_is_closed() {
    let limit = Limit::on_queue("q").rate(1, secs(60));
    for limit in [limit, Limit::on_queue("q").at_once(1)] {
        let gate = new(limit);
        let now = Instant::now();
        assert_eq!(places(&gate, 0, now), 1);
        gate.close(0, now + secs(600));
        gate.give_back(0, 1, Ended::LetThrough);
        assert_eq!(gate.arrive(0, 1), Arrived::Closed);
        assert_eq!(places(&gate, 0, now + secs(599)), 0);
        assert_eq!(places(&gate, 0, now + secs(601)), 1);
    }
}

#[test]
fn jobs_that_come_to_a_closed_key_give_back_no_burst_for_its_end() {
    let gate = new(Limit::on_queue("q").rate(1, secs(1)).burst(5));
    let now = Instant::now();
    // Five are let through, and come late.
    assert_eq!(places(&gate, 0, now), 5);
    gate.close(0, now + secs(60));
    for _ in 0..5 {
        assert_eq!(gate.arrive(0, 1), Arrived::Closed);
        gate.give_back(0, 1, Ended::LetThrough);
    }
    assert_eq!(places(&gate, 0, now + secs(60)), 1);
    assert_eq!(places(&gate, 0, now + secs(61)), 1);
}

#[test]
fn jobs_that_come_late_to_a_key_that_was_forgotten_do_not_begin_together() {
    let gate = new(Limit::on_kind("k").by_key().rate(1, secs(3600)));
    let now = Instant::now();
    // Ten are let through in time, and do not come: their queue is paused.
    let hours = (0..10).map(|hour| places(&gate, 0, now + secs(hour * 3600)));
    assert_eq!(hours.sum::<u32>(), 10);
    for key in 1..200 {
        places(&gate, key, now + secs(24 * 3600));
    }
    assert!(!gate.state.lock().buckets.contains_key(&0));
    let arrived = (0..10).map(|_| gate.arrive(0, 1));
    // One more than the burst, as others begin late.
    assert_eq!(arrived.filter(|one| *one == Arrived::Begins).count(), 2);
}
