//! A queue whose jobs are in orders.

use std::sync::Arc;

use super::backend::Entered;
use super::line::Revival;
use super::{Orders, Spot, skip};
use crate::JobId;
use crate::backend::{Backend, BackendError, Cancelled, DeadJob, NewJob, Queue, QueueStats, Seen};
use crate::keys;

pub(super) struct OrderedQueue {
    pub(super) inner: Box<dyn Queue>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) place: Arc<str>,
    pub(super) orders: Arc<Orders>,
}

impl OrderedQueue {
    /// A dead job with its place, if it is in an order.
    fn dead(&self, letter: u64) -> Result<Option<(DeadJob, Spot)>, BackendError> {
        let dead = self.inner.dead_letter(letter)?;
        Ok(dead.and_then(|dead| {
            let spot = self.orders.spot_of_dead(&self.place, &dead)?;
            Some((dead, spot))
        }))
    }

    /// A dead job is not dead any more: nothing has to say that it is skipped.
    fn forget_skipped(&self, dead: &DeadJob) {
        let id = JobId::new(Arc::clone(&self.place), dead.number);
        let key = keys::of_skipped(&id);
        let forgotten = self.backend.get(&key).and_then(|skipped| match skipped {
            Some(_) => self.backend.commit(&skip(&key, false)).map(|_| ()),
            None => Ok(()),
        });
        if let Err(error) = forgotten {
            // It says nothing of any other job, as numbers are not used again.
            tracing::warn!(%id, %error, "the key of a skipped job could not be removed");
        }
    }
}

impl Queue for OrderedQueue {
    fn publish(&self, job: &NewJob<'_>) -> Result<u64, BackendError> {
        let job_of = std::iter::once((&*self.place, job));
        let Some(mut entered) = Entered::of(&self.orders, job_of) else {
            return self.inner.publish(job);
        };
        let published = {
            let headers = entered.headers(std::iter::once(job));
            let headers = headers.first().map_or(job.headers, Vec::as_slice);
            self.inner.publish(&NewJob { headers, ..*job })
        };
        entered.note(&published, |number, _| Some(*number));
        published
    }

    fn publish_all(&self, jobs: &[NewJob<'_>]) -> Result<Vec<u64>, BackendError> {
        let jobs_of = jobs.iter().map(|job| (&*self.place, job));
        let Some(mut entered) = Entered::of(&self.orders, jobs_of) else {
            return self.inner.publish_all(jobs);
        };
        let published = {
            let headers = entered.headers(jobs.iter());
            let jobs = jobs.iter().zip(&headers);
            let jobs: Vec<_> = jobs
                .map(|(job, headers)| NewJob { headers, ..*job })
                .collect();
            self.inner.publish_all(&jobs)
        };
        entered.note(&published, |numbers, at| numbers.get(at).copied());
        published
    }

    fn set_paused(&self, paused: bool) -> Result<(), BackendError> {
        self.inner.set_paused(paused)
    }

    fn is_paused(&self) -> bool {
        self.inner.is_paused()
    }

    fn cancel(&self, number: u64) -> Result<Cancelled, BackendError> {
        self.inner.cancel(number)
    }

    fn look(&self, number: u64) -> Result<Option<Seen>, BackendError> {
        self.inner.look(number)
    }

    fn contains(&self, number: u64) -> Result<bool, BackendError> {
        self.inner.contains(number)
    }

    fn each(&self, from: u64, see: &mut dyn FnMut(&Seen) -> bool) -> Result<(), BackendError> {
        self.inner.each(from, see)
    }

    fn stats(&self) -> Result<QueueStats, BackendError> {
        self.inner.stats()
    }

    fn dead_letters(&self) -> Result<Vec<DeadJob>, BackendError> {
        self.inner.dead_letters()
    }

    fn dead_letter(&self, letter: u64) -> Result<Option<DeadJob>, BackendError> {
        self.inner.dead_letter(letter)
    }

    fn each_dead_letter(
        &self,
        after: Option<u64>,
        see: &mut dyn FnMut(DeadJob) -> bool,
    ) -> Result<(), BackendError> {
        self.inner.each_dead_letter(after, see)
    }

    fn replay(&self, letter: u64) -> Result<Option<u64>, BackendError> {
        // Of two that replay it, the second finds no letter; that of a job that has died again since is
        // another one.
        let _deciding = self.orders.deciding.lock()?;
        let Some((dead, spot)) = self.dead(letter)? else {
            return self.inner.replay(letter);
        };
        let Some(lines) = self.orders.lines(&spot) else {
            return self.inner.replay(letter);
        };
        let revival = lines.revive(&spot.key, spot.position);
        let replayed = self.inner.replay(letter);
        match &replayed {
            Ok(Some(number)) => {
                let id = JobId::new(Arc::clone(&self.place), *number);
                lines.name(&spot.key, spot.position, id);
                self.forget_skipped(&dead);
            }
            Err(BackendError::NotDurable(_)) => self.forget_skipped(&dead),
            Ok(None) | Err(_) if revival == Revival::AliveAlready => {}
            Err(_) if revival == Revival::Revived => {
                let id = JobId::new(Arc::clone(&self.place), dead.number);
                lines.name(&spot.key, spot.position, id);
                let reason = dead.reasons.last().map_or("", String::as_str);
                lines.die(&spot.key, spot.position, reason);
            }
            Ok(None) | Err(_) => lines.end(&spot.key, spot.position),
        }
        replayed
    }

    fn purge(&self, letter: u64) -> Result<bool, BackendError> {
        let _deciding = self.orders.deciding.lock()?;
        let Some((dead, spot)) = self.dead(letter)? else {
            return self.inner.purge(letter);
        };
        let purged = self.inner.purge(letter)?;
        if purged {
            if let Some(lines) = self.orders.lines(&spot) {
                lines.end(&spot.key, spot.position);
            }
            self.forget_skipped(&dead);
        }
        Ok(purged)
    }
}
