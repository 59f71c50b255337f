//! Changes that are made together, and the values of keys.

use std::time::{Duration, Instant};

use super::{PATIENCE, QUEUE, consumer, done, job, nothing_comes, publish, take};
use crate::backend::{
    Backend, BackendError, Changes, Choice, Keep, KeyChange, KeyValue, Settlement,
};

pub(super) fn a_commit_is_all_or_nothing(backend: &dyn Backend) {
    let commit = |keys: Vec<KeyChange<'_>>| {
        let jobs = vec![(QUEUE, job(b"one")), ("other", job(b"two"))];
        let sync = false;
        backend.commit(&Changes { jobs, keys, sync })
    };
    let is_conflict = |result| matches!(result, Err(BackendError::Conflict(_)));
    let keep = Keep::Forever;
    let numbers = commit(vec![KeyChange::Insert(b"key", b"1", keep)]);
    assert_eq!(numbers.expect("no conflict").len(), 2);
    let stored = backend.get(b"key").ok().flatten().expect("a value");
    assert!(is_conflict(commit(vec![KeyChange::Insert(
        b"key", b"2", keep
    )])));
    let wrong = [
        KeyChange::Put(b"new", b"2", keep),
        KeyChange::Expect(b"key", Some(stored.version + 1)),
    ];
    assert!(is_conflict(commit(wrong.to_vec())));
    assert!(is_conflict(commit(vec![KeyChange::Expect(b"key", None)])));
    assert!(is_conflict(commit(vec![KeyChange::Expect(
        b"none",
        Some(1)
    )])));
    assert_eq!(backend.get(b"new").ok(), Some(None));
    let jobs = [QUEUE, "other"].map(|name| {
        let queue = backend.queue(name).expect("a queue");
        queue.stats().expect("figures").enqueued
    });
    assert_eq!(jobs, [1, 1], "a refused commit has published jobs");
    let right = vec![
        KeyChange::Expect(b"key", Some(stored.version)),
        KeyChange::Remove(b"key"),
        KeyChange::Expect(b"none", None),
    ];
    assert!(commit(right).is_ok());
    assert_eq!(backend.get(b"key").ok(), Some(None));
    let names = backend.queue_names().expect("names");
    assert!(
        [QUEUE, "other"]
            .iter()
            .all(|name| names.iter().any(|one| one == name))
    );
}

pub(super) fn a_completion_is_one_step(backend: &dyn Backend) {
    let number = publish(backend, QUEUE, b"first");
    let mut consumer = consumer(backend, &[QUEUE, "next"], Choice::Priority);
    let changes = |key| Changes {
        jobs: vec![("next", job(b"second"))],
        keys: vec![KeyChange::Insert(key, b"done", Keep::Forever)],
        sync: false,
    };
    backend
        .commit(&Changes {
            jobs: Vec::new(),
            ..changes(b"taken")
        })
        .expect("no conflict");
    take(&mut *consumer, |claim| {
        let settled = claim.settle(Settlement::Done(Some(&changes(b"taken"))));
        assert!(
            matches!(settled, Err(BackendError::Conflict(_))),
            "{settled:?}"
        );
    });
    take(&mut *consumer, |claim| {
        assert_eq!(
            (claim.number(), claim.attempt()),
            (number, 2),
            "the attempt had failed"
        );
        let settled = claim.settle(Settlement::Done(Some(&changes(b"free"))));
        settled.expect("it is done");
    });
    take(&mut *consumer, |claim| {
        assert_eq!((claim.queue(), claim.payload()), ("next", &b"second"[..]));
        done(claim);
    });
    assert!(nothing_comes(&mut *consumer));
    let stored = backend.get(b"free").ok().flatten();
    assert_eq!(stored.map(|stored| stored.value), Some(b"done".to_vec()));
}

pub(super) fn values_have_versions_and_expire(backend: &dyn Backend) {
    let put = |key: &[u8], value: &[u8], keep| {
        let keys = vec![KeyChange::Put(key, value, keep)];
        let changes = Changes {
            keys,
            ..Changes::default()
        };
        backend.commit(&changes).expect("no conflict");
        backend.get(key).ok().flatten()
    };
    let first = put(b"a/1", b"x", Keep::Forever).expect("a value");
    let second = put(b"a/1", b"x", Keep::Forever).expect("a value");
    assert_ne!(first.version, second.version);
    put(b"a/2", b"", Keep::For(PATIENCE));
    put(b"b/1", b"y", Keep::Forever);
    let mut keys = backend.keys(b"a/").expect("keys");
    keys.sort_by(|(one, _), (other, _)| one.cmp(other));
    let keys: Vec<_> = keys
        .into_iter()
        .map(|(key, value)| (key, value.value))
        .collect();
    assert_eq!(
        keys,
        [
            (b"a/1".to_vec(), b"x".to_vec()),
            (b"a/2".to_vec(), Vec::new())
        ]
    );
    let start = Instant::now();
    put(b"short", b"z", Keep::For(Duration::from_millis(50)));
    while backend.get(b"short").ok().flatten().is_some() {
        assert!(start.elapsed() < PATIENCE, "a value does not expire");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        start.elapsed() >= Duration::from_millis(30),
        "a value expired early"
    );
}

fn change(backend: &dyn Backend, keys: &[KeyChange<'_>]) -> Result<(), BackendError> {
    let changes = Changes {
        keys: keys.to_vec(),
        ..Changes::default()
    };
    backend.commit(&changes).map(|_| ())
}

fn value(backend: &dyn Backend, key: &[u8]) -> Option<KeyValue> {
    backend.get(key).expect("a look")
}

/// Of a shared backend, a completion that another process was faster than is made anew.
pub(super) fn a_refused_completion_is_made_anew(backend: &dyn Backend) {
    if !backend.capabilities().is_shared {
        return;
    }
    publish(backend, QUEUE, b"job");
    let keep = Keep::Forever;
    let put = |value, version| Changes {
        keys: vec![
            KeyChange::Expect(b"key", version),
            KeyChange::Put(b"key", value, keep),
        ],
        ..Changes::default()
    };
    backend.commit(&put(b"theirs", None)).expect("stored");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |claim| {
        let refused = claim.settle(Settlement::Done(Some(&put(b"own", None))));
        assert!(
            matches!(refused, Err(BackendError::Conflict(_))),
            "{refused:?}"
        );
        let version = value(backend, b"key").map(|value| value.version);
        let settled = claim.settle(Settlement::Done(Some(&put(b"own", version))));
        settled.expect("nobody was faster");
    });
    assert!(nothing_comes(&mut *consumer));
    let stored = value(backend, b"key").map(|value| value.value);
    assert_eq!(stored, Some(b"own".to_vec()));
}

/// What is expected is expected of what was there before, whatever the same changes do.
pub(super) fn conditions_are_of_what_was_there(backend: &dyn Backend) {
    let keep = Keep::Forever;
    let new = [
        KeyChange::Put(b"key", b"1", keep),
        KeyChange::Expect(b"key", None),
    ];
    change(backend, &new).expect("it was not there");
    let version = value(backend, b"key").map(|value| value.version);
    let removed = [
        KeyChange::Remove(b"key"),
        KeyChange::Expect(b"key", version),
        KeyChange::Remove(b"never"),
    ];
    change(backend, &removed).expect("it was there");
    let twice = [
        KeyChange::Put(b"key", b"1", keep),
        KeyChange::Put(b"key", b"2", keep),
    ];
    change(backend, &twice).expect("no condition");
    let stored = value(backend, b"key").map(|value| value.value);
    assert_eq!(stored, Some(b"2".to_vec()), "the last of them");
}

/// A value that has expired is as one that never was.
pub(super) fn an_expired_value_is_none(backend: &dyn Backend) {
    let short = Keep::For(Duration::from_millis(50));
    let put = [
        KeyChange::Put(b"short/1", b"1", short),
        KeyChange::Put(b"short/2", b"1", short),
        KeyChange::Put(b"short/3", b"1", short),
    ];
    change(backend, &put).expect("stored");
    let kept = [KeyChange::Put(b"short/3", b"2", Keep::Forever)];
    change(backend, &kept).expect("stored");
    let former = value(backend, b"short/1");
    let start = Instant::now();
    while [&b"short/1"[..], b"short/2"]
        .iter()
        .any(|key| value(backend, key).is_some())
    {
        assert!(start.elapsed() < PATIENCE, "a value does not expire");
        std::thread::sleep(Duration::from_millis(5));
    }
    let keys = || {
        let mut each = Vec::new();
        let walked = backend.each_key(b"short/", &mut |key, value| {
            each.push((key, value.value));
            true
        });
        walked.expect("a walk");
        let all = backend.keys(b"short/").expect("keys").into_iter();
        let all: Vec<_> = all.map(|(key, value)| (key, value.value)).collect();
        assert_eq!(each.len(), all.len());
        all
    };
    assert_eq!(keys(), [(b"short/3".to_vec(), b"2".to_vec())]);
    if let Some(former) = former {
        let stale = [KeyChange::Expect(b"short/1", Some(former.version))];
        let refused = change(backend, &stale);
        assert!(matches!(refused, Err(BackendError::Conflict(_))));
    }
    let anew = [
        KeyChange::Insert(b"short/1", b"3", Keep::Forever),
        KeyChange::Expect(b"short/2", None),
    ];
    change(backend, &anew).expect("they have expired");
    assert_eq!(keys().len(), 2);
    let mut seen = 0;
    let walked = backend.each_key(b"short/", &mut |_, _| {
        seen += 1;
        false
    });
    walked.expect("a walk");
    assert_eq!(seen, 1, "a walk goes on after it was stopped");
}

/// The numbers that a commit or a completion returns are those of its jobs, in their order.
pub(super) fn numbers_are_those_of_the_jobs(backend: &dyn Backend) {
    publish(backend, QUEUE, b"first");
    let changes = || Changes {
        jobs: vec![
            ("next", job(b"1")),
            ("other", job(b"2")),
            ("next", job(b"3")),
        ],
        ..Changes::default()
    };
    let mut first = consumer(backend, &[QUEUE], Choice::Priority);
    let completed = take(&mut *first, |claim| {
        claim.settle(Settlement::Done(Some(&changes())))
    });
    let committed = backend.commit(&changes());
    for numbers in [completed, committed] {
        let numbers = numbers.expect("stored");
        assert_eq!(numbers.len(), 3);
        for (number, (queue, new)) in numbers.iter().zip(changes().jobs) {
            let queue = backend.queue(queue).expect("a queue");
            // None is a job whose number is not known yet.
            if let Some(number) = *number {
                let seen = queue.look(number).expect("a look").expect("it waits");
                assert_eq!(seen.payload, new.payload);
            }
        }
    }
    let mut next = consumer(backend, &["next", "other"], Choice::Priority);
    let mut payloads: Vec<_> = (0..6)
        .map(|_| {
            take(&mut *next, |claim| {
                let payload = claim.payload().to_vec();
                done(claim);
                payload
            })
        })
        .collect();
    payloads.sort_unstable();
    assert_eq!(payloads, [b"1", b"1", b"2", b"2", b"3", b"3"]);
    assert!(nothing_comes(&mut *next));
}
