//! What a typed job costs above the engine and serde alone, end to end with one producer and one worker; and
//! what a key and a limit cost.
//!
//! All take turns in one process, another one first in each round, as the machine is another one from minute
//! to minute: a difference is the median of those within the rounds. `cargo bench -p logmill-jobs --bench
//! end_to_end`.

mod common;

use std::env;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{EnqueueOptions, Queues};
use logmill_jobs::{Job, JobResult, Limit, Mill, MillOptions, State, Workers, secs};

use crate::common::{Done, Plain, plain, touch, until};

/// Jobs in a turn, so many that the start of threads does not matter.
const JOBS: u64 = 500_000;
const ROUNDS: usize = 25;

/// One that takes turns: runs so many jobs, and returns how long they took.
struct Contender {
    title: &'static str,
    run: Box<dyn Fn(u64) -> Duration>,
    /// Those that it is compared with, by their places.
    above: &'static [usize],
}

/// The engine with serde, as a program without this crate would use it.
fn engine(jobs: u64) -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let queues = Queues::open(dir.path().join("queues")).expect("queues");
    let queue = queues.queue("default").expect("a queue");
    let (done, stop) = (Done::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let consumer = queue.consumer();
            while let Some(job) = consumer.next_until(None, || stop.load(Ordering::Relaxed)) {
                let plain: Plain = serde_json::from_slice(job.payload()).expect("a job");
                black_box(plain.user);
                job.ack();
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut buffer = Vec::new();
        let start = Instant::now();
        for user in 0..jobs {
            buffer.clear();
            serde_json::to_writer(&mut buffer, &plain(user)).expect("JSON");
            let options = EnqueueOptions::new().name("plain");
            queue.enqueue_with(&buffer, options).expect("room");
        }
        until(&done, jobs);
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        queue.wake_consumers();
        took
    })
}

/// Typed jobs, each made by `make`.
fn typed<J: Job<Output = ()>>(
    jobs: u64,
    options: MillOptions,
    make: impl Fn(u64) -> J,
    user_of: fn(&J) -> u64,
) -> Duration {
    let done = Done::default();
    let count = Arc::clone(&done);
    let handler = move |job: J| -> JobResult {
        black_box(user_of(&job));
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    typed_on(jobs, options, make, &done, Workers::new(()).on(handler))
}

/// The same, by a handler that is given a state, of which each call has a clone.
fn typed_with_state(jobs: u64) -> Duration {
    let done = Done::default();
    let handler = |job: Plain, State(done): State<Done>| -> JobResult {
        black_box(job.user);
        done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let workers = Workers::new(Arc::clone(&done)).on(handler);
    typed_on(jobs, MillOptions::new(), plain, &done, workers)
}

/// Jobs that these workers run and count.
fn typed_on<J: Job, S: Clone + Send + Sync + 'static>(
    jobs: u64,
    options: MillOptions,
    make: impl Fn(u64) -> J,
    done: &Done,
    workers: Workers<S>,
) -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Mill::builder(dir.path().join("jobs")).options(options);
    let mill = builder.open().expect("a mill");
    let pool = workers.threads(1).start(&mill).expect("workers");
    let start = Instant::now();
    for user in 0..jobs {
        mill.enqueue(make(user)).expect("room");
    }
    until(done, jobs);
    let took = start.elapsed();
    assert!(pool.shutdown(secs(60)).finished_in_time);
    mill.close().expect("closed");
    took
}

fn contenders() -> Vec<Contender> {
    let of = |title, above, run: Box<dyn Fn(u64) -> Duration>| Contender { title, run, above };
    let by_key = || Limit::on_kind("touch").by_key();
    let touches = |limit: Option<Limit>| {
        Box::new(move |jobs| {
            let options = MillOptions::new();
            let options = match &limit {
                Some(limit) => options.limit(limit.clone()),
                None => options,
            };
            typed(jobs, options, touch, |job| job.user)
        })
    };
    let at_once = by_key().at_once(100);
    let rate = by_key().rate(1_000_000_000, secs(1)).burst(1_000_000);
    vec![
        of("engine and serde_json", &[], Box::new(engine)),
        of(
            "typed",
            &[0],
            Box::new(|jobs| typed(jobs, MillOptions::new(), plain, |job| job.user)),
        ),
        of(
            "typed, with a state (an Arc)",
            &[0],
            Box::new(typed_with_state),
        ),
        of("typed, with a key", &[0], touches(None)),
        of(
            "with a key and a limit, at once",
            &[0, 3],
            touches(Some(at_once)),
        ),
        of("with a key and a limit, rate", &[0, 3], touches(Some(rate))),
    ]
}

/// The median, the smallest and the largest, in nanoseconds.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values[place];
    let (least, median, most) = (at(0), at(values.len() / 2), at(values.len() - 1));
    format!("{median:.0} ns ({least:.0} to {most:.0})")
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let is_test = args.iter().any(|arg| arg == "--test");
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    if filter.is_some_and(|filter| !"end_to_end".contains(filter.as_str())) {
        return;
    }
    let (jobs, rounds) = if is_test { (1_000, 2) } else { (JOBS, ROUNDS) };
    let contenders = contenders();
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            let took = (contenders[at].run)(jobs);
            times[at].push(took.as_nanos() as f64 / jobs as f64);
        }
    }
    for (contender, own) in contenders.iter().zip(&times) {
        println!("{}: {}", contender.title, spread(own.clone()));
        for &other in contender.above {
            let differences = own
                .iter()
                .zip(&times[other])
                .map(|(own, other)| own - other);
            let differences = spread(differences.collect());
            println!("  above {}: {differences}", contenders[other].title);
        }
    }
}
