//! Tests of recovery with damaged ack files, copies in quarantine, and files that do not belong to
//! the queue.

use super::*;

#[test]
fn an_invalid_ack_file_is_made_anew_and_its_jobs_are_redelivered() {
    let changes: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(1000),
        |bytes| bytes[20] ^= 1,
        // The header of another segment's ack file.
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
        assert!(report.is_clean(), "the new ack file is not valid");
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
        // Damages the check of the first word, and sets bits in the third, which has no records.
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
fn acks_of_another_segment_that_a_power_cut_leaves_mark_no_job_done() {
    // The ack file was recycled. Its new header reached the disk, the page with the words did not.
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

#[test]
fn damage_at_the_same_place_again_leaves_the_earlier_copy_alone() {
    let fixture = Fixture::open(&[b"one", b"two", b"three"]);
    fixture.change_segment(|bytes| bytes[offset(1) + 32] ^= 1);
    let bad = fs::read(&fixture.paths.segment).unwrap();
    fixture.recover();
    // As if the process had died before the pad was written: the same bytes again need no new copy.
    fs::write(&fixture.paths.segment, &bad).unwrap();
    fixture.recover();
    assert_eq!(fixture.quarantined_bytes().len(), 1);
    // As if it had died while it wrote the pad: other bytes get a second copy.
    fs::write(&fixture.paths.segment, &bad).unwrap();
    fixture.change_segment(|bytes| bytes[offset(1) + 8] ^= 1);
    fixture.recover();
    let copies = fixture.quarantined_bytes();
    assert_eq!(copies.len(), 2);
    assert!(copies.contains(&bad[offset(1)..offset(2)].to_vec()));
}

#[test]
fn damaged_bytes_are_set_aside_and_earlier_copies_kept_whichever_file_cannot_be_inspected() {
    for call in 0..5 {
        let fixture = Fixture::open(&[b"one", b"two", b"three"]);
        let quarantine = fixture.dir.path().join("quarantine");
        fixture.change_segment(|bytes| bytes[offset(1) + 32] ^= 1);
        fixture.recover();
        // Other damage at the same place. Its copy goes beside the earlier one.
        fixture.change_segment(|bytes| {
            bytes[offset(1)..offset(2)].fill(7);
        });
        let plan = Plan {
            operation: Operation::Inspect,
            calls: call..usize::MAX,
            effect: Effect::Fail(Errno::IO),
        };
        let fault = faults::watch(&quarantine, vec![plan]);
        // This recovery may fail or succeed.
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
    assert!(
        later
            .scan_later(&Pinned::to_claim(segment), &mut Mender::new())
            .is_err()
    );
    drop(fault);
    later
        .scan_later(&Pinned::to_claim(segment), &mut Mender::new())
        .unwrap();
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
            name: b"",
            meta: &meta.encode(&[], 1000),
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
    assert!(
        log.settles.is_empty(),
        "a sealed segment owes no settlements"
    );
}

#[test]
fn an_ack_file_that_cannot_be_read_is_an_error_and_nothing_is_rebuilt_or_set_aside() {
    for operation in [Operation::Open, Operation::Read, Operation::ReadIn] {
        for is_header_damaged in [false, true] {
            let fixture = Fixture::open(&[b"one", b"two"]);
            let queue = directory(fixture.dir.path());
            let mut recovery = recovery(&queue);
            if is_header_damaged {
                // The ack file has the only valid copy of the header.
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

#[test]
fn files_that_do_not_belong_to_the_queue_are_left_alone_and_never_block() {
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
fn something_other_than_a_file_in_place_of_a_segment_is_reported_and_left_alone() {
    let fixture = Fixture::open(&[b"one"]);
    let dir = fixture.dir.path();
    let elsewhere = dir.join("elsewhere");
    fs::write(&elsewhere, b"mine").unwrap();
    let names = [51_000, 52_000, 53_000].map(|base| dir.join(format!("{base:020}.seg")));
    fs::create_dir(&names[0]).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &names[1]).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &names[2], fifo, 0o600.into(), 0).unwrap();
    // At each open.
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
        // Nothing was flushed or delivered.
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
        // A delivery without a flush. It tells of a loss until the machine restarts.
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
                recovery(&queue)
                    .scan_later(&pinned, &mut Mender::new())
                    .unwrap();
                segment.set_scanned();
            }
            for (index, payload) in jobs(segment) {
                assert!(index < 50);
                assert_eq!(
                    payload, b"payload",
                    "a job was delivered with another payload"
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

#[test]
fn a_batch_that_is_not_complete_and_held_back_is_reported_as_such_once_it_is_scanned() {
    let payloads: [&[u8]; 3] = [b"one", b"two", b"three"];
    for has_later in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let segment = new_segment(dir.path(), 0, &[b"zero"]);
        let record = |payload| NewRecord {
            enqueued_at: Timestamp::from_nanos(9),
            due_at: Timestamp::ZERO,
            name: b"",
            meta: b"",
            payload,
        };
        let batch = crate::log::segment::Batch::new(payloads.into_iter().map(record), 4080)
            .ok()
            .unwrap();
        assert!(matches!(segment.append_batch(&batch), Append::Done(_)));
        if has_later {
            segment.append(&record(b"later"));
        }
        let fixture = Fixture {
            dir,
            paths: segment.paths().clone(),
        };
        // The last job of the batch did not reach the disk.
        fixture.change_segment(|bytes| bytes[offset(3)..offset(4)].fill(0));
        let quarantine = fixture.dir.path().join("quarantine");
        let fault = faults::fill_disk(&quarantine);
        let (log, _) = fixture.recover();
        let segment = &log.segments[0];
        assert!(segment.is_unscanned());
        drop(fault);
        let queue = directory(fixture.dir.path());
        let mut later = recovery(&queue);
        later
            .scan_later(&Pinned::to_claim(segment), &mut Mender::new())
            .unwrap();
        assert_eq!(
            later.report.quarantined[0].damage,
            Damage::Incomplete,
            "{has_later}"
        );
    }
}
