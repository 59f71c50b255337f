//! What operators do: pause, look, replay, purge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use logmill_jobs::{JobResult, Mill, Priority, Workers};

use crate::common::{Note, OnEvent, PATIENCE, mill, note, until, wait_for_end};

#[test]
fn a_paused_queue_keeps_its_jobs_over_a_restart() {
    let (mill, dir) = mill();
    mill.queue("notes").unwrap().pause().unwrap();
    let id = mill.enqueue(note("x")).unwrap().id().clone();
    mill.close().unwrap();

    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    let handle = mill.handle::<Note>(id);
    let queue = mill.queue("notes").unwrap();
    assert!(queue.is_paused());
    assert!(handle.wait_timeout(Duration::from_millis(50)).is_err());
    queue.resume().unwrap();
    wait_for_end(&handle);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn dead_jobs_of_all_levels_are_listed_and_replayed() {
    let (mill, _dir) = mill();
    let is_fixed = Arc::new(AtomicBool::new(false));
    let fixed = Arc::clone(&is_fixed);
    let handler = move |job: Note| -> JobResult {
        match fixed.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(format!("{} failed", job.text))?,
        }
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    for (text, priority) in [("a", Priority::Normal), ("b", Priority::High)] {
        let handle = mill.job(note(text)).priority(priority).enqueue().unwrap();
        assert!(handle.wait_timeout(PATIENCE).is_err());
    }
    let queue = mill.queue("notes").unwrap();
    until("both letters are written", || {
        queue.stats().unwrap().dead == 2
    });
    let dead = queue.dead_jobs().unwrap();
    let mut seen: Vec<_> = dead
        .iter()
        .map(|job| (job.reason(), job.attempts))
        .collect();
    seen.sort();
    assert_eq!(seen, [("a failed", 3), ("b failed", 3)]);
    assert_eq!(dead[0].reasons.len(), 3);

    is_fixed.store(true, Ordering::SeqCst);
    let id = queue.replay(&dead[0]).unwrap().unwrap();
    wait_for_end(&mill.handle::<Note>(id));
    assert_eq!(queue.replay(&dead[0]).unwrap(), None);
    assert!(queue.purge(&dead[1]).unwrap());
    assert!(!queue.purge(&dead[1]).unwrap());
    assert_eq!(queue.stats().unwrap().dead, 0);
    assert_eq!(mill.queue_names().unwrap(), ["notes"]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_queue_has_the_levels_that_are_used_after_its_handle_was_made() {
    let (mill, dir) = mill();
    let queue = mill.queue("notes").unwrap();
    let enqueue = |mill: &Mill, priority| {
        let job = mill.job(note("x")).priority(priority);
        job.max_retries(0).enqueue().unwrap()
    };
    enqueue(&mill, Priority::High);
    assert_eq!(queue.stats().unwrap().ready, 1);
    queue.pause().unwrap();
    assert!(queue.is_paused());
    // A level that is used for the first time during the pause is paused as well, also after a restart.
    enqueue(&mill, Priority::Lowest);
    assert!(queue.is_paused());
    drop(queue);
    mill.close().unwrap();

    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let waits: Vec<_> = Priority::ALL
        .into_iter()
        .map(|priority| enqueue(&mill, priority))
        .collect();
    let handler = |_: Note| -> JobResult { Err("failed".into()) };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    for handle in &waits {
        assert!(handle.wait_timeout(Duration::from_millis(20)).is_err());
    }
    let queue = mill.queue("notes").unwrap();
    assert_eq!((queue.stats().unwrap().ready, queue.is_paused()), (7, true));
    queue.resume().unwrap();
    until("all are dead", || queue.stats().unwrap().dead == 7);
    assert_eq!(queue.dead_jobs().unwrap().len(), 7);
    assert_eq!(queue.purge_where(100, |_| true).unwrap(), 7);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn subscribers_that_use_new_levels_lock_nobody_out() {
    let dir = damaged();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let (told, begun) = std::sync::mpsc::channel();
    let (used, is_first) = (mill.clone(), AtomicBool::new(true));
    // In the first event, and a moment later, it enqueues in a level that was never used.
    let subscriber = OnEvent(move |metadata: &tracing::Metadata<'_>| {
        let is_ours = metadata.target().starts_with("logmill");
        if is_ours && is_first.swap(false, Ordering::SeqCst) {
            told.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let audit = used.job(note("what was logged")).queue("audit");
            audit.priority(Priority::High).enqueue().unwrap();
        }
    });
    let opens = mill.clone();
    let one = std::thread::spawn(move || {
        tracing::subscriber::with_default(subscriber, || opens.enqueue(note("new")).unwrap());
    });
    begun.recv_timeout(PATIENCE).unwrap();
    let other = std::thread::spawn(move || {
        let job = mill.job(note("x")).queue("other").priority(Priority::High);
        job.enqueue().unwrap();
    });
    until("both have enqueued", || {
        one.is_finished() && other.is_finished()
    });
    one.join().unwrap();
    other.join().unwrap();
}

#[test]
fn a_subscriber_that_enqueues_a_unique_job_while_a_queue_is_opened_locks_nobody_out() {
    let dir = damaged();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let unique = |mill: &Mill| {
        let job = mill.job(note("again")).queue("second");
        job.unique(logmill_jobs::Unique::by("a")).enqueue()
    };
    mill.queue("second").unwrap();
    let (told, begun) = std::sync::mpsc::channel();
    let (used, is_first) = (mill.clone(), AtomicBool::new(true));
    // In the first event, and a moment later, it asks for the key of the call that waits for the queue.
    let subscriber = OnEvent(move |metadata: &tracing::Metadata<'_>| {
        let is_ours = metadata.target().starts_with("logmill");
        if is_ours && is_first.swap(false, Ordering::SeqCst) {
            told.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let refused = unique(&used);
            assert!(refused.is_err(), "{refused:?}");
        }
    });
    let opens = mill.clone();
    let one = std::thread::spawn(move || {
        tracing::subscriber::with_default(subscriber, || opens.queue("notes").unwrap());
    });
    begun.recv_timeout(PATIENCE).unwrap();
    // Its key is that of a job in the queue that is about to open.
    let other = std::thread::spawn(move || unique(&mill).unwrap().outcome());
    until("both have an answer", || {
        one.is_finished() && other.is_finished()
    });
    one.join().unwrap();
    assert_eq!(other.join().unwrap(), logmill_jobs::Outcome::Existing);
}

/// A directory of a mill with damage in its keys and in the queue `notes`.
fn damaged() -> tempfile::TempDir {
    let (mill, dir) = mill();
    for text in ["a", "b", "c"] {
        let unique = logmill_jobs::Unique::by(text);
        let job = mill.job(note(&format!("the note {text}"))).unique(unique);
        job.enqueue().unwrap();
    }
    assert_eq!(mill.damage(), []);
    // Not closed: what is sealed is checked later.
    let copy = tempfile::tempdir().unwrap();
    let changed = copy_with_changes(dir.path(), copy.path(), b"the note b");
    assert!(
        changed >= 2,
        "in the queue and in the transaction: {changed}"
    );
    copy
}

#[test]
fn what_a_failing_disk_has_changed_is_told() {
    let dir = damaged();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let _ = mill.queue("notes").unwrap().stats().unwrap();
    let damage = mill.damage();
    let queues: Vec<_> = damage.iter().map(|one| one.queue.as_deref()).collect();
    assert_eq!(queues, [None, Some("notes")]);
    for one in &damage {
        let found = &one.found[0];
        assert!(found.contains("failed its check; a copy is "), "{damage:?}");
    }
}

#[test]
fn a_subscriber_may_enqueue_while_a_queue_is_opened() {
    let dir = damaged();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let events = Arc::new(AtomicU32::new(0));
    let (used, counted) = (mill.clone(), Arc::clone(&events));
    let shipping = OnEvent(move |metadata: &tracing::Metadata<'_>| {
        let is_ours = metadata.target().starts_with("logmill");
        if is_ours && counted.fetch_add(1, Ordering::SeqCst) < 10 {
            // The first of these is about the queue itself.
            let _ = used.enqueue(note("what was logged"));
            let _ = used.job(note("what was logged")).queue("other").enqueue();
        }
    });
    tracing::subscriber::with_default(shipping, || mill.enqueue(note("new")).unwrap());
    assert!(events.load(Ordering::SeqCst) > 0);
    let ready = |queue| mill.queue(queue).unwrap().stats().unwrap().ready;
    assert!(ready("other") > 0);
    assert!(
        ready("notes") >= 3,
        "two that were not damaged, and the new one"
    );
}

/// Copies a directory, and changes a byte of each place that has these bytes. Returns how many there were.
fn copy_with_changes(from: &std::path::Path, to: &std::path::Path, bytes: &[u8]) -> usize {
    let mut changed = 0;
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            changed += copy_with_changes(&entry.path(), &target, bytes);
            continue;
        }
        let mut content = std::fs::read(entry.path()).unwrap();
        let places = places_of(&content, bytes);
        changed += places.len();
        for at in places {
            content[at] ^= 1;
        }
        std::fs::write(&target, content).unwrap();
    }
    changed
}

fn places_of(content: &[u8], bytes: &[u8]) -> Vec<usize> {
    let windows = content.windows(bytes.len()).enumerate();
    windows
        .filter(|(_, window)| *window == bytes)
        .map(|(at, _)| at)
        .collect()
}
