//! What a limit counts of a key: the jobs that run, the rate's memory, and the jobs that wait.

use std::time::Instant;

use super::limit::Limit;
use super::lines::Lines;
use crate::JobId;
use crate::backend::Held;

/// The jobs of a key, or of all of them if a limit does not tell them apart.
pub(super) struct Bucket {
    /// Counted where the limit [needs it](Limit::counts_running).
    pub(super) running: u32,
    /// When the next cell of the rate is due.
    pub(super) next: Option<Instant>,
    /// The same, counted by those that have begun. Jobs that were let through begin late where their queue is
    /// paused or no worker is free, and several would begin together then.
    pub(super) begun: Option<Instant>,
    /// Until when the key is closed, as a handler was told to slow down.
    pub(super) closed: Option<Instant>,
    pub(super) waiting: Lines,
    /// Its entry in the times of the gate.
    pub(super) time: Option<Instant>,
}

/// A job that waits; it goes back to its queue when it is dropped.
pub(super) struct Waiting {
    pub(super) id: JobId,
    /// How many cells of the rate, and how many turns of its key it takes.
    pub(super) cost: u32,
    /// When it came to wait, as a number that grows. One that comes back, or waits at another gate
    /// next, has its place by the same number.
    pub(super) came: u64,
    /// None until its worker holds it.
    pub(super) held: Option<Box<dyn Held>>,
}

/// Why there is no place.
pub(super) enum Refusal {
    Full,
    Until(Instant),
}

impl Bucket {
    pub(super) fn new(limit: &Limit) -> Self {
        Self {
            running: 0,
            next: None,
            begun: None,
            closed: None,
            waiting: Lines::new(limit.is_in_turn()),
            time: None,
        }
    }

    pub(super) fn refusal(&self, limit: &Limit, now: Instant, cost: u32) -> Option<Refusal> {
        if let Some(closed) = self.closed.filter(|closed| *closed > now) {
            return Some(Refusal::Until(closed));
        }
        if limit.at_once.is_some_and(|most| self.running >= most) {
            return Some(Refusal::Full);
        }
        let rate = limit.rate?;
        let mut until = self.next.and_then(|next| rate.until(next, cost));
        // Where nobody came late they are the same, and more may begin than be let through.
        if self.begun != self.next {
            until = until.max(self.begun.and_then(|next| rate.until_begun(next, cost)));
        }
        let until = until?;
        (until > now).then_some(Refusal::Until(until))
    }

    /// Takes a place for a job that begins at once.
    pub(super) fn take_and_begin(&mut self, limit: &Limit, now: Instant, cost: u32) {
        let nobody_is_late = self.begun == self.next;
        self.take(limit, now, cost);
        match nobody_is_late {
            true => self.begun = self.next,
            false => _ = self.begin(limit, now, cost),
        }
    }

    /// When a job may begin that was let through before; None if it may now, and counts as begun then.
    pub(super) fn begin(&mut self, limit: &Limit, now: Instant, cost: u32) -> Option<Instant> {
        let rate = limit.rate?;
        let until = self.begun.and_then(|next| rate.until_begun(next, cost));
        if let Some(until) = until.filter(|until| *until > now) {
            return Some(until);
        }
        self.begun = rate.after(self.begun, now, cost);
        None
    }

    /// Gives the cells of a job back that did not begin, whether it was about to or not.
    pub(super) fn give_back_cells(
        &mut self,
        limit: &Limit,
        now: Instant,
        cost: u32,
        was_about_to: bool,
    ) {
        let Some(rate) = limit.rate else {
            return;
        };
        let given_back = |next: Option<Instant>| rate.given_back(next?, cost);
        self.next = given_back(self.next);
        if was_about_to {
            self.begun = given_back(self.begun);
        }
        // No burst follows the end of a hold.
        if let Some(closed) = self.closed.filter(|closed| *closed > now) {
            self.next = self.next.max(rate.closed_until(closed));
        }
    }

    /// Why the first job that waits has no place.
    pub(super) fn refusal_of_first(&mut self, limit: &Limit, now: Instant) -> Option<Refusal> {
        let cost = self.waiting.front()?.cost;
        self.refusal(limit, now, cost)
    }

    pub(super) fn take(&mut self, limit: &Limit, now: Instant, cost: u32) {
        self.running += u32::from(limit.counts_running());
        if let Some(rate) = limit.rate {
            self.next = rate.after(self.next, now, cost);
        }
    }

    /// Lets nobody through before this time.
    pub(super) fn close(&mut self, limit: &Limit, until: Instant) {
        self.closed = self.closed.max(Some(until));
        // No burst follows.
        let next = limit.rate.and_then(|rate| rate.closed_until(until));
        self.next = self.next.max(next);
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let has_passed = |time: Option<Instant>| time.is_none_or(|time| time <= now);
        let is_open = [self.next, self.begun, self.closed]
            .into_iter()
            .all(has_passed);
        self.running == 0 && self.waiting.is_empty() && is_open
    }
}
