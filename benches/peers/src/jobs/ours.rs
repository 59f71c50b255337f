//! logmill-jobs in the scenario `jobs`: producer and workers in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use logmill_jobs::{Job, JobResult, Mill, Pool, State, Workers};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::context::Context;

/// Jobs of a call of `enqueue_all`, and of the peers' calls for several.
pub const BULK: u64 = 1000;
/// Jobs before the clock starts, as many as the peers' workers get.
const WARM_UP: u64 = 20;
/// How long a turn may go on without any job's end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a job as JSON.
const SIZE: usize = 64;

#[derive(Clone, Serialize, Deserialize, Job)]
#[job(kind = "touch")]
pub struct Touch {
    number: u64,
    /// When it was enqueued, or when it is due.
    at: u64,
    text: String,
}

/// What the handler notes.
pub struct Tally {
    runs: Vec<AtomicU8>,
    /// How long after the job's time it began; of no use while throughput is measured.
    after: Option<Vec<AtomicU64>>,
    done: AtomicU64,
}

impl Tally {
    pub fn new(jobs: u64, keeps_times: bool) -> Arc<Self> {
        Arc::new(Self {
            runs: (0..jobs).map(|_| AtomicU8::new(0)).collect(),
            after: keeps_times.then(|| (0..jobs).map(|_| AtomicU64::new(0)).collect()),
            done: AtomicU64::new(0),
        })
    }

    fn note(&self, job: &Touch) {
        let number = job.number as usize;
        if let Some(after) = self.after.as_ref().and_then(|after| after.get(number)) {
            after.store(now().saturating_sub(job.at), Ordering::Relaxed);
        }
        if let Some(runs) = self.runs.get(number) {
            runs.fetch_add(1, Ordering::Relaxed);
        }
        // Release: pairs with the load in `wait_for`, after which the others are read.
        self.done.fetch_add(1, Ordering::Release);
    }

    /// Waits until so many are done.
    pub fn wait_for(&self, jobs: u64) -> Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let done = self.done.load(Ordering::Acquire);
            if done >= jobs {
                return Ok(());
            }
            if done > last.0 {
                last = (done, Instant::now());
            }
            ensure!(last.1.elapsed() < PATIENCE, "{done} of {jobs} jobs ended");
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Checks that each job ran once.
    pub fn check(&self) -> Result<()> {
        for (number, runs) in self.runs.iter().enumerate() {
            let runs = runs.load(Ordering::Relaxed);
            ensure!(runs == 1, "job {number} ran {runs} times");
        }
        Ok(())
    }

    /// How long after their times the jobs from this number on began, in nanoseconds.
    pub fn times_from(&self, first: u64) -> Vec<f64> {
        let after = self.after.iter().flatten().skip(first as usize);
        after
            .map(|time| time.load(Ordering::Relaxed) as f64)
            .collect()
    }
}

/// What differs between the rows of logmill-jobs.
#[derive(Clone, Copy, Default)]
pub struct Setup {
    pub bulk: bool,
    pub sync: bool,
    /// Threads of the workers, if not one for each core.
    pub threads: Option<usize>,
}

/// A text that gives a job its size.
pub fn text() -> Result<String> {
    let bare = Touch {
        number: 1_000_000,
        at: now(),
        text: String::new(),
    };
    let length = serde_json::to_string(&bare)?.len();
    Ok("x".repeat(SIZE.saturating_sub(length)))
}

pub fn touch(number: u64, at: u64, text: &str) -> Touch {
    Touch {
        number,
        at,
        text: text.to_owned(),
    }
}

fn produce(mill: &Mill, setup: Setup, first: u64, jobs: u64, text: &str) -> Result<()> {
    let end = first + jobs;
    if setup.bulk {
        for batch in (first..end).step_by(BULK as usize) {
            let numbers = batch..end.min(batch + BULK);
            mill.enqueue_all(numbers.map(|number| touch(number, now(), text)))?;
        }
    } else {
        for number in first..end {
            mill.enqueue(touch(number, now(), text))?;
        }
    }
    Ok(())
}

pub fn start(mill: &Mill, setup: Setup, tally: &Arc<Tally>) -> Result<Pool> {
    let handler = |job: Touch, State(tally): State<Arc<Tally>>| -> JobResult {
        tally.note(&job);
        Ok(())
    };
    let mut workers = Workers::new(Arc::clone(tally)).on(handler);
    if let Some(threads) = setup.threads {
        workers = workers.threads(threads);
    }
    workers.start(mill).context("starting the workers")
}

pub fn stop(mill: Mill, pool: Pool) -> Result<()> {
    ensure!(pool.shutdown(PATIENCE).finished_in_time, "workers go on");
    Ok(mill.close()?)
}

/// Nanoseconds for each enqueue. The jobs are run afterwards, to see that they are all there.
pub fn enqueue(context: &Context, setup: Setup, jobs: u64) -> Result<Vec<f64>> {
    let dir = context.fresh()?;
    let mill = Mill::builder(dir.path().join("jobs"))
        .sync(setup.sync)
        .open()?;
    let (text, tally) = (text()?, Tally::new(jobs, false));
    let started = Instant::now();
    produce(&mill, setup, 0, jobs, &text)?;
    let took = started.elapsed();
    let pool = start(&mill, setup, &tally)?;
    tally.wait_for(jobs)?;
    stop(mill, pool)?;
    tally.check()?;
    Ok(vec![took.as_nanos() as f64 / jobs as f64])
}

/// Nanoseconds for each job, from the first enqueue to the last completion.
pub fn end_to_end(context: &Context, setup: Setup, jobs: u64) -> Result<Vec<f64>> {
    let dir = context.fresh()?;
    let mill = Mill::builder(dir.path().join("jobs"))
        .sync(setup.sync)
        .open()?;
    let (text, tally) = (text()?, Tally::new(WARM_UP + jobs, false));
    let pool = start(&mill, setup, &tally)?;
    produce(&mill, setup, 0, WARM_UP, &text)?;
    tally.wait_for(WARM_UP)?;
    let started = Instant::now();
    produce(&mill, setup, WARM_UP, jobs, &text)?;
    tally.wait_for(WARM_UP + jobs)?;
    let took = started.elapsed();
    stop(mill, pool)?;
    tally.check()?;
    Ok(vec![took.as_nanos() as f64 / jobs as f64])
}

/// Nanoseconds from each enqueue to the handler, at so many jobs a second.
pub fn latencies(context: &Context, jobs: u64, rate: u64) -> Result<Vec<f64>> {
    let dir = context.fresh()?;
    let mill = Mill::open(dir.path().join("jobs"))?;
    let (text, tally) = (text()?, Tally::new(WARM_UP + jobs, true));
    let pool = start(&mill, Setup::default(), &tally)?;
    produce(&mill, Setup::default(), 0, WARM_UP, &text)?;
    tally.wait_for(WARM_UP)?;
    let started = Instant::now();
    for sent in 0..jobs {
        let due = started + Duration::from_secs(sent) / rate as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        mill.enqueue(touch(WARM_UP + sent, now(), &text))?;
    }
    tally.wait_for(WARM_UP + jobs)?;
    stop(mill, pool)?;
    tally.check()?;
    Ok(tally.times_from(WARM_UP))
}

/// Nanoseconds of the monotonic clock, which all processes share.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
