//! The schedules of the model: which ticks enqueue a job, and what becomes of those that were missed.

use logmill_jobs::Scheduled;

use crate::model::{Model, Phase};
use crate::operations::{Missed, New, SCHEDULES};

/// A schedule as its user has said it. Times are seconds since the case began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Definition {
    pub(crate) new: New,
    pub(crate) every: u64,
    pub(crate) starts: Option<u64>,
    pub(crate) ends: Option<u64>,
    pub(crate) at_most: Option<u64>,
    pub(crate) missed: Missed,
}

/// A schedule that is stored.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) definition: Definition,
    /// The number of the call that has stored its job.
    pub(crate) number: usize,
    /// From when on its periods count.
    anchor: u64,
    pub(crate) next: Option<u64>,
    pub(crate) last: Option<u64>,
    pub(crate) runs: u64,
    pub(crate) skipped: u64,
    pub(crate) is_paused: bool,
    /// Its jobs that may not have ended.
    jobs: Vec<usize>,
}

/// What a schedule does while the job of an earlier tick has not ended.
pub(crate) fn is_unless_running(schedule: usize) -> bool {
    schedule == 1
}

impl Plan {
    fn has_had_all(&self) -> bool {
        let most = self.definition.at_most;
        most.is_some_and(|most| self.runs >= most)
    }

    /// Its first tick at this time or later, whether it is paused or not.
    fn tick_from(&self, from: u64) -> Option<u64> {
        let Definition {
            every,
            starts,
            ends,
            ..
        } = self.definition;
        let first = starts.unwrap_or(self.anchor + every);
        let next = first + from.saturating_sub(first).div_ceil(every) * every;
        ends.is_none_or(|ends| next <= ends).then_some(next)
    }

    /// Plans the first tick at this time or later.
    fn plan_from(&mut self, from: u64) {
        let is_over = self.is_paused || self.has_had_all();
        self.next = match is_over {
            true => None,
            false => self.tick_from(from),
        };
    }

    /// Plans the first tick that is still to come.
    fn plan_after(&mut self, now: u64) {
        let after = self.last.map_or(now, |last| last.max(now));
        self.plan_from(after + 1);
    }

    /// The ticks that are due, without those that were missed and are left out.
    fn due(&self, now: u64) -> Vec<u64> {
        let first = self.next.filter(|next| *next <= now);
        let due = std::iter::successors(first, |tick| self.tick_from(tick + 1));
        let due: Vec<_> = due.take_while(|tick| *tick <= now).collect();
        let most = match self.definition.missed {
            Missed::Skip => 1,
            Missed::Once => 1,
            Missed::All(most) => most as usize,
        };
        let mut due = due[due.len().saturating_sub(most)..].to_vec();
        if self.definition.missed == Missed::Skip {
            due.retain(|tick| now - tick <= 60);
        }
        due
    }
}

impl Model {
    /// Stores a schedule; None stores the one that is there once more. Returns the number of its job's
    /// call, and what that does.
    pub(crate) fn schedule(
        &mut self,
        schedule: usize,
        definition: Option<Definition>,
    ) -> Option<(Plan, Scheduled)> {
        let old = self.plans[schedule].clone();
        let Some(definition) = definition else {
            return old.map(|old| (old, Scheduled::Unchanged));
        };
        let (number, now) = (self.call(definition.new), self.now);
        let mut plan = Plan {
            definition,
            number,
            anchor: now,
            next: None,
            last: None,
            runs: 0,
            skipped: 0,
            is_paused: false,
            jobs: Vec::new(),
        };
        let scheduled = match old {
            None => {
                plan.plan_from(now);
                Scheduled::Created
            }
            Some(old) => {
                let timing = |plan: &Plan| {
                    let Definition {
                        every,
                        starts,
                        ends,
                        ..
                    } = plan.definition;
                    (every, starts, ends)
                };
                let is_same = timing(&old) == timing(&plan);
                plan = Plan {
                    anchor: if is_same { old.anchor } else { now },
                    definition,
                    number,
                    ..old
                };
                if !is_same || plan.next.is_none() || plan.has_had_all() {
                    plan.plan_after(now);
                }
                Scheduled::Replaced
            }
        };
        self.plans[schedule] = Some(plan.clone());
        self.tick();
        Some((plan, scheduled))
    }

    pub(crate) fn set_schedule_paused(&mut self, schedule: usize, is_paused: bool) -> bool {
        let now = self.now;
        let Some(plan) = &mut self.plans[schedule] else {
            return false;
        };
        if plan.is_paused != is_paused {
            plan.is_paused = is_paused;
            plan.plan_after(now);
        }
        true
    }

    pub(crate) fn remove_schedule(&mut self, schedule: usize) -> bool {
        self.plans[schedule].take().is_some()
    }

    /// Enqueues the job of a schedule between its ticks. Returns its number.
    pub(crate) fn run_now(&mut self, schedule: usize) -> Option<usize> {
        let number = self.plans[schedule].as_ref()?.number;
        Some(self.enqueue_tick(schedule, number, None))
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self) {
        let now = self.now;
        for schedule in 0..SCHEDULES.len() {
            let Some(plan) = &self.plans[schedule] else {
                continue;
            };
            let number = plan.number;
            for tick in plan.due(now) {
                let is_running = self.is_running(schedule);
                let Some(plan) = &mut self.plans[schedule] else {
                    break;
                };
                match (plan.has_had_all(), is_running) {
                    (true, _) => break,
                    (false, true) => plan.skipped += 1,
                    (false, false) => {
                        plan.runs += 1;
                        plan.last = Some(tick);
                        self.enqueue_tick(schedule, number, Some(tick));
                    }
                }
            }
            if let Some(plan) = &mut self.plans[schedule]
                && plan.next.is_some_and(|next| next <= now)
            {
                plan.plan_from(now + 1);
            }
        }
    }

    fn is_running(&self, schedule: usize) -> bool {
        let jobs = self.plans[schedule].iter().flat_map(|plan| &plan.jobs);
        let mut jobs = jobs.map(|&job| &self.jobs[job]);
        is_unless_running(schedule)
            && jobs.any(|job| matches!(job.phase, Phase::Waits | Phase::Runs))
    }

    fn enqueue_tick(&mut self, schedule: usize, call: usize, tick: Option<u64>) -> usize {
        let number = self.enqueue(self.jobs[call].new);
        let now = self.now;
        let job = &mut self.jobs[number];
        job.arguments = call;
        job.scheduled = Some((schedule, tick));
        job.due = tick.unwrap_or(now) + job.new.delay;
        if tick.is_some() {
            // A thread of the mill may have enqueued it.
            job.turn = None;
        }
        if let Some(plan) = &mut self.plans[schedule] {
            plan.jobs.push(number);
        }
        number
    }

    /// A dead job that comes again is none of its schedule's.
    pub(crate) fn leave_schedule(&mut self, number: usize) {
        for plan in self.plans.iter_mut().flatten() {
            plan.jobs.retain(|job| *job != number);
        }
    }
}
