//! Whose turn it is.

use super::*;

fn job(key: u64, number: u64, cost: u32) -> Waiting {
    Waiting {
        id: JobId::new(key.to_string(), number),
        cost,
        came: number,
        held: None,
    }
}

fn in_turn() -> (Lines, Weights) {
    (Lines::new(true), Weights::default())
}

/// The keys of the next jobs, in their order.
fn turns(lines: &mut Lines, weights: &Weights, most: usize) -> Vec<u64> {
    let next = std::iter::from_fn(|| lines.pop_front(weights));
    let keys = next.map(|job| job.id.queue().parse().unwrap());
    keys.take(most).collect()
}

#[test]
fn without_turns_jobs_keep_their_order() {
    let (mut lines, weights) = (Lines::new(false), Weights::default());
    for (number, key) in [1, 1, 2, 1, 3].into_iter().enumerate() {
        lines.push(key, job(key, number as u64, 7));
    }
    // It was let through before, and comes back.
    let back = job(9, 1, 1);
    lines.push(9, back);
    assert_eq!(turns(&mut lines, &weights, 9), [1, 9, 1, 2, 1, 3]);
}

#[test]
fn keys_take_turns_however_many_of_each_wait() {
    let (mut lines, weights) = in_turn();
    for (key, jobs) in [(1, 5), (2, 2), (3, 1)] {
        (0..jobs).for_each(|number| lines.push(key, job(key, number, 1)));
    }
    assert_eq!(lines.len(), 8);
    assert_eq!(turns(&mut lines, &weights, 9), [1, 2, 3, 1, 2, 1, 1, 1]);
    assert!(lines.is_empty());
    assert!(lines.front().is_none());
}

#[test]
fn a_key_with_a_weight_has_so_many_turns() {
    let (mut lines, mut weights) = in_turn();
    weights.insert(7, 3);
    for number in 0..400 {
        lines.push(1, job(1, number, 1));
        lines.push(7, job(7, number, 1));
    }
    let turns = turns(&mut lines, &weights, 400);
    let of_first = turns.iter().filter(|key| **key == 1).count();
    assert!(of_first.abs_diff(100) <= 1, "{of_first}");
    for four in turns[..396].chunks(4) {
        assert_eq!(four.iter().filter(|key| **key == 7).count(), 3);
    }
}

#[test]
fn a_job_has_as_many_turns_as_it_costs() {
    let (mut lines, weights) = in_turn();
    for number in 0..60 {
        lines.push(1, job(1, number, 5));
        lines.push(2, job(2, number, 1));
    }
    let turns = turns(&mut lines, &weights, 60);
    assert_eq!(turns.iter().filter(|key| **key == 1).count(), 10);
}

#[test]
fn who_comes_late_has_saved_up_no_turns_and_who_has_had_many_is_not_made_to_wait() {
    let (mut lines, weights) = in_turn();
    (0..200).for_each(|number| lines.push(1, job(1, number, 1)));
    turns(&mut lines, &weights, 100);
    (0..100).for_each(|number| lines.push(2, job(2, number, 1)));
    let turns = turns(&mut lines, &weights, 20);
    assert_eq!(turns.iter().filter(|key| **key == 2).count(), 10);
}

#[test]
fn a_key_whose_line_was_empty_for_a_moment_does_not_go_before_others() {
    let (mut lines, weights) = in_turn();
    lines.push(1, job(1, 0, 10));
    (0..100).for_each(|number| lines.push(2, job(2, number, 1)));
    assert_eq!(turns(&mut lines, &weights, 1), [1]);
    lines.push(1, job(1, 1, 10));
    let turns = turns(&mut lines, &weights, 12);
    let second = turns.iter().position(|key| *key == 1);
    assert!(
        second.is_some_and(|second| (9..=11).contains(&second)),
        "{turns:?}"
    );
}

#[test]
fn a_job_that_is_removed_was_not_there() {
    let (mut lines, weights) = in_turn();
    for key in [1, 2] {
        (0..2).for_each(|number| lines.push(key, job(key, number, 1)));
    }
    let id = JobId::new("1", 0);
    assert!(lines.contains(&id) && lines.find(1, &id).is_some());
    assert!(lines.remove(2, &id).is_none());
    assert!(lines.remove(1, &id).is_some());
    assert!(lines.remove(1, &id).is_none());
    assert!(!lines.contains(&id));
    assert_eq!(lines.len(), 3);
    assert_eq!(lines.front().map(|job| job.id.number()), Some(1));
    assert_eq!(lines.take_all().len(), 3);
    assert!(lines.is_empty() && turns(&mut lines, &weights, 1).is_empty());
}

/// The bound of the paper: of two keys that have both had jobs waiting throughout, neither is ahead of the
/// other by more than a job of the greatest cost of each, over its weight.
#[test]
fn no_key_that_waits_is_ahead_of_another_by_more_than_a_job_of_each() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut lines, mut weights) = in_turn();
        let keys = random.u64(2..6);
        for key in 0..keys {
            weights.insert(key, random.u32(1..5));
        }
        let cost = |random: &mut fastrand::Rng| random.u32(1..8);
        let mut had = vec![0.0_f64; keys as usize];
        let mut number = 0;
        let mut push = |lines: &mut Lines, random: &mut fastrand::Rng, key| {
            number += 1;
            lines.push(key, job(key, number, cost(random)));
        };
        for key in 0..keys {
            (0..3).for_each(|_| push(&mut lines, &mut random, key));
        }
        // Some that come and go.
        for _ in 0..2_000 {
            if random.u8(..) < 30 {
                push(&mut lines, &mut random, 100);
            }
            let next = lines.pop_front(&weights).unwrap();
            let key: u64 = next.id.queue().parse().unwrap();
            if key < keys {
                had[key as usize] += f64::from(next.cost) / f64::from(weights[&key]);
                push(&mut lines, &mut random, key);
            }
            for one in 0..keys {
                for other in 0..one {
                    let most = 7.0 / f64::from(weights[&one]) + 7.0 / f64::from(weights[&other]);
                    let ahead = (had[one as usize] - had[other as usize]).abs();
                    assert!(ahead <= most + 1e-6, "seed {seed}: {ahead} of {most}");
                }
            }
        }
    }
}
