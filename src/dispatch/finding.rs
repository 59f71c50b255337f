//! Finding the next job for a consumer: among its own leases and runs, in the logs, among what came
//! back, or among others' leases and runs.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;

use crossbeam_deque::Steal;

use super::registry::ConsumerPlace;
use super::source::{Deques, SPINS_PER_LOOK, Thief, Turn};
use super::{CLAIM_BYTES, CLAIM_JOBS, Dispatch};
use crate::log::Log;
use crate::log::lease::Lease;
use crate::log::run::{Claim, Run};

/// So often in a row a consumer that has nothing to do leaves others their leases at hand.
const MOST_LEFT_ALONE: u32 = 32;

impl Dispatch {
    /// The next job for the consumer that owns the deques, without a search elsewhere.
    #[inline]
    pub(super) fn find_at_hand(&self, own: &Deques) -> Option<Lease> {
        match self.came_back.is_empty() {
            // Turns only matter once something came back.
            true => own.pop(),
            false => self.find_in_turn(own),
        }
    }

    fn find_in_turn(&self, own: &Deques) -> Option<Lease> {
        if own.turn.get() == Turn::CameBack
            && let Some(lease) = self.take_back(own)
        {
            return Some(lease);
        }
        if let Some(lease) = own.pop_lease() {
            return Some(lease);
        }
        let is_all_there_is = !self.came_back.is_empty()
            && !own.has_runs()
            && !self.suspects.can_take()
            // This check costs less than a claim that finds nothing.
            && !self.may_have_new(own);
        if is_all_there_is {
            self.take_back(own)
        } else {
            None
        }
    }

    /// The next job for the consumer that owns the deques. A suspect comes first, because only one
    /// runs at a time, but a consumer takes no two suspects in a row while there are other jobs.
    pub(super) fn find(&self, own: &Deques, patient: bool) -> Option<Lease> {
        if !own.had_suspect.get()
            && let Some(lease) = self.suspects.take()
        {
            own.had_suspect.set(true);
            return Some(lease);
        }
        own.had_suspect.set(false);
        self.find_ordinary(own, patient)
            .or_else(|| self.suspects.take())
    }

    /// A job that came back and a new job in turn. New jobs are looked for in the consumer's own
    /// deques, then in the logs, and then in other consumers' deques. `patient` callers skip the
    /// logs while they should keep their distance from a producer.
    fn find_ordinary(&self, own: &Deques, patient: bool) -> Option<Lease> {
        loop {
            if let Some(lease) = self.find_in_turn(own) {
                return Some(lease);
            }
            let run = match own.pop_run() {
                Some(run) => run,
                None => match self.find_elsewhere(own, patient) {
                    Some(Work::Run(run)) => run,
                    Some(Work::Lease(lease)) => {
                        own.turn.set(Turn::CameBack);
                        return Some(lease);
                    }
                    None => return self.take_back(own),
                },
            };
            self.expand(run, own);
            if let Some(lease) = own.pop_lease() {
                return Some(lease);
            }
            // No job of the run is due. Jobs that came back do not wait until all such runs are
            // expanded.
            own.turn.set(Turn::CameBack);
        }
    }

    /// Takes a job that came back. One at a time: the rest of a batch would wait behind a slow job.
    fn take_back(&self, own: &Deques) -> Option<Lease> {
        let lease = steal(|| self.came_back.steal())?;
        own.turn.set(Turn::New);
        Some(lease)
    }

    /// Finds new jobs outside the consumer's deques: in the logs, or in other consumers' deques.
    fn find_elsewhere(&self, own: &Deques, patient: bool) -> Option<Work> {
        let steals_first = own.steals_first();
        let stolen = if steals_first { self.steal(own) } else { None };
        stolen
            .or_else(|| match patient && own.keeps_distance() {
                true => None,
                false => self.claim(own).map(Work::Run),
            })
            .or_else(|| match steals_first {
                true => None,
                false => self.steal(own),
            })
    }

    /// Claims runs into the deques, from the home stripe or else from the next ones; returns the
    /// first run.
    fn claim(&self, own: &Deques) -> Option<Run> {
        // The vector is taken out of its cell: a subscriber may have this very consumer look for a
        // job.
        let mut claimed = own.claimed.take();
        let first = self.claim_into(own, &mut claimed);
        own.claimed.set(claimed);
        first
    }

    fn claim_into(&self, own: &Deques, claimed: &mut Vec<Run>) -> Option<Run> {
        let stripes = self.stripes.len();
        let first = own.first_stripe();
        for at in 0..stripes {
            let stripe = &self.stripes[(first + at) % stripes];
            match stripe.claim(CLAIM_JOBS, CLAIM_BYTES, self.counted, claimed) {
                Claim::Taken { caught_up } => {
                    let jobs = claimed.iter().map(Run::jobs).sum();
                    own.note_claim(jobs, caught_up);
                    self.naps.note_claimed(jobs);
                    let mut runs = claimed.drain(..);
                    let first = runs.next();
                    for run in runs {
                        own.push_run(run);
                    }
                    return first;
                }
                Claim::Empty | Claim::Exhausted => {}
            }
        }
        own.note_claim(0, true);
        None
    }

    /// Marks the deques, and wakes a consumer to steal, if they hold more than the next `taken`
    /// jobs. That consumer wakes another one in the same way.
    ///
    /// This also wakes consumers that looked while jobs were on their way into the deques and saw
    /// them nowhere.
    pub(super) fn offer(&self, own: &Deques, taken: usize) {
        if own.leases() > taken || own.has_runs() {
            self.consumers.mark(own.place);
            self.sleepers.notify_fenced(1);
        }
    }

    /// Steals a run, or else leases, from another consumer.
    fn steal(&self, own: &Deques) -> Option<Work> {
        self.consumers
            .marked_after(own.place)
            .find_map(|place| self.steal_from(place, own))
    }

    fn steal_from(&self, place: ConsumerPlace<'_>, own: &Deques) -> Option<Work> {
        let mut found = None;
        let mut is_more_left = false;
        if let Some(other) = &*place.thief() {
            let run = steal(|| other.steal_run()).map(Work::Run);
            let lease = || steal(|| other.leases.steal_batch_and_pop(&own.leases));
            found = run.or_else(|| {
                let lease = lease().or_else(|| self.take_at_hand(other, own));
                lease.map(Work::Lease)
            });
            is_more_left = found.is_some() && other.has_work();
            if found.is_none() && other.at_hand.has_any() {
                // It is at work on them, or another one takes some.
                return None;
            }
        }
        // Nobody is woken while the other consumer's place is locked.
        match &found {
            Some(work) => {
                if matches!(work, Work::Lease(_)) {
                    self.offer(own, 0);
                }
                if is_more_left {
                    self.sleepers.notify_fenced(1);
                }
            }
            None => {
                if !place.note_empty() {
                    // Others may have looked before the bit was set again.
                    self.sleepers.notify_fenced(1);
                }
            }
        }
        found
    }

    /// Takes leases that another consumer has at hand. One that is taking them itself is mostly left
    /// alone: it is done with them sooner than a barrier is.
    fn take_at_hand(&self, other: &Thief, own: &Deques) -> Option<Lease> {
        if !other.at_hand.has_any() {
            return None;
        }
        let before = other.at_hand.progress();
        for _ in 0..SPINS_PER_LOOK {
            spin_loop();
        }
        let left_alone = own.left_alone.get();
        if other.at_hand.progress() != before && left_alone < MOST_LEFT_ALONE {
            own.left_alone.set(left_alone + 1);
            return None;
        }
        own.left_alone.set(0);
        let mut taken = Vec::new();
        if other.at_hand.take(&self.gate, &mut taken).is_err() {
            self.shares.store(true, Ordering::Relaxed);
        }
        let mut taken = taken.into_iter();
        let first = taken.next();
        taken.for_each(|lease| own.leases.push(lease));
        first
    }

    /// Whether there may be new jobs in the logs or in other consumers' deques.
    fn may_have_new(&self, own: &Deques) -> bool {
        let mut marked = self.consumers.marked_after(own.place);
        self.stripes.iter().any(Log::may_have_work) || marked.next().is_some()
    }
}

/// What a consumer finds outside its own deques.
enum Work {
    Run(Run),
    Lease(Lease),
}

/// Repeats an operation for as long as it loses races.
fn steal<T>(mut attempt: impl FnMut() -> Steal<T>) -> Option<T> {
    loop {
        match attempt() {
            Steal::Success(value) => return Some(value),
            Steal::Empty => return None,
            Steal::Retry => std::hint::spin_loop(),
        }
    }
}
