//! Why a job waits.

use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

use logmill_jobs::{JobResult, WaitsFor, Workers, hours, retry_in};
use parking_lot::Mutex;

use crate::common::{Double, Note, PATIENCE, mill, note, until};

#[test]
fn a_job_says_what_it_waits_for() {
    let (mill, _dir) = mill();
    let first = mill.enqueue(note("first")).unwrap();
    assert_eq!(mill.waits_for(first.id()).unwrap(), Some(WaitsFor::Workers));
    let queue = mill.queue("notes").unwrap();
    queue.pause().unwrap();
    assert_eq!(mill.waits_for(first.id()).unwrap(), Some(WaitsFor::Resume));
    let later = mill.job(note("later")).after(hours(1)).enqueue().unwrap();
    match mill.waits_for(later.id()).unwrap() {
        Some(WaitsFor::Time(due)) => assert!(due > SystemTime::now() + Duration::from_secs(3000)),
        other => panic!("{other:?}"),
    }
    let (go, wait) = channel();
    let wait = Mutex::new(wait);
    let handler = move |job: Note| -> JobResult {
        wait.lock().recv().unwrap();
        match job.text.as_str() {
            "retry" => Err(retry_in(hours(1), "busy")),
            _ => Ok(()),
        }
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(1)
        .start(&mill)
        .unwrap();
    queue.resume().unwrap();
    until("it runs", || mill.waits_for(first.id()).unwrap().is_none());
    let second = mill.enqueue(note("retry")).unwrap();
    until("it is its turn", || {
        let waits = mill.waits_for(second.id()).unwrap();
        matches!(waits, Some(WaitsFor::Turn { ready: 1 | 2 }))
    });
    let unknown = mill.job(Double { number: 1 }).queue("notes");
    let unknown = unknown.enqueue().unwrap();
    go.send(()).unwrap();
    go.send(()).unwrap();
    until("it is retried", || {
        matches!(
            mill.waits_for(second.id()).unwrap(),
            Some(WaitsFor::Time(_))
        )
    });
    until("a worker came to it", || {
        matches!(
            mill.waits_for(unknown.id()).unwrap(),
            Some(WaitsFor::Held(_))
        )
    });
    let why = mill.waits_for(unknown.id()).unwrap().unwrap().to_string();
    assert_eq!(why, "no handler takes the kind \"double\"");
    assert_eq!(mill.waits_for(first.id()).unwrap(), None);
    assert_eq!(mill.waits_for(&"other/7".parse().unwrap()).unwrap(), None);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}
