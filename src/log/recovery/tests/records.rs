//! Tests of recovery with records that are damaged, missing or copied from another place.

use super::*;

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
        // The damaged record is covered by a pad, so the next recovery finds nothing.
        let (log, report) = fixture.recover();
        assert!(report.is_clean());
        assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(2, b"three")]);
    }
}

#[test]
fn a_changed_byte_of_a_segment_loses_at_most_the_job_it_is_in_and_says_so() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    let good = fs::read(&fixture.paths.segment).unwrap();
    // The bytes after a record, up to the next whole unit, belong to no record.
    let owner = |at: usize| {
        let within = (at - 64) % 40;
        let len = [3, 3, 5][(at - 64) / 40];
        (within < 32 + len).then_some((at - 64) / 40)
    };
    let acks = fs::read(&fixture.paths.ack).unwrap();
    for at in 64..offset(3) {
        fs::write(&fixture.paths.segment, &good).unwrap();
        fs::write(&fixture.paths.ack, &acks).unwrap();
        // One bit for each byte. A test in `record.rs` changes each bit of a record.
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
fn a_hole_is_skipped_and_counted_and_is_not_damage() {
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
        // A reservation of 1000 bytes whose payload was copied in part.
        bytes[offset(2) + 32..offset(2) + 300].fill(7);
    });
    let (log, report) = fixture.recover();
    let found = &report.quarantined[0];
    assert_eq!(found.damage, Damage::Uncommitted);
    assert_eq!((found.offset, found.len), (offset(2) as u64, 304));
    assert_eq!(jobs(&log.segments[0]).len(), 2);
}

/// A segment with two records that reuses files, of which an earlier life has left something in
/// each unit from the end of the records on; its ack file says that `durable` records were flushed.
fn reused(durable: usize) -> Fixture {
    let fixture = Fixture::open(&[b"one", b"two"]);
    fixture.change_segment(|bytes| {
        let mut earlier = Vec::new();
        for index in 0.. {
            let record = Header {
                len: 40,
                index,
                kind: KIND_JOB,
                name_len: 0,
                meta_len: 0,
                enqueued_at: Timestamp::ZERO,
                due_at: Timestamp::ZERO,
            };
            earlier.extend_from_slice(&encode(&record, identity(9).salt, &[5; 8]));
            if earlier.len() >= bytes.len() {
                break;
            }
        }
        let from = offset(2);
        bytes[from..].copy_from_slice(&earlier[from - 8..SIZE as usize - 8]);
    });
    let durable = (offset(durable) / UNIT) as u32;
    let word = mark::reused::encode(identity(0).salt, durable);
    fixture.change(&fixture.paths.ack, |bytes| {
        bytes[56..64].copy_from_slice(&word.to_le_bytes());
    });
    fixture
}

#[test]
fn after_a_power_cut_what_an_earlier_life_of_the_files_has_left_is_not_damage() {
    for durable in 0..=2 {
        let fixture = reused(durable);
        let _restarted = mark::pretended::restart();
        let (log, report) = fixture.recover();
        assert_eq!((report.quarantined, report.holes), (Vec::new(), 0));
        assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(1, b"two")]);
        log.segments[0].seal().unwrap();
        drop(log);
        let (log, report) = fixture.recover();
        assert!(report.is_clean());
        assert!(log.segments[0].is_sealed());
    }
}

#[test]
fn without_a_power_cut_bytes_behind_the_records_of_reused_files_are_damage() {
    let fixture = reused(2);
    let (log, report) = fixture.recover();
    assert_eq!(report.quarantined.len(), 1);
    assert_eq!(report.quarantined[0].offset, offset(2) as u64);
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one"), job(1, b"two")]);
}

#[test]
fn a_damaged_record_of_reused_files_is_damage_if_it_was_flushed_or_another_one_follows() {
    for durable in 0..=2 {
        for damaged in 0..2 {
            let fixture = reused(durable);
            fixture.change_segment(|bytes| bytes[offset(damaged) + 33] ^= 1);
            let _restarted = mark::pretended::restart();
            let (log, report) = fixture.recover();
            let (was_flushed, is_followed) = (damaged < durable, damaged == 0);
            let found = &report.quarantined[..];
            if was_flushed || is_followed {
                assert_eq!(found.len(), 1, "{durable} {damaged}");
                let at = (found[0].offset, found[0].len);
                assert_eq!(at, (offset(damaged) as u64, 40));
            } else {
                assert_eq!(found, []);
            }
            let left = log.segments.first().map(jobs).unwrap_or_default();
            let whole = [job(0, b"one"), job(1, b"two")];
            assert_eq!(left, [whole[1 - damaged].clone()]);
        }
    }
}

#[test]
fn bytes_in_the_last_units_of_a_file_are_quarantined_and_no_claim_waits_for_them() {
    let fixture = Fixture::open(&[b"one"]);
    // Cut off two units after the record, which are too few for a header.
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
    // After a seal and another open, the zeros that cover them are not damage.
    log.segments[0].seal().unwrap();
    drop(log);
    let (log, _) = fixture.recover();
    let queue = directory(fixture.dir.path());
    let mut later = recovery(&queue);
    assert!(log.segments[0].is_sealed());
    later
        .scan_later(&Pinned::to_claim(&log.segments[0]), &mut Mender::new())
        .unwrap();
    assert!(later.report.is_clean());
}

#[test]
fn a_pad_at_the_end_is_not_damage_when_the_job_before_it_is_lost() {
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
        .scan_later(&Pinned::to_claim(&log.segments[0]), &mut Mender::new())
        .unwrap();
    assert_eq!(later.report.quarantined, []);
    log.segments[0].set_scanned();
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one")]);
}

#[test]
fn bytes_after_the_end_that_a_seal_names_are_never_read() {
    let fixture = Fixture::sealed(&[b"one"]);
    fixture.change_segment(|bytes| {
        // A valid record, which was not there when the segment was sealed, and garbage after it.
        let record = Header {
            len: 40,
            index: 1,
            kind: KIND_JOB,
            name_len: 0,
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
        .scan_later(&Pinned::to_claim(&log.segments[0]), &mut Mender::new())
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
        .scan_later(&Pinned::to_claim(&log.segments[0]), &mut Mender::new())
        .unwrap();
    log.segments[0].set_scanned();
    assert_eq!(later.report.quarantined.len(), 1);
    assert_eq!(jobs(&log.segments[0]), [job(0, b"one")]);
}

/// A record of a kind that this version does not know, valid otherwise.
fn add_unknown_kind(bytes: &mut [u8], at: usize) {
    let record = Header {
        len: 40,
        index: 1,
        kind: 6,
        name_len: 0,
        meta_len: 0,
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
    };
    bytes[at..][..40].copy_from_slice(&encode(&record, identity(0).salt, &[5; 8]));
}

#[test]
fn a_segment_with_a_record_of_a_later_version_is_refused_and_stays_as_it_is() {
    // Sealed segments are scanned later, others at open.
    for is_sealed in [false, true] {
        let payloads: [&[u8]; 3] = [b"one", &[0; 8], b"three"];
        let fixture = match is_sealed {
            false => Fixture::open(&payloads),
            true => Fixture::sealed(&payloads),
        };
        fixture.change_segment(|bytes| {
            add_unknown_kind(bytes, offset(1));
            // Damage beside it is not mended, either.
            bytes[offset(2) + 33] ^= 1;
        });
        let before = fs::read(&fixture.paths.segment).unwrap();
        let queue = directory(fixture.dir.path());
        let mut recovery = recovery(&queue);
        let opened = recovery.recover_directory(&Names::at(fixture.dir.path()), origin());
        let error = match opened {
            Err(error) => error,
            Ok(log) => recovery
                .scan_later(&Pinned::to_claim(&log.segments[0]), &mut Mender::new())
                .unwrap_err(),
        };
        let text = error.to_string();
        assert!(text.contains("a later version of this library"), "{text}");
        assert!(text.contains(&format!("byte {}", offset(1))), "{text}");
        assert_eq!(fs::read(&fixture.paths.segment).unwrap(), before);
        assert_eq!(fixture.quarantined_bytes(), Vec::<Vec<u8>>::new());
    }
}

fn encode(header: &Header, salt: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = header.len.to_le_bytes().to_vec();
    bytes.extend_from_slice(
        &header
            .check_over(salt, b"", crc32fast::hash(content))
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
    // Copied forwards, the ordinal is one that is past. Copied backwards, it is too high for the
    // few bytes before it.
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
fn a_record_longer_than_any_that_is_appended_is_damage_although_its_check_passes() {
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
fn a_payload_of_fake_headers_is_not_a_record_and_hides_none_after_it() {
    // As the first word of a header, this is a length of 2000 bytes. As the second, it is ordinal
    // 2000, kind 1. So each unit from the 8000th on looks like a header that only its checksum
    // refuses.
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
        name_len: 0,
        meta_len: 0,
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
    };
    bytes.extend_from_slice(&encode(&record, 1, &[5; 8]));
    fs::write(&path, &bytes).unwrap();
    let mut records = Records::open(Entry::at(&path), bytes.len() as u64, Purpose::Look).unwrap();
    let limit = Position {
        index: segment::capacity_of(bytes.len() as u64),
        units: (bytes.len() / UNIT) as u32,
    };
    let scan = Scan::run(
        records.sole_access().raw(),
        ScanLimit::AtMost(limit),
        1,
        usize::MAX,
    );
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
