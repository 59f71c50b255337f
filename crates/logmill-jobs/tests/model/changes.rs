//! What operators and restarts change in the model: pauses, cancels, edits, replays.

use anyhow::Result;
use logmill_jobs::JobId;

use crate::model::{End, Model, Phase};
use crate::operations::{Change, What};

impl Model {
    pub(crate) fn pause(&mut self, what: What) {
        self.lose_turns_in_pause(what);
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
                self.step += 1;
                self.jobs[number].is_cancelled = true;
                self.end_in_flow(number, End::Cancelled);
            }
            Phase::NotYet | Phase::Ended(_) => {}
        }
    }

    /// `arguments` are those of a call that nothing else has made.
    pub(crate) fn edit(
        &mut self,
        number: usize,
        change: Change,
        arguments: usize,
        id: &JobId,
    ) -> Result<()> {
        let now = self.now;
        let job = &mut self.jobs[number];
        match change {
            Change::Now => (job.due, job.not_before) = (now, 0),
            Change::After(after) => (job.due, job.not_before) = (now + after, 0),
            Change::Priority(is_high) => job.new.is_high = is_high,
            Change::Queue(queue) => job.new.queue = queue,
            Change::Arguments => {
                job.arguments = arguments;
                self.jobs_of.insert(arguments, number);
            }
            Change::ExpiresAfter(after) => job.expires = Some(now + after),
        }
        let job = &mut self.jobs[number];
        (job.failed, job.backs_off, job.turn) = (0, false, None);
        let new = job.new;
        self.use_level(new);
        self.step += 1;
        self.line_up(number);
        self.know(number, id)
    }

    /// A dead job comes again, as a job of its own.
    pub(crate) fn replay(&mut self, number: usize, id: &JobId) -> Result<()> {
        let job = &mut self.jobs[number];
        job.phase = Phase::Waits;
        (job.failed, job.due, job.not_before) = (0, self.now, 0);
        job.expires = None;
        job.turn = None;
        (job.is_letter, job.node) = (false, None);
        self.leave_schedule(number);
        self.replay_in_line(number);
        self.know(number, id)
    }

    /// The process ends, in whatever way, and another one begins.
    pub(crate) fn restart(&mut self) {
        self.limits.forget();
        self.levels.clear();
        for job in &mut self.jobs {
            job.backs_off = job.phase == Phase::Waits && job.failed > 0;
            Self::restart_line(job);
        }
    }
}
