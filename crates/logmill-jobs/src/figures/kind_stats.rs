//! The figures of a kind, as programs read them.

use std::sync::Arc;

use super::Times;
use crate::mill::Mill;

/// The figures of a kind since the mill was opened, from [`Mill::kind_stats`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KindStats {
    /// The kind under which the jobs are stored: that of their type, or an alias.
    pub kind: String,
    /// Jobs that were enqueued, also those that are delayed, and dead ones that were replayed.
    pub enqueued: u64,
    /// Jobs that handlers have completed.
    pub done: u64,
    /// Attempts that failed, also the last ones of jobs that are dead.
    pub failed: u64,
    /// Attempts that gave the job back.
    pub snoozed: u64,
    /// Jobs that died.
    pub dead: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// Jobs that expired before they began.
    pub expired: u64,
    /// How long jobs were ready before their first attempt began: since their enqueue, or since they
    /// were due. For jobs that were not delayed, accurate to the kernel's clock tick (1 to 10 ms).
    ///
    /// The waits for limits and for a handler count; one that was given back has waited since its
    /// enqueue.
    pub waited: Times,
    /// How long attempts took.
    pub ran: Times,
    /// How long after their time those jobs began that were enqueued with a delay of their own; they
    /// are also in `waited`.
    pub late: Times,
}

impl Mill {
    /// The figures of a kind in all queues; all are 0 if it was never seen.
    ///
    /// All ends are counted. Of attempts that take less than 5 µs, one in eight on average is
    /// measured, at random, and stands for the others (those that were enqueued with a delay, those
    /// of async handlers, and all while there are [`Events`](crate::Events) are measured): with two looks at the clock for each, a job of
    /// a microsecond would cost a tenth more. So of such kinds `max` may miss the longest.
    ///
    /// Reads memory only: some microseconds for each thread and kind.
    pub fn kind_stats(&self, kind: &str) -> KindStats {
        let is_asked = |one: &Arc<str>, _: &Arc<str>| (**one == *kind).then_some(());
        let sums = self.inner.figures.sums(is_asked);
        sums.into_values()
            .next()
            .map_or_else(KindStats::default, |sum| sum.stats())
            .named(kind)
    }

    /// The figures of all kinds that were seen, by name.
    pub fn stats_by_kind(&self) -> Vec<KindStats> {
        let sums = self.inner.figures.sums(|kind, _| Some(Arc::clone(kind)));
        sums.into_values().map(|sum| sum.stats()).collect()
    }
}

impl KindStats {
    fn named(mut self, kind: &str) -> Self {
        kind.clone_into(&mut self.kind);
        self
    }
}
