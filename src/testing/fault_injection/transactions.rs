//! Makes each system call of a directory of queues fail in turn while jobs are passed from one queue
//! to the other: each is in exactly one of them, whatever fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::OPERATIONS;
use super::scenes::scratch;
use crate::dispatch::source::Source;
use crate::engine::enqueue::Place;
use crate::engine::maintenance::Maintenance;
use crate::engine::{Running, transactions};
use crate::options::{Durability, EnqueueOptions};
use crate::storage::Operation;
use crate::storage::faults::{self, Effect, Plan};
use crate::testing::crash_simulation::copy_tree;
use crate::{Keep, OpenError, Queues, RetryPolicy, TransactionError};

const SEGMENT_SIZE: u64 = 16 * 1024;
/// So many that several segments are filled.
const JOBS: u64 = 60;

/// What the commit of a job's transaction returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Committed,
    Refused,
    /// Its flush has failed.
    Uncertain,
}

fn open(dir: &Path) -> Result<(Queues, [Arc<Running>; 2]), OpenError> {
    let tree = Queues::options(dir).state_segment_size(SEGMENT_SIZE);
    let tree = tree.open_idle()?;
    let open_one = |name| {
        let builder = tree.builder(name).stripes(1).segment_size(SEGMENT_SIZE);
        let policy = RetryPolicy::fixed(Duration::ZERO).unlimited_attempts();
        Ok(Arc::new(Running::open_idle(&builder.retry(policy))?.0))
    };
    let queues: Result<_, OpenError> =
        open_one("first").and_then(|first| Ok([first, open_one("second")?]));
    let queues = queues?;
    Ok((tree, queues))
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(600, 7);
    payload
}

/// The numbers of the jobs in a queue.
fn numbers_in(running: &Arc<Running>) -> Vec<u64> {
    let consumer = Source::new(Arc::clone(running));
    let mut leases = Vec::new();
    while let Some(lease) = consumer.try_next() {
        leases.push(lease);
    }
    leases.extend(running.dispatch().timer.take_all());
    let number = |payload: &[u8]| u64::from_le_bytes(*payload.first_chunk().expect("8 bytes"));
    leases.iter().map(|lease| number(lease.payload())).collect()
}

/// A directory whose first queue has all jobs.
fn start() -> tempfile::TempDir {
    let dir = scratch();
    let (tree, [first, second]) = open(dir.path()).expect("opened");
    for number in 0..JOBS {
        let place = Place::on(&first.dispatch().stripes()[0]);
        let options = EnqueueOptions::new();
        first
            .enqueue_with(place, &payload(number), &options)
            .expect("enqueued");
    }
    drop((first, second, tree));
    dir
}

/// Passes jobs on; returns what the commits returned, and the calls that were made.
fn play(dir: &Path, plans: Vec<Plan>) -> (BTreeMap<u64, Outcome>, Vec<Operation>) {
    let fault = faults::watch(dir, plans);
    let mut outcomes = BTreeMap::new();
    if let Ok((tree, queues)) = open(dir) {
        let [first, second] = &queues;
        let consumer = Source::new(Arc::clone(first));
        let mut maintenance = [Maintenance::new(), Maintenance::new()];
        for step in 0..JOBS {
            first.turn_timer();
            let Some(lease) = consumer.try_next() else {
                break;
            };
            let Some((lease, attempt, delivery)) = first.begin(lease) else {
                continue;
            };
            let number = u64::from_le_bytes(*lease.payload().first_chunk().expect("8 bytes"));
            let mut transaction = tree.transaction();
            transaction.put(&number.to_le_bytes(), b"passed on", Keep::Forever);
            transaction.add(second, &payload(number), &EnqueueOptions::new());
            if step % 5 == 0 {
                transaction.durability(Durability::Sync);
            }
            let source = transactions::Source {
                engine: first,
                lease,
                delivery,
                attempt,
            };
            let outcome = match transaction.commit_with(Some(source)) {
                Ok(_) => Outcome::Committed,
                Err(TransactionError::NotDurable(_)) => Outcome::Uncertain,
                Err(error) => {
                    let text = error.to_string();
                    assert!(!text.is_empty(), "{error:?}");
                    Outcome::Refused
                }
            };
            outcomes.insert(number, outcome);
            if step % 7 == 0 {
                tree.maintain_state();
                for (maintenance, running) in maintenance.iter_mut().zip(&queues) {
                    running.signal.kick();
                    if let Some(wake) = running.signal.take() {
                        maintenance.turn(running, &wake);
                    }
                }
            }
        }
        drop(consumer);
        // Closes the queues, and then the state log.
    }
    fault.lift();
    let calls = fault.take_calls().into_iter();
    (outcomes, calls.map(|call| call.operation).collect())
}

fn check(dir: &Path, outcomes: &BTreeMap<u64, Outcome>, context: &str) {
    let (tree, [first, second]) = match open(dir) {
        Ok(opened) => opened,
        Err(error) => panic!("{context}: does not open again: {error}"),
    };
    let mut places = BTreeMap::new();
    for (queue, running) in [&first, &second].into_iter().enumerate() {
        for number in numbers_in(running) {
            let before = places.insert(number, queue);
            assert_eq!(before, None, "{context}: job {number} is there twice");
        }
    }
    assert_eq!(
        places.len() as u64,
        JOBS,
        "{context}: jobs are lost: {places:?}"
    );
    for (number, queue) in places {
        let was = outcomes.get(&number).copied().unwrap_or(Outcome::Refused);
        let expected = match was {
            Outcome::Committed => 1,
            Outcome::Refused => 0,
            Outcome::Uncertain => queue,
        };
        assert_eq!(queue, expected, "{context}: job {number}, {was:?}");
        let value = tree.keys().get(&number.to_le_bytes());
        assert_eq!(value.is_some(), queue == 1, "{context}: key {number}");
    }
    first.die();
    second.die();
    tree.die();
}

#[test]
fn each_job_is_in_exactly_one_queue_whatever_call_fails_while_it_is_passed_on() {
    let begun = start();
    let copy = || {
        let dir = scratch();
        copy_tree(begun.path(), dir.path());
        dir
    };
    let dir = copy();
    let (outcomes, calls) = play(dir.path(), Vec::new());
    assert!(outcomes.values().all(|one| *one == Outcome::Committed));
    check(dir.path(), &outcomes, "nothing fails");
    let (mut runs, mut refused, mut uncertain) = (0, 0, 0);
    for operation in OPERATIONS {
        let errors: &[Errno] = match operation {
            Operation::Map => &[Errno::NOMEM],
            Operation::Create | Operation::Allocate => &[Errno::NOSPC, Errno::IO],
            Operation::Prefault | Operation::ReadIn => &[Errno::HWPOISON],
            _ => &[Errno::IO],
        };
        let count = calls.iter().filter(|call| **call == operation).count();
        // All early calls, those of the opens, and then every few ones.
        let chosen = (0..count).filter(|call| *call < 12 || call % 5 == 0);
        for (call, error) in chosen.flat_map(|call| errors.iter().map(move |error| (call, *error)))
        {
            for last in [call + 1, usize::MAX] {
                let dir = copy();
                let plan = Plan {
                    operation,
                    calls: call..last,
                    effect: Effect::Fail(error),
                };
                let context = format!("{operation:?} {call}..{last} fails with {error:?}");
                let (outcomes, _) = play(dir.path(), vec![plan]);
                check(dir.path(), &outcomes, &context);
                runs += 1;
                let is = |wanted| outcomes.values().any(|outcome| *outcome == wanted);
                refused += u32::from(is(Outcome::Refused));
                uncertain += u32::from(is(Outcome::Uncertain));
            }
        }
    }
    println!("{runs} runs with a failing call, {refused} with a refusal, {uncertain} not durable");
    assert!(runs > 300 && refused > 50 && uncertain > 10);
}
