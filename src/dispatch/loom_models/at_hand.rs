//! Loom models of a consumer that takes its leases while others take some of them.

use std::sync::Arc;

use loom::thread;

use crate::dispatch::at_hand::{AtHand, Taker};
use crate::dispatch::gate::Gate;
use crate::sync::model::check;

fn fill(own: &AtHand<u32>, values: std::ops::Range<u32>) {
    let mut filling = own.fill().expect("nothing is at hand");
    for value in values {
        filling.push(value).unwrap();
    }
}

fn pop_all(own: &AtHand<u32>) -> Vec<u32> {
    std::iter::from_fn(|| own.pop()).collect()
}

fn take(taker: &Taker<u32>, gate: &Gate) -> Vec<u32> {
    let mut taken = Vec::new();
    taker.take(gate, &mut taken).unwrap();
    taken
}

/// An owner with this many at hand, which does `work`, and thieves that take that often each.
/// Returns what was taken in order.
fn run(filled: u32, work: fn(&AtHand<u32>) -> Vec<u32>, thieves: usize, times: usize) -> Vec<u32> {
    let (own, taker) = AtHand::new();
    fill(&own, 0..filled);
    let shared = Arc::new((taker, Gate::new()));
    let thieves: Vec<_> = (0..thieves)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (taker, gate) = &*shared;
                (0..times)
                    .flat_map(|_| take(taker, gate))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut all = work(&own);
    for thief in thieves {
        all.extend(thief.join().unwrap());
    }
    // What was left to the owner by a thief that came last.
    all.extend(pop_all(&own));
    all.sort();
    all
}

#[test]
fn of_two_at_hand_each_is_taken_once_by_the_owner_or_a_thief() {
    check(None, || assert_eq!(run(2, pop_all, 1, 1), [0, 1]));
}

#[test]
fn the_last_one_at_hand_is_taken_once_though_a_thief_comes_twice() {
    check(None, || assert_eq!(run(1, pop_all, 1, 2), [0]));
}

#[test]
fn of_three_at_hand_each_is_taken_once_by_the_owner_or_two_thieves() {
    check(Some(3), || assert_eq!(run(3, pop_all, 2, 1), [0, 1, 2]));
}

#[test]
fn what_the_owner_adds_while_a_thief_is_at_work_is_taken_once() {
    let work = |own: &AtHand<u32>| {
        let mut all = pop_all(own);
        fill(own, 2..5);
        all.extend(pop_all(own));
        all
    };
    check(Some(3), move || {
        assert_eq!(run(2, work, 1, 2), [0, 1, 2, 3, 4]);
    });
}

#[test]
fn a_slot_is_filled_again_only_after_a_thief_has_read_it() {
    check(None, || {
        let (own, taker) = AtHand::new();
        fill(&own, 0..1);
        let thief = thread::spawn(move || take(&taker, &Gate::new()));
        while own.len() > 0 {
            thread::yield_now();
        }
        fill(&own, 1..2);
        let mut all = thief.join().unwrap();
        all.extend(pop_all(&own));
        assert_eq!(all, [0, 1]);
    });
}
