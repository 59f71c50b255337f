//! The test of guarantee 10 under load: views of a queue whose owner does everything at once, with
//! little room, and is killed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{DeadLetter, EnqueueOptions, Headers, Queue, RetryPolicy, View, ViewedJob};

use crate::g10_views::{HOUR, jobs, letters, state_of, view};
use crate::support::*;

/// Jobs with lower numbers stay in the queue, each in its own way.
const SENTINELS: u64 = 24;
/// The first numbers of those that back off, that a handler holds, and that are letters; those
/// before are delayed.
const BACKING_OFF: u64 = 12;
const HELD: u64 = 16;
const LETTERS: u64 = 18;

/// How many of the other jobs are enqueued at a time. The first of a batch has an even number.
const BATCH: u64 = 3;

/// What happens to the other jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acked,
    RetriedAndAcked,
    Buried,
}

fn is_sentinel(letter: &DeadLetter) -> bool {
    number_in(letter.payload()) < SENTINELS
}

fn fate_of(number: u64) -> Fate {
    match number % 20 {
        0 => Fate::Buried,
        1 | 2 => Fate::RetriedAndAcked,
        _ => Fate::Acked,
    }
}

fn len_of(number: u64) -> usize {
    8 + (number * 7 % 300) as usize
}

fn name_of(number: u64) -> Option<String> {
    number.is_multiple_of(3).then(|| format!("job_{number}"))
}

/// Checks that a job or letter is what was enqueued with its number.
fn check(payload: &[u8], name: Option<&str>, mut headers: Headers<'_>) -> u64 {
    let number = number_in(payload);
    assert_eq!(payload.len(), len_of(number), "{number}");
    assert_eq!(name, name_of(number).as_deref(), "{number}");
    let header = number
        .is_multiple_of(4)
        .then(|| ("number", number.to_le_bytes()));
    let found = headers.next();
    assert_eq!(
        found,
        header.as_ref().map(|(key, value)| (*key, &value[..]))
    );
    assert!(headers.next().is_none());
    number
}

/// Journals that a child writes and its parent reads.
struct Journals {
    /// Noted before the enqueue, and after it.
    begun: Mutex<Journal>,
    enqueued: Mutex<Journal>,
    /// Noted before a job is acked or buried, and after it was acked.
    ending: Mutex<Journal>,
    acked: Mutex<Journal>,
}

impl Journals {
    fn in_dir(dir: &Path) -> Self {
        let journal = |name| Mutex::new(Journal::append_to(&dir.join(name)));
        Self {
            begun: journal("begun"),
            enqueued: journal("enqueued"),
            ending: journal("ending"),
            acked: journal("acked"),
        }
    }
}

fn note(journal: &Mutex<Journal>, number: u64) {
    journal.lock().unwrap().note(number);
}

/// What a parent has read of the journals so far.
#[derive(Default)]
struct Known {
    read: BTreeMap<&'static str, usize>,
    begun: HashSet<u64>,
    acked: HashSet<u64>,
    ending: HashSet<u64>,
    /// Enqueued and not acked or buried.
    waiting: HashSet<u64>,
}

impl Known {
    /// The numbers that were added to a journal since the last time.
    fn new_in(&mut self, dir: &Path, name: &'static str) -> Vec<u64> {
        let read = self.read.entry(name).or_default();
        let numbers = Journal::read_from(&dir.join(name), *read);
        *read += numbers.len();
        numbers
    }

    /// To be called before a look.
    fn read_before(&mut self, dir: &Path) {
        let acked = self.new_in(dir, "acked");
        self.acked.extend(acked);
        let enqueued = self.new_in(dir, "enqueued").into_iter();
        let waiting = enqueued.filter(|number| !self.ending.contains(number));
        self.waiting.extend(waiting);
    }

    /// To be called after a look.
    fn read_after(&mut self, dir: &Path) {
        let begun = self.new_in(dir, "begun");
        self.begun.extend(begun);
        for number in self.new_in(dir, "ending") {
            self.ending.insert(number);
            self.waiting.remove(&number);
        }
    }
}

fn load_builder(dir: &Path) -> logmill::Builder {
    let policy = RetryPolicy::fixed(Duration::ZERO).unlimited_attempts();
    // So small that producers find no room, and sentinels are moved to make some, all the time.
    Queue::builder(dir.join("queue"))
        .stripes(2)
        .segment_size(16 * 1024)
        .max_bytes(2 * 6 * 16 * 1024)
        .retry(policy.max_crashes(15))
}

/// Enqueues the jobs with these numbers, all or none, after a delay.
fn enqueue(queue: &Queue, numbers: Range<u64>, delay: Duration) {
    let labels = numbers.map(|number| (number, name_of(number), number.to_le_bytes()));
    let labels: Vec<_> = labels.collect();
    let headers = labels.iter().map(|(_, _, value)| [("number", &value[..])]);
    let headers: Vec<_> = headers.collect();
    let mut jobs = Vec::new();
    for ((number, name, _), headers) in labels.iter().zip(&headers) {
        let mut options = EnqueueOptions::new().wait(PATIENCE).delay(delay);
        if let Some(name) = name {
            options = options.name(name);
        }
        if number.is_multiple_of(4) {
            options = options.headers(headers);
        }
        jobs.push((payload_of(*number, len_of(*number)), options));
    }
    queue.enqueue_batch_with(&jobs).unwrap();
}

/// Child: enqueues, acks, retries, buries, replays and purges as fast as it can, until killed.
pub(crate) fn work_under_views(dir: &Path) {
    let (queue, _) = load_builder(dir).open().unwrap();
    let journals = Journals::in_dir(dir);
    let is_ready = dir.join("ready");
    let begun = Journal::read(&dir.join("begun"));
    let last = begun.iter().max().map_or(SENTINELS, |last| last + 1);
    let next = AtomicU64::new(last.next_multiple_of(BATCH));
    let enqueue_next = || {
        // Some alone, and some in batches.
        let first = next.fetch_add(BATCH, Ordering::Relaxed);
        let size = if first.is_multiple_of(2) { BATCH } else { 1 };
        for at in (first..first + BATCH).step_by(size as usize) {
            let batch = at..at + size;
            batch
                .clone()
                .for_each(|number| note(&journals.begun, number));
            enqueue(&queue, batch.clone(), Duration::ZERO);
            batch.for_each(|number| note(&journals.enqueued, number));
        }
    };
    if !is_ready.exists() {
        (0..BACKING_OFF).for_each(|number| enqueue(&queue, number..number + 1, HOUR));
        enqueue(&queue, BACKING_OFF..HELD, Duration::ZERO);
        // So that the jobs that a handler holds keep another segment where it is.
        (0..30).for_each(|_| enqueue_next());
        enqueue(&queue, HELD..SENTINELS, Duration::ZERO);
    }
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| consume(&queue, &journals));
        }
        if !is_ready.exists() {
            eventually("the sentinels that die are letters", || {
                let letters = queue.dead_letters().iter();
                letters.filter(is_sentinel).count() as u64 == SENTINELS - LETTERS
            });
        }
        fs::write(&is_ready, b"").unwrap();
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    enqueue_next();
                }
            });
        }
        loop {
            let is_spare = |letter: &DeadLetter| !is_sentinel(letter);
            let mut turn = 0;
            queue
                .dead_letters()
                .replay_where(|letter| {
                    turn += 1;
                    turn % 2 == 0 && is_spare(letter)
                })
                .ok();
            queue.dead_letters().purge_where(is_spare).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
}

fn consume(queue: &Queue, journals: &Journals) {
    let consumer = queue.consumer();
    let mut held = Vec::new();
    while let Some(job) = consumer.next() {
        let number = number_in(job.payload());
        if number < SENTINELS {
            match number {
                0..BACKING_OFF => panic!("{number} is not due"),
                BACKING_OFF..HELD => job.retry_after(HOUR, "not today"),
                HELD..LETTERS => held.push(job),
                _ => job.dead_letter("it dies at once"),
            }
            continue;
        }
        if number.is_multiple_of(8) {
            // So that producers wait for room.
            thread::sleep(Duration::from_millis(1));
        }
        match fate_of(number) {
            Fate::RetriedAndAcked if job.attempts() == 1 => job.retry("once more"),
            // A replayed letter is acked.
            Fate::Buried if !has_ended(number) => {
                note(&journals.ending, number);
                job.dead_letter("no use");
            }
            _ => {
                note(&journals.ending, number);
                job.ack();
                note(&journals.acked, number);
            }
        }
    }
}

/// Whether this is the second time that the job comes to its end in this process.
fn has_ended(number: u64) -> bool {
    static ENDED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    !ENDED.lock().unwrap().insert(number)
}

/// Looks once, and checks what is seen.
fn look(dir: &Path, view: &View, known: &mut Known) {
    known.read_before(dir);
    let found = jobs(view);
    known.read_after(dir);
    let mut numbers = BTreeMap::<u64, u32>::new();
    let distinct: HashSet<_> = found.iter().map(ViewedJob::id).collect();
    assert_eq!(distinct.len(), found.len(), "a job is seen twice");
    for job in &found {
        let number = check(job.payload(), job.name(), job.headers());
        assert!(
            number < SENTINELS || known.begun.contains(&number),
            "{number} was never enqueued"
        );
        assert!(
            !known.acked.contains(&number),
            "{number} was acked before: {job:?}"
        );
        *numbers.entry(number).or_default() += 1;
    }
    for number in 0..LETTERS {
        let times = numbers.get(&number).copied();
        assert_eq!(times, Some(1), "sentinel {number} is not seen once");
    }
    for first in numbers.keys().filter(|&&number| number >= SENTINELS) {
        let first = first - first % BATCH;
        let batch = || first..first + BATCH;
        if first.is_multiple_of(2) && !batch().any(|number| known.ending.contains(&number)) {
            let are_there = batch().all(|number| numbers.contains_key(&number));
            assert!(are_there, "a part of the batch of {first} is seen");
        }
    }
    for number in &known.waiting {
        assert!(
            numbers.contains_key(number),
            "{number} waits and is not seen"
        );
    }
    let dead = letters(view);
    let mut dead: Vec<_> = dead
        .iter()
        .map(|letter| check(letter.payload(), letter.name(), letter.headers()))
        .collect();
    dead.sort_unstable();
    let (sentinels, others): (Vec<_>, Vec<_>) = dead.iter().partition(|&&one| one < SENTINELS);
    assert_eq!(sentinels, (LETTERS..SENTINELS).collect::<Vec<_>>());
    for number in others {
        assert_eq!(fate_of(number), Fate::Buried);
    }
    view.stats().unwrap();
}

#[test]
fn a_view_of_a_busy_queue_that_is_killed_shows_all_that_waits_and_nothing_that_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let mut known = Known::default();
    let mut views = 0;
    for _ in 0..4 {
        let mut child = Child::start("work under views", dir.path());
        child.wait_until("the sentinels are there", || {
            dir.path().join("ready").exists()
        });
        let opened = view(&queue_dir);
        let is_over = Instant::now() + Duration::from_millis(fastrand::u64(200..900));
        while Instant::now() < is_over {
            look(dir.path(), &opened, &mut known);
            look(dir.path(), &view(&queue_dir), &mut known);
            views += 2;
        }
        assert!(!child.has_ended(), "{}", child.stderr());
        child.kill();
        let before = state_of(&queue_dir);
        look(dir.path(), &opened, &mut known);
        assert_eq!(state_of(&queue_dir), before);
    }
    assert!(views >= 8, "{views} views");
    let found = jobs(&view(&queue_dir));
    let id = found.iter().find(|job| number_in(job.payload()) == 0);
    let id = id.expect("a sentinel").id();
    let log = queue_dir.join(format!("log/{:02}", id.stripe()));
    let oldest = files(&log, "seg").into_iter().next().expect("a segment");
    let oldest = oldest
        .file_stem()
        .and_then(|name| name.to_str()?.parse().ok());
    let within_stripe = id.get() & ((1 << 56) - 1);
    assert!(oldest > Some(within_stripe), "no sentinel was moved");
    let report = open_any(load_builder(dir.path())).1;
    assert_eq!(report.jobs, found.len() as u64);
}
