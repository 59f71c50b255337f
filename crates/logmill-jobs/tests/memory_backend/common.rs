//! Jobs and helpers that the tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use logmill_jobs::{
    Backoff, Inputs, Job, JobResult, Mill, MillOptions, Pool, State, Workers, discard,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::memory::Memory;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A job that returns its number.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "part", output = u32, max_retries = 2, backoff = Backoff::fixed(Duration::ZERO))]
pub(crate) struct Part(pub(crate) u32);

/// The sum of parts.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "total", inputs = Vec<Part>, output = u32)]
pub(crate) struct Total;

/// A job that fails until the attempt of this number; for ever at 0.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "fails", max_retries = 3, backoff = Backoff::fixed(Duration::from_millis(1)))]
pub(crate) struct Fails(pub(crate) u32);

/// One for each shop.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "rebuild", unique = "shop")]
pub(crate) struct Rebuild {
    pub(crate) shop: u32,
}

/// One for each tenant at the same time, if there is such a limit.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "export", key = "tenant")]
pub(crate) struct Export {
    pub(crate) tenant: u32,
}

/// A job that goes on until it is to stop, or may end.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "long")]
pub(crate) struct Long;

/// What handlers have seen.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) rebuilt: Arc<Mutex<Vec<u32>>>,
    pub(crate) parts: Arc<Mutex<Vec<u32>>>,
    /// The tenants whose jobs run, and the most jobs that ran at once of one.
    pub(crate) exports: Arc<Mutex<(Vec<u32>, usize)>>,
    pub(crate) long: Arc<Mutex<Vec<String>>>,
    pub(crate) may_end: Arc<AtomicBool>,
}

pub(crate) fn workers(seen: &Seen) -> Workers<Seen> {
    Workers::new(seen.clone())
        .on(|Part(number): Part, State(seen): State<Seen>| {
            seen.parts.lock().push(number);
            JobResult::Ok(number)
        })
        .on(|_: Total, Inputs(parts): Inputs<Total>| JobResult::Ok(parts.iter().sum::<u32>()))
        .on(
            |Fails(until): Fails, cx: logmill_jobs::Context| -> JobResult {
                match until {
                    0 => Err(discard("for ever")),
                    until if cx.attempt() < until => Err("not yet")?,
                    _ => Ok(()),
                }
            },
        )
        .on(|job: Rebuild, State(seen): State<Seen>| {
            seen.rebuilt.lock().push(job.shop);
            JobResult::Ok(())
        })
        .on(|job: Export, State(seen): State<Seen>| {
            {
                let mut exports = seen.exports.lock();
                exports.0.push(job.tenant);
                let same = exports.0.iter().filter(|one| **one == job.tenant);
                exports.1 = exports.1.max(same.count());
            }
            std::thread::sleep(Duration::from_millis(2));
            let mut exports = seen.exports.lock();
            let at = exports.0.iter().position(|one| *one == job.tenant);
            at.map(|at| exports.0.swap_remove(at));
            JobResult::Ok(())
        })
        .on(long)
        .threads(3)
}

fn long(_: Long, State(seen): State<Seen>, cx: logmill_jobs::Context) -> JobResult {
    seen.long.lock().push("began".to_owned());
    until("the end", || {
        cx.is_stopping() || seen.may_end.load(Ordering::SeqCst)
    });
    let cause = cx.stop_cause();
    seen.long.lock().push(format!("{cause:?}"));
    cx.check()
}

pub(crate) fn mill(memory: &Memory) -> Mill {
    Mill::with_backend(memory.clone(), MillOptions::new())
}

pub(crate) fn start(mill: &Mill) -> (Pool, Seen) {
    let seen = Seen::default();
    (workers(&seen).start(mill).unwrap(), seen)
}

/// Waits until something is true.
pub(crate) fn until(what: &str, is_true: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until no job of any queue is left.
pub(crate) fn until_done(mill: &Mill) {
    until("no job is left", || {
        let names = mill.queue_names().unwrap();
        names.iter().all(|name| {
            let queue = mill.queue(name).unwrap();
            queue.stats().unwrap().left() == 0
        })
    });
}
