//! Tests of a segment from its creation to its retirement: appends, claims, acks, flushes and
//! seals.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::Timestamp;
use crate::log::lease::Lease;
use crate::log::pinned::Pinned;
use crate::log::records::Mender;
use crate::log::recovery::{Damage, Recovery, RecoveryReport};
use crate::log::run::Claim;
use crate::storage::{Directory, faults};

const SIZE: u64 = 16384;

fn identity() -> Identity {
    Identity {
        base: Sequence::new(0x0300_0000_0000_0040),
        segment_size: SIZE,
        created_at: Timestamp::from_nanos(1_700_000_000_000_000_000),
        salt: 0x0123_4567_89ab_cdef,
    }
}

fn job<'a>(after: u64, due_after: u64, meta: &'a [u8], payload: &'a [u8]) -> NewRecord<'a> {
    let start = identity().created_at.as_nanos();
    NewRecord {
        enqueued_at: Timestamp::from_nanos(start + after),
        due_at: match due_after {
            0 => Timestamp::ZERO,
            after => Timestamp::from_nanos(start + after),
        },
        name: b"",
        meta,
        payload,
    }
}

fn append(segment: &Segment, payload: &[u8]) -> Position {
    match segment.append(&job(0, 0, b"", payload)) {
        Append::Done(position) => position,
        Append::Full { .. } => panic!("the segment is full"),
    }
}

fn claim(segment: &Arc<Segment>, max_jobs: u32) -> (Claim, Vec<Lease>) {
    let mut leases = Vec::new();
    let pinned = Pinned::to_claim(segment);
    let claim = pinned.claim_leases(max_jobs, usize::MAX / 2, false, &mut leases);
    (claim, leases)
}

fn indices(segment: &Segment, leases: &[Lease]) -> Vec<u32> {
    leases
        .iter()
        .map(|lease| lease.sequence().offset_from(segment.base()))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|line| {
            line.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
                + "\n"
        })
        .collect()
}

/// Opens the segment in `dir` as the next process would.
fn reopen(dir: &Path, report: &mut RecoveryReport) -> Arc<Segment> {
    let mut recovery = Recovery {
        segment_size: SIZE,
        queue: &Directory::open(dir).unwrap().unwrap(),
        report: RecoveryReport::default(),
        progress: None,
        segments_seen: 0,
    };
    let stripe = Sequence::first_of_stripe(3);
    let log = recovery.recover_directory(&Names::at(dir), stripe).unwrap();
    *report = recovery.report;
    Arc::clone(&log.segments[0])
}

#[test]
fn the_bytes_of_a_sealed_segment_and_its_ack_file_are_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    segment.append(&job(1, 0, b"", b"hello"));
    segment.append(&job(2, 3, b"\x01\x01\x00\x03", b"world!"));
    let (_, mut leases) = claim(&segment, 1);
    let lease = leases.pop().unwrap();
    assert!(lease.begin_delivery().is_running());
    assert!(!lease.ack().segment_complete);
    segment.close_now();
    segment.seal().unwrap();

    let bytes = fs::read(&segment.paths().segment).unwrap();
    // Computed by another program from the tables of the file formats.
    let expected = "\
        6c6f676d696c6c5301000000570c8491\n\
        40000000000000030040000000000000\n\
        00002a36fe9c9717efcdab8967452301\n\
        02000000130000004855021100000000\n\
        25000000ce96b78e0000000001000000\n\
        01002a36fe9c97170000000000000000\n\
        68656c6c6f0000002a00000049ce864b\n\
        010000000100040002002a36fe9c9717\n\
        03002a36fe9c971701010003776f726c\n\
        64210000000000000000000000000000\n";
    assert_eq!(hex(&bytes), expected);

    let bytes = fs::read(&segment.paths().ack).unwrap();
    assert_eq!(bytes.len(), 64 + 8 * 16 + 4 * 510);
    // The header, the mark, and a word with the done bits of the first record and of all bits past
    // the last one.
    let expected = "\
        6c6f676d696c6c410100000095782929\n\
        40000000000000030040000000000000\n\
        00002a36fe9c9717efcdab8967452301\n\
        55b09725a65651480000000000000000\n\
        fdfffffff4b73ba3\n";
    assert_eq!(hex(&bytes[..72]), expected);
    // The delivery word of the first record, which a handler had.
    assert_eq!(bytes[192..196], [0x00, 0x50, 0xb8, 0xf6]);
    let rest = [&bytes[72..192], &bytes[196..]].concat();
    assert!(rest.iter().all(|&byte| byte == 0));
}

#[test]
fn the_bytes_of_a_record_with_a_name_are_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    let record = NewRecord {
        name: b"resize_image",
        ..job(4, 0, b"\x01\x01\x00\x03", b"again")
    };
    segment.append(&record);
    let (_, leases) = claim(&segment, 1);
    assert_eq!(leases[0].name(), b"resize_image");
    assert_eq!(leases[0].payload(), b"again");
    let bytes = fs::read(&segment.paths().segment).unwrap();
    // Computed from the table in `record.rs` by another program.
    let expected = "\
        3500000094e490a800000000010c0400\n\
        04002a36fe9c97170000000000000000\n\
        726573697a655f696d61676501010003\n\
        616761696e000000\n";
    assert_eq!(hex(&bytes[64..][..56]), expected);
}

#[test]
fn a_full_segment_is_settled_by_the_flush_that_began_with_every_record_committed() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    segment.append(&job(1, 0, b"", b"one"));
    segment.flush(false).unwrap();
    assert!(!segment.is_settled());
    let slow = job(2, 0, b"", b"two");
    let Reserved::At(position) = segment.tail.reserve(1, record::units_of(slow.len())) else {
        panic!("there is room");
    };
    segment.close_now();
    segment.flush(false).unwrap();
    assert!(!segment.is_settled());
    segment.commit(
        position,
        record::KIND_JOB,
        &slow,
        segment.content_check(&slow),
    );
    assert!(!segment.is_settled());
    segment.flush(false).unwrap();
    assert!(segment.is_settled());
}

#[test]
fn a_claim_takes_committed_records_in_order_and_ends_on_an_ack_word() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    assert_eq!(claim(&segment, 10).0, Claim::Empty);
    for _ in 0..100 {
        append(&segment, b"x");
    }
    let (found, leases) = claim(&segment, 5);
    assert_eq!(found, Claim::Taken { caught_up: false });
    assert_eq!(indices(&segment, &leases), Vec::from_iter(0..5));
    // A claim ends on an ack word: this one at record 64, so it takes 59.
    let (found, leases) = claim(&segment, 64);
    assert_eq!(found, Claim::Taken { caught_up: false });
    assert_eq!(indices(&segment, &leases), Vec::from_iter(5..64));
    let (found, leases) = claim(&segment, 64);
    assert_eq!(found, Claim::Taken { caught_up: true });
    assert_eq!(indices(&segment, &leases), Vec::from_iter(64..100));
    assert_eq!(claim(&segment, 64).0, Claim::Empty);
    segment.close_now();
    assert_eq!(claim(&segment, 64).0, Claim::Exhausted);
}

#[test]
fn a_claim_is_bounded_by_bytes_but_takes_at_least_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    for _ in 0..4 {
        append(&segment, &[7; 1000]);
    }
    let mut leases = Vec::new();
    let pinned = segment.pin().unwrap();
    let found = pinned.claim_leases(100, 1, false, &mut leases);
    assert_eq!(found, Claim::Taken { caught_up: false });
    assert_eq!(leases.len(), 1);
    // The leases are added to the one from before.
    let found = pinned.claim_leases(100, 1500, false, &mut leases);
    assert_eq!(found, Claim::Taken { caught_up: false });
    assert_eq!(indices(&segment, &leases), [0, 1, 2]);
    assert_eq!(leases[2].record().payload(), [7; 1000]);
}

#[test]
fn a_record_that_an_earlier_process_acked_is_never_claimed() {
    let dir = tempfile::tempdir().unwrap();
    {
        let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
        for _ in 0..200 {
            append(&segment, b"job");
        }
        let (_, leases) = claim(&segment, 224);
        for lease in leases {
            // Leaves one record, after a stretch of done ones that is longer than any claim.
            if lease.sequence().offset_from(segment.base()) != 150 {
                lease.ack();
            }
        }
    }
    let segment = reopen(dir.path(), &mut RecoveryReport::default());
    let (found, leases) = claim(&segment, 32);
    // Not caught up, as nothing is appended to this segment any more.
    assert_eq!(found, Claim::Taken { caught_up: false });
    assert_eq!(indices(&segment, &leases), [150]);
    let (found, rest) = claim(&segment, 32);
    assert_eq!(found, Claim::Exhausted);
    assert!(rest.is_empty());
    assert!(!segment.is_complete());
    let acked = leases.into_iter().map(Lease::ack).next().unwrap();
    assert!(acked.first && acked.segment_complete);
    assert!(segment.is_complete());
}

#[test]
fn of_two_counted_leases_of_a_record_the_first_ack_completes_it() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    append(&segment, b"job");
    let mut leases = Vec::new();
    let pinned = segment.pin().unwrap();
    pinned.claim_leases(10, 1000, true, &mut leases);
    let first = leases.pop().unwrap();
    let second = first.duplicate().unwrap();
    assert!(!segment.close_now());
    assert!(second.ack().segment_complete);
    drop(pinned);
    let mapping = segment.retire().unwrap();
    assert!(segment.pin().is_none());
    // The lease that timed out can still read its payload.
    drop(mapping);
    assert_eq!(first.record().payload(), b"job");
    let late = first.ack();
    assert!(!late.first && !late.segment_complete);
}

#[test]
fn a_segment_is_complete_once_it_is_closed_and_every_record_is_acked() {
    for close_first in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
        for _ in 0..64 {
            append(&segment, b"job");
        }
        let (_, leases) = claim(&segment, 64);
        let mut told = u32::from(close_first && segment.close_now());
        for lease in leases {
            assert!(!segment.is_complete());
            told += u32::from(lease.ack().segment_complete);
        }
        if !close_first {
            assert!(!segment.is_complete());
            told += u32::from(segment.close_now());
        }
        assert!(segment.is_complete());
        assert_eq!(told, 1, "exactly one caller learns that it is complete");
    }
}

#[test]
fn an_empty_segment_is_complete_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    assert!(!segment.is_complete());
    assert!(segment.close_now());
    assert!(segment.is_complete());
    assert!(!segment.close_now());
}

#[test]
fn a_record_that_takes_all_the_room_left_fits_and_the_next_one_closes_the_segment() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    let left = SIZE as usize - header::FILE_HEADER_BYTES - RECORD_HEADER_BYTES;
    append(&segment, &vec![1; left - RECORD_HEADER_BYTES - 8]);
    append(&segment, &[2; 8]);
    assert!(matches!(
        segment.append(&job(0, 0, b"", b"")),
        Append::Full { complete: false }
    ));
    let end = segment.closed().unwrap();
    assert_eq!((end.index, u64::from(end.units) * UNIT as u64), (2, SIZE));
    // The seal cuts nothing off.
    segment.seal().unwrap();
    assert_eq!(fs::metadata(&segment.paths().segment).unwrap().len(), SIZE);
    let (_, leases) = claim(&segment, 10);
    assert_eq!(indices(&segment, &leases), [0, 1]);
    assert_eq!(claim(&segment, 10).0, Claim::Exhausted);
}

#[test]
fn a_walk_that_began_before_the_segment_was_closed_ends_at_its_end_after_the_seal() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    // The record ends with the first page, so that the next commit word is on the second page.
    append(
        &segment,
        &[1; 4096 - header::FILE_HEADER_BYTES - RECORD_HEADER_BYTES],
    );
    let pinned = segment.pin().unwrap();
    let mut records = pinned.records(START);
    assert!(records.next().is_some());
    segment.close_now();
    segment.seal().unwrap();
    // A read past the end of the file would be a SIGBUS.
    assert!(records.next().is_none());
    assert!(fs::metadata(&segment.paths().segment).unwrap().len() < 8192);
}

/// The bytes of the segment file that `act` flushes; None if that is the whole file.
fn flushed_of(segment: &Segment, act: impl FnOnce()) -> Vec<Option<Range<usize>>> {
    let path = segment.paths().segment.path();
    let watch = faults::watch(path.parent().unwrap(), Vec::new());
    act();
    let calls = watch.take_calls();
    let flushes = calls
        .into_iter()
        .filter(|call| call.operation == Operation::Flush && call.path == path);
    flushes.map(|call| call.range).collect()
}

#[test]
fn a_flush_covers_the_pages_from_what_is_durable_to_what_is_reserved() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    let flush = || segment.flush(false).unwrap();
    append(&segment, &[1; 1000]);
    assert_eq!(flushed_of(&segment, flush), [None]);
    append(&segment, &[1; 1000]);
    assert_eq!(flushed_of(&segment, flush), [Some(0..4096)]);
    append(&segment, &[1; 4000]);
    assert_eq!(flushed_of(&segment, flush), [Some(0..8192)]);
    append(&segment, &[1; 4000]);
    assert_eq!(flushed_of(&segment, flush), [Some(4096..12_288)]);
    assert_eq!(flushed_of(&segment, flush), [Some(8192..12_288)]);
    // The records once more, as no flush has begun since it was closed, and then the header.
    segment.close_now();
    let seal = || segment.seal().unwrap();
    assert_eq!(
        flushed_of(&segment, seal),
        [Some(8192..12_288), Some(0..4096)]
    );
}

#[test]
fn what_was_not_committed_during_a_flush_is_covered_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    segment.flush(false).unwrap();
    let late = job(0, 0, b"", &[1; 4000]);
    let Reserved::At(position) = segment.tail.reserve(1, record::units_of(late.len())) else {
        panic!("it fits");
    };
    append(&segment, &[2; 4000]);
    append(&segment, &[3; 100]);
    let flush = || segment.flush(false).unwrap();
    assert_eq!(flushed_of(&segment, flush), [Some(0..12_288)]);
    segment.commit(
        position,
        record::KIND_JOB,
        &late,
        segment.content_check(&late),
    );
    assert_eq!(flushed_of(&segment, flush), [Some(0..12_288)]);
    assert_eq!(flushed_of(&segment, flush), [Some(8192..12_288)]);
}

#[test]
fn a_job_behind_one_that_is_being_written_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    let late = job(0, 0, b"", &[1; 100]);
    let Reserved::At(position) = segment.tail.reserve(1, record::units_of(late.len())) else {
        panic!("it fits");
    };
    append(&segment, b"sought");
    let (is_looking, looks) = mpsc::channel();
    thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let pinned = segment.look().unwrap().unwrap();
            is_looking.send(()).unwrap();
            let found = pinned.find_live(|record| record.header().index == 1);
            let found = found.map(|record| record.payload().to_vec());
            let other = pinned.find_live(|record| record.header().index == 2);
            (found, other.is_some())
        });
        looks.recv().unwrap();
        thread::sleep(Duration::from_millis(20));
        let content = segment.content_check(&late);
        segment.commit(position, record::KIND_JOB, &late, content);
        assert_eq!(looker.join().unwrap(), (Some(b"sought".to_vec()), false));
    });
}

#[test]
fn a_failed_flush_of_the_records_is_final_and_no_seal_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    append(&segment, b"job");
    segment.close_now();
    let fault = faults::fail_flushes(&segment.paths().segment);
    let first = segment.flush(false).unwrap_err();
    drop(fault);
    // The disk works again, so another flush would succeed.
    for _ in 0..2 {
        let again = segment.flush(false).unwrap_err();
        assert!(Arc::ptr_eq(&first, &again));
        assert!(Arc::ptr_eq(&first, &segment.seal().unwrap_err()));
    }
    assert!(!segment.is_sealed());
    let bytes = fs::read(&segment.paths().segment).unwrap();
    assert_eq!(
        bytes[header::SEAL_OFFSET..header::FILE_HEADER_BYTES],
        [0; 16]
    );
    assert_eq!(bytes.len() as u64, SIZE);
}

#[test]
fn a_failed_flush_of_the_acks_is_final_for_the_acks_and_no_seal_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    append(&segment, b"job");
    segment.close_now();
    let fault = faults::fail_flushes(&segment.paths().ack);
    assert!(segment.flush(true).is_err());
    drop(fault);
    assert!(segment.flush(true).is_err());
    assert!(segment.seal().is_err());
    assert!(!segment.is_sealed());
    assert!(
        segment.flush(false).is_ok(),
        "the failed flush of the ack file ended flushes of the records"
    );
}

#[test]
fn a_failed_flush_of_the_names_is_final() {
    let dir = tempfile::tempdir().unwrap();
    let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
    append(&segment, b"job");
    let fault = faults::fail_flushes(dir.path());
    assert!(segment.flush(false).is_err());
    drop(fault);
    assert!(segment.flush(false).is_err());
}

#[test]
fn nothing_is_left_of_a_segment_that_could_not_be_created() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::new(&Names::at(dir.path()), identity().base);
    let fault = faults::fill_disk(paths.segment.path());
    assert!(Segment::create(&Names::at(dir.path()), identity(), Warm::All).is_err());
    drop(fault);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(Segment::create(&Names::at(dir.path()), identity(), Warm::All).is_ok());
}

#[test]
fn records_missing_from_a_sealed_segment_are_damage_and_no_claim_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let paths = {
        let segment = Segment::create(&Names::at(dir.path()), identity(), Warm::All).unwrap();
        for _ in 0..40 {
            append(&segment, b"job");
        }
        segment.close_now();
        segment.seal().unwrap();
        segment.paths().clone()
    };
    let mut bytes = fs::read(&paths.segment).unwrap();
    let end = bytes.len() - 8;
    bytes[end - 80..].fill(0);
    // And one record in the middle.
    bytes[64 + 400..64 + 440].fill(0);
    fs::write(&paths.segment, bytes).unwrap();
    let mut report = RecoveryReport::default();
    let segment = reopen(dir.path(), &mut report);
    assert!(
        segment.is_unscanned(),
        "the open has scanned a sealed segment"
    );
    let mut recovery = Recovery {
        segment_size: SIZE,
        queue: &Directory::open(dir.path()).unwrap().unwrap(),
        report: RecoveryReport::default(),
        progress: None,
        segments_seen: 0,
    };
    recovery
        .scan_later(&Pinned::to_claim(&segment), &mut Mender::new())
        .unwrap();
    segment.set_scanned();
    let found: Vec<_> = recovery.report.quarantined.iter().collect();
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].offset, found[0].len), (464, 40));
    assert_eq!((found[1].offset, found[1].len), (end as u64 - 80, 80));
    assert!(found.iter().all(|region| region.damage == Damage::Uncommitted
        || region.damage == Damage::Checksum));
    let (_, leases) = claim(&segment, 64);
    assert_eq!(leases.len(), 37);
    assert_eq!(claim(&segment, 64).0, Claim::Exhausted);
    let complete = leases
        .into_iter()
        .map(Lease::ack)
        .reduce(|_, last| last)
        .unwrap();
    assert!(
        complete.segment_complete,
        "the missing records do not count as done"
    );
}
