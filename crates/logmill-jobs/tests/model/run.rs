//! Runs a case: operations one after the other, the attempts of handlers, and the end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, RwLock};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use logmill_jobs::testing::{ManualClock, TestMill};
use logmill_jobs::{
    Context, Events, FlowId, JobResult, MillOptions, State, Workers, cancel, days, discard,
    rate_limited, retry_in, secs, snooze,
};

use crate::flows;
use crate::jobs::{Work, limit_of, order_of};
use crate::model::{Model, Phase};
use crate::operations::{
    Attempt, Case, KEYS, KINDS, OfSchedule, Operation, Outcome, QUEUES, SCHEDULES, What,
};

/// What the operations and the handlers share. Nothing is locked while the mill runs jobs but `mill`,
/// for reading.
pub(crate) struct World {
    pub(crate) mill: RwLock<TestMill>,
    pub(crate) began_at: SystemTime,
    /// Workers are there whenever time passes.
    pub(crate) is_punctual: bool,
    pub(crate) events: Mutex<Events>,
    pub(crate) model: Mutex<Model>,
    pub(crate) flows: Mutex<Vec<FlowId>>,
    /// The attempts that are to come, of each run that goes on.
    scripts: Mutex<Vec<VecDeque<Attempt>>>,
    /// What went wrong in a handler, which would be a failed attempt.
    wrong: Mutex<Option<anyhow::Error>>,
}

pub(crate) type Shared = Arc<World>;

/// Rounds of half a minute after which the jobs of a case have long ended.
const ROUNDS: u64 = 400;
/// Events that are told in one operation.
pub(crate) const EVENTS: usize = 10_000;

pub(crate) fn case(case: Case) -> Result<()> {
    let has_rates = case.limits.iter().any(|limit| limit.rate.is_some());
    let limits = case.limits.iter().map(limit_of);
    // The engine stores the delay of a retry in whole seconds.
    let clock = ManualClock::at(SystemTime::UNIX_EPOCH + days(20_000));
    let options = MillOptions::new().keep_results(days(30)).clock(&clock);
    let options = limits.fold(options, MillOptions::limit);
    let orders = case.orders.iter().map(|&scope| order_of(scope));
    let options = orders.fold(options, MillOptions::order);
    let mill = TestMill::with_options(options)?;
    let world = Arc::new(World {
        began_at: mill.clock().now(),
        is_punctual: case.is_punctual && has_rates,
        events: Mutex::new(mill.events(EVENTS)),
        mill: RwLock::new(mill),
        model: Mutex::new(Model::new(&case)),
        flows: Mutex::default(),
        scripts: Mutex::default(),
        wrong: Mutex::default(),
    });
    for (at, operation) in case.operations.into_iter().enumerate() {
        let told = format!("operation {at}, {operation:?}");
        let done = world.operate(operation, 0).and_then(|()| world.check());
        done.context(told)?;
    }
    world.finish().context("the end")
}

/// The attempts of a kind's handler.
fn attempt<const QUEUE: usize, const KIND: usize>(
    job: Work<QUEUE, KIND>,
    State(world): State<Shared>,
    cx: Context,
) -> JobResult<u32> {
    let script = world
        .scripts
        .lock()
        .unwrap()
        .last_mut()
        .and_then(VecDeque::pop_front);
    let Attempt { meanwhile, outcome } = script.unwrap_or(Attempt {
        meanwhile: Vec::new(),
        outcome: Outcome::Done,
    });
    if let Err(wrong) = world.run_attempt(QUEUE, job.number, meanwhile, outcome, &cx) {
        world.wrong.lock().unwrap().get_or_insert(wrong);
        return Ok(0);
    }
    match outcome {
        Outcome::Done => Ok(1),
        Outcome::Follow => {
            let number = world.model.lock().unwrap().jobs.len() - 1;
            cx.then(Work::<QUEUE, KIND> { number })?;
            Ok(1)
        }
        Outcome::Error => Err("told to fail".into()),
        Outcome::RetryIn(after) => Err(retry_in(secs(after), "told to wait")),
        Outcome::Snooze(after) => Err(snooze(secs(after))),
        Outcome::Discard => Err(discard("told to give up")),
        Outcome::Cancel => Err(cancel("told to stop")),
        Outcome::RateLimited(after) => Err(rate_limited(secs(after), "told to slow down")),
        // No hook prints it.
        Outcome::Panic => std::panic::resume_unwind(Box::new("told to panic")),
    }
}

impl World {
    /// A handler was called: its part of the model, and what goes on meanwhile.
    fn run_attempt(
        self: &Shared,
        queue: usize,
        arguments: usize,
        meanwhile: Vec<Operation>,
        outcome: Outcome,
        cx: &Context,
    ) -> Result<()> {
        ensure!(
            self.wrong.lock().unwrap().is_none(),
            "something is wrong already"
        );
        self.hear()?;
        let number = {
            let mut model = self.model.lock().unwrap();
            let number = model.job_of(cx.id(), arguments);
            model.know(number, cx.id())?;
            model.begin(number, arguments, (cx.attempt(), cx.crashes()))?;
            ensure!(
                cx.id().queue() == QUEUES[queue],
                "job {number} runs elsewhere"
            );
            let scheduled = cx.scheduled();
            let tick = |(schedule, tick): (usize, Option<u64>)| {
                let (found, at) = scheduled?;
                let is_it = tick.is_none_or(|tick| at == self.began_at + secs(tick));
                Some(is_it && found == SCHEDULES[schedule])
            };
            let of = model.jobs[number].scheduled;
            ensure!(
                of.map_or(scheduled.is_none(), |of| tick(of) == Some(true)),
                "job {number} is of {of:?}, not {scheduled:?}"
            );
            number
        };
        for operation in meanwhile {
            let told = format!("while job {number} runs, {operation:?}");
            let done = self
                .operate(operation, queue + 1)
                .and_then(|()| self.hear());
            done.context(told)?;
        }
        self.model.lock().unwrap().end(number, outcome);
        Ok(())
    }

    /// Runs what is due in the queues from this one on, and checks that what is left has to wait.
    pub(crate) fn run(self: &Shared, attempts: Vec<Attempt>, from: usize) -> Result<()> {
        self.scripts.lock().unwrap().push(attempts.into());
        let ran = self.run_queues(from);
        self.scripts.lock().unwrap().pop();
        if let Some(wrong) = self.wrong.lock().unwrap().take() {
            return Err(wrong);
        }
        ran?;
        self.hear()?;
        // Flows may have enqueued what others of an order wait for.
        let has_orders = !self.model.lock().unwrap().orders.is_empty();
        match has_orders {
            true => self.look()?,
            false => self.learn()?,
        }
        let mill = self.mill.read().unwrap();
        let model = self.model.lock().unwrap();
        for (number, job) in model.jobs.iter().enumerate() {
            let held = job.id.as_ref().and_then(|id| mill.why_waiting(id));
            model.check_waits(number, from, held.as_deref())?;
        }
        Ok(())
    }

    fn run_queues(self: &Shared, from: usize) -> Result<()> {
        loop {
            let mut ran = 0;
            for queue in from..QUEUES.len() {
                let mill = self.mill.read().unwrap();
                let workers = Workers::new(Arc::clone(self));
                let workers = match queue {
                    0 => workers.on(attempt::<0, 0>).on(attempt::<0, 1>),
                    1 => workers.on(attempt::<1, 0>).on(attempt::<1, 1>),
                    _ => workers.on(attempt::<2, 0>).on(attempt::<2, 1>),
                };
                ran += mill.run_until_idle(&workers)?.ran.len();
            }
            if ran == 0 {
                return Ok(());
            }
        }
    }

    /// Resumes all, and runs until nothing is left.
    fn finish(self: &Shared) -> Result<()> {
        let queues = (0..QUEUES.len()).map(What::Queue);
        let kinds = (0..KINDS.len()).map(What::Kind);
        for what in queues.chain(kinds).chain((0..KEYS.len()).map(What::Key)) {
            self.operate(Operation::Resume(what), 0)?;
        }
        for schedule in 0..SCHEDULES.len() {
            self.operate_schedule(schedule, OfSchedule::Remove)?;
        }
        for round in 0.. {
            self.run(Vec::new(), 0)?;
            let is_over = {
                let model = self.model.lock().unwrap();
                let mut jobs = model.jobs.iter();
                !jobs.any(|job| matches!(job.phase, Phase::Waits | Phase::Runs))
            };
            if is_over {
                break;
            }
            while self.unblock(0, true)? {}
            ensure!(round < ROUNDS, "jobs wait for ever");
            self.operate(Operation::Advance(30), 0)?;
        }
        self.check()?;
        self.look()?;
        let model = self.model.lock().unwrap();
        let mut nodes = model.flows.iter().flat_map(|flow| &flow.nodes);
        ensure!(
            !nodes.any(|node| node.state == flows::State::Waits),
            "a flow waits for ever"
        );
        self.check_memory(&model)
    }

    /// Nothing is kept in memory of jobs that have ended, but of dead ones the places in their lines.
    fn check_memory(&self, model: &Model) -> Result<()> {
        let kept = self.mill.read().unwrap().kept_of_jobs();
        let dead = model.jobs.iter().filter(|job| job.is_letter).count();
        for (part, jobs) in kept {
            let most = if part == "in an order" { dead } else { 0 };
            ensure!(jobs <= most, "of ended jobs are kept in memory: {kept:?}");
        }
        Ok(())
    }
}
