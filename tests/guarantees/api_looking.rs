//! Tests of what an open queue shows of its jobs: `Queue::jobs`, in pages from a cursor, and
//! `Queue::get`, with the state of each job.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use logmill::{
    EnqueueOptions, Job, JobCursor, JobId, JobState, Queue, RetryPolicy, View, ViewedJob,
};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);

fn delayed() -> EnqueueOptions<'static> {
    EnqueueOptions::new().delay(HOUR)
}

fn jobs(queue: &Queue) -> Vec<ViewedJob> {
    queue.jobs().map(|job| job.expect("readable")).collect()
}

/// What [`Queue::get`] and a view from outside find, which is the same while nothing changes.
fn get(queue: &Queue, id: JobId) -> Option<ViewedJob> {
    let found = queue.get(id).expect("readable");
    let view = View::open(queue.path()).expect("there is a queue");
    assert_eq!(view.get(id).expect("readable"), found);
    if let Some(found) = &found {
        assert_eq!(found.id(), id);
    }
    found
}

fn state(queue: &Queue, id: JobId) -> Option<JobState> {
    get(queue, id).map(|job| job.state())
}

/// A queue of three stripes with jobs in each, in several segments.
fn of_three_stripes(dir: &Path) -> (Queue, Vec<JobId>) {
    let queue = open(builder(dir).stripes(3).max_depth(10_000));
    let mut producers: Vec<_> = (0..3).map(|_| queue.producer()).collect();
    let mut ids = Vec::new();
    for number in 0..900 {
        let producer = &mut producers[number as usize % 3];
        ids.push(producer.enqueue(&payload_of(number, 500)).unwrap());
    }
    assert_eq!(ids.iter().map(|id| id.stripe()).max(), Some(2));
    ids.sort_unstable();
    (queue, ids)
}

/// The jobs in pages of this size, through [`Queue::jobs_after`].
fn paged(queue: &Queue, size: usize) -> Vec<ViewedJob> {
    let mut all = Vec::new();
    let mut cursor = JobCursor::START;
    loop {
        let page = queue.jobs_after(cursor).take(size);
        let page: Vec<_> = page.map(|job| job.expect("readable")).collect();
        let Some(last) = page.last() else {
            return all;
        };
        // A page for somebody who has only the number.
        cursor = JobCursor::new(last.cursor().get());
        all.extend(page);
    }
}

#[test]
fn pages_show_every_job_once_in_the_order_of_the_whole_list() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, ids) = of_three_stripes(dir.path());
    let all = jobs(&queue);
    assert_eq!(all.iter().map(ViewedJob::id).collect::<Vec<_>>(), ids);
    for size in [7, 100, 300, 899, 900, 2000] {
        assert_eq!(paged(&queue, size), all, "pages of {size}");
    }
    // With jobs that are done, held, and delayed.
    let consumer = queue.consumer();
    let mut held = Vec::new();
    for number in 0..600 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        match number % 4 {
            0 => job.retry_after(Duration::from_millis(900), "later"),
            1 => held.push(job),
            _ => job.ack(),
        }
    }
    let all = jobs(&queue);
    assert_eq!(all.len(), 600);
    let in_flight = all.iter().filter(|job| job.state() == JobState::InFlight);
    assert_eq!(in_flight.count(), 150);
    assert_eq!(paged(&queue, 7).len(), 600);
    let ids: BTreeSet<_> = paged(&queue, 64).iter().map(ViewedJob::id).collect();
    assert_eq!(ids.len(), 600);
    held.into_iter().for_each(Job::ack);
}

#[test]
fn a_cursor_stays_valid_when_its_job_is_gone_and_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, ids) = of_three_stripes(dir.path());
    let cursors: Vec<_> = jobs(&queue).iter().map(ViewedJob::cursor).collect();
    let first_behind = |queue: &Queue, at: usize| {
        let next = queue.jobs_after(cursors[at]).next();
        next.map(|job| job.expect("readable").id())
    };
    // In the middle of a segment, at the end of a stripe, and at the end of all.
    for at in [0, 1, 250, 299, 300, 599, 898] {
        assert_eq!(first_behind(&queue, at), Some(ids[at + 1]));
    }
    assert_eq!(first_behind(&queue, 899), None);
    let view = View::open(dir.path()).unwrap();
    assert_eq!(view.jobs_after(cursors[599]).count(), 300);
    queue.close().unwrap();

    let queue = open(builder(dir.path()).stripes(3));
    assert_eq!(first_behind(&queue, 299), Some(ids[300]));
    drain(&queue);
    assert_eq!(first_behind(&queue, 299), None);
    let new = queue.enqueue(b"new").unwrap();
    let before = queue.jobs_after(JobCursor::START).next();
    assert_eq!(before.unwrap().unwrap().id(), new);
}

#[test]
fn a_job_is_found_in_every_state_and_not_when_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let policy = RetryPolicy::fixed(HOUR).max_attempts(2);
    let queue = open(builder(dir.path()).retry(policy));
    let options = EnqueueOptions::new().name("resize");
    let [held, acked, dead, backs_off] = [b"held", b"over", b"dead", b"fail"]
        .map(|payload| queue.enqueue_with(payload, options).unwrap());
    let ready = queue.enqueue(b"ready").unwrap();
    let later = queue.enqueue_with(b"later", delayed()).unwrap();
    let everywhere = [held, acked, dead, backs_off, ready];
    for id in everywhere {
        assert_eq!(state(&queue, id), Some(JobState::Ready));
    }
    assert_eq!(state(&queue, later), Some(JobState::Delayed));

    let consumer = queue.consumer();
    let next = || consumer.next_timeout(PATIENCE).unwrap();
    let (first, second, third, fourth) = (next(), next(), next(), next());
    for id in &everywhere[..4] {
        assert_eq!(state(&queue, *id), Some(JobState::InFlight));
    }
    second.ack();
    third.dead_letter("no use");
    fourth.retry("not now");
    queue.flush().unwrap();
    let found = get(&queue, held).expect("a handler has it");
    assert_eq!(
        (found.payload(), found.name()),
        (&b"held"[..], Some("resize"))
    );
    assert_eq!(get(&queue, acked), None);
    assert_eq!(get(&queue, dead), None);
    // The end of a backoff is known to the timer alone.
    let found = get(&queue, backs_off).expect("it comes back");
    assert_eq!((found.state(), found.attempts()), (JobState::Ready, 1));
    assert_eq!(jobs(&queue).len(), 4);
    first.ack();
    assert_eq!(get(&queue, held), None);

    // A replayed letter is another job.
    let letter = queue.dead_letters().iter().next().unwrap();
    let replayed = queue.dead_letters().replay(letter.id()).unwrap();
    assert_eq!(get(&queue, dead), None);
    assert_eq!(get(&queue, replayed).unwrap().payload(), b"dead");

    // Never enqueued: behind the last job, and in stripes that are not there.
    for id in ["0-1000000", "0-72057594037927935", "1-0", "63-7"] {
        assert_eq!(get(&queue, id.parse().unwrap()), None, "{id}");
    }
}

#[test]
fn a_job_with_a_delay_that_a_handler_named_is_delayed_once_that_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let ids = queue.enqueue_batch(&[b"1", b"2"]).unwrap();
    let consumer = queue.consumer();
    consumer.next_timeout(PATIENCE).unwrap().snooze(HOUR);
    let second = consumer.next_timeout(PATIENCE).unwrap();
    second.retry_after(HOUR, "later");
    for (id, attempts) in [(ids[0], 0), (ids[1], 1)] {
        eventually("the delay is stored", || {
            let found = queue.get(id).unwrap().expect("it waits");
            assert_eq!((found.id(), found.attempts()), (id, attempts));
            found.state() == JobState::Delayed
        });
    }
    assert_eq!(jobs(&queue).len(), 2);
}

#[test]
fn a_job_that_is_moved_within_its_segment_is_found_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    // Reading what else is in the segment takes longer than a move.
    let queue = open(builder(dir.path()).segment_size(1 << 20));
    for number in 0..20 {
        let payload = payload_of(number, 20_000);
        queue.enqueue_with(&payload, delayed()).unwrap();
    }
    let consumer = queue.consumer();
    for round in 0..40 {
        let id = queue.enqueue(b"job").unwrap();
        let job = consumer.next_timeout(PATIENCE).unwrap();
        assert_eq!(job.id(), id);
        job.snooze(HOUR);
        eventually("the delay is stored", || {
            let found = jobs(&queue).into_iter().filter(|job| job.id() == id);
            assert_eq!(found.count(), 1, "in round {round}");
            let found = queue.get(id).unwrap().expect("it waits");
            found.state() == JobState::Delayed
        });
    }
}

#[test]
fn a_job_is_found_until_it_has_expired() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let options = EnqueueOptions::new().expires_at(std::time::SystemTime::now());
    let id = queue.enqueue_with(b"late", options).unwrap();
    assert_eq!(state(&queue, id), Some(JobState::Ready));
    assert!(queue.consumer().try_next().is_none());
    assert_eq!(get(&queue, id), None);
}

#[test]
fn a_job_that_had_a_handler_when_the_process_died_is_a_suspect() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let id = queue.enqueue(b"job").unwrap();
    let other = queue.enqueue(b"other").unwrap();
    let consumer = queue.consumer();
    let held = consumer.next_timeout(PATIENCE).unwrap();
    let killed = crash_copy(dir.path());
    held.ack();
    let view = View::open(killed.path()).unwrap();
    assert_eq!(view.get(id).unwrap().unwrap().state(), JobState::InFlight);
    let queue = open_after_kill(builder(killed.path()));
    let found = get(&queue, id).expect("it comes again");
    assert_eq!((found.state(), found.crashes()), (JobState::Suspect, 1));
    assert_eq!(state(&queue, other), Some(JobState::Ready));
    let consumer = queue.consumer();
    let again = consumer.next_batch(2, PATIENCE);
    assert_eq!(again.len(), 2);
    assert_eq!(state(&queue, id), Some(JobState::InFlight));
    again.into_iter().for_each(Job::ack);
    assert_eq!(get(&queue, id), None);
}

#[test]
fn every_job_of_a_queue_with_several_stripes_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, ids) = of_three_stripes(dir.path());
    for (at, id) in ids.iter().enumerate().step_by(37) {
        let found = get(&queue, *id).expect("it waits");
        assert_eq!(number_in(found.payload()) % 3, u64::from(id.stripe()));
        assert_eq!(found.state(), JobState::Ready, "{at}");
    }
    // After a close, as long as a handle is left.
    queue.clone().close().unwrap();
    for id in [ids[0], ids[450], ids[899]] {
        assert!(get(&queue, id).is_some());
    }
    assert_eq!(jobs(&queue).len(), 900);
}

#[test]
fn a_job_that_compaction_has_moved_is_found_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    // So small that waiting jobs are moved to make room.
    let queue = open(builder(dir.path()).max_bytes(4 * SEGMENT));
    let ids: Vec<_> = (0..5)
        .map(|number| {
            let payload = payload_of(number, 100);
            queue.enqueue_with(&payload, delayed()).unwrap()
        })
        .collect();
    let oldest = segment_files(dir.path()).remove(0);
    let is_over = Over::default();
    thread::scope(|scope| {
        let over = is_over.at_end();
        scope.spawn(|| {
            let consumer = queue.consumer();
            let wait = EnqueueOptions::new().wait(PATIENCE);
            while !is_over.is_set() {
                queue.enqueue_with(&payload_of(100, 3000), wait).unwrap();
                while let Some(job) = consumer.try_next() {
                    job.ack();
                }
            }
        });
        let mut looks = 0;
        eventually("the jobs have been moved", || {
            looks += 1;
            for (number, id) in ids.iter().enumerate() {
                let found = queue.get(*id).unwrap().expect("it waits");
                assert_eq!(number_in(found.payload()), number as u64);
                assert_eq!((found.id(), found.state()), (*id, JobState::Delayed));
            }
            let found = jobs(&queue).into_iter().map(|job| job.id());
            let found: Vec<_> = found.filter(|id| ids.contains(id)).collect();
            assert_eq!(found.len(), ids.len(), "{looks}");
            !oldest.exists() && looks > 50
        });
        drop(over);
    });
    for id in ids {
        let found = queue.get(id).unwrap().expect("it waits");
        assert_ne!(found.cursor().get(), id.get() + 1, "it was moved");
    }
}

#[test]
fn an_iterator_does_not_keep_the_queue_open() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    queue.enqueue_batch(&[b"1", b"2"]).unwrap();
    let mut begun = queue.jobs();
    assert!(begun.next().is_some_and(|job| job.is_ok()));
    drop(queue);
    let queue = open(builder(dir.path()));
    assert_eq!(begun.filter(Result::is_ok).count(), 1);
    assert_eq!(jobs(&queue).len(), 2);
}
