//! Lists of the jobs that have not ended, page by page, and cancelling many of them.

use std::collections::BTreeSet;
use std::time::Duration;

use logmill_jobs::backend::BackendError;
use logmill_jobs::{Job, JobCursor, JobId, JobQueue, JobResult, Mill, Priority, Status, Workers};
use serde::{Deserialize, Serialize};

use crate::common::{mill, until};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "letter", queue = "mail", key = "to", backoff = logmill_jobs::Backoff::fixed(Duration::from_secs(3600)))]
struct Letter {
    to: String,
    number: u32,
}

fn letter(number: u32) -> Letter {
    Letter {
        to: format!("user {}", number % 3),
        number,
    }
}

/// All jobs, by pages of this size; the cursor goes through its text.
fn all(queue: &JobQueue, size: usize) -> Vec<(JobId, u32)> {
    let mut found = Vec::new();
    let mut from: Option<JobCursor> = None;
    loop {
        let page = queue.jobs_page(from.as_ref(), size).unwrap();
        assert!(page.jobs.len() <= size);
        for job in &page.jobs {
            let arguments: Letter = queue.arguments_of(job).unwrap();
            assert_eq!(job.key.as_deref(), Some(&*arguments.to));
            found.push((job.id.clone(), arguments.number));
        }
        match page.next {
            // Another page was promised.
            Some(next) => {
                assert_eq!(page.jobs.len(), size);
                from = Some(next.to_string().parse().unwrap());
            }
            None => return found,
        }
    }
}

fn enqueue(mill: &Mill, number: u32) -> JobId {
    let level = Priority::ALL[number as usize % 5];
    let job = mill.job(letter(number)).priority(level);
    let job = match number % 4 {
        0 => job.after(Duration::from_secs(3600)),
        _ => job,
    };
    job.enqueue().unwrap().id().clone()
}

#[test]
fn each_job_is_on_one_page_whatever_their_size_and_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs");
    let mill = Mill::open(&path).unwrap();
    assert_eq!(all(&mill.queue("mail").unwrap(), 10), []);
    let ids: BTreeSet<_> = (0..103)
        .map(|number| (enqueue(&mill, number).to_string(), number))
        .collect();
    let check = |mill: &Mill| {
        let queue = mill.queue("mail").unwrap();
        for size in [60, 103] {
            let found = all(&queue, size);
            assert_eq!(found.len(), 103);
            let found: BTreeSet<_> = found
                .into_iter()
                .map(|(id, number)| (id.to_string(), number))
                .collect();
            assert_eq!(found, ids, "pages of {size}");
        }
    };
    check(&mill);
    let queue = mill.queue("mail").unwrap();
    let page = queue.jobs_page(None, 30).unwrap();
    let (first, next) = (page.jobs, page.next.unwrap());
    assert!(first.iter().all(|job| !job.is_running && job.failed == 0));
    assert!(first.iter().any(|job| job.due.is_some()));
    drop(queue);
    mill.close().unwrap();

    let mill = Mill::open(&path).unwrap();
    check(&mill);
    // The cursor of the process before goes on where it was, though the job before it is gone.
    let last = first.last().unwrap();
    mill.cancel(&last.id, "no more").unwrap();
    let queue = mill.queue("mail").unwrap();
    let rest = queue.jobs_page(Some(&next), 1000).unwrap();
    assert_eq!((rest.jobs.len(), rest.next), (73, None));
    let seen: Vec<_> = first.iter().map(|job| &job.id).collect();
    assert!(rest.jobs.iter().all(|job| !seen.contains(&&job.id)));
    // The highest level comes first.
    assert!(first[0].id.to_string().starts_with("mail.highest/"));

    let other = mill.queue("other").unwrap();
    let wrong = other.jobs_page(Some(&next), 10);
    assert!(matches!(wrong, Err(BackendError::Invalid(_))), "{wrong:?}");
}

#[test]
fn a_job_that_runs_and_one_that_waits_for_its_next_attempt_are_listed_as_such() {
    let (mill, _dir) = mill();
    let (begun, goes_on) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let (begins, waits) = (begun.0, parking_lot::Mutex::new(goes_on.1));
    let workers = Workers::new(()).on(move |job: Letter| {
        if job.number == 1 {
            begins.send(()).unwrap();
            let _ = waits.lock().recv();
            return JobResult::Ok(());
        }
        Err("not now")?
    });
    let pool = workers.threads(2).start(&mill).unwrap();
    let runs = mill.enqueue(letter(1)).unwrap();
    begun.1.recv().unwrap();
    let fails = mill.enqueue(letter(2)).unwrap();
    let queue = mill.queue("mail").unwrap();
    let find = |id: &JobId| {
        let jobs = queue.jobs_page(None, 10).unwrap().jobs;
        jobs.into_iter().find(|job| job.id == *id)
    };
    until("it has failed once", || {
        find(fails.id()).is_some_and(|job| job.failed == 1 && !job.is_running)
    });
    assert!(find(runs.id()).unwrap().is_running);
    drop(goes_on.0);
    runs.wait().unwrap();
    assert_eq!(find(runs.id()), None);
    drop(pool);
}

#[test]
fn those_that_a_filter_selects_are_cancelled_and_no_others() {
    let (mill, _dir) = mill();
    let ids: Vec<_> = (0..20).map(|number| enqueue(&mill, number)).collect();
    let queue = mill.queue("mail").unwrap();
    let is_of =
        |number| move |job: &logmill_jobs::QueuedJob| job.key == Some(format!("user {number}"));
    assert_eq!(queue.cancel_where(2, "spam", is_of(1)).unwrap(), 2);
    assert_eq!(queue.cancel_where(100, "spam", is_of(1)).unwrap(), 5);
    assert_eq!(queue.cancel_where(100, "spam", is_of(1)).unwrap(), 0);
    for (number, id) in ids.iter().enumerate() {
        let status = mill.status(id).unwrap();
        match number % 3 {
            1 => assert!(
                matches!(&status, Status::Cancelled { reason } if reason == "spam"),
                "{status:?}"
            ),
            _ => assert!(matches!(status, Status::Waiting { .. }), "{status:?}"),
        }
    }
    let panics = queue.cancel_where(100, "", |_| panic!("in a filter"));
    assert!(matches!(panics, Err(BackendError::Invalid(why)) if why.contains("in a filter")));
    assert_eq!(queue.stats().unwrap().left(), 13);
    // It may call the mill.
    let emptied = queue.cancel_where(usize::MAX, "emptied", |job| {
        mill.why_waiting(&job.id).is_none() && !job.is_running
    });
    assert_eq!((emptied.unwrap(), queue.stats().unwrap().left()), (13, 0));
}
