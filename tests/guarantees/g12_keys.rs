//! Tests of guarantee 12: a key has the value that it was given last, also after `kill -9`.
//!
//! What a power cut leaves is tested by the simulation in
//! `src/testing/crash_simulation/transactions/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime};

use logmill::{Durability, Keep, Keys, Queues, TransactionError};

use crate::support::*;

const THREADS: u64 = 3;
/// Keys that each thread of a child overwrites in turn.
const KEYS: u64 = 40;

fn tree(dir: &Path) -> Queues {
    let options = Queues::options(dir).state_segment_size(SEGMENT);
    let queues = options.open().unwrap();
    assert!(queues.recovery().is_clean(), "{:?}", queues.recovery());
    queues
}

fn number_of(keys: &Keys, key: &[u8]) -> Option<u64> {
    keys.get(key).map(|value| number_in(value.as_bytes()))
}

/// Adds one to a counter by compare and set, and returns what it was.
fn count(queues: &Queues, key: &[u8]) -> u64 {
    loop {
        let found = queues.keys().get(key);
        let before = found
            .as_ref()
            .map_or(0, |value| number_in(value.as_bytes()));
        let mut change = queues.transaction();
        change.expect(key, found.map(|value| value.version())).put(
            key,
            &(before + 1).to_le_bytes(),
            Keep::Forever,
        );
        match change.commit() {
            Ok(_) => return before,
            Err(TransactionError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The key that a thread gives its value of this number, and the one that it takes away then.
fn keys_of(thread: u64, number: u64) -> (Vec<u8>, Vec<u8>) {
    let key = |number: u64| format!("{thread}/{}", number % KEYS).into_bytes();
    (key(number), key(number + KEYS / 2))
}

/// A child: changes keys until it is killed.
pub(crate) fn change_keys_until_killed(dir: &Path) {
    let queues = tree(&dir.join("data"));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let queues = &queues;
            scope.spawn(move || {
                let journal = dir.join(thread.to_string());
                let mut next = Journal::read(&journal).last().map_or(0, |last| last + 2);
                let mut journal = Journal::append_to(&journal);
                loop {
                    let (given, taken) = keys_of(thread, next);
                    let mut change = queues.transaction();
                    change
                        .put(&given, &payload_of(next, 100), Keep::Forever)
                        .remove(&taken);
                    if next.is_multiple_of(50) {
                        change.durability(Durability::Sync);
                    }
                    change.commit().unwrap();
                    count(queues, b"changes");
                    journal.note(next);
                    next += 1;
                }
            });
        }
    });
}

#[test]
fn keys_have_the_values_they_were_given_last_after_any_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..6 {
        let mut child = Child::start("change keys", dir.path());
        let journal = dir.path().join("0");
        let before = fs::metadata(&journal).map_or(0, |found| found.len());
        child.wait_until("some keys are changed", || {
            fs::metadata(&journal).is_ok_and(|found| found.len() > before + 2_000)
        });
        thread::sleep(Duration::from_millis(random.u64(0..60)));
        child.kill();
        check_keys(dir.path());
    }
}

fn check_keys(dir: &Path) {
    let queues = tree(&dir.join("data"));
    let keys = queues.keys();
    let mut noted = 0;
    for thread in 0..THREADS {
        let numbers = Journal::read(&dir.join(thread.to_string()));
        noted += numbers.len() as u64;
        let last = *numbers.last().unwrap();
        // The next change may have happened or not, but as a whole.
        let has_happened = |number| {
            let (given, taken) = keys_of(thread, number);
            number_of(&keys, &given) == Some(number) && keys.get(&taken).is_none()
        };
        let is_next_there = has_happened(last + 1);
        let given = keys_of(thread, last + 1).0;
        assert_eq!(number_of(&keys, &given) == Some(last + 1), is_next_there);
        let last = if is_next_there { last + 1 } else { last };
        // Each process left out a number that its predecessor may have reached.
        for number in numbers
            .iter()
            .copied()
            .filter(|&number| number + KEYS / 2 > last)
        {
            let (given, _) = keys_of(thread, number);
            assert_eq!(number_of(&keys, &given), Some(number), "{thread}: {last}");
        }
        assert!(has_happened(last));
    }
    let counted = number_of(&keys, b"changes").unwrap();
    // A thread counts a change before it notes it.
    let most = noted + THREADS * 6;
    assert!((noted..=most).contains(&counted), "{counted} for {noted}");
    let walked = keys.with_prefix(b"").count();
    assert_eq!((walked, keys.len()), (walked, walked));
}

#[test]
fn of_many_threads_that_compare_and_set_a_key_each_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let seen = Mutex::new(vec![0; 2_000]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let before = count(&queues, b"counter");
                    seen.lock().unwrap()[before as usize] += 1;
                }
            });
        }
    });
    assert_eq!(seen.into_inner().unwrap(), vec![1; 2_000]);
    drop(queues);
    assert_eq!(number_of(&tree(dir.path()).keys(), b"counter"), Some(2_000));
}

#[test]
fn one_of_many_threads_gets_an_idempotency_key_also_across_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let keys = queues.keys();
    let winners = Mutex::new(BTreeMap::new());
    let try_all = |thread: u64| {
        for request in 0..500u64 {
            let mine = thread.to_le_bytes();
            match keys.insert_new(&request.to_le_bytes(), &mine, Keep::Forever) {
                Ok(()) => {
                    let before = winners.lock().unwrap().insert(request, thread);
                    assert_eq!(before, None);
                }
                Err(TransactionError::Conflict { key }) => assert_eq!(key, request.to_le_bytes()),
                Err(error) => panic!("{error}"),
            }
        }
    };
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || try_all(thread));
        }
    });
    let winners = winners.into_inner().unwrap();
    assert_eq!(winners.len(), 500);
    let crashed = crash_copy(dir.path());
    let after = tree(crashed.path());
    for (request, thread) in winners {
        let key = request.to_le_bytes();
        assert_eq!(number_of(&after.keys(), &key), Some(thread));
        let again = after.keys().insert_new(&key, b"", Keep::Forever);
        assert!(matches!(again, Err(TransactionError::Conflict { .. })));
    }
}

#[test]
fn a_walk_finds_each_key_once_while_others_come_change_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let keys = queues.keys();
    for number in 0..300u64 {
        let key = format!("stays/{number}");
        keys.put(key.as_bytes(), b"", Keep::Forever).unwrap();
    }
    let is_over = Over::default();
    thread::scope(|scope| {
        let over = is_over.at_end();
        scope.spawn(|| {
            for number in 0u64.. {
                if is_over.is_set() {
                    return;
                }
                let brief = format!("brief/{}", number % 500);
                keys.put(brief.as_bytes(), b"", Keep::Forever).unwrap();
                let gone = format!("brief/{}", (number + 250) % 500);
                keys.remove(gone.as_bytes()).unwrap();
                let changed = format!("stays/{}", number % 300);
                let value = number.to_le_bytes();
                keys.put(changed.as_bytes(), &value, Keep::Forever).unwrap();
            }
        });
        for _ in 0..200 {
            let mut found = BTreeMap::new();
            for (key, _) in keys.with_prefix(b"") {
                *found.entry(key).or_insert(0) += 1;
            }
            let stays = found.keys().filter(|key| key.starts_with(b"stays/"));
            assert_eq!(stays.count(), 300);
            assert!(found.values().all(|&times| times == 1));
            assert_eq!(keys.with_prefix(b"stays/").count(), 300);
        }
        drop(over);
    });
}

#[test]
fn an_expired_value_is_absent_and_its_version_is_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let keys = queues.keys();
    let brief = Keep::For(Duration::from_millis(20));
    keys.put(b"window", b"first", brief).unwrap();
    let Some(first) = keys.get(b"window") else {
        // The machine was asleep for so long.
        return;
    };
    let expires_at = first.expires_at().unwrap();
    eventually("the value has expired", || keys.get(b"window").is_none());
    assert!(SystemTime::now() >= expires_at);
    drop((keys, queues));
    let queues = tree(dir.path());
    let keys = queues.keys();
    assert!(keys.get(b"window").is_none());
    let mut change = queues.transaction();
    change
        .expect(b"window", Some(first.version()))
        .put(b"window", b"", Keep::Forever);
    let refused = change.commit();
    assert!(matches!(refused, Err(TransactionError::Conflict { .. })));
    keys.insert_new(b"window", b"second", Keep::Forever)
        .unwrap();
    let second = keys.get(b"window").unwrap();
    assert_ne!(second.version(), first.version());
    assert_eq!(
        (second.as_bytes(), second.expires_at()),
        (&b"second"[..], None)
    );
}
