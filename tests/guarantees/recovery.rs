//! Tests of recovery: opening a queue after a crash, a torn write, or changes by others. No file
//! has to be removed by hand before a queue opens, and a directory that is not a queue is refused
//! and left as it is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use logmill::{Damage, OpenError, Queue, RetryPolicy};
use tempfile::TempDir;

use crate::support::*;

const JOBS: u64 = 100;

fn policy() -> RetryPolicy {
    RetryPolicy::fixed(Duration::ZERO).max_attempts(1)
}

/// A queue with jobs in two segments and as many letters, as a crash leaves it.
fn crashed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(policy()));
    let consumer = queue.consumer();
    for number in 0..JOBS {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
        consumer.next_timeout(PATIENCE).unwrap().retry("no");
    }
    queue.flush().unwrap();
    for number in 0..JOBS {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    crash_copy(dir.path())
}

/// Opens the queue in `dir`, and checks that all jobs and letters are there, that it works, and
/// that the next open reports nothing.
fn assert_whole(dir: &Path, context: &str) {
    let (queue, report) = open_any(builder(dir).retry(policy()));
    assert_eq!(report.jobs, JOBS, "{context}: {report:?}");
    assert_eq!(report.dead_letters, JOBS, "{context}: {report:?}");
    let mut letters: Vec<_> = queue
        .dead_letters()
        .iter()
        .map(|letter| number_in(letter.payload()))
        .collect();
    letters.sort_unstable();
    assert_eq!(letters, (0..JOBS).collect::<Vec<_>>(), "{context}");
    for number in JOBS..2 * JOBS {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    assert_eq!(
        drain_numbers(&queue),
        (0..2 * JOBS).collect::<Vec<_>>(),
        "{context}"
    );
    queue.enqueue(b"one more letter").unwrap();
    queue.consumer().next_timeout(PATIENCE).unwrap().retry("no");
    queue.close().unwrap();
    let (queue, report) = open_any(builder(dir).retry(policy()));
    assert!(report.is_clean(), "{context}: {report:?}");
    assert_eq!(
        (queue.stats().dead, queue.stats().depth()),
        (JOBS + 1, 0),
        "{context}"
    );
}

/// A name that a later segment in `dir` may have.
fn next_name(dir: &Path) -> String {
    let last = files(dir, "seg").pop().expect("a segment");
    let base: u64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    format!("{:020}", base + 1_000_000)
}

#[test]
fn a_crash_alone_leaves_all_jobs_and_letters() {
    assert_whole(crashed().path(), "nothing but a crash");
}

#[test]
fn a_segment_that_was_being_created_does_not_stop_the_queue_from_opening() {
    let pristine = crashed();
    // Lengths of the segment file and its ack file, which are all zeros; `None` means that there is
    // no such file.
    let cases: [(&str, Option<usize>, Option<usize>); 9] = [
        ("empty segment file", Some(0), None),
        ("short segment file", Some(10), None),
        ("almost a header", Some(63), None),
        ("a header's length", Some(64), None),
        ("allocated, nothing written", Some(SEGMENT as usize), None),
        ("empty ack file alone", None, Some(0)),
        ("short ack file alone", None, Some(100)),
        ("both empty", Some(0), Some(0)),
        ("both allocated", Some(SEGMENT as usize), Some(5000)),
    ];
    for place in ["log/00", "dead"] {
        for (what, segment, ack) in cases {
            let dir = crash_copy(pristine.path());
            let place = dir.path().join(place);
            let name = next_name(&place);
            for (extension, len) in [("seg", segment), ("ack", ack)] {
                if let Some(len) = len {
                    fs::write(place.join(&name).with_extension(extension), vec![0; len]).unwrap();
                }
            }
            assert_whole(dir.path(), &format!("{what} in {}", place.display()));
        }
    }
}

#[test]
fn a_segment_with_a_torn_header_is_set_aside_and_reported() {
    let pristine = crashed();
    for place in ["log/00", "dead"] {
        for len in [1, 10, 63, 64, 5000] {
            let dir = crash_copy(pristine.path());
            let place = dir.path().join(place);
            let path = place.join(next_name(&place)).with_extension("seg");
            fs::write(&path, vec![0xab; len]).unwrap();
            let (queue, report) = open_any(builder(dir.path()).retry(policy()));
            assert_eq!(report.quarantined.len(), 1, "{report:?}");
            let found = &report.quarantined[0];
            assert_eq!((&found.path, found.offset), (&path, 0));
            assert_eq!((found.len, found.damage), (len as u64, Damage::Header));
            assert_eq!(
                fs::read(found.copy.as_ref().unwrap()).unwrap(),
                vec![0xab; len]
            );
            queue.close().unwrap();
            assert!(!path.exists());
            assert_whole(dir.path(), &format!("{len} bytes in {}", place.display()));
        }
    }
}

#[test]
fn a_last_segment_cut_off_anywhere_loses_only_what_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let payload = |number| payload_of(0x1234_5678_9abc_de00 + number, 40);
    for number in 0..20 {
        queue.enqueue(&payload(number)).unwrap();
    }
    let pristine = crash_copy(dir.path());
    let path = segment_containing(pristine.path(), &payload(0));
    let inner = path.strip_prefix(pristine.path()).unwrap();
    let ends: Vec<_> = (0..20)
        .map(|n| offset_of(&path, &payload(n)) + 40)
        .collect();
    // At many offsets within one record, and around the ends of records.
    let mut cuts: Vec<usize> = (ends[16]..=ends[17]).step_by(5).collect();
    cuts.extend([0, 1, 63, 64, 65, 64 + 31, 64 + 32]);
    cuts.extend([ends[0] - 1, ends[0], ends[19], ends[19] + 1]);
    for cut in cuts {
        for fill in [None, Some(0)] {
            let dir = crash_copy(pristine.path());
            edit(&dir.path().join(inner), |bytes| {
                let len = bytes.len();
                bytes.truncate(cut);
                if let Some(fill) = fill {
                    // As if pages never reached the disk although the file's length did.
                    bytes.resize(len, fill);
                }
            });
            let (queue, _) = open_any(builder(dir.path()));
            let whole = ends.iter().filter(|&&end| end <= cut).count() as u64;
            let mut expected: Vec<_> = (0..whole).map(payload).collect();
            expected.sort();
            assert_eq!(
                drain_payloads(&queue),
                expected,
                "cut at {cut}, filled with {fill:?}"
            );
            queue.enqueue(b"goes on").unwrap();
            assert_eq!(drain_payloads(&queue), [b"goes on"]);
        }
    }
}

#[test]
fn leftovers_of_a_replaced_manifest_and_foreign_files_do_not_prevent_an_open() {
    let dir = crashed();
    fs::write(dir.path().join("MANIFEST.tmp"), b"half a man").unwrap();
    fs::write(dir.path().join("README"), b"do not delete").unwrap();
    for place in ["log/00", "dead"] {
        for name in [
            "notes.txt",
            "7.seg",
            "7.ack",
            "not-a-number-at-all.seg",
            "00000000000000000001.tmp",
        ] {
            fs::write(dir.path().join(place).join(name), b"somebody else's").unwrap();
        }
    }
    assert_whole(dir.path(), "files of others");
    for place in ["log/00", "dead"] {
        let kept = dir.path().join(place).join("notes.txt");
        assert_eq!(fs::read(kept).unwrap(), b"somebody else's");
    }
    assert_eq!(
        fs::read(dir.path().join("README")).unwrap(),
        b"do not delete"
    );
}

#[test]
fn an_interrupted_creation_is_started_again() {
    let cases: [(&str, &[&str]); 6] = [
        ("nothing was created", &[]),
        ("only the lock file", &["LOCK"]),
        ("half a manifest", &["LOCK", "MANIFEST.tmp"]),
        ("half a manifest alone", &["MANIFEST.tmp"]),
        ("its directories", &["LOCK", "log/00/", "log/01/", "dead/"]),
        ("the root of a file system", &["lost+found/"]),
    ];
    for (what, names) in cases {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            match name.strip_suffix('/') {
                Some(name) => fs::create_dir_all(dir.path().join(name)).unwrap(),
                None => fs::write(dir.path().join(name), b"1234").unwrap(),
            }
        }
        let (queue, report) = open_any(builder(dir.path()));
        assert!(report.is_clean(), "{what}: {report:?}");
        queue.enqueue(b"job").unwrap();
        assert_eq!(drain_payloads(&queue), [b"job"], "{what}");
    }
}

/// Checks that opening `dir` is refused and changes nothing in it.
fn assert_refused(dir: &Path, context: &str) -> OpenError {
    let before = listing(dir);
    let error = Queue::builder(dir).open().expect_err(context);
    assert_eq!(listing(dir), before, "{context}: files were changed");
    error
}

#[test]
fn a_manifest_of_another_version_is_refused_and_nothing_is_touched() {
    let dir = crashed();
    edit(&dir.path().join("MANIFEST"), |bytes| {
        bytes[8..12].copy_from_slice(&7u32.to_le_bytes())
    });
    match assert_refused(dir.path(), "version 7") {
        OpenError::ManifestVersion {
            path,
            found,
            supported,
        } => {
            assert_eq!(path, dir.path().join("MANIFEST"));
            assert_eq!((found, supported), (7, 1));
        }
        other => panic!("{other}"),
    }
}

/// Changes the bytes of a file.
type Change = fn(&mut Vec<u8>);

#[test]
fn a_manifest_of_garbage_is_refused_and_nothing_is_touched() {
    let changes: [(&str, Change); 7] = [
        ("empty", Vec::clear),
        ("cut", |bytes| bytes.truncate(20)),
        ("longer", |bytes| bytes.push(0)),
        ("zeros", |bytes| bytes.fill(0)),
        ("text", |bytes| {
            *bytes = b"this is no manifest, nor was it ever".to_vec()
        }),
        ("a flipped bit in the segment size", |bytes| bytes[18] ^= 1),
        ("a flipped bit in the check", |bytes| bytes[33] ^= 0x80),
    ];
    for (what, change) in changes {
        let dir = crashed();
        edit(&dir.path().join("MANIFEST"), change);
        match assert_refused(dir.path(), what) {
            OpenError::ManifestCorrupt { path, .. } => {
                assert_eq!(path, dir.path().join("MANIFEST"), "{what}");
            }
            other => panic!("{what}: {other}"),
        }
    }
}

#[test]
fn a_directory_without_a_manifest_that_is_not_empty_is_refused_and_not_touched() {
    let lost = crashed();
    fs::remove_file(lost.path().join("MANIFEST")).unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("thesis.tex"), b"years of work").unwrap();
    let nested = tempfile::tempdir().unwrap();
    fs::create_dir(nested.path().join("photos")).unwrap();
    for (dir, inside) in [(lost, "dead"), (other, "thesis.tex"), (nested, "photos")] {
        match assert_refused(dir.path(), "no manifest") {
            OpenError::ManifestMissing { path, found } => {
                assert_eq!((path.as_path(), &*found), (dir.path(), inside));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_queue_whose_manifest_is_restored_has_all_its_jobs() {
    let dir = crashed();
    let manifest = dir.path().join("MANIFEST");
    let kept = fs::read(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    assert_refused(dir.path(), "no manifest");
    fs::write(&manifest, kept).unwrap();
    assert_whole(dir.path(), "the manifest is back");
}
