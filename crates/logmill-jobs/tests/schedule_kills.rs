//! Each tick of a schedule once, and none lost, while the process is killed.

mod killing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use logmill_jobs::{
    Backoff, Context, Job, JobId, JobResult, Mill, Misfire, Schedule, State, Workers, secs,
};
use serde::{Deserialize, Serialize};

const DIRECTORY: &str = "LOGMILL_JOBS_SCHEDULE_KILLS";
const PATIENCE: Duration = Duration::from_secs(60);
const LIVES: u64 = 12;
/// A thousand of them, as many as are made up for, take longer than all lives.
const PERIOD: Duration = Duration::from_millis(50);
const IDS: [&str; 3] = ["one", "two", "three"];

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "count", max_retries = 100, backoff = Backoff::fixed(Duration::ZERO))]
struct Count;

/// The jobs that had each tick.
type Seen = Arc<Mutex<BTreeMap<(String, SystemTime), Vec<JobId>>>>;

fn count(_: Count, State(seen): State<Seen>, cx: Context) -> JobResult {
    let (id, tick) = cx.scheduled().ok_or("not scheduled")?;
    let mut seen = seen.lock().unwrap();
    let jobs = seen.entry((id.to_owned(), tick)).or_default();
    if !jobs.contains(cx.id()) {
        jobs.push(cx.id().clone());
    }
    Ok(())
}

fn schedule() -> Schedule {
    let origin = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let every = Schedule::every(PERIOD);
    every.starts_at(origin).misfire(Misfire::All(1000))
}

/// Has schedules run until it is killed. No worker takes their jobs, so that all are there at the end.
#[test]
#[ignore = "run by the other test"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY).expect("run by the other test"));
    let mill = Mill::open(dir.join("jobs")).unwrap();
    let ticks = || {
        let schedules = mill.schedules().unwrap();
        let ticks = schedules.iter().map(|one| one.runs + one.skipped);
        ticks.sum::<u64>()
    };
    let before = ticks();
    loop {
        for id in IDS {
            mill.job(Count).schedule(id, schedule()).unwrap();
        }
        let single = schedule().unless_running();
        let job = mill.job(Count).queue("singles");
        job.schedule("single", single).unwrap();
        // The first tick of a life is the slowest.
        if ticks() > before + 8 {
            std::fs::write(dir.join("begun"), std::process::id().to_string()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn begun_by(dir: &Path) -> Option<u32> {
    let written = std::fs::read_to_string(dir.join("begun")).ok()?;
    written.parse().ok()
}

#[test]
fn each_tick_is_enqueued_once_and_none_is_lost_however_often_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..LIVES {
        killing::kill(
            &[(DIRECTORY, dir.path().to_str().unwrap())],
            |child| begun_by(dir.path()) == Some(child),
            Duration::from_millis(3 + life * 53 % 97),
        );
    }

    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    // Each enqueue and its count are one step.
    let mut runs = 0;
    for id in IDS {
        assert!(mill.pause_schedule(id).unwrap());
        runs += mill.schedule(id).unwrap().unwrap().runs;
    }
    // Never a second one beside the first, whose number may not have been noted.
    let single = mill.schedule("single").unwrap().unwrap();
    let singles = mill.queue("singles").unwrap().stats().unwrap();
    assert_eq!((single.runs, singles.ready), (1, 1));
    assert!(single.skipped > 0);
    let seen = Seen::default();
    let pool = Workers::new(Arc::clone(&seen))
        .on(count)
        .start(&mill)
        .unwrap();
    let count = || seen.lock().unwrap().len() as u64;
    let start = Instant::now();
    while count() < runs {
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {runs} ticks are there",
            count()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // None is left that nobody has counted.
    let default = mill.queue("default").unwrap();
    while default.stats().unwrap().ready > 0 {
        assert!(start.elapsed() < PATIENCE, "jobs are left");
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = pool.shutdown(secs(60));
    assert_eq!(count(), runs);
    let seen = seen.lock().unwrap();
    for id in IDS {
        let ticks: Vec<_> = seen.iter().filter(|((of, _), _)| of == id).collect();
        assert!(ticks.len() > 20, "{id} has {} ticks", ticks.len());
        for ((_, tick), jobs) in &ticks {
            assert_eq!(jobs.len(), 1, "{id} at {tick:?}");
        }
        for pair in ticks.windows(2) {
            let (former, next) = (pair[0].0.1, pair[1].0.1);
            let gap = next.duration_since(former).unwrap();
            assert_eq!(gap, PERIOD, "{id} after {former:?}");
        }
    }
}
