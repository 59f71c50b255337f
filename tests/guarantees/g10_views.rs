//! Tests of guarantee 10, a view shows what is there: to another process, while the owner works,
//! dies and comes back, and without changing anything.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use logmill::{
    DeadLetter, EnqueueOptions, Headers, Job, JobId, OpenError, Queue, RetryPolicy, View, ViewedJob,
};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);

fn view(queue_dir: &Path) -> View {
    View::open(queue_dir).expect("there is a queue")
}

fn jobs(view: &View) -> Vec<ViewedJob> {
    view.jobs().map(|job| job.expect("readable")).collect()
}

fn letters(view: &View) -> Vec<DeadLetter> {
    let letters = view.dead_letters();
    letters.map(|letter| letter.expect("readable")).collect()
}

fn ids(jobs: &[ViewedJob]) -> Vec<JobId> {
    jobs.iter().map(ViewedJob::id).collect()
}

#[test]
fn a_view_shows_each_job_and_letter_as_the_owner_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()).retry(RetryPolicy::fixed(HOUR).max_attempts(2)));
    let view = view(dir.path());
    assert_eq!(jobs(&view), []);

    let headers: [(&str, &[u8]); 2] = [("tenant", b"acme"), ("trace", &[0xff])];
    let options = EnqueueOptions::new().name("resize").headers(&headers);
    let before = SystemTime::now() - Duration::from_secs(1);
    let waiting = queue.enqueue_with(b"waiting", options.delay(HOUR)).unwrap();
    let retried = queue.enqueue(b"retried").unwrap();
    let dead = queue.enqueue_with(b"dead", options).unwrap();
    let held = queue.enqueue(b"held").unwrap();
    let acked = queue.enqueue(b"acked").unwrap();
    let new = queue.enqueue_batch(&["one", "two"]).unwrap();
    assert_eq!(jobs(&view).len(), 7);

    let consumer = queue.consumer();
    let next = || consumer.next_timeout(PATIENCE).expect("a job is due");
    let job = next();
    assert_eq!(job.id(), retried);
    job.retry("not now");
    next().dead_letter("never");
    let job = next();
    assert_eq!(job.id(), held);
    let other = next();
    assert_eq!(other.id(), acked);
    other.ack();
    queue.flush().unwrap();

    let found = jobs(&view);
    let expected = [waiting, retried, held, new[0], new[1]];
    assert_eq!(ids(&found), expected);
    let payloads: Vec<_> = found.iter().map(ViewedJob::payload).collect();
    assert_eq!(
        payloads,
        [&b"waiting"[..], b"retried", b"held", b"one", b"two"]
    );
    let first = &found[0];
    assert_eq!(first.name(), Some("resize"));
    assert!(first.headers().eq(headers));
    let due = first.due_at().expect("it waits");
    assert!(due > before + HOUR && due <= SystemTime::now() + HOUR);
    assert!(first.enqueued_at() > before && first.enqueued_at() <= SystemTime::now());
    assert_eq!((found[1].name(), found[1].due_at()), (None, None));
    assert!(found[1].headers().is_empty());
    let of_each: Vec<_> = found
        .iter()
        .map(|job| (job.attempts(), job.crashes(), job.is_in_handler()))
        .collect();
    let (fresh, held) = ((0, 0, false), (0, 0, true));
    assert_eq!(of_each, [fresh, (1, 0, false), held, fresh, fresh]);

    let found = letters(&view);
    assert_eq!(found, queue.dead_letters().iter().collect::<Vec<_>>());
    assert_eq!(
        (found[0].job_id(), found[0].payload()),
        (dead, &b"dead"[..])
    );
    assert_eq!(found[0].reasons()[0].reason, "never");

    let stats = (view.stats().unwrap(), queue.stats());
    assert_eq!((stats.0.jobs, stats.0.dead_letters), (5, 1));
    assert_eq!(stats.0.jobs, stats.1.depth());
    assert_eq!((stats.0.segments, stats.0.bytes), (2, stats.1.bytes));
    drop(job);

    // A replayed letter is a job, and a purged one is gone.
    let replayed = queue.dead_letters().replay(found[0].id()).unwrap();
    assert_eq!(letters(&view), []);
    assert_eq!(jobs(&view).last().map(ViewedJob::id), Some(replayed));
}

#[test]
fn without_an_owner_a_view_shows_what_the_next_open_finds() {
    let dir = tempfile::tempdir().unwrap();
    // As after a kill, and after a close that has sealed everything.
    let queue = open(builder(dir.path()).stripes(2).max_crashes_for_test());
    let consumer = queue.consumer();
    let mut held = Vec::new();
    for number in 0..500 {
        queue.enqueue(&payload_of(number, 500)).unwrap();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        match number % 5 {
            0 => job.ack(),
            1 => job.dead_letter("it failed"),
            2 => job.retry_after(HOUR, "not today"),
            3 => held.push(job),
            _ => drop(queue.enqueue(&payload_of(1000 + number, 500)).unwrap()),
        }
    }
    queue.flush().unwrap();
    let killed = crash_copy(dir.path());
    held.into_iter().for_each(Job::ack);
    drop(consumer);
    queue.close().unwrap();
    for dir in [killed.path(), dir.path()] {
        let view = view(dir);
        let (found, dead) = (jobs(&view), letters(&view));
        let stats = view.stats().unwrap();
        let (queue, report) = open_any(builder(dir).stripes(2).max_crashes_for_test());
        assert_eq!(report.jobs, found.len() as u64);
        assert_eq!(report.dead_letters, dead.len() as u64);
        assert_eq!(
            (stats.jobs, stats.dead_letters),
            (report.jobs, report.dead_letters)
        );
        assert_eq!(queue.dead_letters().iter().collect::<Vec<_>>(), dead);
        let delivered = drain(&queue);
        let mut delivered: Vec<_> = delivered
            .iter()
            .map(|job| (job.sequence, job.attempts, job.payload.clone()))
            .collect();
        delivered.sort();
        let mut found: Vec<_> = found
            .iter()
            .map(|job| (job.id(), job.attempts() + 1, job.payload().to_vec()))
            .collect();
        found.sort();
        assert_eq!(found, delivered);
    }
}

/// Options of a test whose jobs are in handlers at a crash.
trait ForTest {
    fn max_crashes_for_test(self) -> Self;
}

impl ForTest for logmill::Builder {
    fn max_crashes_for_test(self) -> Self {
        self.retry(RetryPolicy::fixed(Duration::ZERO).max_crashes(15))
    }
}

#[test]
fn what_is_not_a_queue_has_no_view() {
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let refused = || View::open(&queue_dir).expect_err("there is no queue");
    assert!(matches!(refused(), OpenError::NoQueue { path } if path == queue_dir));
    assert!(!queue_dir.exists());
    fs::write(&queue_dir, b"").unwrap();
    assert!(matches!(refused(), OpenError::NotADirectory { .. }));
    fs::remove_file(&queue_dir).unwrap();
    fs::create_dir(&queue_dir).unwrap();
    assert!(matches!(refused(), OpenError::NoQueue { .. }));
    fs::write(queue_dir.join("letter.txt"), b"").unwrap();
    assert!(matches!(refused(), OpenError::ManifestMissing { .. }));
    fs::remove_file(queue_dir.join("letter.txt")).unwrap();
    drop(open(builder(&queue_dir)));
    drop(view(&queue_dir));
    let manifest = queue_dir.join("MANIFEST");
    edit(&manifest, |bytes| bytes[20] ^= 1);
    assert!(matches!(refused(), OpenError::ManifestCorrupt { .. }));
    edit(&manifest, |bytes| bytes[8] += 1);
    assert!(matches!(
        refused(),
        OpenError::ManifestVersion { found: 2, .. }
    ));
}

/// Every file and directory below `dir`, with contents and times of change.
fn state_of(dir: &Path) -> BTreeMap<PathBuf, (Option<Vec<u8>>, SystemTime)> {
    let with_time = |(path, bytes): (PathBuf, _)| {
        let changed = fs::metadata(&path).and_then(|found| found.modified());
        (path, (bytes, changed.expect("known")))
    };
    let mut state: BTreeMap<_, _> = listing(dir).into_iter().map(with_time).collect();
    state.extend([with_time((dir.to_path_buf(), None))]);
    state
}

#[test]
fn a_view_changes_nothing_and_locks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for number in 0..1000 {
        queue.enqueue(&payload_of(number, 300)).unwrap();
    }
    let copy = crash_copy(dir.path());
    let before = state_of(copy.path());
    let view = view(copy.path());
    assert_eq!((jobs(&view).len(), letters(&view).len()), (1000, 0));
    assert_eq!(view.stats().unwrap().jobs, 1000);
    assert_eq!(state_of(copy.path()), before);
    // In the middle of an iteration.
    let mut iteration = view.jobs();
    assert!(iteration.next().is_some());
    let opened = open(builder(copy.path()));
    assert_eq!(drain(&opened).len(), 1000);
    drop(iteration);
}

#[test]
fn a_view_of_a_directory_that_is_deleted_ends() {
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let queue = open(builder(&queue_dir));
    for number in 0..1000 {
        queue.enqueue(&payload_of(number, 300)).unwrap();
    }
    let view = view(&queue_dir);
    let mut begun = view.jobs();
    assert!(begun.next().is_some_and(|job| job.is_ok()));
    remove_live_directory(&queue_dir);
    // The segment in memory, and then nothing more.
    assert!(begun.filter(Result::is_ok).count() < 1000);
    assert_eq!(view.jobs().filter(Result::is_ok).count(), 0);
    assert_eq!(view.dead_letters().filter(Result::is_ok).count(), 0);
    assert_eq!(view.stats().map_or(0, |stats| stats.jobs), 0);
    assert!(matches!(
        View::open(&queue_dir),
        Err(OpenError::NoQueue { .. })
    ));
}

#[test]
fn a_view_works_during_opens_and_closes() {
    let dir = tempfile::tempdir().unwrap();
    let queue_dir = dir.path().join("queue");
    let is_over = AtomicBool::new(false);
    let waiting = Mutex::new(None);
    thread::scope(|scope| {
        scope.spawn(|| {
            let policy = RetryPolicy::fixed(Duration::ZERO).unlimited_attempts();
            for turn in 0..40 {
                let queue = open(builder(&queue_dir).retry(policy.clone()));
                let mut waiting = waiting.lock().unwrap();
                if waiting.is_none() {
                    *waiting = Some(queue.enqueue(b"waiting").unwrap());
                }
                drop(waiting);
                let consumer = queue.consumer();
                for number in 0..turn % 3 * 100 {
                    queue.enqueue(&payload_of(number, 500)).unwrap();
                }
                while let Some(job) = consumer.try_next() {
                    match job.payload() {
                        b"waiting" => job.retry_after(HOUR, "not today"),
                        _ => job.ack(),
                    }
                }
                drop(consumer);
                queue.close().unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) {
            let expected = *waiting.lock().unwrap();
            match View::open(&queue_dir) {
                Ok(view) => {
                    let found = jobs(&view);
                    if let Some(id) = expected {
                        assert_eq!(ids(&found).iter().filter(|&&one| one == id).count(), 1);
                    }
                    assert_eq!(letters(&view), []);
                    view.stats().unwrap();
                }
                Err(OpenError::NoQueue { .. }) if expected.is_none() => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
}

/// Jobs of the test under load with lower numbers stay in the queue, each in its own way.
const SENTINELS: u64 = 24;
/// The first numbers of those that back off, that a handler holds, and that are letters; those
/// before are delayed.
const BACKING_OFF: u64 = 12;
const HELD: u64 = 16;
const LETTERS: u64 = 18;

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
    (number % 3 == 0).then(|| format!("job_{number}"))
}

/// Checks that a job or letter is what was enqueued with its number.
fn check(payload: &[u8], name: Option<&str>, mut headers: Headers<'_>) -> u64 {
    let number = number_in(payload);
    assert_eq!(payload.len(), len_of(number), "{number}");
    assert_eq!(name, name_of(number).as_deref(), "{number}");
    let header = (number % 4 == 0).then(|| ("number", number.to_le_bytes()));
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

fn enqueue(queue: &Queue, number: u64, options: EnqueueOptions<'_>) {
    let (name, value) = (name_of(number), number.to_le_bytes());
    let headers = [("number", &value[..])];
    let mut options = options.wait(PATIENCE);
    if let Some(name) = &name {
        options = options.name(name);
    }
    if number % 4 == 0 {
        options = options.headers(&headers);
    }
    let payload = payload_of(number, len_of(number));
    queue.enqueue_with(&payload, options).unwrap();
}

/// Child: enqueues, acks, retries, buries, replays and purges as fast as it can, until killed.
pub(crate) fn work_under_views(dir: &Path) {
    let (queue, _) = load_builder(dir).open().unwrap();
    let journals = Journals::in_dir(dir);
    let is_ready = dir.join("ready");
    let begun = Journal::read(&dir.join("begun"));
    let next = AtomicU64::new(begun.iter().max().map_or(SENTINELS, |last| last + 1));
    let enqueue_next = || {
        let number = next.fetch_add(1, Ordering::Relaxed);
        note(&journals.begun, number);
        enqueue(&queue, number, EnqueueOptions::new());
        note(&journals.enqueued, number);
    };
    if !is_ready.exists() {
        for number in 0..HELD {
            let delay = if number < BACKING_OFF {
                HOUR
            } else {
                Duration::ZERO
            };
            enqueue(&queue, number, EnqueueOptions::new().delay(delay));
        }
        // So that the jobs that a handler holds keep another segment where it is.
        (0..100).for_each(|_| enqueue_next());
        for number in HELD..SENTINELS {
            enqueue(&queue, number, EnqueueOptions::new());
        }
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
        if number % 8 == 0 {
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
