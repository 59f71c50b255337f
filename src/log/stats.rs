//! What a stripe's log holds.

use std::sync::atomic::Ordering;

use super::record::UNIT;
use super::segment::{START, Segment};
use super::{DEAD_ORIGIN, Stripe};
use crate::Timestamp;

/// What a stripe holds, for statistics. All but `bytes` and `segments` in jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StripeStats {
    /// Not done.
    pub(crate) live: u64,
    /// Not done and not claimed yet.
    pub(crate) unclaimed: u64,
    /// Appended since the queue was opened.
    pub(crate) appended: u64,
    /// Acked since the queue was opened, or dead.
    pub(crate) done: u64,
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
}

impl Stripe {
    /// What the stripe holds. Costs a look at each ack word of the segments that consumers have
    /// reached, and nothing for the backlog behind them.
    pub(crate) fn stats(&self) -> StripeStats {
        let (segments, mut stats) = {
            let segments = self.segments.read();
            // With the list locked: a segment is in the list or in these, never in both.
            let stats = StripeStats {
                appended: self.retired_appended.load(Ordering::Relaxed),
                done: self.retired_done.load(Ordering::Relaxed),
                ..StripeStats::default()
            };
            (Vec::from_iter(segments.iter().cloned()), stats)
        };
        for segment in &segments {
            let is_untouched = segment.claimed() == START && self.origin != DEAD_ORIGIN;
            let reached = segment.reached().index;
            let not_acked = segment.not_acked();
            let (done, unclaimed) = match segment.pin() {
                _ if is_untouched => {
                    let done = not_acked.min(reached);
                    (done, reached - done)
                }
                Some(pinned) => {
                    let done = pinned.done_within(0, reached);
                    // After the look at what is done, which is claimed before: so that no more
                    // jobs are unclaimed than live.
                    let claimed = segment.claimed().index.min(reached);
                    let done_after = if segment.is_recovered() {
                        pinned.done_within(claimed, reached)
                    } else {
                        0
                    };
                    (done, reached - claimed - done_after)
                }
                // Complete and gone.
                None => (reached, 0),
            };
            if !segment.is_recovered() {
                stats.appended += u64::from(reached);
            }
            stats.done += u64::from(done.saturating_sub(not_acked));
            stats.live += u64::from(reached - done);
            stats.unclaimed += u64::from(unclaimed);
            stats.segments += 1;
            stats.bytes += match segment.closed() {
                _ if segment.is_retired() => 0,
                Some(end) if segment.is_sealed() => u64::from(end.units) * UNIT as u64,
                _ => self.config.segment_size,
            };
        }
        stats
    }

    /// When the oldest job that is not done was enqueued.
    pub(crate) fn oldest_enqueued_at(&self) -> Option<Timestamp> {
        let segments: Vec<_> = self.segments.read().iter().cloned().collect();
        // One after the other: the backlog is not scanned for this.
        segments
            .iter()
            .filter(|segment| !Segment::is_complete(segment))
            .find_map(|segment| self.pin_scanned(segment)?.oldest_enqueued_at())
    }
}
