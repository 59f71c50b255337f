//! Unit tests of the state log.

mod keys;

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;

use crate::dispatch::gate::Gate;
use crate::dispatch::lease_timeouts::Delivery;
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::delivery::Attempt;
use crate::engine::enqueue::Place;
use crate::engine::letters::letters_of;
use crate::engine::maintenance::Maintenance;
use crate::engine::transactions;
use crate::failure::Failure;
use crate::log::lease::Lease;
use crate::log::record::RECORD_HEADER_BYTES;
use crate::options::{Durability, EnqueueOptions};
use crate::storage::Operation;
use crate::storage::faults::{self, Effect, Fault, Moment, Plan};
use crate::time::stopped;
use crate::{
    Builder, Cancelled, Keep, OpenError, Queues, RetryPolicy, Transaction, TransactionError,
};

const SEGMENT_SIZE: u64 = 16 * 1024;

/// A directory in memory, if there is such a place: these tests flush a lot.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn tree(dir: &Path) -> Queues {
    let options = Queues::options(dir).state_segment_size(SEGMENT_SIZE);
    options.open_idle().unwrap()
}

fn builder(tree: &Queues, name: &str) -> Builder {
    tree.builder(name)
        .stripes(1)
        .segment_size(SEGMENT_SIZE)
        .retry(RetryPolicy::fixed(Duration::ZERO).unlimited_attempts())
}

fn open(builder: &Builder) -> Arc<Running> {
    Arc::new(Running::open_idle(builder).unwrap().0)
}

fn queue(tree: &Queues, name: &str) -> Arc<Running> {
    open(&builder(tree, name))
}

fn enqueue(running: &Arc<Running>, payload: &[u8]) {
    let place = Place::on(&running.dispatch().stripes()[0]);
    running.enqueue(place, payload).unwrap();
}

/// A job that a handler has.
struct InHand {
    lease: Lease,
    attempt: Attempt,
    delivery: Delivery,
}

fn take(running: &Arc<Running>) -> Option<InHand> {
    let lease = Source::new(Arc::clone(running)).try_next()?;
    let (lease, attempt, delivery) = running.begin(lease)?;
    Some(InHand {
        lease,
        attempt,
        delivery,
    })
}

/// The payloads of all jobs of a queue, which are acked.
fn drain(running: &Arc<Running>) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while let Some(one) = take(running) {
        payloads.push(one.lease.payload().to_vec());
        running.ack(one.lease, one.delivery, one.attempt);
    }
    payloads
}

fn ack_with(
    running: &Arc<Running>,
    one: InHand,
    transaction: Transaction,
) -> Result<(), TransactionError> {
    let source = transactions::Source {
        engine: running,
        lease: one.lease,
        delivery: one.delivery,
        attempt: one.attempt,
    };
    transaction.commit_with(Some(source)).map(|_| ())
}

/// A transaction that enqueues a job.
fn with_job(tree: &Queues, running: &Arc<Running>, payload: &[u8]) -> Transaction {
    let mut transaction = tree.transaction();
    transaction.add(running, payload, &EnqueueOptions::new());
    transaction
}

fn put(tree: &Queues, key: &[u8], value: &[u8]) {
    tree.keys().put(key, value, Keep::Forever).unwrap();
}

fn value(tree: &Queues, key: &[u8]) -> Option<Vec<u8>> {
    let value = tree.keys().get(key)?;
    Some(value.as_bytes().to_vec())
}

fn maintain(running: &Arc<Running>, maintenance: &mut Maintenance) {
    running.turn_timer();
    running.signal.kick();
    if let Some(wake) = running.signal.take() {
        maintenance.turn(running, &wake);
    }
}

/// A copy of the files, as the death of the process leaves them.
fn killed(dir: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let left = scratch();
    copy(dir, left.path());
    left
}

/// Makes all calls of an operation below a path fail.
fn fail(path: &Path, operation: Operation, error: Errno) -> Fault {
    let plan = Plan {
        operation,
        calls: 0..usize::MAX,
        effect: Effect::Fail(error),
    };
    faults::watch(path, vec![plan])
}

/// The segment files below a directory, sorted.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "seg"))
        .collect();
    found.sort();
    found
}

/// Where the last record with this payload starts, in the last segment that has it.
fn find(segments: &[PathBuf], payload: &[u8]) -> (PathBuf, usize) {
    let in_file = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let mut windows = bytes.windows(payload.len());
        let at = windows.rposition(|window| window == payload)?;
        Some((path.clone(), at))
    };
    segments.iter().rev().find_map(in_file).expect("found")
}

/// Puts records back to zeros, as if they had never reached the disk.
fn undo(path: &Path, from: usize, to: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[from..to].fill(0);
    fs::write(path, bytes).unwrap();
}

/// Replaces the log of a queue by an earlier one, as if nothing since had reached the disk.
fn undo_log(left: &TempDir, before: &TempDir, name: &str) {
    let files = format!("queues/{name}/log/00");
    fs::remove_dir_all(left.path().join(&files)).unwrap();
    let copied = killed(&before.path().join(&files));
    fs::rename(copied.keep(), left.path().join(&files)).unwrap();
}

/// The start of a record with a key of 1 byte and nothing else but what it settles.
fn start_of(payload_at: usize, meta: usize) -> usize {
    payload_at - meta - RECORD_HEADER_BYTES
}

fn die(tree: Queues, queues: impl IntoIterator<Item = Arc<Running>>) {
    queues.into_iter().for_each(|running| running.die());
    tree.die();
}

#[test]
fn settling_waits_until_a_full_segment_needs_it() {
    let dir = scratch();
    let tree = tree(dir.path());
    let mails = queue(&tree, "mails");
    let mut maintenance = Maintenance::new();
    // These stay, and fill a segment.
    for key in 0..10 {
        put(&tree, &[key], &[key; 3000]);
    }
    maintain(&mails, &mut maintenance);
    tree.maintain_state();
    let watched = faults::watch(dir.path(), Vec::new());
    for _ in 0..10 {
        with_job(&tree, &mails, b"mail").commit().unwrap();
        maintain(&mails, &mut maintenance);
        tree.maintain_state();
    }
    let calls = watched.take_calls();
    let flushes = calls
        .iter()
        .filter(|call| call.operation == Operation::Flush);
    assert_eq!(flushes.count(), 0);
    drop(watched);
    die(tree, [mails]);
}

#[test]
fn after_a_failed_flush_maintenance_is_not_due_again_and_again() {
    let dir = scratch();
    stopped::set(Some(Duration::from_secs(1_000)));
    let tree = tree(dir.path());
    let mails = queue(&tree, "mails");
    let mut transaction = with_job(&tree, &mails, b"mail");
    transaction.durability(Durability::Interval(Duration::from_millis(10)));
    transaction.commit().unwrap();
    let state_log = dir.path().join("state/log");
    let fails = fail(&state_log, Operation::Flush, Errno::IO);
    let mut transaction = with_job(&tree, &mails, b"mail");
    transaction.durability(Durability::Sync);
    let error = transaction.commit().unwrap_err();
    assert!(matches!(error, TransactionError::NotDurable(_)), "{error}");
    drop(fails);
    // The flush that is due is the last one planned.
    for second in [1_001, 1_002] {
        stopped::set(Some(Duration::from_secs(second)));
        for _ in 0..3 {
            tree.maintain_state();
        }
    }
    assert_eq!(tree.maintain_state(), None);
    stopped::set(None);
    die(tree, [mails]);
}

#[test]
fn cleaning_does_not_go_round_in_circles_while_jobs_keep_segments() {
    let dir = scratch();
    let first = tree(dir.path());
    let mails = queue(&first, "mails");
    // Each segment has a job that is not settled, and a value that is replaced.
    for _ in 0..60 {
        let mut transaction = with_job(&first, &mails, &[7; 1000]);
        transaction.put(b"key", &[1; 1000], Keep::Forever);
        transaction.commit().unwrap();
    }
    let is_at_rest = |_| {
        let next = first.maintain_state();
        next.is_none_or(|next| next > std::time::Instant::now())
    };
    assert!((0..100).any(is_at_rest));
    assert_eq!(value(&first, b"key"), Some(vec![1; 1000]));
    die(first, [mails]);
}

/// Leaves a job whose completion is in the state log, and whose ack has not reached the disk. Its
/// segment is sealed.
fn leave_a_completion() -> TempDir {
    let dir = scratch();
    let first = tree(dir.path());
    let orders = queue(&first, "orders");
    for number in 0..40 {
        enqueue(&orders, &[number; 1000]);
    }
    drop((orders, first));
    let first = tree(dir.path());
    let (orders, mails) = (queue(&first, "orders"), queue(&first, "mails"));
    let before = killed(dir.path());
    let job = take(&orders).unwrap();
    ack_with(&orders, job, with_job(&first, &mails, b"mail")).unwrap();
    let left = killed(dir.path());
    let of_orders = "queues/orders/log/00";
    let first_segment = segments(&before.path().join(of_orders)).remove(0);
    let acks = first_segment.with_extension("ack");
    let to = left.path().join(of_orders).join(acks.file_name().unwrap());
    fs::copy(&acks, to).unwrap();
    die(first, [orders, mails]);
    left
}

#[test]
fn an_open_that_fails_forgets_no_completion() {
    let left = leave_a_completion();
    let operations = [
        Operation::Open,
        Operation::Inspect,
        Operation::Map,
        Operation::Read,
        Operation::Flush,
    ];
    let mut failed = 0;
    for operation in operations {
        for call in 0.. {
            let left = killed(left.path());
            let again = tree(left.path());
            let orders = builder(&again, "orders");
            let plan = Plan {
                operation,
                calls: call..call + 1,
                effect: Effect::Fail(Errno::NFILE),
            };
            let fails = faults::watch(&left.path().join("queues/orders"), vec![plan]);
            let opened = Running::open_idle(&orders);
            drop(fails);
            if let Ok((opened, _)) = opened {
                die(again, [Arc::new(opened)]);
                break;
            }
            failed += 1;
            let orders = open(&orders);
            let jobs = drain(&orders);
            assert_eq!(jobs[0], [1; 1000], "after {operation:?} {call} has failed");
            assert_eq!(jobs.len(), 39);
            die(again, [orders]);
        }
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn damage_in_a_sealed_segment_is_reported() {
    let dir = scratch();
    let first = tree(dir.path());
    for key in 0..10 {
        put(&first, &[key], &[key; 3000]);
    }
    drop(first);
    let files = segments(&dir.path().join("state/log"));
    let (path, at) = find(&files, &[4; 3000]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[at + 1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let again = tree(dir.path());
    assert_eq!(value(&again, &[4]), None);
    assert_eq!(value(&again, &[5]), Some(vec![5; 3000]));
    assert!(!again.recovery().is_clean());
    die(again, []);
}

#[test]
fn a_removal_holds_if_a_power_cut_takes_the_value_before_it() {
    let dir = scratch();
    let first = tree(dir.path());
    put(&first, b"k", b"first value");
    let mut transaction = first.transaction();
    // Its own sectors.
    transaction.put(b"k", &[2; 2000], Keep::Forever);
    transaction.commit().unwrap();
    let mut transaction = first.transaction();
    transaction.remove(b"k").put(b"m", b"new", Keep::Forever);
    transaction.commit().unwrap();
    let left = killed(dir.path());
    die(first, []);
    let files = segments(&left.path().join("state/log"));
    let (path, at) = find(&files, &[2; 2000]);
    // Its key, and what it settles.
    let meta = 3 + 1 + 3 + 8;
    undo(&path, start_of(at, meta), at + 2000);
    let again = tree(left.path());
    assert_eq!(value(&again, b"m"), Some(b"new".to_vec()));
    assert_eq!(value(&again, b"k"), None);
    again.maintain_state();
    drop(again);
    let again = tree(left.path());
    assert_eq!(value(&again, b"k"), None);
    die(again, []);
}

#[test]
fn a_job_that_came_by_a_transaction_is_not_moved_before_that_is_settled() {
    let dir = scratch();
    let first = tree(dir.path());
    let mails = queue(&first, "mails");
    with_job(&first, &mails, b"mail").commit().unwrap();
    let job = take(&mails).unwrap();
    let again = Failure::retry_after(Duration::from_secs(60), "later");
    let before = killed(dir.path());
    mails.fail(job.lease, job.delivery, job.attempt, again);
    mails.dispatch().keep_delays().unwrap();
    let log = "queues/mails/log/00";
    let of = |dir: &TempDir| fs::read(segments(&dir.path().join(log)).remove(0)).unwrap();
    assert!(of(&dir) == of(&before), "it was moved");
    // It is moved once it is settled.
    mails.keep_delays().unwrap();
    die(first, [mails]);
    let again = tree(dir.path());
    let mails = queue(&again, "mails");
    assert!(take(&mails).is_none(), "the delay is forgotten");
    die(again, [mails]);
}

#[test]
fn a_replayed_job_is_named_with_the_letter_that_it_came_from() {
    let dir = scratch();
    let first = tree(dir.path());
    let (orders, mails) = (queue(&first, "orders"), queue(&first, "mails"));
    enqueue(&orders, b"order");
    let job = take(&orders).unwrap();
    let failure = Failure::dead_letter("of no use");
    orders.fail(job.lease, job.delivery, job.attempt, failure);
    orders.flush().unwrap();
    let before = killed(dir.path());
    let letters: Vec<_> = letters_of(&orders).map(Result::unwrap).collect();
    assert_eq!(letters.len(), 1);
    // A handler takes the new job before it is durable.
    let left = Rc::new(RefCell::new(None));
    let observer = {
        let (left, path) = (Rc::clone(&left), dir.path().to_path_buf());
        let (first, orders, mails) = (first.clone(), Arc::clone(&orders), Arc::clone(&mails));
        move |operation, _: &Path, moment| {
            if operation == Operation::Flush
                && moment == Moment::Before
                && let Some(job) = take(&orders)
            {
                let mut transaction = with_job(&first, &mails, b"mail");
                transaction.durability(Durability::Sync);
                ack_with(&orders, job, transaction).unwrap();
                *left.borrow_mut() = Some(killed(&path));
            }
            Ok(())
        }
    };
    let log = dir.path().join("queues/orders/log");
    faults::observe(Some((log, Box::new(observer))));
    orders.replay(&letters).unwrap();
    faults::observe(None);
    die(first, [orders, mails]);
    // A power cut before the flush: nothing of the replay has reached the disk.
    let left = left.take().expect("taken");
    undo_log(&left, &before, "orders");
    let again = tree(left.path());
    let (orders, mails) = (queue(&again, "orders"), queue(&again, "mails"));
    assert_eq!(letters_of(&orders).count(), 0, "its letter is still there");
    assert!(drain(&orders).is_empty());
    assert_eq!(drain(&mails), [b"mail"]);
    die(again, [orders, mails]);
}

#[test]
fn an_open_makes_durable_what_an_earlier_one_in_this_process_left_behind() {
    let dir = scratch();
    let tree = tree(dir.path());
    let (orders, mails) = (queue(&tree, "orders"), queue(&tree, "mails"));
    enqueue(&orders, b"order");
    let job = take(&orders).unwrap();
    ack_with(&orders, job, with_job(&tree, &mails, b"mail")).unwrap();
    // As if the close had failed.
    orders.die();
    drop(orders);
    let watched = faults::watch(&dir.path().join("queues/orders/log"), Vec::new());
    let orders = queue(&tree, "orders");
    let is_of_acks = |call: &faults::Call| {
        call.operation == Operation::Flush && call.path.extension().is_some_and(|it| it == "ack")
    };
    // Its completion is forgotten from here on.
    assert!(watched.take_calls().iter().any(is_of_acks));
    drop(watched);
    die(tree, [orders, mails]);
}

#[test]
fn a_queue_whose_room_is_short_takes_no_further_transactions() {
    let dir = scratch();
    let tree = tree(dir.path());
    let mails = open(&builder(&tree, "mails").max_bytes(3 * SEGMENT_SIZE));
    let mut committed = 0;
    let error = loop {
        match with_job(&tree, &mails, &[committed; 1000]).commit() {
            Ok(_) => committed += 1,
            Err(error) => break error,
        }
    };
    let is_full = |error: &TransactionError| matches!(error, TransactionError::Enqueue(error) if error.is_full());
    assert!(is_full(&error), "{error}");
    let mut maintenance = Maintenance::new();
    let mut found = Vec::new();
    while let payloads = drain(&mails)
        && !payloads.is_empty()
    {
        found.extend(payloads.into_iter().map(|payload| payload[0]));
        maintain(&mails, &mut maintenance);
        maintain(&mails, &mut maintenance);
    }
    found.sort_unstable();
    assert_eq!(found, (0..committed).collect::<Vec<_>>());
    with_job(&tree, &mails, b"mail").commit().unwrap();
    die(tree, [mails]);
}

#[test]
fn a_job_that_a_late_handler_has_acked_is_completed_by_no_other_transaction() {
    let dir = scratch();
    stopped::set(Some(Duration::from_secs(1_000)));
    let tree = tree(dir.path());
    let timeout = Duration::from_secs(5);
    let orders = open(&builder(&tree, "orders").lease_timeout(timeout));
    let mails = queue(&tree, "mails");
    enqueue(&orders, b"order");
    let late = take(&orders).unwrap();
    stopped::set(Some(Duration::from_secs(1_006)));
    orders.turn_timer();
    let current = take(&orders).unwrap();
    orders.ack(late.lease, late.delivery, late.attempt);
    let error = ack_with(&orders, current, with_job(&tree, &mails, b"mail")).unwrap_err();
    assert!(matches!(error, TransactionError::LeaseLost), "{error}");
    assert!(drain(&orders).is_empty() && drain(&mails).is_empty());
    stopped::set(None);
    die(tree, [orders, mails]);
}

#[test]
fn a_job_that_is_cancelled_while_it_is_completed_ends_once() {
    for lease_timeout in [None, Some(Duration::from_secs(3600))] {
        for fails in [false, true] {
            let dir = scratch();
            let tree = tree(dir.path());
            let mut builder = builder(&tree, "queue").max_depth(3);
            if let Some(timeout) = lease_timeout {
                builder = builder.lease_timeout(timeout);
            }
            let running = open(&builder);
            enqueue(&running, b"job");
            let one = take(&running).unwrap();
            let job = one.lease.job();
            let answer = Rc::new(Cell::new(None));
            let (other, noted) = (Arc::clone(&running), Rc::clone(&answer));
            // The state log has no segment yet: the transaction creates one.
            let state = dir.path().join("state/log");
            let _full = fails.then(|| fail(&state, Operation::Create, Errno::NOSPC));
            let observer = move |operation, path: &Path, _| {
                if operation == Operation::Create
                    && path.starts_with(&state)
                    && noted.get().is_none()
                {
                    noted.set(Some(other.cancel(job).unwrap()));
                }
                Ok(())
            };
            faults::observe(Some((dir.path().to_path_buf(), Box::new(observer))));
            let committed = ack_with(&running, one, with_job(&tree, &running, b"next"));
            faults::observe(None);
            assert_eq!(committed.is_err(), fails);
            assert_eq!(answer.get(), Some(Cancelled::Running));
            let stats = running.stats();
            let (acked, cancelled) = (u64::from(!fails), u64::from(fails));
            assert_eq!((stats.acked, stats.cancelled), (acked, cancelled));
            assert_eq!((stats.depth(), stats.retried), (acked, 0));
            assert_eq!(drain(&running).len() as u64, acked);
            running.sweep_cancels();
            assert!(!running.gate().has(Gate::CANCELS), "an entry is left");
            die(tree, [running]);
        }
    }
}

#[test]
fn a_transaction_whose_ids_cannot_be_made_durable_has_happened() {
    let dir = scratch();
    let first = tree(dir.path());
    let (orders, mails) = (queue(&first, "orders"), queue(&first, "mails"));
    enqueue(&orders, b"order");
    let job = take(&orders).unwrap();
    let fails = fail(
        &dir.path().join("queues/mails"),
        Operation::Flush,
        Errno::IO,
    );
    let mut transaction = with_job(&first, &mails, b"mail");
    transaction.durability(Durability::Sync).durable_ids();
    let error = ack_with(&orders, job, transaction).unwrap_err();
    assert!(matches!(error, TransactionError::NotDurable(_)), "{error}");
    drop(fails);
    assert_eq!((orders.stats().acked, orders.stats().depth()), (1, 0));
    assert_eq!(mails.stats().depth(), 1);
    drop((orders, mails, first));
    let again = tree(dir.path());
    let (orders, mails) = (queue(&again, "orders"), queue(&again, "mails"));
    assert!(drain(&orders).is_empty());
    assert_eq!(drain(&mails), [b"mail"]);
    die(again, [orders, mails]);
}

#[test]
fn a_change_whose_flush_has_failed_is_seen_by_this_process() {
    let dir = scratch();
    let first = tree(dir.path());
    put(&first, b"key", b"before");
    first.flush().unwrap();
    let before = killed(dir.path());
    let fails = fail(&dir.path().join("state/log"), Operation::Flush, Errno::IO);
    let keys = first.keys().with_durability(Durability::Sync);
    let error = keys.put(b"key", b"after", Keep::Forever).unwrap_err();
    assert!(matches!(error, TransactionError::NotDurable(_)), "{error}");
    drop(fails);
    assert_eq!(value(&first, b"key").unwrap(), b"after");
    // A restart of the machine may find what was flushed before, or all of it.
    let after = killed(dir.path());
    drop((keys, first));
    for (left, expected) in [(before, "before"), (after, "after")] {
        let again = tree(left.path());
        assert_eq!(value(&again, b"key").unwrap(), expected.as_bytes());
        again.die();
    }
}

#[test]
fn a_queue_is_not_opened_again_while_it_is_uncertain_whether_its_job_is_done() {
    for has_leases in [false, true] {
        let dir = scratch();
        let first = tree(dir.path());
        let hour = Duration::from_secs(3600);
        let orders = match has_leases {
            true => open(&builder(&first, "orders").lease_timeout(hour)),
            false => queue(&first, "orders"),
        };
        let mails = queue(&first, "mails");
        enqueue(&orders, b"order");
        let job = take(&orders).unwrap();
        let fails = fail(&dir.path().join("state/log"), Operation::Flush, Errno::IO);
        let mut transaction = with_job(&first, &mails, b"mail");
        transaction.durability(Durability::Sync);
        let error = ack_with(&orders, job, transaction).unwrap_err();
        assert!(matches!(error, TransactionError::NotDurable(_)), "{error}");
        drop(fails);
        // Neither here nor at the next open does another handler get it.
        assert!(take(&orders).is_none());
        assert_eq!((orders.stats().depth(), orders.stats().in_flight), (1, 1));
        drop(orders);
        let error = Running::open_idle(&builder(&first, "orders")).map(|_| ());
        assert!(matches!(error, Err(OpenError::Flush(_))), "{error:?}");
        drop((mails, first));
        let again = tree(dir.path());
        let (orders, mails) = (queue(&again, "orders"), queue(&again, "mails"));
        assert!(drain(&orders).is_empty());
        assert_eq!(drain(&mails), [b"mail"]);
        die(again, [orders, mails]);
    }
}

#[test]
fn a_copy_of_a_queue_is_not_opened_beside_it() {
    let dir = scratch();
    let tree = tree(dir.path());
    let mails = queue(&tree, "mails");
    enqueue(&mails, b"mail");
    let copied = killed(&dir.path().join("queues/mails"));
    fs::rename(copied.keep(), dir.path().join("queues/copy")).unwrap();
    let error = Running::open_idle(&builder(&tree, "copy")).map(|_| ());
    assert!(
        matches!(error, Err(OpenError::Misplaced { .. })),
        "{error:?}"
    );
    drop(mails);
    drop(queue(&tree, "copy"));
    drop(queue(&tree, "mails"));
    die(tree, []);
}

#[test]
fn a_state_log_that_is_lost_is_reported_and_has_another_id() {
    let dir = scratch();
    let first = tree(dir.path());
    assert!(first.recovery().is_clean());
    drop(queue(&first, "mails"));
    drop(first);
    let id = || fs::read(dir.path().join("state/MANIFEST")).unwrap()[32..40].to_vec();
    let before = id();
    fs::remove_dir_all(dir.path().join("state/log")).unwrap();
    let second = tree(dir.path());
    assert!(!second.recovery().is_clean());
    assert_ne!(id(), before, "records would be taken for others");
    let before = id();
    drop(second);
    assert!(tree(dir.path()).recovery().is_clean());
    assert_eq!(id(), before);
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    assert!(!tree(dir.path()).recovery().is_clean());
    assert!(tree(dir.path()).recovery().is_clean());
}

#[test]
fn completions_of_a_queue_that_is_gone_keep_no_segment() {
    let left = leave_a_completion();
    fs::remove_dir_all(left.path().join("queues/orders")).unwrap();
    let again = tree(left.path());
    let mails = queue(&again, "mails");
    assert_eq!(drain(&mails), [b"mail"]);
    drop((mails, again));
    let lens = segments(&left.path().join("state/log"));
    let lens: Vec<_> = lens
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .collect();
    assert!(lens.iter().all(|&len| len == 0), "{lens:?}");
}

#[test]
fn a_job_that_came_by_a_transaction_is_named_with_that() {
    let dir = scratch();
    let first = tree(dir.path());
    let (orders, mails) = (queue(&first, "orders"), queue(&first, "mails"));
    let before = killed(dir.path());
    let mut transaction = with_job(&first, &orders, b"order");
    transaction.durability(Durability::Sync);
    transaction.commit().unwrap();
    let job = take(&orders).unwrap();
    let mut transaction = with_job(&first, &mails, b"mail");
    transaction.durability(Durability::Sync);
    ack_with(&orders, job, transaction).unwrap();
    let left = killed(dir.path());
    die(first, [orders, mails]);
    // A power cut: nothing of the first job has reached the disk of its queue.
    undo_log(&left, &before, "orders");
    let again = tree(left.path());
    let (orders, mails) = (queue(&again, "orders"), queue(&again, "mails"));
    assert!(drain(&orders).is_empty(), "it comes again");
    assert_eq!(drain(&mails), [b"mail"]);
    die(again, [orders, mails]);
}

#[test]
fn a_segment_with_a_completion_stays_until_the_job_is_durably_done() {
    let dir = scratch();
    stopped::set(Some(Duration::from_secs(1_000)));
    let first = tree(dir.path());
    let orders = queue(&first, "orders");
    enqueue(&orders, b"order");
    orders.flush().unwrap();
    let before = killed(dir.path());
    let job = take(&orders).unwrap();
    let mut transaction = first.transaction();
    transaction.durability(Durability::Sync);
    ack_with(&orders, job, transaction).unwrap();
    let files = dir.path().join("state/log");
    let first_segment = segments(&files)[0].clone();
    for number in 0..60 {
        put(&first, b"key", &[number; 1000]);
        stopped::set(Some(Duration::from_secs(1_001 + u64::from(number))));
        first.maintain_state();
    }
    let left = killed(dir.path());
    let records = &segments(&dir.path().join("queues/orders/log/00"))[0];
    let acks = records.with_extension("ack");
    let acks = acks.strip_prefix(dir.path()).unwrap();
    fs::copy(before.path().join(acks), left.path().join(acks)).unwrap();
    // Once the queue has settled, the segment goes.
    assert!(segments(&files).contains(&first_segment));
    maintain(&orders, &mut Maintenance::new());
    first.maintain_state();
    assert!(!segments(&files).contains(&first_segment));
    die(first, [orders]);
    stopped::set(None);
    let again = tree(left.path());
    let orders = queue(&again, "orders");
    assert!(drain(&orders).is_empty(), "delivered again");
    die(again, [orders]);
}
