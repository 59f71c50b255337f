//! Handlers whose process dies: of itself, again and again, or killed while it shuts down.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use logmill_jobs::{
    Chunk, ChunkOptions, Context, Job, JobResult, Mill, Pool, State, Status, Workers, hours, secs,
};
use serde::{Deserialize, Serialize};

const DIRECTORY: &str = "LOGMILL_JOBS_KILLED";
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "poison", max_retries = 0)]
struct Poison;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "short", queue = "short", output = u32)]
struct Short;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "long", queue = "long", output = String, max_retries = 0)]
struct Long;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "many", queue = "many", max_retries = 0)]
struct Many;

#[derive(Clone)]
struct App {
    dir: PathBuf,
    is_child: bool,
}

impl App {
    fn note(&self, what: &str) {
        let path = self.dir.join("notes");
        let mut options = OpenOptions::new();
        let mut notes = options.create(true).append(true).open(path).unwrap();
        notes.write_all(format!("{what}\n").as_bytes()).unwrap();
    }
}

fn notes(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("notes")).unwrap_or_default()
}

fn poison(_: Poison, State(app): State<App>) -> JobResult {
    app.note("poison");
    std::process::abort()
}

fn short(_: Short, State(app): State<App>) -> JobResult<u32> {
    app.note("short");
    Ok(7)
}

fn long(_: Long, State(app): State<App>, cx: Context) -> JobResult<String> {
    app.note("long");
    if app.is_child {
        loop {
            std::thread::sleep(secs(1));
        }
    }
    Ok(format!(
        "attempt {}, crashes {}",
        cx.attempt(),
        cx.crashes()
    ))
}

fn many(chunk: Chunk<Many>, State(app): State<App>) -> JobResult {
    let crashes: Vec<_> = chunk.iter().map(|one| one.context().crashes()).collect();
    app.note(&format!("many {crashes:?}"));
    if app.is_child {
        loop {
            std::thread::sleep(secs(1));
        }
    }
    Ok(())
}

fn start(dir: &Path, is_child: bool) -> (Mill, Pool) {
    let mill = Mill::open(dir.join("jobs")).unwrap();
    let app = App {
        dir: dir.to_owned(),
        is_child,
    };
    let chunks = ChunkOptions::up_to(3).within(hours(1));
    let workers = Workers::new(app).on(poison).on(short).on(long);
    let pool = workers
        .on_chunk(many, chunks)
        .threads(2)
        .start(&mill)
        .unwrap();
    (mill, pool)
}

fn until(what: &str, is_true: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn run(name: &str, dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture"])
        .env(DIRECTORY, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os(DIRECTORY).expect("run by another test"))
}

/// Works until the job is dead.
#[test]
#[ignore = "run by another test"]
fn child_with_poison() {
    let (mill, pool) = start(&directory(), true);
    let queue = mill.queue("default").unwrap();
    until("it is dead", || queue.stats().unwrap().dead == 1);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    mill.close().unwrap();
}

/// A job that kills its process whenever it runs.
#[test]
fn a_poison_job_is_dead_after_the_limit_of_crashes_with_a_reason_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let id = mill.enqueue(Poison).unwrap().id().clone();
    mill.close().unwrap();
    let lives = (1..=10).find(|_| {
        let mut child = run("child_with_poison", dir.path());
        child.wait().unwrap().success()
    });
    assert_eq!(lives, Some(4), "three died, and the fourth had peace");
    assert_eq!(notes(dir.path()).matches("poison").count(), 3);

    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let dead = mill.queue("default").unwrap().dead_jobs().unwrap();
    assert_eq!(dead.len(), 1);
    // These were crashes, and no failed attempts.
    assert_eq!(
        (&dead[0].id, dead[0].attempts, dead[0].crashes),
        (&id, 0, 3)
    );
    let why = "the process died with this job in a handler, 3 times";
    assert_eq!(dead[0].reason(), why);
    let reason = why.to_owned();
    assert_eq!(mill.status(&id).unwrap(), Status::Dead { reason });
}

/// Completes a job, and is killed as it shuts down while another one runs.
#[test]
#[ignore = "run by another test"]
fn child_that_shuts_down() {
    let dir = directory();
    let (mill, pool) = start(&dir, true);
    let done = mill.enqueue(Short).unwrap();
    done.wait_timeout(PATIENCE).unwrap();
    let running = mill.enqueue(Long).unwrap();
    until("it runs", || notes(&dir).contains("long"));
    let app = App {
        dir,
        is_child: true,
    };
    app.note(&format!("ids {} {}", done.id(), running.id()));
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_kill_during_a_shutdown_loses_no_job_that_runs_and_repeats_none_that_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = run("child_that_shuts_down", dir.path());
    until("it shuts down", || notes(dir.path()).contains("ids"));
    assert_eq!(child.try_wait().unwrap(), None, "it died by itself");
    child.kill().unwrap();
    child.wait().unwrap();

    let said = notes(dir.path());
    let ids = said.lines().find(|line| line.starts_with("ids")).unwrap();
    let ids: Vec<_> = ids.split(' ').skip(1).collect();
    let (mill, pool) = start(dir.path(), false);
    // Its kind has no retries: the death of the process is not its failure.
    let long = mill.handle::<Long>(ids[1].parse().unwrap());
    let result = long.wait_timeout(PATIENCE).unwrap();
    assert_eq!(result, "attempt 1, crashes 1");
    let short = mill.handle::<Short>(ids[0].parse().unwrap());
    assert_eq!(short.try_result().unwrap(), Some(7));
    let said = notes(dir.path());
    let count = |what: &str| said.lines().filter(|line| *line == what).count();
    assert_eq!((count("short"), count("long")), (1, 2));
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

/// Is killed while one chunk runs and another one waits.
#[test]
#[ignore = "run by another test"]
fn child_with_chunks() {
    let dir = directory();
    let (mill, _pool) = start(&dir, true);
    let handles = mill.enqueue_all((0..5).map(|_| Many)).unwrap();
    let is_running = |status| matches!(status, Status::Running { .. });
    until("all are taken", || {
        let mut handles = handles.iter();
        handles.all(|handle| is_running(handle.status().unwrap()))
    });
    until("one chunk runs", || notes(&dir).contains("many"));
    let app = App {
        dir,
        is_child: true,
    };
    app.note("taken");
    until("it is killed", || false);
}

#[test]
fn a_kill_while_chunks_run_and_wait_has_all_their_jobs_delivered_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = run("child_with_chunks", dir.path());
    until("its jobs are taken", || notes(dir.path()).contains("taken"));
    child.kill().unwrap();
    child.wait().unwrap();

    let (mill, pool) = start(dir.path(), false);
    mill.enqueue_all((0..3).map(|_| Many)).unwrap();
    until("all are done", || {
        mill.queue("many").unwrap().stats().unwrap().completed == 8
    });
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    // Those that come again run alone, so that one which kills its process takes no others with it.
    let said = notes(dir.path());
    let again = said.lines().skip_while(|line| *line != "taken").skip(1);
    let mut again: Vec<_> = again.collect();
    again.sort_unstable();
    assert_eq!(again[0], "many [0, 0, 0]");
    assert_eq!(again[1..], ["many [1]"; 5]);
}
