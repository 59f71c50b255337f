//! Tests of the rows of the recovery table in `docs/DESIGN.md`, by their numbers.

use super::*;

#[test]
fn row_1_a_segment_of_zeros_is_ignored_and_its_name_is_not_used_again() {
    let lengths = [0, 10, 63, 64, SIZE as usize];
    // The ack file may have its header already while the segment is shorter than a header.
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
            "the next segment could get the same name"
        );
    }
}

#[test]
fn rows_1_and_6_a_segment_without_records_whose_ack_file_tells_of_jobs_is_reported() {
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
        // Words of another segment, which used the file before.
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
fn row_6_damage_that_was_set_aside_is_not_reported_again_because_the_ack_file_tells_of_jobs() {
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
fn row_1_a_kill_leaves_any_part_of_the_headers_of_a_segment_that_was_being_created() {
    for kept in 0..=u8::MAX {
        for has_ack_file in [false, true] {
            let fixture = Fixture::open(&[]);
            let cut = |bytes: &mut Vec<u8>| {
                for word in (0..8).filter(|word| kept & (1 << word) == 0) {
                    bytes[8 * word..8 * word + 8].fill(0);
                }
            };
            fixture.change_segment(cut);
            match has_ack_file {
                // As far as it was written before the segment's.
                true => fs::write(&fixture.paths.ack, [0; 2000]).unwrap(),
                false => fs::remove_file(&fixture.paths.ack).unwrap(),
            }
            let (log, report) = fixture.recover();
            assert!(log.segments.is_empty() && report.is_clean(), "{kept}");
            assert_eq!(report.quarantined, [], "{kept}, {has_ack_file}");
        }
    }
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
fn row_5_an_impossible_seal_is_ignored() {
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
fn row_6_a_segment_without_records_is_ignored() {
    let fixture = Fixture::open(&[]);
    let (log, report) = fixture.recover();
    assert!(log.segments.is_empty());
    assert_eq!(log.leftovers.len(), 1);
    assert!(report.is_clean());
    // Also if its ack file was never written.
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
        name: b"",
        meta: b"",
        payload: b"",
    };
    assert!(matches!(segment.append(&record), Append::Full { .. }));
    assert_eq!(jobs(segment), [job(0, b"one"), job(1, b"two")]);
}
