//! Many dead jobs, and jobs that are enqueued together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use logmill_jobs::{
    Backoff, Job, JobQueue, JobResult, Mill, Outcome, Pool, Priority, Workers, discard,
};
use serde::{Deserialize, Serialize};

use crate::common::{PATIENCE, mill, until};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "even", queue = "numbers", backoff = Backoff::fixed(std::time::Duration::ZERO))]
struct Even(u32);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "odd", queue = "numbers", priority = Priority::Low)]
struct Odd(u32);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "only", unique)]
struct Only(u32);

/// Sixty jobs of two levels that have died.
fn dead(mill: &Mill, works: &Arc<AtomicBool>) -> (Pool, JobQueue) {
    let says = |works: &Arc<AtomicBool>, number: u32| match works.load(Ordering::SeqCst) {
        true => Ok(()),
        false => Err(discard(format!("{number} is refused"))),
    };
    let (one, other) = (Arc::clone(works), Arc::clone(works));
    let pool = Workers::new(())
        .on(move |job: Even| -> JobResult { says(&one, job.0) })
        .on(move |job: Odd| -> JobResult { says(&other, job.0) })
        .start(mill)
        .unwrap();
    mill.enqueue_all((0..30).map(|number| Even(2 * number)))
        .unwrap();
    mill.enqueue_all((0..30).map(|number| Odd(2 * number + 1)))
        .unwrap();
    let queue = mill.queue("numbers").unwrap();
    until("all are dead", || queue.stats().unwrap().dead == 60);
    (pool, queue)
}

/// Lists that are unusable at large counts.
#[test]
fn dead_jobs_are_listed_page_by_page_while_others_go_away() {
    let (mill, _dir) = mill();
    let (pool, queue) = dead(&mill, &Arc::default());
    let mut seen = Vec::new();
    let mut page = queue.dead_jobs_page(None, 7).unwrap();
    loop {
        assert!(page.jobs.len() <= 7);
        seen.extend(page.jobs.iter().map(|dead| dead.id.clone()));
        // The job that the cursor names goes away, and the next page begins where it did.
        assert!(queue.purge(page.jobs.last().unwrap()).unwrap());
        let Some(next) = &page.next else {
            break;
        };
        let next = next.to_string().parse().unwrap();
        page = queue.dead_jobs_page(Some(&next), 7).unwrap();
    }
    assert_eq!(seen.len(), 60);
    let last = seen.last().unwrap();
    assert_eq!(last.queue(), "numbers");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 60);
    let other = "other/7".parse().unwrap();
    assert!(queue.dead_jobs_page(Some(&other), 7).is_err());
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn dead_jobs_are_replayed_and_purged_by_what_a_filter_selects() {
    let (mill, _dir) = mill();
    let works = Arc::new(AtomicBool::new(false));
    let (pool, queue) = dead(&mill, &works);
    assert!(queue.purge_where(9, |_| panic!("as told")).is_err());
    assert_eq!(queue.stats().unwrap().dead, 60);
    let purged = queue.purge_where(usize::MAX, |dead| dead.reason() == "7 is refused");
    assert_eq!(purged.unwrap(), 1);
    assert_eq!(queue.purge_where(4, |dead| dead.kind == "odd").unwrap(), 4);
    assert_eq!(queue.stats().unwrap().dead, 55);

    works.store(true, Ordering::SeqCst);
    let ids = queue.replay_where(20, |dead| dead.kind == "even").unwrap();
    assert_eq!(ids.len(), 20);
    until("they are done", || {
        let stats = queue.stats().unwrap();
        stats.left() == 0
    });
    let left = queue.dead_jobs().unwrap();
    let evens = left.iter().filter(|dead| dead.kind == "even").count();
    assert_eq!((evens, left.len()), (10, 35));
    assert_eq!(queue.replay_where(usize::MAX, |_| true).unwrap().len(), 35);
    until("they are done", || queue.stats().unwrap().completed == 55);
    assert_eq!(queue.stats().unwrap().dead, 0);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn jobs_that_are_enqueued_together_are_unique_as_others_are() {
    let (mill, _dir) = mill();
    let first = mill.enqueue(Only(1)).unwrap();
    let handles = mill.enqueue_all([1, 2, 2, 3].map(Only)).unwrap();
    let outcomes: Vec<_> = handles.iter().map(|handle| handle.outcome()).collect();
    use Outcome::{Existing, New};
    assert_eq!(outcomes, [Existing, New, Existing, New]);
    assert_eq!(handles[0].id(), first.id());
    assert_eq!(handles[1].id(), handles[2].id());
}
