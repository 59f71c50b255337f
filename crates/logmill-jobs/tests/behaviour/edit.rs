//! Jobs that wait are edited: they get other arguments, another time, another place.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use logmill_jobs::{
    EditError, Job, JobResult, Limit, Mill, MillOptions, Outcome, Pool, Priority, Status, Unique,
    WaitError, Workers, hours,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, PATIENCE, mill, until};

#[derive(Debug, Serialize, Deserialize, Job)]
#[job(kind = "remind", output = String, key = "user", max_retries = 0)]
struct Remind {
    text: String,
    user: u32,
}

fn remind(text: &str) -> Remind {
    let text = text.to_owned();
    Remind { text, user: 7 }
}

type Ran = Arc<Mutex<Vec<String>>>;

fn start(mill: &Mill) -> (Pool, Ran) {
    let ran = Ran::default();
    let noted = Arc::clone(&ran);
    let workers = Workers::new(())
        .queue("other", 1)
        .on(move |job: Remind| -> JobResult<String> {
            noted.lock().unwrap().push(job.text.clone());
            Ok(job.text)
        });
    (workers.threads(2).start(mill).unwrap(), ran)
}

#[test]
fn a_job_that_waits_gets_other_arguments_and_another_time() {
    let (mill, _dir) = mill();
    let (pool, ran) = start(&mill);
    let handle = mill.job(remind("tea")).after(hours(1)).enqueue().unwrap();
    let id = handle.edit().arguments(&remind("coffee")).apply().unwrap();
    let Status::Waiting { due: Some(due), .. } = handle.status().unwrap() else {
        panic!("{:?}", handle.status());
    };
    assert!(due > std::time::SystemTime::now() + hours(1) / 2);
    assert_eq!(mill.status(&id).unwrap(), handle.status().unwrap());
    // A former id is as good as the new one, for each of these.
    let last = mill
        .edit(handle.id())
        .queue("other")
        .priority(Priority::High)
        .now()
        .apply()
        .unwrap();
    assert_eq!(last.queue(), "other");
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), "coffee");
    assert_eq!(handle.try_result().unwrap().unwrap(), "coffee");
    assert_eq!(
        mill.handle::<Remind>(id).wait_timeout(PATIENCE).unwrap(),
        "coffee"
    );
    until("nothing is left", || {
        let stats = mill.queue("default").unwrap().stats().unwrap();
        stats.left() == 0
    });
    assert_eq!(*ran.lock().unwrap(), ["coffee"]);
    assert!(matches!(
        handle.edit().now().apply(),
        Err(EditError::Gone(_))
    ));
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn who_waits_for_a_job_follows_it() {
    let (mill, _dir) = mill();
    let (pool, _ran) = start(&mill);
    let handle = mill.job(remind("tea")).after(hours(1)).enqueue().unwrap();
    let waits = handle.clone();
    let waiter = std::thread::spawn(move || waits.wait_timeout(PATIENCE));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let id = mill.run_now(handle.id()).unwrap();
    assert_eq!(waiter.join().unwrap().unwrap(), "tea");
    assert_eq!(mill.status(&id).unwrap(), Status::Done);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_cancel_by_the_former_id_cancels_the_job() {
    let (mill, _dir) = mill();
    let (pool, ran) = start(&mill);
    let handle = mill.job(remind("tea")).after(hours(1)).enqueue().unwrap();
    let id = handle.edit().after(hours(2)).apply().unwrap();
    handle.cancel("changed my mind").unwrap();
    let reason = "changed my mind".to_owned();
    assert_eq!(mill.status(&id).unwrap(), Status::Cancelled { reason });
    assert!(matches!(
        handle.wait_timeout(PATIENCE),
        Err(WaitError::Cancelled(_))
    ));
    assert_eq!(ran.lock().unwrap().len(), 0);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_job_that_runs_or_has_ended_is_not_changed() {
    let (mill, _dir) = mill();
    let (begun, begins) = channel();
    let (end, ends) = channel::<()>();
    let ends = Mutex::new(ends);
    let workers = Workers::new(()).on(move |job: Remind| -> JobResult<String> {
        begun.send(()).unwrap();
        ends.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        Ok(job.text)
    });
    let pool = workers.threads(1).start(&mill).unwrap();
    let handle = mill.enqueue(remind("tea")).unwrap();
    begins.recv_timeout(PATIENCE).unwrap();
    let refused = handle.edit().arguments(&remind("coffee")).apply();
    assert!(matches!(refused, Err(EditError::Running(_))), "{refused:?}");
    end.send(()).unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), "tea");
    let refused = handle.edit().arguments(&remind("coffee")).apply();
    assert!(matches!(refused, Err(EditError::Gone(_))), "{refused:?}");
    let never = mill.edit(&"default/99999".parse().unwrap()).now().apply();
    assert!(matches!(never, Err(EditError::Gone(_))), "{never:?}");
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn arguments_of_another_kind_are_refused() {
    let (mill, _dir) = mill();
    let handle = mill.enqueue(remind("tea")).unwrap();
    let refused = handle.edit().arguments(&Double { number: 7 }).apply();
    assert!(
        matches!(refused, Err(EditError::OtherKind(_))),
        "{refused:?}"
    );
    let refused = handle.edit().queue("a.b").apply();
    assert!(matches!(refused, Err(EditError::Enqueue(_))), "{refused:?}");
    assert!(matches!(handle.status().unwrap(), Status::Waiting { .. }));
}

#[test]
fn a_unique_job_keeps_its_key_when_it_is_edited() {
    let (mill, _dir) = mill();
    let unique = || Unique::by("x").replacing();
    let job = |text: &str| mill.job(remind(text)).unique(unique()).enqueue().unwrap();
    let first = job("a");
    job("b");
    let id = first.edit().priority(Priority::Low).apply().unwrap();
    let again = job("c");
    assert_eq!((again.outcome(), again.id()), (Outcome::Replaced, &id));
    let id = first.edit().arguments(&remind("d")).apply().unwrap();
    let (pool, ran) = start(&mill);
    assert_eq!(
        mill.handle::<Remind>(id).wait_timeout(PATIENCE).unwrap(),
        "d"
    );
    assert_eq!(*ran.lock().unwrap(), ["d"]);
    assert_eq!(job("e").outcome(), Outcome::New);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn jobs_that_are_held_are_edited_too() {
    let dir = tempfile::tempdir().unwrap();
    let options = MillOptions::new().limit(Limit::on_kind("remind").rate(1, hours(1)));
    let mill = Mill::builder(dir.path().join("jobs"))
        .options(options)
        .open()
        .unwrap();
    let (pool, ran) = start(&mill);
    mill.enqueue(remind("first"))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    let held = mill.enqueue(remind("second")).unwrap();
    until("the limit holds it", || {
        mill.why_waiting(held.id()).is_some()
    });
    let id = held.edit().after(hours(2)).apply().unwrap();
    assert!(matches!(
        mill.status(&id).unwrap(),
        Status::Waiting { due: Some(_), .. }
    ));
    assert_eq!(mill.why_waiting(held.id()), None);

    mill.pause_key("7").unwrap();
    let paused = mill.enqueue(remind("third")).unwrap();
    until("the pause holds it", || {
        mill.why_waiting(paused.id()).is_some()
    });
    paused.edit().after(hours(2)).apply().unwrap();
    assert_eq!(mill.paused().unwrap().jobs, []);
    assert_eq!(*ran.lock().unwrap(), ["first"]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn of_edits_that_race_with_workers_each_job_runs_once() {
    let (mill, _dir) = mill();
    let (pool, ran) = start(&mill);
    for number in 0..30 {
        let handle = mill.enqueue(remind(&format!("{number} old"))).unwrap();
        let edited = handle
            .edit()
            .arguments(&remind(&format!("{number} new")))
            .apply();
        let result = handle.wait_timeout(PATIENCE).unwrap();
        match edited {
            Ok(_) => assert_eq!(result, format!("{number} new")),
            Err(EditError::Running(_) | EditError::Gone(_)) => {
                assert_eq!(result, format!("{number} old"));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(ran.lock().unwrap().len(), 30);
    let _ = pool.shutdown(PATIENCE);
}
