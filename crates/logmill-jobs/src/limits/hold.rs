//! A handler was told to slow down: the gates that concern its job are closed for a time, and the job
//! waits there for the end of it.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::gate::{Gate, Key};
use super::limit::{Keys, Subject};
use super::{Limits, subject};
use crate::JobId;
use crate::backend::Claim;

/// No key is held back for longer: a time that no clock of this process comes to.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Limits {
    /// Closes the key of a job, whose handler was told to slow down, for this time, and has the job
    /// wait for its end before those that were not. Returns false if the job is not held.
    pub(crate) fn hold_key(
        self: &Arc<Self>,
        id: &JobId,
        cost: u32,
        claim: &mut dyn Claim,
        after: Duration,
    ) -> bool {
        let Some(until) = self.clock.now().checked_add(after.min(FOREVER)) else {
            return false;
        };
        let cost = self.cost_of(claim, cost);
        let closed = self.gates_of(&subject(id, claim));
        for &(gate, key) in &closed {
            if let Some(until) = gate.close(key.bucket, until) {
                self.timer.ring_at(until);
            }
        }
        self.timer.start(self);
        let Some((gate, key)) = closed.first() else {
            return false;
        };
        let is_held = gate.wait_as_first(*key, until, (id, cost), claim);
        self.timer.ring_at(until);
        is_held
    }

    /// The gates that are closed for a job, with its key there: those by key; else those of its queue
    /// or kind; else the last. Never one for which keys take turns: it would hold back all of them.
    fn gates_of(&self, job: &Subject<'_>) -> SmallVec<[(&Gate, Key); 2]> {
        let mut found: SmallVec<[(&Gate, Key); 2]> = SmallVec::new();
        let mut ranks = SmallVec::<[u8; 2]>::new();
        for gate in &self.gates {
            if let Some(key) = self.key_of(gate, job).filter(|_| !gate.limit.is_in_turn()) {
                found.push((gate, key));
                ranks.push(match (gate.is_for_held(), &gate.limit.keys) {
                    (true, _) => 2,
                    (false, Keys::Apart) => 0,
                    (false, _) => 1,
                });
            }
        }
        let best = ranks.iter().min().copied();
        let mut ranks = ranks.into_iter();
        found.retain(|_| ranks.next() == best);
        found
    }
}
