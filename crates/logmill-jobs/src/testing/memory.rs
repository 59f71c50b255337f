//! What a mill keeps in memory of single jobs, for tests that nothing is left of those that have ended.

use crate::Mill;

impl Mill {
    /// How many jobs each part keeps something of in memory.
    #[doc(hidden)]
    pub fn kept_of_jobs(&self) -> [(&'static str, usize); 11] {
        let inner = &self.inner;
        let limits = inner.limits.counts();
        let count = |jobs: u64| usize::try_from(jobs).unwrap_or(usize::MAX);
        [
            ("refused", inner.refused.len()),
            ("progressed", inner.progressed.len()),
            ("cancelling", inner.cancelling.len()),
            ("running", inner.running.len()),
            ("waited for", inner.waiters.len()),
            ("edited", inner.before.moves.len()),
            ("paused", inner.before.paused.len()),
            ("parked", inner.parked.len()),
            ("at a limit", count(limits.running + limits.waiting)),
            ("granted a place", count(limits.granted)),
            ("in an order", inner.orders.counts().1),
        ]
    }
}
