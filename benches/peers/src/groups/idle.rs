//! The cost of an idle queue, and how fast it wakes up.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use logmill::{Failure, Job, Queue};
use rustix::time::{ClockId, clock_gettime};

use crate::contender::{Comparison, Contender, Figures, Outcome};
use crate::context::Context;
use crate::format::Unit;
use crate::peers::logmill::PROCESS;
use crate::statistics::quantile;

/// How long an idle queue is watched.
const WATCH: Duration = Duration::from_secs(10);
/// Rounds of watching: seven would take minutes, and a sum over ten seconds varies little.
const WATCH_ROUNDS: usize = 3;
/// Idle workers.
const WORKERS: usize = 2;
/// Wake-ups in a turn.
const WAKE_UPS: usize = 200;
/// Without work for this long, a thread is asleep: a worker looks for jobs for some tens of
/// microseconds.
const ASLEEP: Duration = Duration::from_millis(3);

pub fn run(context: &Context) -> Result<Vec<Outcome>> {
    Ok(vec![
        cpu_time(context)?.run(context),
        wake_up(context)?.run(context),
    ])
}

fn cpu_time(context: &Context) -> Result<Comparison> {
    let watch = context.pace.pick(WATCH, Duration::from_secs(1));
    let dir = context.fresh()?;
    let with_queue: Figures = Box::new(move || {
        let (queue, _) = Queue::builder(dir.path()).open()?;
        let workers = queue
            .workers(WORKERS)
            .run(|_: &Job<'_>| Ok::<(), Failure>(()))?;
        // After an open, the maintenance thread has work for a while.
        thread::sleep(Duration::from_millis(500));
        let used = cpu_time_of(watch);
        workers.shutdown(Duration::from_secs(1));
        queue.close()?;
        Ok(vec![used])
    });
    let without: Figures = Box::new(move || Ok(vec![cpu_time_of(watch)]));
    Ok(Comparison {
        name: "idle/cpu".to_owned(),
        title: format!("CPU time of an idle queue over {} s", watch.as_secs()),
        note: format!(
            "CPU time of the whole process while it sleeps, with an open queue and a pool of \
             {WORKERS} workers, or without a queue."
        ),
        unit: Unit::Nanoseconds,
        figures: &["CPU time"],
        rounds: Some(WATCH_ROUNDS),
        contenders: vec![
            Contender::figures("logmill, 2 idle workers", PROCESS, Ok(with_queue)),
            Contender::figures("no queue", "-", Ok(without)),
        ],
    })
}

/// CPU time of this process during `watch`, in nanoseconds.
fn cpu_time_of(watch: Duration) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let before = now();
    thread::sleep(watch);
    now() - before
}

fn wake_up(context: &Context) -> Result<Comparison> {
    let wake_ups = context.pace.pick(WAKE_UPS, 50);
    Ok(Comparison {
        name: "idle/wake-up".to_owned(),
        title: "Wake-up of a sleeping worker".to_owned(),
        note: format!(
            "Time from before the enqueue until the handler starts: median and 99th percentile of \
             {wake_ups} wake-ups per turn. *park and unpark* wakes a parked thread, with a futex. \
             Sleepers had {} ms to fall asleep.",
            ASLEEP.as_millis()
        ),
        unit: Unit::Nanoseconds,
        figures: &["median", "p99"],
        rounds: None,
        contenders: vec![
            Contender::figures("logmill", PROCESS, wake_worker(context, wake_ups)),
            Contender::figures("park and unpark", "-", wake_thread(wake_ups)),
        ],
    })
}

fn wake_worker(context: &Context, wake_ups: usize) -> Result<Figures> {
    let dir = context.fresh()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    let (started, starts) = mpsc::channel();
    let workers = queue
        .workers(1)
        .run(move |_: &Job<'_>| started.send(Instant::now()).map_err(Failure::dead_letter))?;
    Ok(Box::new(move || {
        let _keep = (&dir, &workers);
        wake(
            wake_ups,
            || Ok(queue.enqueue(b"wake up").map(|_| ())?),
            &starts,
        )
    }))
}

fn wake_thread(wake_ups: usize) -> Result<Figures> {
    let (woken, wakes) = mpsc::channel();
    // Ends when nothing receives any more.
    let sleeper = thread::spawn(move || {
        loop {
            thread::park();
            if woken.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    Ok(Box::new(move || {
        let unpark = || {
            sleeper.thread().unpark();
            Ok(())
        };
        wake(wake_ups, unpark, &wakes)
    }))
}

/// Wakes a thread up again and again, which reports the time when it was awake.
fn wake(
    wake_ups: usize,
    call: impl Fn() -> Result<()>,
    woken: &mpsc::Receiver<Instant>,
) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(wake_ups);
    for _ in 0..wake_ups {
        thread::sleep(ASLEEP);
        let start = Instant::now();
        call()?;
        let time = woken.recv()?.saturating_duration_since(start);
        times.push(time.as_nanos() as f64);
    }
    Ok([0.5, 0.99]
        .iter()
        .filter_map(|share| quantile(&times, *share))
        .collect())
}
