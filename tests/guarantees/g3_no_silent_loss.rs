//! Tests of guarantee 3, nothing is lost silently: a record that fails its check is never
//! delivered; its bytes are copied to quarantine, and it is counted and reported.
//!
//! A dead letter keeps its payload, attempts, reasons and times until it is purged: `g2_no_poison`
//! tests that it keeps them, and `api_dead_letters` tests the purge.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use logmill::{Damage, Quarantined, RetryPolicy};
use tempfile::TempDir;

use crate::support::*;

const JOBS: u64 = 30;
const VICTIM: u64 = 11;

/// The payload of job `number`, which occurs nowhere else in the files.
fn payload(number: u64) -> Vec<u8> {
    payload_of(0x5eed_0000_0000 + number, 48)
}

fn survivors() -> Vec<Vec<u8>> {
    let mut survivors: Vec<_> = (0..JOBS)
        .filter(|&number| number != VICTIM)
        .map(payload)
        .collect();
    survivors.sort();
    survivors
}

/// A queue whose only segment is unsealed, as a crash leaves it.
fn unsealed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..JOBS {
        queue.enqueue(&payload(number)).unwrap();
    }
    crash_copy(dir.path())
}

/// A queue whose only segment is sealed.
fn sealed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..JOBS {
        queue.enqueue(&payload(number)).unwrap();
    }
    queue.close().unwrap();
    dir
}

/// Flips a bit in the victim's payload; returns the file and the offset of the byte.
fn flip_in_victim(queue_dir: &Path) -> (PathBuf, usize) {
    let path = segment_containing(queue_dir, &payload(VICTIM));
    let at = offset_of(&path, &payload(VICTIM)) + 20;
    edit(&path, |bytes| bytes[at] ^= 0x10);
    (path, at)
}

/// Checks that `found` covers the byte at `at`, and that the copy in quarantine has the original
/// bytes.
fn assert_set_aside(found: &Quarantined, before: &[u8], at: usize) {
    let (from, len) = (found.offset as usize, found.len as usize);
    assert!((from..from + len).contains(&at), "{at} is not in {found:?}");
    let copy = found.copy.as_ref().expect("the bytes were copied");
    assert_eq!(fs::read(copy).unwrap(), before[from..from + len]);
    let about = fs::read_to_string(copy.with_extension("txt")).unwrap();
    assert!(about.contains(found.path.to_str().unwrap()), "{about}");
}

#[test]
fn a_flipped_bit_in_an_unsealed_segment_is_quarantined_and_in_the_report() {
    let dir = unsealed();
    let (path, at) = flip_in_victim(dir.path());
    let before = fs::read(&path).unwrap();

    let (queue, report) = open_any(builder(dir.path()));
    assert!(!report.is_clean());
    assert_eq!(report.quarantined.len(), 1, "{report:?}");
    let found = &report.quarantined[0];
    assert_eq!((&found.path, found.damage), (&path, Damage::Checksum));
    assert_set_aside(found, &before, at);
    assert_eq!(report.jobs, JOBS - 1);
    assert_eq!(drain_payloads(&queue), survivors());
    queue.close().unwrap();

    // Recovery covered the damage: the next open has nothing to report, and does not deliver the
    // job.
    let queue = open(builder(dir.path()));
    assert_eq!(drain(&queue), []);
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_quarantined_when_the_segment_is_first_claimed_from() {
    let dir = sealed();
    let (path, at) = flip_in_victim(dir.path());
    let before = fs::read(&path).unwrap();

    // An open trusts seals, so it does not read every segment.
    let (queue, report) = open_any(builder(dir.path()));
    assert_eq!((report.sealed, report.scanned, report.jobs), (1, 0, JOBS));
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(queue.stats().quarantined, 0);
    assert_eq!(drain_payloads(&queue), survivors());
    assert_eq!(queue.stats().quarantined, 1);
    let found = queue.verify().unwrap().damaged;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0].path, found[0].damage), (&path, Damage::Checksum));
    assert_set_aside(&found[0], &before, at);
}

#[test]
fn verify_finds_a_flipped_bit_before_anything_is_claimed() {
    let dir = sealed();
    let (path, at) = flip_in_victim(dir.path());
    let before = fs::read(&path).unwrap();
    let queue = open(builder(dir.path()));
    let found = queue.verify().unwrap().damaged;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_set_aside(&found[0], &before, at);
    assert_eq!(drain_payloads(&queue), survivors());
}

/// Damages each byte of a record in turn, and checks that this record is reported and not
/// delivered, and that all others are delivered.
fn every_byte_of_a_record(damaged_before_open: TempDir) {
    let pristine = damaged_before_open;
    let path = segment_containing(pristine.path(), &payload(VICTIM));
    let inner = path.strip_prefix(pristine.path()).unwrap();
    let end = offset_of(&path, &payload(VICTIM)) + payload(VICTIM).len();
    // Starts at the end of the previous payload, to include the header of the record.
    let start = offset_of(&path, &payload(VICTIM - 1)) + payload(VICTIM - 1).len();
    for at in start..end {
        let dir = crash_copy(pristine.path());
        edit(&dir.path().join(inner), |bytes| bytes[at] ^= 1 << (at % 8));
        let (queue, report) = open_any(builder(dir.path()));
        assert_eq!(drain_payloads(&queue), survivors(), "byte {at}");
        let found = queue.verify().unwrap().damaged;
        let traces = report.quarantined.len() + found.len();
        assert!(
            traces > 0,
            "damage to byte {at} was not reported: {report:?}"
        );
    }
}

#[test]
fn any_damaged_byte_of_a_record_in_an_unsealed_segment_is_found() {
    every_byte_of_a_record(unsealed());
}

#[test]
fn any_damaged_byte_of_a_record_in_a_sealed_segment_is_found() {
    every_byte_of_a_record(sealed());
}

#[test]
fn a_record_that_lost_its_length_is_set_aside_as_uncommitted() {
    let dir = unsealed();
    let path = segment_containing(dir.path(), &payload(VICTIM));
    let before_it = offset_of(&path, &payload(VICTIM - 1)) + payload(VICTIM - 1).len();
    edit(&path, |bytes| bytes[before_it..before_it + 4].fill(0));
    let before = fs::read(&path).unwrap();
    let (queue, report) = open_any(builder(dir.path()));
    assert_eq!(report.quarantined.len(), 1, "{report:?}");
    assert_eq!(report.quarantined[0].damage, Damage::Uncommitted);
    assert_set_aside(&report.quarantined[0], &before, before_it);
    assert_eq!(drain_payloads(&queue), survivors());
}

#[test]
fn a_stretch_of_garbage_costs_only_the_records_that_it_hits() {
    let dir = unsealed();
    let path = segment_containing(dir.path(), &payload(VICTIM));
    let from = offset_of(&path, &payload(10)) + 5;
    let to = offset_of(&path, &payload(14)) + 5;
    edit(&path, |bytes| bytes[from..to].fill(0xa5));
    let (queue, report) = open_any(builder(dir.path()));
    assert!(!report.quarantined.is_empty());
    let mut left: Vec<_> = (0..10).chain(15..JOBS).map(payload).collect();
    left.sort();
    assert_eq!(drain_payloads(&queue), left);
    assert_eq!(report.jobs, left.len() as u64);
}

#[test]
fn jobs_enqueued_after_damage_was_found_are_delivered_like_any_other() {
    let dir = unsealed();
    flip_in_victim(dir.path());
    let (queue, _) = open_any(builder(dir.path()));
    let more: Vec<_> = (JOBS..JOBS + 2000).map(payload).collect();
    for payload in &more {
        queue.enqueue(payload).unwrap();
    }
    let mut expected = survivors();
    expected.extend(more);
    expected.sort();
    assert_eq!(drain_payloads(&queue), expected);
}

#[test]
fn a_sealed_segment_that_is_cut_off_is_reported_and_what_is_left_of_it_delivered() {
    let dir = sealed();
    let path = segment_containing(dir.path(), &payload(VICTIM));
    let cut = offset_of(&path, &payload(20)) + 7;
    edit(&path, |bytes| bytes.truncate(cut));
    let (queue, report) = open_any(builder(dir.path()));
    assert!(!report.is_clean());
    assert!(
        report
            .quarantined
            .iter()
            .any(|one| one.damage == Damage::Truncated),
        "{report:?}"
    );
    let mut left: Vec<_> = (0..20).map(payload).collect();
    left.sort();
    assert_eq!(drain_payloads(&queue), left);
}

#[test]
fn a_segment_header_is_mended_from_the_ack_file_and_reported() {
    for dir in [unsealed(), sealed()] {
        let path = segment_containing(dir.path(), &payload(0));
        // Bytes 0 to 48 are the header's identity and its check; the seal follows.
        edit(&path, |bytes| bytes[..48].fill(0xee));
        let (queue, report) = open_any(builder(dir.path()));
        assert_eq!(report.headers_mended, [path]);
        assert!(!report.is_clean());
        assert_eq!(drain(&queue).len() as u64, JOBS);
    }
}

#[test]
fn a_segment_without_any_valid_header_is_set_aside_whole_and_the_others_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..200 {
        queue.enqueue(&payload_of(number, 1000)).unwrap();
    }
    queue.close().unwrap();
    let path = segment_files(dir.path())[1].clone();
    edit(&path, |bytes| bytes[..64].fill(0xee));
    edit(&path.with_extension("ack"), |bytes| bytes[..64].fill(0xee));
    let before = fs::read(&path).unwrap();
    let lost: Vec<u64> = (0..200)
        .filter(|&number| contains(&before, &payload_of(number, 1000)))
        .collect();
    assert!(lost.len() > 10, "the segment had jobs");

    let (queue, report) = open_any(builder(dir.path()));
    assert_eq!(report.quarantined.len(), 1, "{report:?}");
    let found = &report.quarantined[0];
    assert_eq!((&found.path, found.damage), (&path, Damage::Header));
    assert_set_aside(found, &before, 0);
    let left: Vec<u64> = (0..200).filter(|number| !lost.contains(number)).collect();
    assert_eq!(drain_numbers(&queue), left);
    queue.close().unwrap();
    assert_eq!(drain(&open(builder(dir.path()))), []);
}

#[test]
fn a_damaged_letter_is_quarantined_and_the_other_letters_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let policy = || RetryPolicy::fixed(Duration::ZERO).max_attempts(1);
    let queue = open(builder(dir.path()).retry(policy()));
    for number in 0..JOBS {
        queue.enqueue(&payload(number)).unwrap();
    }
    let consumer = queue.consumer();
    for _ in 0..JOBS {
        consumer.next_timeout(PATIENCE).unwrap().retry("no");
    }
    queue.flush().unwrap();
    drop(consumer);
    let unsealed = crash_copy(dir.path());
    queue.close().unwrap();

    for dir in [unsealed, dir] {
        let dead = files(&dir.path().join("dead"), "seg");
        let path = dead
            .iter()
            .find(|path| contains(&fs::read(path).unwrap(), &payload(VICTIM)))
            .expect("the letter is in the dead letter log");
        let at = offset_of(path, &payload(VICTIM)) + 20;
        edit(path, |bytes| bytes[at] ^= 0x10);
        let (queue, report) = open_any(builder(dir.path()).retry(policy()));
        let mut kept: Vec<_> = queue
            .dead_letters()
            .iter()
            .map(|letter| letter.payload().to_vec())
            .collect();
        kept.sort();
        assert_eq!(kept, survivors());
        assert_eq!(queue.stats().dead, JOBS - 1);
        let later = queue.verify().unwrap().damaged.len();
        assert_eq!(report.quarantined.len() + later, 1, "{report:?}");
    }
}

#[test]
fn files_and_directories_that_are_lost_are_reported_once() {
    type Loss = fn(&Path) -> PathBuf;
    let losses: [Loss; 6] = [
        |dir| {
            let lost = segment_files(dir).swap_remove(2);
            fs::remove_file(&lost).unwrap();
            lost
        },
        |dir| {
            let lost = segment_files(dir).swap_remove(2);
            fs::write(&lost, b"").unwrap();
            lost
        },
        |dir| {
            let lost = dir.join("log/00");
            fs::remove_dir_all(&lost).unwrap();
            lost
        },
        |dir| {
            let lost = dir.join("log");
            fs::remove_dir_all(&lost).unwrap();
            lost
        },
        |dir| {
            let lost = dir.join("dead");
            fs::remove_dir_all(&lost).unwrap();
            lost
        },
        |dir| {
            let lost = segment_files(dir).swap_remove(2).with_extension("ack");
            fs::remove_file(&lost).unwrap();
            lost
        },
    ];
    for loss in losses {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(builder(dir.path()));
        for number in 0..300 {
            queue.enqueue(&payload_of(number, 1000)).unwrap();
        }
        queue
            .consumer()
            .next()
            .unwrap()
            .dead_letter("not retryable");
        // Only the job that became a letter was ever delivered.
        queue.close().unwrap();
        let lost = loss(dir.path());
        let (queue, report) = open_any(builder(dir.path()));
        assert!(!report.is_clean(), "{}", lost.display());
        let mut reported = report.quarantined.iter().map(|one| &one.path);
        let is_reported = reported.any(|path| *path == lost);
        assert!(is_reported || report.ack_files_rebuilt == [lost]);
        queue.close().unwrap();
        open(builder(dir.path()));
    }
}
