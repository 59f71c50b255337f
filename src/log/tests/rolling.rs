//! Tests of a log from append to retirement: rolls to the next segment, sequences, closing.

use super::*;
use crate::log::header;
use crate::log::mark::pretended;
use crate::log::segment::START;

/// From where on, after a restart of the machine, bytes of an earlier life of its files may stand in
/// the active segment.
fn reused_from(stripe: &Log) -> Option<u32> {
    let active = stripe.active();
    let bytes = fs::read(active.paths().ack.path()).unwrap();
    let _restarted = pretended::restart();
    header::decode_reused(active.identity().salt, &bytes)
}

#[test]
fn files_that_are_used_again_say_so_and_how_far_they_are_durable() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 3);
    assert_eq!(reused_from(&stripe), None);
    ack_all(&stripe);
    stripe.reclaim().unwrap();
    stripe.prepare();
    append(&stripe, &LARGE);
    assert_eq!(reused_from(&stripe), Some(START.units));
    stripe.flush(true).unwrap();
    let durable = Some(stripe.active().reached().units);
    assert_eq!(reused_from(&stripe), durable);
    append(&stripe, b"job");
    let path = stripe.active().paths().segment.path().to_path_buf();
    let failing = faults::fail_flushes(&path);
    assert!(stripe.flush(true).is_err());
    drop(failing);
    assert_eq!(reused_from(&stripe), durable);
}

#[test]
fn files_that_are_used_again_are_zeroed_in_pieces_and_a_roll_zeroes_what_is_left() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let reclaim_some = || stripe.reclaim_into(&mut stripe.maintenance.lock(), 1000);
    let is_zeroing = || stripe.look_again() == Some(zeroing::PAUSE);
    fill_segments(&stripe, 3);
    ack_all(&stripe);
    let mut pieces = 0;
    loop {
        reclaim_some().unwrap();
        // Nothing is made of new files meanwhile.
        stripe.prepare();
        if !is_zeroing() {
            break;
        }
        pieces += 1;
        assert!(stripe.next.lock().prepared.is_none());
    }
    assert!(pieces > SIZE / 1000 / 2, "{pieces}");
    assert!(stripe.next.lock().prepared.is_some());
    // Now the roll comes first.
    append(&stripe, &LARGE);
    assert!(reused_from(&stripe).is_some());
    while stripe.next.lock().reserve() > 0 {
        append(&stripe, &LARGE);
    }
    (1..LARGE_PER_SEGMENT).for_each(|_| _ = append(&stripe, &LARGE));
    ack_all(&stripe);
    reclaim_some().unwrap();
    assert!(is_zeroing());
    append(&stripe, &LARGE);
    assert!(reused_from(&stripe).is_some());
    assert!(!is_zeroing());
    assert_eq!(claim_all(&stripe).len(), 1);
}

#[test]
fn records_are_claimed_in_log_order_across_segments() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let appended = fill_segments(&stripe, 3);
    assert!(appended.is_sorted());
    assert_eq!(sequences(&claim_all(&stripe)), appended);
    assert_eq!(fixture.files(".seg").len(), 3);
    // The next append rolls.
    append(&stripe, b"");
    let capacity = capacity_of(SIZE);
    assert_eq!(stripe.active().base(), origin().plus(3 * capacity));
    assert_eq!(claim_all(&stripe).len(), 1);
}

#[test]
fn a_cached_segment_that_is_old_is_brought_up_to_date() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let mut cached = stripe.active();
    fill_segments(&stripe, 2);
    let sequence = stripe.append(&mut cached, &record(b"last")).unwrap();
    assert_eq!(cached.base(), stripe.active().base());
    assert_eq!(sequences(&claim_all(&stripe)).last(), Some(&sequence));
}

#[test]
fn a_batch_has_sequences_without_a_gap_and_moves_to_the_next_segment_as_a_whole() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    for _ in 0..LARGE_PER_SEGMENT - 1 {
        append(&stripe, &LARGE);
    }
    let batch: [&[u8]; 3] = [&LARGE, b"x", &LARGE];
    let batch = stripe.batch(batch.into_iter().map(record)).unwrap();
    let mut cached = stripe.active();
    let first = stripe.append_batch(&mut cached, &batch).unwrap();
    assert_eq!(first, origin().plus(capacity_of(SIZE)));
    let claimed = sequences(&claim_all(&stripe));
    assert_eq!(
        claimed[LARGE_PER_SEGMENT as usize - 1..],
        [first, first.plus(1), first.plus(2)]
    );
}

#[test]
fn the_longest_record_is_a_quarter_of_a_segment_and_at_most_16_mib() {
    assert_eq!(max_record_bytes(16384), (16384 - 64) / 4);
    assert_eq!(max_record_bytes(64 << 20), (16 << 20) - 16);
    assert_eq!(max_record_bytes(1 << 30), 16 << 20);
}

#[test]
fn a_roll_takes_the_prepared_segment_and_asks_for_another() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    stripe.prepare();
    stripe.prepare();
    assert_eq!(fixture.files(".seg").len(), 2);
    let kicks = fixture.kicks.load(Ordering::Relaxed);
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    assert_eq!(fixture.files(".seg").len(), 2);
    assert!(fixture.kicks.load(Ordering::Relaxed) > kicks);
}

#[test]
fn complete_segments_are_retired_in_any_order_but_never_the_active_one() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 3);
    stripe.prepare();
    let leases = claim_all(&stripe);
    let (middle, others): (Vec<_>, Vec<_>) = leases
        .into_iter()
        .partition(|lease| lease.segment_base() == origin().plus(capacity_of(SIZE)));
    middle.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    let third = origin().plus(2 * capacity_of(SIZE));
    let names = |bases: &[u64]| {
        let expected: Vec<_> = bases.iter().map(|base| format!("{base:020}.seg")).collect();
        assert_eq!(fixture.files(".seg"), expected);
        assert_eq!(fixture.files(".ack").len(), expected.len());
    };
    // The first and the third segment, and the prepared one.
    names(&[0, third.within_stripe(), 3 * 510]);
    others.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    names(&[third.within_stripe(), 3 * 510]);
    assert!(claim_all(&stripe).is_empty());
    append(&stripe, &LARGE);
    assert_eq!(claim_all(&stripe).len(), 1);
}

#[test]
fn a_segment_is_unmapped_only_when_no_thread_reads_it_any_more() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    let pinned = stripe.pin_containing(origin()).unwrap().unwrap();
    ack_all(&stripe);
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
    assert!(stripe.pin_containing(origin()).unwrap().is_none());
    // The records can be read although the files are gone.
    assert!(
        pinned
            .records(segment::START)
            .all(|record| record.payload() == LARGE)
    );
    assert_eq!(
        pinned.records(segment::START).count() as u32,
        LARGE_PER_SEGMENT
    );
    drop(pinned);
    stripe.reclaim().unwrap();
}

#[test]
fn an_ack_file_stays_until_the_removal_of_its_segment_is_durable() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    ack_all(&stripe);
    // From here on, a caller may rely on these acks.
    stripe.flush(true).unwrap();
    let fault = faults::fail_flushes(fixture.dir());
    assert!(stripe.reclaim().is_err());
    drop(fault);
    // The failure is final, although the flush would succeed by now.
    assert!(!stripe.reclaim().unwrap());
    assert_eq!(fixture.files(".seg").len(), 1);
    assert_eq!(fixture.files(".ack").len(), 2);
    drop(stripe);
    fixture.open().reclaim().unwrap();
    assert_eq!(fixture.files(".ack").len(), 1);
}

#[test]
fn sequences_are_never_given_out_twice_however_often_an_empty_log_is_opened() {
    let fixture = Fixture::new();
    let mut given = Vec::new();
    for round in 0..6 {
        let stripe = fixture.open();
        stripe.reclaim().unwrap();
        given.push(append(&stripe, b"job"));
        stripe.prepare();
        ack_all(&stripe);
        if round % 2 == 0 {
            stripe.close();
            stripe.seal(true).unwrap();
            stripe.reclaim().unwrap();
        }
    }
    assert!(given.is_sorted_by(|a, b| a < b), "{given:?}");
    // Files do not pile up: there are a segment, its ack file, and the limit.
    let stripe = fixture.open();
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files("").len(), 3);
}

#[test]
fn a_log_whose_sequences_are_used_up_says_so() {
    let fixture = Fixture::new();
    let capacity = u64::from(capacity_of(SIZE));
    fs::create_dir_all(fixture.dir()).unwrap();
    let highest = Sequence::MAX_WITHIN_STRIPE - capacity;
    fs::write(fixture.dir().join(format!("{highest:020}.seg")), b"").unwrap();
    let error = fixture.try_open().err().unwrap();
    assert!(error.to_string().contains("used up"), "{error}");
}

#[test]
fn seal_gives_consumers_time_to_complete_a_segment_unless_told_to_seal_all() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 3);
    append(&stripe, b"");
    let sealed = |stripe: &Log| -> Vec<bool> {
        let segments = stripe.segments.read();
        segments.iter().map(|segment| segment.is_sealed()).collect()
    };
    while let Some(left) = stripe.seal(false).unwrap() {
        assert_eq!(sealed(&stripe)[2..], [false, false]);
        std::thread::sleep(left);
    }
    assert_eq!(sealed(&stripe), [true, true, true, false]);
    append(&stripe, b"");
    fill_segments(&stripe, 1);
    assert!(stripe.seal(false).unwrap().is_some());
    stripe.seal(true).unwrap();
    assert_eq!(sealed(&stripe), [true, true, true, true, false]);
    let (_, report, _) = fixture.open_with_report();
    assert_eq!((report.sealed, report.scanned), (4, 1));
}

#[test]
fn after_close_nothing_can_be_appended_and_everything_can_be_sealed() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let mut cached = stripe.active();
    append(&stripe, b"job");
    stripe.prepare();
    stripe.close();
    stripe.close();
    let closed = |result| assert!(matches!(result, Err(RollError::Closed)));
    closed(stripe.append(&mut cached, &record(b"")));
    let batch = stripe.batch([record(b"")].into_iter()).unwrap();
    closed(stripe.append_batch(&mut cached, &batch));
    closed(
        stripe
            .append_shared(&record(b""))
            .map(|(sequence, _)| sequence),
    );
    stripe.prepare();
    assert_eq!(fixture.files(".seg").len(), 1);
    stripe.seal(true).unwrap();
    let (_, report, _) = fixture.open_with_report();
    assert_eq!((report.sealed, report.scanned, report.records), (1, 0, 1));
    // Claims go on.
    assert_eq!(claim_all(&stripe).len(), 1);
}
