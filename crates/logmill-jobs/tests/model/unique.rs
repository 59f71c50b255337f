//! Unique jobs of the model: who has a key, and what a call with it does.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use logmill_jobs::{JobId, Outcome};

use crate::model::{Model, Phase};
use crate::operations::{Mode, New};

/// The keys of unique jobs, by kind and key.
pub(crate) struct Keys {
    modes: Vec<Mode>,
    taken: HashMap<(usize, usize), Taken>,
}

/// A key that a job has, or had a moment ago.
#[derive(Clone, Debug, Default)]
struct Taken {
    /// None once the leading job has ended.
    job: Option<usize>,
    /// Its first id, which is the one that a key of a period names.
    id: Option<JobId>,
    /// When the period ends, or the time after the call of a leading job.
    until: u64,
    is_leading: bool,
    /// When the first call was made that a debounced job is for.
    first: u64,
    /// The job that follows.
    kept: Option<Kept>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    job: usize,
    due: u64,
    first: u64,
}

impl Keys {
    pub(crate) fn new(modes: Vec<Mode>) -> Self {
        Self {
            modes,
            taken: HashMap::new(),
        }
    }

    pub(crate) fn mode(&self, key: usize) -> Mode {
        self.modes[key]
    }
}

impl Model {
    /// A call with a key. Returns its number, the job that its handle is of, and what it does.
    pub(crate) fn call_with_key(&mut self, key: usize, new: New) -> (usize, usize, Outcome) {
        self.step += 1;
        let number = self.call(new);
        let at = (new.kind, key);
        let taken = self.keys.taken.get(&at).cloned().unwrap_or_default();
        let mode = self.keys.mode(key);
        let (job, outcome) = match taken.job {
            Some(job) if self.has_key(mode, &taken) => match self.second_call(mode, &taken, job) {
                Outcome::New => (number, Outcome::New),
                outcome => (job, outcome),
            },
            _ => (number, Outcome::New),
        };
        match outcome {
            Outcome::Replaced | Outcome::PutOff => self.replace(at, mode, job, number),
            Outcome::Kept => self.keep(at, mode, number),
            Outcome::New => self.first_call(at, mode, number),
            _ => {}
        }
        (number, job, outcome)
    }

    /// What the handle of a call has said.
    pub(crate) fn called(&mut self, key: usize, job: usize, id: &JobId) -> Result<()> {
        let at = (self.jobs[job].new.kind, key);
        let is_period = matches!(self.keys.mode(key), Mode::Period(_));
        if let Some(taken) = self.keys.taken.get_mut(&at)
            && is_period
        {
            let first = taken.id.get_or_insert_with(|| id.clone());
            ensure!(first == id, "the job of a period is {first}, not {id}");
            if self.jobs[job].id.is_some() {
                return Ok(());
            }
        }
        self.know(job, id)
    }

    /// One that was cancelled has its key until its handler has ended.
    fn has_key(&self, mode: Mode, taken: &Taken) -> bool {
        match mode {
            Mode::Period(_) => self.now < taken.until,
            _ => true,
        }
    }

    /// What a call does that finds a job with its key.
    fn second_call(&self, mode: Mode, taken: &Taken, job: usize) -> Outcome {
        let runs = self.jobs[job].phase == Phase::Runs;
        // One that follows is kept until the job has ended, also between two attempts.
        let is_fixed = runs || taken.is_leading || taken.kept.is_some();
        match mode {
            Mode::Plain | Mode::Period(_) => Outcome::Existing,
            Mode::WhileWaiting { .. } if runs => Outcome::New,
            Mode::WhileWaiting {
                is_replacing: false,
            } => Outcome::Existing,
            Mode::Replacing if runs => Outcome::Existing,
            Mode::Replacing | Mode::WhileWaiting { .. } => Outcome::Replaced,
            Mode::KeepLatest | Mode::Debounce { .. } if is_fixed => Outcome::Kept,
            Mode::KeepLatest => Outcome::Replaced,
            Mode::Debounce { .. } => Outcome::PutOff,
        }
    }

    /// When a call of now, after others since `first`, has its job begin.
    fn due_after(&self, mode: Mode, new: &New, first: u64) -> u64 {
        match mode {
            Mode::Debounce { time, max_wait, .. } => {
                let next = self.now + time;
                max_wait.map_or(next, |most| next.min(first + most))
            }
            _ => self.now + new.delay,
        }
    }

    /// Enqueues a job, which takes the key.
    fn first_call(&mut self, at: (usize, usize), mode: Mode, number: usize) {
        let (now, new) = (self.now, self.jobs[number].new);
        let before = self.keys.taken.remove(&at).unwrap_or_default();
        let mut taken = Taken {
            job: Some(number),
            first: now,
            ..Taken::default()
        };
        self.enter(number);
        match mode {
            Mode::Period(period) => taken.until = now + period,
            Mode::Debounce {
                is_leading, time, ..
            } => {
                let is_quiet = before.job.is_none() && now < before.until;
                taken.is_leading = is_leading && !is_quiet && before.kept.is_none();
                if taken.is_leading {
                    taken.until = now + time;
                    self.jobs[number].due = now;
                } else {
                    taken.first = before.kept.map_or(now, |kept| kept.first);
                    self.jobs[number].due = self.due_after(mode, &new, taken.first);
                    self.jobs[number].turn = None;
                }
            }
            _ => {}
        }
        self.keys.taken.insert(at, taken);
    }

    /// A job that waits gets the arguments and options of a call, but for its queue, priority and key of
    /// limits.
    fn replace(&mut self, at: (usize, usize), mode: Mode, job: usize, number: usize) {
        let new = self.jobs[number].new;
        let first = self.keys.taken.get(&at).map_or(0, |taken| taken.first);
        let not_before = self.due_after(mode, &new, first);
        let now = self.now;
        let replaced = &mut self.jobs[job];
        replaced.arguments = number;
        // No call brings it forward.
        replaced.not_before = replaced.not_before.max(not_before);
        if replaced.not_before > now {
            replaced.turn = None;
        }
        replaced.most_cost = replaced.most_cost.max(new.cost.unwrap_or(1));
        replaced.expires = new.expires.map(|after| now + after);
        replaced.new = New {
            queue: replaced.new.queue,
            is_high: replaced.new.is_high,
            key: replaced.new.key,
            ..new
        };
        self.jobs_of.insert(number, job);
    }

    /// A call is for the job that follows.
    fn keep(&mut self, at: (usize, usize), mode: Mode, number: usize) {
        let new = self.jobs[number].new;
        let now = self.now;
        let kept = self.keys.taken.get(&at).and_then(|taken| taken.kept);
        let first = kept.map_or(now, |kept| kept.first);
        let due = self.due_after(mode, &new, first);
        self.jobs[number].expires = new.expires.map(|after| now + after);
        if let Some(taken) = self.keys.taken.get_mut(&at) {
            taken.kept = Some(Kept {
                job: number,
                due,
                first,
            });
        }
    }

    /// A job has ended. Its key is free, or that of the job that follows.
    pub(crate) fn release(&mut self, number: usize) {
        let now = self.now;
        let found = self.keys.taken.iter_mut();
        let found = found.filter(|(_, taken)| taken.job == Some(number));
        let Some((&at, taken)) = found.into_iter().next() else {
            return;
        };
        if matches!(self.keys.modes[at.1], Mode::Period(_)) {
            return;
        }
        if let Some(kept) = taken.kept {
            *taken = Taken {
                job: Some(kept.job),
                first: kept.first,
                ..Taken::default()
            };
            let job = &mut self.jobs[kept.job];
            (job.phase, job.due) = (Phase::Waits, kept.due);
            let kept = kept.job;
            self.line_up(kept);
            self.arrive(kept);
        } else if now < taken.until {
            *taken = Taken {
                until: taken.until,
                ..Taken::default()
            };
        } else {
            self.keys.taken.remove(&at);
        }
    }
}
