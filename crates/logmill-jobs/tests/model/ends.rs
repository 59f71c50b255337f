//! How jobs of the model end: what the end of an attempt means, and what the mill tells of it.

use anyhow::{Result, bail, ensure};
use logmill_jobs::JobId;

use crate::model::{BACKOFF, End, Job, Model, Phase};
use crate::operations::{New, Outcome, QUEUES};

impl Model {
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
            self.lose_turns_in_hold((subject.kind, subject.key));
        }
        let back = match outcome {
            Outcome::Done => return self.ended(number, End::Done),
            Outcome::Follow => {
                self.ended(number, End::Done);
                let New { queue, kind, .. } = self.jobs[number].new;
                let follows = self.call(New::following(queue, kind));
                self.enter(follows);
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
        let job = &mut self.jobs[number];
        job.failed += back.0;
        job.turn = None;
        job.due = now + back.1;
        job.phase = Phase::Waits;
    }

    pub(crate) fn ended(&mut self, number: usize, end: End) {
        self.step += 1;
        let job = &mut self.jobs[number];
        job.phase = Phase::Ended(end);
        job.is_told = false;
        job.is_letter = end == End::Dead;
        self.end_in_flow(number, end);
        self.release(number);
    }

    pub(crate) fn end_in_flow(&mut self, number: usize, end: End) {
        if let Some((flow, at)) = self.jobs[number].node {
            for enqueued in self.flows[flow].end(at, end) {
                self.enter(enqueued);
            }
            // One that has ended before it was enqueued may have been enqueued now all the same.
            let nodes = self.flows[flow].nodes.iter().map(|node| node.job);
            for number in nodes.collect::<Vec<_>>() {
                let job = &self.jobs[number];
                let has_ended = self.ended_in_flow(job).is_some();
                if job.phase == Phase::NotYet && has_ended && !job.may_be_there {
                    self.enter(number);
                    let job = &mut self.jobs[number];
                    (job.phase, job.may_be_there) = (Phase::NotYet, true);
                }
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
                    let is_new = job.id.is_none() && !matches!(job.phase, Phase::Ended(_));
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
        if matches!(job.phase, Phase::NotYet | Phase::Waits) {
            // A worker came to it, and did not call the handler.
            let has_expired = self.has_expired(job);
            let is_due = self.now >= job.begins() && !self.paused.contains(&job.new.queue);
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
}
