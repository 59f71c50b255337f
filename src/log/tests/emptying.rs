//! Tests of segments that are emptied to give back their space, of logs without files, and of what
//! is made ready ahead of time.

use super::*;

#[test]
fn the_segment_prepared_after_a_flush_is_flushed_before_it_is_needed() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    append(&stripe, b"job");
    let watch = faults::watch(&fixture.dir(), Vec::new());
    let flushes = || {
        let calls = watch.take_calls();
        let is_flush = |call: &&faults::Call| call.operation == Operation::Flush;
        calls.iter().filter(is_flush).count()
    };
    stripe.prepare();
    stripe.flush_ahead().unwrap();
    assert_eq!(flushes(), 0);
    fill_segments(&stripe, 2);
    stripe.flush(false).unwrap();
    flushes();
    stripe.prepare();
    stripe.flush_ahead().unwrap();
    // Its segment file and its ack file.
    assert_eq!(flushes(), 2);
    // The next one is not flushed, as no flush was requested meanwhile.
    fill_segments(&stripe, 2);
    stripe.prepare();
    stripe.flush_ahead().unwrap();
    assert_eq!(flushes(), 0);
}

#[test]
fn pages_ahead_are_made_writable_and_a_segment_with_a_bad_one_is_left() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    stripe.warm_up();
    append(&stripe, b"before");
    let prefaults = |watch: &faults::Fault| {
        let calls = watch.take_calls();
        let is_prefault = |call: &&faults::Call| call.operation == Operation::Prefault;
        calls.iter().filter(is_prefault).count()
    };
    let watch = faults::watch(&fixture.dir(), Vec::new());
    stripe.make_writable_ahead();
    assert_eq!(prefaults(&watch), 1);
    let plan = |error| Plan {
        operation: Operation::Prefault,
        calls: 0..1,
        effect: Effect::Fail(error),
    };
    // An older kernel.
    let fault = faults::watch(&fixture.dir(), vec![plan(Errno::INVAL)]);
    stripe.make_writable_ahead();
    assert!(stripe.active().closed().is_none());
    drop(fault);
    let fault = faults::watch(&fixture.dir(), vec![plan(Errno::HWPOISON)]);
    stripe.make_writable_ahead();
    assert!(stripe.active().closed().is_some());
    drop(fault);
    append(&stripe, b"after");
    assert_eq!(claim_all(&stripe).len(), 2);
}

#[test]
fn a_first_segment_whose_pages_cannot_be_prefaulted_is_left_for_another() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let before = append(&stripe, b"before");
    let plan = Plan {
        operation: Operation::Prefault,
        calls: 0..1,
        effect: Effect::Fail(Errno::HWPOISON),
    };
    let fault = faults::watch(&fixture.dir(), vec![plan]);
    stripe.warm_up();
    assert!(stripe.active().closed().is_some());
    let after = append(&stripe, b"after");
    assert!(after >= before.plus(capacity_of(SIZE)));
    let leases = claim_all(&stripe);
    assert_eq!(sequences(&leases), [before, after]);
    // The files are not recycled.
    leases.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    assert!(fixture.files("spare").is_empty() && fixture.files(".seg").len() == 1);
    // It is prefaulted only once.
    assert!(!fault.take_calls().is_empty());
    assert!(!stripe.warm_up());
    assert!(fault.take_calls().is_empty());
}

#[test]
fn damage_that_cannot_be_set_aside_keeps_its_segment_although_all_else_in_it_is_done() {
    for starts_ready in [true, false] {
        let fixture = Fixture {
            starts_ready,
            ..Fixture::new()
        };
        {
            let stripe = fixture.open();
            let done = append(&stripe, b"done");
            append(&stripe, b"damaged");
            assert!(stripe.mark_done(done).unwrap());
        }
        let path = fixture.dir().join(&fixture.files(".seg")[0]);
        let bytes = fs::read(&path).unwrap();
        let at = bytes.windows(7).position(|bytes| bytes == b"damaged");
        let mut bytes = bytes.clone();
        bytes[at.unwrap()] ^= 1;
        fs::write(&path, bytes).unwrap();
        {
            let _full = faults::fill_disk(&fixture.quarantine());
            let (stripe, report, _) = fixture.open_with_report();
            assert_eq!(report.quarantined, []);
            stripe.reclaim().unwrap();
            stripe.close();
            stripe.reclaim_all().unwrap();
        }
        let (_, report, _) = fixture.open_with_report();
        assert_eq!(report.quarantined.len(), 1);
    }
}

#[test]
fn a_segment_that_is_done_except_for_damage_is_removed_once_the_damage_is_set_aside() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        let done = append(&stripe, b"done");
        append(&stripe, b"damaged");
        assert!(stripe.mark_done(done).unwrap());
    }
    let path = fixture.dir().join(&fixture.files(".seg")[0]);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(7).position(|bytes| bytes == b"damaged");
    bytes[at.unwrap()] ^= 1;
    fs::write(&path, bytes).unwrap();
    let full = faults::fill_disk(&fixture.quarantine());
    let stripe = fixture.open();
    drop(full);
    let kicks = fixture.kicks.load(Ordering::Relaxed);
    assert_eq!(stripe.pins().count(), 2);
    assert_eq!(stripe.damage().len(), 1);
    // Maintenance is woken.
    assert!(fixture.kicks.load(Ordering::Relaxed) > kicks);
    assert!(stripe.reclaim().unwrap());
    assert!(!path.exists());
}

#[test]
fn a_segment_that_is_being_read_is_emptied_later() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    append(&stripe, b"job");
    let segment = stripe.active();
    stripe.close();
    for lease in claim_all(&stripe) {
        lease.ack();
    }
    let reader = segment.pin().unwrap();
    stripe.reclaim_all().unwrap();
    let len = || fs::metadata(&segment.paths().segment).unwrap().len();
    assert_eq!(len(), SIZE);
    drop(reader);
    stripe.reclaim().unwrap();
    assert_eq!(len(), 0);
}

#[test]
fn a_flush_that_fails_when_a_segment_is_emptied_is_reported_and_final() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    append(&stripe, b"job");
    let segment = stripe.active();
    stripe.close();
    ack_all(&stripe);
    let reader = segment.pin().unwrap();
    stripe.reclaim_all().unwrap();
    drop(reader);
    let fault = faults::fail_flushes(segment.paths().segment.path());
    assert!(stripe.reclaim_all().unwrap_err().is_failed_flush());
    drop(fault);
    assert!(stripe.config.poison.is_set());
}

#[test]
fn a_segment_is_not_emptied_if_a_flush_of_it_fails_while_it_waits_for_that() {
    for fails in [false, true] {
        let fixture = Fixture::new();
        let stripe = Arc::new(fixture.open());
        fill_segments(&stripe, 1);
        ack_all(&stripe);
        let segment = stripe.active().paths().segment.path().to_path_buf();
        let bytes = fs::read(&segment).unwrap();
        let _full = faults::fill_disk(&fixture.dir());
        // A flush reads the segment until it ends. Before that, a producer finds the disk full and
        // retires the segment.
        let (producer, flushed) = (Arc::clone(&stripe), segment.clone());
        let observer = move |operation, path: &Path, moment| {
            if (operation, moment) != (Operation::Flush, Moment::Before) || path != flushed {
                return Ok(());
            }
            assert!(producer.append_shared(&record(b"")).is_err());
            assert!(producer.active().is_retired());
            if fails { Err(Errno::IO.into()) } else { Ok(()) }
        };
        faults::observe(Some((fixture.dir(), Box::new(observer))));
        assert_eq!(stripe.flush(false).is_err(), fails);
        faults::observe(None);
        stripe.reclaim().unwrap();
        let kept = if fails { bytes } else { Vec::new() };
        assert!(fs::read(&segment).unwrap() == kept);
    }
}

#[test]
fn a_segment_is_emptied_after_its_acks_are_durable() {
    let expected = [
        (Operation::Flush, false),
        (Operation::Truncate, true),
        (Operation::Flush, true),
        (Operation::Truncate, false),
    ];
    for (is_flushed, fails, expected) in [
        (false, false, &expected[..]),
        (true, false, &expected),
        // After a failed flush, the files stay as they are.
        (true, true, &[]),
    ] {
        let fixture = Fixture::new();
        let stripe = fixture.open();
        append(&stripe, b"job");
        let segment = stripe.active().paths().segment.path().to_path_buf();
        if fails {
            let _failing = faults::fail_flushes(&segment);
            assert!(stripe.flush(false).is_err());
        } else if is_flushed {
            stripe.flush(false).unwrap();
        }
        stripe.close();
        for lease in claim_all(&stripe) {
            lease.ack();
        }
        let watch = faults::watch(&fixture.dir(), Vec::new());
        assert_eq!(stripe.reclaim_all().is_err(), fails);
        let calls = watch.take_calls().into_iter();
        let operations: Vec<_> = calls
            .map(|call| (call.operation, call.path == segment))
            .filter(|(operation, _)| [Operation::Flush, Operation::Truncate].contains(operation))
            .collect();
        assert_eq!(operations, expected);
    }
}

#[test]
fn a_log_that_does_not_start_ready_makes_its_files_for_the_first_append() {
    let fixture = Fixture {
        starts_ready: false,
        ..Fixture::new()
    };
    let stripe = fixture.open();
    assert!(fixture.files(".seg").is_empty() && fixture.files(".limit").is_empty());
    assert_eq!(stripe.stats().segments, 0);
    stripe.flush(true).unwrap();
    assert!(!stripe.reclaim().unwrap());
    assert_eq!(append(&stripe, b"one"), origin());
    assert_eq!((fixture.files(".seg").len(), stripe.stats().live), (1, 1));
    drop(stripe);
    let stripe = fixture.open();
    assert_eq!((stripe.stats().segments, stripe.stats().live), (1, 1));
    assert!(append(&stripe, b"two") >= origin().plus(capacity_of(SIZE)));
    stripe.close();
    assert!(matches!(
        stripe.append_shared(&record(b"")),
        Err(RollError::Closed)
    ));
    drop(stripe);
    let stripe = fixture.open();
    stripe.close();
    assert!(matches!(
        stripe.append_shared(&record(b"")),
        Err(RollError::Closed)
    ));
}

#[test]
fn a_closed_log_leaves_nothing_of_a_segment_in_which_all_is_done() {
    for jobs in [0, 3] {
        let fixture = Fixture::new();
        let stripe = fixture.open();
        for _ in 0..jobs {
            append(&stripe, b"job");
        }
        for lease in claim_all(&stripe) {
            lease.ack();
        }
        stripe.close();
        stripe.reclaim_all().unwrap();
        drop(stripe);
        let (_, report, _) = fixture.open_with_report();
        assert_eq!(report, RecoveryReport::default());
    }
}

#[test]
fn a_log_with_jobs_opens_on_a_full_disk_and_its_consumers_go_on() {
    let fixture = Fixture::new();
    let appended = {
        let stripe = fixture.open();
        let appended = fill_segments(&stripe, 1);
        stripe.prepare();
        appended
    };
    let fault = faults::fill_disk(&fixture.dir());
    let stripe = fixture.open();
    // The prepared segment has given its space back, and keeps its name until maintenance runs.
    let prepared = fixture.dir().join(format!("{:020}.seg", capacity_of(SIZE)));
    assert_eq!(fs::metadata(&prepared).unwrap().len(), 0);
    assert!(matches!(
        stripe.append_shared(&record(b"")),
        Err(RollError::Storage(error)) if error.is_full()
    ));
    let leases = claim_all(&stripe);
    assert_eq!(sequences(&leases), appended);
    assert!(!stripe.may_have_work());
    leases.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
    drop(fault);
    let next = append(&stripe, b"job");
    assert!(next >= origin().plus(2 * capacity_of(SIZE)));
    assert_eq!(sequences(&claim_all(&stripe)), [next]);
    drop(stripe);
    fixture.open().reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 2);
}

#[test]
fn a_new_log_on_a_full_disk_is_an_error() {
    let mut fixture = Fixture::new();
    fixture.is_new = true;
    let _fault = faults::fill_disk(&fixture.dir());
    assert!(fixture.try_open().err().unwrap().is_full());
}
