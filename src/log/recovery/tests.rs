//! Each row of the decision table, and what a scan makes of damage.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::log::mark;
use crate::log::record::{Header, KIND_JOB, Meta, NewRecord, RECORD_HEADER_BYTES};
use crate::log::run::Claim;
use crate::log::segment::{Append, Warm};
use crate::storage::Operation;
use crate::storage::faults::{self, Effect, Plan};

const SIZE: u64 = 16384;

/// A directory with one segment, as a process that died left it.
struct Fixture {
    dir: tempfile::TempDir,
    paths: Paths,
}

fn origin() -> Sequence {
    Sequence::first_of_stripe(2)
}

fn identity(base: u64) -> Identity {
    Identity {
        base: origin().plus_wide(base),
        segment_size: SIZE,
        created_at: Timestamp::from_nanos(7),
        salt: 0x5eed + base,
    }
}

fn new_segment(dir: &Path, base: u64, payloads: &[&[u8]]) -> Arc<Segment> {
    let segment = Segment::create(&Names::at(dir), identity(base), Warm::All).unwrap();
    for payload in payloads {
        let record = NewRecord {
            enqueued_at: Timestamp::from_nanos(9),
            due_at: Timestamp::ZERO,
            meta: b"",
            payload,
        };
        assert!(matches!(segment.append(&record), Append::Done(_)));
    }
    segment
}

impl Fixture {
    /// Not sealed.
    fn open(payloads: &[&[u8]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = new_segment(dir.path(), 0, payloads).paths().clone();
        Self { dir, paths }
    }

    fn sealed(payloads: &[&[u8]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let segment = new_segment(dir.path(), 0, payloads);
        segment.close_now();
        segment.seal().unwrap();
        let paths = segment.paths().clone();
        Self { dir, paths }
    }

    fn change(&self, path: impl AsRef<Path>, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn change_segment(&self, change: impl FnOnce(&mut Vec<u8>)) {
        self.change(&self.paths.segment, change);
    }

    fn recover(&self) -> (RecoveredLog, RecoveryReport) {
        recover(self.dir.path())
    }

    fn quarantined_bytes(&self) -> Vec<Vec<u8>> {
        let Ok(copies) = fs::read_dir(self.dir.path().join("quarantine")) else {
            return Vec::new();
        };
        let mut paths: Vec<_> = copies.map(|copy| copy.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "bin"));
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }
}

fn directory(path: &Path) -> Directory {
    Directory::open(path).unwrap().unwrap()
}

fn recovery(queue: &Directory) -> Recovery<'_> {
    Recovery {
        segment_size: SIZE,
        queue,
        report: RecoveryReport::default(),
        progress: None,
        segments_seen: 0,
    }
}

fn recover(dir: &Path) -> (RecoveredLog, RecoveryReport) {
    let queue = directory(dir);
    let mut recovery = recovery(&queue);
    let log = recovery
        .recover_directory(&Names::at(dir), origin())
        .unwrap();
    (log, recovery.report)
}

/// The jobs that can be claimed, with their ordinals.
fn jobs(segment: &Arc<Segment>) -> Vec<(u32, Vec<u8>)> {
    let pinned = Pinned::to_claim(segment);
    let mut leases = Vec::new();
    loop {
        match pinned.claim_leases(1000, usize::MAX / 2, false, &mut leases) {
            Claim::Taken { .. } => {}
            Claim::Exhausted => break,
            Claim::Empty => panic!("a claim waits in a segment that nobody appends to"),
        }
    }
    leases
        .iter()
        .map(|lease| {
            let index = lease.sequence().offset_from(segment.base());
            (index, lease.record().payload().to_vec())
        })
        .collect()
}

fn job(index: u32, payload: &[u8]) -> (u32, Vec<u8>) {
    (index, payload.to_vec())
}

/// Offset of the n-th record, if all payloads have up to 8 bytes.
fn offset(n: usize) -> usize {
    header::FILE_HEADER_BYTES + n * (RECORD_HEADER_BYTES + 8)
}

// The decision table.

#[test]
fn row_1_a_segment_without_a_byte_in_it_is_nothing() {
    let lengths = [0, 10, 63, 64, SIZE as usize];
    // The ack file may have got its header, if the segment did not get even its length.
    for (len, with_ack) in
        lengths
            .map(|len| (len, false))
            .into_iter()
            .chain([(0, true), (10, true), (63, true)])
    {
        let fixture = Fixture::open(&[]);
        fs::write(&fixture.paths.segment, vec![0; len]).unwrap();
        if !with_ack {
            fs::remove_file(&fixture.paths.ack).unwrap();
        }
        let (log, report) = fixture.recover();
        assert!(log.segments.is_empty(), "{len} {with_ack}");
        assert_eq!(log.leftovers.len(), 1);
        assert_eq!(report, RecoveryReport::default());
        let capacity = segment::capacity_of(SIZE);
        assert_eq!(
            log.next_base,
            origin().plus(capacity),
            "its name is used up"
        );
    }
}

#[test]
fn rows_1_and_6_nothing_found_where_the_ack_file_tells_of_jobs_is_reported() {
    let acks = |fixture: &Fixture| {
        let capacity = segment::capacity_of(SIZE);
        let file = MappedFile::open(
            fixture.paths.ack.clone(),
            ack::file_bytes(capacity),
            Purpose::Look,
        )
        .unwrap();
        AckFile::new(file, capacity, identity(0).salt)
    };
    type Past = fn(&AckFile);
    let cases: [(bool, Past); 6] = [
        (true, |acks| assert!(acks.begin_delivery(3).is_running())),
        (true, |acks| assert_eq!(acks.set(3), Some(false))),
        (true, |acks| {
            acks.store_bits(0, u32::MAX);
            acks.begin_delivery(32);
        }),
        (false, |acks| {
            acks.store_bits(0, u32::MAX);
            acks.begin_delivery(31);
        }),
        // What another segment has left in the file.
        (false, |acks| {
            let other = Identity {
                salt: u64::MAX,
                ..identity(0)
            };
            let len = ack::file_bytes(acks.capacity());
            let file = MappedFile::open(acks.file.entry().clone(), len, Purpose::Look).unwrap();
            let acks = AckFile::new(file, acks.capacity(), other.salt);
            acks.set(3);
            acks.begin_delivery(3);
        }),
        (false, |_| ()),
    ];
    for (at, (is_reported, past)) in cases.into_iter().enumerate() {
        for (len, header) in [(0, 0), (63, 0), (SIZE as usize, 0), (SIZE as usize, 64)] {
            let fixture = Fixture::open(&[]);
            past(&acks(&fixture));
            fixture.change_segment(|bytes| {
                bytes.truncate(len);
                bytes[..len]
                    .iter_mut()
                    .skip(header)
                    .for_each(|byte| *byte = 0);
            });
            let (log, report) = fixture.recover();
            assert!(log.segments.is_empty());
            let found = report.quarantined.iter();
            let found = found.map(|found| (found.offset, found.len, found.damage));
            let expected = is_reported.then_some((0, SIZE, Damage::Truncated));
            assert!(found.eq(expected), "{at} {len} {header}: {report:?}");
        }
    }
}

#[test]
fn row_6_what_was_set_aside_is_not_reported_again_because_the_ack_file_tells_of_it() {
    let fixture = Fixture::open(&[b"job"]);
    fixture.change_segment(|bytes| bytes[offset(0)..offset(0) + 8].fill(0));
    let (log, report) = fixture.recover();
    assert_eq!(report.quarantined.len(), 1);
    Pinned::to_claim(&log.segments[0])
        .maps()
        .acks
        .begin_delivery(0);
    drop(log);
    let (log, report) = fixture.recover();
    assert!(log.segments.is_empty());
    assert_eq!(report.quarantined, []);
}

#[test]
fn row_2_a_segment_with_bytes_but_no_header_is_quarantined_whole() {
    for len in [5, 63, 64, SIZE as usize - 3, SIZE as usize] {
        let fixture = Fixture::open(&[]);
        let mut bytes = vec![0; len];
        bytes[len - 1] = 1;
        fs::write(&fixture.paths.segment, &bytes).unwrap();
        fs::write(&fixture.paths.ack, [0; 2000]).unwrap();
        let (log, report) = fixture.recover();
        assert!(log.segments.is_empty());
        assert_eq!(log.reported.len(), 1);
        let found = &report.quarantined[0];
        assert_eq!((found.offset, found.len), (0, len as u64));
        assert_eq!(found.damage, Damage::Header);
        assert_eq!(fixture.quarantined_bytes(), [bytes]);
        let text = found.copy.as_ref().unwrap().with_extension("txt");
        let text = fs::read_to_string(text).unwrap();
        assert!(text.contains(&fixture.paths.segment.path().display().to_string()));
        assert!(text.contains("has no valid header"));
    }
}

#[test]
fn row_2_a_segment_cut_off_within_its_header_is_quarantined_though_the_ack_file_knows_it() {
    let fixture = Fixture::open(&[b"job"]);
    fixture.change_segment(|bytes| bytes.truncate(40));
    let (log, report) = fixture.recover();
    assert!(log.segments.is_empty());
    assert_eq!(report.quarantined[0].damage, Damage::Truncated);
    assert_eq!(fixture.quarantined_bytes()[0].len(), 40);
}

#[test]
fn row_3_a_header_is_mended_from_the_ack_file_and_the_jobs_are_kept() {
    for sealed in [false, true] {
        let payloads: [&[u8]; 2] = [b"one", b"two"];
        let fixture = if sealed {
            Fixture::sealed(&payloads)
        } else {
            Fixture::open(&payloads)
        };
        let before = fs::read(&fixture.paths.segment).unwrap();
        fixture.change_segment(|bytes| bytes[..48].fill(0xee));
        let (log, report) = fixture.recover();
        assert_eq!(report.headers_mended, [fixture.paths.segment.path()]);
        assert!(report.quarantined.is_empty());
        assert_eq!(log.segments[0].is_sealed(), sealed);
        log.segments[0].set_scanned();
        assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(1, b"two")]);
        assert_eq!(fs::read(&fixture.paths.segment).unwrap(), before);
    }
}

#[test]
fn row_4_a_sealed_segment_is_trusted_and_scanned_later() {
    let fixture = Fixture::sealed(&[b"one", b"two"]);
    let (log, report) = fixture.recover();
    assert_eq!((report.segments, report.sealed, report.scanned), (1, 1, 0));
    assert_eq!((report.records, report.bytes_scanned), (2, 0));
    assert!(report.is_clean());
    assert!(log.segments[0].is_sealed() && log.segments[0].is_unscanned());
}

#[test]
fn row_4_a_sealed_segment_is_trusted_before_it_is_truncated() {
    let fixture = Fixture::sealed(&[b"one"]);
    fixture.change_segment(|bytes| bytes.resize(SIZE as usize, 0));
    let (_, report) = fixture.recover();
    assert_eq!((report.sealed, report.is_clean()), (1, true));
}

#[test]
fn row_5_a_sealed_segment_that_is_cut_off_is_scanned_and_reported() {
    let fixture = Fixture::sealed(&[b"one", b"two", b"three"]);
    fixture.change_segment(|bytes| bytes.truncate(offset(2)));
    let (log, report) = fixture.recover();
    assert_eq!((report.sealed, report.scanned), (0, 1));
    let found = &report.quarantined[0];
    assert_eq!(found.damage, Damage::Truncated);
    assert_eq!((found.offset, found.len), (offset(2) as u64, 40));
    assert_eq!(found.copy, None);
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(1, b"two")]);
}

#[test]
fn row_5_a_sealed_segment_of_which_only_the_header_is_left_is_reported() {
    let fixture = Fixture::sealed(&[b"one"]);
    fixture.change_segment(|bytes| bytes.truncate(64));
    let (log, report) = fixture.recover();
    assert!(log.segments.is_empty());
    assert_eq!(report.quarantined[0].damage, Damage::Truncated);
    assert_eq!(report.quarantined[0].len, 40);
}

#[test]
fn row_5_a_segment_without_a_seal_that_is_shorter_than_it_was_made_is_reported() {
    for (cut, left) in [
        (header::FILE_HEADER_BYTES, 0),
        (offset(1), 1),
        (offset(1) + 9, 1),
        (offset(2), 2),
        (SIZE as usize - 1, 2),
    ] {
        let fixture = Fixture::open(&[b"one", b"two"]);
        fixture.change_segment(|bytes| bytes.truncate(cut));
        let (log, report) = fixture.recover();
        let is_cut = |found: &&Quarantined| found.damage == Damage::Truncated;
        let found: Vec<_> = report.quarantined.iter().filter(is_cut).collect();
        assert_eq!(found.len(), 1, "{report:?}");
        assert_eq!(found[0].offset + found[0].len, SIZE);
        assert_eq!(log.segments.len(), usize::from(left > 0));
        assert!(
            log.segments
                .iter()
                .all(|segment| jobs(segment).len() == left)
        );
    }
}

#[test]
fn row_5_a_seal_that_cannot_be_is_none() {
    for (index, units) in [
        (3, 8 + 3 * 4 - 1),
        (0, 7),
        (1, SIZE as u32 / 8 + 1),
        (511, 2048),
    ] {
        let fixture = Fixture::open(&[b"one", b"two", b"three"]);
        fixture.change_segment(|bytes| {
            let (word, check) = header::encode_seal(identity(0).salt, Position { index, units });
            bytes[48..56].copy_from_slice(&word.to_le_bytes());
            bytes[56..60].copy_from_slice(&check.to_le_bytes());
        });
        let (log, report) = fixture.recover();
        assert_eq!((report.sealed, report.scanned), (0, 1), "{index} {units}");
        assert_eq!(jobs(&log.segments[0]).len(), 3);
    }
}

#[test]
fn row_6_a_segment_without_a_record_is_nothing() {
    let fixture = Fixture::open(&[]);
    let (log, report) = fixture.recover();
    assert!(log.segments.is_empty());
    assert_eq!(log.leftovers.len(), 1);
    assert!(report.is_clean());
    // Nor if its ack file was never written.
    fs::write(&fixture.paths.ack, b"").unwrap();
    let (log, report) = fixture.recover();
    assert!(log.segments.is_empty());
    assert!(report.is_clean());
    assert_eq!(fs::metadata(&fixture.paths.ack).unwrap().len(), 0);
}

#[test]
fn row_7_a_segment_that_is_not_sealed_is_scanned_and_closed_for_appends() {
    let fixture = Fixture::open(&[b"one", b"two"]);
    let (log, report) = fixture.recover();
    assert_eq!((report.segments, report.scanned, report.records), (1, 1, 2));
    assert_eq!(report.bytes_scanned, SIZE);
    assert!(report.is_clean());
    let segment = &log.segments[0];
    let record = NewRecord {
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
        meta: b"",
        payload: b"",
    };
    assert!(matches!(segment.append(&record), Append::Full { .. }));
    assert_eq!(jobs(segment), [job(0, b"one"), job(1, b"two")]);
}

// Ack files.

#[test]
fn an_ack_file_that_is_no_good_is_made_anew_and_its_jobs_are_redelivered() {
    let changes: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(1000),
        |bytes| bytes[20] ^= 1,
        // Another segment's.
        |bytes| bytes[..64].copy_from_slice(&identity(510).encode(FileKind::Ack)),
    ];
    for change in changes {
        let fixture = Fixture::open(&[b"one", b"two"]);
        let (log, _) = fixture.recover();
        Pinned::to_claim(&log.segments[0]).mark_done(0);
        drop(log);
        fixture.change(&fixture.paths.ack, change);
        let (log, report) = fixture.recover();
        assert_eq!(report.ack_files_rebuilt, [fixture.paths.ack.path()]);
        assert_eq!(jobs(&log.segments[0]).len(), 2);
        drop(log);
        let (_, report) = fixture.recover();
        assert!(report.is_clean(), "the new one is good");
    }
}

#[test]
fn a_damaged_ack_word_is_reset_and_stray_bits_past_the_last_record_do_nothing() {
    let payloads = vec![b"job".as_slice(); 40];
    let fixture = Fixture::open(&payloads);
    let (log, _) = fixture.recover();
    for index in 0..40 {
        if index != 35 {
            Pinned::to_claim(&log.segments[0]).mark_done(index);
        }
    }
    drop(log);
    fixture.change(&fixture.paths.ack, |bytes| {
        // The code of the first word, and the third word, which no record has.
        bytes[64 + 4] ^= 1;
        let salt = bytes[40..48].try_into().map(u64::from_le_bytes).unwrap();
        let third = ack::Key::new(salt).word_of(0xff);
        bytes[64 + 16..64 + 24].copy_from_slice(&third.to_le_bytes());
    });
    let (log, report) = fixture.recover();
    assert_eq!(report.ack_words_reset, 1);
    let mut expected = Vec::from_iter(0..32);
    expected.push(35);
    let found: Vec<_> = jobs(&log.segments[0]).iter().map(|job| job.0).collect();
    assert_eq!(found, expected);
    assert_eq!(log.segments[0].not_acked(), 7);
}

#[test]
fn what_a_power_cut_leaves_of_another_segments_acks_marks_no_job_done() {
    // Its files were used again: the header was written back, the page with the words was not.
    let payloads = vec![b"job".as_slice(); 40];
    let fixture = Fixture::open(&payloads);
    let other = new_segment(fixture.dir.path(), 510, &payloads);
    for index in 0..40 {
        Pinned::to_claim(&other).mark_done(index);
    }
    let words = fs::read(&other.paths().ack).unwrap();
    fixture.change(&fixture.paths.ack, |bytes| {
        bytes[64..].copy_from_slice(&words[64..]);
    });
    let (log, report) = fixture.recover();
    assert_eq!(report.ack_words_reset, 2);
    assert_eq!(jobs(&log.segments[0]).len(), 40);
}

// Scans.

#[test]
fn a_bad_record_in_the_middle_is_quarantined_and_its_neighbours_are_kept() {
    for at in [0, 4, 8, 12, 20, 31, 33] {
        let fixture = Fixture::open(&[b"one", b"two", b"three"]);
        let mut bad = Vec::new();
        fixture.change_segment(|bytes| {
            bytes[offset(1) + at] ^= 0x10;
            bad = bytes[offset(1)..offset(2)].to_vec();
        });
        let (log, report) = fixture.recover();
        assert_eq!(report.quarantined.len(), 1, "{at}");
        let found = &report.quarantined[0];
        assert_eq!(found.damage, Damage::Checksum);
        assert_eq!((found.offset, found.len), (offset(1) as u64, 40));
        assert_eq!(fixture.quarantined_bytes(), [bad]);
        assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(2, b"three")]);
        drop(log);
        // The pad over it makes the next recovery find nothing new.
        let (log, report) = fixture.recover();
        assert!(report.is_clean());
        assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(2, b"three")]);
    }
}

#[test]
fn a_changed_byte_of_a_segment_loses_at_most_the_job_it_is_in_and_says_so() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    let good = fs::read(&fixture.paths.segment).unwrap();
    // Bytes that pad a record to whole units belong to no record.
    let owner = |at: usize| {
        let within = (at - 64) % 40;
        let len = [3, 3, 5][(at - 64) / 40];
        (within < 32 + len).then_some((at - 64) / 40)
    };
    let acks = fs::read(&fixture.paths.ack).unwrap();
    for at in 64..offset(3) {
        fs::write(&fixture.paths.segment, &good).unwrap();
        fs::write(&fixture.paths.ack, &acks).unwrap();
        // `record.rs` tests that each bit counts.
        fixture.change_segment(|bytes| bytes[at] ^= 1 << (at % 8));
        let (log, report) = fixture.recover();
        let mut expected = vec![job(0, b"one"), job(1, b"two"), job(2, b"three")];
        if let Some(lost) = owner(at) {
            expected.remove(lost);
        }
        assert_eq!(jobs(&log.segments[0]), expected, "byte {at}");
        assert_eq!(report.is_clean(), owner(at).is_none());
    }
}

#[test]
fn a_hole_is_passed_and_counted_and_is_no_damage() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    fixture.change_segment(|bytes| bytes[offset(1)..offset(2)].fill(0));
    let (log, report) = fixture.recover();
    assert_eq!((report.holes, report.is_clean()), (1, true));
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(2, b"three")]);
    assert_eq!(log.segments[0].not_acked(), 1);
}

#[test]
fn a_record_that_was_never_committed_is_quarantined_wherever_it_is() {
    for n in 0..3 {
        let fixture = Fixture::open(&[b"one", b"two", b"three"]);
        fixture.change_segment(|bytes| bytes[offset(n)..offset(n) + 4].fill(0));
        let (log, report) = fixture.recover();
        assert_eq!(report.quarantined[0].damage, Damage::Uncommitted);
        assert_eq!(report.quarantined[0].offset, offset(n) as u64);
        assert_eq!(jobs(&log.segments[0]).len(), 2);
    }
}

#[test]
fn a_torn_end_is_quarantined_as_far_as_anything_was_written() {
    let fixture = Fixture::open(&[b"one", b"two"]);
    fixture.change_segment(|bytes| {
        // A reservation of 1000 bytes, of which the payload was copied in part.
        bytes[offset(2) + 32..offset(2) + 300].fill(7);
    });
    let (log, report) = fixture.recover();
    let found = &report.quarantined[0];
    assert_eq!(found.damage, Damage::Uncommitted);
    assert_eq!((found.offset, found.len), (offset(2) as u64, 304));
    assert_eq!(jobs(&log.segments[0]).len(), 2);
}

#[test]
fn bytes_in_the_last_units_of_a_file_are_quarantined_and_no_claim_waits_for_them() {
    let fixture = Fixture::open(&[b"one"]);
    // Cut so that two units are left after the record, too few for a header.
    fixture.change_segment(|bytes| {
        bytes.truncate(offset(1) + 16);
        bytes[offset(1) + 9] = 1;
    });
    let (log, report) = fixture.recover();
    let [cut, found] = &report.quarantined[..] else {
        panic!("{report:?}");
    };
    assert_eq!(
        (cut.damage, cut.offset),
        (Damage::Truncated, found.offset + 16)
    );
    assert_eq!((found.offset, found.len), (offset(1) as u64, 16));
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one")]);
    // Sealed and found again, the zeros over it are no damage.
    log.segments[0].seal().unwrap();
    drop(log);
    let (log, _) = fixture.recover();
    let queue = directory(fixture.dir.path());
    let mut later = recovery(&queue);
    assert!(log.segments[0].is_sealed());
    later
        .scan_later(&Pinned::to_claim(&log.segments[0]))
        .unwrap();
    assert!(later.report.is_clean());
}

#[test]
fn a_pad_at_the_end_is_no_damage_because_the_job_before_it_was_lost() {
    let fixture = Fixture::open(&[b"one", b"two", b"torn"]);
    fixture.change_segment(|bytes| bytes[offset(2) + 32] ^= 1);
    drop(fixture.recover());
    // The process dies before the segment is sealed, and then the job before the pad is damaged.
    fixture.change_segment(|bytes| bytes[offset(1) + 32] ^= 1);
    let (log, _) = fixture.recover();
    log.segments[0].seal().unwrap();
    drop(log);
    let (log, _) = fixture.recover();
    let queue = directory(fixture.dir.path());
    let mut later = recovery(&queue);
    assert!(log.segments[0].is_sealed());
    later
        .scan_later(&Pinned::to_claim(&log.segments[0]))
        .unwrap();
    assert_eq!(later.report.quarantined, []);
    log.segments[0].set_scanned();
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one")]);
}

#[test]
fn bytes_after_the_end_that_a_seal_names_are_never_looked_at() {
    let fixture = Fixture::sealed(&[b"one"]);
    fixture.change_segment(|bytes| {
        // A valid record, which was not there when the segment was sealed.
        let record = Header {
            len: 40,
            index: 1,
            kind: KIND_JOB,
            meta_len: 0,
            enqueued_at: Timestamp::ZERO,
            due_at: Timestamp::ZERO,
        };
        bytes.truncate(offset(1));
        bytes.extend_from_slice(&encode(&record, identity(0).salt, &[5; 8]));
        bytes.resize(SIZE as usize, 9);
    });
    let (log, _) = fixture.recover();
    let queue = directory(fixture.dir.path());
    let mut later = recovery(&queue);
    later
        .scan_later(&Pinned::to_claim(&log.segments[0]))
        .unwrap();
    log.segments[0].set_scanned();
    assert!(later.report.is_clean());
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one")]);
}

#[test]
fn a_seal_that_names_fewer_records_than_there_are_cannot_complete_a_segment_with_leases() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    fixture.change_segment(|bytes| {
        let end = Position {
            index: 1,
            units: (offset(3) / UNIT) as u32,
        };
        let (word, check) = header::encode_seal(identity(0).salt, end);
        bytes[48..56].copy_from_slice(&word.to_le_bytes());
        bytes[56..60].copy_from_slice(&check.to_le_bytes());
    });
    let (log, _) = fixture.recover();
    let queue = directory(fixture.dir.path());
    let mut later = recovery(&queue);
    later
        .scan_later(&Pinned::to_claim(&log.segments[0]))
        .unwrap();
    log.segments[0].set_scanned();
    assert_eq!(later.report.quarantined.len(), 1);
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one")]);
}

fn encode(header: &Header, salt: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = header.len.to_le_bytes().to_vec();
    bytes.extend_from_slice(
        &header
            .check_over(salt, crc32fast::hash(content))
            .to_le_bytes(),
    );
    bytes.extend_from_slice(&header.identity_word().to_le_bytes());
    bytes.extend_from_slice(&header.enqueued_at.as_nanos().to_le_bytes());
    bytes.extend_from_slice(&header.due_at.as_nanos().to_le_bytes());
    bytes.extend_from_slice(content);
    bytes
}

#[test]
fn a_record_copied_from_another_segment_is_refused() {
    let fixture = Fixture::open(&[b"one", b"two"]);
    let other = new_segment(fixture.dir.path(), 510, &[b"xxx", b"yyy"]);
    let stranger = fs::read(&other.paths().segment).unwrap();
    fixture.change_segment(|bytes| {
        bytes[offset(1)..offset(2)].copy_from_slice(&stranger[offset(1)..offset(2)]);
    });
    let (log, report) = fixture.recover();
    assert_eq!(report.quarantined.len(), 1);
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one")]);
}

#[test]
fn a_record_copied_to_another_ordinal_is_refused() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    // Backwards, where its ordinal is past, and forwards, where it is too early for so few bytes.
    for (from, to) in [(0, 1), (2, 1), (2, 0)] {
        fixture.change_segment(|bytes| {
            let record = bytes[offset(from)..offset(from + 1)].to_vec();
            bytes[offset(to)..offset(to + 1)].copy_from_slice(&record);
        });
        let (log, report) = fixture.recover();
        assert!(!report.is_clean());
        let found = jobs(&log.segments[0]);
        assert!(found.is_sorted());
        assert!(
            found.iter().all(|found| {
                found.1 == [b"one".as_slice(), b"two", b"three"][found.0 as usize]
            })
        );
        assert!(!found.iter().any(|found| found.0 as usize == to));
        drop(log);
        let payloads: [&[u8]; 3] = [b"one", b"two", b"three"];
        fs::remove_file(&fixture.paths.segment).unwrap();
        fs::remove_file(&fixture.paths.ack).unwrap();
        new_segment(fixture.dir.path(), 0, &payloads);
    }
}

#[test]
fn a_record_longer_than_any_that_is_appended_is_damage_though_it_checks() {
    let longest = crate::log::max_record_bytes(SIZE) - RECORD_HEADER_BYTES;
    for len in [longest, longest + 1] {
        let payload = vec![7; len];
        let fixture = Fixture::open(&[b"one", &payload, b"two"]);
        let (log, report) = fixture.recover();
        let mut expected = vec![job(0, b"one"), job(2, b"two")];
        if len == longest {
            expected.insert(1, job(1, &payload));
        }
        assert_eq!(jobs(&log.segments[0]), expected);
        assert_eq!(report.is_clean(), len == longest);
    }
}

#[test]
fn many_damaged_regions_make_one_copy_and_are_all_reported() {
    let payloads = vec![b"job".as_slice(); 100];
    let fixture = Fixture::open(&payloads);
    fixture.change_segment(|bytes| {
        for n in (1..100).step_by(2) {
            bytes[offset(n) + 32] ^= 1;
        }
    });
    let (log, report) = fixture.recover();
    assert_eq!(report.quarantined.len(), 50);
    let copies = fixture.quarantined_bytes();
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].len(), offset(100) - offset(1));
    let expected: Vec<_> = (0..100).step_by(2).collect();
    let found: Vec<_> = jobs(&log.segments[0]).iter().map(|job| job.0).collect();
    assert_eq!(found, expected);
}

#[test]
fn damage_at_the_same_place_again_leaves_the_earlier_copy_alone() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    fixture.change_segment(|bytes| bytes[offset(1) + 32] ^= 1);
    let bad = fs::read(&fixture.paths.segment).unwrap();
    fixture.recover();
    // As if the process had died before the pad was written: the same bytes, one copy.
    fs::write(&fixture.paths.segment, &bad).unwrap();
    fixture.recover();
    assert_eq!(fixture.quarantined_bytes().len(), 1);
    // As if it had died while it wrote the pad: other bytes, a second copy.
    fs::write(&fixture.paths.segment, &bad).unwrap();
    fixture.change_segment(|bytes| bytes[offset(1) + 8] ^= 1);
    fixture.recover();
    let copies = fixture.quarantined_bytes();
    assert_eq!(copies.len(), 2);
    assert!(copies.contains(&bad[offset(1)..offset(2)].to_vec()));
}

#[test]
fn damaged_bytes_are_set_aside_and_earlier_copies_kept_whatever_cannot_be_looked_at() {
    for call in 0..5 {
        let fixture = Fixture::open(&[b"one", b"two", b"three"]);
        let quarantine = fixture.dir.path().join("quarantine");
        fixture.change_segment(|bytes| bytes[offset(1) + 32] ^= 1);
        fixture.recover();
        // Again, with other bytes. They go beside the earlier copy.
        fixture.change_segment(|bytes| {
            bytes[offset(1)..offset(2)].fill(7);
        });
        let plan = Plan {
            operation: Operation::Inspect,
            calls: call..usize::MAX,
            effect: Effect::Fail(Errno::IO),
        };
        let fault = faults::watch(&quarantine, vec![plan]);
        // Whether it goes well or not.
        let queue = directory(fixture.dir.path());
        let _ = recovery(&queue).recover_directory(&Names::at(fixture.dir.path()), origin());
        fault.lift();
        fixture.recover();
        let copies = fixture.quarantined_bytes();
        assert_eq!(copies.len(), 2, "call {call}");
        assert!(copies.contains(&vec![7; offset(2) - offset(1)]));
    }
}

#[test]
fn a_damaged_segment_is_held_back_while_the_quarantine_does_not_fit_the_disk() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    fixture.change_segment(|bytes| bytes[offset(1) + 32] ^= 1);
    let before = fs::read(&fixture.paths.segment).unwrap();
    let quarantine = fixture.dir.path().join("quarantine");
    let fault = faults::fill_disk(&quarantine);
    let (log, _) = fixture.recover();
    let segment = &log.segments[0];
    assert!(segment.is_unscanned() && !segment.is_sealed());
    assert_eq!(fs::read(&fixture.paths.segment).unwrap(), before);
    let queue = directory(fixture.dir.path());
    let mut later = recovery(&queue);
    assert!(later.scan_later(&Pinned::to_claim(segment)).is_err());
    drop(fault);
    later.scan_later(&Pinned::to_claim(segment)).unwrap();
    segment.set_scanned();
    assert_eq!(later.report.quarantined.len(), 1);
    assert_eq!(jobs(segment), [job(0, b"one"), job(2, b"three")]);
}

#[test]
fn replays_are_collected_from_scanned_segments_whether_their_jobs_are_done_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let segment = new_segment(dir.path(), 0, &[b"plain"]);
    for letter in [11, 12] {
        let meta = Meta {
            settles: Some(Sequence::new(letter)),
            ..Meta::default()
        };
        let record = NewRecord {
            enqueued_at: Timestamp::ZERO,
            due_at: Timestamp::ZERO,
            meta: &meta.encode(1000),
            payload: b"again",
        };
        segment.append(&record);
    }
    Pinned::to_claim(&segment).mark_done(2);
    let (log, _) = recover(dir.path());
    assert_eq!(log.settles, [Sequence::new(11), Sequence::new(12)]);
    segment.close_now();
    segment.seal().unwrap();
    let (log, _) = recover(dir.path());
    assert!(log.settles.is_empty(), "sealed: their letters were settled");
}

#[test]
fn a_payload_of_fake_headers_is_no_record_and_hides_none_after_it() {
    // As a first word: a record of 2000 bytes. As a second: ordinal 2000, kind 1. So each unit
    // from the 8000th on is a header that only its checksum can refuse.
    const FAKE: u64 = (KIND_JOB as u64) << 32 | 2000;
    const LEN: usize = 1024 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("segment");
    let mut bytes = vec![0; 64];
    while bytes.len() < LEN {
        bytes.extend_from_slice(&FAKE.to_le_bytes());
    }
    let record = Header {
        len: 40,
        index: 2001,
        kind: KIND_JOB,
        meta_len: 0,
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
    };
    bytes.extend_from_slice(&encode(&record, 1, &[5; 8]));
    fs::write(&path, &bytes).unwrap();
    let records = Records::open(Entry::at(&path), bytes.len() as u64, Purpose::Look).unwrap();
    let limit = Position {
        index: segment::capacity_of(bytes.len() as u64),
        units: (bytes.len() / UNIT) as u32,
    };
    let scan = Scan::run(&records, ScanLimit::AtMost(limit), 1, usize::MAX);
    assert_eq!(
        scan.end,
        Position {
            index: 2002,
            ..limit
        }
    );
    assert_eq!(scan.missing, [(0, 2001)]);
    assert_eq!(scan.regions.len(), 1);
    assert_eq!(
        (scan.regions[0].from, scan.regions[0].to),
        (8, LEN as u32 / 8)
    );
}

#[test]
fn nothing_is_given_up_for_an_ack_file_that_cannot_be_read_now() {
    for operation in [Operation::Open, Operation::Read, Operation::ReadIn] {
        for is_header_damaged in [false, true] {
            let fixture = Fixture::open(&[b"one", b"two"]);
            let queue = directory(fixture.dir.path());
            let mut recovery = recovery(&queue);
            if is_header_damaged {
                // The ack file has the only copy of it.
                fixture.change_segment(|bytes| bytes[20] ^= 1);
            }
            let acks = fs::read(&fixture.paths.ack).unwrap();
            let plan = Plan {
                operation,
                calls: 0..usize::MAX,
                effect: Effect::Fail(Errno::FAULT),
            };
            let fault = faults::watch(fixture.paths.ack.path(), vec![plan]);
            let recovered = recovery.recover_directory(&Names::at(fixture.dir.path()), origin());
            let error = recovered.err().unwrap();
            assert_eq!(error.path(), fixture.paths.ack.path());
            drop(fault);
            assert_eq!(fs::read(&fixture.paths.ack).unwrap(), acks);
            let (log, report) = fixture.recover();
            assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(1, b"two")]);
            assert_eq!(
                (report.quarantined, report.ack_files_rebuilt),
                (vec![], vec![])
            );
        }
    }
}

// Directories.

#[test]
fn files_that_are_none_of_ours_are_left_alone_and_never_block() {
    let fixture = Fixture::open(&[b"one"]);
    let dir = fixture.dir.path();
    let foreign = [
        "+0000000000000000001.seg",
        "0000000000000000001.seg",
        "00000000000000000x01.seg",
        "99999999999999999999.seg",
        "00072057594037927935.seg",
        "72057594037927935.ack",
        "notes.txt",
    ];
    for name in foreign {
        fs::write(dir.join(name), b"mine").unwrap();
    }
    fs::create_dir(dir.join("00000000000000052000.ack")).unwrap();
    let (log, report) = fixture.recover();
    assert_eq!((log.segments.len(), log.leftovers.len()), (1, 0));
    assert!(report.is_clean());
    for name in foreign {
        assert_eq!(fs::read(dir.join(name)).unwrap(), b"mine");
    }
}

#[test]
fn what_stands_in_a_segments_place_and_is_no_file_is_reported_and_left_alone() {
    let fixture = Fixture::open(&[b"one"]);
    let dir = fixture.dir.path();
    let elsewhere = dir.join("elsewhere");
    fs::write(&elsewhere, b"mine").unwrap();
    let names = [51_000, 52_000, 53_000].map(|base| dir.join(format!("{base:020}.seg")));
    fs::create_dir(&names[0]).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &names[1]).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &names[2], fifo, 0o600.into(), 0).unwrap();
    // As long as it is so.
    for _ in 0..2 {
        let (log, report) = fixture.recover();
        assert_eq!((log.segments.len(), log.leftovers.len()), (1, 0));
        let missing: Vec<_> = report.quarantined.iter().map(|one| &one.path).collect();
        assert_eq!(missing, names.iter().collect::<Vec<_>>());
        assert!(
            report
                .quarantined
                .iter()
                .all(|one| one.damage == Damage::Missing)
        );
        assert!(!report.is_clean());
        // A new segment does not collide with them.
        assert_eq!(log.next_base, origin().plus_wide(53_000 + 510));
    }
    assert_eq!(fs::read(elsewhere).unwrap(), b"mine");
}

#[test]
fn an_ack_file_alone_is_a_loss_if_its_segment_was_flushed_and_not_finished() {
    type Past = fn(&Arc<Segment>);
    let cases: [(bool, Past); 5] = [
        // Nothing was promised.
        (false, |_| ()),
        (true, |segment| segment.flush(false).unwrap()),
        (true, |segment| {
            segment.close_now();
            segment.seal().unwrap();
        }),
        (false, |segment| {
            segment.flush(true).unwrap();
            segment.close_now();
            segment.pin().unwrap().mark_done(0);
            segment.finish(false).unwrap();
        }),
        // Not even a flush is needed while the machine has not restarted.
        (true, |segment| {
            let mut leases = Vec::new();
            segment
                .pin()
                .unwrap()
                .claim_leases(1, 1000, false, &mut leases);
            leases.pop().unwrap().begin_delivery();
        }),
    ];
    for (number, (is_loss, past)) in cases.into_iter().enumerate() {
        let fixture = Fixture::open(&[b"one"]);
        let other = new_segment(fixture.dir.path(), 510, &[b"x"]);
        past(&other);
        fs::remove_file(&other.paths().segment).unwrap();
        let (log, report) = fixture.recover();
        let lost: Vec<_> = report
            .quarantined
            .iter()
            .map(|one| (&*one.path, one.damage))
            .collect();
        let missing = [(other.paths().segment.path(), Damage::Missing)];
        assert_eq!(
            lost,
            if is_loss { &missing[..] } else { &[] },
            "case {number}"
        );
        assert_eq!(
            (log.reported.len(), log.leftovers.len()),
            (usize::from(is_loss), usize::from(!is_loss))
        );
        let _restarted = mark::pretended::restart();
        let (_, report) = fixture.recover();
        let is_durable = is_loss && number != 4;
        assert_eq!(report.is_clean(), !is_durable, "case {number}");
    }
}

#[test]
fn an_ack_file_alone_is_a_leftover_and_its_sequences_are_used_up() {
    let fixture = Fixture::open(&[b"one"]);
    let other = new_segment(fixture.dir.path(), 510, &[b"x"]);
    fs::remove_file(&other.paths().segment).unwrap();
    let (log, report) = fixture.recover();
    assert_eq!(log.segments.len(), 1);
    assert_eq!(log.leftovers.len(), 1);
    assert_eq!(log.leftovers[0].ack.path(), other.paths().ack.path());
    assert_eq!(log.next_base, origin().plus_wide(2 * 510));
    assert!(report.is_clean());
}

#[test]
fn a_segment_under_another_name_or_of_another_size_is_quarantined() {
    let fixture = Fixture::open(&[b"one"]);
    let moved = Paths::new(&Names::at(fixture.dir.path()), origin().plus_wide(510));
    fs::rename(&fixture.paths.segment, &moved.segment).unwrap();
    fs::rename(&fixture.paths.ack, &moved.ack).unwrap();
    let (log, report) = fixture.recover();
    assert!(log.segments.is_empty());
    assert_eq!(report.quarantined[0].damage, Damage::Header);
    assert_eq!(fixture.quarantined_bytes()[0].len() as u64, SIZE);
}

#[test]
fn arbitrary_bytes_in_any_file_never_panic_and_never_block() {
    let mut random = fastrand::Rng::with_seed(3);
    let good_payloads = vec![b"payload".as_slice(); 50];
    let fixture = Fixture::open(&good_payloads);
    let segment = fs::read(&fixture.paths.segment).unwrap();
    let acks = fs::read(&fixture.paths.ack).unwrap();
    for _ in 0..150 {
        for (path, good) in [
            (&fixture.paths.segment, &segment),
            (&fixture.paths.ack, &acks),
        ] {
            let mut bytes = good.clone();
            for _ in 0..random.usize(0..20) {
                let from = random.usize(0..bytes.len());
                let to = (from + random.usize(1..100)).min(bytes.len());
                match random.u8(0..3) {
                    0 => bytes[from..to].fill(0),
                    1 => bytes[from..to].fill_with(|| random.u8(..)),
                    _ => bytes[from] ^= 1 << random.u8(0..8),
                }
            }
            if random.u8(0..4) == 0 {
                bytes.truncate(random.usize(0..=bytes.len()));
            }
            fs::write(path, bytes).unwrap();
        }
        let (log, _) = fixture.recover();
        for segment in &log.segments {
            if segment.is_unscanned() {
                let queue = directory(fixture.dir.path());
                let pinned = Pinned::to_claim(segment);
                recovery(&queue).scan_later(&pinned).unwrap();
                segment.set_scanned();
            }
            for (index, payload) in jobs(segment) {
                assert!(index < 50);
                assert_eq!(
                    payload, b"payload",
                    "what is delivered is what was enqueued"
                );
            }
        }
        drop(log);
        let (_, report) = fixture.recover();
        assert!(
            report
                .quarantined
                .iter()
                .all(|found| found.damage == Damage::Header || found.damage == Damage::Truncated)
        );
    }
}
