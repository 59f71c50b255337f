//! Exactly once for what the mill stores, while the process is killed: what follows a completion is
//! there once, a unique key has one job, a result is that of its job.

mod killing;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use logmill_jobs::{
    Backoff, Context, Job, JobId, JobResult, Mill, Outcome, Pool, Priority, State, Workers, secs,
};
use serde::{Deserialize, Serialize};

use killing::{LEAST, length};

const DIRECTORY: &str = "LOGMILL_JOBS_KILLS";
const PATIENCE: Duration = Duration::from_secs(60);
const LIVES: u64 = 12;

/// The first of a chain of three, each of which follows the one before.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "order", output = u64, max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Order {
    number: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "parcel", queue = "parcels", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Parcel {
    number: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "mail", queue = "mails", priority = Priority::High, max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Mail {
    number: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "index", unique = "shop", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Index {
    shop: u64,
}

/// What the processes note of what happened, which survives them.
#[derive(Clone)]
struct Notes {
    file: Arc<Mutex<File>>,
    /// Shops whose index is being built.
    indexing: Arc<Mutex<HashSet<u64>>>,
}

impl Notes {
    fn open(dir: &Path) -> Self {
        let path = dir.join("notes");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        Self {
            file: Arc::new(Mutex::new(file)),
            indexing: Arc::default(),
        }
    }

    fn note(&self, what: &str, number: u64, id: &JobId) {
        let line = format!("{what} {number} {id}\n");
        self.file
            .lock()
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
    }
}

fn order(job: Order, State(notes): State<Notes>, cx: Context) -> JobResult<u64> {
    notes.note("order", job.number, cx.id());
    cx.then(Parcel { number: job.number })?;
    Ok(job.number * 10)
}

fn parcel(job: Parcel, State(notes): State<Notes>, cx: Context) -> JobResult {
    notes.note("parcel", job.number, cx.id());
    // Its label is printed by one attempt at most, unless the process dies before that is stored.
    let label: String = cx.step("label", || Ok(format!("{}", cx.id())))?;
    assert_eq!(label, cx.id().to_string());
    cx.then(Mail { number: job.number })?;
    match job.number.is_multiple_of(7) && cx.attempt() == 1 {
        true => Err("no lorry")?,
        false => Ok(()),
    }
}

fn mail(job: Mail, State(notes): State<Notes>, cx: Context) -> JobResult {
    notes.note("mail", job.number, cx.id());
    Ok(())
}

fn index(job: Index, State(notes): State<Notes>) -> JobResult {
    let is_only = notes.indexing.lock().unwrap().insert(job.shop);
    assert!(is_only, "two jobs with one key run at the same time");
    std::thread::yield_now();
    notes.indexing.lock().unwrap().remove(&job.shop);
    Ok(())
}

fn start(dir: &Path) -> (Mill, Pool, Notes) {
    let mill = Mill::open(dir.join("jobs")).unwrap();
    let notes = Notes::open(dir);
    let workers = Workers::new(notes.clone())
        .on(order)
        .on(parcel)
        .on(mail)
        .on(index);
    let pool = workers.threads(3).start(&mill).unwrap();
    (mill, pool, notes)
}

/// Enqueues and works until it is killed.
#[test]
#[ignore = "run by the other test"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY).expect("run by the other test"));
    let (mill, _pool, notes) = start(&dir);
    let first = u64::from(std::process::id()) * 1_000_000;
    for number in first.. {
        let handle = mill.enqueue(Order { number }).unwrap();
        notes.note("enqueued", number, handle.id());
        let _ = mill.enqueue(Index { shop: number % 3 }).unwrap();
        if number % 16 == 0 {
            let result = handle.wait_timeout(PATIENCE).unwrap();
            assert_eq!(result, number * 10);
        }
    }
}

#[test]
fn what_follows_is_there_exactly_once_however_often_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..LIVES {
        // The death comes soon after the first, or when more has happened.
        let noted = length(dir.path()) + life % 3 * 1500;
        killing::kill(
            &[(DIRECTORY, dir.path().to_str().unwrap())],
            |_| length(dir.path()) > noted + LEAST,
            Duration::from_millis(3 + life * 53 % 97),
        );
    }

    // The rest is done in peace.
    let (mill, pool, _) = start(dir.path());
    let is_done = || {
        ["default", "parcels", "mails"].iter().all(|name| {
            let stats = mill.queue(name).unwrap().stats().unwrap();
            stats.left() == 0
        })
    };
    let start = Instant::now();
    while !is_done() {
        assert!(start.elapsed() < PATIENCE, "jobs are left");
        std::thread::sleep(Duration::from_millis(5));
    }
    let notes = std::fs::read_to_string(dir.path().join("notes")).unwrap();
    let mut seen: HashMap<(&str, u64), HashSet<&str>> = HashMap::new();
    let lines: Vec<Vec<&str>> = notes
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    for line in &lines {
        let number = line[1].parse().unwrap();
        seen.entry((line[0], number)).or_default().insert(line[2]);
    }
    let enqueued = lines.iter().filter(|line| line[0] == "enqueued").count();
    assert!(enqueued > 100, "{enqueued}");
    for line in lines.iter().filter(|line| line[0] == "order") {
        let number: u64 = line[1].parse().unwrap();
        for what in ["order", "parcel", "mail"] {
            let ids = seen.get(&(what, number)).map_or(0, HashSet::len);
            assert_eq!(ids, 1, "{what} of {number}");
        }
        let handle = mill.handle::<Order>(line[2].parse().unwrap());
        assert_eq!(handle.try_result().unwrap(), Some(number * 10));
    }
    for line in lines.iter().filter(|line| line[0] == "enqueued") {
        let number: u64 = line[1].parse().unwrap();
        assert!(seen.contains_key(&("order", number)), "{number} is lost");
    }
    for queue in ["default", "parcels", "mails"] {
        assert_eq!(mill.queue(queue).unwrap().dead_jobs().unwrap(), []);
    }

    // No key is left behind by a job that has ended.
    let _ = pool.shutdown(secs(60));
    for shop in 0..3 {
        let handle = mill.enqueue(Index { shop }).unwrap();
        assert_eq!(handle.outcome(), Outcome::New);
    }
}
