//! Makes the queue directory that the cases damage, as a process that died left it, and keeps what
//! is known of each job and letter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::layout::Place;
use logmill::{Builder, DeadLetter, EnqueueOptions, Headers, LetterId, Queue, RetryPolicy};
use tempfile::TempDir;

use crate::files;
use crate::layout::{Acks, Deliveries, Record, SEGMENT_SIZE, Segment};

/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The delay of jobs that must not be delivered while the sample is made. It is doubled on a slow
/// machine.
const SOON: Duration = Duration::from_secs(2);
const FAR: Duration = Duration::from_secs(24 * 3600);

pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) struct Sample {
    soon: Duration,
    /// The files, by their paths within the queue directory.
    pub files: Files,
    pub jobs: BTreeMap<Place, Job>,
    pub letters: BTreeMap<Place, Letter>,
}

/// What a producer gives the queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    name: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
    payload: Vec<u8>,
}

impl Content {
    /// By turns, a job has neither name nor headers, a name, headers, or both.
    fn new(at: usize) -> Self {
        // Fates repeat after ten jobs, so each of them meets all four.
        let turn = at + at / 10;
        let name = || "rotate_the_image"[..1 + at % 16].to_owned();
        let headers = [("tenant", b"acme".to_vec()), ("t", payload(at + 3))];
        let headers = headers.map(|(key, value)| (key.to_owned(), value));
        Self {
            name: (turn & 1 == 1).then(name),
            headers: headers.into_iter().take(turn & 2).collect(),
            payload: payload(at),
        }
    }

    /// A payload without a name and headers.
    pub(crate) fn plain(payload: &[u8]) -> Self {
        Self {
            name: None,
            headers: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    fn of(name: Option<&str>, headers: Headers<'_>, payload: &[u8]) -> Self {
        Self {
            name: name.map(str::to_owned),
            headers: headers
                .map(|(key, value)| (key.to_owned(), value.to_vec()))
                .collect(),
            payload: payload.to_vec(),
        }
    }

    pub(crate) fn of_job(job: &logmill::Job<'_>) -> Self {
        Self::of(job.name(), job.headers(), job.payload())
    }

    pub(crate) fn of_letter(letter: &DeadLetter) -> Self {
        Self::of(letter.name(), letter.headers(), letter.payload())
    }

    /// The content of a record, according to the layout.
    fn of_record(record: &Record, bytes: &[u8]) -> Self {
        let at = |range: &Range<usize>| bytes[range.clone()].to_vec();
        let text = |range: &Range<usize>| String::from_utf8(at(range)).unwrap();
        Self {
            name: (!record.name.is_empty()).then(|| text(&record.name)),
            headers: record
                .headers
                .iter()
                .map(|(key, value)| (text(key), at(value)))
                .collect(),
            payload: at(&record.payload),
        }
    }

    fn enqueue(&self, queue: &Queue, options: EnqueueOptions<'_>) -> Place {
        let headers = self.headers.iter();
        let headers: Vec<_> = headers
            .map(|(key, value)| (key.as_str(), value.as_slice()))
            .collect();
        let options = options.headers(&headers);
        let options = match &self.name {
            Some(name) => options.name(name),
            None => options,
        };
        queue.enqueue_with(&self.payload, options).unwrap().get()
    }
}

pub(crate) struct Job {
    pub content: Content,
    pub is_done: bool,
    pub deliveries: Deliveries,
    /// A handler had it when the first process closed the queue.
    was_held: bool,
    /// The attempts that the job itself allows; the queue sets no limit.
    pub limit: Option<u32>,
    /// It has a long delay.
    pub is_far: bool,
    pub replay_of: Option<Place>,
}

pub(crate) struct Letter {
    pub letter: DeadLetter,
    /// It was replayed or purged.
    pub is_done: bool,
}

/// What happens to a job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Ack,
    RetryAndAck,
    /// Is delivered this often; its handler still has it when the process ends.
    Hold(u32),
    /// Its handler still has it, in its last attempt, when the process ends.
    HoldLast,
    Bury,
    /// Fails until its attempts are used up.
    Exhaust,
    /// Is not delivered.
    Wait,
    WaitLong,
}

use Fate::{Ack, Bury, Exhaust, Hold, HoldLast, RetryAndAck, Wait, WaitLong};

/// The jobs of the first process, which closes the queue, so that they are in a sealed segment.
const FIRST: [Fate; 10] = [
    Ack,
    Hold(1),
    Bury,
    Ack,
    Wait,
    RetryAndAck,
    Exhaust,
    Hold(2),
    WaitLong,
    Ack,
];
/// The jobs of the second process, which dies, so that they are in an unsealed segment.
const SECOND: [Fate; 10] = [
    Ack,
    HoldLast,
    Hold(3),
    Ack,
    Exhaust,
    Wait,
    RetryAndAck,
    WaitLong,
    Bury,
    Hold(1),
];
/// More jobs than fit one ack word.
const JOBS: usize = 36;

impl Sample {
    pub(crate) fn make() -> Self {
        let mut soon = SOON;
        loop {
            if let Some(sample) = Self::make_before(soon) {
                // From here on the delayed jobs are due.
                thread::sleep(soon);
                return sample;
            }
            soon *= 2;
        }
    }

    /// Returns `None` if it took so long that delayed jobs became due.
    fn make_before(soon: Duration) -> Option<Self> {
        let living = directory();
        let mut sample = Self {
            soon,
            files: Files::new(),
            jobs: BTreeMap::new(),
            letters: BTreeMap::new(),
        };
        let queue = open(living.path());
        sample.live_through(&queue, &FIRST)?;
        queue.close().unwrap();
        for job in sample.jobs.values_mut().filter(|job| !job.is_done) {
            // After a close no handler has the job, and it gets no crash.
            job.was_held = std::mem::take(&mut job.deliveries.is_running);
        }
        let queue = open(living.path());
        sample.live_through(&queue, &SECOND)?;
        sample.take_letters(&queue);
        // Further records follow those of the replayed jobs.
        for at in 0..3 {
            sample.enqueue(&queue, Wait, Content::new(at));
        }
        // Waits until the maintenance thread has prepared the next segment.
        let start = Instant::now();
        while whole_ack_files(&living.path().join("log/00")) < 3 {
            assert!(start.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(1));
        }
        let dead = directory();
        files::copy_when_quiet(living.path(), dead.path());
        sample.files = read_all(dead.path());
        sample.check();
        Some(sample)
    }

    fn enqueue(&mut self, queue: &Queue, fate: Fate, content: Content) -> Place {
        let mut options = EnqueueOptions::new();
        let limit = match fate {
            HoldLast => Some(1),
            Exhaust => Some(2),
            _ => None,
        };
        if let Some(limit) = limit {
            options = options.max_attempts(limit);
        }
        match fate {
            Wait => options = options.delay(self.soon),
            WaitLong => options = options.delay(FAR),
            _ => {}
        }
        let sequence = content.enqueue(queue, options);
        let job = Job {
            content,
            is_done: false,
            deliveries: Deliveries::default(),
            was_held: false,
            limit: limit.map(u32::from),
            is_far: fate == WaitLong,
            replay_of: None,
        };
        self.jobs.insert(sequence, job);
        sequence
    }

    /// Enqueues jobs, and handles them until each has met its fate. Returns `None` if that took too
    /// long.
    fn live_through(&mut self, queue: &Queue, fates: &[Fate]) -> Option<()> {
        let mut destined = BTreeMap::new();
        for (at, &fate) in fates.iter().cycle().take(JOBS).enumerate() {
            destined.insert(self.enqueue(queue, fate, Content::new(at)), fate);
        }
        let mut open: BTreeSet<_> = destined
            .iter()
            .filter(|(_, fate)| !matches!(fate, Wait | WaitLong))
            .map(|(&job, _)| job)
            .collect();
        let consumer = queue.consumer();
        while !open.is_empty() {
            let job = consumer.next_timeout(PATIENCE).expect("there is a job");
            let sequence = job.id().get();
            let attempts = job.attempts();
            let known = self.jobs.get_mut(&sequence).expect("it was enqueued");
            assert_eq!((attempts, job.crashes()), (known.deliveries.failed + 1, 0));
            known.deliveries.is_running = true;
            // A job of the first process that is delivered again was held by a handler there.
            let fate = match destined.get(&sequence) {
                Some(&fate) => fate,
                None if !known.was_held => Wait,
                None => Hold(1),
            };
            let fail = |known: &mut Job| {
                known.deliveries.failed += 1;
                known.deliveries.is_running = false;
            };
            let settled = match fate {
                Hold(times) if attempts < times => {
                    job.retry("again");
                    fail(known);
                    false
                }
                Hold(_) | HoldLast => {
                    std::mem::forget(job);
                    true
                }
                RetryAndAck if attempts == 1 => {
                    job.retry("once more");
                    fail(known);
                    false
                }
                Ack | RetryAndAck => {
                    job.ack();
                    known.is_done = true;
                    true
                }
                Bury => {
                    job.dead_letter(format!("no use: {sequence}"));
                    fail(known);
                    known.is_done = true;
                    true
                }
                Exhaust => {
                    job.retry(format!("attempt {attempts} failed"));
                    fail(known);
                    known.is_done = attempts == 2;
                    known.is_done
                }
                Wait => return None,
                WaitLong => panic!("{sequence} is not due"),
            };
            if settled {
                open.remove(&sequence);
            }
        }
        Some(())
    }

    /// Notes the letters, and purges and replays some of those of each process.
    fn take_letters(&mut self, queue: &Queue) {
        let letters = queue.dead_letters();
        for letter in letters.iter() {
            let sequence = letter.id().get();
            let content = &self.jobs[&letter.job_id().get()].content;
            assert_eq!(Content::of_letter(&letter), *content);
            let is_done = false;
            self.letters.insert(sequence, Letter { letter, is_done });
        }
        let half = self.letters.len() / 2;
        for (at, (&sequence, letter)) in self.letters.iter_mut().enumerate() {
            match at % half {
                1 | 2 => letters.purge(LetterId::new(sequence)).unwrap(),
                3 => {
                    let job = Job {
                        content: Content::of_letter(&letter.letter),
                        is_done: false,
                        deliveries: Deliveries::default(),
                        was_held: false,
                        limit: self.jobs[&letter.letter.job_id().get()].limit,
                        is_far: false,
                        replay_of: Some(sequence),
                    };
                    self.jobs
                        .insert(letters.replay(LetterId::new(sequence)).unwrap().get(), job);
                }
                _ => continue,
            }
            letter.is_done = true;
        }
    }

    /// Checks, with the layout, that the files have the jobs and letters that they should have.
    fn check(&self) {
        let mut jobs = BTreeMap::new();
        let mut letters = BTreeMap::new();
        let mut kinds = Vec::new();
        for (path, bytes) in &self.files {
            if path.extension().is_none_or(|extension| extension != "seg") {
                continue;
            }
            let segment = Segment::parse(bytes);
            kinds.push((
                path.starts_with("dead"),
                segment.is_sealed,
                segment.records.is_empty(),
            ));
            let acks = &self.files[&path.with_extension("ack")];
            assert_eq!(acks.len(), Acks::BYTES);
            for (index, record) in segment.records.iter().enumerate() {
                let content = Content::of_record(record, bytes);
                let is_done = Acks::is_done(acks, index);
                let deliveries = Acks::deliveries(acks, index);
                let found = if path.starts_with("dead") {
                    &mut letters
                } else {
                    &mut jobs
                };
                found.insert(record.sequence, (content, is_done, deliveries));
            }
        }
        let expected = [
            (false, true, false),
            (false, false, false),
            (false, false, true),
            (true, true, false),
            (true, false, false),
        ];
        assert_eq!(kinds.len(), expected.len());
        assert!(
            expected.iter().all(|kind| kinds.contains(kind)),
            "{kinds:?}"
        );
        let of_job = |(&sequence, job): (&Place, &Job)| {
            (sequence, (job.content.clone(), job.is_done, job.deliveries))
        };
        let of_letter = |(&sequence, letter): (&Place, &Letter)| {
            let content = Content::of_letter(&letter.letter);
            (sequence, (content, letter.is_done, Deliveries::default()))
        };
        assert_eq!(jobs, self.jobs.iter().map(of_job).collect());
        assert_eq!(letters, self.letters.iter().map(of_letter).collect());
    }
}

/// Payloads of many lengths: some are empty, some all zeros, some end in zeros.
fn payload(at: usize) -> Vec<u8> {
    const LENGTHS: [usize; 9] = [0, 40, 1, 300, 8, 16, 63, 7, 120];
    let len = LENGTHS[at % LENGTHS.len()];
    let mut payload: Vec<_> = (0..len).map(|i| (at * 37 + i * 11 + 1) as u8).collect();
    match at % 4 {
        1 => payload[len / 2..].fill(0),
        2 if at.is_multiple_of(3) => payload.fill(0),
        _ => {}
    }
    payload
}

pub(crate) fn builder(dir: &Path) -> Builder {
    Queue::builder(dir)
        .stripes(1)
        .segment_size(SEGMENT_SIZE as u64)
        .retry(RetryPolicy::fixed(Duration::ZERO).unlimited_attempts())
}

fn open(dir: &Path) -> Queue {
    let (queue, report) = builder(dir).open().unwrap();
    assert!(report.is_clean(), "{report:?}");
    queue
}

/// A directory in memory, if there is such a file system.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Reads the files below a directory.
pub(crate) fn read_all(root: &Path) -> Files {
    let mut files = Files::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_path_buf();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Counts the ack files with a header, which is the last thing that is written of a new segment.
fn whole_ack_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_whole = |path: &PathBuf| {
        let start = fs::read(path).unwrap_or_default();
        path.extension().is_some_and(|found| found == "ack") && start.starts_with(b"logmillA")
    };
    paths.filter(is_whole).count()
}
