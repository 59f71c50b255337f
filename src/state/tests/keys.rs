//! Unit tests of the keyed store: against a model, and of the memory and space that keys take.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use crate::state::cleaning::cleaned;
use crate::state::index::SHARDS;
use crate::storage::Operation;
use crate::storage::faults::{self, Call};
use crate::testing::crash_simulation::copy_tree;
use crate::time::stopped;
use crate::{Durability, Keep, Keys, Queues, TransactionError};

const SEGMENT_SIZE: u64 = 16 * 1024;
/// The longest record, without what moving it adds.
const LONGEST_RECORD: usize = (SEGMENT_SIZE as usize - 64) / 4 - 22;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn open(dir: &Path) -> Queues {
    let options = Queues::options(dir).state_segment_size(SEGMENT_SIZE);
    options.open_idle().unwrap()
}

fn start_clock() {
    stopped::set(Some(Duration::from_secs(1_000_000)));
}

fn pass(time: Duration) {
    stopped::set(Some(stopped::now().unwrap() + time));
}

/// Does what maintenance does until it is idle. Returns how long until it would do more.
fn maintain(queues: &Queues) -> Option<Duration> {
    for _ in 0..100 {
        pass(Duration::from_millis(250));
        let next = queues.state().turn();
        let idle_for = next.map(|at| at.duration_since(crate::time::now()));
        if idle_for.is_none_or(|pause| pause >= Duration::from_millis(1_000)) {
            return idle_for;
        }
    }
    panic!("maintenance does not come to rest");
}

fn check_index(queues: &Queues) {
    queues.state().index.read().check();
}

/// Segments that the index keeps mapped.
fn mapped(queues: &Queues) -> usize {
    queues.state().index.read().segments()
}

fn segment_files(dir: &Path) -> usize {
    let files = fs::read_dir(dir.join("state/log")).unwrap();
    let is_segment = |name: &str| name.ends_with(".seg");
    files
        .filter(|file| is_segment(file.as_ref().unwrap().file_name().to_str().unwrap()))
        .count()
}

fn put(keys: &Keys, number: u64, len: usize, keep: Keep) {
    keys.put(&number.to_le_bytes(), &vec![7; len], keep)
        .unwrap();
}

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn values_that_have_expired_leave_memory_and_disk_untouched_by_anybody() {
    start_clock();
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys();
    // A window of an hour, for six hours.
    for number in 0..6 * 600 {
        put(&keys, number, 100, Keep::For(HOUR));
        pass(Duration::from_secs(6));
        if number % 20 == 0 {
            queues.state().turn();
        }
        // As many again may have expired, and a segment has few more than a hundred.
        assert!(keys.len() <= 2 * 600 + 100, "{}", keys.len());
    }
    check_index(&queues);
    // A segment has room for some 80 values.
    assert!(segment_files(dir.path()) <= 2 * 600 / 80 + 8);
    put(&keys, 0, 0, Keep::Forever);
    // Nothing but its own timer wakes maintenance.
    let mut turns = 0;
    while let Some(pause) = maintain(&queues) {
        pass(pause);
        turns += 1;
    }
    assert!(turns < 200, "{turns} turns");
    assert_eq!(keys.len(), 1);
    check_index(&queues);
    let capacity = queues.state().index.read().capacity();
    assert!(capacity < 40 * SHARDS, "{capacity}");
    assert!(mapped(&queues) <= 2);
    assert!(segment_files(dir.path()) <= 4);
    stopped::set(None);
}

#[test]
fn a_key_without_expiry_in_each_segment_does_not_keep_them() {
    start_clock();
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys();
    let before = cleaned::count();
    for number in 0..3_000 {
        let keep = match number % 100 {
            0 => Keep::Forever,
            _ => Keep::For(Duration::from_secs(10)),
        };
        put(&keys, number, 100, keep);
    }
    while let Some(pause) = maintain(&queues) {
        pass(pause);
    }
    check_index(&queues);
    assert!(cleaned::count() > before);
    assert_eq!(keys.len(), 30);
    let files = segment_files(dir.path());
    assert!(files <= 6, "{files}");
    for number in (0..3_000u64).step_by(100) {
        assert!(keys.get(&number.to_le_bytes()).is_some());
    }
    stopped::set(None);
}

#[test]
fn only_what_is_durable_is_cleaned() {
    start_clock();
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys();
    let before = cleaned::count();
    for number in 0..3_000 {
        let key = if number % 100 == 0 {
            number
        } else {
            number % 10
        };
        put(&keys, key, 100, Keep::Forever);
    }
    // The full segments are not sealed yet.
    queues.state().turn();
    assert_eq!(cleaned::count(), before);
    maintain(&queues);
    assert!(cleaned::count() > before);
    check_index(&queues);
    stopped::set(None);
}

#[test]
fn what_removes_a_key_stays_until_the_removal_is_durable() {
    start_clock();
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys();
    // Both in the first segment, so that it stays without the first, and is not cleaned either.
    put(&keys, 1_000, 100, Keep::Forever);
    put(&keys, 1_001, 3_000, Keep::Forever);
    (0..300).for_each(|number| put(&keys, number % 10, 100, Keep::Forever));
    maintain(&queues);
    queues.flush().unwrap();
    let segments = fs::read_dir(dir.path().join("state/log")).unwrap();
    let segments = segments.map(|file| file.unwrap().path());
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == "seg");
    let first = segments.filter(is_segment).min().unwrap();
    let watched = faults::watch(dir.path(), Vec::new());
    keys.remove(&1_000u64.to_le_bytes()).unwrap();
    (0..300).for_each(|number| put(&keys, number % 10, 100, Keep::Forever));
    maintain(&queues);
    let calls = watched.take_calls();
    let is_flush = |call: &Call| {
        call.operation == Operation::Flush && call.path == first.with_extension("ack")
    };
    let is_retirement = |call: &Call| {
        let goes = [Operation::Rename, Operation::Remove].contains(&call.operation);
        goes && is_segment(&call.path)
    };
    let flushed = calls.iter().position(is_flush).expect("flushed");
    let retired = calls.iter().position(is_retirement).expect("retired");
    assert!(first.exists() && flushed < retired);
    drop(watched);
    stopped::set(None);
}

#[test]
fn many_short_lives_of_the_process_leave_few_segments() {
    start_clock();
    let dir = scratch();
    for number in 0..60 {
        let queues = open(dir.path());
        put(&queues.keys(), number, 10, Keep::Forever);
        maintain(&queues);
    }
    let queues = open(dir.path());
    maintain(&queues);
    assert_eq!(queues.keys().len(), 60);
    let files = segment_files(dir.path());
    assert!(files <= 25, "{files}");
    stopped::set(None);
}

#[test]
fn a_job_that_waits_for_its_queue_does_not_keep_maintenance_busy() {
    start_clock();
    let dir = scratch();
    let queues = open(dir.path());
    let mails = queues
        .builder("mails")
        .stripes(1)
        .segment_size(SEGMENT_SIZE);
    let (mails, _) = mails.max_depth(100).open().unwrap();
    let keys = queues.keys();
    for round in 0..10 {
        let mut transaction = queues.transaction();
        transaction.enqueue(&mails, b"mail");
        transaction.commit().unwrap();
        for number in 0..200 {
            put(&keys, number, 100 + round, Keep::Forever);
        }
    }
    // What it has forwarded is never settled, so the entries stay live.
    drop(mails);
    queues.state().debts.lock().forget_queues();
    maintain(&queues);
    check_index(&queues);
    assert_eq!(keys.len(), 200);
    stopped::set(None);
}

#[test]
fn removing_keys_gives_their_memory_back() {
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys();
    for number in 0..20_000 {
        put(&keys, number, 0, Keep::Forever);
    }
    let full = queues.state().index.read().capacity();
    for number in 0..20_000u64 {
        keys.remove(&number.to_le_bytes()).unwrap();
    }
    let empty = queues.state().index.read().capacity();
    assert!(full >= 20_000 && empty <= 40 * SHARDS, "{full}, {empty}");
    assert!(keys.is_empty());
    check_index(&queues);
}

#[test]
fn the_longest_value_can_be_moved_and_a_longer_one_is_refused() {
    start_clock();
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys();
    let key = [3; 1_024];
    // A header of 32 bytes, and the key in a field with a header of 3.
    let longest = LONGEST_RECORD - 32 - 3 - key.len();
    let error = keys.put(&key, &vec![7; longest + 1], Keep::Forever);
    assert!(matches!(error, Err(TransactionError::TooLarge { .. })));
    keys.put(&key, &vec![7; longest], Keep::Forever).unwrap();
    let version = keys.get(&key).unwrap().version();
    let before = cleaned::count();
    for number in 0..2_000 {
        put(&keys, number % 10, 100, Keep::Forever);
        if number % 200 == 0 {
            maintain(&queues);
        }
    }
    assert!(cleaned::count() > before);
    let value = keys.get(&key).unwrap();
    assert_eq!(
        (value.as_bytes().len(), value.version()),
        (longest, version)
    );
    assert!(keys.put(&[3; 1_025], b"", Keep::Forever).is_err());
    stopped::set(None);
}

#[test]
fn a_key_that_has_expired_is_absent() {
    start_clock();
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys();
    keys.insert_new(b"order", b"1", Keep::For(HOUR)).unwrap();
    let version = keys.get(b"order").unwrap().version();
    assert!(keys.insert_new(b"order", b"2", Keep::For(HOUR)).is_err());
    pass(HOUR);
    assert!(keys.get(b"order").is_none());
    assert_eq!(keys.with_prefix(b"").count(), 0);
    let mut transaction = queues.transaction();
    transaction.expect(b"order", Some(version));
    assert!(transaction.commit().is_err());
    keys.insert_new(b"order", b"2", Keep::For(HOUR)).unwrap();
    // The wall clock goes back by two hours.
    let now = stopped::now().unwrap();
    stopped::set_wall(now - 2 * HOUR);
    assert_eq!(keys.get(b"order").unwrap().as_bytes(), b"2");
    maintain(&queues);
    drop((queues, keys));
    let queues = open(dir.path());
    assert_eq!(queues.keys().get(b"order").unwrap().as_bytes(), b"2");
    stopped::set(None);
}

#[test]
fn keys_are_found_by_prefix() {
    let dir = scratch();
    let queues = open(dir.path());
    let keys = queues.keys().with_durability(Durability::Sync);
    for number in 0..500u32 {
        let kind = if number % 5 == 0 { "tick" } else { "pause" };
        let key = format!("{kind}/{number}");
        keys.put(key.as_bytes(), &number.to_le_bytes(), Keep::Forever)
            .unwrap();
    }
    let mut ticks: Vec<_> = keys.with_prefix(b"tick/").collect();
    ticks.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(ticks.len(), 100);
    assert!(ticks.iter().all(|(key, value)| {
        let number = u32::from_le_bytes(value.as_bytes().try_into().unwrap());
        *key == format!("tick/{number}").into_bytes()
    }));
    assert_eq!(keys.with_prefix(b"").count(), 500);
    assert_eq!(keys.with_prefix(b"ticks").count(), 0);
    // Keys may change during a walk.
    let walk = queues.keys().with_prefix(b"tick/");
    let seen = walk.map(|(key, _)| {
        keys.remove(&key).unwrap();
        keys.put(&key, b"", Keep::Forever).unwrap();
    });
    assert_eq!(seen.count(), 100);
}

#[test]
fn what_is_done_last_to_a_key_in_a_transaction_counts() {
    let dir = scratch();
    let queues = open(dir.path());
    let mut transaction = queues.transaction();
    transaction
        .put(b"a", b"1", Keep::Forever)
        .put(b"b", b"1", Keep::Forever)
        .remove(b"b")
        .put(b"a", b"2", Keep::Forever)
        .remove(b"c")
        .put(b"c", b"3", Keep::Forever);
    transaction.commit().unwrap();
    let keys = queues.keys();
    assert_eq!(keys.get(b"a").unwrap().as_bytes(), b"2");
    assert!(keys.get(b"b").is_none());
    assert_eq!(keys.get(b"c").unwrap().as_bytes(), b"3");
}

#[derive(Clone, Debug)]
enum Change {
    Put {
        key: u8,
        len: usize,
        keep: u8,
    },
    InsertNew {
        key: u8,
        len: usize,
        keep: u8,
    },
    Remove {
        key: u8,
    },
    /// Replaces the value if its version is the one that the model knows, or one that is wrong.
    Replace {
        key: u8,
        len: usize,
        is_right: bool,
    },
}

#[derive(Clone, Debug)]
enum Step {
    Change(Vec<Change>),
    Wait(u64),
    Maintain,
    Flush,
    Reopen,
    Kill,
}

/// The value of a key in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    value: Vec<u8>,
    /// Seconds from the epoch of the stopped clock.
    expires_at: Option<Duration>,
    version: u64,
}

#[derive(Default)]
struct Model {
    values: BTreeMap<u8, Known>,
    next: u64,
}

fn key_of(key: u8) -> Vec<u8> {
    let len = if key.is_multiple_of(7) {
        1_024
    } else {
        1 + usize::from(key)
    };
    vec![key; len]
}

fn a_change() -> impl Strategy<Value = Change> {
    let len = prop_oneof![4 => 0..200usize, 1 => 200..2_500usize];
    let key = 0..24u8;
    // Most values stay.
    let keep = prop_oneof![3 => Just(0u8), 2 => 1..100u8];
    (key, len, keep, 0..10u8).prop_map(|(key, len, keep, kind)| match kind {
        0..5 => Change::Put { key, len, keep },
        5..7 => Change::InsertNew { key, len, keep },
        7 => Change::Remove { key },
        kind => Change::Replace {
            key,
            len,
            is_right: kind == 8,
        },
    })
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => proptest::collection::vec(a_change(), 1..4).prop_map(Step::Change),
        4 => (0..40u64).prop_map(Step::Wait),
        6 => Just(Step::Maintain),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

impl Model {
    fn get(&self, key: u8) -> Option<&Known> {
        let now = stopped::now().unwrap();
        let is_valid = |known: &&Known| known.expires_at.is_none_or(|at| at > now);
        self.values.get(&key).filter(is_valid)
    }

    fn value(&mut self, len: usize) -> Vec<u8> {
        self.next += 1;
        let mut value = self.next.to_le_bytes().to_vec();
        value.resize(8 + len, 7);
        value
    }

    fn commit(&mut self, queues: &Queues, changes: &[Change]) {
        let now = stopped::now().unwrap();
        let keep_of = |keep: u8| match keep {
            0 => (Keep::Forever, None),
            keep => {
                let time = Duration::from_secs(keep.into());
                (Keep::For(time), Some(now + time))
            }
        };
        let mut transaction = queues.transaction();
        let mut new = BTreeMap::new();
        let mut is_refused = false;
        for change in changes {
            let (key, value) = match *change {
                Change::Put { key, len, keep } => {
                    let (keep, expires_at) = keep_of(keep);
                    let value = self.value(len);
                    transaction.put(&key_of(key), &value, keep);
                    (key, Some((value, expires_at)))
                }
                Change::InsertNew { key, len, keep } => {
                    let (keep, expires_at) = keep_of(keep);
                    let value = self.value(len);
                    is_refused |= self.get(key).is_some();
                    transaction.insert_new(&key_of(key), &value, keep);
                    (key, Some((value, expires_at)))
                }
                Change::Remove { key } => {
                    transaction.remove(&key_of(key));
                    (key, None)
                }
                Change::Replace { key, len, is_right } => {
                    let value = self.value(len);
                    let version = self.get(key).map(|known| known.version);
                    let expected = match is_right {
                        true => version,
                        false => Some(version.map_or(1, |version| version + 1)),
                    };
                    is_refused |= !is_right;
                    transaction.expect(&key_of(key), expected).put(
                        &key_of(key),
                        &value,
                        Keep::Forever,
                    );
                    (key, Some((value, None)))
                }
            };
            new.insert(key, value);
        }
        match transaction.commit() {
            Ok(_) => assert!(!is_refused),
            Err(TransactionError::Conflict { .. }) => {
                assert!(is_refused);
                return;
            }
            // Several of the longest.
            Err(TransactionError::TooLarge { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        for (key, value) in new {
            let Some((value, expires_at)) = value else {
                self.values.remove(&key);
                continue;
            };
            let found = queues.keys().get(&key_of(key)).unwrap();
            let known = Known {
                value,
                expires_at,
                version: found.version(),
            };
            if let Some(old) = self.values.insert(key, known) {
                assert!(found.version() > old.version);
            }
        }
    }

    fn check(&self, queues: &Queues) {
        check_index(queues);
        let keys = queues.keys();
        let mut all: BTreeMap<_, _> = keys.with_prefix(b"").collect();
        for key in 0..24 {
            let found = keys.get(&key_of(key));
            assert_eq!(all.remove(&key_of(key)), found);
            let found = found.map(|found| (found.version(), found.into_bytes()));
            let known = self.get(key);
            let known = known.map(|known| (known.version, known.value.clone()));
            assert_eq!(found, known, "key {key}");
        }
        assert!(all.is_empty());
    }
}

fn run(steps: &[Step]) {
    start_clock();
    let mut dir = scratch();
    let mut queues = open(dir.path());
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Change(changes) => model.commit(&queues, changes),
            Step::Wait(seconds) => pass(Duration::from_secs(*seconds)),
            Step::Maintain => _ = maintain(&queues),
            Step::Flush => queues.flush().unwrap(),
            Step::Reopen => {
                drop(queues);
                queues = open(dir.path());
                assert!(queues.recovery().is_clean());
            }
            Step::Kill => {
                let left = scratch();
                copy_tree(dir.path(), left.path());
                queues.die();
                drop(queues);
                dir = left;
                queues = open(dir.path());
                assert!(queues.recovery().is_clean());
            }
        }
        model.check(&queues);
    }
    drop(queues);
    model.check(&open(dir.path()));
    stopped::set(None);
}

#[test]
fn keys_are_as_in_a_model() {
    let before = cleaned::count();
    let steps = proptest::collection::vec(a_step(), 100..300);
    // The environment may ask for more.
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 40;
    }
    config.source_file = Some(file!());
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&steps, |steps| {
        run(&steps);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let cleaned = cleaned::count() - before;
    println!("{cleaned} segments were cleaned");
    assert!(cleaned > 40);
}
