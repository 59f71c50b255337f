//! Kinds and keys that are paused.

use std::sync::{Arc, Mutex};

use logmill_jobs::{Job, JobResult, Mill, Pool, Status, Workers};
use serde::{Deserialize, Serialize};

use crate::common::{PATIENCE, mill, until};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "mail", key = "tenant", max_retries = 0)]
struct Mail {
    tenant: String,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "report", key = "tenant", max_retries = 0)]
struct Report {
    tenant: String,
}

fn mail(tenant: &str) -> Mail {
    let tenant = tenant.to_owned();
    Mail { tenant }
}

fn report(tenant: &str) -> Report {
    let tenant = tenant.to_owned();
    Report { tenant }
}

type Ran = Arc<Mutex<Vec<String>>>;

fn start(mill: &Mill) -> (Pool, Ran) {
    let ran = Ran::default();
    let (mails, reports) = (Arc::clone(&ran), Arc::clone(&ran));
    let workers = Workers::new(())
        .on(move |job: Mail| -> JobResult {
            mails.lock().unwrap().push(format!("mail {}", job.tenant));
            Ok(())
        })
        .on(move |job: Report| -> JobResult {
            reports
                .lock()
                .unwrap()
                .push(format!("report {}", job.tenant));
            Ok(())
        });
    (workers.threads(2).start(mill).unwrap(), ran)
}

#[test]
fn jobs_of_a_paused_kind_wait_and_others_go_on() {
    let (mill, dir) = mill();
    assert!(mill.pause_kind("mail").unwrap());
    assert!(!mill.pause_kind("mail").unwrap());
    let (pool, ran) = start(&mill);
    let waits = mill.enqueue(mail("a")).unwrap();
    mill.enqueue(report("a"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    until("a worker comes to it", || {
        mill.why_waiting(waits.id()).is_some()
    });
    assert_eq!(
        mill.why_waiting(waits.id()).unwrap(),
        r#"the kind "mail" is paused"#
    );
    assert_eq!(mill.paused().unwrap().jobs, [waits.id().clone()]);
    assert_eq!(*ran.lock().unwrap(), ["report a"]);
    assert!(matches!(
        waits.status().unwrap(),
        Status::Waiting { failed: 0, .. }
    ));

    // Also after a restart.
    let id = waits.id().clone();
    drop(waits);
    let _ = pool.shutdown(PATIENCE);
    mill.close().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    assert_eq!(mill.paused().unwrap().kinds, ["mail"]);
    let (pool, ran) = start(&mill);
    until("a worker comes to it", || mill.why_waiting(&id).is_some());
    assert!(mill.resume_kind("mail").unwrap());
    assert!(!mill.resume_kind("mail").unwrap());
    until("it runs", || *ran.lock().unwrap() == ["mail a"]);
    assert_eq!(mill.paused().unwrap(), Default::default());
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn jobs_of_a_paused_key_wait_and_those_of_others_go_on() {
    let (mill, _dir) = mill();
    let (pool, ran) = start(&mill);
    mill.pause_key("a").unwrap();
    mill.pause_kind("report").unwrap();
    let both = mill.enqueue(report("a")).unwrap();
    let one = mill.enqueue(mail("a")).unwrap();
    mill.enqueue(mail("b"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    until("workers come to them", || {
        mill.paused().unwrap().jobs.len() == 2
    });
    assert_eq!(*ran.lock().unwrap(), ["mail b"]);
    // A job that two pauses concern waits for both.
    mill.resume_kind("report").unwrap();
    until("the other pause holds it", || {
        mill.why_waiting(both.id())
            .is_some_and(|why| why == r#"the key "a" is paused"#)
    });
    mill.resume_key("a").unwrap();
    one.wait_timeout(PATIENCE).unwrap();
    both.wait_timeout(PATIENCE).unwrap();
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_job_that_a_pause_holds_can_be_cancelled() {
    let (mill, _dir) = mill();
    let (pool, ran) = start(&mill);
    mill.pause_key("a").unwrap();
    let handle = mill.enqueue(mail("a")).unwrap();
    until("a worker comes to it", || {
        mill.why_waiting(handle.id()).is_some()
    });
    handle.cancel("not needed").unwrap();
    assert!(handle.wait_timeout(PATIENCE).is_err());
    assert!(matches!(handle.status().unwrap(), Status::Cancelled { .. }));
    until("it is gone", || mill.paused().unwrap().jobs.is_empty());
    mill.resume_key("a").unwrap();
    assert_eq!(ran.lock().unwrap().len(), 0);
    let _ = pool.shutdown(PATIENCE);
}
