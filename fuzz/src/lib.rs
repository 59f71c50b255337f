//! The bodies of the fuzz targets: each takes bytes that anybody could have written and demands
//! that there is no panic, no hang, and no payload that nobody enqueued.
//!
//! `cargo +nightly fuzz run segment --features libfuzzer` fuzzes; `cargo test` runs the bodies over
//! the corpus, with the stable toolchain.

// The model-based test's own model and driver, so that there is one notion of the contract.
#[path = "../../tests/model/driver.rs"]
mod driver;
#[path = "../../tests/model/files.rs"]
mod files;
#[path = "../../tests/model/model.rs"]
mod model;
#[path = "../../tests/model/operation.rs"]
#[expect(dead_code, reason = "pauses of seconds are not for a fuzzer")]
mod operation;
mod operations;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logmill::{OpenError, Queue, RetryPolicy, Sequence};

pub use operations::operations;

const SEGMENT_SIZE: u64 = 16 * 1024;
const JOBS: usize = 40;
const ACKED: usize = 10;
/// Some end in zeros, as if they had never been written; that of the last job, the fourth, does.
const PAYLOADS: [&[u8]; 6] = [b"", b"one", &[7; 300], &[0; 16], b"a second job", &[0; 200]];
/// Far more than a few jobs take.
const PATIENCE: Duration = Duration::from_secs(20);

/// [`segment`], [`ack`]: the file is replaced by the bytes, not overwritten from some offset on.
const REPLACE: u8 = 1;
/// [`segment`], [`ack`]: the queue was closed, so that the segment is sealed.
const SEALED: u8 = 2;

type Jobs = BTreeMap<Sequence, Vec<u8>>;

/// The bytes of a segment file. The first byte says what is done with the segment of a good queue,
/// see [`REPLACE`] and [`SEALED`]; the next two are the offset to overwrite from.
pub fn segment(bytes: &[u8]) {
    damage_one_file(bytes, "seg");
}

/// The bytes of an ack file; as [`segment`].
pub fn ack(bytes: &[u8]) {
    damage_one_file(bytes, "ack");
}

fn damage_one_file(bytes: &[u8], extension: &str) {
    let Some((&[flags, low, high], bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let dir = directory();
    let enqueued = make_queue(dir.path(), flags & SEALED != 0);
    let left: Jobs = enqueued.clone().into_iter().skip(ACKED).collect();
    let path = file_in(&dir.path().join("log/00"), extension);
    let content = if flags & REPLACE != 0 {
        bytes.to_vec()
    } else {
        let mut content = fs::read(&path).expect("the file is there");
        let offset = usize::from(u16::from_le_bytes([low, high])) % content.len();
        for (to, from) in content[offset..].iter_mut().zip(bytes) {
            *to = *from;
        }
        content
    };
    fs::write(&path, content).expect("written");

    let first = deliver(dir.path(), |at| at % 2 == 0);
    let is_damage = |jobs: &Jobs| {
        jobs.iter()
            .any(|(job, payload)| enqueued.get(job) != Some(payload))
    };
    assert!(!is_damage(&first.delivered), "never enqueued: {first:?}");
    if extension == "seg" {
        let is_done = |job| !left.contains_key(job) && job != &first.new;
        assert!(
            !first.delivered.keys().any(is_done),
            "delivered again: {first:?}"
        );
    } else {
        let is_there = |job| first.delivered.contains_key(job) || first.dead.contains(job);
        assert!(left.keys().all(is_there), "lost: {first:?}");
    }
    // Whatever was found, it is settled: what was not acked comes again, and nothing else.
    let second = deliver(dir.path(), |_| true);
    assert_eq!(second.delivered, first.not_acked, "first: {first:?}");
    assert!(second.is_clean, "first: {first:?}");
    let third = deliver(dir.path(), |_| true);
    assert!(third.delivered.is_empty() && third.is_clean, "{third:?}");
}

/// What became of the jobs of a queue.
#[derive(Debug)]
struct Deliveries {
    delivered: Jobs,
    /// Those of them that were left as they were, as if the process had ended.
    not_acked: Jobs,
    dead: Vec<Sequence>,
    /// A job enqueued after those, delivered and acked.
    new: Sequence,
    is_clean: bool,
}

/// Opens the queue, and takes all jobs there are and one more. Acks those that `acks` says.
fn deliver(dir: &Path, acks: impl Fn(usize) -> bool) -> Deliveries {
    let (queue, report) = builder(dir).open().expect("damage is no error");
    let new = queue.enqueue(b"new").expect("enqueued");
    let consumer = queue.consumer();
    let mut delivered = Jobs::new();
    let mut not_acked = Jobs::new();
    let mut is_new_there = false;
    let start = Instant::now();
    while queue.stats().ready > 0 || !is_new_there {
        assert!(
            start.elapsed() < PATIENCE,
            "{:?} {delivered:?}",
            queue.stats()
        );
        let Some(job) = consumer.next_timeout(Duration::from_millis(1)) else {
            continue;
        };
        if job.sequence() == new {
            assert_eq!(job.payload(), b"new");
            is_new_there = true;
            job.ack();
            continue;
        }
        let payload = job.payload().to_vec();
        let acks = acks(delivered.len());
        let twice = delivered.insert(job.sequence(), payload.clone());
        assert_eq!(twice, None, "{} was delivered twice", job.sequence());
        if acks {
            job.ack();
        } else {
            not_acked.insert(job.sequence(), payload);
            std::mem::forget(job);
        }
    }
    let dead = queue
        .dead_letters()
        .iter()
        .map(|letter| letter.job())
        .collect();
    assert_eq!(
        queue.stats().depth(),
        not_acked.len() as u64,
        "{:?}",
        queue.stats()
    );
    drop(consumer);
    queue.close().expect("closed");
    Deliveries {
        delivered,
        not_acked,
        dead,
        new,
        is_clean: report.is_clean(),
    }
}

/// The bytes of a MANIFEST.
pub fn manifest(bytes: &[u8]) {
    let dir = directory();
    fs::write(dir.path().join("MANIFEST"), bytes).expect("written");
    match builder(dir.path()).open() {
        Ok((queue, _)) => queue.close().expect("closed"),
        Err(
            OpenError::ManifestCorrupt { .. }
            | OpenError::ManifestVersion { .. }
            | OpenError::OptionMismatch { .. },
        ) => {
            let names = fs::read_dir(dir.path()).expect("listed");
            let names: Vec<_> = names
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            assert!(
                names
                    .iter()
                    .all(|name| name == "MANIFEST" || name == "LOCK"),
                "a refused directory is left as it was: {names:?}"
            );
        }
        Err(error) => panic!("{error}"),
    }
}

/// In memory, if there is such a file system: a fuzzer's time is not for flushes.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}

fn builder(dir: &Path) -> logmill::Builder {
    Queue::builder(dir)
        .stripes(1)
        .segment_size(SEGMENT_SIZE)
        .retry(RetryPolicy::fixed(Duration::ZERO))
}

/// A queue of which a process has left a few jobs; if not `sealed`, by dying.
fn make_queue(dir: &Path, sealed: bool) -> Jobs {
    let living = directory();
    let (queue, _) = builder(living.path()).open().expect("opened");
    let mut jobs = Jobs::new();
    for payload in PAYLOADS.iter().cycle().take(JOBS) {
        let job = queue.enqueue(payload).expect("enqueued");
        jobs.insert(job, payload.to_vec());
    }
    let consumer = queue.consumer();
    for _ in 0..ACKED {
        consumer.next().expect("a job").ack();
    }
    if sealed {
        drop(consumer);
        queue.close().expect("closed");
    }
    // What a crash would leave: the files of the open queue.
    files::copy_when_quiet(living.path(), dir);
    jobs
}

fn file_in(dir: &Path, extension: &str) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|other| other == extension))
        .collect();
    files.sort();
    files.swap_remove(0)
}
