//! What a worker looks at before it begins an attempt: whether the job's kind or key is paused, whether
//! it is being edited, and with what a unique job runs.
//!
//! While nothing is paused or edited, that costs a load.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::JobId;
use crate::backend::{Claim, Settlement};
use crate::edit::Moves;
use crate::mill::Mill;
use crate::paused::Paused;
use crate::unique::{self, Began};

/// What concerns jobs that have not begun.
#[derive(Default)]
pub(crate) struct Before {
    /// How many pauses and edits there are.
    count: AtomicUsize,
    pub(crate) paused: Paused,
    pub(crate) moves: Moves,
}

impl Before {
    /// Has workers look at each job from now on, until as many calls of [`rest`](Self::rest).
    pub(crate) fn watch(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn rest(&self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    /// Begins an attempt. [`Began::GivenBack`] if the job does not run, and is taken care of.
    #[inline]
    pub(crate) fn begin(&self, mill: &Mill, id: &JobId, claim: &mut dyn Claim) -> Began {
        // Relaxed: a pause concerns jobs that are taken after the call has returned, and an edit looks
        // whether the job runs after it has counted itself.
        if self.count.load(Ordering::Relaxed) > 0 && self.stops(id, claim) {
            return Began::GivenBack;
        }
        match unique::is_turn(claim) {
            true => unique::begin(mill, id, claim),
            false => Began::AsItIs,
        }
    }

    #[cold]
    fn stops(&self, id: &JobId, claim: &mut dyn Claim) -> bool {
        if self.moves.has(id) {
            // It is about to be cancelled, or the edit to be given up.
            let after = std::time::Duration::from_millis(10);
            let _ = claim.settle(Settlement::Snooze { after });
            return true;
        }
        self.paused.holds(id, claim)
    }
}
