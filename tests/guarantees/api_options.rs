//! Tests of options: invalid ones are typed errors, and nothing is created or changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use logmill::{
    Builder, Durability, EnqueueError, EnqueueOptions, OpenError, Queue, RetryPolicy, WaitStrategy,
};

use crate::support::*;

/// Sets one option.
type Set = fn(Builder) -> Builder;

#[test]
fn options_out_of_range_are_errors_that_name_the_option_and_create_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue");
    let cases: [(&str, Set); 19] = [
        ("stripes", |b| b.stripes(0)),
        ("stripes", |b| b.stripes(65)),
        ("stripes", |b| b.stripes(usize::MAX)),
        ("segment_size", |b| b.segment_size(0)),
        ("segment_size", |b| b.segment_size(4096)),
        ("segment_size", |b| b.segment_size(16 * 1024 + 1)),
        ("segment_size", |b| b.segment_size(2 << 30)),
        ("segment_size", |b| b.segment_size(u64::MAX)),
        ("retry", |b| b.retry(RetryPolicy::default().max_attempts(0))),
        ("retry", |b| {
            b.retry(RetryPolicy::default().max_attempts(255))
        }),
        ("durability", |b| {
            b.durability(Durability::Interval(Duration::ZERO))
        }),
        ("durability", |b| {
            b.durability(Durability::Interval(Duration::from_micros(999)))
        }),
        ("max_depth", |b| b.max_depth(0)),
        ("lease_timeout", |b| b.lease_timeout(Duration::ZERO)),
        ("wait_strategy", |b| {
            b.wait_strategy(WaitStrategy::Nap(Duration::from_nanos(9_999)))
        }),
        ("wait_strategy", |b| {
            b.wait_strategy(WaitStrategy::Nap(Duration::from_micros(10_001)))
        }),
        ("lease_timeout", |b| {
            b.lease_timeout(Duration::from_micros(999))
        }),
        ("max_bytes", |b| {
            b.stripes(1)
                .segment_size(SEGMENT)
                .max_bytes(3 * SEGMENT - 1)
        }),
        ("max_bytes", |b| b.max_bytes(0)),
    ];
    for (name, set) in cases {
        let error = set(Queue::builder(&path)).open().expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
        assert!(
            matches!(error, OpenError::InvalidOption { option, .. } if option == name),
            "{error}"
        );
        assert!(!path.exists(), "{name} was refused, but files were created");
    }
    let error = Queue::builder("").open().expect_err("no path");
    assert!(
        matches!(error, OpenError::InvalidOption { option: "path", .. }),
        "{error}"
    );
}

#[test]
fn what_was_fixed_at_creation_cannot_be_changed_and_need_not_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(
        Queue::builder(dir.path())
            .stripes(2)
            .segment_size(32 * 1024),
    );
    queue.enqueue(b"job").unwrap();
    let max_payload = queue.max_payload();
    queue.close().unwrap();
    let before = listing(dir.path());
    let cases: [(&str, u64, u64, Set); 2] = [
        ("stripes", 2, 3, |b| b.stripes(3)),
        ("segment_size", 32 * 1024, 64 * 1024, |b| {
            b.segment_size(64 * 1024)
        }),
    ];
    for (name, has, wants, set) in cases {
        match set(Queue::builder(dir.path())).open().expect_err(name) {
            OpenError::OptionMismatch {
                option,
                on_disk,
                asked,
            } => {
                assert_eq!((option, on_disk, asked), (name, has, wants));
            }
            other => panic!("{other}"),
        }
        assert_eq!(listing(dir.path()), before, "{name}");
    }
    let queue = open(Queue::builder(dir.path()));
    assert_eq!(queue.max_payload(), max_payload);
    assert_eq!(drain_payloads(&queue), [b"job"]);
}

#[test]
fn the_extremes_of_the_ranges_work() {
    let dir = tempfile::tempdir().unwrap();
    let options = |path: PathBuf| {
        Queue::builder(path)
            .stripes(64)
            .segment_size(16 * 1024)
            .max_bytes(3 * 64 * 16 * 1024)
            .max_depth(u64::MAX)
            .lease_timeout(Duration::MAX)
            .durability(Durability::Interval(Duration::MAX))
            .retry(RetryPolicy::fixed(Duration::MAX).max_attempts(254))
    };
    for round in 0..2 {
        let queue = open(options(dir.path().join("many")));
        for number in 0..200 {
            queue.producer().enqueue(&payload_of(number, 500)).unwrap();
        }
        assert_eq!(
            drain_numbers(&queue),
            (0..200).collect::<Vec<_>>(),
            "round {round}"
        );
        queue.enqueue(b"never again").unwrap();
        let consumer = queue.consumer();
        consumer
            .next_timeout(PATIENCE)
            .unwrap()
            .dead_letter("and out of the way");
        drop(consumer);
        queue.close().unwrap();
    }
}

#[test]
fn job_options_out_of_range_are_errors_and_enqueue_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let short = Durability::Interval(Duration::from_micros(999));
    let cases = [
        ("max_attempts", EnqueueOptions::new().max_attempts(0)),
        ("max_attempts", EnqueueOptions::new().max_attempts(255)),
        ("durability", EnqueueOptions::new().durability(short)),
    ];
    for (name, options) in cases {
        let error = queue.enqueue_with(b"job", options).unwrap_err();
        assert!(
            matches!(error, EnqueueError::InvalidOption { option, .. } if option == name),
            "{error}"
        );
        let error = queue.enqueue_batch_with(&[(b"job", options)]).unwrap_err();
        assert!(
            matches!(error, EnqueueError::InvalidOption { option, .. } if option == name),
            "{error}"
        );
    }
    assert_eq!((queue.stats().depth(), queue.stats().enqueued), (0, 0));
}

#[test]
fn a_path_that_is_no_directory_is_an_error_that_names_what_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"mine").unwrap();
    for path in [file.clone(), file.join("queue")] {
        let error = builder(&path).open().expect_err("not a directory");
        match error {
            OpenError::NotADirectory { path } => assert_eq!(path, file),
            other => panic!("{other}"),
        }
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // The parent exists, but no directory can be created in it.
    let error = builder("/proc/self/queue")
        .open()
        .expect_err("no directory");
    assert!(matches!(error, OpenError::Storage(_)), "{error}");
}

#[test]
fn only_the_owner_can_read_the_files_unless_file_mode_says_otherwise() {
    use std::os::unix::fs::PermissionsExt;
    let mode_of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // The umask may clear bits of the requested mode.
    let probe = tempfile::tempdir().unwrap();
    fs::write(probe.path().join("probe"), b"").unwrap();
    let umask = 0o666 & !mode_of(&probe.path().join("probe"));
    for (asked, file, directory) in [(None, 0o600, 0o700), (Some(0o640), 0o640, 0o750)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue");
        let mut options = builder(&path);
        if let Some(mode) = asked {
            options = options.file_mode(mode);
        }
        let queue = open(options);
        queue.enqueue(b"job").unwrap();
        queue
            .consumer()
            .next()
            .unwrap()
            .dead_letter("not retryable");
        queue.flush().unwrap();
        assert_eq!(mode_of(&path), directory & !umask);
        for (name, content) in listing(&path) {
            let expected = if content.is_some() { file } else { directory };
            assert_eq!(mode_of(&path.join(&name)), expected & !umask, "{name:?}");
        }
    }
    for mode in [0o400, 0o1600, 0o077] {
        let dir = tempfile::tempdir().unwrap();
        let error = builder(dir.path()).file_mode(mode).open().err().unwrap();
        assert!(
            matches!(
                error,
                OpenError::InvalidOption {
                    option: "file_mode",
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn an_error_shows_its_cause_once() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let storage = || builder("/proc/self/queue").open().err().unwrap();
    let letter = logmill::LetterId::new(7);
    let errors: [anyhow::Error; 4] = [
        storage().into(),
        builder(dir.path()).open().err().unwrap().into(),
        queue.dead_letters().replay(letter).err().unwrap().into(),
        logmill::DeadLetterError::from(EnqueueError::Closed).into(),
    ];
    for error in errors {
        // The alternate form of `anyhow` prints all sources, the plain one prints none.
        assert_eq!(format!("{error:#}"), error.to_string());
    }
    assert!(storage().to_string().contains("os error"));
}

#[test]
fn missing_parents_of_the_queue_directory_are_created() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/queue");
    let queue = open(builder(&path));
    assert_eq!(queue.path(), path);
    queue.enqueue(b"job").unwrap();
    queue.close().unwrap();
    assert_eq!(drain_payloads(&open(builder(&path))), [b"job"]);
}

#[test]
fn opening_tells_its_progress() {
    use std::sync::{Arc, Mutex};
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..300 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    queue.close().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&told);
    let options = builder(dir.path()).on_progress(move |progress| {
        hear.lock().unwrap().push(progress.segments);
    });
    let (_queue, report) = open_any(options);
    let told = told.lock().unwrap();
    assert!(told.len() as u64 >= report.segments, "{told:?}");
    assert!(told.is_sorted());
}
