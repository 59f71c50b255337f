//! Tests of which files are flushed when, of failed flushes, and of segments that owe a settlement.

use super::*;

#[test]
fn a_flush_of_acks_covers_those_of_segments_that_are_gone() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    // After this, the removal of the first segment is the only change of names to flush.
    stripe.active().flush_names().unwrap();
    let leases = claim_all(&stripe);
    leases.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
    let fault = faults::fail_flushes(fixture.dir());
    assert!(stripe.flush(false).is_ok());
    assert!(stripe.flush(true).is_err());
    drop(fault);
    assert!(
        stripe.flush(true).is_err(),
        "the failed flush was tried again"
    );
}

#[test]
fn a_failed_flush_of_names_is_final_for_all_segments_of_the_log() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 2);
    let first = stripe.pin_containing(origin()).unwrap().unwrap();
    let fault = faults::fail_flushes(fixture.dir());
    assert!(first.segment().flush(false).is_err());
    drop(fault);
    let error = stripe.active().flush(false).unwrap_err();
    assert!(error.is_failed_flush());
    assert!(Arc::ptr_eq(&error, stripe.config.poison.get().unwrap()));
    drop((first, stripe));
    assert!(fixture.open().flush(true).is_ok());
}

#[test]
fn after_a_failed_flush_nothing_is_sealed_retired_or_emptied_and_jobs_go_on_while_there_is_room() {
    let fixture = Fixture {
        max_bytes: Some(6 * SIZE),
        ..Fixture::new()
    };
    let stripe = fixture.open();
    fill_segments(&stripe, 3);
    stripe.flush(true).unwrap();
    let fault = faults::fail_flushes(&stripe.active().paths().segment);
    append(&stripe, b"the last");
    assert!(stripe.flush(false).is_err());
    drop(fault);
    fill_segments(&stripe, 2);
    ack_all(&stripe);
    let before = fixture.files("");
    let lengths = || {
        let names = before.iter();
        let len = |name| std::fs::metadata(fixture.dir().join(name)).unwrap().len();
        names.map(len).collect::<Vec<_>>()
    };
    let lengths_before = lengths();
    assert!(!stripe.reclaim().unwrap());
    stripe.seal(true).unwrap();
    assert!(stripe.reclaim_all().is_err());
    assert_eq!(
        (fixture.files(""), lengths()),
        (before.clone(), lengths_before)
    );
    assert!(stripe.flush(true).is_err());
    // An append that finds no room gets the usual error.
    let mut given = Vec::new();
    let error = loop {
        match stripe.append_shared(&record(&[7; 3000])) {
            Ok((job, _)) => given.push(job),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, RollError::OverBudget(_)));
    assert_eq!(sequences(&claim_all(&stripe)), given);
    drop(stripe);
    assert_eq!(sequences(&claim_all(&fixture.open())), given);
}

#[test]
fn a_segment_that_owes_a_settlement_is_neither_sealed_nor_retired_until_that_is_durable() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let meta = meta::Meta {
        settles: Some(DEAD_ORIGIN),
        ..meta::Meta::default()
    };
    let meta = meta.encode(&[], 100);
    let mut active = stripe.active();
    let owing = NewRecord {
        meta: &meta,
        ..record(b"again")
    };
    let (_, unsettled) = stripe.append_owing(&mut active, &owing).unwrap();
    fill_segments(&stripe, 3);
    assert!(stripe.has_unsettled());
    stripe.seal(true).unwrap();
    let is_sealed = |at: usize| stripe.segments.read()[at].is_sealed();
    assert!(!is_sealed(0) && is_sealed(1));
    ack_all(&stripe);
    let first = &fixture.files(".seg")[0];
    stripe.reclaim().unwrap();
    assert!(fixture.files(".seg").contains(first));
    unsettled.settle();
    assert!(!stripe.has_unsettled());
    stripe.reclaim().unwrap();
    assert!(!fixture.files(".seg").contains(first));
}

#[test]
fn a_settlement_that_is_already_marked_is_flushed_too() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        append(&stripe, b"one");
        append(&stripe, b"two");
        stripe.flush(true).unwrap();
        assert!(stripe.mark_done(origin()).unwrap());
    }
    let stripe = fixture.open();
    let watch = faults::watch(&fixture.dir(), Vec::new());
    assert_eq!(stripe.settle(&[origin()]).unwrap(), 0);
    let acks = stripe.pin_containing(origin()).unwrap().unwrap();
    let acks = &acks.segment().paths().ack;
    let is_flush = |call: &faults::Call| {
        call.operation == crate::storage::Operation::Flush && call.path == acks.path()
    };
    assert!(watch.take_calls().iter().any(is_flush));
    // If the record's segment is gone, its removal is flushed.
    assert_eq!(stripe.settle(&[origin().plus(1_000_000)]).unwrap(), 0);
    let is_flush =
        |call: &faults::Call| call.operation == crate::storage::Operation::FlushDirectory;
    assert!(watch.take_calls().iter().any(is_flush));
}

#[test]
fn settlements_are_flushed_once_for_each_segment_and_once_for_all_segments_that_are_gone() {
    let fixture = Fixture::new();
    let jobs = fill_segments(&fixture.open(), 3);
    let stripe = fixture.open();
    let watch = faults::watch(&fixture.dir(), Vec::new());
    let gone = (0..1000).map(|at| origin().plus(1_000_000 + at));
    // In no order, since jobs die in any order.
    let named: Vec<_> = gone
        .chain(jobs.iter().rev().chain(&jobs).copied())
        .collect();
    assert_eq!(stripe.settle(&named).unwrap(), jobs.len() as u64);
    let calls = watch.take_calls();
    let flushes = |operation, suffix: &str| {
        let is_one = |call: &&faults::Call| {
            call.operation == operation && call.path.to_string_lossy().ends_with(suffix)
        };
        calls.iter().filter(is_one).count()
    };
    // One for the removals, and one for each segment, since its name may not be durable.
    assert_eq!(flushes(Operation::FlushDirectory, ""), 1 + 3);
    assert_eq!(flushes(Operation::Flush, ".ack"), 3);
}

#[test]
fn a_flush_costs_nothing_for_files_in_which_nothing_has_changed() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let jobs = fill_segments(&stripe, 4);
    let active = append(&stripe, b"");
    stripe.seal(true).unwrap();
    stripe.flush(true).unwrap();
    let file = |job: Sequence, suffix: &str| {
        let base = stripe.segment_containing(job).unwrap().base();
        format!("{:020}.{suffix}", base.within_stripe())
    };
    let flush = |acks_too: bool| flushed_by(&fixture, || stripe.flush(acks_too).unwrap());
    // The records of the active segment are always flushed, whether they have changed or not.
    let appended = [file(active, "seg")];
    assert_eq!(flush(true), appended);
    let mut leases = claim_all(&stripe);
    assert_eq!(flush(true), appended);
    let acked = leases.remove(LARGE_PER_SEGMENT as usize);
    let _ = acked.ack();
    assert_eq!(flush(false), appended);
    let mut changed = vec![file(jobs[LARGE_PER_SEGMENT as usize], "ack")];
    changed.extend(appended.clone());
    changed.sort_unstable();
    assert_eq!(flush(true), changed);
    assert_eq!(flush(true), appended);
    leases[0].begin_delivery();
    let mut changed = vec![file(jobs[0], "ack")];
    changed.extend(appended.clone());
    changed.sort_unstable();
    assert_eq!(flush(true), changed);
    assert_eq!(flush(true), appended);
    leases[0].count_failure(false);
    assert_eq!(flush(true), changed);
}

#[test]
fn acks_of_an_earlier_process_are_flushed_once() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        fill_segments(&stripe, 2);
        append(&stripe, b"");
        stripe.seal(true).unwrap();
        // The process dies before this ack is flushed.
        let _ = claim_all(&stripe).remove(0).ack();
    }
    let stripe = fixture.open();
    let acks = |names: Vec<String>| names.iter().filter(|name| name.ends_with(".ack")).count();
    let flush = || acks(flushed_by(&fixture, || stripe.flush(true).unwrap()));
    assert_eq!(flush(), 4);
    assert_eq!(flush(), 0);
}

#[test]
fn a_flush_that_fails_while_sealing_is_an_error_and_nothing_is_sealed_after_it() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 3);
    let first = stripe.pin_containing(origin()).unwrap().unwrap();
    let fault = faults::fail_flushes(&first.segment().paths().segment);
    assert!(stripe.seal(true).is_err());
    drop(fault);
    stripe.seal(true).unwrap();
    assert!(stripe.flush(false).is_err());
    assert!(!first.segment().is_sealed());
}

#[test]
fn opening_neither_seals_nor_retires_so_that_the_settlements_it_finds_can_be_made_first() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        let meta = meta::Meta {
            settles: Some(DEAD_ORIGIN.plus(4)),
            ..meta::Meta::default()
        };
        let meta = meta.encode(&[], 100);
        let replay = NewRecord {
            meta: &meta,
            ..record(b"again")
        };
        stripe.append_shared(&replay).unwrap();
        fill_segments(&stripe, 2);
        ack_all(&stripe);
    }
    for _ in 0..2 {
        let (stripe, _, settles) = fixture.open_with_report();
        assert_eq!(settles, [DEAD_ORIGIN.plus(4)]);
        drop(stripe);
    }
    let stripe = fixture.open();
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
}
