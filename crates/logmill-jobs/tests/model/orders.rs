//! Strict orders of the model: the lines of jobs with a key, and who blocks whom.

use anyhow::{Result, ensure};
use logmill_jobs::{BlockedKey, JobId};

use crate::model::{End, Job, Model, Phase};
use crate::operations::{KEYS, New, Scope};

/// The place of a job in its line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Which order, and the key.
    line: (usize, usize),
    /// The step in which it was enqueued. Which of several that were enqueued in one step is first is seen
    /// when one of them begins.
    step: u64,
    has_begun: bool,
    /// The others pass it.
    is_skipped: bool,
}

impl Place {
    fn rank(self) -> (u64, bool) {
        (self.step, !self.has_begun)
    }
}

impl Model {
    /// Enters a job into its line, if there is an order for it.
    pub(crate) fn line_up(&mut self, number: usize) {
        let New {
            queue, kind, key, ..
        } = self.jobs[number].new;
        let mut orders = self.orders.iter();
        let order = orders.position(|scope| match *scope {
            Scope::Queue(of) => of == queue,
            Scope::Kind(of) => of == kind,
        });
        self.jobs[number].place = order.zip(key).map(|line| Place {
            line,
            step: self.step,
            has_begun: false,
            is_skipped: false,
        });
    }

    /// A job begins: it is before those that were enqueued with it.
    pub(crate) fn begin_in_line(&mut self, number: usize) {
        if let Some(place) = &mut self.jobs[number].place {
            place.has_begun = true;
        }
    }

    /// The others that are in the line of a job, and that do not let others pass.
    fn in_line(&self, place: Place) -> impl Iterator<Item = (Place, &Job)> {
        let jobs = self.jobs.iter();
        let placed = jobs.filter_map(|job| Some((job.place?, job)));
        placed.filter(move |(other, job)| {
            let blocks = match job.phase {
                Phase::Waits | Phase::Runs => true,
                Phase::Ended(End::Dead) => job.is_letter,
                Phase::NotYet | Phase::Ended(_) => false,
            };
            other.line == place.line && blocks && !other.is_skipped
        })
    }

    /// Whether another job is before this one in its line, or runs.
    pub(crate) fn is_blocked(&self, number: usize) -> bool {
        let Some(place) = self.jobs[number].place else {
            return false;
        };
        let mut others = self.in_line(place);
        let is_before =
            |(other, job): (Place, &Job)| other.rank() < place.rank() || job.phase == Phase::Runs;
        !place.is_skipped && others.any(is_before)
    }

    /// Whether a job may have to wait for another one in its line.
    pub(crate) fn may_be_blocked(&self, number: usize) -> bool {
        let Some(place) = self.jobs[number].place else {
            return false;
        };
        let others = self.in_line(place);
        let ahead =
            others.filter(|(other, job)| other.step <= place.step || job.phase == Phase::Runs);
        // It is one of them.
        !place.is_skipped && ahead.count() > 1
    }

    /// Compares the keys that failed jobs block with those that the mill names.
    pub(crate) fn check_blocked(&self, blocked: &[BlockedKey], is_exact: bool) -> Result<()> {
        let mut heads = 0;
        for (number, job) in self.jobs.iter().enumerate() {
            let Some(place) = job.place else { continue };
            let is_dead = job.phase == Phase::Ended(End::Dead) && job.is_letter;
            let is_first = !place.is_skipped && !self.is_blocked(number);
            if !is_dead || !is_first {
                continue;
            }
            heads += 1;
            let mut named = blocked.iter();
            let named = named.find(|named| Some(&named.head) == job.id.as_ref());
            let behind = self.in_line(place).count() - 1;
            let is_it = named.is_some_and(|named| {
                let is_behind = !is_exact || named.behind == behind;
                named.is_dead && named.key == KEYS[place.line.1] && is_behind
            });
            ensure!(
                is_it,
                "job {number} blocks its key before {behind}: {job:?}, {blocked:?}"
            );
        }
        let dead = blocked.iter().filter(|blocked| blocked.is_dead).count();
        ensure!(dead == heads, "{heads} keys are blocked, not {blocked:?}");
        for one in blocked.iter().filter(|blocked| !blocked.is_dead) {
            let job = self.job_with(&one.head);
            let backs_off = job.is_some_and(|job| job.phase == Phase::Waits && job.failed > 0);
            ensure!(backs_off, "{one:?} is {job:?}");
        }
        Ok(())
    }

    /// The others pass a job.
    pub(crate) fn unblock(&mut self, head: &JobId) {
        let mut jobs = self.jobs.iter_mut();
        let found = jobs.find(|job| job.id.as_ref() == Some(head));
        if let Some(place) = found.and_then(|job| job.place.as_mut()) {
            place.is_skipped = true;
        }
    }

    /// A dead job comes again, in its place.
    pub(crate) fn replay_in_line(&mut self, number: usize) {
        if let Some(place) = &mut self.jobs[number].place {
            place.is_skipped = false;
        }
    }

    /// What the mill forgets at its end of a job in a line: that it is passed, unless it is dead.
    pub(crate) fn restart_line(job: &mut Job) {
        let is_dead = matches!(job.phase, Phase::Ended(_));
        if let Some(place) = &mut job.place {
            place.is_skipped &= is_dead;
        }
    }
}
