//! The model: the rules of JOBS.md, as simple as they can be written. Here is what it knows of each job;
//! the other files say when a job may begin and has to, what its end means, and what changes it.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, ensure};
use logmill_jobs::JobId;

use crate::flows::{Flow, State};
use crate::limits::{Limits, Subject};
use crate::operations::{Case, New, SCHEDULES, Scope};
use crate::orders::Place;
use crate::schedules::Plan;
use crate::unique::Keys;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    Done,
    Dead,
    Cancelled,
    Expired,
    /// It was to run if another one failed, and none did.
    NotNeeded,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Phase {
    /// It waits for other jobs of its flow, or was cancelled while it did; or it is kept until the job
    /// with its key has ended. Arguments that replace others stay so.
    NotYet,
    /// In its queue.
    Waits,
    Runs,
    Ended(End),
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) new: New,
    pub(crate) phase: Phase,
    /// None until it was seen.
    pub(crate) id: Option<JobId>,
    /// The most that it has cost. It may wait at a rate for that much, though other arguments have
    /// replaced those that came to it.
    pub(crate) most_cost: u32,
    /// The number of the call whose arguments it has: its own, unless they were replaced.
    pub(crate) arguments: usize,
    /// Attempts that failed.
    pub(crate) failed: u32,
    /// When its next attempt is due.
    pub(crate) due: u64,
    /// It does not begin before this time, as a call with its key has said.
    pub(crate) not_before: u64,
    /// When it is not begun any more.
    pub(crate) expires: Option<u64>,
    /// Its handler runs, and it was cancelled.
    pub(crate) is_cancelled: bool,
    /// Its end was told.
    pub(crate) is_told: bool,
    pub(crate) is_letter: bool,
    pub(crate) is_of_flow: bool,
    /// It has ended in its flow before it was enqueued, or in the same step.
    pub(crate) may_be_there: bool,
    /// It had failed when a process died: the engine backs off once more when it comes to it.
    pub(crate) backs_off: bool,
    /// The step in which it was enqueued, if it begins before those that were enqueued later.
    pub(crate) turn: Option<u64>,
    /// The schedule and the tick that have enqueued it; without a tick between those.
    pub(crate) scheduled: Option<(usize, Option<u64>)>,
    /// Its place in a strict order.
    pub(crate) place: Option<Place>,
    /// Its flow and its place there; None if it was replayed.
    pub(crate) node: Option<(usize, usize)>,
}

impl Job {
    pub(crate) fn subject(&self) -> Subject {
        Subject {
            queue: self.new.queue,
            kind: self.new.kind,
            key: self.new.key,
            cost: self.new.cost.unwrap_or(1),
        }
    }

    /// When it may begin.
    pub(crate) fn begins(&self) -> u64 {
        self.due.max(self.not_before)
    }

    /// Whether it is among the jobs that have not ended.
    pub(crate) fn is_listed(&self) -> bool {
        match self.phase {
            Phase::Waits => true,
            Phase::Runs => !self.is_cancelled,
            Phase::NotYet | Phase::Ended(_) => false,
        }
    }
}

/// Times are seconds since the case began.
pub(crate) struct Model {
    pub(crate) now: u64,
    pub(crate) jobs: Vec<Job>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) limits: Limits,
    /// The step in which something is enqueued.
    pub(crate) step: u64,
    pub(crate) orders: Vec<Scope>,
    /// The queues whose high level this process has used.
    pub(crate) levels: BTreeSet<usize>,
    pub(crate) keys: Keys,
    pub(crate) plans: [Option<Plan>; SCHEDULES.len()],
    /// The job that runs with the arguments of a call, by their numbers. The number of a call is also that
    /// of the job that it enqueues.
    pub(crate) jobs_of: HashMap<usize, usize>,
    pub(crate) by_id: HashMap<JobId, usize>,
    pub(crate) paused: BTreeSet<usize>,
    pub(crate) paused_kinds: BTreeSet<usize>,
    pub(crate) paused_keys: BTreeSet<usize>,
}

impl Model {
    pub(crate) fn new(case: &Case) -> Self {
        Self {
            now: 0,
            jobs: Vec::new(),
            flows: Vec::new(),
            limits: Limits::new(case.limits.clone(), case.is_punctual),
            step: 0,
            orders: case.orders.clone(),
            levels: BTreeSet::new(),
            keys: Keys::new(case.modes.clone()),
            plans: [const { None }; SCHEDULES.len()],
            jobs_of: HashMap::new(),
            by_id: HashMap::new(),
            paused: BTreeSet::new(),
            paused_kinds: BTreeSet::new(),
            paused_keys: BTreeSet::new(),
        }
    }

    /// A call with these options. Returns its number.
    pub(crate) fn call(&mut self, new: New) -> usize {
        self.use_level(new);
        let number = self.jobs.len();
        self.jobs.push(Job {
            new,
            phase: Phase::NotYet,
            id: None,
            arguments: number,
            failed: 0,
            due: 0,
            not_before: 0,
            expires: None,
            is_cancelled: false,
            is_told: false,
            is_letter: false,
            is_of_flow: false,
            may_be_there: false,
            most_cost: new.cost.unwrap_or(1),
            backs_off: false,
            turn: None,
            scheduled: None,
            place: None,
            node: None,
        });
        number
    }

    /// A job that is enqueued. Returns its number.
    pub(crate) fn enqueue(&mut self, new: New) -> usize {
        self.step += 1;
        let number = self.call(new);
        self.enter(number);
        number
    }

    /// Puts a job into its queue.
    pub(crate) fn enter(&mut self, number: usize) {
        let now = self.now;
        let job = &mut self.jobs[number];
        job.phase = Phase::Waits;
        job.due = now + job.new.delay;
        job.expires = job.new.expires.map(|after| now + after);
        self.line_up(number);
        self.use_level(self.jobs[number].new);
        self.arrive(number);
    }

    /// A flow of these jobs, which is made of their numbers.
    pub(crate) fn enqueue_flow(
        &mut self,
        jobs: &[New],
        flow: impl FnOnce(&[usize]) -> Flow,
    ) -> Vec<usize> {
        self.step += 1;
        let numbers: Vec<_> = jobs.iter().map(|&new| self.call(new)).collect();
        let flow = flow(&numbers);
        for (at, node) in flow.nodes.iter().enumerate() {
            let job = &mut self.jobs[node.job];
            job.node = Some((self.flows.len(), at));
            job.is_of_flow = true;
            if node.state == State::Enqueued {
                self.enter(node.job);
            }
        }
        self.flows.push(flow);
        numbers
    }

    pub(crate) fn know(&mut self, number: usize, id: &JobId) -> Result<()> {
        let job = &mut self.jobs[number];
        job.id = Some(id.clone());
        // Its flow has enqueued it in the step in which it has ended there.
        if job.phase == Phase::NotYet && self.ended_in_flow(&self.jobs[number]).is_some() {
            self.jobs[number].phase = Phase::Waits;
        }
        let other = self.by_id.insert(id.clone(), number);
        let is_same = other.is_none_or(|other| other == number);
        ensure!(is_same, "{id} is job {number}, formerly {other:?}");
        Ok(())
    }

    pub(crate) fn job_with(&self, id: &JobId) -> Option<&Job> {
        Some(&self.jobs[*self.by_id.get(id)?])
    }

    /// The job with this id; if it was not seen before, the first that has these arguments.
    pub(crate) fn job_of(&self, id: &JobId, arguments: usize) -> usize {
        if let Some(known) = self.by_id.get(id) {
            return *known;
        }
        let mut jobs = self.jobs.iter();
        let is_it = |job: &Job| job.arguments == arguments && job.id.is_none() && job.is_listed();
        let replaced = || *self.jobs_of.get(&arguments).unwrap_or(&arguments);
        jobs.position(is_it).unwrap_or_else(replaced)
    }

    /// How a job of a flow that is in its queue has ended, as far as its flow is concerned.
    pub(crate) fn ended_in_flow(&self, job: &Job) -> Option<End> {
        let (flow, at) = job.node?;
        match self.flows[flow].nodes[at].state {
            State::Ended(end) => Some(end),
            State::Waits | State::Enqueued => None,
        }
    }
}

/// The backoff of all kinds, in seconds.
pub(crate) const BACKOFF: u64 = 7;
