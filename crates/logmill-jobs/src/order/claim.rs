//! Workers come to jobs of orders: the first of each key runs, and the others are held.

use std::ops::DerefMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend::Entered;
use super::line::Arrival;
use super::{Orders, Spot};
use crate::JobId;
use crate::backend::{
    BackendError, Changes, Claim, Consumer, Held, Next, Settlement, forward_claim,
};
use crate::enqueue::header;

/// A backend that holds no jobs gives one that has to wait out again after this time.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct OrderedConsumer {
    pub(super) inner: Box<dyn Consumer>,
    pub(super) orders: Arc<Orders>,
    /// Whether other processes change what is stored.
    pub(super) is_shared: bool,
}

impl Consumer for OrderedConsumer {
    fn next(
        &mut self,
        until: Option<Instant>,
        stopped: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&mut dyn Claim),
    ) -> Next {
        loop {
            let mut is_taken = false;
            let mut take_it = |claim: &mut dyn Claim| {
                is_taken = true;
                take(claim);
            };
            let inner = &mut *self.inner;
            let next = inner.next(until, stopped, &mut |claim| {
                self.orders
                    .take_if_first(claim, self.is_shared, &mut take_it);
            });
            if is_taken || next != Next::Taken {
                return next;
            }
            // The one that came is held in its line.
            let is_late = || until.is_some_and(|until| until <= self.orders.clock.now());
            if stopped() || is_late() {
                return Next::Nothing;
            }
        }
    }
}

impl Orders {
    /// Takes a job that is the first of its line, or has no order; holds it if it is not.
    fn take_if_first(
        self: &Arc<Self>,
        claim: &mut dyn Claim,
        is_shared: bool,
        take: &mut dyn FnMut(&mut dyn Claim),
    ) {
        let orders = Arc::clone(self);
        let Some(spot) = self.spot_of_claim(claim) else {
            // What is enqueued at its end may have an order.
            let turn = None;
            return take(&mut OrderedClaim {
                claim,
                is_shared,
                orders,
                turn,
            });
        };
        let id = JobId::new(claim.queue(), claim.number());
        match self.arrive(&spot, &id) {
            Arrival::Runs => take(&mut OrderedClaim {
                claim,
                is_shared,
                turn: Some(Turn {
                    orders: Arc::clone(&orders),
                    spot,
                }),
                orders,
            }),
            Arrival::Waits => {
                // It was the first when it was granted a place at a limit. The one before it may
                // need that place.
                self.limits.forget_grant(&id);
                self.hold(&spot, claim);
            }
        }
    }

    fn spot_of_claim(&self, claim: &dyn Claim) -> Option<Spot> {
        self.spot_of(
            (claim.queue(), claim.number(), claim.kind()),
            claim.header(header::KEY),
            claim.header(header::ORDER),
            claim.enqueued_at(),
        )
    }

    fn arrive(&self, spot: &Spot, id: &JobId) -> Arrival {
        let lines = self.lines(spot);
        lines.map_or(Arrival::Runs, |lines| {
            lines.arrive(&spot.key, spot.position, id)
        })
    }

    fn hold(&self, spot: &Spot, claim: &mut dyn Claim) {
        match claim.hold() {
            Some(held) => {
                if let Some(lines) = self.lines(spot) {
                    lines.hold(&spot.key, spot.position, held);
                }
            }
            // Of one that was cancelled this is refused.
            None => {
                let _ = claim.settle(Settlement::Snooze { after: AGAIN });
            }
        }
    }
}

/// The turn of a job, until its attempt has ended in whatever way.
struct Turn {
    orders: Arc<Orders>,
    spot: Spot,
}

impl Turn {
    /// The job has ended.
    fn end(self) {
        if let Some(lines) = self.orders.lines(&self.spot) {
            lines.end(&self.spot.key, self.spot.position);
        }
    }

    /// The job comes back, or its end was told.
    fn pause(self, failure: Option<&str>) {
        if let Some(lines) = self.orders.lines(&self.spot) {
            lines.pause(&self.spot.key, self.spot.position, failure);
        }
    }
}

/// A job that is the first of its key, or has no order.
struct OrderedClaim<C> {
    claim: C,
    is_shared: bool,
    orders: Arc<Orders>,
    /// Taken when the attempt has ended. None if the job has no order.
    turn: Option<Turn>,
}

impl<C> Drop for OrderedClaim<C> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.pause(Some("the attempt has ended without an outcome"));
        }
    }
}

impl<C> OrderedClaim<C>
where
    C: DerefMut<Target: Claim>,
{
    /// Settles the job together with these changes, whose jobs enter their lines.
    fn settle_with(&mut self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let Some(mut entered) = Entered::of_changes(&self.orders, changes) else {
            return self.claim.settle(Settlement::Done(Some(changes)));
        };
        let settled = entered.with_changes(changes, |changes| {
            self.claim.settle(Settlement::Done(Some(changes)))
        });
        entered.note(&settled, |numbers, at| numbers.get(at).copied().flatten());
        settled
    }
}

impl<C> Claim for OrderedClaim<C>
where
    C: DerefMut<Target: Claim>,
{
    forward_claim!(claim: queue number kind payload header attempt crashes);
    forward_claim!(claim: enqueued_at due_at is_cancelled lease);

    fn settle(&mut self, settlement: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let turn = self.turn.take();
        let (is_done, failure) = match settlement {
            Settlement::Done(_) => (true, None),
            Settlement::Retry { reason, .. } | Settlement::Dead { reason } => (false, Some(reason)),
            Settlement::Snooze { .. } => (false, None),
        };
        let settled = match settlement {
            Settlement::Done(Some(changes)) => self.settle_with(changes),
            settlement => self.claim.settle(settlement),
        };
        let Some(turn) = turn else {
            return settled;
        };
        match &settled {
            Ok(_) | Err(BackendError::NotDurable(_)) if is_done => turn.end(),
            // It may be settled again.
            Err(BackendError::Conflict(_)) if is_done && self.is_shared => self.turn = Some(turn),
            Err(error) if is_done => {
                turn.pause(Some(&format!("its end could not be stored: {error}")));
            }
            _ => turn.pause(failure),
        }
        settled
    }

    fn hold(&mut self) -> Option<Box<dyn Held>> {
        // The job is still the first, and nobody else of its key runs while it is held.
        let held = self.claim.hold()?;
        if let Some(turn) = self.turn.take() {
            turn.pause(None);
        }
        Some(held)
    }

    fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
        let claim = self.claim.detach()?;
        Some(Box::new(OrderedClaim {
            claim,
            is_shared: self.is_shared,
            orders: Arc::clone(&self.orders),
            turn: self.turn.take(),
        }))
    }
}
