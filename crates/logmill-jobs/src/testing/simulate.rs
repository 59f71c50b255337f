//! The simulation of crashes: a flow runs once undisturbed, and then once for each place at which
//! its process may die, or its machine lose power. The files stay, the clock stands still, and the world
//! outside goes on.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::mill::steps;
use super::probe::{CrashPoint, Probe};
use super::stage::{Crashed, Stage};
use super::storage::Storage;
use super::{ManualClock, RunError, RunReport};
use crate::clock::Clock;
use crate::workers::Workers;
use crate::{Mill, MillOptions, user_code};

/// Pairs of crashes that a simulation tries at most.
const MOST_PAIRS: u64 = 64;

/// Runs a flow of jobs again and again, and crashes its process somewhere else each time: before and
/// after each call that stores something, and at pairs of such calls that the seed chooses.
///
/// `flow` is called for each run. It makes what is outside of the process, such as the services that
/// handlers call, in plain memory; says which [workers](Sim::workers) a process has; enqueues; has the
/// jobs run; and asserts what has to be true in the end, whatever happened.
///
/// ```
/// use logmill_jobs::testing::simulate;
/// use logmill_jobs::{Context, Job, JobResult, State, Workers};
/// use serde::{Deserialize, Serialize};
/// use std::collections::BTreeSet;
/// use std::sync::{Arc, Mutex};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "charge", unique = "order")]
/// struct Charge {
///     order: u64,
/// }
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "ship")]
/// struct Ship {
///     order: u64,
/// }
///
/// /// The services that the handlers call. They go on while the process crashes.
/// #[derive(Clone, Default)]
/// struct World {
///     /// Charges by order: a repeated one has no effect.
///     charged: Arc<Mutex<BTreeSet<u64>>>,
///     /// Parcels. The warehouse packs each one that it is told of.
///     parcels: Arc<Mutex<Vec<u64>>>,
/// }
///
/// fn charge(job: Charge, State(world): State<World>, cx: Context) -> JobResult {
///     world.charged.lock().unwrap().insert(job.order);
///     cx.then(Ship { order: job.order })?; // in one step with the completion
///     Ok(())
/// }
///
/// fn ship(job: Ship, State(world): State<World>, cx: Context) -> JobResult {
///     // After a crash in between, the warehouse is told again: what it knows decides.
///     let mut parcels = world.parcels.lock().unwrap();
///     if cx.crashes() == 0 || !parcels.contains(&job.order) {
///         parcels.push(job.order);
///     }
///     Ok(())
/// }
///
/// let simulated = simulate(7, |sim| {
///     let world = World::default();
///     let state = world.clone();
///     sim.workers(move || Workers::new(state.clone()).on(charge).on(ship));
///     sim.call(|mill| mill.enqueue(Charge { order: 1 }).map(drop)).unwrap();
///     sim.run_until_idle();
///     assert_eq!(*world.parcels.lock().unwrap(), [1]);
/// });
/// assert!(simulated.runs > 8);
/// ```
///
/// A handler that enqueued `Ship` by `cx.mill().enqueue` would pass a test without crashes, and fail
/// here: the process may die between that and the completion of its own job, which then runs again.
///
/// # How a process dies here
/// At the call, its files are copied as they are, and its thread is unwound by a panic without a
/// message. The former mill stores nothing any more and returns errors. Drops that the unwinding runs,
/// and a handler that catches the panic, go on where a real process would not: they had better not
/// call the world. Crashes between two services that a handler calls, with nothing stored in between, are
/// tried where the services mark them by [`Outside::moment`].
///
/// # Power cuts
/// After [`Sim::power_cuts`], each crash is a power cut: the next process opens what the disk would have.
/// What was not flushed is there or not, in any mixture, as the seed decides; other seeds try others. Of
/// two crashes, the first may also be a kill, of a process that had not flushed what it stored last.
///
/// A mill that is [`sync`](Sim::sync) keeps what a call has returned for: jobs with their ids, completions
/// with what belongs to them, keys, ticks, edits, pauses. Still legal, and to be allowed by the flow:
/// - a job with neither output nor anything that follows, steps or key runs again, as its completion
///   is not flushed;
/// - one that has just failed, been put off or died is as it was before, and its failures and
///   [crashes](crate::Context::crashes) count less: tell a repetition by the id of the job, not by these;
/// - progress, and what the mill has in memory only, is gone, as after a kill.
///
/// In a mill that is not `sync`, anything may be lost but a job that was enqueued by
/// [`Enqueue::sync`](crate::Enqueue::sync): then the flow has to allow that.
///
/// ```
/// use logmill_jobs::testing::simulate;
/// use logmill_jobs::{Job, JobResult, Workers};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "count", unique = "number", output = u64)]
/// struct Count {
///     number: u64,
/// }
///
/// simulate(7, |sim| {
///     sim.power_cuts();
///     sim.sync(true); // without it, the result may be gone at the end
///     sim.workers(|| Workers::new(()).on(|job: Count| JobResult::Ok(job.number + 1)));
///     let id = sim.call(|mill| mill.enqueue(Count { number: 1 }).unwrap().id().clone());
///     sim.run_until_idle();
///     sim.call(|mill| mill.enqueue(Count { number: 2 }).map(drop)).unwrap();
///     # sim.run_until_idle();
///     if let Some(result) = sim.mill().handle::<Count>(id).try_result().unwrap_or(None) {
///         assert_eq!(result, 2);
///     }
/// });
/// ```
///
/// The segments are small, so that payloads may have up to 8 KiB. Sectors are not torn.
///
/// # What repeats
/// All runs on one thread, and the same way for the same seed, as far as the flow itself does: the
/// order of jobs, the jitter of backoffs and random numbers of `fastrand` come from the seed.
/// [`JobHandle::wait`](crate::JobHandle::wait) would wait for ever for a job that has not run, in the
/// flow and in a handler.
///
/// # Panics
/// The flow panics in a run. The message says where the process crashed in it, and how to repeat that
/// run with [`simulate_one`].
#[track_caller]
pub fn simulate(seed: u64, flow: impl Fn(&mut Sim)) -> Simulated {
    let undisturbed = run(seed, &[], &flow);
    let calls = match undisturbed.end {
        Ok(()) => undisturbed.calls,
        Err(why) => panic!("the flow panics also without a crash, with the seed {seed}: {why}"),
    };
    let mut simulated = Simulated { calls, runs: 1 };
    for call in 1..=calls {
        for crash in [CrashPoint::Before(call), CrashPoint::After(call)] {
            check(seed, &[crash], &flow);
            simulated.runs += 1;
        }
    }
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..calls.saturating_mul(2).min(MOST_PAIRS) {
        let first = random.u64(1..=calls);
        let second = random.u64(first + 1..=first + calls);
        let mut point = |call| match random.bool() {
            true => CrashPoint::Before(call),
            false => CrashPoint::After(call),
        };
        check(seed, &[point(first), point(second)], &flow);
        simulated.runs += 1;
    }
    simulated
}

/// Repeats one run of [`simulate`]: with this seed, and with crashes at these points.
///
/// # Panics
/// As for [`simulate`].
#[track_caller]
pub fn simulate_one(seed: u64, crashes: &[CrashPoint], flow: impl Fn(&mut Sim)) {
    let mut crashes = crashes.to_vec();
    crashes.sort_by_key(|crash| crash.call());
    check(seed, &crashes, &flow);
}

/// What a simulation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Simulated {
    /// Calls that stored something in the run without a crash.
    pub calls: u64,
    /// All runs.
    pub runs: u64,
}

#[track_caller]
fn check(seed: u64, crashes: &[CrashPoint], flow: &impl Fn(&mut Sim)) {
    let Run {
        end, crashed_at, ..
    } = run(seed, crashes, flow);
    let Err(why) = end else {
        return;
    };
    let points = crashes.iter().map(|crash| format!("CrashPoint::{crash:?}"));
    let points: Vec<_> = points.collect();
    let crashed_at = match crashed_at.is_empty() {
        true => "without a crash".to_owned(),
        false => crashed_at.join(", and "),
    };
    panic!(
        "the flow does not survive a crash {crashed_at}: {why}\n\
         repeat this run with: simulate_one({seed}, &[{}], flow)",
        points.join(", ")
    );
}

/// A run of a flow.
struct Run {
    end: Result<(), String>,
    calls: u64,
    crashed_at: Vec<String>,
}

fn run(seed: u64, crashes: &[CrashPoint], flow: &impl Fn(&mut Sim)) -> Run {
    let outer = fastrand::get_seed();
    fastrand::seed(seed);
    let mut sim = Sim {
        seed,
        crashes: crashes.to_vec(),
        options: Box::new(MillOptions::new),
        storage: Storage::default(),
        workers: Box::new(|_| Err(RunError::Start(crate::StartError::NoHandlers))),
        clock: ManualClock::at(std::time::SystemTime::UNIX_EPOCH + crate::days(20_000)),
        stage: None,
        current: Current::default(),
    };
    let end = user_code::call(|| flow(&mut sim));
    *sim.current.lock() = None;
    let calls = sim.stage.as_ref().map_or(0, |stage| stage.probe.calls());
    let crashed_at = sim.stage.as_ref();
    let crashed_at = crashed_at.map_or_else(Vec::new, |stage| stage.crashed_at.clone());
    // What the application gave is dropped with it.
    user_code::discard(sim);
    fastrand::seed(outer);
    Run {
        end,
        calls,
        crashed_at,
    }
}

type MakeOptions = Box<dyn Fn() -> MillOptions>;
/// Runs what is due with workers that it makes. None if the process has crashed.
type RunDue = Box<dyn Fn(&Stage) -> Result<Option<RunReport>, RunError>>;

/// A run of a flow in a simulation, see [`simulate`].
pub struct Sim {
    seed: u64,
    crashes: Vec<CrashPoint>,
    options: MakeOptions,
    storage: Storage,
    workers: RunDue,
    clock: ManualClock,
    /// None until the first process begins.
    stage: Option<Stage>,
    current: Current,
}

/// The probe of the process that runs.
type Current = Arc<Mutex<Option<Arc<Probe>>>>;

/// Marks moments at which the process may crash, beside its calls that store something. From
/// [`Sim::outside`].
#[derive(Clone)]
pub struct Outside(Current);

impl Outside {
    /// Counts as a call that stores something: the simulation crashes the process here in some of its
    /// runs. `what` names the moment in the message of a failure.
    ///
    /// Called by a service in memory before and after it does something for a handler, this tries the
    /// crashes between two services that a handler calls. It returns at once where no process of the
    /// simulation runs, and also in one that has crashed already while its thread is unwound.
    pub fn moment(&self, what: &str) {
        let probe = self.0.lock().clone();
        if let Some(probe) = probe
            && probe.store(|| what.to_owned(), || Ok(())).is_err()
        {
            // The process has crashed, and what went on had caught that.
            let _ = super::probe::unwind();
        }
    }
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}

impl Sim {
    /// Sets what makes the workers of a process: its handlers and their state.
    ///
    /// Called for each run of jobs, so that nothing in it outlives a crash but what it shares with
    /// the world outside.
    pub fn workers<S: Clone + Send + Sync + 'static>(
        &mut self,
        make: impl Fn() -> Workers<S> + 'static,
    ) {
        self.workers = Box::new(move |stage| Ok(stage.run(&make())?.ok()));
    }

    /// Sets what makes the options of the mill, before anything else is called. Default: those of
    /// [`MillOptions::new`].
    pub fn options(&mut self, make: impl Fn() -> MillOptions + 'static) {
        self.options = Box::new(make);
    }

    /// Sets whether what a call has returned for survives a power cut, as
    /// [`MillBuilder::sync`](crate::MillBuilder::sync) does, before anything else is called. Default: no.
    pub fn sync(&mut self, sync: bool) {
        self.storage.is_sync = sync;
    }

    /// Has crashes be power cuts, before anything else is called. See [`simulate`].
    pub fn power_cuts(&mut self) {
        self.storage.power_cuts = Some(self.seed);
    }

    /// The clock of the run. It starts at the same time in each run, and stands still while the
    /// process is dead.
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// Calls the application, as its users do: to enqueue, to cancel. If the process crashes
    /// meanwhile, the call is repeated with the next process, as by a user who got no answer.
    ///
    /// # Panics
    /// The mill cannot be opened.
    pub fn call<T>(&mut self, call: impl Fn(&Mill) -> T) -> T {
        loop {
            if let Some(result) = self.call_once(&call) {
                return result;
            }
        }
    }

    /// Calls the application, and does not repeat it. None if the process crashed: whether what was
    /// called for happened is not known.
    ///
    /// # Panics
    /// The mill cannot be opened.
    pub fn call_once<T>(&mut self, call: impl FnOnce(&Mill) -> T) -> Option<T> {
        let stage = self.stage();
        stage.probe.reseed();
        let called = stage.guarded(|| call(&stage.mill));
        match called {
            Ok(result) => Some(result),
            Err(Crashed) => {
                self.restart();
                None
            }
        }
    }

    /// Runs all jobs that are due, and what follows from them, until nothing is due. If the process
    /// crashes meanwhile, the next one goes on.
    ///
    /// # Panics
    /// The mill cannot be opened, the workers cannot serve it, or jobs make more and more jobs.
    pub fn run_until_idle(&mut self) {
        loop {
            self.stage();
            let Some(stage) = &self.stage else {
                return;
            };
            match (self.workers)(stage) {
                Ok(Some(_)) => return,
                Ok(None) => self.restart(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Lets this time pass. No job runs by that; schedules tick. If the process crashes meanwhile, the next one
    /// begins.
    pub fn advance(&mut self, time: Duration) {
        let stage = self.stage();
        if stage.guarded(|| stage.advance(time)).is_err() {
            self.restart();
        }
    }

    /// Lets this time pass in 64 steps, and runs before each and in the end what is due.
    ///
    /// # Panics
    /// As for [`run_until_idle`](Self::run_until_idle).
    pub fn run_for(&mut self, time: Duration) {
        self.run_until_idle();
        for step in steps(time) {
            self.advance(step);
            self.run_until_idle();
        }
    }

    /// A handle for what is outside of the process, such as a service in memory, by which it marks
    /// further moments at which the process may crash.
    pub fn outside(&self) -> Outside {
        Outside(Arc::clone(&self.current))
    }

    /// The mill of the process that runs, to look at what is stored. Calls that store something are
    /// made by [`call`](Self::call).
    ///
    /// # Panics
    /// The mill cannot be opened.
    pub fn mill(&mut self) -> &Mill {
        &self.stage().mill
    }

    /// The process that runs; the first one begins if none has.
    fn stage(&mut self) -> &Stage {
        if self.stage.is_none() {
            let (clock, options) = (self.clock.clone(), self.mill_options());
            match Stage::new(clock, options, self.storage, &self.crashes) {
                Ok(stage) => self.stage = Some(stage),
                Err(error) => panic!("{error}"),
            }
            self.begin();
        }
        match &self.stage {
            Some(stage) => stage,
            None => unreachable!("it was set above"),
        }
    }

    /// The options of the next process, as the application sets them anew.
    fn mill_options(&self) -> MillOptions {
        let mut options = (self.options)();
        options.clock = Clock::stepped(&self.clock);
        options
    }

    fn restart(&mut self) {
        let options = self.mill_options();
        let Some(stage) = &mut self.stage else {
            return;
        };
        stage.options = options;
        if let Err(error) = stage.restart() {
            panic!("{error}");
        }
        self.begin();
    }

    /// Has the jobs of a new process come in an order that depends on the seed.
    fn begin(&self) {
        if let Some(stage) = &self.stage {
            let process = stage.crashed_at.len() as u64;
            // Far apart: seeds that differ in the lowest bits only would be those of another process at
            // another call, which then made the same random numbers, such as the ids of queues.
            let apart = process.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            stage.probe.set_seed(self.seed.wrapping_add(apart));
            *self.current.lock() = Some(Arc::clone(&stage.probe));
        }
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed)
            .field("crashes", &self.crashes)
            .finish_non_exhaustive()
    }
}
