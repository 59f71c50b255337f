//! Flows while the process is killed: what waits runs as one job, once all that it waits for is done,
//! and no flow is left waiting.

mod killing;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmill_jobs::{
    Backoff, Context, Inputs, Job, JobResult, Mill, Pool, State, Workers, discard, secs,
};
use serde::{Deserialize, Serialize};

use killing::{LEAST, length};

const DIRECTORY: &str = "LOGMILL_JOBS_FLOW_KILLS";
const PATIENCE: Duration = Duration::from_secs(60);
const LIVES: u64 = 12;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "part", output = u64, max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Part {
    number: u64,
    is_bad: bool,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "whole", inputs = Vec<Part>, max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Whole {
    number: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "told", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Told {
    number: u64,
    what: String,
}

/// What the processes note of what happened, which survives them.
#[derive(Clone)]
struct Notes(Arc<Mutex<File>>);

impl Notes {
    fn open(dir: &Path) -> Self {
        let options = OpenOptions::new().create(true).append(true).clone();
        Self(Arc::new(Mutex::new(
            options.open(dir.join("notes")).unwrap(),
        )))
    }

    fn note(&self, what: &str, number: u64, id: &dyn std::fmt::Display) {
        let line = format!("{what} {number} {id}\n");
        self.0.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

fn part(job: Part) -> JobResult<u64> {
    match job.is_bad {
        true => Err(discard("bad")),
        false => Ok(job.number),
    }
}

fn whole(
    job: Whole,
    Inputs(parts): Inputs<Whole>,
    State(notes): State<Notes>,
    cx: Context,
) -> JobResult {
    assert_eq!(parts, [job.number; 3]);
    notes.note("whole", job.number, cx.id());
    Ok(())
}

fn told(job: Told, State(notes): State<Notes>, cx: Context) -> JobResult {
    notes.note(&job.what, job.number, cx.id());
    Ok(())
}

fn start(dir: &Path) -> (Mill, Pool, Notes) {
    let mill = Mill::open(dir.join("jobs")).unwrap();
    let notes = Notes::open(dir);
    let workers = Workers::new(notes.clone()).on(part).on(whole).on(told);
    let pool = workers.threads(3).start(&mill).unwrap();
    (mill, pool, notes)
}

/// Whether the flow with this number has a bad part.
fn is_bad(number: u64) -> bool {
    number.is_multiple_of(3)
}

/// Enqueues and works until it is killed.
#[test]
#[ignore = "run by the other test"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY).expect("run by the other test"));
    let (mill, _pool, notes) = start(&dir);
    let first = u64::from(std::process::id()) * 1_000_000;
    for number in first.. {
        let mut flow = mill.flow(format!("flow {number}"));
        let parts = [0, 1, 2].map(|at| {
            let is_bad = is_bad(number) && at == 1;
            flow.add(Part { number, is_bad })
        });
        flow.join(Whole { number }, &parts);
        notes.note("flow", number, &flow.enqueue().unwrap().id());
        let mut batch = mill.batch(format!("batch {number}"));
        for at in 0..2 {
            let is_bad = is_bad(number) && at == 1;
            batch.add(Part { number, is_bad });
        }
        let told = |what: &str| Told {
            number,
            what: what.to_owned(),
        };
        batch.on_success(told("success"));
        batch.on_complete(told("complete"));
        batch.on_death(told("death"));
        let batch = batch.enqueue().unwrap();
        notes.note("batch", number, &batch.id());
        if number % 8 == 0 {
            batch.wait_timeout(PATIENCE).unwrap();
        }
    }
}

#[test]
fn what_waits_runs_as_one_job_however_often_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..LIVES {
        let noted = length(dir.path());
        killing::kill(
            &[(DIRECTORY, dir.path().to_str().unwrap())],
            |_| length(dir.path()) > noted + LEAST,
            Duration::from_millis(3 + life * 53 % 97),
        );
    }

    // The rest is done in peace.
    let (mill, pool, _) = start(dir.path());
    let notes = std::fs::read_to_string(dir.path().join("notes")).unwrap();
    let ids = |notes: &str, of: &[&str]| -> HashMap<(String, u64), HashSet<String>> {
        let mut ids: HashMap<_, HashSet<_>> = HashMap::new();
        for line in notes.lines() {
            let [what, number, id] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            if of.contains(&what) {
                let key = (what.to_owned(), number.parse().unwrap());
                ids.entry(key).or_default().insert(id.to_owned());
            }
        }
        ids
    };
    let enqueued = ids(&notes, &["flow", "batch"]);
    assert!(enqueued.len() > 100, "{}", enqueued.len());
    for ((_, number), ids) in &enqueued {
        for id in ids {
            let flow = mill.flow_handle(id.parse().unwrap());
            let has_succeeded = flow.wait_timeout(PATIENCE);
            assert_eq!(
                has_succeeded.unwrap(),
                !is_bad(*number),
                "{}",
                flow.tree().unwrap()
            );
        }
    }
    let notes = std::fs::read_to_string(dir.path().join("notes")).unwrap();
    let ran = ids(&notes, &["whole", "success", "complete", "death"]);
    let count = |what: &str, number| ran.get(&(what.to_owned(), number)).map_or(0, HashSet::len);
    for (what, number) in enqueued.keys() {
        let (good, bad) = match is_bad(*number) {
            true => (0, 1),
            false => (1, 0),
        };
        if what == "flow" {
            assert_eq!(count("whole", *number), good, "flow {number}");
        } else {
            let counts = ["success", "death", "complete"].map(|what| count(what, *number));
            assert_eq!(counts, [good, bad, 1], "batch {number}");
        }
    }
    let _ = pool.shutdown(secs(60));
}
