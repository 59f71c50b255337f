//! Tests of segments that have to be checked before they are claimed from, and of damage that
//! cannot be set aside yet.

use super::*;

#[test]
fn a_segment_that_another_thread_has_scanned_meanwhile_is_claimed_from_and_not_skipped() {
    let fixture = Fixture::new();
    fixture.seal_jobs(&[b"one"]);
    let stripe = fixture.open();
    // A consumer finds a segment that has to be scanned ...
    let segment = stripe.claiming.load_full();
    assert!(segment.is_unscanned());
    // ... and another thread scans it before the consumer can.
    assert_eq!(stripe.pins().count(), 2);
    assert!(!segment.is_unscanned());
    assert!(stripe.step_from(&segment, true));
    assert_eq!(claim_all(&stripe).len(), 1);
}

#[test]
fn a_sealed_segment_that_is_done_is_retired_unread_and_claims_go_past_it() {
    let fixture = Fixture::new();
    let last = {
        let stripe = fixture.open();
        fill_segments(&stripe, 1);
        let last = append(&stripe, b"last");
        let mut leases = claim_all(&stripe);
        leases.pop();
        stripe.close();
        stripe.seal(true).unwrap();
        leases.into_iter().for_each(|lease| _ = lease.ack());
        last
    };
    let stripe = fixture.open();
    stripe.reclaim().unwrap();
    assert!(stripe.may_have_work());
    assert_eq!(sequences(&claim_all(&stripe)), [last]);
    assert!(!stripe.may_have_work());
}

#[test]
fn a_damaged_segment_that_cannot_be_set_aside_is_held_back_and_consumers_may_sleep() {
    let fixture = Fixture::new();
    fixture.seal_jobs(&[b"first", b"second"]);
    let path = fixture.dir().join(format!("{:020}.seg", 0));
    let mut bytes = fs::read(&path).unwrap();
    bytes[64 + 32] ^= 1;
    fs::write(&path, bytes).unwrap();
    let stripe = fixture.open();
    assert!(stripe.may_have_work());
    let fault = faults::fill_disk(&fixture.quarantine());
    assert!(claim_all(&stripe).is_empty());
    assert!(stripe.is_held_back());
    assert!(
        !stripe.may_have_work(),
        "consumers would look again and again"
    );
    assert!(
        stripe.pins().next().is_some_and(|first| first.is_err()),
        "a reader skips the segment without an error"
    );
    drop(fault);
    *stripe.held_back.lock() = None;
    assert!(stripe.may_have_work());
    let leases = claim_all(&stripe);
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].record().payload(), b"second");
    assert_eq!(stripe.damaged_regions(), 1);
    for lease in leases {
        assert!(
            lease.ack().segment_complete,
            "the lost job does not count as done"
        );
    }
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
}

#[test]
fn a_consumer_asleep_is_woken_when_another_thread_has_checked_the_segment_that_was_held_back() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        fill_segments(&stripe, 1);
        append(&stripe, b"last");
        stripe.close();
        stripe.seal(true).unwrap();
    }
    let path = fixture.dir().join(format!("{:020}.seg", 0));
    let mut bytes = fs::read(&path).unwrap();
    bytes[64 + 32] ^= 1;
    fs::write(&path, bytes).unwrap();
    let stripe = fixture.open();
    let fault = faults::fill_disk(&fixture.quarantine());
    assert!(claim_all(&stripe).is_empty());
    let _asleep = stripe.config.sleepers.register();
    assert!(!stripe.may_have_work());
    let sound = stripe.segment_after(Some(origin())).unwrap().base();
    assert!(stripe.pin_containing(sound).unwrap().is_some());
    assert!(
        stripe.is_held_back(),
        "the check of another segment ended the wait"
    );
    drop(fault);
    assert_eq!(stripe.config.sleepers.asleep(), 1);
    assert!(stripe.pin_containing(origin()).unwrap().is_some());
    assert_eq!(stripe.config.sleepers.asleep(), 0);
    assert!(stripe.may_have_work());
}

#[test]
fn a_segment_that_cannot_be_renamed_to_a_spare_does_not_lose_its_acks() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    ack_all(&stripe);
    stripe.flush(true).unwrap();
    let in_the_way = fixture.dir().join(format!("{:020}.spare", 0));
    fs::create_dir(&in_the_way).unwrap();
    for _ in 0..2 {
        // This may return an error, or remove the files instead.
        let _ = stripe.reclaim();
    }
    fs::remove_dir(&in_the_way).unwrap();
    drop(stripe);
    assert!(claim_all(&fixture.open()).is_empty());
}

#[test]
fn a_segment_whose_last_job_was_lost_to_damage_can_be_compacted_like_any_other() {
    let fixture = Fixture::new();
    fixture.seal_jobs(&[b"waits", b"lost"]);
    let path = fixture.dir().join(format!("{:020}.seg", 0));
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == b"lost").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let stripe = fixture.open();
    let leases = claim_all(&stripe);
    assert_eq!((leases.len(), stripe.damaged_regions()), (1, 1));
    let left = stripe.left(SIZE, |base| u32::from(base == origin()));
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].base, left[0].jobs), (origin(), 1));
}
