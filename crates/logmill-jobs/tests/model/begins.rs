//! When jobs of the model begin: what keeps one from it, and whether one that waits has to.

use anyhow::{Result, bail, ensure};

use crate::model::{Job, Model, Phase};

impl Model {
    /// Whether a job is not begun any more. One that has spent an attempt has begun.
    pub(crate) fn has_expired(&self, job: &Job) -> bool {
        job.expires.is_some_and(|at| at <= self.now) && job.failed == 0
    }

    /// Why a job may not begin now, apart from limits.
    pub(crate) fn obstacle(&self, job: &Job) -> Option<&'static str> {
        let is_key_paused = job
            .new
            .key
            .is_some_and(|key| self.paused_keys.contains(&key));
        let is_late = self.has_expired(job);
        [
            (job.phase != Phase::Waits, "it does not wait"),
            (self.now < job.begins(), "it is not due"),
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

    /// A handler is called with these arguments.
    pub(crate) fn begin(
        &mut self,
        number: usize,
        arguments: usize,
        (attempt, crashes): (u32, u32),
    ) -> Result<()> {
        let job = &self.jobs[number];
        ensure!(
            job.arguments == arguments,
            "job {number} runs with the arguments {arguments}: {job:?}"
        );
        if let Some(why) = self.obstacle(job) {
            bail!("job {number} begins, and {why}: {job:?}");
        }
        ensure!(
            !self.is_blocked(number),
            "job {number} begins, and another one of its line does not let it: {job:?}"
        );
        self.check_turn(number)?;
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
        self.begin_in_line(number);
        Ok(())
    }

    /// Whether a job has to wait that workers of the queues from this one on have left. `held` is why
    /// the mill says that it is held.
    pub(crate) fn check_waits(&self, number: usize, from: usize, held: Option<&str>) -> Result<()> {
        let job = &self.jobs[number];
        let is_stopped =
            |job: &Job| self.now < job.begins() || self.paused.contains(&job.new.queue);
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
        if self.may_be_blocked(number) || is_key_paused || self.paused_kinds.contains(&job.new.kind)
        {
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
                let cannot = is_stopped(other) || other.new.queue < from;
                cannot || self.limits.may_wait(group, other.most_cost, self.now)
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
