//! One turn of one contender: a generator on one core, a consumer on the other.

use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::contenders::{self, Contender, Empty, Receive, Send};
use super::generator::{Generator, NoWatch, Sent, Watch, intended_time};
use super::scenario::{Scenario, Turns};
use super::schedule::{Clock, Nanos, Schedule};
use super::series::{Latencies, Series};
use super::thread::{Cores, Usage, pin};

/// Until both threads are on their cores.
const HEAD_START: Duration = Duration::from_millis(20);

/// How every round is run.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub turns: Turns,
    /// None: the scheduler chooses.
    pub cores: Option<Cores>,
    /// Where queues are made, and the file of a writer beside them.
    pub dir: &'a Path,
    /// The size of that file.
    pub writer_size: u64,
}

/// What was measured in a round, or in several.
#[derive(Clone)]
pub struct Measured {
    pub latencies: Latencies,
    /// The calls that began a new segment.
    pub rolls: Series,
    pub generator: Usage,
    pub consumer: Usage,
}

impl Measured {
    pub fn new() -> Self {
        Self {
            latencies: Latencies::new(),
            rolls: Series::new(),
            generator: Usage::default(),
            consumer: Usage::default(),
        }
    }

    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.latencies.add(&other.latencies)?;
        self.rolls.add(&other.rolls)?;
        self.generator += other.generator;
        self.consumer += other.consumer;
        Ok(())
    }
}

/// Runs a round.
pub fn run(contender: Contender, scenario: Scenario, setup: &Setup<'_>) -> Result<Measured> {
    run_watched(contender, scenario, setup, &mut NoWatch)
}

/// As [`run`], with a closer look at each call.
pub fn run_watched(
    contender: Contender,
    scenario: Scenario,
    setup: &Setup<'_>,
    watch: &mut (impl Watch + std::marker::Send),
) -> Result<Measured> {
    match contender {
        Contender::Empty => measure(scenario, setup, (Empty, Empty), watch, || Ok(())),
        Contender::Channel | Contender::ChannelSpins | Contender::ChannelNaps => {
            let ends = contenders::channel(contender);
            measure(scenario, setup, ends, watch, || Ok(()))
        }
        _ => {
            let dir = tempfile::tempdir_in(setup.dir).context("no directory for a queue")?;
            // Opened here, where no thread is pinned, so that the queue's own threads are not.
            let queue = contenders::open_queue(dir.path(), contender)?;
            let ends = contenders::logmill(&queue);
            measure(scenario, setup, ends, watch, || Ok(queue.close()?))
        }
    }
}

/// `stop` makes the receiving side end, whatever it waits for.
fn measure<S, R>(
    scenario: Scenario,
    setup: &Setup<'_>,
    (sender, receiver): (S, R),
    watch: &mut (impl Watch + std::marker::Send),
    stop: impl FnOnce() -> Result<()>,
) -> Result<Measured>
where
    S: Send + std::marker::Send,
    R: Receive + std::marker::Send,
{
    let clock = Clock::start();
    let Turns {
        warm_up, measured, ..
    } = setup.turns;
    let start = HEAD_START.as_nanos() as Nanos;
    let schedule = Schedule::new(start, (scenario.rate, scenario.arrivals), warm_up, measured);
    let (clock, schedule) = (&clock, &schedule);
    thread::scope(|scope| {
        let consumer = scope.spawn(move || {
            if let Some(cores) = setup.cores {
                pin(cores.consumer)?;
            }
            Ok(consume(clock, schedule, receiver))
        });
        let generator = scope.spawn(move || {
            if let Some(cores) = setup.cores {
                pin(cores.generator)?;
            }
            Generator::new(clock, schedule, scenario.payload, sender, watch).run()
        });
        let sent: Result<Sent> = join(generator);
        let (handled, stopped) = if sent.is_ok() {
            (join(consumer), stop())
        } else {
            // It was not told that there is a last one.
            let stopped = stop();
            (join(consumer), stopped)
        };
        let sent = sent.context("the generator failed")?;
        let (handler, usage) = handled.context("the consumer failed")?;
        stopped?;
        Ok(Measured {
            latencies: Latencies {
                call: sent.call,
                enqueue: sent.enqueue,
                handler,
            },
            rolls: sent.rolls,
            generator: sent.usage,
            consumer: usage,
        })
    })
}

/// Handles all jobs; for each that is measured, how long after its intended time that began.
fn consume(clock: &Clock, schedule: &Schedule, receiver: impl Receive) -> (Series, Usage) {
    let mut series = Series::new();
    let mut before = None;
    let measured_from = schedule.measured_from();
    receiver.receive(|payload| {
        let now = clock.now();
        let Some(intended) = intended_time(payload) else {
            return ControlFlow::Break(());
        };
        if intended >= measured_from {
            before.get_or_insert_with(Usage::now);
            series.record(now.saturating_sub(intended));
        }
        ControlFlow::Continue(())
    });
    let usage = before.map_or_else(Usage::default, |before| Usage::now() - before);
    (series, usage)
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle
        .join()
        .unwrap_or_else(|_| Err(anyhow!("it panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::scenario::CALM;

    #[test]
    fn every_job_that_was_sent_is_handled_by_each_contender() {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup {
            turns: Turns {
                rounds: 1,
                warm_up: Duration::from_millis(20),
                measured: Duration::from_millis(50),
            },
            cores: None,
            dir: dir.path(),
            writer_size: 0,
        };
        for contender in Contender::ALL {
            let latencies = run(contender, CALM, &setup).unwrap().latencies;
            assert_eq!((latencies.call.len(), latencies.enqueue.len()), (500, 500));
            let handled = match contender {
                Contender::Empty => 0,
                _ => 500,
            };
            assert_eq!(latencies.handler.len(), handled, "{contender:?}");
        }
    }
}
