//! The targets `segment` and `ack`: arbitrary bytes in a segment file or an ack file of an
//! otherwise good queue.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use logmill::{Damage, Headers, OpenError, Queue, RecoveryReport};

use crate::format::{self, Acks, Content, End, FILE_HEADER, Job, Segment};
use crate::good_queue::{ACKED, JOBS, LOG, content, good_queue};
use crate::{SEGMENT_SIZE, builder, directory, is_one_in};

/// Far longer than a few jobs take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The attempts that a default retry policy allows.
const POLICY_LIMIT: u8 = 5;
const CRASHES_LIMIT: u32 = 3;

/// A due time this far ahead is past the end of any test.
const FAR: Duration = Duration::from_secs(3600);

/// A part of the error about a record of a kind that is not defined.
const LATER_VERSION: &str = "of a later version of this library";

// The flags in the first byte of an input.
/// The file is replaced by the bytes, not overwritten from some offset on.
const REPLACE: u8 = 1;
/// The queue was closed, so that the segment is sealed.
const SEALED: u8 = 2;
/// The checks in the file are recomputed, see `format.rs`, so that they do not reveal the damage.
const MEND: u8 = 4;

/// Tests bytes of a segment file. The first byte has flags, see [`REPLACE`] and those after it, for
/// what is done to the segment of a good queue. The next two bytes are the offset to overwrite
/// from.
pub fn segment(bytes: &[u8]) {
    damage_one_file(bytes, File::Segment);
}

/// Tests bytes of an ack file, as [`segment`] does.
pub fn ack(bytes: &[u8]) {
    damage_one_file(bytes, File::Ack);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum File {
    Segment,
    Ack,
}

fn damage_one_file(bytes: &[u8], which: File) {
    let is_thorough = is_one_in(8, bytes);
    let Some((&[flags, low, high], bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let mut files = good_queue(flags & SEALED != 0).clone();
    let file = match which {
        File::Segment => &mut files.segment,
        File::Ack => &mut files.ack,
    };
    if flags & REPLACE != 0 {
        *file = bytes.to_vec();
    } else {
        let offset = usize::from(u16::from_le_bytes([low, high])) % file.len();
        for (to, from) in file[offset..].iter_mut().zip(bytes) {
            *to = *from;
        }
    }
    if flags & MEND != 0 {
        mend(file, which);
    }
    let dir = directory();
    files.write(dir.path());

    let before = Log::read(dir.path());
    if before.is_refused() {
        check_refusal(dir.path());
        return;
    }
    if before.is_due_soon() {
        return;
    }
    if flags & MEND == 0 {
        before.check_against_what_was_enqueued(which);
    }
    let first = deliver(dir.path(), &before, |at| at % 2 == 0);
    // Everything found is settled: the jobs that were not acked are there, and nothing else.
    let after = Log::read(dir.path());
    assert_eq!(after.live(), first.left, "{:?}", first.report);
    if before.is_held_back() {
        // The header may have been mended.
        let records = |log: &Log| log.segments[0].file[FILE_HEADER..].to_vec();
        assert!(records(&after) == records(&before));
    } else {
        assert_eq!(after.damage(), [], "{:?}", first.report);
    }
    if is_thorough {
        let second = deliver(dir.path(), &after, |_| true);
        assert!(second.report.is_clean(), "{:?}", second.report);
        let last = Log::read(dir.path());
        assert_eq!(last.live(), second.left, "{:?}", second.report);
    }
}

fn mend(file: &mut Vec<u8>, which: File) {
    if file.len() < FILE_HEADER {
        return;
    }
    let capacity = End::of_bytes(SEGMENT_SIZE as usize).records;
    let salt = format::u64_at(file, 40);
    format::mend_header(file);
    match which {
        File::Segment => {
            format::mend_seal(file);
            format::mend_records(file, salt);
        }
        File::Ack if file.len() >= Acks::<Vec<u8>>::file_bytes(capacity) => {
            Acks {
                file,
                capacity,
                salt,
            }
            .mend();
        }
        File::Ack => {}
    }
}

/// Checks that an open fails because of a record of a later version, and changes nothing.
fn check_refusal(dir: &Path) {
    let files = || -> BTreeMap<_, _> {
        let entries = fs::read_dir(dir.join(LOG)).expect("listed");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths
            .map(|path| (path.clone(), fs::read(path).expect("read")))
            .collect()
    };
    let before = files();
    match builder(dir).open() {
        Err(OpenError::Storage(error)) => {
            assert!(error.to_string().contains(LATER_VERSION), "{error}");
        }
        Err(error) => panic!("{error}"),
        Ok((_, report)) => panic!("a later version is needed to open it: {report:?}"),
    }
    assert!(files() == before, "a refused queue was changed");
}

/// Ids and contents of jobs, with attempts and crashes, in order of the ids.
type Jobs = Vec<(u64, Content, (u32, u32))>;

/// The content of a log's directory, as read by [`format`].
struct Log {
    segments: Vec<Segment>,
    read_at: u64,
}

impl Log {
    fn read(dir: &Path) -> Self {
        let dir = dir.join(LOG);
        let names = fs::read_dir(&dir).expect("listed");
        let mut paths: Vec<_> = names.map(|entry| entry.expect("an entry").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
        paths.sort();
        let segments = paths.iter().map(|path| {
            let base = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            let file = fs::read(path).expect("read");
            let acks = fs::read(path.with_extension("ack")).unwrap_or_default();
            Segment::read(base.expect("a base"), SEGMENT_SIZE as usize, file, &acks)
        });
        let mut segments: Vec<_> = segments.collect();
        // The next open marks these done.
        let settles: HashSet<_> = segments
            .iter_mut()
            .flat_map(|segment| segment.settles.drain(..))
            .collect();
        for segment in &mut segments {
            segment.live.retain(|job| !settles.contains(&job.sequence));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let read_at = now.expect("after 1970").as_nanos() as u64;
        Self { segments, read_at }
    }

    fn jobs(&self, wanted: impl Fn(&Job) -> bool) -> impl Iterator<Item = &Job> {
        let jobs = self.segments.iter().flat_map(|segment| &segment.live);
        jobs.filter(move |job| wanted(job))
    }

    fn live(&self) -> Jobs {
        so_far(self.jobs(|_| true))
    }

    fn damage(&self) -> Vec<(u64, u64, Damage)> {
        let segments = self.segments.iter();
        segments
            .flat_map(|segment| segment.damage.iter().copied())
            .collect()
    }

    /// Whether an open must fail.
    fn is_refused(&self) -> bool {
        let mut segments = self.segments.iter();
        segments.any(|segment| segment.is_of_a_later_version && !segment.is_sealed)
    }

    /// Whether the first segment stays as it is, and no job of it or behind it is delivered.
    fn is_held_back(&self) -> bool {
        let first = self.segments.first();
        first.is_some_and(|segment| segment.is_of_a_later_version && !segment.is_complete)
    }

    /// Whether a job becomes due or expires about now, so that either outcome would be correct.
    fn is_due_soon(&self) -> bool {
        let soon = self.read_at..self.read_at + FAR.as_nanos() as u64;
        let is_soon = |job: &Job| {
            let mut times = [job.due_at].into_iter().chain(job.expires_at);
            times.any(|at| soon.contains(&at))
        };
        self.jobs(is_soon).next().is_some()
    }

    fn is_delayed(&self, job: &Job) -> bool {
        job.due_at > self.read_at
    }

    /// Whether a job is dropped once it is due.
    fn has_expired(&self, job: &Job) -> bool {
        job.expires_at.is_some_and(|at| at <= self.read_at)
    }

    /// Unless checks were recomputed, damage to a segment can only lose jobs, and damage to an ack
    /// file can only lose acks.
    fn check_against_what_was_enqueued(&self, which: File) {
        let live = self.live();
        let is_enqueued = |(id, content, _): &(u64, Content, (u32, u32))| {
            let is_new = which == File::Ack || *id >= ACKED as u64;
            is_new && *id < JOBS as u64 && *content == self::content(*id as usize)
        };
        assert!(
            live.iter().all(is_enqueued),
            "a job was never enqueued: {live:?}"
        );
        if which == File::Ack {
            let is_there = |id: u64| live.iter().any(|job| job.0 == id);
            assert!(
                (ACKED..JOBS).all(|id| is_there(id as u64)),
                "lost: {live:?}"
            );
        }
    }
}

fn sorted(jobs: impl Iterator<Item = (u64, Content, (u32, u32))>) -> Jobs {
    let mut jobs: Jobs = jobs.collect();
    jobs.sort();
    jobs
}

fn so_far<'a>(jobs: impl Iterator<Item = &'a Job>) -> Jobs {
    sorted(jobs.map(|job| {
        let so_far = (job.failed(), job.crashes());
        (job.id, job.content.clone(), so_far)
    }))
}

/// What happened to the jobs of a queue.
struct Deliveries {
    report: RecoveryReport,
    /// Jobs that were not acked, as if the process had ended.
    left: Jobs,
}

fn content_of(name: Option<&str>, headers: Headers<'_>, payload: &[u8]) -> Content {
    Content {
        name: name.map(str::to_owned),
        headers: headers
            .map(|(key, value)| (key.to_owned(), value.to_vec()))
            .collect(),
        payload: payload.to_vec(),
    }
}

/// Opens the queue and takes all jobs, which must be those of `log` and a new one. Acks the jobs
/// that `acks` selects.
fn deliver(dir: &Path, log: &Log, acks: impl Fn(usize) -> bool) -> Deliveries {
    let has_expired = |job: &Job| !log.is_delayed(job) && log.has_expired(job);
    let has_died = |job: &Job| {
        let limit = u32::from(job.max_attempts.unwrap_or(POLICY_LIMIT));
        let has_failed = job.failed() > 0 && limit > 0 && job.failed() >= limit;
        !has_expired(job) && (has_failed || job.crashes() >= CRASHES_LIMIT)
    };
    let is_delayed = |job: &Job| log.is_delayed(job);

    let (queue, report) = builder(dir).open().expect("damage is no error");
    let mut letters = letters(&queue);
    let new = queue.enqueue(b"new").expect("enqueued");
    let consumer = queue.consumer();
    let mut delivered = Jobs::new();
    let mut left = Jobs::new();
    let start = Instant::now();
    loop {
        let Some(job) = consumer.try_next() else {
            if queue.stats().ready == 0 || log.is_held_back() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{:?}", queue.stats());
            std::thread::yield_now();
            continue;
        };
        let id = job.id().get();
        let content = content_of(job.name(), job.headers(), job.payload());
        let found = (id, content.clone(), (job.attempts(), job.crashes()));
        // A job with a crash is acked, since no other such job is delivered while one is held.
        if job.id() == new || job.crashes() > 0 || acks(delivered.len()) {
            job.ack();
        } else {
            // The close ends the delivery without a crash.
            left.push((id, content, (job.attempts() - 1, job.crashes())));
            std::mem::forget(job);
        }
        delivered.push(found);
    }
    let as_found = |attempts| {
        let content = Content {
            name: None,
            headers: Vec::new(),
            payload: b"new".to_vec(),
        };
        (new.get(), content, (attempts, 0))
    };
    if log.is_held_back() {
        assert_eq!(delivered, []);
        assert_eq!(self::letters(&queue), letters);
        assert!(queue.stats().ready > 0, "{:?}", queue.stats());
        let error = queue.verify().expect_err("a segment is not understood");
        assert!(error.to_string().contains(LATER_VERSION), "{error}");
        check_quarantine(&queue, &report, log);
        drop(consumer);
        queue.close().expect("closed");
        let left = sorted(log.live().into_iter().chain([as_found(0)]));
        return Deliveries { report, left };
    }
    let expected = log.jobs(|job| !is_delayed(job) && !has_expired(job) && !has_died(job));
    let expected = expected.map(|job| {
        let delivery = (job.next_attempt(), job.crashes());
        (job.id, job.content.clone(), delivery)
    });
    let expected = expected.chain([as_found(1)]);
    let (delivered, expected) = (sorted(delivered.into_iter()), sorted(expected));
    assert_eq!(delivered, expected, "{report:?}");

    let delayed = so_far(log.jobs(is_delayed));
    let died = so_far(log.jobs(|job| !is_delayed(job) && has_died(job)));
    if !died.is_empty() {
        queue.flush().expect("flushed");
    }
    let stats = queue.stats();
    assert_eq!(stats.delayed, delayed.len() as u64, "{stats:?}");
    assert_eq!(stats.expired, log.jobs(has_expired).count() as u64);
    assert_eq!(stats.in_flight, left.len() as u64, "{stats:?}");
    // A job that already has a letter gets no second one.
    let has_letter = |id: u64| letters.iter().any(|letter| letter.0 == id);
    let written: Vec<_> = died.into_iter().filter(|job| !has_letter(job.0)).collect();
    letters.extend(written);
    assert_eq!(self::letters(&queue), sorted(letters.into_iter()));
    check_quarantine(&queue, &report, log);
    drop(consumer);
    queue.close().expect("closed");
    left.extend(delayed);
    Deliveries {
        report,
        left: sorted(left.into_iter()),
    }
}

fn letters(queue: &Queue) -> Jobs {
    let letters = queue.dead_letters().iter();
    sorted(letters.map(|letter| {
        (
            letter.job_id().get(),
            content_of(letter.name(), letter.headers(), letter.payload()),
            (letter.attempts(), letter.crashes()),
        )
    }))
}

/// Checks that exactly the damaged regions are reported, and that there is a copy of each.
fn check_quarantine(queue: &Queue, report: &RecoveryReport, log: &Log) {
    let mut at_open = Vec::new();
    // At most one segment has damage.
    let mut later = 0..=0;
    for segment in &log.segments {
        let regions = segment.damage.len() as u64;
        if !segment.is_sealed {
            at_open.extend(segment.damage.iter().copied());
        } else if segment.is_of_a_later_version && !segment.is_complete {
            // It is left as it is.
            later = 0..=0;
        } else if segment.is_complete {
            // The segment may be removed before anything reads it.
            later = 0..=regions;
        } else {
            later = regions..=regions;
        }
    }
    let reported = report.quarantined.iter();
    let reported: Vec<_> = reported
        .map(|one| (one.offset, one.len, one.damage))
        .collect();
    assert_eq!(reported, at_open);
    assert!(later.contains(&queue.stats().quarantined), "{later:?}");
    // A copy may cover several regions and the bytes between them.
    let mut copies: BTreeMap<&Path, (u64, u64)> = BTreeMap::new();
    for one in &report.quarantined {
        if let Some(copy) = &one.copy {
            let range = copies.entry(copy).or_insert((one.offset, 0));
            range.1 = one.offset + one.len;
        }
    }
    for (copy, (from, to)) in copies {
        let bytes = fs::read(copy).expect("read");
        assert_eq!(bytes, log.segments[0].file[from as usize..to as usize]);
    }
}
