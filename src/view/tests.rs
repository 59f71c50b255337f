//! Tests of views during moves and failures, and of the calls that a view makes.

use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::walk::{LISTINGS, LogWalk};
use super::*;
use crate::log::header::Identity;
use crate::log::meta::{MAX_META_BYTES, Meta};
use crate::log::names::Names;
use crate::log::record::NewRecord;
use crate::log::segment::{Append, Segment, Warm};
use crate::log::snapshot::LogFiles;
use crate::storage::faults::{self, Effect, Plan};
use crate::storage::{Directory, Operation};
use crate::{EnqueueOptions, JobId, Queue, Sequence, Timestamp};

const SIZE: u64 = 16 * 1024;
const HOUR: Duration = Duration::from_secs(3600);

fn at(base: u64) -> Sequence {
    Sequence::first_of_stripe(0).plus_wide(base)
}

/// A segment with a record for each payload, as if compaction had moved them from `original`.
fn segment(dir: &Path, base: u64, original: Option<Sequence>, payloads: &[&[u8]]) -> Arc<Segment> {
    let identity = Identity {
        base: at(base),
        segment_size: SIZE,
        created_at: Timestamp::from_nanos(7),
        salt: 0x5eed + base,
    };
    let segment = Segment::create(&Names::at(dir), identity, Warm::All).unwrap();
    for payload in payloads {
        let appended = segment.append(&record(&meta(original), payload));
        assert!(matches!(appended, Append::Done(_)));
    }
    segment
}

/// The metadata of a job that was moved from there.
fn meta(original: Option<Sequence>) -> Vec<u8> {
    let meta = Meta {
        settles: original,
        original,
        ..Meta::default()
    };
    meta.encode(&[], MAX_META_BYTES).to_vec()
}

fn record<'a>(meta: &'a [u8], payload: &'a [u8]) -> NewRecord<'a> {
    NewRecord {
        enqueued_at: Timestamp::from_nanos(9),
        due_at: Timestamp::ZERO,
        name: b"",
        meta,
        payload,
    }
}

fn finish(segment: &Arc<Segment>, index: u32) {
    let pinned = segment.look().unwrap().unwrap();
    assert!(pinned.mark_done(index).is_some());
}

fn walk(dir: &Path) -> LogWalk {
    let directory = Directory::open(dir).unwrap().unwrap();
    LogWalk::new(LogFiles::new(directory, at(0), SIZE), true)
}

/// The payloads in the next segment of a walk.
fn next(walk: &mut LogWalk) -> Option<Vec<Vec<u8>>> {
    let mut snapshot = walk.next_segment()?.unwrap();
    let live = snapshot.live().into_iter();
    let payload = |units| snapshot.record(units).unwrap().content().payload.to_vec();
    Some(live.map(payload).collect())
}

#[test]
fn a_job_that_is_moved_while_the_log_is_walked_is_met() {
    let dir = tempfile::tempdir().unwrap();
    let _first = segment(dir.path(), 0, None, &[b"first"]);
    let second = segment(dir.path(), 1000, None, &[b"moved"]);
    let original = Some(second.base());
    let mut walk = walk(dir.path());
    assert_eq!(next(&mut walk).unwrap(), [b"first"]);
    // The names are listed, and that of the segment that it is moved to is not among them.
    let _other = segment(dir.path(), 2000, None, &[b"other"]);
    let third = segment(dir.path(), 3000, original, &[b"moved"]);
    finish(&second, 0);
    assert!(next(&mut walk).unwrap().is_empty());
    assert_eq!(next(&mut walk).unwrap(), [b"other"]);
    // And again.
    let _fourth = segment(dir.path(), 4000, original, &[b"moved"]);
    finish(&third, 0);
    assert!(next(&mut walk).unwrap().is_empty());
    assert_eq!(next(&mut walk).unwrap(), [b"moved"]);
    assert_eq!(next(&mut walk), None);
}

#[test]
fn a_walk_ends_whatever_the_owner_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut made = 0;
    let mut make = |original| {
        made += 1;
        segment(dir.path(), made * 1000, original, &[b"job"])
    };
    // New segments, from which nothing can have been moved: one more listing.
    let _first = make(None);
    let mut walked = walk(dir.path());
    let mut segments = 0;
    while next(&mut walked).is_some() {
        make(None);
        segments += 1;
    }
    assert_eq!(segments, 2);
    // Each of them has a job that was moved, and has moved on when it is read.
    let mut walked = walk(dir.path());
    let mut last = make(Some(at(0)));
    let mut segments = 0;
    while next(&mut walked).is_some() {
        finish(&last, 0);
        last = make(Some(at(0)));
        segments += 1;
    }
    // Four segments were there at the start.
    assert_eq!(segments, 4 * LISTINGS);
}

/// A queue with a full segment and another one, and the ids of the jobs in them.
fn full_segment(dir: &Path) -> (Queue, Vec<JobId>) {
    let builder = Queue::builder(dir).stripes(1).segment_size(SIZE);
    let (queue, _) = builder.open().unwrap();
    let jobs = (0..7).map(|_| queue.enqueue(&[7; 3000]).unwrap()).collect();
    (queue, jobs)
}

/// Appends a copy of a job, as compaction does before it marks the old record.
fn copy(queue: &Queue, job: JobId) {
    let meta = meta(Some(job.sequence()));
    let stripe = &queue.engine().dispatch().stripes()[0];
    let appended = stripe.append_shared(&record(&meta, b"copy"));
    assert!(appended.is_ok());
}

fn payloads_of(jobs: &[ViewedJob], id: JobId) -> Vec<usize> {
    let found = jobs.iter().filter(|job| job.id() == id);
    found.map(|job| job.payload().len()).collect()
}

#[test]
fn a_job_that_is_moved_is_seen_once_at_one_of_its_places() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, ids) = full_segment(dir.path());
    let view = View::open(dir.path()).unwrap();
    let mut iteration = view.jobs();
    let first = iteration.next().unwrap().unwrap();
    assert_eq!(first.id(), ids[0]);
    // Seen already, and then copied to a segment that is still to be read.
    copy(&queue, ids[0]);
    let rest: Vec<_> = iteration.map(Result::unwrap).collect();
    assert_eq!(rest.len(), ids.len() - 1);
    assert!(payloads_of(&rest, ids[0]).is_empty());
    // Before its old record is marked, the copy is what counts: it may be done.
    let again: Vec<_> = view.jobs().map(Result::unwrap).collect();
    assert_eq!(again.len(), ids.len());
    assert_eq!(payloads_of(&again, ids[0]), [b"copy".len()]);
    assert_eq!(view.stats().unwrap().jobs, ids.len() as u64);
}

#[test]
fn a_view_only_opens_inspects_lists_and_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, ids) = full_segment(dir.path());
    let delayed = EnqueueOptions::new().delay(HOUR);
    queue.enqueue_with(b"later", delayed).unwrap();
    let consumer = queue.consumer();
    consumer.next().unwrap().dead_letter("no use");
    queue.flush().unwrap();
    drop(consumer);
    queue.close().unwrap();
    let watch = faults::watch(dir.path(), Vec::new());
    let view = View::open(dir.path()).unwrap();
    assert_eq!(view.jobs().count(), ids.len());
    assert_eq!(view.dead_letters().count(), 1);
    view.stats().unwrap();
    let calls = watch.take_calls();
    assert!(calls.len() > 20);
    for call in calls {
        use Operation::{Inspect, List, Open, Read};
        let only_looks = matches!(call.operation, Open | Inspect | List | Read);
        assert!(only_looks, "{call:?}");
    }
}

#[test]
fn a_segment_that_cannot_be_read_is_an_error_and_the_others_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, ids) = full_segment(dir.path());
    let more = queue.enqueue(&[8; 3000]).unwrap();
    let bad = dir.path().join(format!("log/00/{:020}.seg", 0));
    let plan = Plan {
        operation: Operation::Read,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::IO),
    };
    let fault = faults::watch(&bad, vec![plan]);
    let view = View::open(dir.path()).unwrap();
    let (found, errors): (Vec<_>, Vec<_>) = view.jobs().partition(Result::is_ok);
    assert!(found.iter().flatten().any(|job| job.id() == more));
    assert!(!errors.is_empty());
    for error in errors {
        assert_eq!(error.unwrap_err().path(), bad);
    }
    assert_eq!(view.stats().unwrap_err().path(), bad);
    assert_eq!(view.dead_letters().filter(Result::is_ok).count(), 0);
    fault.lift();
    assert_eq!(view.jobs().filter(Result::is_ok).count(), ids.len() + 1);
}
