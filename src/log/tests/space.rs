//! Tests of `max_bytes`, spares and full disks.

use super::*;

#[test]
fn a_full_budget_refuses_the_roll_until_a_segment_is_retired() {
    let fixture = Fixture {
        max_bytes: Some(3 * SIZE),
        ..Fixture::new()
    };
    let stripe = fixture.open();
    fill_segments(&stripe, 3);
    for _ in 0..2 {
        assert!(matches!(
            stripe.append_shared(&record(b"")),
            Err(RollError::OverBudget(_))
        ));
    }
    let mut leases = claim_all(&stripe);
    leases
        .drain(..LARGE_PER_SEGMENT as usize)
        .for_each(|lease| _ = lease.ack());
    // The producer itself retires the segment.
    append(&stripe, b"");
    assert_eq!(fixture.files(".seg").len(), 3);
}

#[test]
fn a_spare_that_could_not_be_used_stays_counted_in_the_budget() {
    let fixture = Fixture {
        max_bytes: Some(3 * SIZE),
        ..Fixture::new()
    };
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    ack_all(&stripe);
    stripe.reclaim().unwrap();
    let used = || stripe.config.budget.used();
    assert_eq!(used(), 2 * SIZE);
    // The limit of sequences has to be raised, and cannot be.
    let nowhere = tempfile::tempdir().unwrap();
    stripe.next.lock().limit =
        SequenceLimit::find(&Names::at(nowhere.path()), origin(), true).unwrap();
    let fault = faults::fill_disk(&fixture.dir());
    stripe.prepare();
    assert_eq!(fixture.files(".spare").len(), 1);
    assert_eq!(used(), 2 * SIZE);
    drop(fault);
    stripe.prepare();
    assert!(fixture.files(".spare").is_empty());
    assert_eq!(used(), 2 * SIZE);
    stripe.close();
    assert_eq!(used(), SIZE);
}

#[test]
fn new_files_take_the_place_of_a_spare_that_cannot_be_renamed_and_nothing_is_left_of_it() {
    // The first rename fails, or the second, when the other file already has its new name.
    for failing in [0, 1] {
        let fixture = Fixture::new();
        let stripe = fixture.open();
        fill_segments(&stripe, 1);
        append(&stripe, b"");
        ack_all(&stripe);
        stripe.reclaim().unwrap();
        assert_eq!(fixture.files(".spare").len(), 1);
        let plan = Plan {
            operation: Operation::Rename,
            calls: failing..failing + 1,
            effect: Effect::Fail(Errno::IO),
        };
        let fault = faults::watch(&fixture.dir(), vec![plan]);
        // A producer rolls to the spare, and gets no error.
        let appended = fill_segments(&stripe, 1);
        let calls = fault.take_calls();
        assert_eq!(
            calls.iter().filter(|call| call.effect.is_some()).count(),
            1,
            "one rename should have failed"
        );
        // The base that the spare should have got is not used again.
        let second = u64::from(capacity_of(SIZE));
        let mut expected = [second, 3 * second]
            .map(|base| [format!("{base:020}.ack"), format!("{base:020}.seg")])
            .concat();
        expected.extend(fixture.files(".limit"));
        assert_eq!(fixture.files(""), expected);
        let used = stripe.config.budget.used();
        assert_eq!(used, 2 * SIZE);
        drop((stripe, fault));
        let (stripe, report, _) = fixture.open_with_report();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(sequences(&claim_all(&stripe)), appended);
    }
}

#[test]
fn on_a_full_disk_a_log_whose_jobs_are_all_done_makes_room_for_its_next_segment() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    ack_all(&stripe);
    let fault = faults::fill_disk(&fixture.dir());
    let full = |stripe: &Log| match stripe.append_shared(&record(b"")) {
        Err(RollError::Storage(error)) => assert!(error.is_full()),
        _ => panic!("there was room"),
    };
    // A segment that is being read is not emptied.
    let pinned = stripe.pin_containing(origin()).unwrap().unwrap();
    full(&stripe);
    let path = fixture.dir().join(format!("{:020}.seg", 0));
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    drop(pinned);
    full(&stripe);
    // The emptied file keeps its name, which says which sequences were given out.
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(stripe.stats().bytes, 0);
    assert!(!stripe.may_have_work());
    assert!(claim_all(&stripe).is_empty());
    assert!(stripe.flush(true).is_ok() && stripe.seal(true).is_ok());
    drop(fault);
    let next = append(&stripe, b"job");
    assert!(next >= origin().plus(capacity_of(SIZE)));
    assert_eq!(sequences(&claim_all(&stripe)), [next]);
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
    let stats = stripe.stats();
    assert_eq!(
        (stats.live, stats.appended),
        (1, u64::from(LARGE_PER_SEGMENT) + 1)
    );
}

#[test]
fn an_emptied_segment_is_ignored_by_the_next_open() {
    let fixture = Fixture::new();
    let given = {
        let stripe = fixture.open();
        let given = fill_segments(&stripe, 1);
        ack_all(&stripe);
        let _fault = faults::fill_disk(&fixture.dir());
        assert!(stripe.append_shared(&record(b"")).is_err());
        given
    };
    let (stripe, report, _) = fixture.open_with_report();
    assert_eq!(report, RecoveryReport::default());
    assert!(append(&stripe, b"") > given[given.len() - 1]);
}

#[test]
fn acks_of_a_segment_that_is_about_to_be_emptied_are_flushed_although_it_is_still_read() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    ack_all(&stripe);
    // A late handler, or a reader of statistics.
    let reader = stripe.active().pin().unwrap();
    let plan = Plan {
        operation: Operation::Create,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::NOSPC),
    };
    let watch = faults::watch(&fixture.dir(), vec![plan]);
    assert!(stripe.append_shared(&record(b"")).is_err());
    assert!(stripe.active().is_retired());
    stripe.flush(true).unwrap();
    let acks = reader.segment().paths().ack.path();
    let is_flush = |call: &faults::Call| call.operation == Operation::Flush && call.path == acks;
    assert!(watch.take_calls().iter().any(is_flush));
}

#[test]
fn acks_of_a_segment_whose_file_cannot_be_removed_are_flushed() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    let first = Arc::clone(&stripe.segments.read()[0]);
    ack_all(&stripe);
    let fails = |operation| Plan {
        operation,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::PERM),
    };
    let plans = [Operation::Remove, Operation::Rename].map(fails);
    let watch = faults::watch(&fixture.dir(), plans.into());
    assert!(stripe.reclaim().is_err());
    stripe.flush(true).unwrap();
    let acks = first.paths().ack.path();
    let is_flush = |call: &faults::Call| call.operation == Operation::Flush && call.path == acks;
    assert!(watch.take_calls().iter().any(is_flush));
}

#[test]
fn attempts_on_a_full_disk_use_up_no_sequences() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    stripe.note_waiting();
    let base = || stripe.next.lock().base;
    let before = base();
    let full = faults::fill_disk(&fixture.dir());
    let refused = (0..200).filter(|_| stripe.append_shared(&record(&LARGE)).is_err());
    assert!(refused.count() > 100);
    stripe.prepare();
    assert_eq!(base(), before);
    drop(full);
    // If a file that could not be made cannot be removed either, its base is used up.
    let plan = |operation, errno| Plan {
        operation,
        calls: 0..usize::MAX,
        effect: Effect::Fail(errno),
    };
    let plans = [
        plan(Operation::Allocate, Errno::NOSPC),
        plan(Operation::Remove, Errno::IO),
    ];
    let fault = faults::watch(&fixture.dir(), plans.into());
    assert!(stripe.append_shared(&record(&LARGE)).is_err());
    drop(fault);
    assert!(base() > before);
    append(&stripe, &LARGE);
}

#[test]
fn the_append_that_finds_the_disk_full_goes_on_in_the_space_of_a_segment_that_is_done() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    ack_all(&stripe);
    let done = stripe.active().paths().segment.path().to_path_buf();
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    // A disk with room for one segment.
    let taken = done.clone();
    let observer = move |operation, _: &Path, moment| {
        let is_full = len(&taken) > 0;
        match (operation, moment) {
            (Operation::Create, Moment::Before) if is_full => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    };
    faults::observe(Some((fixture.dir(), Box::new(observer))));
    let next = append(&stripe, b"job");
    faults::observe(None);
    let segment = stripe.active().paths().segment.path().to_path_buf();
    assert_eq!((len(&done), len(&segment)), (0, SIZE));
    assert_eq!(len(&done.with_extension("ack")), 0);
    assert_eq!(stripe.config.budget.used(), SIZE);
    drop(stripe);
    let (stripe, report, _) = fixture.open_with_report();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.segments, report.records, report.holes), (1, 1, 0));
    assert_eq!(sequences(&claim_all(&stripe)), [next]);
    stripe.reclaim().unwrap();
    assert!(!done.exists());
}
