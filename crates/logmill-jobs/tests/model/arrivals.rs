//! First in, first out: of the jobs of a queue and a priority that nothing has held up, the one that was
//! enqueued first begins first.

use anyhow::{Result, bail};

use crate::model::{Job, Model};
use crate::operations::{New, What};

impl Model {
    /// A job has come to its queue. It has its turn if nothing holds it up.
    pub(crate) fn arrive(&mut self, number: usize) {
        let (job, subject) = (&self.jobs[number], self.jobs[number].subject());
        let is_free = job.begins() <= self.now
            && job.place.is_none()
            && !self.limits.may_hold(&subject)
            && !self.paused.contains(&subject.queue)
            && !self.paused_kinds.contains(&subject.kind)
            && !subject
                .key
                .is_some_and(|key| self.paused_keys.contains(&key));
        self.jobs[number].turn = is_free.then_some(self.step);
        if self.jobs[number].new.is_high {
            self.levels.insert(subject.queue);
        }
    }

    /// Some of the jobs that wait are put back, or are about to be.
    fn lose_turns(&mut self, of: impl Fn(&Job) -> bool) {
        for job in self.jobs.iter_mut().filter(|job| of(job)) {
            job.turn = None;
        }
    }

    /// What is paused is held when a worker comes to it. A queue that is paused while its workers run
    /// gets back what they have at hand.
    pub(crate) fn lose_turns_in_pause(&mut self, what: What) {
        match what {
            What::Queue(queue) => self.lose_turns(|job| job.new.queue == queue),
            What::Kind(kind) => self.lose_turns(|job| job.new.kind == kind),
            What::Key(key) => self.lose_turns(|job| job.new.key == Some(key)),
        }
    }

    /// A kind and a key are held back.
    pub(crate) fn lose_turns_in_hold(&mut self, (kind, key): (usize, Option<usize>)) {
        self.lose_turns(|job| job.new.kind == kind && job.new.key == key);
    }

    /// A level that was perhaps not used in this process: the workers then begin anew, and give back what
    /// they have at hand.
    pub(crate) fn use_level(&mut self, New { queue, is_high, .. }: New) {
        if is_high && !self.levels.contains(&queue) {
            self.lose_turns(|job| job.new.queue == queue);
        }
    }

    pub(crate) fn check_turn(&self, number: usize) -> Result<()> {
        let job = &self.jobs[number];
        let level = |job: &Job| (job.new.queue, job.new.is_high);
        let Some(turn) = job.turn else {
            return Ok(());
        };
        let passed = self.jobs.iter().position(|other| {
            let is_before = other.turn.is_some_and(|before| before < turn);
            is_before && level(other) == level(job) && self.obstacle(other).is_none()
        });
        match passed {
            None => Ok(()),
            Some(passed) => bail!("job {number} begins before job {passed}: {job:?}"),
        }
    }
}
