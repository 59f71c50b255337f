//! Tests of copies of segments whose files change in between.

use std::fs;
use std::path::Path;

use super::*;
use crate::Timestamp;
use crate::log::ack;
use crate::log::meta::MAX_META_BYTES;
use crate::log::names::Names;
use crate::log::record::NewRecord;
use crate::log::segment::{Append, Batch, Segment, Warm};
use crate::log::spare;
use crate::log::tail::Reserved;
use crate::log::zeroing::Dirty;
use crate::storage::Entry;

const SIZE: u64 = 16 * 1024;

fn identity(base: u64, segment_size: u64) -> Identity {
    Identity {
        base: Sequence::first_of_stripe(2).plus_wide(base),
        segment_size,
        created_at: Timestamp::from_nanos(7),
        salt: 0x5eed_0000_0000 + base,
    }
}

fn create(dir: &Path, segment_size: u64) -> Arc<Segment> {
    Segment::create(&Names::at(dir), identity(0, segment_size), Warm::All).unwrap()
}

fn files(dir: &Path, segment_size: u64) -> LogFiles {
    let directory = Directory::open(dir).unwrap().unwrap();
    LogFiles::new(directory, Sequence::first_of_stripe(2), segment_size)
}

fn record(payload: &[u8]) -> NewRecord<'_> {
    NewRecord {
        enqueued_at: Timestamp::from_nanos(9),
        due_at: Timestamp::ZERO,
        name: b"",
        meta: b"",
        payload,
    }
}

fn append(segment: &Segment, payload: &[u8]) {
    assert!(matches!(segment.append(&record(payload)), Append::Done(_)));
}

fn ack(segment: &Arc<Segment>, index: u32) {
    let pinned = segment.look().unwrap().unwrap();
    assert!(pinned.mark_done(index).is_some());
}

/// The payloads of the jobs in a copy.
fn payloads(snapshot: Option<Snapshot>) -> Vec<Vec<u8>> {
    let Some(mut snapshot) = snapshot else {
        return Vec::new();
    };
    let live = snapshot.live().into_iter();
    live.map(|units| snapshot.record(units).unwrap().content().payload.to_vec())
        .collect()
}

fn jobs(files: &LogFiles, base: Sequence) -> Vec<Vec<u8>> {
    payloads(files.snapshot(base).unwrap())
}

/// The jobs of a segment that was opened earlier, if nothing has changed since then.
fn jobs_since(files: &LogFiles, opened: &Opened) -> Option<Vec<Vec<u8>>> {
    let identity = opened.headers.identity()?;
    let copy = files.copy(opened, identity).unwrap();
    let is_unchanged = files.is_unchanged(opened).unwrap();
    is_unchanged.then(|| payloads(Some(copy)))
}

#[test]
fn a_copy_has_the_jobs_that_are_not_done_with_their_deliveries() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    let files = files(dir.path(), SIZE);
    assert_eq!(files.bases(None).unwrap(), [segment.base()]);
    assert_eq!(jobs(&files, segment.base()), Vec::<Vec<u8>>::new());
    for payload in [b"a", b"b", b"c"] {
        append(&segment, payload);
    }
    ack(&segment, 1);
    segment
        .look()
        .unwrap()
        .unwrap()
        .maps()
        .acks
        .begin_delivery(2);
    assert_eq!(jobs(&files, segment.base()), [b"a", b"c"]);
    let snapshot = files.snapshot(segment.base()).unwrap().unwrap();
    assert!(!snapshot.deliveries(0).is_running() && snapshot.deliveries(2).is_running());
    let none = BTreeSet::new();
    let held = files.held(segment.base(), &none).unwrap().unwrap();
    assert_eq!((held.jobs, held.bytes), (2, SIZE));

    segment.close_now();
    segment.seal().unwrap();
    assert_eq!(jobs(&files, segment.base()), [b"a", b"c"]);
    let settled = BTreeSet::from([segment.sequence(1), segment.sequence(2)]);
    assert_eq!(
        files.held(segment.base(), &settled).unwrap().unwrap().jobs,
        1
    );
    assert!(files.bases(Some(segment.base())).unwrap().is_empty());
}

#[test]
fn a_job_behind_one_that_is_being_written_is_in_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    append(&segment, b"first");
    assert!(matches!(segment.tail.reserve(3, 30), Reserved::At(_)));
    append(&segment, b"last");
    let files = files(dir.path(), SIZE);
    assert_eq!(jobs(&files, segment.base()), [&b"first"[..], &b"last"[..]]);
}

#[test]
fn a_job_that_is_moved_within_its_segment_meanwhile_is_in_the_copy_once() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    append(&segment, b"other");
    append(&segment, b"job");
    let files = files(dir.path(), SIZE);
    let opened = files.open(segment.base()).unwrap().unwrap();
    let identity = opened.headers.identity().unwrap();
    let before = files.acks(&opened, &identity).unwrap();
    let move_from = |index| {
        let meta = Meta {
            settles: Some(segment.sequence(index)),
            original: Some(segment.sequence(1)),
            ..Meta::default()
        };
        let meta = meta.encode(b"", MAX_META_BYTES);
        let moved = NewRecord {
            meta: &meta,
            ..record(b"job")
        };
        assert!(matches!(segment.append(&moved), Append::Done(_)));
    };
    let copy = |acks| {
        let copy = files.copy_records(&opened, identity, acks).unwrap();
        payloads(Some(copy))
    };
    move_from(1);
    assert_eq!(copy(before), [&b"other"[..], &b"job"[..]]);
    ack(&segment, 1);
    let between = files.acks(&opened, &identity).unwrap();
    move_from(2);
    ack(&segment, 2);
    assert_eq!(copy(between), [&b"other"[..], &b"job"[..]]);
}

#[test]
fn a_batch_is_in_the_copy_once_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    let payloads = [&b"one"[..], b"two", b"three"];
    let batch = Batch::new(payloads.into_iter().map(record), 4096);
    let Ok(batch) = batch else {
        panic!("it fits");
    };
    assert!(matches!(segment.append_batch(&batch), Append::Done(_)));
    append(&segment, b"other");
    let files = files(dir.path(), SIZE);
    let path = &segment.paths().segment;
    let whole = fs::read(path).unwrap();
    assert_eq!(jobs(&files, segment.base()).len(), 4);
    // Its first record is committed last.
    let mut begun = whole;
    begun[64..68].fill(0);
    fs::write(path, begun).unwrap();
    assert_eq!(jobs(&files, segment.base()), [b"other"]);
}

#[test]
fn of_a_sealed_segment_that_is_cut_off_what_is_there_of_a_batch_is_in_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    let payloads = [&b"one"[..], b"two", b"three"];
    let batch = Batch::new(payloads.into_iter().map(record), 4096);
    let Ok(batch) = batch else {
        panic!("it fits");
    };
    assert!(matches!(segment.append_batch(&batch), Append::Done(_)));
    append(&segment, b"last");
    segment.close_now();
    segment.seal().unwrap();
    let files = files(dir.path(), SIZE);
    assert_eq!(jobs(&files, segment.base()).len(), 4);
    let path = &segment.paths().segment;
    let mut cut = fs::read(path).unwrap();
    // The batch is not complete, and the last record ends too early.
    cut[64] ^= 1;
    cut.truncate(cut.len() - 16);
    fs::write(path, cut).unwrap();
    let expected = [&b"two"[..], b"three"];
    assert_eq!(jobs(&files, segment.base()), expected);
    let held = files.held(segment.base(), &BTreeSet::new()).unwrap();
    assert_eq!(held.unwrap().jobs, 2);
}

#[test]
fn a_segment_that_is_sealed_in_between_is_read_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    append(&segment, b"job");
    let files = files(dir.path(), SIZE);
    let opened = files.open(segment.base()).unwrap().unwrap();
    segment.close_now();
    segment.seal().unwrap();
    assert_eq!(jobs_since(&files, &opened).unwrap(), [b"job"]);
}

#[test]
fn a_segment_whose_files_become_another_one_in_between_is_not_taken_for_either() {
    let dir = tempfile::tempdir().unwrap();
    let names = Names::at(dir.path());
    let segment = create(dir.path(), SIZE);
    for _ in 0..32 {
        append(&segment, b"done");
    }
    let files = files(dir.path(), SIZE);
    let base = segment.base();
    let opened = files.open(base).unwrap().unwrap();
    assert_eq!(jobs_since(&files, &opened).unwrap().len(), 32);
    (0..32).for_each(|index| ack(&segment, index));
    segment.close_now();
    assert_eq!(jobs_since(&files, &opened).unwrap().len(), 0);

    // As the maintenance thread does it.
    let waiting = spare::waiting(segment.paths());
    let (end, paths) = (segment.closed().unwrap(), segment.paths().clone());
    paths.segment.rename(&waiting.segment).unwrap();
    assert_eq!(jobs_since(&files, &opened), None);
    let maps = Arc::into_inner(segment.retire().unwrap()).unwrap();
    paths.ack.rename(&waiting.ack).unwrap();
    let spare = Dirty::new(maps, end, waiting).into_spare();
    // Its acks are gone, and would make every record come again.
    assert_eq!(jobs_since(&files, &opened), None);
    let next = spare.into_segment(&names, identity(1000, SIZE)).unwrap();
    append(&next, b"new");
    assert_eq!(jobs_since(&files, &opened), None);
    assert_eq!(jobs(&files, base), Vec::<Vec<u8>>::new());
    assert_eq!(jobs(&files, next.base()), [b"new"]);
    assert_eq!(files.bases(None).unwrap(), [next.base()]);
}

#[test]
fn a_segment_that_is_emptied_in_between_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    append(&segment, b"done");
    let files = files(dir.path(), SIZE);
    let opened = files.open(segment.base()).unwrap().unwrap();
    // Its records first.
    segment.paths().segment.empty_durably().unwrap();
    assert_eq!(jobs_since(&files, &opened), None);
    assert!(files.snapshot(segment.base()).unwrap().is_none());
    segment.paths().ack.truncate(0).unwrap();
    assert_eq!(jobs_since(&files, &opened), None);
    assert!(files.snapshot(segment.base()).unwrap().is_none());
    assert!(files.settles(segment.base()).unwrap().is_empty());
}

#[test]
fn an_ack_file_that_is_made_anew_in_between_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    append(&segment, b"job");
    ack(&segment, 0);
    let (files, acks) = (files(dir.path(), SIZE), &segment.paths().ack);
    let opened = files.open(segment.base()).unwrap().unwrap();
    let bytes = fs::read(acks).unwrap();
    acks.remove().unwrap();
    assert_eq!(jobs_since(&files, &opened), None);
    // Without one, all jobs come again.
    assert_eq!(jobs(&files, segment.base()), [b"job"]);
    let without = files.open(segment.base()).unwrap().unwrap();
    fs::write(acks, bytes).unwrap();
    assert_eq!(jobs_since(&files, &opened), None);
    assert_eq!(jobs_since(&files, &without), None);
    assert_eq!(jobs(&files, segment.base()), Vec::<Vec<u8>>::new());
}

#[test]
fn either_header_replaces_the_other_and_without_both_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    append(&segment, b"job");
    let files = files(dir.path(), SIZE);
    let flip = |path: &Entry| {
        let mut bytes = fs::read(path).unwrap();
        bytes[20] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    for path in [&segment.paths().segment, &segment.paths().ack] {
        flip(path);
        assert_eq!(jobs(&files, segment.base()), [b"job"]);
        flip(path);
    }
    flip(&segment.paths().segment);
    flip(&segment.paths().ack);
    let Err(error) = files.snapshot(segment.base()) else {
        panic!("read without a header");
    };
    assert!(
        error.to_string().ends_with("its header is damaged"),
        "{error}"
    );
    // One that is being made has none yet, or a part of it.
    let mut bytes = vec![0; SIZE as usize];
    fs::write(&segment.paths().segment, &bytes).unwrap();
    assert!(files.snapshot(segment.base()).unwrap().is_none());
    bytes[..8].copy_from_slice(b"logmillS");
    fs::write(&segment.paths().segment, &bytes).unwrap();
    assert!(files.snapshot(segment.base()).unwrap().is_none());
    // With a record it was complete.
    bytes[100] = 1;
    fs::write(&segment.paths().segment, &bytes).unwrap();
    assert!(files.snapshot(segment.base()).is_err());
}

#[test]
fn zeros_at_the_end_of_a_record_belong_to_it() {
    const LARGE: u64 = 4 * 1024 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), LARGE);
    append(&segment, b"first");
    append(&segment, &vec![0; CHUNK + 1000]);
    let files = files(dir.path(), LARGE);
    let found = jobs(&files, segment.base());
    assert_eq!((found.len(), found[1].len()), (2, CHUNK + 1000));
    // The unused room at the end takes no memory.
    let mut found = files.snapshot(segment.base()).unwrap().unwrap();
    assert!(found.bytes.len() < LARGE as usize / 2);
    assert_eq!(found.live().len(), 2);
}

#[test]
fn an_ack_word_that_stays_invalid_counts_as_zero() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    for payload in [b"a", b"b"] {
        append(&segment, payload);
    }
    ack(&segment, 0);
    let files = files(dir.path(), SIZE);
    assert_eq!(jobs(&files, segment.base()), [b"b"]);
    let path = &segment.paths().ack;
    let mut bytes = fs::read(path).unwrap();
    bytes[64] ^= 2;
    fs::write(path, &bytes).unwrap();
    assert_eq!(jobs(&files, segment.base()), [b"a", b"b"]);
    // As does every word of a file that is cut off.
    bytes[64] ^= 2;
    bytes.truncate(ack::file_bytes(capacity_of(SIZE)) as usize - 1);
    fs::write(path, &bytes).unwrap();
    assert_eq!(jobs(&files, segment.base()), [b"a", b"b"]);
}

#[test]
fn the_done_records_below_any_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let segment = create(dir.path(), SIZE);
    for _ in 0..70 {
        append(&segment, b"job");
    }
    let done = [0, 31, 32, 63, 64, 69];
    done.into_iter().for_each(|index| ack(&segment, index));
    let file = ReadFile::open(segment.paths().ack.clone())
        .unwrap()
        .unwrap();
    let salt = segment.identity().salt;
    let acks = CopiedAcks::read(&file, salt, capacity_of(SIZE), 70).unwrap();
    for below in 0..=70 {
        let expected = done.into_iter().filter(|&index| index < below).count();
        assert_eq!(acks.done_below(below), expected as u32, "{below}");
    }
}

#[test]
fn a_directory_in_place_of_a_segment_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(format!("{:020}.seg", 0))).unwrap();
    let files = files(dir.path(), SIZE);
    let base = files.bases(None).unwrap()[0];
    assert!(files.snapshot(base).is_err() && files.settles(base).is_err());
}
