//! A stripe's log from open to close: rolling, retiring, sealing, a full disk, statistics.

mod waiting;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use super::*;
use crate::log::lease::Lease;
use crate::log::record::NewRecord;
use crate::log::recovery::RecoveryReport;
use crate::log::run::Claim;
use crate::log::segment::capacity_of;
use crate::storage::faults::{self, Effect, Moment, Plan};
use crate::storage::{Operation, create_directories};

const SIZE: u64 = 16384;
/// A payload of which 15 records fill a segment to the last byte.
const LARGE: [u8; 1056] = [7; 1056];
const LARGE_PER_SEGMENT: u32 = 15;

struct Fixture {
    root: tempfile::TempDir,
    kicks: Arc<AtomicU32>,
    max_bytes: Option<u64>,
    starts_ready: bool,
    is_new: bool,
}

impl Fixture {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            kicks: Arc::default(),
            max_bytes: None,
            starts_ready: true,
            is_new: false,
        }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("log/02")
    }

    fn quarantine(&self) -> PathBuf {
        self.root.path().join("quarantine")
    }

    fn open(&self) -> Log {
        self.open_with_report().0
    }

    fn open_with_report(&self) -> (Log, RecoveryReport, Vec<Sequence>) {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<(Log, RecoveryReport, Vec<Sequence>), StorageError> {
        let kicks = Arc::clone(&self.kicks);
        let queue = Directory::open(self.root.path()).unwrap().unwrap();
        let config = LogConfig {
            segment_size: SIZE,
            starts_ready: self.starts_ready,
            is_new: self.is_new,
            queue: Arc::new(queue),
            budget: Arc::new(SpaceBudget::new(self.max_bytes, 0)),
            poison: Arc::default(),
            kick: Arc::new(move || {
                kicks.fetch_add(1, Ordering::Relaxed);
            }),
            sleepers: Arc::new(EventCount::new()),
            lost: Arc::new(|_| ()),
        };
        let queue = Arc::clone(&config.queue);
        let mut recovery = Recovery {
            segment_size: SIZE,
            queue: &queue,
            report: RecoveryReport::default(),
            progress: None,
            segments_seen: 0,
        };
        let directory = create_directories(&self.dir(), 0o600)?;
        let (stripe, replays) = Log::open(directory, origin(), config, &mut recovery)?;
        Ok((stripe, recovery.report, replays))
    }

    fn files(&self, suffix: &str) -> Vec<String> {
        let directory = Directory::open(&self.dir()).unwrap().unwrap();
        let mut names = directory.list().unwrap();
        names.retain(|name| name.ends_with(suffix));
        names
    }
}

fn origin() -> Sequence {
    Sequence::first_of_stripe(2)
}

fn record(payload: &[u8]) -> NewRecord<'_> {
    NewRecord {
        enqueued_at: Timestamp::from_nanos(5),
        due_at: Timestamp::ZERO,
        meta: b"",
        payload,
    }
}

fn append(stripe: &Log, payload: &[u8]) -> Sequence {
    stripe.append_shared(&record(payload)).unwrap().0
}

fn fill_segments(stripe: &Log, segments: u32) -> Vec<Sequence> {
    (0..segments * LARGE_PER_SEGMENT)
        .map(|_| append(stripe, &LARGE))
        .collect()
}

/// Claims everything there is.
fn claim_all(stripe: &Log) -> Vec<Lease> {
    let mut leases = Vec::new();
    while let Claim::Taken { .. } = claim(stripe, 1000, usize::MAX, &mut leases) {}
    leases
}

fn ack_all(stripe: &Log) {
    for lease in claim_all(stripe) {
        let _ = lease.ack();
    }
}

fn claim(stripe: &Log, max_jobs: u32, max_bytes: usize, leases: &mut Vec<Lease>) -> Claim {
    let mut runs = Vec::new();
    let claim = stripe.claim(max_jobs, max_bytes, false, &mut runs);
    for run in runs {
        run.expand(|lease, _| leases.push(lease));
    }
    claim
}

fn sequences(leases: &[Lease]) -> Vec<Sequence> {
    leases.iter().map(Lease::sequence).collect()
}

#[test]
fn records_are_claimed_in_log_order_across_segments() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let appended = fill_segments(&stripe, 3);
    assert!(appended.is_sorted());
    assert_eq!(sequences(&claim_all(&stripe)), appended);
    assert_eq!(fixture.files(".seg").len(), 3);
    // The next one rolls.
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
    let mut cached = stripe.active();
    let first = stripe
        .append_all(&mut cached, &record(b""), &batch)
        .unwrap();
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
    // The first, the third, and the one prepared.
    names(&[0, third.within_stripe(), 3 * 510]);
    others.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    names(&[third.within_stripe(), 3 * 510]);
    assert!(claim_all(&stripe).is_empty());
    append(&stripe, &LARGE);
    assert_eq!(claim_all(&stripe).len(), 1);
}

#[test]
fn a_segment_is_unmapped_only_when_nobody_reads_it_any_more() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    let pinned = stripe.pin_containing(origin()).unwrap().unwrap();
    ack_all(&stripe);
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
    assert!(stripe.pin_containing(origin()).unwrap().is_none());
    // Read after its files are gone.
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
fn a_flush_of_acks_covers_those_of_segments_that_are_gone() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    // So that the only names to flush are those of the segment that goes.
    stripe.active().flush_names().unwrap();
    let leases = claim_all(&stripe);
    leases.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
    let fault = faults::fail_flushes(fixture.dir());
    assert!(stripe.flush(false).is_ok());
    assert!(stripe.flush(true).is_err());
    drop(fault);
    assert!(stripe.flush(true).is_err(), "tried again");
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
fn after_a_failed_flush_nothing_is_sealed_retired_or_emptied_and_jobs_go_through_as_long_as_there_is_room()
 {
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
    // And who finds no room is told that.
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
fn an_ack_file_stays_until_the_removal_of_its_segment_is_durable() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    ack_all(&stripe);
    // Somebody may rely on these acks now.
    stripe.flush(true).unwrap();
    let fault = faults::fail_flushes(fixture.dir());
    assert!(stripe.reclaim().is_err());
    drop(fault);
    // That the flush would succeed now proves nothing.
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
    // Nor do files pile up: a segment, its ack file, and the limit.
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
    closed(stripe.append_all(&mut cached, &record(b""), &[b""]));
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
    // Whoever claims goes on.
    assert_eq!(claim_all(&stripe).len(), 1);
}

#[test]
fn a_segment_that_owes_a_settlement_is_neither_sealed_nor_retired_until_that_is_durable() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let meta = record::Meta {
        settles: Some(DEAD_ORIGIN),
        ..record::Meta::default()
    };
    let meta = meta.encode(100);
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
fn a_settlement_that_is_marked_already_is_flushed_all_the_same() {
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
    // Of one that is gone, the removal is.
    assert_eq!(stripe.settle(&[origin().plus(1_000_000)]).unwrap(), 0);
    let is_flush =
        |call: &faults::Call| call.operation == crate::storage::Operation::FlushDirectory;
    assert!(watch.take_calls().iter().any(is_flush));
}

#[test]
fn what_is_named_is_flushed_once_for_each_segment_and_once_for_all_that_is_gone() {
    let fixture = Fixture::new();
    let jobs = fill_segments(&fixture.open(), 3);
    let stripe = fixture.open();
    let watch = faults::watch(&fixture.dir(), Vec::new());
    let gone = (0..1000).map(|at| origin().plus(1_000_000 + at));
    // In no order, as letters are those of jobs that died in any.
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
    // And one for each segment, of which it is not known whether its name is durable.
    assert_eq!(flushes(Operation::FlushDirectory, ""), 1 + 3);
    assert_eq!(flushes(Operation::Flush, ".ack"), 3);
}

/// The files that `act` flushes.
fn flushed_by(fixture: &Fixture, act: impl FnOnce()) -> Vec<String> {
    let watch = faults::watch(&fixture.dir(), Vec::new());
    act();
    let calls = watch.take_calls().into_iter();
    let flushed = calls.filter(|call| call.operation == Operation::Flush);
    let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut names: Vec<_> = flushed.map(|call| name(call.path)).collect();
    names.sort_unstable();
    names
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
    // Of a segment that is appended to, whether its records have changed is not asked.
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
fn what_an_earlier_process_acked_is_flushed_once() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        fill_segments(&stripe, 2);
        append(&stripe, b"");
        stripe.seal(true).unwrap();
        // And dies before it is flushed.
        let _ = claim_all(&stripe).remove(0).ack();
    }
    let stripe = fixture.open();
    let acks = |names: Vec<String>| names.iter().filter(|name| name.ends_with(".ack")).count();
    let flush = || acks(flushed_by(&fixture, || stripe.flush(true).unwrap()));
    assert_eq!(flush(), 4);
    assert_eq!(flush(), 0);
}

#[test]
fn a_failed_flush_ends_sealing_with_that_failure() {
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
fn opening_neither_seals_nor_retires_so_that_what_it_names_can_be_settled_first() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        let meta = record::Meta {
            settles: Some(DEAD_ORIGIN.plus(4)),
            ..record::Meta::default()
        };
        let meta = meta.encode(100);
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

#[test]
fn a_segment_that_another_has_scanned_meanwhile_is_claimed_from_and_not_passed_over() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        append(&stripe, b"one");
        stripe.close();
        stripe.seal(true).unwrap();
    }
    let stripe = fixture.open();
    // A consumer looks, and finds that it is to be scanned ...
    let segment = stripe.claiming.load_full();
    assert!(segment.is_unscanned());
    // ... which somebody else does before it takes its turn.
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
    {
        let stripe = fixture.open();
        append(&stripe, b"first");
        append(&stripe, b"second");
        stripe.close();
        stripe.seal(true).unwrap();
    }
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
        "a consumer that looks again finds nothing"
    );
    assert!(
        stripe.pins().next().is_some_and(|first| first.is_err()),
        "not left out silently"
    );
    drop(fault);
    *stripe.held_back.lock() = None;
    assert!(stripe.may_have_work());
    let leases = claim_all(&stripe);
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].record().payload(), b"second");
    assert_eq!(stripe.damaged_regions(), 1);
    for lease in leases {
        assert!(lease.ack().segment_complete, "the lost one counts as done");
    }
    stripe.reclaim().unwrap();
    assert_eq!(fixture.files(".seg").len(), 1);
}

#[test]
fn a_consumer_asleep_is_woken_when_somebody_else_has_checked_the_segment_that_was_held_back() {
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
    assert!(stripe.is_held_back(), "another segment says nothing of it");
    drop(fault);
    assert_eq!(stripe.config.sleepers.asleep(), 1);
    assert!(stripe.pin_containing(origin()).unwrap().is_some());
    assert_eq!(stripe.config.sleepers.asleep(), 0);
    assert!(stripe.may_have_work());
}

#[test]
fn a_segment_that_cannot_be_renamed_to_wait_does_not_lose_its_acks() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    append(&stripe, b"");
    ack_all(&stripe);
    stripe.flush(true).unwrap();
    let in_the_way = fixture.dir().join(format!("{:020}.spare", 0));
    fs::create_dir(&in_the_way).unwrap();
    for _ in 0..2 {
        // Whether it says so or removes the files instead.
        let _ = stripe.reclaim();
    }
    fs::remove_dir(&in_the_way).unwrap();
    drop(stripe);
    assert!(claim_all(&fixture.open()).is_empty());
}

#[test]
fn a_segment_whose_last_job_was_lost_to_damage_can_be_compacted_as_any_other() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        append(&stripe, b"waits");
        append(&stripe, b"lost");
        stripe.close();
        stripe.seal(true).unwrap();
    }
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

// Space.

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
    // The producer retires by itself.
    append(&stripe, b"");
    assert_eq!(fixture.files(".seg").len(), 3);
}

#[test]
fn a_spare_that_was_not_used_after_all_stays_counted_in_the_budget() {
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
    // The limit of the sequences is to be raised, and cannot be.
    let nowhere = tempfile::tempdir().unwrap();
    stripe.next.lock().limit = SequenceLimit::find(&Names::at(nowhere.path()), origin()).unwrap();
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
fn new_files_take_the_place_of_a_spare_that_cannot_be_renamed_and_nothing_stays_of_it() {
    // The file of its records, and that of its acks, when the other has its new name already.
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
        // The roll that needs the spare is that of a producer, which sees nothing of this.
        let appended = fill_segments(&stripe, 1);
        let calls = fault.take_calls();
        assert_eq!(
            calls.iter().filter(|call| call.effect.is_some()).count(),
            1,
            "the spare was tried"
        );
        // The base that the spare was to have is not used again.
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
fn on_a_full_disk_a_log_that_is_all_done_makes_room_for_its_next_segment() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    ack_all(&stripe);
    let fault = faults::fill_disk(&fixture.dir());
    let full = |stripe: &Log| match stripe.append_shared(&record(b"")) {
        Err(RollError::Storage(error)) => assert!(error.is_full()),
        _ => panic!("there was room"),
    };
    // Somebody reads it: what is read is not taken away.
    let pinned = stripe.pin_containing(origin()).unwrap().unwrap();
    full(&stripe);
    let path = fixture.dir().join(format!("{:020}.seg", 0));
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    drop(pinned);
    full(&stripe);
    // Its name still says which sequences were given out.
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
fn an_emptied_segment_is_nothing_to_the_next_open() {
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
fn acks_of_a_segment_that_is_about_to_be_emptied_are_flushed_whoever_still_reads_it() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    fill_segments(&stripe, 1);
    ack_all(&stripe);
    // A late handler, or whoever looks at statistics.
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
    // One that stays keeps its name.
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

#[test]
fn what_follows_a_segment_that_is_flushed_is_flushed_before_it_is_needed() {
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
    // Its records and its acks.
    assert_eq!(flushes(), 2);
    // The next one is not, if nobody asks for a flush meanwhile.
    fill_segments(&stripe, 2);
    stripe.prepare();
    stripe.flush_ahead().unwrap();
    assert_eq!(flushes(), 0);
}

#[test]
fn a_first_segment_with_pages_that_cannot_be_had_is_left() {
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
    // Its files are not used again.
    leases.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    assert!(fixture.files("spare").is_empty() && fixture.files(".seg").len() == 1);
    // Once, and no more.
    assert!(!fault.take_calls().is_empty());
    assert!(!stripe.warm_up());
    assert!(fault.take_calls().is_empty());
}

#[test]
fn damage_that_cannot_be_set_aside_keeps_its_segment_though_all_else_in_it_is_done() {
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
fn what_is_done_but_for_damage_goes_as_soon_as_the_damage_is_set_aside() {
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
    // Maintenance is told.
    assert!(fixture.kicks.load(Ordering::Relaxed) > kicks);
    assert!(stripe.reclaim().unwrap());
    assert!(!path.exists());
}

#[test]
fn a_segment_that_somebody_reads_is_emptied_later() {
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
fn a_flush_that_fails_when_a_segment_is_emptied_is_told_and_final() {
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
        // Whoever flushes a segment reads it until the flush ends. Before that a producer finds
        // the disk full, and gives the segment up.
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
        // What a failed flush was of stays.
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
    // What was prepared gave its space back, and keeps its name until maintenance begins.
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

// Statistics.

#[test]
fn statistics_add_up_from_append_to_retirement() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let check = |stripe: &Log, live, unclaimed, appended, done, segments| {
        let stats = stripe.stats();
        assert_eq!(
            (
                stats.live,
                stats.unclaimed,
                stats.appended,
                stats.done,
                stats.segments
            ),
            (live, unclaimed, appended, done, segments)
        );
    };
    check(&stripe, 0, 0, 0, 0, 1);
    fill_segments(&stripe, 2);
    check(&stripe, 30, 30, 30, 0, 2);
    let mut leases = Vec::new();
    claim(&stripe, 10, usize::MAX, &mut leases);
    check(&stripe, 30, 20, 30, 0, 2);
    leases.into_iter().for_each(|lease| _ = lease.ack());
    check(&stripe, 20, 20, 30, 10, 2);
    append(&stripe, b"");
    let leases = claim_all(&stripe);
    check(&stripe, 21, 0, 31, 10, 3);
    leases.into_iter().for_each(|lease| _ = lease.ack());
    check(&stripe, 0, 0, 31, 31, 3);
    stripe.reclaim().unwrap();
    check(&stripe, 0, 0, 31, 31, 1);
}

#[test]
fn statistics_after_reopening_count_what_is_left_and_what_is_done_since() {
    let fixture = Fixture::new();
    let appended = {
        let stripe = fixture.open();
        let appended = fill_segments(&stripe, 2);
        let mut leases = claim_all(&stripe);
        // Three of the first segment and two of the second.
        leases.drain(15..17).for_each(|lease| _ = lease.ack());
        leases.drain(0..3).for_each(|lease| _ = lease.ack());
        appended
    };
    let stripe = fixture.open();
    let counts = |stripe: &Log| {
        let stats = stripe.stats();
        (stats.live, stats.unclaimed, stats.appended, stats.done)
    };
    assert_eq!(counts(&stripe), (25, 25, 0, 0));
    // Before consumers have reached it, and not by one of them.
    assert!(stripe.mark_done(appended[20]).unwrap());
    assert!(!stripe.mark_done(appended[20]).unwrap());
    assert_eq!(counts(&stripe), (24, 24, 0, 0));
    let mut leases = Vec::new();
    // Three of the five are done.
    claim(&stripe, 5, usize::MAX, &mut leases);
    assert_eq!(counts(&stripe), (24, 22, 0, 0));
    leases.into_iter().for_each(|lease| _ = lease.ack());
    assert_eq!(counts(&stripe), (22, 22, 0, 2));
    let leases = claim_all(&stripe);
    assert_eq!(leases.len(), 22);
    assert_eq!(counts(&stripe), (22, 0, 0, 2));
    leases.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    assert_eq!(counts(&stripe), (0, 0, 0, 24));
}

#[test]
fn only_records_that_are_there_can_be_marked_done() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let last = append(&stripe, b"job");
    for wrong in [
        last.plus(1),
        last.plus(600),
        origin().plus_wide(1 << 40),
        Sequence::first_of_stripe(1),
        Sequence::first_of_stripe(3),
        Sequence::new(u64::MAX),
        Sequence::new(0),
    ] {
        assert!(!stripe.mark_done(wrong).unwrap(), "{wrong}");
        assert!(stripe.pin_containing(wrong).unwrap().is_none() || wrong > last);
    }
    assert!(stripe.mark_done(last).unwrap());
    assert_eq!(stripe.stats().live, 0);
}

#[test]
fn the_oldest_job_is_found_without_a_scan() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        for at in 0..40 {
            let one = NewRecord {
                enqueued_at: Timestamp::from_nanos(100 + at),
                ..record(&LARGE)
            };
            stripe.append_shared(&one).unwrap();
        }
        stripe.close();
        stripe.seal(true).unwrap();
        assert_eq!(
            stripe.oldest_enqueued_at(),
            Some(Timestamp::from_nanos(100))
        );
    }
    let stripe = fixture.open();
    assert_eq!(
        stripe.oldest_enqueued_at(),
        Some(Timestamp::from_nanos(100))
    );
    let unscanned = |stripe: &Log| -> usize {
        let segments = stripe.segments.read();
        segments
            .iter()
            .filter(|segment| segment.is_unscanned())
            .count()
    };
    assert_eq!(unscanned(&stripe), 3);
    let mut leases = claim_all(&stripe);
    leases.drain(..20).for_each(|lease| _ = lease.ack());
    assert_eq!(
        stripe.oldest_enqueued_at(),
        Some(Timestamp::from_nanos(120))
    );
    leases.into_iter().for_each(|lease| _ = lease.ack());
    assert_eq!(stripe.oldest_enqueued_at(), None);
}

#[test]
fn producers_consumers_and_maintenance_together_lose_nothing_and_deliver_nothing_twice() {
    const PRODUCERS: u64 = 3;
    const JOBS: u64 = 3000;
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let seen = Mutex::new(vec![0u8; (PRODUCERS * JOBS) as usize]);
    let acked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let stripe = &stripe;
            scope.spawn(move || {
                let mut cached = stripe.active();
                for job in 0..JOBS {
                    let payload = (producer * JOBS + job).to_le_bytes();
                    stripe.append(&mut cached, &record(&payload)).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut leases = Vec::new();
                while acked.load(Ordering::Relaxed) < PRODUCERS * JOBS {
                    if let Claim::Taken { .. } = claim(&stripe, 64, 4096, &mut leases) {
                        for lease in leases.drain(..) {
                            let payload = lease.record().payload().try_into().unwrap();
                            seen.lock()[u64::from_le_bytes(payload) as usize] += 1;
                            lease.ack();
                            acked.fetch_add(1, Ordering::Relaxed);
                        }
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
        }
        scope.spawn(|| {
            while acked.load(Ordering::Relaxed) < PRODUCERS * JOBS {
                stripe.prepare();
                stripe.reclaim().unwrap();
                stripe.seal(false).unwrap();
                let stats = stripe.stats();
                assert!(stats.unclaimed <= stats.live && stats.done <= stats.appended);
                assert_eq!(stats.live, stats.appended - stats.done);
            }
        });
    });
    assert!(seen.lock().iter().all(|&times| times == 1));
    stripe.reclaim().unwrap();
    let stats = stripe.stats();
    assert_eq!((stats.live, stats.segments), (0, 1));
    assert_eq!(
        (stats.appended, stats.done),
        (PRODUCERS * JOBS, PRODUCERS * JOBS)
    );
}
