//! Statistics of a stripe's log.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::record::{Header, UNIT};
use super::segment::{START, Segment};
use super::{DEAD_ORIGIN, Log};
use crate::log::pinned::Pinned;
use crate::{Sequence, Timestamp};

/// Most segments that a search for the first job of some kind goes through. This matters, for
/// example, where all jobs of the first ones are delayed.
const MOST_SEGMENTS: usize = 1024;
/// Most records of a stripe that are searched for one that waits for a consumer.
const MOST_LOOKED_AT: u32 = 4096;

/// The contents of a stripe, for statistics. Counts jobs, except `bytes` and `segments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogStats {
    /// Not done.
    pub(crate) live: u64,
    /// Not done and not claimed yet.
    pub(crate) unclaimed: u64,
    /// Appended since the queue was opened.
    pub(crate) appended: u64,
    /// Acked since the queue was opened, or dead.
    pub(crate) done: u64,
    /// Found missing since the queue was opened.
    pub(crate) lost: u64,
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
}

impl LogStats {
    /// The contents of a segment that is sealed and that nothing was claimed from.
    pub(super) fn of_resting(segment: &Segment) -> Self {
        let reached = segment.reached();
        let live = u64::from(reached.index.saturating_sub(segment.not_acked()));
        Self {
            live,
            unclaimed: live,
            appended: match segment.is_recovered() {
                true => 0,
                false => u64::from(reached.index),
            },
            done: 0,
            lost: 0,
            bytes: u64::from(reached.units) * UNIT as u64,
            segments: 1,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (own, other) in self.figures().into_iter().zip(other.clone().figures()) {
            *own += *other;
        }
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        for (own, other) in self.figures().into_iter().zip(other.clone().figures()) {
            *own -= *other;
        }
    }

    fn figures(&mut self) -> [&mut u64; 7] {
        let Self {
            live,
            unclaimed,
            appended,
            done,
            lost,
            bytes,
            segments,
        } = self;
        [live, unclaimed, appended, done, lost, bytes, segments]
    }
}

impl Log {
    /// The contents of the stripe. Reads each ack word of the segments that consumers have reached,
    /// and costs nothing for the segments at rest behind them.
    pub(crate) fn stats(&self) -> LogStats {
        let (segments, mut stats) = {
            let segments = self.segments.read();
            // With the list locked: a segment is in the list or in these counts, never in both.
            let mut stats = LogStats {
                appended: self.retired_appended.load(Ordering::Relaxed),
                done: self.retired_done.load(Ordering::Relaxed),
                lost: self.lost.load(Ordering::Relaxed),
                ..LogStats::default()
            };
            stats.add(segments.resting());
            (Vec::from_iter(segments.awake().cloned()), stats)
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
                    // Read after the count of done jobs, which were claimed before that, so that no
                    // more jobs are unclaimed than live.
                    let claimed = segment.claimed().index.min(reached);
                    let done_after = if segment.is_recovered() {
                        pinned.done_within(claimed, reached)
                    } else {
                        0
                    };
                    (done, reached - claimed - done_after)
                }
                // Complete and gone.
                None if segment.is_retired() => (reached, 0),
                None => {
                    let done = not_acked.min(reached);
                    (done, reached - done)
                }
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

    /// The time at which the oldest job that is not done was enqueued. Neither scans nor waits:
    /// where another thread is at work, or the first job is damaged, the next one counts. `is_gone`
    /// tells of jobs that are cancelled and wait to be marked done.
    pub(crate) fn oldest_enqueued_at(
        &self,
        is_gone: &dyn Fn(Sequence) -> bool,
    ) -> Option<Timestamp> {
        let may_have = |_: &Segment| true;
        self.find_in_order(may_have, |segment| match segment {
            Looked::At(pinned) => pinned.oldest_enqueued_at(is_gone),
            Looked::Ahead(first) => Some(first.enqueued_at),
        })
    }

    /// Since when the first job has been due that waits for its first handler. Works like
    /// [`oldest_enqueued_at`](Self::oldest_enqueued_at), but searches a limited number of records:
    /// delayed jobs that no consumer has reached may hide such a job behind them.
    pub(crate) fn waiting_since(
        &self,
        now: Timestamp,
        is_gone: &dyn Fn(Sequence) -> bool,
    ) -> Option<Timestamp> {
        let mut budget = MOST_LOOKED_AT;
        self.find_in_order(Segment::may_have_waiting, |segment| match segment {
            Looked::At(pinned) => pinned.waiting_since(now, &mut budget, is_gone),
            Looked::Ahead(first) => {
                (first.due_at <= now).then(|| first.enqueued_at.max(first.due_at))
            }
        })
    }

    /// The result from the first segment that has one. Segments are examined one after the other,
    /// since not all may be needed.
    fn find_in_order(
        &self,
        may_have: impl Fn(&Segment) -> bool,
        mut find: impl FnMut(Looked<'_>) -> Option<Timestamp>,
    ) -> Option<Timestamp> {
        let mut after = None;
        for _ in 0..MOST_SEGMENTS {
            let segment = self.segment_after(after)?;
            after = Some(segment.base());
            if !segment.is_complete()
                && may_have(&segment)
                && let Some(found) = self.find_in(&segment, &mut find)
            {
                return Some(found);
            }
        }
        None
    }

    fn find_in(
        &self,
        segment: &Arc<Segment>,
        mut find: impl FnMut(Looked<'_>) -> Option<Timestamp>,
    ) -> Option<Timestamp> {
        if !segment.is_unscanned() {
            return find(Looked::At(&segment.look().ok()??));
        }
        // No job of it can be done before it is scanned, so the first result is valid for all
        // calls.
        if let Some(first) = segment.first_job.get() {
            return find(Looked::Ahead(first.as_ref()?));
        }
        // Locked so that the segment is not mended during the search.
        let mut step = self.step.try_lock()?;
        let pinned = segment.look().ok()??;
        if segment.is_unscanned() {
            let first = segment
                .first_job
                .get_or_init(|| pinned.peek_first(&mut step));
            find(Looked::Ahead(first.as_ref()?))
        } else {
            find(Looked::At(&pinned))
        }
    }
}

/// The state in which a search finds a segment.
enum Looked<'a> {
    At(&'a Pinned),
    /// The segment must be scanned before it is read from; this is its first job that is not done.
    Ahead(&'a Header),
}
