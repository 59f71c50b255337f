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

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use logmill::{OpenError, Queue, RetryPolicy};

pub use operations::operations;

const SEGMENT_SIZE: u64 = 16 * 1024;
const PAYLOADS: [&[u8]; 4] = [b"", b"one", b"a second job", &[7; 300]];

/// The bytes of a segment file, for recovery. The first byte chooses what is done to the segment
/// of a good queue: replaced by the other bytes, or overwritten by them from some offset on.
pub fn segment(bytes: &[u8]) {
    damage_one_file(bytes, "seg");
}

/// The bytes of an ack file; as [`segment`].
pub fn ack(bytes: &[u8]) {
    damage_one_file(bytes, "ack");
}

fn damage_one_file(bytes: &[u8], extension: &str) {
    let Some((&how, bytes)) = bytes.split_first() else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    make_queue(dir.path());
    let path = file_in(&dir.path().join("log/00"), extension);
    let content = if how == 0 {
        bytes.to_vec()
    } else {
        let mut content = fs::read(&path).expect("the file is there");
        let offset = usize::from(how - 1) * 8 % content.len();
        for (to, from) in content[offset..].iter_mut().zip(bytes) {
            *to = *from;
        }
        content
    };
    fs::write(&path, content).expect("written");
    let mut delivered = open_and_drain(dir.path());
    delivered.retain(|payload| !PAYLOADS.contains(&payload.as_slice()));
    // A valid record of other content can only come from somebody who knows the salt.
    assert!(
        delivered.is_empty() || how == 0,
        "never enqueued: {delivered:?}"
    );
    // Whatever was found, there is nothing more to find.
    assert!(open_and_drain(dir.path()).is_empty());
}

/// The bytes of a MANIFEST.
pub fn manifest(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("MANIFEST"), bytes).expect("written");
    match builder(dir.path()).open() {
        Ok((queue, _)) => queue.close().expect("closed"),
        Err(
            OpenError::ManifestCorrupt { .. }
            | OpenError::ManifestVersion { .. }
            | OpenError::OptionMismatch { .. },
        ) => {
            let names = fs::read_dir(dir.path()).expect("listed").count();
            assert_eq!(names, 1, "a refused directory is left as it was");
        }
        Err(error) => panic!("{error}"),
    }
}

fn builder(dir: &Path) -> logmill::Builder {
    Queue::builder(dir)
        .stripes(1)
        .segment_size(SEGMENT_SIZE)
        .retry(RetryPolicy::fixed(Duration::ZERO))
}

/// A queue of which a process that died left a few jobs.
fn make_queue(dir: &Path) {
    let living = tempfile::tempdir().expect("a temporary directory");
    let (queue, _) = builder(living.path()).open().expect("opened");
    for payload in PAYLOADS.iter().cycle().take(40) {
        queue.enqueue(payload).expect("enqueued");
    }
    let consumer = queue.consumer();
    for _ in 0..10 {
        consumer.next().expect("a job").ack();
    }
    // What a crash would leave: the files of the open queue.
    files::copy_when_quiet(living.path(), dir);
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

fn open_and_drain(dir: &Path) -> Vec<Vec<u8>> {
    let (queue, _) = builder(dir).open().expect("damage is no error");
    let consumer = queue.consumer();
    let mut payloads = Vec::new();
    while queue.stats().depth() > 0 {
        if let Some(job) = consumer.next_timeout(Duration::from_millis(1)) {
            payloads.push(job.payload().to_vec());
            job.ack();
        }
    }
    drop(consumer);
    queue.close().expect("closed");
    payloads
}
