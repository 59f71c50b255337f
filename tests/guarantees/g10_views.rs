//! Tests of guarantee 10, a view shows what is there: to another process, while the owner works,
//! dies and comes back, and without changing anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime};

use logmill::{DeadLetter, EnqueueOptions, Job, JobId, OpenError, RetryPolicy, View, ViewedJob};

use crate::support::*;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn view(queue_dir: &Path) -> View {
    View::open(queue_dir).expect("there is a queue")
}

pub(crate) fn jobs(view: &View) -> Vec<ViewedJob> {
    view.jobs().map(|job| job.expect("readable")).collect()
}

pub(crate) fn letters(view: &View) -> Vec<DeadLetter> {
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
    let policy = RetryPolicy::fixed(Duration::ZERO).max_crashes(15);
    let builder = |dir| builder(dir).stripes(2).retry(policy.clone());
    let dir = tempfile::tempdir().unwrap();
    // As after a kill, and after a close that has sealed everything.
    let queue = open(builder(dir.path()).retry(not_today().max_crashes(15)));
    let consumer = queue.consumer();
    let mut held = Vec::new();
    for number in 0..500 {
        queue.enqueue(&payload_of(number, 500)).unwrap();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        match number % 5 {
            0 => job.ack(),
            1 => job.dead_letter("it failed"),
            2 => job.retry("not today"),
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
        let (queue, report) = open_any(builder(dir));
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
pub(crate) fn state_of(dir: &Path) -> BTreeMap<PathBuf, (Option<Vec<u8>>, SystemTime)> {
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
    let is_over = Over::default();
    let waiting = Mutex::new(None);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _over = is_over.at_end();
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
        });
        while !is_over.is_set() {
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
