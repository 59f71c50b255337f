//! Tests of guarantee 11, transactions are all or nothing, with processes that die of `kill -9`.
//!
//! What a power cut leaves is tested by the simulation in
//! `src/testing/crash_simulation/transactions/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use logmill::{
    Durability, EnqueueOptions, Failure, Job, Keep, Queue, Queues, RetryPolicy, Transaction,
};

use crate::support::*;

/// Jobs go from each queue to the next one, some of them not from the second.
const NAMES: [&str; 3] = ["first", "second", "third"];
const PER_LIFE: u64 = 1_000_000;

fn open_all(dir: &Path) -> (Queues, [Queue; 3]) {
    let queues = Queues::options(dir)
        .state_segment_size(SEGMENT)
        .open()
        .unwrap();
    assert!(queues.recovery().is_clean(), "{:?}", queues.recovery());
    let open_one = |name| {
        let builder = queues.builder(name).segment_size(SEGMENT).stripes(2);
        let policy = RetryPolicy::fixed(Duration::ZERO).unlimited_attempts();
        open_after_kill(builder.max_depth(500).retry(policy.max_crashes(15)))
    };
    let all = NAMES.map(open_one);
    (queues, all)
}

/// A child: lets jobs go from queue to queue until it is killed.
pub(crate) fn pass_on_until_killed(dir: &Path) {
    let (queues, [first, second, third]) = open_all(&dir.join("data"));
    let life: u64 = fs::read_to_string(dir.join("life"))
        .unwrap()
        .parse()
        .unwrap();
    let pass_on = |from: &Queue, to: &Queue, is_last: fn(u64) -> bool| {
        let (queues, to) = (queues.clone(), to.clone());
        let handler = move |job: &Job<'_>| -> Result<Transaction, Failure> {
            let number = number_in(job.payload());
            if is_last(number) {
                return Err(Failure::snooze(Duration::from_millis(500)));
            }
            let mut transaction = queues.transaction();
            transaction.enqueue(&to, job.payload()).put(
                &number.to_le_bytes(),
                to_name(&to),
                Keep::Forever,
            );
            if number.is_multiple_of(7) {
                transaction.durability(Durability::Sync);
            }
            Ok(transaction)
        };
        from.workers(2).run(handler).unwrap()
    };
    let _first = pass_on(&first, &second, |_| false);
    let _second = pass_on(&second, &third, |number| number % 2 == 0);
    let mut journal = Journal::append_to(&dir.join("journal"));
    for number in life * PER_LIFE.. {
        let options = EnqueueOptions::new().wait(Duration::from_millis(50));
        let payload = payload_of(number, 50);
        if first.enqueue_with(&payload, options).is_ok() {
            journal.note(number);
        }
        // Nothing takes jobs out at the end, so they are many after a while.
        if third.stats().depth() + second.stats().depth() > 800 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn to_name(queue: &Queue) -> &[u8] {
    let name = queue.path().file_name().expect("it has a name");
    name.as_encoded_bytes()
}

#[test]
fn a_job_that_goes_from_queue_to_queue_is_in_exactly_one_of_them_after_any_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for life in 0..8 {
        fs::write(dir.path().join("life"), life.to_string()).unwrap();
        let mut child = Child::start("pass on", dir.path());
        let journal = dir.path().join("journal");
        let before = fs::metadata(&journal).map_or(0, |found| found.len());
        child.wait_until("some jobs are enqueued", || {
            fs::metadata(&journal).is_ok_and(|found| found.len() > before + 200)
        });
        std::thread::sleep(Duration::from_millis(random.u64(0..80)));
        child.kill();
    }
    let data = dir.path().join("data");
    let enqueued = Journal::read(&dir.path().join("journal"));
    let (queues, all) = open_all(&data);
    let mut places = BTreeMap::new();
    for (queue, name) in all.iter().zip(NAMES) {
        for number in drain_numbers(queue) {
            let before = places.insert(number, name);
            assert_eq!(before, None, "job {number} is there twice");
        }
    }
    for number in &enqueued {
        assert!(places.contains_key(number), "job {number} is lost");
    }
    let keys = queues.keys();
    let mut passed = [0; 3];
    for (number, name) in &places {
        let at = NAMES.iter().position(|other| other == name).unwrap();
        passed[at] += 1;
        let value = keys.get(&number.to_le_bytes());
        let value = value.as_ref().map(|value| value.as_bytes());
        assert_eq!(value, (at > 0).then_some(name.as_bytes()), "job {number}");
    }
    assert!(passed[1] > 0 && passed[2] > 0, "{passed:?}");
}
