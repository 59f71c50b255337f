//! Tests of segments that wait to be claimed from: they need no mapping, so a backlog may be longer
//! than what can be mapped.

use super::*;
use crate::storage::mappings::limited;

/// Limits the mappings of this thread until it is dropped.
struct Limited;

impl Limited {
    fn to(max: usize) -> Self {
        limited::to(Some(max));
        Self
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        limited::to(None);
    }
}

/// The mappings that the process may have in these tests. Waiting segments stay mapped while there
/// are up to 12, segments are mapped for use up to 18, and to be read up to 21.
const MAX: usize = 24;

fn mapped(stripe: &Log) -> Vec<bool> {
    let segments = stripe.segments.read();
    segments.iter().map(|segment| segment.is_mapped()).collect()
}

#[test]
fn a_backlog_longer_than_what_can_be_mapped_is_appended_and_claimed_in_order() {
    let _limited = Limited::to(MAX);
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let jobs = fill_segments(&stripe, 40);
    assert!(limited::mapped() <= MAX / 4 * 3);
    let mut leases = Vec::new();
    let mut claimed = Vec::new();
    while let Claim::Taken { .. } = claim(&stripe, 7, usize::MAX, &mut leases) {
        for lease in leases.drain(..) {
            assert_eq!(lease.record().payload(), LARGE);
            claimed.push(lease.sequence());
            let _ = lease.ack();
        }
        stripe.reclaim().unwrap();
    }
    assert!(
        claimed == jobs,
        "claimed {} jobs of {}",
        claimed.len(),
        jobs.len()
    );
    assert!(!stripe.has_held_back());
}

#[test]
fn waiting_segments_are_unmapped_only_when_there_are_many_mappings_and_used_ones_stay_mapped() {
    let _limited = Limited::to(MAX);
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 6);
    stripe.seal(true).unwrap();
    assert_eq!(mapped(&stripe), [true; 6]);
    let leases = claim_all_of_first(&stripe);
    fill_segments(&stripe, 1);
    stripe.seal(true).unwrap();
    // Segments that are already at rest stay mapped until a roll or a claim finds no mapping free.
    let few = [true, true, true, true, true, false, true];
    assert_eq!(mapped(&stripe), few);
    stripe.unmap_waiting();
    let used = [true, false, false, false, false, false, true];
    assert_eq!(mapped(&stripe), used);
    assert_eq!(leases[0].record().payload(), LARGE);
}

/// Claims all jobs of the first segment.
fn claim_all_of_first(stripe: &Log) -> Vec<Lease> {
    let mut leases = Vec::new();
    claim(stripe, 1000, usize::MAX, &mut leases);
    assert_eq!(leases.len(), LARGE_PER_SEGMENT as usize);
    leases
}

#[test]
fn at_the_limit_of_mappings_appends_fail_and_claims_wait_and_both_go_on_once_some_are_free() {
    let _limited = Limited::to(MAX);
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let jobs = fill_segments(&stripe, 20);
    stripe.seal(true).unwrap();
    let mut leases = Vec::new();
    while let Claim::Taken { .. } = claim(&stripe, 1000, usize::MAX, &mut leases) {}
    // Eight segments have jobs in work. The active one is the ninth mapped.
    assert_eq!(leases.len(), 8 * LARGE_PER_SEGMENT as usize);
    assert!(stripe.is_held_back() && !stripe.may_have_work());
    let refused = (0..LARGE_PER_SEGMENT)
        .find_map(|_| stripe.append_shared(&record(&LARGE)).err())
        .unwrap();
    match refused {
        RollError::Storage(error) => {
            assert!(error.is_full() && error.is_unmappable(), "{error}");
            assert!(error.to_string().contains("vm.max_map_count"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let in_work = leases.split_off(LARGE_PER_SEGMENT as usize);
    for lease in leases {
        let _ = lease.ack();
    }
    stripe.reclaim().unwrap();
    assert!(!stripe.is_held_back() && stripe.may_have_work());
    let mut leases = Vec::new();
    claim(&stripe, 1000, usize::MAX, &mut leases);
    assert_eq!(leases[0].sequence(), jobs[8 * LARGE_PER_SEGMENT as usize]);
    for lease in in_work.into_iter().chain(leases) {
        let _ = lease.ack();
    }
    stripe.reclaim().unwrap();
    append(&stripe, &LARGE);
}

#[test]
fn segments_found_by_an_open_are_mapped_when_they_are_claimed_from() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        fill_segments(&stripe, 15);
        stripe.close();
        stripe.seal(true).unwrap();
        fill_and_leave_unsealed(&fixture);
    }
    let _limited = Limited::to(MAX);
    let stripe = fixture.open();
    // Unsealed segments are mapped, as their records are still to be flushed.
    let found = mapped(&stripe);
    assert!(
        found[..15] == [false; 15] && found[15..] == [true; 4],
        "{found:?}"
    );
    assert_eq!(stripe.stats().live, u64::from(18 * LARGE_PER_SEGMENT));
    let mut seen = 0;
    for pinned in stripe.pins() {
        seen += pinned.unwrap().live_records().count();
        // At most one more, the one that is being read.
        assert!(limited::mapped() <= 10);
    }
    assert_eq!(seen, 18 * LARGE_PER_SEGMENT as usize);
    assert_eq!(stripe.verify().unwrap().records, seen as u64);
    stripe.flush(true).unwrap();
    stripe.unmap_waiting();
    assert_eq!(limited::mapped(), 2);
    while stripe.stats().live > 0 {
        let mut leases = Vec::new();
        claim(&stripe, 1000, usize::MAX, &mut leases);
        for lease in leases {
            let _ = lease.ack();
        }
        stripe.reclaim().unwrap();
    }
}

/// Fills three segments and leaves them unsealed, like a process that dies.
fn fill_and_leave_unsealed(fixture: &Fixture) {
    fill_segments(&fixture.open(), 3);
}

#[test]
fn a_segment_that_cannot_be_mapped_for_a_claim_waits_and_is_claimed_from_later() {
    let fixture = Fixture::new();
    fixture.seal_jobs(&[b"job"]);
    let stripe = fixture.open();
    for (operation, errno) in [
        (Operation::Map, Errno::NOMEM),
        (Operation::Open, Errno::MFILE),
        (Operation::ReadIn, Errno::HWPOISON),
    ] {
        let plan = Plan {
            operation,
            calls: 0..usize::MAX,
            effect: Effect::Fail(errno),
        };
        let fault = faults::watch(&fixture.dir(), vec![plan]);
        assert!(claim_all(&stripe).is_empty());
        assert!(stripe.is_held_back(), "{errno}");
        drop(fault);
        *stripe.held_back.lock() = None;
    }
    assert_eq!(claim_all(&stripe).len(), 1);
}

#[test]
fn a_reader_keeps_the_mapping_of_a_segment_that_is_retired_meanwhile() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        fill_segments(&stripe, 1);
        append(&stripe, b"last");
        stripe.close();
        stripe.seal(true).unwrap();
    }
    let stripe = fixture.open();
    let looked = stripe.pins().next().unwrap().unwrap();
    let again = stripe.pin_containing(origin()).unwrap().unwrap();
    assert!(
        std::ptr::eq(looked.maps(), again.maps()),
        "the segment was mapped twice"
    );
    drop(again);
    let segment = Arc::clone(looked.segment());
    for index in 0..LARGE_PER_SEGMENT {
        assert!(stripe.mark_done(segment.sequence(index)).unwrap());
    }
    stripe.reclaim().unwrap();
    assert!(segment.is_retired() && segment.look().unwrap().is_none());
    assert_eq!(
        looked.records(segment::START).count(),
        LARGE_PER_SEGMENT as usize
    );
    assert_eq!(
        looked.records(segment::START).last().unwrap().payload(),
        LARGE
    );
}

#[test]
fn a_segment_whose_file_is_gone_reads_as_removed_if_it_is_done_and_is_an_error_if_it_has_jobs() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        fill_segments(&stripe, 1);
        append(&stripe, b"last");
        stripe.close();
        stripe.seal(true).unwrap();
    }
    let stripe = fixture.open();
    let segment = stripe.segments.read().iter().next().cloned().unwrap();
    let path = segment.paths().segment.path().to_path_buf();
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).unwrap();
    assert!(segment.look().is_err());
    std::fs::rename(&away, &path).unwrap();
    for index in 0..LARGE_PER_SEGMENT {
        stripe.mark_done(segment.sequence(index)).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    assert!(!segment.is_retired() && segment.look().unwrap().is_none());
}

/// A log with a full segment and one with a single job, both sealed and not mapped.
fn two_sealed(fixture: &Fixture) -> Log {
    {
        let stripe = fixture.open();
        fill_segments(&stripe, 1);
        append(&stripe, b"last");
        stripe.close();
        stripe.seal(true).unwrap();
    }
    fixture.open()
}

fn mark_all_done_in_first(stripe: &Log) {
    for index in 0..LARGE_PER_SEGMENT {
        assert!(stripe.mark_done(origin().plus(index)).unwrap());
    }
}

#[test]
fn claims_go_past_a_segment_that_is_done_and_whose_file_is_already_removed() {
    let fixture = Fixture::new();
    let stripe = two_sealed(&fixture);
    let segment = stripe.claiming.load_full();
    mark_all_done_in_first(&stripe);
    std::fs::remove_file(segment.paths().segment.path()).unwrap();
    assert!(!segment.is_retired());
    assert_eq!(claim_all(&stripe).len(), 1);
    assert!(!stripe.has_held_back());
}

#[test]
fn consumers_sleep_when_every_job_of_the_last_segment_is_done() {
    let fixture = Fixture::new();
    drop(two_sealed(&fixture));
    let _full = faults::fill_disk(&fixture.dir());
    let stripe = fixture.open();
    mark_all_done_in_first(&stripe);
    let last = stripe.last_base().unwrap();
    assert!(stripe.mark_done(last).unwrap());
    assert_eq!(
        stripe.active().base(),
        last,
        "there is no room for another segment"
    );
    assert!(stripe.may_have_work());
    assert!(claim_all(&stripe).is_empty());
    assert!(!stripe.may_have_work());
}

#[test]
fn a_flush_of_acks_that_cannot_open_a_file_fails_although_its_segment_is_done() {
    let fixture = Fixture::new();
    let stripe = two_sealed(&fixture);
    stripe.flush(true).unwrap();
    mark_all_done_in_first(&stripe);
    let plan = Plan {
        operation: Operation::Open,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::MFILE),
    };
    let fault = faults::watch(&fixture.dir(), vec![plan]);
    assert!(stripe.flush(true).is_err());
    drop(fault);
    let flushed = flushed_by(&fixture, || stripe.flush(true).unwrap());
    assert!(flushed.contains(&format!("{:020}.ack", 0)), "{flushed:?}");
}

#[test]
fn a_segment_that_is_mapped_by_a_reader_is_still_read_in_before_it_is_claimed_from() {
    let fixture = Fixture::new();
    let stripe = two_sealed(&fixture);
    let looked = stripe.pins().next().unwrap().unwrap();
    let plan = Plan {
        operation: Operation::ReadIn,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::HWPOISON),
    };
    let fault = faults::watch(&fixture.dir(), vec![plan]);
    assert!(claim_all(&stripe).is_empty());
    assert!(stripe.is_held_back());
    drop((fault, looked));
    *stripe.held_back.lock() = None;
    assert!(!claim_all(&stripe).is_empty());
}

fn awake(stripe: &Log) -> usize {
    stripe.segments.read().awake().count()
}

#[test]
fn segments_at_rest_are_counted_and_skipped_until_something_in_them_changes() {
    let fixture = Fixture::new();
    let jobs = {
        let stripe = fixture.open();
        let jobs = fill_segments(&stripe, 10);
        stripe.close();
        stripe.seal(true).unwrap();
        jobs
    };
    let stripe = fixture.open();
    let all = u64::from(10 * LARGE_PER_SEGMENT);
    let counts = || {
        let stats = stripe.stats();
        assert_eq!(stats.segments, stripe.segments.read().len() as u64);
        (stats.live, stats.unclaimed, stats.appended, stats.done)
    };
    assert_eq!((counts(), awake(&stripe)), ((all, all, 0, 0), 11));
    stripe.seal(true).unwrap();
    // Only the segment that is claimed from and the active one are awake.
    assert_eq!((counts(), awake(&stripe)), ((all, all, 0, 0), 2));
    assert_eq!(
        stripe.oldest_enqueued_at(&|_| false),
        Some(Timestamp::from_nanos(5))
    );
    stripe.flush(true).unwrap();
    // A job of a waiting segment is marked done.
    let marked = jobs[5 * LARGE_PER_SEGMENT as usize];
    assert!(stripe.mark_done(marked).unwrap());
    assert_eq!((counts(), awake(&stripe)), ((all - 1, all - 1, 0, 0), 3));
    stripe.seal(true).unwrap();
    assert_eq!((counts(), awake(&stripe)), ((all - 1, all - 1, 0, 0), 2));
    let base = stripe.segment_containing(marked).unwrap().base();
    let marked = format!("{:020}.ack", base.within_stripe());
    let is_flushed = |acks_too| {
        let flushed = flushed_by(&fixture, || stripe.flush(acks_too).unwrap());
        flushed.contains(&marked)
    };
    assert!(!is_flushed(false) && is_flushed(true) && !is_flushed(true));
    // A segment that is claimed from stays awake until it is removed.
    let leases = claim_all(&stripe);
    assert_eq!((counts(), awake(&stripe)), ((all - 1, 0, 0, 0), 11));
    for lease in leases {
        let _ = lease.ack();
    }
    stripe.reclaim().unwrap();
    assert_eq!((counts(), awake(&stripe)), ((0, 0, 0, all - 1), 1));
}

#[test]
fn a_walk_ends_although_the_log_grows_just_as_fast() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 2);
    let last = stripe.last_base();
    let mut after = None;
    let mut walked = 0;
    while let Some(pinned) = stripe.next_pin(&mut after, last) {
        walked += pinned.unwrap().records(segment::START).count();
        fill_segments(&stripe, 2);
    }
    assert_eq!(walked, 2 * LARGE_PER_SEGMENT as usize);
}
