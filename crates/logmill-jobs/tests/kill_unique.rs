//! What calls have changed of jobs, while the process is killed: the newest arguments of a key run
//! exactly once, an edited job runs in its new form only, and a cancel that has returned holds.

mod killing;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use logmill_jobs::{
    Backoff, Context, Job, JobResult, Mill, Outcome, Pool, State, Unique, Workers, hours,
};
use serde::{Deserialize, Serialize};

use killing::length;

const DIRECTORY: &str = "LOGMILL_JOBS_KILL_UNIQUE";
const PATIENCE: Duration = Duration::from_secs(120);
const LIVES: u64 = 10;
const KEYS: u64 = 3;

/// Its newest arguments run, whether it waits or runs.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "latest", queue = "latest", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Latest {
    key: u64,
    number: u64,
}

/// Put off by each call.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "debounced", queue = "debounced", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Debounced {
    number: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "edited", queue = "edited", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Edited {
    number: u64,
    is_new: bool,
}

/// Runs until it is told to stop.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "endless", queue = "endless", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Endless {
    number: u64,
}

/// What the processes note of what happened, which survives them.
#[derive(Clone)]
struct Notes {
    file: Arc<Mutex<File>>,
    /// The keys of which a job runs.
    running: Arc<Mutex<HashMap<u64, u64>>>,
}

impl Notes {
    fn open(dir: &Path) -> Self {
        let path = dir.join("notes");
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self {
            file: Arc::new(Mutex::new(file.unwrap())),
            running: Arc::default(),
        }
    }

    fn note(&self, what: &str, key: u64, number: u64) {
        let line = format!("{what} {key} {number}\n");
        self.file
            .lock()
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
    }
}

fn latest(job: Latest, State(notes): State<Notes>) -> JobResult {
    let before = notes.running.lock().unwrap().insert(job.key, job.number);
    assert_eq!(before, None, "two jobs with one key run at the same time");
    notes.note("ran", job.key, job.number);
    std::thread::sleep(Duration::from_micros(job.number % 7 * 100));
    notes.running.lock().unwrap().remove(&job.key);
    Ok(())
}

fn debounced(job: Debounced, State(notes): State<Notes>) -> JobResult {
    notes.note("ran", 100, job.number);
    Ok(())
}

fn edited(job: Edited, State(notes): State<Notes>) -> JobResult {
    notes.note(if job.is_new { "new" } else { "old" }, 0, job.number);
    Ok(())
}

fn endless(job: Endless, State(notes): State<Notes>, cx: Context) -> JobResult {
    notes.note("endless", 0, job.number);
    while !cx.is_stopping() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Interrupted, so that it would come again if it were not cancelled.
    Err("interrupted")?
}

fn start(dir: &Path) -> (Mill, Pool, Notes) {
    let mill = Mill::open(dir.join("jobs")).unwrap();
    let notes = Notes::open(dir);
    let workers = Workers::new(notes.clone())
        .on(latest)
        .on(debounced)
        .on(edited)
        .on(endless);
    let pool = workers.threads(4).start(&mill).unwrap();
    (mill, pool, notes)
}

/// Calls until it is killed.
#[test]
#[ignore = "run by the other test"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY).expect("run by the other test"));
    let (mill, _pool, notes) = start(&dir);
    let first = u64::from(std::process::id()) * 1_000_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in first.. {
                let key = number % KEYS;
                let job = mill.job(Latest { key, number });
                let unique = Unique::by(key.to_string()).keep_latest();
                job.unique(unique).enqueue().unwrap();
                notes.note("called", key, number);
                let unique = Unique::by("x").debounce(Duration::from_millis(3));
                let job = mill.job(Debounced { number }).unique(unique);
                job.enqueue().unwrap();
                notes.note("called", 100, number);
            }
        });
        scope.spawn(|| {
            for number in first.. {
                let is_new = false;
                let job = mill.job(Edited { number, is_new }).after(hours(1));
                let handle = job.enqueue().unwrap();
                let edited = Edited {
                    number,
                    is_new: true,
                };
                notes.note("edits", 0, number);
                handle.edit().arguments(&edited).now().apply().unwrap();
                notes.note("edited", 0, number);
            }
        });
        scope.spawn(|| {
            for number in first.. {
                let handle = mill.enqueue(Endless { number }).unwrap();
                std::thread::sleep(Duration::from_millis(number % 3));
                handle.cancel("enough").unwrap();
                notes.note("cancelled", 0, number);
                let _ = handle.wait_timeout(PATIENCE);
            }
        });
    });
}

#[test]
fn the_newest_arguments_an_edit_and_a_cancel_survive_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    for life in 0..LIVES {
        // Flushes take their time: every other life gets so far that an edit is done.
        let seen = |what: &str| {
            let notes = std::fs::read_to_string(dir.path().join("notes")).unwrap_or_default();
            notes.lines().filter(|line| line.starts_with(what)).count()
        };
        let what = if life % 2 == 0 { "called" } else { "edited" };
        let before = seen(what);
        killing::kill(
            &[(DIRECTORY, dir.path().to_str().unwrap())],
            |_| seen(what) > before,
            Duration::from_millis(5 + life * 53 % 197),
        );
        lives.push(length(dir.path()));
    }

    // Edits that were interrupted before they were stored leave their jobs for an hour: all others end.
    let (mill, pool, _) = start(dir.path());
    let is_idle = |name: &str, waiting: u64| {
        let stats = mill.queue(name).unwrap().stats().unwrap();
        stats.left() == stats.delayed && stats.delayed <= waiting
    };
    let begun = Instant::now();
    while !(is_idle("latest", 0) && is_idle("debounced", 0) && is_idle("edited", LIVES)) {
        assert!(begun.elapsed() < PATIENCE, "jobs are left");
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = std::fs::read_to_string(dir.path().join("notes")).unwrap();
    let mut offset = 0;
    let mut called: HashMap<u64, (u64, u64)> = HashMap::new();
    let mut ran: HashMap<(u64, u64), Vec<u64>> = HashMap::new();
    let mut edits: HashMap<(&str, u64), u32> = HashMap::new();
    let mut endless: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut cancelled = HashMap::new();
    for line in text.lines() {
        offset += line.len() as u64 + 1;
        let parts: Vec<_> = line.split(' ').collect();
        let (key, number) = (parts[1].parse().unwrap(), parts[2].parse().unwrap());
        match parts[0] {
            "called" => drop(called.insert(key, (number, offset))),
            "ran" => ran.entry((key, number)).or_default().push(offset),
            "endless" => endless.entry(number).or_default().push(offset),
            "cancelled" => drop(cancelled.insert(number, offset)),
            what => *edits.entry((what, number)).or_default() += 1,
        }
    }
    assert_eq!(called.len() as u64, KEYS + 1);
    for (key, (number, _)) in &called {
        // The next call may have been stored before its process could note it.
        let next = if *key == 100 { 1 } else { KEYS };
        let last = ran.contains_key(&(*key, *number)) || ran.contains_key(&(*key, number + next));
        assert!(last, "the newest arguments of {key} did not run: {number}");
    }
    let lives_of = |offsets: &[u64]| {
        let mut lives: Vec<_> = offsets
            .iter()
            .map(|at| {
                lives
                    .iter()
                    .position(|end| at <= end)
                    .unwrap_or(lives.len())
            })
            .collect();
        lives.sort_unstable();
        lives
    };
    for ((key, number), times) in &ran {
        // Once in each life at the most: an attempt that was killed comes again.
        let mut lives = lives_of(times);
        lives.dedup();
        assert_eq!(
            lives.len(),
            times.len(),
            "{number} of {key} ran twice in one life"
        );
    }
    let finished = edits.keys().filter(|(what, _)| *what == "edited").count();
    assert!(finished > 3, "{finished}");
    for (what, number) in edits.keys() {
        assert_ne!(*what, "old", "{number} ran in its former form");
        if *what == "edited" {
            assert!(
                edits.contains_key(&("new", *number)),
                "{number} did not run"
            );
        }
    }
    assert!(cancelled.len() > 3, "{}", cancelled.len());
    for (number, at) in &cancelled {
        let again = endless
            .get(number)
            .into_iter()
            .flatten()
            .filter(|begun| *begun > at);
        // The note of an attempt may come after that of the cancel only in the same life.
        let own = lives_of(&[*at]);
        for begun in again {
            assert_eq!(lives_of(&[*begun]), own, "{number} came back");
        }
    }
    // No key is left behind.
    for key in 0..KEYS {
        let unique = Unique::by(key.to_string()).keep_latest();
        let handle = mill.job(Latest { key, number: 0 }).unique(unique);
        assert_eq!(handle.enqueue().unwrap().outcome(), Outcome::New);
    }
    let _ = pool.shutdown(PATIENCE);
}
