//! The model: the rules of JOBS.md, as simple as they can be written. It does not say which job is next,
//! but which may begin, what the end of an attempt means, and whether one that waits has to.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, bail, ensure};
use logmill_jobs::JobId;

use crate::flows::{Flow, State};
use crate::limits::{Limits, Subject};
use crate::operations::{Change, LimitOf, New, Outcome, Policy, QUEUES, Shape, What};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    Done,
    Dead,
    Cancelled,
    Expired,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Phase {
    /// In a flow, for other jobs; or it was cancelled while it did.
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
    /// Attempts that failed.
    pub(crate) failed: u32,
    /// When it is due, and when it is not begun any more.
    pub(crate) due: u64,
    expires: Option<u64>,
    /// Its handler runs, and it was cancelled.
    is_cancelled: bool,
    /// Its end was told.
    is_told: bool,
    pub(crate) is_letter: bool,
    pub(crate) is_of_flow: bool,
    /// It had failed when a process died: the engine backs off once more when it comes to it.
    pub(crate) backs_off: bool,
    /// Its flow and its place there; None if it was replayed.
    node: Option<(usize, usize)>,
}

impl Job {
    fn subject(&self) -> Subject {
        Subject {
            queue: self.new.queue,
            kind: self.new.kind,
            key: self.new.key,
            cost: self.new.cost.unwrap_or(1),
        }
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
    by_id: HashMap<JobId, usize>,
    paused: BTreeSet<usize>,
    paused_kinds: BTreeSet<usize>,
    paused_keys: BTreeSet<usize>,
}

impl Model {
    pub(crate) fn new(limits: Vec<LimitOf>, is_punctual: bool) -> Self {
        Self {
            now: 0,
            jobs: Vec::new(),
            flows: Vec::new(),
            limits: Limits::new(limits, is_punctual),
            by_id: HashMap::new(),
            paused: BTreeSet::new(),
            paused_kinds: BTreeSet::new(),
            paused_keys: BTreeSet::new(),
        }
    }

    /// A job that is enqueued. Returns its number.
    pub(crate) fn enqueue(&mut self, new: New) -> usize {
        self.jobs.push(Job {
            new,
            phase: Phase::NotYet,
            id: None,
            failed: 0,
            due: 0,
            expires: None,
            is_cancelled: false,
            is_told: false,
            is_letter: false,
            is_of_flow: false,
            backs_off: false,
            node: None,
        });
        let number = self.jobs.len() - 1;
        self.enter(number);
        number
    }

    /// Puts a job into its queue.
    fn enter(&mut self, number: usize) {
        let now = self.now;
        let job = &mut self.jobs[number];
        job.phase = Phase::Waits;
        job.due = now + job.new.delay;
        job.expires = job.new.expires.map(|after| now + after);
    }

    pub(crate) fn enqueue_flow(
        &mut self,
        shape: Shape,
        jobs: &[New],
        policies: &[Policy],
    ) -> Vec<usize> {
        let numbers: Vec<_> = jobs.iter().map(|&new| self.enqueue(new)).collect();
        let flow = Flow::new(shape, &numbers, policies);
        for (at, node) in flow.nodes.iter().enumerate() {
            let job = &mut self.jobs[node.job];
            job.node = Some((self.flows.len(), at));
            job.is_of_flow = true;
            if node.state == State::Waits {
                job.phase = Phase::NotYet;
            }
        }
        self.flows.push(flow);
        numbers
    }

    pub(crate) fn know(&mut self, number: usize, id: &JobId) {
        self.jobs[number].id = Some(id.clone());
        self.by_id.insert(id.clone(), number);
    }

    /// How a job of a flow that is in its queue has ended, as far as its flow is concerned.
    fn ended_in_flow(&self, job: &Job) -> Option<End> {
        let (flow, at) = job.node?;
        match self.flows[flow].nodes[at].state {
            State::Ended(end) => Some(end),
            State::Waits | State::Enqueued => None,
        }
    }

    /// Whether a job is not begun any more. One that has spent an attempt has begun.
    fn has_expired(&self, job: &Job) -> bool {
        job.expires.is_some_and(|at| at <= self.now) && job.failed == 0
    }

    /// Why a job may not begin now, apart from limits.
    fn obstacle(&self, job: &Job) -> Option<&'static str> {
        let is_key_paused = job
            .new
            .key
            .is_some_and(|key| self.paused_keys.contains(&key));
        let is_late = self.has_expired(job);
        [
            (job.phase != Phase::Waits, "it does not wait"),
            (self.now < job.due, "it is not due"),
            (self.paused.contains(&job.new.queue), "its queue is paused"),
            (
                self.paused_kinds.contains(&job.new.kind),
                "its kind is paused",
            ),
            (is_key_paused, "its key is paused"),
            (is_late, "it has expired"),
            (
                self.ended_in_flow(job).is_some(),
                "it has ended in its flow",
            ),
        ]
        .into_iter()
        .find_map(|(is_so, why)| is_so.then_some(why))
    }

    /// A handler is called.
    pub(crate) fn begin(&mut self, number: usize, attempt: u32, crashes: u32) -> Result<()> {
        let job = &self.jobs[number];
        if let Some(why) = self.obstacle(job) {
            bail!("job {number} begins, and {why}: {job:?}");
        }
        if let Err(limit) = self.limits.check(&job.subject(), self.now) {
            bail!("job {number} begins in spite of {limit}: {job:?}");
        }
        let counted = (attempt, crashes);
        ensure!(
            counted == (job.failed + 1, 0),
            "job {number}: {counted:?}, {job:?}"
        );
        let subject = job.subject();
        self.limits.begin(&subject, self.now);
        self.jobs[number].phase = Phase::Runs;
        self.jobs[number].backs_off = false;
        Ok(())
    }

    /// A handler returns.
    pub(crate) fn end(&mut self, number: usize, outcome: Outcome) {
        let now = self.now;
        let job = &mut self.jobs[number];
        let subject = job.subject();
        self.limits.end(&subject, now);
        let (is_last, is_cancelled) = (job.failed >= job.new.retries, job.is_cancelled);
        job.is_cancelled = false;
        if let Outcome::RateLimited(after) = outcome {
            self.limits.hold(&subject, now, now + after);
        }
        let back = match outcome {
            Outcome::Done => return self.ended(number, End::Done),
            Outcome::Follow => {
                self.ended(number, End::Done);
                let New { queue, kind, .. } = self.jobs[number].new;
                self.enqueue(New::following(queue, kind));
                return;
            }
            Outcome::Cancel => return self.ended(number, End::Cancelled),
            _ if is_cancelled => return self.ended(number, End::Cancelled),
            Outcome::Discard => return self.ended(number, End::Dead),
            Outcome::Error | Outcome::Panic | Outcome::RetryIn(_) if is_last => {
                return self.ended(number, End::Dead);
            }
            Outcome::Error | Outcome::Panic => (1, BACKOFF),
            Outcome::RetryIn(after) => (1, after),
            Outcome::Snooze(after) => (0, after),
            Outcome::RateLimited(_) => (0, 0),
        };
        job.failed += back.0;
        job.due = now + back.1;
        job.phase = Phase::Waits;
    }

    fn ended(&mut self, number: usize, end: End) {
        let job = &mut self.jobs[number];
        job.phase = Phase::Ended(end);
        job.is_told = false;
        job.is_letter = end == End::Dead;
        self.end_in_flow(number, end);
    }

    fn end_in_flow(&mut self, number: usize, end: End) {
        if let Some((flow, at)) = self.jobs[number].node {
            for enqueued in self.flows[flow].end(at, end) {
                self.enter(enqueued);
            }
        }
    }

    /// An end is told.
    pub(crate) fn told(&mut self, id: &JobId, end: End) -> Result<()> {
        let number = match self.by_id.get(id) {
            Some(number) => *number,
            // Its flow has enqueued it, and nobody has looked since.
            None => {
                let may_be = |job: &Job| {
                    let may_end = match end {
                        End::Expired => self.has_expired(job),
                        _ => self.ended_in_flow(job) == Some(end),
                    };
                    let is_new = job.id.is_none() && job.phase == Phase::Waits;
                    is_new && may_end && QUEUES[job.new.queue] == id.queue()
                };
                match self.jobs.iter().position(may_be) {
                    Some(number) => number,
                    None => bail!("an end of the unknown job {id}: {end:?}"),
                }
            }
        };
        let job = &self.jobs[number];
        ensure!(
            job.id.as_ref() == Some(id) || job.id.is_none(),
            "the end of {id}, formerly {job:?}"
        );
        if job.phase == Phase::Waits {
            // A worker came to it, and did not call the handler.
            let has_expired = self.has_expired(job);
            let is_due = self.now >= job.due && !self.paused.contains(&job.new.queue);
            match end {
                End::Expired => ensure!(has_expired && is_due, "job {number} expires: {job:?}"),
                _ => ensure!(
                    self.ended_in_flow(job) == Some(end),
                    "job {number} ends as {end:?}: {job:?}"
                ),
            }
            self.ended(number, end);
        }
        let job = &mut self.jobs[number];
        ensure!(
            job.phase == Phase::Ended(end),
            "job {number} ends as {end:?}: {job:?}"
        );
        ensure!(!job.is_told, "job {number} ends twice: {job:?}");
        job.is_told = true;
        Ok(())
    }

    /// Whether all ends were told.
    pub(crate) fn check_told(&self) -> Result<()> {
        let mut jobs = self.jobs.iter().enumerate();
        match jobs.find(|(_, job)| matches!(job.phase, Phase::Ended(_)) && !job.is_told) {
            None => Ok(()),
            Some((number, job)) => bail!("the end of job {number} was not told: {job:?}"),
        }
    }

    pub(crate) fn pause(&mut self, what: What) {
        match what {
            What::Queue(queue) => _ = self.paused.insert(queue),
            What::Kind(kind) => _ = self.paused_kinds.insert(kind),
            What::Key(key) => _ = self.paused_keys.insert(key),
        }
    }

    pub(crate) fn resume(&mut self, what: What) {
        match what {
            What::Queue(queue) => _ = self.paused.remove(&queue),
            What::Kind(kind) => _ = self.paused_kinds.remove(&kind),
            What::Key(key) => _ = self.paused_keys.remove(&key),
        }
    }

    pub(crate) fn cancel(&mut self, number: usize) {
        match self.jobs[number].phase {
            Phase::Waits => self.ended(number, End::Cancelled),
            Phase::Runs => {
                self.jobs[number].is_cancelled = true;
                self.end_in_flow(number, End::Cancelled);
            }
            Phase::NotYet | Phase::Ended(_) => {}
        }
    }

    pub(crate) fn edit(&mut self, number: usize, change: Change, id: &JobId) {
        let now = self.now;
        let job = &mut self.jobs[number];
        match change {
            Change::Now => job.due = now,
            Change::After(after) => job.due = now + after,
            Change::Priority(is_high) => job.new.is_high = is_high,
            Change::Queue(queue) => job.new.queue = queue,
        }
        (job.failed, job.backs_off) = (0, false);
        self.know(number, id);
    }

    /// A dead job comes again, as a job of its own.
    pub(crate) fn replay(&mut self, number: usize, id: &JobId) {
        let job = &mut self.jobs[number];
        job.phase = Phase::Waits;
        (job.failed, job.due, job.expires) = (0, self.now, None);
        (job.is_letter, job.node) = (false, None);
        self.know(number, id);
    }

    /// The process ends, and another one begins.
    pub(crate) fn crash(&mut self) {
        self.limits.forget();
        for job in &mut self.jobs {
            job.backs_off = job.phase == Phase::Waits && job.failed > 0;
        }
    }

    /// Whether a job has to wait that workers of the queues from this one on have left. `held` is why
    /// the mill says that it is held.
    pub(crate) fn check_waits(&self, number: usize, from: usize, held: Option<&str>) -> Result<()> {
        let job = &self.jobs[number];
        let is_stopped = |job: &Job| self.now < job.due || self.paused.contains(&job.new.queue);
        if job.phase != Phase::Waits || job.new.queue < from || is_stopped(job) || job.backs_off {
            return Ok(());
        }
        let Some(held) = held else {
            bail!("job {number} could begin, and does not: {job:?}");
        };
        let is_key_paused = job
            .new
            .key
            .is_some_and(|key| self.paused_keys.contains(&key));
        if is_key_paused || self.paused_kinds.contains(&job.new.kind) {
            return Ok(());
        }
        let subject = job.subject();
        let is_of = |other: &&Job, group| {
            other.phase == Phase::Waits && self.limits.groups(&other.subject()).contains(&group)
        };
        let mut groups = self.limits.groups(&subject).into_iter();
        let has_to = groups.any(|group| {
            let mut others = self.jobs.iter().filter(|other| is_of(other, group));
            // The first of the line lacks something, or has a place and cannot begin yet.
            others.any(|other| {
                let cost = other.subject().cost;
                let cannot = is_stopped(other) || other.new.queue < from;
                cannot || self.limits.may_wait(group, cost, self.now)
            })
        });
        let is_held = self.limits.is_held(&subject, self.now);
        ensure!(
            has_to || is_held,
            "job {number} waits for {held:?} in vain: {job:?}"
        );
        Ok(())
    }
}

/// The backoff of all kinds, in seconds.
pub(crate) const BACKOFF: u64 = 7;
